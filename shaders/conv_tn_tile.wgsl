// Weight gradient of a convolution as an implicit GEMM tiled in workgroup memory.
//   partial[s, co, kh, kw, ci] = sum over pixels p of chunk s: dy[p, co] * x[pixel(p, kh, kw), ci]
// Reads x [N, IH, IW, IC], dy [N, OH, OW, OC]; writes (=) partial [SPLIT, OC, KH, KW, IC] and, with
// BIAS, sums [SPLIT, OC], the
// same without x, by the first column's groups. Where SPLIT = 1 these are dw and db; else
// conv_tn_reduce.wgsl adds the chunks.
// A chunk is CHUNK output pixels.
// A group computes BM output channels x BN columns (kh, kw, ci), an invocation RM x RN of them.
// Grid: (ceil(KH * KW * IC / BN), ceil(OC / BM), SPLIT).
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.

#import lib/conv_tn
const BM: u32 = 64u; // spec: output channels per group
const BN: u32 = 64u; // spec: columns per group
const BK: u32 = 16u; // spec: pixels per tile
const RM: u32 = 4u; // spec: output channels per invocation, a multiple of 4 that divides BM
const RN: u32 = 4u; // spec: columns per invocation, a multiple of 4 that divides BN

const COLS4: u32 = KH * KW * IC4;
const PIXELS: u32 = N * OH * OW;
const CHUNK: u32 = (PIXELS + SPLIT - 1u) / SPLIT;
const TX: u32 = BN / RN;
const TY: u32 = BM / RM;
const WG: u32 = TX * TY;
const BM4: u32 = BM / 4u;
const BN4: u32 = BN / 4u;
const RM4: u32 = RM / 4u;
const RN4: u32 = RN / 4u;
const LOADS_A: u32 = (BK * BM4 + WG - 1u) / WG;
const LOADS_B: u32 = (BK * BN4 + WG - 1u) / WG;

var<workgroup> sh_a: array<vec4<f32>, BK * BM4>; // [BK, BM4]
var<workgroup> sh_b: array<vec4<f32>, BK * BN4>; // [BK, BN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let n0 = group.x * BN4;
    let m0 = group.y * BM4;
    let begin = group.z * CHUNK;
    let end = min(begin + CHUNK, PIXELS);
    let tx = local % TX;
    let ty = local / TX;
    var acc: array<vec4<f32>, RM * RN4>;
    // #if BIAS
    var total: array<vec4<f32>, RM4>;
    // #end
    var a: array<vec4<f32>, LOADS_A>;
    var b: array<vec4<f32>, LOADS_B>;
    for (var p0 = begin; p0 < end; p0 += BK) {
        for (var i = 0u; i < LOADS_A; i++) { // unroll
            let p = p0 + (local + i * WG) / BM4;
            let at = min(p, PIXELS - 1u) * OC4 + min(m0 + (local + i * WG) % BM4, OC4 - 1u);
            a[i] = load_dy(at, p < end);
        }
        for (var i = 0u; i < LOADS_B; i++) { // unroll
            let p = p0 + (local + i * WG) / BN4;
            let col = n0 + (local + i * WG) % BN4;
            let tap = col / IC4;
            let iy = p / OW % OH * STRIDE + tap / KW - PAD; // wraps below zero
            let ix = p % OW * STRIDE + tap % KW - PAD;
            let inside = p < end && col < COLS4 && iy < IH && ix < IW;
            b[i] = load_x(x_at(p / (OH * OW) * IH + iy, ix, col % IC4, inside), inside);
        }
        workgroupBarrier();
        for (var i = 0u; i < LOADS_A; i++) { // unroll
            if (local + i * WG < BK * BM4) {
                sh_a[local + i * WG] = a[i];
            }
        }
        for (var i = 0u; i < LOADS_B; i++) { // unroll
            if (local + i * WG < BK * BN4) {
                sh_b[local + i * WG] = b[i];
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k++) {
            var u: array<vec4<f32>, RM4>;
            var v: array<vec4<f32>, RN4>;
            for (var i = 0u; i < RM4; i++) { // unroll
                u[i] = sh_a[k * BM4 + i * TY + ty];
            }
            for (var j = 0u; j < RN4; j++) { // unroll
                v[j] = sh_b[k * BN4 + j * TX + tx];
            }
            // #if BIAS
            if (group.x == 0u) {
                for (var i = 0u; i < RM4; i++) { // unroll
                    total[i] += u[i];
                }
            }
            // #end
            for (var i = 0u; i < RM; i++) { // unroll
                for (var j = 0u; j < RN4; j++) { // unroll
                    acc[i * RN4 + j] = fma(vec4<f32>(u[i / 4u][i % 4u]), v[j], acc[i * RN4 + j]);
                }
            }
        }
    }

    // #if BIAS
    if (group.x == 0u && tx == 0u) {
        for (var i = 0u; i < RM4; i++) { // unroll
            let co = m0 + i * TY + ty;
            if (co < OC4) {
                sums[group.z * OC4 + co] = total[i];
            }
        }
    }
    // #end
    for (var i = 0u; i < RM; i++) { // unroll
        let co = (m0 + i / 4u * TY + ty) * 4u + i % 4u;
        for (var j = 0u; j < RN4; j++) { // unroll
            let col = n0 + j * TX + tx;
            if (co < OC && col < COLS4) {
                partial[(group.z * OC + co) * COLS4 + col] = acc[i * RN4 + j];
            }
        }
    }
}

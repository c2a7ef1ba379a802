// Convolution, or its input gradient, as an implicit GEMM tiled in workgroup memory.
//   y[m, n] = sum_k a[m, k] * w[n, k],  m = (image, oy, ox), n = output channel, k = (kh, kw, c)
//   a[m, k] = what tap (kh, kw) of output pixel (oy, ox) reads, channel c: lib/conv_nt.wgsl
// Reads x [N, IH, IW, IC], w [OC, KH, KW, IC], or with ACROSS w [IC, KH, KW, OC], and, as
// lib/epilogue.wgsl has it, bias [OC], add, gate and norm_x [N, OH, OW, OC], norm_mean [OC];
// writes (=) y [N, OH, OW, OC] and of every SPAN pixels of a parity, as parts [PARTS, 2, OC], with
// MOMENTS mean and M2 = sum (y - mean)^2, shifted by the first of them, with SUMS the sums of y and
// of y * (norm_x - norm_mean).
// A group computes BM pixels x BN channels, an invocation RM x RN of them.
// Grid: (ceil(OC / BN), GY, ceil(MT / GY) * CLASSES * CLASSES), MT = ceil(N * OHC * OWC / BM).
// Reference: ops/conv2d/mod.rs `Conv2d::reference` and `Conv2dInputGrad::reference`.

#import lib/conv_nt
#import lib/epilogue
const BM: u32 = 64u; // spec: pixels per group
const BN: u32 = 64u; // spec: output channels per group
const BK: u32 = 16u; // spec: depth of a tile, a multiple of 4
const RM: u32 = 4u; // spec: pixels per invocation, divides BM
const RN: u32 = 4u; // spec: output channels per invocation, divides BN

const BN4: u32 = BN / 4u;
const OC4: u32 = OC / 4u; // ACROSS only: OC is a multiple of 4
const OWC: u32 = (OW + CLASSES - 1u) / CLASSES; // columns of one parity
const M: u32 = N * OHC * OWC;
const TX: u32 = BN / RN;
const TY: u32 = BM / RM;
const WG: u32 = TX * TY;
const K4: u32 = BK / 4u;
const LOADS_A: u32 = (BM * K4 + WG - 1u) / WG;
const LOADS_B: u32 = (BN * K4 + WG - 1u) / WG;
const SQUARES: u32 = (BN4 * K4 + WG - 1u) / WG; // ACROSS: 4 x 4 weights, turned on the way
const HELD_B: u32 = select(LOADS_B, 4u * SQUARES, ACROSS);
const SA: u32 = BM + 2u; // two columns more: the stores of four k fall into different banks
const SB: u32 = BN + 2u;

@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [OC, KH, KW, IC4], or [IC, KH, KW, OC4]

var<workgroup> sh_a: array<vec4<f32>, K4 * SA>; // [K4, BM]
var<workgroup> sh_b: array<vec4<f32>, K4 * SB>; // [K4, BN]
// #if WITH_PARTS
const PARTS: u32 = CLASSES * CLASSES * ((M + SPAN - 1u) / SPAN);
const SHARE: u32 = SPAN / TY; // pixels of a part per invocation
var<workgroup> sh_sums: array<vec2<f32>, TY * BN>; // [TY, BN]
// #end
// #if MOMENTS
var<workgroup> sh_shift: array<f32, BN>;
// #end

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let n0 = group.x * BN;
    let m0 = (group.y + group.z / (CLASSES * CLASSES) * groups.y) * BM;
    let py = group.z / CLASSES % CLASSES;
    let px = group.z % CLASSES;
    // Taps of this parity: kh = kh0 + CLASSES * i, kw alike.
    let kh0 = (py + PAD) % CLASSES;
    let kw0 = (px + PAD) % CLASSES;
    let taps_x = (KW + CLASSES - 1u - kw0) / CLASSES;
    let taps = taps_x * ((KH + CLASSES - 1u - kh0) / CLASSES);
    let depth = taps * IC4;

    // The pixels that this invocation fetches; its place in k is the same for all of them where K4
    // divides WG.
    var line: array<i32, LOADS_A>;
    var top: array<i32, LOADS_A>;
    var left: array<i32, LOADS_A>;
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        let m = m0 + (local + i * WG) / K4;
        line[i] = select(-1, i32(m / (OHC * OWC) * IH), m < M);
        top[i] = first_tap(m / OWC % OHC * CLASSES + py);
        left[i] = first_tap(m % OWC * CLASSES + px);
    }
    let tx = local % TX;
    let ty = local / TX;
    var acc: array<f32, RM * RN>;
    var a: array<vec4<f32>, LOADS_A>;
    var b: array<vec4<f32>, HELD_B>;
    for (var k0 = 0u; k0 < depth; k0 += K4) {
        for (var i = 0u; i < LOADS_A; i++) { // unroll
            let k = k0 + (local + i * WG) % K4;
            let tap = k / IC4;
            let sy = shifted(top[i], kh0 + tap / taps_x * CLASSES);
            let sx = shifted(left[i], kw0 + tap % taps_x * CLASSES);
            let iy = coordinate(sy);
            let ix = coordinate(sx);
            let inside = k < depth && line[i] >= 0 && sy >= 0 && sx >= 0 && iy < i32(IH) && ix < i32(IW);
            a[i] = load_x(x_at(u32(line[i] + iy), u32(ix), k % IC4, inside), inside);
        }
        // #if !ACROSS
        for (var i = 0u; i < LOADS_B; i++) { // unroll
            let k = min(k0 + (local + i * WG) % K4, depth - 1u); // beyond the end the pixels are zero
            let tap = k / IC4;
            let col = min(n0 + (local + i * WG) / K4, OC - 1u);
            b[i] = w[((col * KH + kh0 + tap / taps_x * CLASSES) * KW + kw0 + tap % taps_x * CLASSES) * IC4 + k % IC4];
        }
        // #end
        // #if ACROSS
        for (var i = 0u; i < SQUARES; i++) { // unroll
            let k = min(k0 + (local + i * WG) / BN4, depth - 1u);
            let tap = k / IC4;
            let col = min(n0 / 4u + (local + i * WG) % BN4, OC4 - 1u);
            let row = ((k % IC4 * 4u * KH + kh0 + tap / taps_x * CLASSES) * KW + kw0 + tap % taps_x * CLASSES) * OC4 + col;
            for (var c = 0u; c < 4u; c++) { // unroll
                b[i * 4u + c] = w[row + c * (KH * KW * OC4)];
            }
        }
        // #end
        workgroupBarrier();
        for (var i = 0u; i < LOADS_A; i++) { // unroll
            let e = local + i * WG;
            if (e < BM * K4) {
                sh_a[e % K4 * SA + e / K4] = a[i];
            }
        }
        // #if !ACROSS
        for (var i = 0u; i < LOADS_B; i++) { // unroll
            let e = local + i * WG;
            if (e < BN * K4) {
                sh_b[e % K4 * SB + e / K4] = b[i];
            }
        }
        // #end
        // #if ACROSS
        for (var i = 0u; i < SQUARES; i++) { // unroll
            let e = local + i * WG;
            if (e < BN4 * K4) {
                for (var j = 0u; j < 4u; j++) { // unroll
                    sh_b[e / BN4 * SB + e % BN4 * 4u + j] = vec4<f32>(b[i * 4u][j], b[i * 4u + 1u][j], b[i * 4u + 2u][j], b[i * 4u + 3u][j]);
                }
            }
        }
        // #end
        workgroupBarrier();
        for (var k = 0u; k < K4; k++) {
            var u: array<vec4<f32>, RM>;
            var v: array<vec4<f32>, RN>;
            for (var i = 0u; i < RM; i++) { // unroll
                u[i] = sh_a[k * SA + i * TY + ty];
            }
            for (var j = 0u; j < RN; j++) { // unroll
                v[j] = sh_b[k * SB + j * TX + tx];
            }
            for (var i = 0u; i < RM; i++) { // unroll
                for (var j = 0u; j < RN; j++) { // unroll
                    acc[i * RN + j] = fma(u[i].w, v[j].w, fma(u[i].z, v[j].z, fma(u[i].y, v[j].y, fma(u[i].x, v[j].x, acc[i * RN + j]))));
                }
            }
        }
    }

    // #if SUMS
    var sums: array<vec2<f32>, BM / SPAN * RN>;
    // #end
    for (var i = 0u; i < RM; i++) { // unroll
        let m = m0 + i * TY + ty;
        let oy = m / OWC % OHC * CLASSES + py;
        let ox = m % OWC * CLASSES + px;
        if (m < M && oy < OH && ox < OW) {
            for (var j = 0u; j < RN; j++) { // unroll
                let col = n0 + j * TX + tx;
                if (col < OC) {
                    let index = ((m / (OHC * OWC) * OH + oy) * OW + ox) * OC + col;
                    let v = epilogue(acc[i * RN + j], index, col);
                    y[index] = v;
                    // #if MOMENTS
                    acc[i * RN + j] = stored(v);
                    // #end
                    // #if SUMS
                    let g = stored(v);
                    sums[i / SHARE * RN + j] += vec2<f32>(g, g * (norm_x[index] - norm_mean[col]));
                    // #end
                }
            }
        }
    }
    // #if MOMENTS
    for (var p = 0u; p < BM / SPAN; p++) { // unroll
        let first = m0 + p * SPAN;
        workgroupBarrier();
        if (ty == 0u) {
            for (var j = 0u; j < RN; j++) { // unroll
                sh_shift[j * TX + tx] = acc[p * SHARE * RN + j];
            }
        }
        workgroupBarrier();
        for (var j = 0u; j < RN; j++) { // unroll
            var sums = vec2<f32>();
            for (var i = 0u; i < SHARE; i++) { // unroll
                let apart = acc[(p * SHARE + i) * RN + j] - sh_shift[j * TX + tx];
                let d = select(0.0, apart, first + i * TY + ty < M);
                sums += vec2<f32>(d, d * d);
            }
            sh_sums[ty * BN + j * TX + tx] = sums;
        }
        workgroupBarrier();
        if (local < BN && n0 + local < OC && first < M) {
            var sums = vec2<f32>();
            for (var t = 0u; t < TY; t++) {
                sums += sh_sums[t * BN + local];
            }
            let mean = sums.x / f32(min(SPAN, M - first));
            let at = first / SPAN * 2u * OC + n0 + local;
            parts[at] = sh_shift[local] + mean;
            parts[at + OC] = relu(vec4<f32>(sums.y - sums.x * mean)).x; // NaN stays
        }
    }
    // #end
    // #if SUMS
    for (var p = 0u; p < BM / SPAN; p++) { // unroll
        let first = m0 + p * SPAN;
        workgroupBarrier();
        for (var j = 0u; j < RN; j++) { // unroll
            sh_sums[ty * BN + j * TX + tx] = sums[p * RN + j];
        }
        workgroupBarrier();
        if (local < BN && n0 + local < OC && first < M) {
            var sum = vec2<f32>();
            for (var t = 0u; t < TY; t++) {
                sum += sh_sums[t * BN + local];
            }
            let part = (py * CLASSES + px) * (PARTS / (CLASSES * CLASSES)) + first / SPAN;
            parts[part * 2u * OC + n0 + local] = sum.x;
            parts[(part * 2u + 1u) * OC + n0 + local] = sum.y;
        }
    }
    // #end
}

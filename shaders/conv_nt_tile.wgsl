// Convolution, or its input gradient, as an implicit GEMM tiled in workgroup memory.
//   y[m, n] = sum_k a[m, k] * w[n, k],  m = (image, oy, ox), n = output channel, k = (kh, kw, c)
// Reads x [N, IH, IW, C], w [OC, KH, KW, C] and what the epilogue names; writes (=) y [N, OH, OW, OC].
// TRANSPOSED = false: a[m, k] = x[image, oy * STRIDE + kh - PAD, ox * STRIDE + kw - PAD, c].
// TRANSPOSED = true:  a[m, k] = x[image, (oy + PAD - kh) / STRIDE, (ox + PAD - kw) / STRIDE, c] where both divide: x is the
//   output gradient, y the input gradient, w comes from weight_transpose.wgsl. Pixels of one parity share their taps.
// A group computes BM pixels x BN channels, an invocation RM x RN of them.
// Grid: (ceil(OC / BN), GRID_Y, ceil(MT / GRID_Y) * CLASSES * CLASSES), MT = ceil(N * OHC * OWC / BM).

const N: u32 = 1u; // spec
const IH: u32 = 8u; // spec
const IW: u32 = 8u; // spec
const C: u32 = 16u; // spec
const OH: u32 = 8u; // spec
const OW: u32 = 8u; // spec
const OC: u32 = 16u; // spec
const KH: u32 = 3u; // spec
const KW: u32 = 3u; // spec
const STRIDE: u32 = 1u; // spec
const PAD: u32 = 1u; // spec
const TRANSPOSED: bool = false; // spec
const BIAS: bool = false; // spec
const ADD: bool = false; // spec
const RELU: bool = false; // spec
const MASK: bool = false; // spec
const BM: u32 = 64u; // spec: pixels per group
const BN: u32 = 64u; // spec: output channels per group
const BK: u32 = 16u; // spec: depth of a tile, a multiple of 4
const RM: u32 = 4u; // spec: pixels per invocation, divides BM
const RN: u32 = 4u; // spec: output channels per invocation, divides BN

const C4: u32 = C / 4u;
const CLASSES: u32 = 1u + (STRIDE - 1u) * u32(TRANSPOSED); // parities of an output row or column
const OHC: u32 = (OH + CLASSES - 1u) / CLASSES; // rows and columns of one parity, in one image
const OWC: u32 = (OW + CLASSES - 1u) / CLASSES;
const M: u32 = N * OHC * OWC;
const GRID_Y: u32 = min((M + BM - 1u) / BM, 32768u);
const TX: u32 = BN / RN;
const TY: u32 = BM / RM;
const WG: u32 = TX * TY;
const K4: u32 = BK / 4u;
const LOADS_A: u32 = (BM * K4 + WG - 1u) / WG;
const LOADS_B: u32 = (BN * K4 + WG - 1u) / WG;
const SA: u32 = BM + 2u; // two columns more: the stores of four k fall into different banks
const SB: u32 = BN + 2u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, IH, IW, C4]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [OC, KH, KW, C4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [N, OH, OW, OC]
// #if BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [OC]
// #end
// #if ADD
@group(0) @binding(4) var<storage, read> add: array<f32>; // [N, OH, OW, OC]
// #end
// #if MASK
@group(0) @binding(5) var<storage, read> gate: array<f32>; // [N, OH, OW, OC]
// #end

fn epilogue(sum: f32, index: u32, col: u32) -> f32 {
    var v = sum;
    // #if BIAS
    v += bias[col];
    // #end
    // #if ADD
    v += add[index];
    // #end
    if (RELU) {
        v = max(v, 0.0);
    }
    // #if MASK
    v = select(0.0, v, gate[index] > 0.0);
    // #end
    return v;
}

var<workgroup> sh_a: array<vec4<f32>, K4 * SA>; // [K4, BM]
var<workgroup> sh_b: array<vec4<f32>, K4 * SB>; // [K4, BN]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let n0 = group.x * BN;
    let m0 = (group.y + group.z / (CLASSES * CLASSES) * GRID_Y) * BM;
    let py = group.z / CLASSES % CLASSES;
    let px = group.z % CLASSES;
    // Taps of this parity: kh = kh0 + CLASSES * i, kw alike.
    let kh0 = (py + PAD) % CLASSES;
    let kw0 = (px + PAD) % CLASSES;
    let taps_x = (KW + CLASSES - 1u - kw0) / CLASSES;
    let taps = taps_x * ((KH + CLASSES - 1u - kh0) / CLASSES);
    let depth = taps * C4;

    // The pixels that this invocation fetches; its place in k is the same for all of them where K4 divides WG.
    var line: array<i32, LOADS_A>;
    var top: array<i32, LOADS_A>;
    var left: array<i32, LOADS_A>;
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        let m = m0 + (local + i * WG) / K4;
        let oy = i32(m / OWC % OHC * CLASSES + py);
        let ox = i32(m % OWC * CLASSES + px);
        line[i] = select(-1, i32(m / (OHC * OWC) * IH), m < M);
        top[i] = select(oy * i32(STRIDE) - i32(PAD), oy + i32(PAD), TRANSPOSED);
        left[i] = select(ox * i32(STRIDE) - i32(PAD), ox + i32(PAD), TRANSPOSED);
    }
    let tx = local % TX;
    let ty = local / TX;
    var acc: array<f32, RM * RN>;
    var a: array<vec4<f32>, LOADS_A>;
    var b: array<vec4<f32>, LOADS_B>;
    for (var k0 = 0u; k0 < depth; k0 += K4) {
        for (var i = 0u; i < LOADS_A; i++) { // unroll
            let k = k0 + (local + i * WG) % K4;
            let tap = k / C4;
            let kh = i32(kh0 + tap / taps_x * CLASSES);
            let kw = i32(kw0 + tap % taps_x * CLASSES);
            let sy = select(top[i] + kh, top[i] - kh, TRANSPOSED);
            let sx = select(left[i] + kw, left[i] - kw, TRANSPOSED);
            let iy = select(sy, sy / i32(STRIDE), TRANSPOSED);
            let ix = select(sx, sx / i32(STRIDE), TRANSPOSED);
            let inside = k < depth && line[i] >= 0 && sy >= 0 && sx >= 0 && iy < i32(IH) && ix < i32(IW);
            let at = select(0u, u32((line[i] + iy) * i32(IW) + ix) * C4 + k % C4, inside);
            a[i] = select(vec4<f32>(), x[at], inside);
        }
        for (var i = 0u; i < LOADS_B; i++) { // unroll
            let k = min(k0 + (local + i * WG) % K4, depth - 1u); // beyond the end the pixels are zero
            let tap = k / C4;
            let col = min(n0 + (local + i * WG) / K4, OC - 1u);
            b[i] = w[((col * KH + kh0 + tap / taps_x * CLASSES) * KW + kw0 + tap % taps_x * CLASSES) * C4 + k % C4];
        }
        workgroupBarrier();
        for (var i = 0u; i < LOADS_A; i++) { // unroll
            let e = local + i * WG;
            if (e < BM * K4) {
                sh_a[e % K4 * SA + e / K4] = a[i];
            }
        }
        for (var i = 0u; i < LOADS_B; i++) { // unroll
            let e = local + i * WG;
            if (e < BN * K4) {
                sh_b[e % K4 * SB + e / K4] = b[i];
            }
        }
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

    for (var i = 0u; i < RM; i++) { // unroll
        let m = m0 + i * TY + ty;
        let oy = m / OWC % OHC * CLASSES + py;
        let ox = m % OWC * CLASSES + px;
        if (m < M && oy < OH && ox < OW) {
            for (var j = 0u; j < RN; j++) { // unroll
                let col = n0 + j * TX + tx;
                if (col < OC) {
                    let index = ((m / (OHC * OWC) * OH + oy) * OW + ox) * OC + col;
                    y[index] = epilogue(acc[i * RN + j], index, col);
                }
            }
        }
    }
}

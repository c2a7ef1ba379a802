// Convolution, or its input gradient, as an implicit GEMM; no barriers: a subgroup shares pixels by
// broadcast.
//   y[m, n] = sum_k a[m, k] * w[n, k],  m = (image, oy, ox), n = output channel, k = (kh, kw, c)
//   a[m, k] = what tap (kh, kw) of output pixel (oy, ox) reads, channel c: lib/conv_nt.wgsl
// Reads x [N, IH, IW, IC], w [OC, KH, KW, IC], for an input gradient from weight_transpose, and, as
// lib/epilogue.wgsl has it, bias [OC], add and gate [N, OH, OW, OC]; writes (=) y [N, OH, OW, OC].
// A subgroup computes TR image rows x TW pixels x SG * COLS channels: lanes own channels, pixels
// are broadcast.
// It finds no parts, moments or sums, and reads no norm_x, norm_mean.
// Grid: (NT, GY, ceil(MT / GY) * CLASSES), NT = ceil(OC / (SG * COLS)), MT = ceil(OW / TW) *
// ceil(N * OHC / TR).
// Reference: ops/conv2d/mod.rs `Conv2d::reference` and `Conv2dInputGrad::reference`.
// Needs subgroups; a browser wants `enable subgroups;` in front, which naga 30 does not parse.

#import lib/conv_nt
#import lib/epilogue
const SG: u32 = 8u; // spec: the subgroup size, exactly
const COLS: u32 = 2u; // spec: output channels per lane
const TR: u32 = 4u; // spec: image rows per tile
const QW: u32 = 8u; // spec: pixels per tile row; of one parity where TRANSPOSED

const ROWS: u32 = N * OHC;
const TW: u32 = QW * CLASSES;
const XT: u32 = (OW + TW - 1u) / TW;
// A tile row reads PW pixels of x. Pixel q of tap kw is number q * XSTEP + kw, or q + LAST -
// (FIRST - kw) / STRIDE, ... of them.
const POINT: u32 = u32(KW == 1u); // a 1 x 1 kernel reads every STRIDE-th pixel only
const FWD: u32 = u32(!TRANSPOSED);
const BWD: u32 = u32(TRANSPOSED);
const XSTEP: u32 = 1u + (STRIDE - 1u) * FWD * (1u - POINT);
const ISTEP: u32 = 1u + (STRIDE - 1u) * FWD * POINT;
const TOP: u32 = PAD + STRIDE * KW + STRIDE - 1u;
const LOW: u32 = (TOP - (KW - 1u)) / STRIDE;
const PW: u32 = (QW - 1u) * XSTEP + 1u + FWD * (KW - 1u) + BWD * (TOP / STRIDE - LOW);
const SLOTS: u32 = (TR * PW + SG - 1u) / SG; // pixels held per lane
const STORE: u32 = min(4u, TR * TW); // pixels stored per step

@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [OC, KH, KW, IC4]

@compute @workgroup_size(SG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let col0 = group.x * (SG * COLS) + lane;
    let tile = group.y + (group.z / CLASSES) * groups.y;
    let parity = group.z % CLASSES;
    let row0 = (tile / XT) * TR;
    let ox0 = (tile % XT) * TW;
    let ix0 = i32(ox0 * STRIDE * FWD + ox0 / STRIDE * BWD) - i32(PAD * FWD) - i32(BWD * KW) + i32(BWD * LOW);

    var line: array<i32, SLOTS>; // first row of the image, in x
    var top: array<i32, SLOTS>; // oy * STRIDE - PAD, or oy + PAD
    var left: array<i32, SLOTS>; // pixel within its row of x, or -1
    for (var s = 0u; s < SLOTS; s++) { // unroll
        let p = s * SG + lane;
        let row = row0 + p / PW;
        let ix = ix0 + i32((p % PW) * ISTEP);
        line[s] = i32(row / OHC * IH);
        top[s] = first_tap((row % OHC) * CLASSES + parity);
        left[s] = select(-1, ix, p < TR * PW && row < ROWS && ix >= 0 && ix < i32(IW));
    }

    var acc: array<f32, TR * TW * COLS>;
    var at: array<u32, SLOTS>;
    var a: array<vec4<f32>, SLOTS>;
    var b: array<vec4<f32>, COLS * KW>;
    for (var kh = (parity + PAD) % CLASSES; kh < KH; kh += CLASSES) {
        var inside: array<bool, SLOTS>;
        for (var s = 0u; s < SLOTS; s++) { // unroll
            let sy = shifted(top[s], kh);
            let iy = coordinate(sy);
            inside[s] = left[s] >= 0 && sy >= 0 && iy < i32(IH);
            at[s] = x_at(u32(line[s] + iy), u32(left[s]), 0u, inside[s]);
        }
        for (var c = 0u; c < IC4; c++) {
            for (var s = 0u; s < SLOTS; s++) { // unroll
                a[s] = load_x(at[s] + c, inside[s]);
            }
            for (var j = 0u; j < COLS; j++) { // unroll
                let col = min(col0 + j * SG, OC - 1u);
                let tap = (col * KH + kh) * KW * IC4 + c;
                for (var kw = 0u; kw < KW; kw++) { // unroll
                    b[j * KW + kw] = w[tap + kw * IC4];
                }
            }
            for (var r = 0u; r < TR; r++) { // unroll
                for (var q = 0u; q < QW; q++) { // unroll
                    for (var kw = 0u; kw < KW; kw++) { // unroll
                        // Before the loops are unrolled these are not constants, so this is a
                        // shuffle, not a broadcast.
                        let p = r * PW + q * XSTEP + FWD * kw + BWD * ((TOP - kw) / STRIDE - LOW);
                        let v = subgroupShuffle(a[p / SG], p % SG);
                        let m = (r * TW + q * CLASSES + BWD * ((kw + (STRIDE - 1u) * PAD) % STRIDE)) * COLS;
                        for (var j = 0u; j < COLS; j++) { // unroll
                            let u = b[j * KW + kw];
                            acc[m + j] = fma(v.w, u.w, fma(v.z, u.z, fma(v.y, u.y, fma(v.x, u.x, acc[m + j]))));
                        }
                    }
                }
            }
        }
    }

    // `acc` shifts down: an index known at run time only would cost the registers, and llvmpipe's
    // compile time.
    for (var first = 0u; first < TR * TW; first += STORE) {
        for (var e = 0u; e < STORE; e++) { // unroll
            let ox = ox0 + (first + e) % TW;
            let row = row0 + (first + e) / TW;
            let oy = row % OHC * CLASSES + parity;
            for (var j = 0u; j < COLS; j++) { // unroll
                let col = col0 + j * SG;
                if (first + e < TR * TW && col < OC && ox < OW && row < ROWS && oy < OH) {
                    let index = ((row / OHC * OH + oy) * OW + ox) * OC + col;
                    y[index] = epilogue(acc[e * COLS + j], index, col);
                }
            }
        }
        for (var e = 0u; e < (TR * TW - STORE) * COLS; e++) { // unroll
            acc[e] = acc[e + STORE * COLS];
        }
    }
}

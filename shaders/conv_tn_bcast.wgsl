// Weight gradient of a convolution as an implicit GEMM; no barriers: a subgroup shares pixels of dy
// by shuffles.
//   partial[s, co, kh, kw, ci] = sum over pixels p of chunk s: dy[p, co] * x[pixel(p, kh, kw), ci]
// Reads x [N, IH, IW, IC], dy [N, OH, OW, OC]; writes (=) partial [SPLIT, OC, KH, KW, IC] and, with
// BIAS, sums [SPLIT, OC], the same
// without x, by the groups of the kernel's row PAD, which meets every row of dy (2 * PAD < KH).
// Where SPLIT = 1 these are dw and db; else conv_tn_reduce.wgsl adds the chunks.
// Chunks are runs of strips of output pixels.
// A lane owns a vec4 of ci, LP lanes own a pixel, so a subgroup holds PP = SG / LP neighbours; NI
// such groups are a strip.
// A subgroup computes ROWS output channels x KW taps x 4 * LP input channels, of one kh.
// Grid: (ceil(OC / ROWS) * ceil(IC4 / LP), KH, SPLIT).
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.
// Needs subgroups; a browser wants `enable subgroups;` in front, which naga 30 does not parse.

#import lib/conv_tn
const SG: u32 = 8u; // spec: the subgroup size, exactly
const LP: u32 = 4u; // spec: lanes per pixel, a power of two that divides SG
const ROWS: u32 = 16u; // spec: output channels per tile, a multiple of 4
const NI: u32 = 4u; // spec: pixel groups per strip

const PP: u32 = SG / LP;
const STRIP: u32 = NI * PP;
const XT: u32 = (OW + STRIP - 1u) / STRIP;
const CT: u32 = (IC4 + LP - 1u) / LP;
const DL: u32 = (ROWS / 4u + LP - 1u) / LP; // loads of dy per pixel group
const RES: u32 = min(STRIDE, KW); // residues of a pixel of x
const XV: u32 = NI + ((KW - 1u) / STRIDE + PP - 1u) / PP; // pixel groups of x per residue

@compute @workgroup_size(SG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let co0 = group.x / CT * ROWS;
    let ci = group.x % CT * LP + lane % LP;
    let kh = group.y;
    let pixel = lane / LP;
    let home = pixel * LP; // first lane of this pixel

    // Rows of dy whose row of x is inside the image.
    let first = (max(PAD, kh) - kh + STRIDE - 1u) / STRIDE;
    let end = min(OH, (max(IH + PAD, kh) - kh + STRIDE - 1u) / STRIDE);
    let rows = max(end, first) - first;
    let strips = N * rows * XT;
    let chunk = (strips + SPLIT - 1u) / SPLIT;
    let begin = group.z * chunk;
    let stop = min(begin + chunk, strips);
    var strip = begin % XT;
    var oy = first + begin / XT % max(rows, 1u);
    var image = begin / XT / max(rows, 1u);

    var acc: array<vec4<f32>, KW * ROWS>;
    // #if BIAS
    let owner = kh == PAD && group.x % CT == 0u;
    var total: array<vec4<f32>, DL>;
    // #end
    var xs: array<vec4<f32>, RES * XV>;
    var ds: array<vec4<f32>, NI * DL>;
    var taps: array<vec4<f32>, KW>;
    for (var i = begin; i < stop; i++) {
        let ox = strip * STRIP + pixel;
        let iy = oy * STRIDE + kh - PAD;
        let x_row = image * IH + iy;
        for (var res = 0u; res < RES; res++) { // unroll
            for (var v = 0u; v < XV; v++) { // unroll
                let ix = (ox + v * PP) * STRIDE + res - PAD; // wraps below zero
                let inside = ix < IW;
                xs[res * XV + v] = load_x(x_at(x_row, ix, min(ci, IC4 - 1u), inside), inside);
            }
        }
        let d_row = (image * OH + oy) * OW;
        for (var v = 0u; v < NI; v++) { // unroll
            for (var u = 0u; u < DL; u++) { // unroll
                let inside = ox + v * PP < OW;
                let co = min(co0 / 4u + u * LP + lane % LP, OC4 - 1u);
                ds[v * DL + u] = load_dy(select(0u, (d_row + ox + v * PP) * OC4 + co, inside), inside);
                // #if BIAS
                if (owner) {
                    total[u] += ds[v * DL + u];
                }
                // #end
            }
        }
        for (var v = 0u; v < NI; v++) { // unroll
            for (var kw = 0u; kw < KW; kw++) { // unroll
                // Pixel `pixel + kw / STRIDE` of the strip: it may be one of the next group.
                let turn = kw / STRIDE % PP * LP;
                let at = kw % STRIDE * XV + v + kw / STRIDE / PP;
                if (turn == 0u) {
                    taps[kw] = xs[at];
                } else {
                    taps[kw] = subgroupShuffle(select(xs[at], xs[min(at + 1u, RES * XV - 1u)], lane < turn), (lane + turn) % SG);
                }
            }
            for (var r = 0u; r < ROWS; r++) { // unroll
                let d = subgroupShuffle(ds[v * DL + r / 4u / LP][r % 4u], home + r / 4u % LP);
                for (var kw = 0u; kw < KW; kw++) { // unroll
                    acc[kw * ROWS + r] = fma(vec4<f32>(d), taps[kw], acc[kw * ROWS + r]);
                }
            }
        }
        strip++;
        oy += u32(strip == XT);
        image += u32(oy == end);
        strip = select(strip, 0u, strip == XT);
        oy = select(oy, first, oy == end);
    }

    // #if BIAS
    if (owner) {
        for (var u = 0u; u < DL; u++) { // unroll
            for (var d = LP; d < SG; d *= 2u) {
                total[u] += subgroupShuffle(total[u], lane ^ d);
            }
            let co = u * LP + lane % LP;
            if (lane < LP && co < ROWS / 4u && co0 / 4u + co < OC4) {
                sums[group.z * OC4 + co0 / 4u + co] = total[u];
            }
        }
    }
    // #end
    // `acc` shifts down past its first row: an index known at run time only would cost the
    // registers, and llvmpipe's compile time.
    for (var i = 0u; i < ROWS; i++) {
        for (var kw = 0u; kw < KW; kw++) { // unroll
            var sum = acc[kw * ROWS];
            for (var d = LP; d < SG; d *= 2u) {
                sum += subgroupShuffle(sum, lane ^ d);
            }
            if (lane < LP && ci < IC4 && co0 + i < OC) {
                partial[(((group.z * OC + co0 + i) * KH + kh) * KW + kw) * IC4 + ci] = sum;
            }
            for (var r = 0u; r < ROWS - 1u; r++) { // unroll
                acc[kw * ROWS + r] = acc[kw * ROWS + r + 1u];
            }
        }
    }
}

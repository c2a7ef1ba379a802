// Convolution, or its input gradient, of f16 operands as an implicit GEMM of cooperative matrices.
//   y[m, n] = sum_k a[m, k] * w[n, k],  m = (image, oy, ox), n = output channel, k = (kh, kw, c)
//   a[m, k] = what tap (kh, kw) of output pixel (oy, ox) reads, channel c: lib/conv_nt.wgsl
// Operands are rounded to f16, sums are f32.
// Reads x [N, IH, IW, IC], w [OC, KH, KW, IC], or with ACROSS w [IC, KH, KW, OC], and, as
// lib/epilogue4.wgsl has it, bias [OC], add, gate and norm_x [N, OH, OW, OC], norm_mean [OC];
// writes (=) y [N, OH, OW, OC] and of every SPAN pixels of a parity, as parts [PARTS, 2, OC], with
// MOMENTS mean and M2 = sum (y - mean)^2, with SUMS the sums of y and of y * (norm_x - norm_mean).
// A group computes BM pixels x BN channels, a subgroup WM x WN of them. While it multiplies a tile
// of depth BK, it fetches the next one into registers.
// Grid: (ceil(OC / BN), GY, ceil(MT / GY) * CLASSES * CLASSES), MT = ceil(N * OHC * OWC / BM).
// Reference: ops/conv2d/mod.rs `Conv2d::reference` and `Conv2dInputGrad::reference`.

#import lib/coop
#import lib/conv_nt
#import lib/epilogue4
#import lib/coop_nt

const BN4: u32 = BN / 4u; // divides WG, as K4 does
const DEPTHS: u32 = WG / BN4; // the same of w read across, whose rows are k
const LOADS_B: u32 = select((BN + ROWS - 1u) / ROWS, (BK + DEPTHS - 1u) / DEPTHS, ACROSS);
const SA: u32 = K4 + PAD4; // vec4s from row to row
const SB: u32 = select(K4, BN4, ACROSS) + PAD4;
const SIZE_A: u32 = BM * SA;
const SIZE_B: u32 = select(BN, BK, ACROSS) * SB;

@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [OC, KH, KW, IC4], ACROSS as above

var<workgroup> sh_a: array<vec4<f16>, BUFFERS * SIZE_A>; // [BUFFERS, BM, K4]
var<workgroup> sh_b: array<vec4<f16>, BUFFERS * SIZE_B>; // [BUFFERS, BN, K4], or [BUFFERS, BK, BN4]

// Fetches this invocation's part of a tile; returns which of `a` lie inside. What lies behind the
// last tap is outside for `a`, and in `b` some weight of the same channel.
fn fetch(
    tile: u32,
    local: u32,
    taps: Taps,
    first: ptr<function, array<u32, LOADS_A>>,
    seen: ptr<function, array<u32, LOADS_A>>,
    a: ptr<function, array<vec4<f16>, LOADS_A>>,
    b: ptr<function, array<vec4<f16>, LOADS_B>>,
) -> u32 {
    let lane = local % K4;
    let last = min(tile, taps.tiles - 1u) * K4;
    let k = min(last + lane, taps.depth - 1u);
    let tap = select(k / IC4, last / IC4, ALIGNED);
    let c = select(k % IC4, last % IC4 + lane, ALIGNED);
    let row = tap / taps.columns;
    let column = tap % taps.columns;
    let wanted = select(NEVER, (1u << row) | (65536u << column), tile * K4 + lane < taps.depth);
    let shift = (row * IW + column) * IC4;
    let from_first = select(c + shift, c - shift, TRANSPOSED);
    var inside = 0u;
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        let here = ((*seen)[i] & wanted) == wanted;
        (*a)[i] = vec4<f16>(x[select(0u, (*first)[i] + from_first, here)]);
        inside |= select(0u, 1u << i, here);
    }
    // #if !ACROSS
    let at = ((taps.kh0 + row * CLASSES) * KW + taps.kw0 + column * CLASSES) * IC4 + c;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        (*b)[i] = vec4<f16>(w[channel(taps.n0 + local / K4 + i * ROWS, OC) * (KH * KW * IC4) + at]);
    }
    // #end
    // #if ACROSS
    let n = channel(taps.n0 / 4u + local % BN4, OC4);
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        let deep = local / BN4 + i * DEPTHS;
        let kb = min(last * 4u + deep, taps.depth * 4u - 1u);
        let tap_b = select(kb / IC, last / IC4, ALIGNED);
        let cb = select(kb % IC, last % IC4 * 4u + deep, ALIGNED);
        let kh = taps.kh0 + tap_b / taps.columns * CLASSES;
        let kw = taps.kw0 + tap_b % taps.columns * CLASSES;
        (*b)[i] = vec4<f16>(w[((min(cb, IC - 1u) * KH + kh) * KW + kw) * OC4 + n]);
    }
    // #end
    return inside;
}

// A channel that there is: those behind the last are computed and not written.
fn channel(n: u32, count: u32) -> u32 {
    return select(min(n, count - 1u), n, OC % BN == 0u);
}

// Puts what was fetched into workgroup memory.
fn put(
    buffer: u32,
    local: u32,
    inside: u32,
    a: ptr<function, array<vec4<f16>, LOADS_A>>,
    b: ptr<function, array<vec4<f16>, LOADS_B>>,
) {
    let to_a = buffer * SIZE_A + local / K4 * SA + local % K4;
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        if (BM % ROWS == 0u || local / K4 + i * ROWS < BM) {
            sh_a[to_a + i * (ROWS * SA)] = select(vec4<f16>(), (*a)[i], (inside & (1u << i)) != 0u);
        }
    }
    // #if !ACROSS
    let to_b = buffer * SIZE_B + local / K4 * SB + local % K4;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        if (BN % ROWS == 0u || local / K4 + i * ROWS < BN) {
            sh_b[to_b + i * (ROWS * SB)] = (*b)[i];
        }
    }
    // #end
    // #if ACROSS
    let to_b = buffer * SIZE_B + local / BN4 * SB + local % BN4;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        if (BK % DEPTHS == 0u || local / BN4 + i * DEPTHS < BK) {
            sh_b[to_b + i * (DEPTHS * SB)] = (*b)[i];
        }
    }
    // #end
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let m0 = (group.y + group.z / (CLASSES * CLASSES) * groups.y) * BM;
    let py = group.z / CLASSES % CLASSES;
    let px = group.z % CLASSES;
    let taps = taps_of(py, px, group.x * BN);

    var first: array<u32, LOADS_A>;
    var seen: array<u32, LOADS_A>;
    pixels(m0 + local / K4, py, px, taps, &first, &seen);
    var a: array<vec4<f16>, LOADS_A>;
    var b: array<vec4<f16>, LOADS_B>;
    if (taps.tiles > 0u) {
        let inside = fetch(0u, local, taps, &first, &seen, &a, &b);
        put(0u, local, inside, &a, &b);
    }
    workgroupBarrier();

    let from_a = subgroup / BESIDE * WM * SA;
    let from_b = subgroup % BESIDE * select(WN * SB, WN / 4u, ACROSS);
    var acc: array<MatrixC, MS * NS>;
    var u: array<MatrixA, MS>;
    var v: array<MatrixB, NS>;
    for (var tile = 0u; tile < taps.tiles; tile++) {
        let inside = fetch(tile + 1u, local, taps, &first, &seen, &a, &b);
        let at_a = tile % BUFFERS * SIZE_A + from_a;
        let at_b = tile % BUFFERS * SIZE_B + from_b;
        for (var k = 0u; k < BK / T; k++) { // unroll
            for (var i = 0u; i < MS; i++) { // unroll
                u[i] = coopLoadT<MatrixA>(&sh_a[at_a + i * (T * SA) + k * T4], SA);
            }
            for (var j = 0u; j < NS; j++) { // unroll
                // #if !ACROSS
                v[j] = coopLoad<MatrixB>(&sh_b[at_b + j * (T * SB) + k * T4], SB);
                // #end
                // #if ACROSS
                v[j] = coopLoadT<MatrixB>(&sh_b[at_b + k * (T * SB) + j * T4], SB);
                // #end
            }
            for (var i = 0u; i < MS; i++) { // unroll
                for (var j = 0u; j < NS; j++) { // unroll
                    acc[i * NS + j] = coopMultiplyAdd(u[i], v[j], acc[i * NS + j]);
                }
            }
        }
        // #if SINGLE
        workgroupBarrier();
        // #end
        put((tile + 1u) % BUFFERS, local, inside, &a, &b);
        workgroupBarrier();
    }

    // #if WITH_PARTS
    var lanes: array<Lane, STRIPS>;
    // #end
    for (var i = 0u; i < MS; i++) { // unroll
        for (var s = 0u; s < STRIPS; s++) { // unroll
            for (var j = 0u; j < STRIP; j++) { // unroll
                let to = subgroup * (T * SY) + j * T4;
                coopStoreT(acc[i * NS + s * STRIP + j], &sh_y[to], SY);
            }
            workgroupBarrier();
            finish(
                // #if WITH_PARTS
                &lanes,
                // #end
                m0,
                taps.n0,
                py,
                px,
                i * T,
                s,
                local,
            );
            workgroupBarrier();
        }
    }
    // #if WITH_PARTS
    for (var s = 0u; s < STRIPS; s++) { // unroll
        meet(lanes[s], m0, local);
        workgroupBarrier();
        merge(m0, taps.n0, s * STRIP * T, py * CLASSES + px, local);
        workgroupBarrier();
    }
    // #end
}

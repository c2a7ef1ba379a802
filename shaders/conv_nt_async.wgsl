// Convolution, or its input gradient, of f16 operands as an implicit GEMM of cooperative matrices,
// whose tiles come by copies that go on while others are multiplied.
//   y[m, n] = sum_k a[m, k] * w[n, k],  m = (image, oy, ox), n = output channel, k = (kh, kw, c)
//   a[m, k] = what tap (kh, kw) of output pixel (oy, ox) reads, channel c: lib/conv_nt.wgsl
// Sums are f32. Channels along which operands are copied, IC and with ACROSS also OC, are multiples
// of 8.
// Reads x [N, IH, IW, IC], w [OC, KH, KW, IC], or with ACROSS w [IC, KH, KW, OC], and, as
// lib/epilogue4.wgsl has it, bias [OC], add, gate and norm_x [N, OH, OW, OC], norm_mean [OC];
// writes (=) y [N, OH, OW, OC] and of every SPAN pixels of a parity, as parts [PARTS, 2, OC], with
// MOMENTS mean and M2 = sum (y - mean)^2, with SUMS the sums of y and of y * (norm_x - norm_mean).
// A group computes BM pixels x BN channels, a subgroup WM x WN of them. While it multiplies a tile
// of depth BK, the next BUFFERS - 1 are on their way.
// Grid: (ceil(OC / BN), GY, ceil(MT / GY) * CLASSES * CLASSES), MT = ceil(N * OHC * OWC / BM).
// Reference: ops/conv2d/mod.rs `Conv2d::reference` and `Conv2dInputGrad::reference`.

#import lib/coop
#import lib/conv_nt
#import lib/epilogue4
#import lib/coop_nt
#import lib/async

const K8: u32 = K4 / 2u; // pieces of a row, of PIECE4 = 2 vec4s; 8 * K8 divides WG
const BN8: u32 = BN / 8u; // divides WG
const DEPTHS: u32 = WG / BN8; // the same of w read across, whose rows are k
const LOADS_B: u32 = select((BN + ROWS - 1u) / ROWS, (BK + DEPTHS - 1u) / DEPTHS, ACROSS);
const SA: u32 = K4 + PAD4; // vec4s from row to row
const SB: u32 = select(K4, BN / 4u, ACROSS) + PAD4;
const SIZE_A: u32 = BM * SA;
const SIZE_B: u32 = select(BN, BK, ACROSS) * SB;

@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [OC, KH, KW, IC4], ACROSS as above

var<workgroup> sh_a: array<vec4<f16>, BUFFERS * SIZE_A>; // [BUFFERS, BM, K4]
var<workgroup> sh_b: array<vec4<f16>, BUFFERS * SIZE_B>; // [BUFFERS, BN, K4] or [.., BK, BN / 4]

fn async_copy_a(to: u32, source: u32, inside: bool) {
    let at = select(0u, source, inside);
    sh_a[to] = select(vec4<f16>(), vec4<f16>(x[at]), inside);
    sh_a[to + 1u] = select(vec4<f16>(), vec4<f16>(x[at + 1u]), inside);
}

fn async_copy_b(to: u32, source: u32, inside: bool) {
    let at = select(0u, source, inside);
    sh_b[to] = select(vec4<f16>(), vec4<f16>(w[at]), inside);
    sh_b[to + 1u] = select(vec4<f16>(), vec4<f16>(w[at + 1u]), inside);
}

// The first row of a tile that an invocation copies a piece of, and the piece: eight neighbours
// take the same piece of eight rows, which lie in different banks.
fn row_of(local: u32) -> u32 {
    return local / (8u * K8) * 8u + local % 8u;
}

fn piece_of(local: u32) -> u32 {
    return local / 8u % K8;
}

// Copies this invocation's share of a tile. What lies outside the image, or behind the last tap, is
// zeros.
fn fetch(
    tile: u32,
    buffer: u32,
    local: u32,
    taps: Taps,
    first: ptr<function, array<u32, LOADS_A>>,
    seen: ptr<function, array<u32, LOADS_A>>,
) {
    let begin = tile * K4;
    let lane = piece_of(local) * 2u;
    let k = begin + lane;
    let whole = ALIGNED || k < taps.depth;
    let tap = select(k / IC4, begin / IC4, ALIGNED);
    let c = select(k % IC4, begin % IC4 + lane, ALIGNED);
    let row = tap / taps.columns;
    let column = tap % taps.columns;
    let wanted = select(NEVER, (1u << row) | (65536u << column), whole);
    let shift = (row * IW + column) * IC4;
    let from_first = select(c + shift, c - shift, TRANSPOSED);
    let to_a = buffer * SIZE_A + row_of(local) * SA + lane;
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        if (BM % ROWS == 0u || row_of(local) + i * ROWS < BM) {
            let here = ((*seen)[i] & wanted) == wanted;
            async_copy_a(to_a + i * (ROWS * SA), (*first)[i] + from_first, here);
        }
    }
    // #if !ACROSS
    let apart = ((taps.kh0 + row * CLASSES) * KW + taps.kw0 + column * CLASSES) * IC4 + c;
    let at = select(apart, k, CLASSES == 1u);
    let to_b = buffer * SIZE_B + row_of(local) * SB + lane;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        if (BN % ROWS == 0u || row_of(local) + i * ROWS < BN) {
            let n = taps.n0 + row_of(local) + i * ROWS;
            let here = whole && (OC % BN == 0u || n < OC);
            async_copy_b(to_b + i * (ROWS * SB), n * (KH * KW * IC4) + at, here);
        }
    }
    // #end
    // #if ACROSS
    let n = taps.n0 / 4u + local % BN8 * 2u;
    let to_b = buffer * SIZE_B + local / BN8 * SB + local % BN8 * 2u;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        let deep = local / BN8 + i * DEPTHS;
        if (BK % DEPTHS == 0u || deep < BK) {
            let kb = begin * 4u + deep;
            let tap_b = select(kb / IC, begin / IC4, ALIGNED);
            let cb = select(kb % IC, begin % IC4 * 4u + deep, ALIGNED);
            let kh = taps.kh0 + tap_b / taps.columns * CLASSES;
            let kw = taps.kw0 + tap_b % taps.columns * CLASSES;
            let here = (ALIGNED || kb < taps.depth * 4u) && (OC % BN == 0u || n < OC4);
            async_copy_b(to_b + i * (DEPTHS * SB), ((cb * KH + kh) * KW + kw) * OC4 + n, here);
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
    pixels(m0 + row_of(local), py, px, taps, &first, &seen);
    for (var tile = 0u; tile < BUFFERS - 1u; tile++) { // unroll
        if (tile < taps.tiles) {
            fetch(tile, tile, local, taps, &first, &seen);
        }
        async_commit();
    }

    let from_a = subgroup / BESIDE * WM * SA;
    let from_b = subgroup % BESIDE * select(WN * SB, WN / 4u, ACROSS);
    var acc: array<MatrixC, MS * NS>;
    var u: array<MatrixA, MS>;
    var v: array<MatrixB, NS>;
    var buffer = 0u; // of the tile
    for (var tile = 0u; tile < taps.tiles; tile++) {
        async_wait(BUFFERS - 2u);
        // The tile is there, and the one before is multiplied: its buffer takes the last of those
        // under way.
        workgroupBarrier();
        let last = tile + BUFFERS - 1u;
        if (last < taps.tiles) {
            fetch(last, (buffer + BUFFERS - 1u) % BUFFERS, local, taps, &first, &seen);
        }
        async_commit();
        let at_a = buffer * SIZE_A + from_a;
        let at_b = buffer * SIZE_B + from_b;
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
        buffer = (buffer + 1u) % BUFFERS;
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

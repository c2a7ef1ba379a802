// Weight gradient of a convolution of f16 operands as an implicit GEMM of cooperative matrices,
// whose tiles come by copies that go on while others are multiplied.
//   partial[s, co, kh, kw, ci] = sum over pixels p of chunk s: dy[p, co] * x[pixel(p, kh, kw), ci]
// Sums are f32. IC and OC are multiples of 8.
// Reads x [N, IH, IW, IC], dy [N, OH, OW, OC]; writes (=) partial [SPLIT, OC, KH, KW, IC] and, with
// BIAS, sums [SPLIT, OC], the same without x, by the first column's groups. Where SPLIT = 1 these
// are dw and db; else conv_tn_reduce.wgsl adds the chunks.
// A chunk is CHUNK output pixels.
// A group computes BM output channels x BN columns (kh, kw, ci), a subgroup WM x WN of them. While
// it multiplies a tile of BK pixels, the next BUFFERS - 1 are on their way.
// Grid: (ceil(KH * KW * IC / BN), ceil(OC / BM), SPLIT).
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.

#import lib/coop
#import lib/conv_tn
#import lib/coop_tn
#import lib/async

const BM8: u32 = BM / 8u; // pieces of a row; divides WG
const BN8: u32 = BN / 8u; // divides WG
const IC8: u32 = IC / 8u;
const ROWS_A: u32 = WG / BM8; // pixels of a tile that the group copies at once
const ROWS_B: u32 = WG / BN8;
const LOADS_A: u32 = (BK + ROWS_A - 1u) / ROWS_A;
const LOADS_B: u32 = (BK + ROWS_B - 1u) / ROWS_B;
const SA: u32 = BM / 4u + PAD4; // vec4s from row to row
const SB: u32 = BN / 4u + PAD4;
const SIZE_A: u32 = BK * SA;
const SIZE_B: u32 = BK * SB;
// An output pixel and its taps lie apart as far everywhere, but for the image's edges.
const SAME: bool = STRIDE == 1u && OH == IH && OW == IW;

var<workgroup> sh_a: array<vec4<f16>, BUFFERS * SIZE_A>; // [BUFFERS, BK, BM]
var<workgroup> sh_b: array<vec4<f16>, BUFFERS * SIZE_B>; // [BUFFERS, BK, BN]

fn async_copy_a(to: u32, source: u32, inside: bool) {
    let at = select(0u, source, inside);
    sh_a[to] = select(vec4<f16>(), vec4<f16>(dy[at]), inside);
    sh_a[to + 1u] = select(vec4<f16>(), vec4<f16>(dy[at + 1u]), inside);
}

// Taps beside each other copy the same pixels.
fn async_copy_near_b(to: u32, source: u32, inside: bool) {
    let at = select(0u, source, inside);
    sh_b[to] = select(vec4<f16>(), vec4<f16>(x[at]), inside);
    sh_b[to + 1u] = select(vec4<f16>(), vec4<f16>(x[at + 1u]), inside);
}

// What an invocation copies of every tile: a piece of some rows, always of the same columns.
struct Share {
    co: u32, // vec4 of dy
    column: u32, // whether there is such a column of the result, else 0
    ky: u32, // the tap, less PAD: wraps below zero
    kx: u32,
    c: u32, // vec4 of x
}

fn share(group: vec3<u32>, local: u32) -> Share {
    let piece = group.x * BN8 + local % BN8;
    let tap = piece / IC8;
    var s: Share;
    s.co = group.y * (BM / 4u) + local % BM8 * 2u;
    s.column = select(0u, 1u, piece < KH * KW * IC8);
    s.ky = tap / KW - PAD;
    s.kx = tap % KW - PAD;
    s.c = piece % IC8 * 2u;
    return s;
}

// Copies this invocation's share of the tile that begins at a pixel. What is not of the chunk or
// not inside the image is zeros.
fn fetch(p0: u32, end: u32, buffer: u32, s: Share, local: u32) {
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        let row = local / BM8 + i * ROWS_A;
        if (BK % ROWS_A == 0u || row < BK) {
            let to = buffer * SIZE_A + row * SA + local % BM8 * 2u;
            async_copy_a(to, (p0 + row) * OC4 + s.co, p0 + row < end && s.co < OC4);
        }
    }
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        let row = local / BN8 + i * ROWS_B;
        if (BK % ROWS_B == 0u || row < BK) {
            let p = p0 + row;
            let iy = p / OW % OH * STRIDE + s.ky; // wraps below zero
            let ix = p % OW * STRIDE + s.kx;
            let elsewhere = (p / (OH * OW) * IH + iy) * IW + ix;
            let at = select(elsewhere, p + s.ky * IW + s.kx, SAME);
            let inside = p < end && s.column > 0u && iy < IH && ix < IW;
            let to = buffer * SIZE_B + row * SB + local % BN8 * 2u;
            async_copy_near_b(to, at * IC4 + s.c, inside);
        }
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let begin = min(group.z * CHUNK, PIXELS);
    let end = min(begin + CHUNK, PIXELS);
    let tiles = (end - begin + BK - 1u) / BK;
    let s = share(group, local);
    for (var tile = 0u; tile < BUFFERS - 1u; tile++) { // unroll
        if (tile < tiles) {
            fetch(begin + tile * BK, end, tile, s, local);
        }
        async_commit();
    }

    let from_a = subgroup / BESIDE * (WM / 4u);
    let from_b = subgroup % BESIDE * (WN / 4u);
    var acc: array<MatrixC, MS * NS>;
    var u: array<MatrixA, MS>;
    var v: array<MatrixB, NS>;
    // #if BIAS
    var total: vec4<f32>;
    // #end
    var buffer = 0u; // of the tile
    for (var tile = 0u; tile < tiles; tile++) {
        async_wait(BUFFERS - 2u);
        // The tile is there, and the one before is multiplied: its buffer takes the last of those
        // under way.
        workgroupBarrier();
        let last = tile + BUFFERS - 1u;
        if (last < tiles) {
            fetch(begin + last * BK, end, (buffer + BUFFERS - 1u) % BUFFERS, s, local);
        }
        async_commit();
        let at_a = buffer * SIZE_A + from_a;
        let at_b = buffer * SIZE_B + from_b;
        for (var k = 0u; k < BK / T; k++) { // unroll
            for (var i = 0u; i < MS; i++) { // unroll
                u[i] = coopLoad<MatrixA>(&sh_a[at_a + k * (T * SA) + i * T4], SA);
            }
            for (var j = 0u; j < NS; j++) { // unroll
                v[j] = coopLoadT<MatrixB>(&sh_b[at_b + k * (T * SB) + j * T4], SB);
            }
            for (var i = 0u; i < MS; i++) { // unroll
                for (var j = 0u; j < NS; j++) { // unroll
                    acc[i * NS + j] = coopMultiplyAdd(u[i], v[j], acc[i * NS + j]);
                }
            }
        }
        // #if BIAS
        if (group.x == 0u) {
            for (var row = local / (BM / 4u); row < BK; row += WG / (BM / 4u)) {
                total += vec4<f32>(sh_a[buffer * SIZE_A + row * SA + local % (BM / 4u)]);
            }
        }
        // #end
        buffer = (buffer + 1u) % BUFFERS;
    }

    // #if BIAS
    sh_y[local] = total;
    workgroupBarrier();
    if (group.x == 0u && local < BM / 4u && group.y * (BM / 4u) + local < OC4) {
        var sum: vec4<f32>;
        for (var r = 0u; r < WG / (BM / 4u); r++) {
            sum += sh_y[r * (BM / 4u) + local];
        }
        sums[group.z * OC4 + group.y * (BM / 4u) + local] = sum;
    }
    workgroupBarrier();
    // #end
    for (var i = 0u; i < MS; i++) { // unroll
        for (var s = 0u; s < STRIPS; s++) { // unroll
            for (var j = 0u; j < STRIP; j++) { // unroll
                let to = subgroup * (T * SY) + j * T4;
                coopStoreT(acc[i * NS + s * STRIP + j], &sh_y[to], SY);
            }
            workgroupBarrier();
            finish(group, i * T, s * STRIP * T, local);
            workgroupBarrier();
        }
    }
}

// Weight gradient of a convolution of f16 operands as an implicit GEMM of cooperative matrices.
//   partial[s, co, kh, kw, ci] = sum over pixels p of chunk s: dy[p, co] * x[pixel(p, kh, kw), ci]
// Operands are rounded to f16, sums are f32.
// Reads x [N, IH, IW, IC], dy [N, OH, OW, OC]; writes (=) partial [SPLIT, OC, KH, KW, IC] and, with
// BIAS, sums [SPLIT, OC], the
// same without x, by the first column's groups. Where SPLIT = 1 these are dw and db; else
// conv_tn_reduce.wgsl adds the chunks.
// A chunk is CHUNK output pixels.
// A group computes BM output channels x BN columns (kh, kw, ci), a subgroup WM x WN of them. While
// it multiplies a tile of BK pixels, it fetches the next one into registers.
// Grid: (ceil(KH * KW * IC / BN), ceil(OC / BM), SPLIT).
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.

#import lib/coop
#import lib/conv_tn
#import lib/coop_tn

const BM4: u32 = BM / 4u; // divides WG
const BN4: u32 = BN / 4u; // divides WG
const ROWS_A: u32 = WG / BM4; // pixels of a tile that the group fetches at once
const ROWS_B: u32 = WG / BN4;
const LOADS_A: u32 = (BK + ROWS_A - 1u) / ROWS_A; // at most 32
const LOADS_B: u32 = (BK + ROWS_B - 1u) / ROWS_B; // at most 32
const SA: u32 = BM4 + PAD4; // vec4s from row to row
const SB: u32 = BN4 + PAD4;
const SIZE_A: u32 = BK * SA;
const SIZE_B: u32 = BK * SB;

var<workgroup> sh_a: array<vec4<f16>, BUFFERS * SIZE_A>; // [BUFFERS, BK, BM4]
var<workgroup> sh_b: array<vec4<f16>, BUFFERS * SIZE_B>; // [BUFFERS, BK, BN4]

// Fetches this invocation's part of the tile that begins at a pixel; returns which of `a` and `b`
// are of this chunk and inside the image.
fn fetch(
    p0: u32,
    end: u32,
    group: vec3<u32>,
    local: u32,
    a: ptr<function, array<vec4<f16>, LOADS_A>>,
    b: ptr<function, array<vec4<f16>, LOADS_B>>,
) -> vec2<u32> {
    var inside = vec2<u32>();
    let co = min(group.y * BM4 + local % BM4, OC4 - 1u);
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        let p = p0 + local / BM4 + i * ROWS_A;
        (*a)[i] = vec4<f16>(dy[min(p, PIXELS - 1u) * OC4 + co]);
        inside.x |= select(0u, 1u << i, p < end);
    }
    let col = group.x * BN4 + local % BN4;
    let tap = col / IC4;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        let p = p0 + local / BN4 + i * ROWS_B;
        let iy = p / OW % OH * STRIDE + tap / KW - PAD; // wraps below zero
        let ix = p % OW * STRIDE + tap % KW - PAD;
        let here = p < end && col < COLS4 && iy < IH && ix < IW;
        (*b)[i] = vec4<f16>(x[x_at(p / (OH * OW) * IH + iy, ix, col % IC4, here)]);
        inside.y |= select(0u, 1u << i, here);
    }
    return inside;
}

// Puts what was fetched into workgroup memory; adds dy to `total`.
fn put(
    buffer: u32,
    local: u32,
    inside: vec2<u32>,
    a: ptr<function, array<vec4<f16>, LOADS_A>>,
    b: ptr<function, array<vec4<f16>, LOADS_B>>,
    total: ptr<function, vec4<f32>>,
) {
    let to_a = buffer * SIZE_A + local / BM4 * SA + local % BM4;
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        if (BK % ROWS_A == 0u || local / BM4 + i * ROWS_A < BK) {
            let d = select(vec4<f16>(), (*a)[i], (inside.x & (1u << i)) != 0u);
            sh_a[to_a + i * (ROWS_A * SA)] = d;
            // #if BIAS
            *total += vec4<f32>(d);
            // #end
        }
    }
    let to_b = buffer * SIZE_B + local / BN4 * SB + local % BN4;
    for (var i = 0u; i < LOADS_B; i++) { // unroll
        if (BK % ROWS_B == 0u || local / BN4 + i * ROWS_B < BK) {
            let v = select(vec4<f16>(), (*b)[i], (inside.y & (1u << i)) != 0u);
            sh_b[to_b + i * (ROWS_B * SB)] = v;
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
    var a: array<vec4<f16>, LOADS_A>;
    var b: array<vec4<f16>, LOADS_B>;
    var total: vec4<f32>;
    let first = fetch(begin, end, group, local, &a, &b);
    put(0u, local, first, &a, &b, &total);
    workgroupBarrier();

    let from_a = subgroup / BESIDE * (WM / 4u);
    let from_b = subgroup % BESIDE * (WN / 4u);
    var acc: array<MatrixC, MS * NS>;
    var u: array<MatrixA, MS>;
    var v: array<MatrixB, NS>;
    for (var tile = 0u; tile < tiles; tile++) {
        let inside = fetch(begin + (tile + 1u) * BK, end, group, local, &a, &b);
        let at_a = tile % BUFFERS * SIZE_A + from_a;
        let at_b = tile % BUFFERS * SIZE_B + from_b;
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
        // #if SINGLE
        workgroupBarrier();
        // #end
        put((tile + 1u) % BUFFERS, local, inside, &a, &b, &total);
        workgroupBarrier();
    }

    // #if BIAS
    sh_y[local] = total;
    workgroupBarrier();
    if (group.x == 0u && local < BM4 && group.y * BM4 + local < OC4) {
        var sum: vec4<f32>;
        for (var r = 0u; r < ROWS_A; r++) {
            sum += sh_y[r * BM4 + local];
        }
        sums[group.z * OC4 + group.y * BM4 + local] = sum;
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

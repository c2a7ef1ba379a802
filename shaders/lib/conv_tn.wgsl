// Operands of a convolution's weight gradient, summed over pixels in SPLIT chunks; with BIAS, of
// the bias's too.
// Requires nothing of the importer.
#import lib/conv
const SPLIT: u32 = 1u; // uniform
const BIAS: bool = false; // spec

const OC4: u32 = OC / 4u;

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>; // [N, OH, OW, OC4]
@group(0) @binding(2) var<storage, read_write> partial: array<vec4<f32>>; // [SPLIT, OC, KH, KW, IC4]
// #if BIAS
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>; // [SPLIT, OC4]
// #end

// What stands at an index, which is in bounds; 0 where it is not of this chunk or strip.
fn load_dy(at: u32, inside: bool) -> vec4<f32> {
    return select(vec4<f32>(), dy[at], inside);
}

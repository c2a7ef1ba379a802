// Shapes of a convolution and its input x, which all four products read.
// Requires nothing of the importer.
const N: u32 = 1u; // uniform
const IH: u32 = 8u; // uniform
const IW: u32 = 8u; // uniform
const IC: u32 = 16u; // uniform
const OH: u32 = 8u; // uniform
const OW: u32 = 8u; // uniform
const OC: u32 = 16u; // uniform
const KH: u32 = 3u; // uniform
const KW: u32 = 3u; // uniform
const STRIDE: u32 = 1u; // uniform
const PAD: u32 = 1u; // uniform

const IC4: u32 = IC / 4u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, IH, IW, IC4]

// Index of vec4 c of pixel ix in one of the N * IH rows; 0, which may be read, where that is
// outside.
fn x_at(row: u32, ix: u32, c: u32, inside: bool) -> u32 {
    return select(0u, (row * IW + ix) * IC4 + c, inside);
}

// What stands at an index from x_at; 0 outside the image.
fn load_x(at: u32, inside: bool) -> vec4<f32> {
    return select(vec4<f32>(), x[at], inside);
}

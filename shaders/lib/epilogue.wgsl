// Epilogue of a product: what happens to the finished sum of output element `index`, channel `col`.
// Declares the importer's bindings 2 to 8. Requires nothing of the importer.
#import lib/relu
const BIAS: bool = false; // spec
const ADD: bool = false; // spec
const RELU: bool = false; // spec
const MASK: bool = false; // spec
const MOMENTS: bool = false; // spec: the moments of every SPAN pixels are wanted too
const SUMS: bool = false; // spec: what the gradient of a batch norm sums, of every SPAN pixels
const WITH_PARTS: bool = MOMENTS || SUMS;
const HALF: bool = false; // spec: y holds f16, or bf16: the host appends lib/round_f16
const SPAN: u32 = 64u; // spec
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
// #if WITH_PARTS
@group(0) @binding(6) var<storage, read_write> parts: array<f32>; // [PARTS, 2, OC]

// What is read back of a result.
fn stored(v: f32) -> f32 {
    // #if HALF
    return round_f16(vec4<f32>(v)).x;
    // #end
    // #if !HALF
    return v;
    // #end
}
// #end

// #if SUMS
@group(0) @binding(7) var<storage, read> norm_x: array<f32>; // [N, OH, OW, OC]: what the batch norm has read
@group(0) @binding(8) var<storage, read> norm_mean: array<f32>; // [OC]
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
        v = relu(vec4<f32>(v)).x;
    }
    // #if MASK
    v = relu_mask(vec4<f32>(v), vec4<f32>(gate[index])).x;
    // #end
    return v;
}

// As lib/epilogue.wgsl, four channels at a time: what happens to the finished sums at a vec4 of y,
// which are those of channels 4 * col and the three behind.
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
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [N, OH, OW, OC4]
// #if BIAS
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [OC4]
// #end
// #if ADD
@group(0) @binding(4) var<storage, read> add: array<vec4<f32>>; // [N, OH, OW, OC4]
// #end
// #if MASK
@group(0) @binding(5) var<storage, read> gate: array<vec4<f32>>; // [N, OH, OW, OC4]
// #end
// #if WITH_PARTS
@group(0) @binding(6) var<storage, read_write> parts: array<vec4<f32>>; // [PARTS, 2, OC4]

// What is read back of a result.
fn stored(v: vec4<f32>) -> vec4<f32> {
    // #if HALF
    return round_f16(v);
    // #end
    // #if !HALF
    return v;
    // #end
}
// #end

// #if SUMS
@group(0) @binding(7) var<storage, read> norm_x: array<vec4<f32>>; // [N, OH, OW, OC4]: what the batch norm has read
@group(0) @binding(8) var<storage, read> norm_mean: array<vec4<f32>>; // [OC4]
// #end

// What a result meets that stands at its own place: loaded apart, so that loads for several results
// are under way at once.
struct Beside {
    add: vec4<f32>,
    gate: vec4<f32>,
    norm_x: vec4<f32>,
}

fn beside(index: u32) -> Beside {
    var b: Beside;
    // #if ADD
    b.add = add[index];
    // #end
    // #if MASK
    b.gate = gate[index];
    // #end
    // #if SUMS
    b.norm_x = norm_x[index];
    // #end
    return b;
}

fn epilogue(sum: vec4<f32>, b: Beside, col: u32) -> vec4<f32> {
    var v = sum;
    // #if BIAS
    v += bias[col];
    // #end
    // #if ADD
    v += b.add;
    // #end
    if (RELU) {
        v = relu(v);
    }
    // #if MASK
    v = relu_mask(v, b.gate);
    // #end
    return v;
}

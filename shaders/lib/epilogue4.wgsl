// As lib/epilogue.wgsl, four channels at a time: what happens to the finished sums at a vec4 of y,
// which are those of channels 4 * col and the three behind.
// Declares the importer's bindings 2 to 6. Requires nothing of the importer.
#import lib/relu
const BIAS: bool = false; // spec
const ADD: bool = false; // spec
const RELU: bool = false; // spec
const MASK: bool = false; // spec
const MOMENTS: bool = false; // spec: the moments of every SPAN pixels are wanted too
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
// #if MOMENTS
@group(0) @binding(6) var<storage, read_write> parts: array<vec4<f32>>; // [ceil(N * OH * OW / SPAN), 2, OC4]

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

// What a result meets that stands at its own place: loaded apart, so that loads for several results
// are under way at once.
struct Beside {
    add: vec4<f32>,
    gate: vec4<f32>,
}

fn beside(index: u32) -> Beside {
    var b: Beside;
    // #if ADD
    b.add = add[index];
    // #end
    // #if MASK
    b.gate = gate[index];
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

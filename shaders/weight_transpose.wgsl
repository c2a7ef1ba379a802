// Weights of a convolution, transposed for its input gradient (conv_nt with TRANSPOSED).
//   wt[ci, kh, kw, co] = w[co, kh, kw, ci]
// Reads w [CO, TAPS, CI]; writes (=) wt [CI, TAPS, CO]. CO is a multiple of 4.
// Grid: ceil(CI * TAPS * CO4 / WG) workgroups, folded; one vec4 of wt per invocation.
// Reference: ops/conv2d/mod.rs `Conv2dInputGrad::reference`.
#import lib/grid
const CO: u32 = 16u; // spec
const CI: u32 = 16u; // spec
const TAPS: u32 = 9u; // spec: KH * KW

const CO4: u32 = CO / 4u;
const LEN: u32 = CI * TAPS * CO4;

@group(0) @binding(0) var<storage, read> w: array<f32>; // [CO, TAPS, CI]
@group(0) @binding(1) var<storage, read_write> wt: array<vec4<f32>>; // [CI, TAPS, CO4]

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = global_index(group, groups, local);
    if (i >= LEN) {
        return;
    }
    let at = i % CO4 * 4u * TAPS * CI + i / CO4 % TAPS * CI + i / CO4 / TAPS;
    wt[i] = vec4<f32>(w[at], w[at + TAPS * CI], w[at + 2u * TAPS * CI], w[at + 3u * TAPS * CI]);
}

// Weights of a convolution, transposed for its input gradient by conv_nt_bcast.
//   wt[ic, tap, oc] = w[oc, tap, ic]
// Reads w [OC, TAPS, IC]; writes (=) wt [IC, TAPS, OC4]. OC is a multiple of 4.
// Grid: ceil(IC * TAPS * OC4 / WG) workgroups, folded; one vec4 of wt per invocation.
// Reference: ops/conv2d/mod.rs `Conv2dInputGrad::reference`.
#import lib/grid
const OC: u32 = 16u; // uniform
const IC: u32 = 16u; // uniform
const TAPS: u32 = 9u; // uniform: KH * KW

const OC4: u32 = OC / 4u;

@group(0) @binding(0) var<storage, read> w: array<f32>; // [OC, TAPS, IC]
@group(0) @binding(1) var<storage, read_write> wt: array<vec4<f32>>; // [IC, TAPS, OC4]

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = global_index(group, groups, local);
    if (i >= IC * TAPS * OC4) {
        return;
    }
    let row = divide(i, OC4); // input channel and tap, vec4 of output channels
    let column = divide(row.x, TAPS); // input channel, tap
    let stride = TAPS * IC;
    let at = row.y * 4u * stride + column.y * IC + column.x;
    wt[i] = vec4<f32>(w[at], w[at + stride], w[at + 2u * stride], w[at + 3u * stride]);
}

// Second stage of a weight gradient: the split sums in a fixed order.
//   dw[i] = sum_s partial[s, i],  s = 0, 1, .. SPLIT - 1
// Reads partial [SPLIT, LEN4]; writes (=) dw [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded; one vec4 per invocation.
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.
#import lib/grid
const LEN4: u32 = 576u; // spec: OC * KH * KW * C / 4
const SPLIT: u32 = 8u; // spec

@group(0) @binding(0) var<storage, read> partial: array<vec4<f32>>; // [SPLIT, LEN4]
@group(0) @binding(1) var<storage, read_write> dw: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = global_index(group, groups, local);
    if (i >= LEN4) {
        return;
    }
    var sum = partial[i];
    for (var s = 1u; s < SPLIT; s++) {
        sum += partial[s * LEN4 + i];
    }
    dw[i] = sum;
}

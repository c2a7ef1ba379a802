// Second stage of a weight gradient: the split sums in a fixed order.
//   dw[i] = sum_s partial[s, i],  s = 0, 1, .. SPLIT - 1;  with BIAS, db[i] = sum_s sums[s, i]
// Reads partial [SPLIT, LEN4] and sums [SPLIT, OC4]; writes (=) dw [LEN4] and db [OC4].
// Grid: ceil((LEN4 + OC4) / WG) workgroups, folded; one vec4 per invocation. Without BIAS, OC4 is
// 0.
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.
#import lib/grid
const LEN4: u32 = 576u; // uniform: OC * KH * KW * IC / 4
const OC4: u32 = 0u; // uniform
const SPLIT: u32 = 8u; // uniform
const BIAS: bool = false; // spec

@group(0) @binding(0) var<storage, read> partial: array<vec4<f32>>; // [SPLIT, LEN4]
@group(0) @binding(1) var<storage, read_write> dw: array<vec4<f32>>; // [LEN4]
// #if BIAS
@group(0) @binding(2) var<storage, read> sums: array<vec4<f32>>; // [SPLIT, OC4]
@group(0) @binding(3) var<storage, read_write> db: array<vec4<f32>>; // [OC4]
// #end

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = global_index(group, groups, local);
    if (i >= LEN4) {
        // #if BIAS
        let c = i - LEN4;
        if (c < OC4) {
            var total = sums[c];
            for (var s = 1u; s < SPLIT; s++) {
                total += sums[s * OC4 + c];
            }
            db[c] = total;
        }
        // #end
        return;
    }
    var sum = partial[i];
    for (var s = 1u; s < SPLIT; s++) {
        sum += partial[s * LEN4 + i];
    }
    dw[i] = sum;
}

// x = factor x; nothing is written where the factor is not finite.
// Reads factor [1]; updates (in place) x [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/loss_scale.rs `Unscale::reference`.
#import lib/grid
#import lib/finite
const LEN4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> factor: array<f32>; // [1]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4 || !is_finite(factor[0])) { return; }
  x[i] = factor[0] * x[i];
}

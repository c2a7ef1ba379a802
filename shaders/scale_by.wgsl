// y = x * s, s a scalar tensor.
// Reads x [LEN4], s [1]; writes (=) y [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/pointwise.rs `ScaleBy::reference`.
#import lib/grid
const LEN4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> s: array<f32>; // [1]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  y[i] = x[i] * s[0];
}

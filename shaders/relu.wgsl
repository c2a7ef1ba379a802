// y = 0 where x < 0, else x (NaN stays).
// Reads x [LEN4]; writes (=) y [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/pointwise.rs `Relu::reference`.
#import lib/grid
#import lib/relu
const LEN4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  y[i] = relu(x[i]);
}

// dx = 0 where y <= 0, else dy (also where y is NaN).
// Reads dy, y [LEN4]; writes (=) dx [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/pointwise.rs `ReluGrad::reference`.
#import lib/grid
#import lib/relu
const LEN4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> y: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  dx[i] = relu_mask(dy[i], y[i]);
}

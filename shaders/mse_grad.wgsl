// dx = FACTOR * dloss * (x - t) in the channels, 0 in the padding; FACTOR = 2 / number of summands.
// Reads dloss [1], x, t [LEN4]; writes (=) dx [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/mse.rs `MseGrad::reference`.
#import lib/grid
#import lib/channels
const LEN4: u32 = 1u; // uniform
const FACTOR: f32 = 1.0; // uniform
@group(0) @binding(0) var<storage, read> dloss: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> t: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  dx[i] = select(vec4<f32>(), FACTOR * dloss[0] * (x[i] - t[i]), is_channel(i));
}

// dx[n, p, c] = dy[n, c] / PIXELS.
// Reads dy [N, C4]; writes (=) dx [N, PIXELS, C4].
// Grid: ceil(N * PIXELS * C4 / WG) workgroups, folded.
// Reference: ops/pool.rs `GlobalAvgPoolGrad::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const PIXELS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [N, C4]
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>; // [N, PIXELS, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= N * PIXELS * C4) { return; }
  dx[i] = dy[i / (PIXELS * C4) * C4 + i % C4] / f32(PIXELS);
}

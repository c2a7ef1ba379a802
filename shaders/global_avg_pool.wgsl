// y[n, c] = mean of x[n, p, c] over the pixels p.
// Reads x [N, PIXELS, C4]; writes (=) y [N, C4].
// Grid: ceil(N * C4 / WG) workgroups, folded. Reference: ops/pool.rs `GlobalAvgPool::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const PIXELS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, PIXELS, C4]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [N, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= N * C4) { return; }
  let first = i / C4 * PIXELS * C4 + i % C4;
  var total = x[first];
  for (var p = 1u; p < PIXELS; p++) { total += x[first + p * C4]; }
  y[i] = total / f32(PIXELS);
}

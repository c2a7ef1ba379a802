// dx[n] = (dy[n] - y[n] (y[n] . dy[n])) / r, y[n] = x[n] / r, r = |x[n]| where that exceeds EPS;
// dy[n] / EPS elsewhere.
// Reads dy [at least N, C4], x [N, C4]; writes (=) dx [N, C4].
// Grid: ceil(N / WG) workgroups, folded; one row per invocation.
// Reference: ops/l2_normalize.rs `L2NormalizeGrad::reference`.
#import lib/grid
#import lib/finite
const N: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const EPS: f32 = 1e-12; // uniform
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [at least N, C4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [N, C4]
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>; // [N, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let n = global_index(group, groups, local);
  if (n >= N) { return; }
  var squares = 0.0;
  for (var c = 0u; c < C4; c++) { squares += dot(x[n * C4 + c], x[n * C4 + c]); }
  let r = larger(vec4<f32>(sqrt(squares)), vec4<f32>(EPS)).x; // NaN stays
  var along = 0.0;
  if (r > EPS) {
    for (var c = 0u; c < C4; c++) { along += dot(x[n * C4 + c] / r, dy[n * C4 + c]); }
  }
  for (var c = 0u; c < C4; c++) { dx[n * C4 + c] = (dy[n * C4 + c] - x[n * C4 + c] / r * along) / r; }
}

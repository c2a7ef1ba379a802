// y[n] = x[n] / max(|x[n]|, EPS) for n < N, 0 for the rows behind.
// Reads x [N, C4]; writes (=) y [ROWS, C4].
// Grid: ceil(ROWS / WG) workgroups, folded; one row per invocation.
// Reference: ops/l2_normalize.rs `L2Normalize::reference`.
#import lib/grid
#import lib/finite
const N: u32 = 1u; // uniform
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const EPS: f32 = 1e-12; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, C4]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [ROWS, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let n = global_index(group, groups, local);
  if (n >= ROWS) { return; }
  if (n >= N) {
    for (var c = 0u; c < C4; c++) { y[n * C4 + c] = vec4<f32>(); }
    return;
  }
  var squares = 0.0;
  for (var c = 0u; c < C4; c++) { squares += dot(x[n * C4 + c], x[n * C4 + c]); }
  let r = larger(vec4<f32>(sqrt(squares)), vec4<f32>(EPS)).x; // NaN stays
  for (var c = 0u; c < C4; c++) { y[n * C4 + c] = x[n * C4 + c] / r; }
}

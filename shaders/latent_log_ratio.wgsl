// y[r] = sum ((eps - z) (eps + z) / 2 + ln std), z = mu + std * eps, std = exp(logvar / 2) + FLOOR,
// rows r.
// Reads mu, logvar, eps [ROWS, L4]; writes (=) y [ROWS].
// Grid: ceil(ROWS / WG) workgroups, folded; one row per invocation.
// Reference: ops/importance.rs `LatentLogRatio::reference`.
#import lib/grid
const ROWS: u32 = 1u; // uniform
const L4: u32 = 1u; // uniform: vec4s of a row
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> mu: array<vec4<f32>>; // [ROWS, L4]
@group(0) @binding(1) var<storage, read> logvar: array<vec4<f32>>; // [ROWS, L4]
@group(0) @binding(2) var<storage, read> eps: array<vec4<f32>>; // [ROWS, L4]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [ROWS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let row = global_index(group, groups, local);
  if (row >= ROWS) { return; }
  var total = vec4<f32>();
  for (var i = row * L4; i < (row + 1u) * L4; i++) {
    let s = exp(0.5 * logvar[i]) + FLOOR;
    let z = mu[i] + s * eps[i];
    total += 0.5 * (eps[i] - z) * (eps[i] + z) + log(s);
  }
  y[row] = (total.x + total.y) + (total.z + total.w);
}

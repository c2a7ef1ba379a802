// parts[j] = sum of (std^2 + mu^2 - 1) / 2 - ln std over i = j, j + PARTS, …, std = exp(logvar / 2)
// + FLOOR: first stage, fixed order.
// Reads mu, logvar [LEN]; writes (=) parts [PARTS]; sum_parts.wgsl adds them up.
// Grid: ceil(PARTS / WG) workgroups. Reference: ops/kl.rs `KlNormal::reference`.
#import lib/grid
const LEN: u32 = 1u; // uniform
const PARTS: u32 = 1u; // uniform
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> mu: array<f32>; // [LEN]
@group(0) @binding(1) var<storage, read> logvar: array<f32>; // [LEN]
@group(0) @binding(2) var<storage, read_write> parts: array<f32>; // [PARTS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let j = global_index(group, groups, local);
  if (j >= PARTS) { return; }
  var total = 0.0;
  for (var i = j; i < LEN; i += PARTS) {
    let s = exp(0.5 * logvar[i]) + FLOOR;
    total += 0.5 * ((s - 1.0) * (s + 1.0) + mu[i] * mu[i]) - log(s);
  }
  parts[j] = total;
}

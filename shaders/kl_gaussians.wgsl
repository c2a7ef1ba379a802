// parts[j] = sum of ((r - 1) (r + 1) + d^2) / 2 - ln r over i = j, j + PARTS, …, r = std / std', d
// = (mu - mu') / std',
// std = exp(logvar / 2) + FLOOR: first stage, fixed order; ' is the second Gaussian.
// Reads mu, logvar, mu2, logvar2 [LEN]; writes (=) parts [PARTS]; sum_parts.wgsl adds them up.
// Grid: ceil(PARTS / WG) workgroups. Reference: ops/kl.rs `KlGaussians::reference`.
#import lib/grid
const LEN: u32 = 1u; // uniform
const PARTS: u32 = 1u; // uniform
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> mu: array<f32>; // [LEN]
@group(0) @binding(1) var<storage, read> logvar: array<f32>; // [LEN]
@group(0) @binding(2) var<storage, read> mu2: array<f32>; // [LEN]
@group(0) @binding(3) var<storage, read> logvar2: array<f32>; // [LEN]
@group(0) @binding(4) var<storage, read_write> parts: array<f32>; // [PARTS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let j = global_index(group, groups, local);
  if (j >= PARTS) { return; }
  var total = 0.0;
  for (var i = j; i < LEN; i += PARTS) {
    let s2 = exp(0.5 * logvar2[i]) + FLOOR;
    let r = (exp(0.5 * logvar[i]) + FLOOR) / s2;
    let d = (mu[i] - mu2[i]) / s2;
    total += 0.5 * ((r - 1.0) * (r + 1.0) + d * d) - log(r);
  }
  parts[j] = total;
}

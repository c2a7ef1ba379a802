// z = mu + (exp(logvar / 2) + FLOOR) * eps.
// Reads mu, logvar, eps [LEN4]; writes (=) z [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded.
// Reference: ops/reparameterize.rs `Reparameterize::reference`.
#import lib/grid
const LEN4: u32 = 1u; // uniform
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> mu: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> logvar: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> eps: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read_write> z: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  z[i] = mu[i] + (exp(0.5 * logvar[i]) + FLOOR) * eps[i];
}

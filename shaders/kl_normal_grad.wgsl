// dmu = dkl / N * mu; dlogvar = dkl / N * (std - 1 / std) * exp(logvar / 2) / 2, std =
// exp(logvar / 2) + FLOOR.
// Reads dkl [1], mu, logvar [LEN4]; writes (=) dmu, dlogvar [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/kl.rs `KlNormalGrad::reference`.
#import lib/grid
const LEN4: u32 = 1u; // uniform
const BATCH: f32 = 1.0; // uniform
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> dkl: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> mu: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> logvar: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read_write> dmu: array<vec4<f32>>; // [LEN4]
@group(0) @binding(4) var<storage, read_write> dlogvar: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  let d = dkl[0] / BATCH;
  let root = exp(0.5 * logvar[i]);
  let s = root + FLOOR;
  dmu[i] = d * mu[i];
  dlogvar[i] = d * (s - 1.0 / s) * (0.5 * root);
}

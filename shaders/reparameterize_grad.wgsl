// dlogvar = dz * eps * exp(logvar / 2) / 2.
// Reads dz, logvar, eps [LEN4]; writes (=) dlogvar [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded.
// Reference: ops/reparameterize.rs `ReparameterizeGrad::reference`.
#import lib/grid
const LEN4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> dz: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> logvar: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> eps: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read_write> dlogvar: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  dlogvar[i] = 0.5 * dz[i] * eps[i] * exp(0.5 * logvar[i]);
}

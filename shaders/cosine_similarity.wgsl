// y[n] = a.b / (max(|a|, EPS) * max(|b|, EPS)), rows n.
// Reads a, b [N, L]; writes (=) y [N].
// Grid: ceil(N / WG) workgroups, folded; one row per invocation.
// Reference: ops/cosine.rs `CosineSimilarity::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const L: u32 = 1u; // uniform
const EPS: f32 = 1e-8; // uniform
@group(0) @binding(0) var<storage, read> a: array<f32>; // [N, L]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [N, L]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [N]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let n = global_index(group, groups, local);
  if (n >= N) { return; }
  var inner = 0.0;
  var aa = 0.0;
  var bb = 0.0;
  for (var l = 0u; l < L; l++) {
    let p = a[n * L + l];
    let q = b[n * L + l];
    inner += p * q;
    aa += p * p;
    bb += q * q;
  }
  y[n] = inner / max(sqrt(aa), EPS) / max(sqrt(bb), EPS);
}

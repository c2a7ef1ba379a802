// parts[j] = sum of p[i]*q[i] over i = j, j + PARTS, j + 2*PARTS, …: first stage of an inner
// product, fixed order.
// Reads p, q [LEN]; writes (=) parts [PARTS]; sum_parts.wgsl adds them up.
// Grid: ceil(PARTS / WG) workgroups. Reference: ops/pointwise.rs `Dot::reference`.
#import lib/grid
const LEN: u32 = 1u; // uniform
const PARTS: u32 = 256u; // uniform
@group(0) @binding(0) var<storage, read> p: array<f32>; // [LEN]
@group(0) @binding(1) var<storage, read> q: array<f32>; // [LEN]
@group(0) @binding(2) var<storage, read_write> parts: array<f32>; // [PARTS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let j = global_index(group, groups, local);
  if (j >= PARTS) { return; }
  var total = 0.0;
  for (var i = j; i < LEN; i += PARTS) { total += p[i] * q[i]; }
  parts[j] = total;
}

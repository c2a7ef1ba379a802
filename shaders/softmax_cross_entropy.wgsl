// losses[n] = ln sum_c exp(x[n, c] - max) + max - x[n, label]; hits[n] = 1 where the first maximum
// is the label; c < CLASSES.
// Reads x [N, C], labels [N]; writes (=) losses, hits [N]; sum_parts.wgsl adds them up.
// Grid: ceil(N / WG) workgroups, folded; one row per invocation.
// Reference: ops/cross_entropy.rs `SoftmaxCrossEntropy::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const C: u32 = 4u; // uniform: stored columns
const CLASSES: u32 = 4u; // uniform: columns that count
@group(0) @binding(0) var<storage, read> x: array<f32>; // [N, C]
@group(0) @binding(1) var<storage, read> labels: array<u32>; // [N]
@group(0) @binding(2) var<storage, read_write> losses: array<f32>; // [N]
@group(0) @binding(3) var<storage, read_write> hits: array<f32>; // [N]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let n = global_index(group, groups, local);
  if (n >= N) { return; }
  let label = labels[n];
  var best = x[n * C];
  var arg = 0u;
  var own = best;
  for (var c = 1u; c < CLASSES; c++) {
    let v = x[n * C + c];
    if (v > best) { best = v; arg = c; }
    if (c == label) { own = v; }
  }
  var total = 0.0;
  for (var c = 0u; c < CLASSES; c++) { total += exp(x[n * C + c] - best); }
  losses[n] = log(total) + (best - own);
  hits[n] = select(0.0, 1.0, arg == label);
}

// dx[n, c] = dloss / N * (softmax(x[n])[c] - [c = label]) for c < CLASSES, 0 in the padding.
// Reads dloss [1], x [N, C], labels [N]; writes (=) dx [N, C].
// Grid: ceil(N / WG) workgroups, folded; one row per invocation.
// Reference: ops/cross_entropy.rs `SoftmaxCrossEntropyGrad::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const C: u32 = 4u; // uniform: stored columns
const CLASSES: u32 = 4u; // uniform: columns that count
@group(0) @binding(0) var<storage, read> dloss: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> x: array<f32>; // [N, C]
@group(0) @binding(2) var<storage, read> labels: array<u32>; // [N]
@group(0) @binding(3) var<storage, read_write> dx: array<f32>; // [N, C]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let n = global_index(group, groups, local);
  if (n >= N) { return; }
  var best = x[n * C];
  for (var c = 1u; c < CLASSES; c++) { best = max(best, x[n * C + c]); }
  var total = 0.0;
  for (var c = 0u; c < CLASSES; c++) { total += exp(x[n * C + c] - best); }
  let d = dloss[0] / f32(N);
  let label = labels[n];
  for (var c = 0u; c < C; c++) {
    let p = exp(x[n * C + c] - best) / total - select(0.0, 1.0, c == label);
    dx[n * C + c] = select(0.0, d * p, c < CLASSES);
  }
}

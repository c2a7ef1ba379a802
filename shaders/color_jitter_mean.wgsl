// mean[n] = (sum of the row sums of image n) / (H*W), in the order of the rows.
// Reads sums [N, H]; writes (=) mean [N].
// Grid: ceil(N / WG) workgroups; one image per invocation.
// Reference: ops/augment.rs `ColorJitter::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> sums: array<f32>; // [N, H]
@group(0) @binding(1) var<storage, read_write> mean: array<f32>; // [N]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= N) { return; }
  var total = 0.0;
  for (var row = 0u; row < H; row++) { total += sums[i * H + row]; }
  mean[i] = total / f32(H * W);
}

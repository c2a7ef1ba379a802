// sums[r] = sum over the row's pixels of grey(x), as it is just before contrast; 0 for an image
// without jitter.
// First stage of the mean that contrast blends with.
// Reads x [ROWS, W, 4] (ROWS = N*H), params [N, 32]; writes (=) sums [ROWS].
// Grid: ceil(ROWS / WG) workgroups, folded; one row per invocation.
// Reference: ops/augment.rs `ColorJitter::reference`.
#import lib/grid
#import lib/augment
#import lib/color
const ROWS: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [ROWS, W]
@group(0) @binding(1) var<storage, read> params: array<vec4<f32>>; // [N, PARAMS4]
@group(0) @binding(2) var<storage, read_write> sums: array<f32>; // [ROWS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= ROWS) { return; }
  let row = i / H * PARAMS4;
  let order = vec4<u32>(params[row + P_ORDER]);
  let factors = params[row + P_FACTORS];
  var total = 0.0;
  if (params[row + P_FLAGS].y > 0.5) {
    for (var column = 0u; column < W; column++) {
      var v = x[i * W + column].rgb;
      for (var k = 0u; k < 4u && order[k] != CONTRAST; k++) { v = jitter(order[k], v, factors, 0.0); }
      total += grey(v);
    }
  }
  sums[i] = total;
}

// Sums of chunks of rows: parts[j] = (sum dy, sum dy * (x - mean)), dy masked where y <= 0 with
// RELU.
// Reads dy, x [ROWS, C4], mean [C4] [, y [ROWS, C4]]; writes (=) parts [PARTS, 2, C4].
// Grid: PARTS * ceil(C4 / WIDTH) workgroups, folded; without SHARED, ceil(PARTS * C4 / WG).
// Reference: ops/batch_norm/grad.rs `BatchNormGrad::reference`.
#import lib/ahead
#import lib/lane_sums
#import lib/relu
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const CHUNK: u32 = 1u; // uniform
const RELU: bool = false; // spec
const PARTS: u32 = (ROWS + CHUNK - 1u) / CHUNK;
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(2) var<storage, read> mean: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read_write> parts: array<vec4<f32>>; // [PARTS, 2, C4]
// #if RELU
@group(0) @binding(4) var<storage, read> y: array<vec4<f32>>; // [ROWS, C4]
// #end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = place(group, groups, local, C4);
  let c = min(at.y, C4 - 1u);
  let centre = mean[c];
  var own: Sums;
  let last = min(at.x * CHUNK + CHUNK, ROWS);
  for (var r = at.x * CHUNK + at.z; r < last; r += AHEAD * LANES) {
    var gradients: array<vec4<f32>, AHEAD>;
    var rows: array<vec4<f32>, AHEAD>;
    // #if RELU
    var masks: array<vec4<f32>, AHEAD>;
    // #end
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let row = min(r + i * LANES, last - 1u) * C4 + c;
      gradients[i] = dy[row];
      rows[i] = x[row];
      // #if RELU
      masks[i] = y[row];
      // #end
    }
    for (var i = 0u; i < AHEAD; i++) { // unroll
      var g = gradients[i];
      // #if RELU
      g = relu_mask(g, masks[i]);
      // #end
      g = select(vec4<f32>(), g, r + i * LANES < last);
      own.plain += g;
      own.moment += g * (rows[i] - centre);
    }
  }
  let total = sum_lanes(own, local);
  if (at.x < PARTS && at.y < C4 && at.z == 0u) {
    parts[2u * at.x * C4 + c] = total.plain;
    parts[(2u * at.x + 1u) * C4 + c] = total.moment;
  }
}

// Sums of chunks of rows: parts[j] = (sum dy, sum dy * (x - mean)), dy masked where y <= 0 with
// RELU.
// Reads dy, x [ROWS, C4], mean [C4] [, y [ROWS, C4]]; writes (=) parts [PARTS, 2, C4].
// Grid: ceil(PARTS * C4 / WG) workgroups, folded.
// Reference: ops/batch_norm/grad.rs `BatchNormGrad::reference`.
#import lib/ahead
#import lib/grid
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
  let i = global_index(group, groups, local);
  if (i >= PARTS * C4) { return; }
  let at = divide(i, C4);
  let c = at.y;
  let j = at.x;
  let centre = mean[c];
  var plain = vec4<f32>();
  var moment = vec4<f32>();
  let last = min((j + 1u) * CHUNK, ROWS);
  for (var r = j * CHUNK; r < last; r += AHEAD) {
    var gradients: array<vec4<f32>, AHEAD>;
    var rows: array<vec4<f32>, AHEAD>;
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let at = min(r + i, last - 1u) * C4 + c;
      gradients[i] = dy[at];
      // #if RELU
      gradients[i] = relu_mask(gradients[i], y[at]);
      // #end
      rows[i] = x[at];
    }
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let g = select(vec4<f32>(), gradients[i], r + i < last);
      plain += g;
      moment += g * (rows[i] - centre);
    }
  }
  parts[2u * j * C4 + c] = plain;
  parts[(2u * j + 1u) * C4 + c] = moment;
}

// dx = scale * (dy - level - (x - mean) * slope), dy masked where y <= 0 with RELU.
// Reads dy, x [ROWS, C4], mean [C4], factors [3, C4] (scale, level, slope) [, y [ROWS, C4]];
// writes (=) dx [ROWS, C4].
// Grid: ceil(ceil(ROWS / STRIP) * C4 / WG) workgroups, folded.
// Reference: ops/batch_norm/grad.rs `BatchNormGrad::reference`.
#import lib/ahead
#import lib/grid
#import lib/relu
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const STRIP: u32 = 1u; // uniform
const STRIPS: u32 = (ROWS + STRIP - 1u) / STRIP;
const RELU: bool = false; // spec
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(2) var<storage, read> mean: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read> factors: array<vec4<f32>>; // [3, C4]
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>; // [ROWS, C4]
// #if RELU
@group(0) @binding(5) var<storage, read> y: array<vec4<f32>>; // [ROWS, C4]
// #end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  let at = divide(i, C4); // strip, vec4 of a row
  if (at.x >= STRIPS) { return; }
  // From the last row to the first: what was read last is still in a cache.
  let first = (STRIPS - 1u - at.x) * STRIP;
  let last = min(first + STRIP, ROWS);
  let c = at.y;
  let centre = mean[c];
  let scale = factors[c];
  let level = factors[C4 + c];
  let slope = factors[2u * C4 + c];
  for (var r = first; r < last; r += AHEAD) {
    var gradients: array<vec4<f32>, AHEAD>;
    var rows: array<vec4<f32>, AHEAD>;
    // #if RELU
    var masks: array<vec4<f32>, AHEAD>;
    // #end
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let row = min(r + i, last - 1u) * C4 + c;
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
      if (r + i < last) {
        dx[(r + i) * C4 + c] = scale * (g - level - (rows[i] - centre) * slope);
      }
    }
  }
}

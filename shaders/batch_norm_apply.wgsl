// y = (x - mean) * rstd * gamma + beta [+ add] [relu].
// Reads x [ROWS, C4], gamma, beta, mean, spread [C4] (rstd, or with EVAL the variance)
// [, add [ROWS, C4]]; writes (=) y [ROWS, C4].
// Grid: ceil(ceil(ROWS / STRIP) * C4 / WG) workgroups, folded.
// Reference: ops/batch_norm/mod.rs `BatchNorm::reference`.
#import lib/ahead
#import lib/grid
#import lib/relu
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const STRIP: u32 = 1u; // uniform
const STRIPS: u32 = (ROWS + STRIP - 1u) / STRIP;
const EPS: f32 = 1e-5; // uniform
const ADD: bool = false; // spec
const RELU: bool = false; // spec
const EVAL: bool = false; // spec
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(1) var<storage, read> gamma: array<vec4<f32>>; // [C4]
@group(0) @binding(2) var<storage, read> beta: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read> mean: array<vec4<f32>>; // [C4]
@group(0) @binding(4) var<storage, read> spread: array<vec4<f32>>; // [C4]
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>; // [ROWS, C4]
// #if ADD
@group(0) @binding(6) var<storage, read> add: array<vec4<f32>>; // [ROWS, C4]
// #end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  let at = divide(i, C4); // strip, vec4 of a row
  if (at.x >= STRIPS) { return; }
  // From the last row to the first: what was written or read last is still in a cache.
  let first = (STRIPS - 1u - at.x) * STRIP;
  let last = min(first + STRIP, ROWS);
  let c = at.y;
  var rstd = spread[c];
  // #if EVAL
  rstd = 1.0 / sqrt(rstd + EPS);
  // #end
  let centre = mean[c];
  let scale = rstd * gamma[c];
  let offset = beta[c];
  for (var r = first; r < last; r += AHEAD) {
    var rows: array<vec4<f32>, AHEAD>;
    // #if ADD
    var others: array<vec4<f32>, AHEAD>;
    // #end
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let row = min(r + i, last - 1u) * C4 + c;
      rows[i] = x[row];
      // #if ADD
      others[i] = add[row];
      // #end
    }
    for (var i = 0u; i < AHEAD; i++) { // unroll
      var value = (rows[i] - centre) * scale + offset;
      // #if ADD
      value += others[i];
      // #end
      // #if RELU
      value = relu(value);
      // #end
      if (r + i < last) {
        y[(r + i) * C4 + c] = value;
      }
    }
  }
}

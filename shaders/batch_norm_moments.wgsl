// Mean and M2 = sum (x - mean)^2 of chunks of rows, shifted by the first row of the chunk: one
// pass, accurate when |mean| >> std.
// Reads x [ROWS, C4]; writes (=) parts [PARTS, 2, C4].
// Grid: ceil(PARTS * C4 / WG) workgroups, folded.
// Reference: ops/batch_norm/mod.rs `BatchNorm::reference`.
#import lib/ahead
#import lib/grid
#import lib/relu
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const CHUNK: u32 = 1u; // uniform
const PARTS: u32 = (ROWS + CHUNK - 1u) / CHUNK;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(1) var<storage, read_write> parts: array<vec4<f32>>; // [PARTS, 2, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PARTS * C4) { return; }
  let at = divide(i, C4);
  let c = at.y;
  let j = at.x;
  let first = j * CHUNK;
  let last = min(first + CHUNK, ROWS);
  let shift = x[first * C4 + c];
  var sum = vec4<f32>();
  var squares = vec4<f32>();
  for (var r = first + 1u; r < last; r += AHEAD) {
    var rows: array<vec4<f32>, AHEAD>;
    for (var i = 0u; i < AHEAD; i++) { // unroll
      rows[i] = x[min(r + i, last - 1u) * C4 + c];
    }
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let d = select(vec4<f32>(), rows[i] - shift, r + i < last);
      sum += d;
      squares += d * d;
    }
  }
  let mean = sum / f32(last - first);
  parts[2u * j * C4 + c] = shift + mean;
  parts[(2u * j + 1u) * C4 + c] = relu(squares - sum * mean); // NaN stays
}

// Mean and M2 = sum (x - mean)^2 of chunks of rows, shifted by the first row of the lane: one pass,
// accurate when |mean| >> std.
// Reads x [ROWS, C4]; writes (=) parts [PARTS, 2, C4].
// Grid: PARTS * ceil(C4 / WIDTH) workgroups, folded; without SHARED, ceil(PARTS * C4 / WG).
// Reference: ops/batch_norm/mod.rs `BatchNorm::reference`.
#import lib/ahead
#import lib/lane_moments
#import lib/relu
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const CHUNK: u32 = 1u; // uniform
const PARTS: u32 = (ROWS + CHUNK - 1u) / CHUNK;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [ROWS, C4]
@group(0) @binding(1) var<storage, read_write> parts: array<vec4<f32>>; // [PARTS, 2, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = place(group, groups, local, C4);
  let c = min(at.y, C4 - 1u);
  let first = at.x * CHUNK + at.z;
  let last = min(at.x * CHUNK + CHUNK, ROWS);
  let shift = x[min(first, ROWS - 1u) * C4 + c];
  // Lanes merge means that are shifted by the first row of all: rounding does not add up.
  var base = shift;
  // #if SHARED
  base = x[min(at.x * CHUNK, ROWS - 1u) * C4 + c];
  // #end
  var sum = vec4<f32>();
  var squares = vec4<f32>();
  for (var r = first + LANES; r < last; r += AHEAD * LANES) {
    var rows: array<vec4<f32>, AHEAD>;
    for (var i = 0u; i < AHEAD; i++) { // unroll
      rows[i] = x[min(r + i * LANES, last - 1u) * C4 + c];
    }
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let d = select(vec4<f32>(), rows[i] - shift, r + i * LANES < last);
      sum += d;
      squares += d * d;
    }
  }
  let n = f32(lane_rows(first, last));
  let mean = sum / max(n, 1.0);
  // NaN stays.
  let own = Moments(n, (shift - base) + mean, relu(squares - sum * mean));
  let total = merge_lanes(own, local);
  if (at.x < PARTS && at.y < C4 && at.z == 0u) {
    parts[2u * at.x * C4 + c] = base + total.mean;
    parts[(2u * at.x + 1u) * C4 + c] = total.m2;
  }
}

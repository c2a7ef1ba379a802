// y[j, c] = sum of x[i, c] over the rows i of chunk j: one stage of a column sum, fixed order.
// Reads x [ROWS, LANES]; writes (=) y [PARTS, LANES]. A lane is a vec4 of columns.
// Grid: ceil(PARTS * LANES / WG) workgroups, folded.
// Reference: ops/sum_rows.rs `SumRows::reference`.
#import lib/ahead
#import lib/grid
const ROWS: u32 = 1u; // uniform
const CHUNK: u32 = 1u; // uniform
const LANES: u32 = 1u; // uniform
const PARTS: u32 = (ROWS + CHUNK - 1u) / CHUNK;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [ROWS, LANES]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [PARTS, LANES]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PARTS * LANES) { return; }
  let c = i % LANES;
  let first = i / LANES * CHUNK;
  let last = min(first + CHUNK, ROWS);
  var total = x[first * LANES + c];
  for (var r = first + 1u; r < last; r += AHEAD) {
    var rows: array<vec4<f32>, AHEAD>;
    for (var k = 0u; k < AHEAD; k++) { // unroll
      rows[k] = x[min(r + k, last - 1u) * LANES + c];
    }
    for (var k = 0u; k < AHEAD; k++) { // unroll
      total += select(vec4<f32>(), rows[k], r + k < last);
    }
  }
  y[i] = total;
}

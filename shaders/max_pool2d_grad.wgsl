// dx[n, p, q, c] = sum of dy over the (at most 4) windows in which x[n, p, q, c] is the first in
// row-major order that equals y; any two NaN are equal.
// Reads dy, y [N, OH, OW, C4], x [N, H, W, C4]; writes (=) dx [N, H, W, C4].
// Grid: ceil(N * H * W * C4 / WG) workgroups, folded.
// Reference: ops/pool.rs `MaxPool2dGrad::reference`.
#import lib/grid
#import lib/finite
const N: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const OH: u32 = (H + 1u) / 2u;
const OW: u32 = (W + 1u) / 2u;
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [N, OH, OW, C4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [N, H, W, C4]
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>; // [N, OH, OW, C4]
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>; // [N, H, W, C4]

fn equal(x: vec4<f32>, y: vec4<f32>) -> vec4<bool> {
  return select(x == y, is_nan(x), is_nan(y));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = global_index(group, groups, local);
  if (at >= N * H * W * C4) { return; }
  let pixel = divide(at, C4); // pixel of all, vec4 of a pixel
  let line = divide(pixel.x, W); // row of all, column
  let row = divide(line.x, H); // image, row of the image
  let c = pixel.y;
  let q = line.y;
  let p = row.y;
  let n = row.x;
  var total = vec4<f32>();
  // Window i holds row p if |p - 2i| <= 1.
  for (var i = p / 2u; i < min((p + 1u) / 2u + 1u, OH); i++) {
    for (var j = q / 2u; j < min((q + 1u) / 2u + 1u, OW); j++) {
      let window = ((n * OH + i) * OW + j) * C4 + c;
      let top = y[window];
      var first = equal(x[at], top);
      // No earlier pixel of the window may equal it: whole rows above, then this row up to q.
      let left = max(2u * j, 1u) - 1u;
      for (var above = max(2u * i, 1u) - 1u; above <= p; above++) {
        let end = select(min(2u * j + 2u, W), q, above == p);
        for (var b = left; b < end; b++) {
          first = first & !equal(x[((n * H + above) * W + b) * C4 + c], top);
        }
      }
      total += select(vec4<f32>(), dy[window], first);
    }
  }
  dx[at] = total;
}

// dx[n, p, q, c] = sum of dy[n, i, j, c] over the i, j with floor(i*H/OH) = p and floor(j*W/OW) =
// q, row-major.
// Reads dy [N, OH, OW, C4]; writes (=) dx [N, H, W, C4].
// Grid: ceil(N * H * W * C4 / WG) workgroups, folded.
// Reference: ops/upsample.rs `UpsampleNearestGrad::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
const OH: u32 = 1u; // uniform
const OW: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>; // [N, OH, OW, C4]
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>; // [N, H, W, C4]

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
  // floor(i * H / OH) = p is p * OH <= i * H < (p + 1) * OH.
  let first_j = (q * OW + W - 1u) / W;
  var total = vec4<f32>();
  for (var i = (p * OH + H - 1u) / H; i * H < (p + 1u) * OH; i++) {
    for (var j = first_j; j * W < (q + 1u) * OW; j++) { total += dy[((n * OH + i) * OW + j) * C4 + c]; }
  }
  dx[at] = total;
}

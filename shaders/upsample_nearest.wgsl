// y[n, i, j, c] = x[n, floor(i*H/OH), floor(j*W/OW), c].
// Reads x [N, H, W, C4]; writes (=) y [N, OH, OW, C4].
// Grid: ceil(N * OH * ceil(OW / STRIP) * C4 / WG) workgroups, folded; STRIP columns per invocation.
// Reference: ops/upsample.rs `UpsampleNearest::reference`.
#import lib/grid
const N: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
const OH: u32 = 1u; // uniform
const OW: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const STRIP: u32 = 1u; // uniform
const STRIPS: u32 = (OW + STRIP - 1u) / STRIP;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, H, W, C4]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [N, OH, OW, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= N * OH * STRIPS * C4) { return; }
  let at = divide(i, C4); // strip of all, vec4 of a pixel
  let strip = divide(at.x, STRIPS); // row of all, strip of the row
  let row = divide(strip.x, OH); // image, row of the image
  let x_row = (row.x * H + row.y * H / OH) * W;
  for (var j = strip.y * STRIP; j < min(strip.y * STRIP + STRIP, OW); j++) {
    y[(strip.x * OW + j) * C4 + at.y] = x[(x_row + j * W / OW) * C4 + at.y];
  }
}

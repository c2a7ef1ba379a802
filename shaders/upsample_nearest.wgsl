// y[n, i, j, c] = x[n, floor(i*H/OH), floor(j*W/OW), c].
// Reads x [N, H, W, C4]; writes (=) y [N, OH, OW, C4].
// Grid: ceil(N * OH * OW * C4 / WG) workgroups, folded. Reference: ops/upsample.rs `UpsampleNearest::reference`.
#import lib/grid
const N: u32 = 1u; // spec
const H: u32 = 1u; // spec
const W: u32 = 1u; // spec
const OH: u32 = 1u; // spec
const OW: u32 = 1u; // spec
const C4: u32 = 1u; // spec
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, H, W, C4]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [N, OH, OW, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= N * OH * OW * C4) { return; }
  let c = i % C4;
  let column = i / C4 % OW * W / OW;
  let row = i / (C4 * OW) % OH * H / OH;
  let n = i / (C4 * OW * OH);
  y[i] = x[((n * H + row) * W + column) * C4 + c];
}

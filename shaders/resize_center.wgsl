// y[n, i, j] = standardize(resize(x[n])[TOP + i, LEFT + j]), resize to FULL_H x FULL_W by an
// antialiased bilinear filter.
// Reads x [N, IN_H, IN_W] packed pixels; writes (=) y [N, OUT_H, OUT_W, 4], PIXELS = N*OUT_H*OUT_W.
// Grid: ceil(PIXELS / WG) workgroups, folded.
// Reference: ops/resize_center.rs `ResizeCenter::reference`.
#import lib/grid
#import lib/resample
const PIXELS: u32 = 1u; // uniform
const IN_H: u32 = 1u; // uniform
const FULL_H: u32 = 1u; // uniform
const FULL_W: u32 = 1u; // uniform
const OUT_H: u32 = 1u; // uniform
const OUT_W: u32 = 1u; // uniform
const TOP: u32 = 0u; // uniform
const LEFT: u32 = 0u; // uniform
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [PIXELS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  let at = vec2<f32>(vec2<u32>(TOP + i / OUT_W % OUT_H, LEFT + i % OUT_W));
  let corner = i / (OUT_H * OUT_W) * IN_H * IN_W;
  let size = vec2<f32>(f32(IN_H), f32(IN_W));
  y[i] = vec4<f32>(standardize(resample(corner, size, vec2<f32>(f32(FULL_H), f32(FULL_W)), at)), 0.0);
}

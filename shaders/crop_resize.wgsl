// y[i] = the crop box params[i] of x[i mod N], resized by an antialiased bilinear filter, then
// flipped where the flag says so; in [0, 1].
// Reads x [N, IN_H, IN_W] packed pixels, params [VIEWS*N, 32]; writes (=) y
// [VIEWS*N, OUT_H, OUT_W, 4], PIXELS = VIEWS*N*OUT_H*OUT_W.
// Grid: ceil(PIXELS / WG) workgroups, folded. Reference: ops/augment.rs `CropResize::reference`.
#import lib/grid
#import lib/augment
#import lib/resample
const PIXELS: u32 = 1u; // uniform
const IN_H: u32 = 1u; // uniform
const OUT_H: u32 = 1u; // uniform
const OUT_W: u32 = 1u; // uniform
const VIEWS: u32 = 1u; // uniform: views of an image
const N: u32 = PIXELS / (OUT_H * OUT_W * VIEWS);
@group(0) @binding(1) var<storage, read> params: array<vec4<f32>>; // [VIEWS*N, PARAMS4]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [PIXELS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  let n = i / (OUT_H * OUT_W);
  let row = i / OUT_W % OUT_H;
  let column = i % OUT_W;
  let flip = params[n * PARAMS4 + P_FLAGS].x > 0.5;
  let box = params[n * PARAMS4 + P_BOX];
  let at = vec2<f32>(vec2<u32>(row, select(column, OUT_W - 1u - column, flip)));
  let corner = (n % N * IN_H + u32(box.x)) * IN_W + u32(box.y);
  y[i] = vec4<f32>(resample(corner, box.zw, vec2<f32>(f32(OUT_H), f32(OUT_W)), at), 0.0);
}

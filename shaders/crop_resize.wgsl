// y[i] = the crop box params[i] of x[i mod N], resized by an antialiased bilinear filter, then flipped where the flag says so; in [0, 1].
// Reads x [N, IN_H, IN_W] packed pixels, params [VIEWS*N, 32]; writes (=) y [VIEWS*N, OUT_H, OUT_W, 4], PIXELS = VIEWS*N*OUT_H*OUT_W.
// Grid: ceil(PIXELS / WG) workgroups, folded. Reference: ops/augment.rs `CropResize::reference`.
#import lib/grid
#import lib/augment
#import lib/pixel
const PIXELS: u32 = 1u; // spec
const IN_H: u32 = 1u; // spec
const IN_W: u32 = 1u; // spec
const OUT_H: u32 = 1u; // spec
const OUT_W: u32 = 1u; // spec
const VIEWS: u32 = 1u; // spec: views of an image
const N: u32 = PIXELS / (OUT_H * OUT_W * VIEWS);
@group(0) @binding(0) var<storage, read> x: array<u32>; // [N, IN_H, IN_W]
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
  let size = box.zw;
  let at = vec2<f32>(vec2<u32>(row, select(column, OUT_W - 1u - column, flip)));
  let scale = size / vec2<f32>(f32(OUT_H), f32(OUT_W));
  let support = max(scale, vec2<f32>(1.0));
  let centre = (at + 0.5) * scale;
  let first = vec2<u32>(max(centre - support + 0.5, vec2<f32>()));
  let end = vec2<u32>(min(centre + support + 0.5, size));
  let corner = (n % N * IN_H + u32(box.x)) * IN_W + u32(box.y);
  var total = vec3<f32>();
  var weights = 0.0;
  for (var v = first.x; v < end.x; v++) {
    let wv = max(0.0, 1.0 - abs(f32(v) + 0.5 - centre.x) / support.x);
    for (var u = first.y; u < end.y; u++) {
      let w = wv * max(0.0, 1.0 - abs(f32(u) + 0.5 - centre.y) / support.y);
      total += w * unpack(x[corner + v * IN_W + u]);
      weights += w;
    }
  }
  y[i] = vec4<f32>(total / weights, 0.0);
}

// y[p] = sum_r w_r x[p + r] / sum_r w_r, w_r = exp(-r^2 / (2 sigma^2)), r = -RADIUS .. RADIUS, ends
// reflected; x[p] where the
// flag is 0. Along an axis of LENGTH pixels that lie STRIDE apart: once along rows, once along
// columns.
// Reads x [PIXELS, 4], params [N, 32]; writes (=) y [PIXELS, 4], PIXELS = N * IMAGE.
// Grid: ceil(PIXELS / WG) workgroups, folded. Reference: ops/blur.rs `GaussianBlur::reference`.
#import lib/grid
#import lib/augment
const PIXELS: u32 = 1u; // uniform
const IMAGE: u32 = 1u; // uniform
const LENGTH: u32 = 1u; // uniform
const STRIDE: u32 = 1u; // uniform
const RADIUS: u32 = 0u; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [PIXELS]
@group(0) @binding(1) var<storage, read> params: array<vec4<f32>>; // [N, PARAMS4]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [PIXELS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  let row = i / IMAGE * PARAMS4;
  if (params[row + P_FLAGS].w < 0.5) {
    y[i] = x[i];
    return;
  }
  let sigma = params[row + P_SIGMA].x;
  let place = i / STRIDE % LENGTH;
  let start = i - place * STRIDE;
  // exp(-r^2 / (2 sigma^2)) = q^(r^2): each weight is the last one times q, q^3, q^5, ...
  let q = exp(-0.5 / (sigma * sigma));
  var ratio = q;
  var w = 1.0;
  var total = x[i].rgb;
  var weights = 1.0;
  for (var r = 1u; r <= RADIUS; r++) {
    w *= ratio;
    ratio *= q * q;
    let before = u32(abs(i32(place) - i32(r)));
    let beyond = place + r;
    let after = select(beyond, 2u * LENGTH - 2u - beyond, beyond >= LENGTH);
    total += w * (x[start + before * STRIDE].rgb + x[start + after * STRIDE].rgb);
    weights += 2.0 * w;
  }
  y[i] = vec4<f32>(total / weights, 0.0);
}

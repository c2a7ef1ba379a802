// dx = dy / (N s^2) * (t - x) in the channels, 0 in the padding, s = exp(log_scale / 2) + FLOOR;
// parts[j] = sum of (t[i] - x[i])^2 over the vec4s i = j, j + PARTS, …, for the gradient of
// log_scale.
// Reads dy, log_scale [1], x, t [LEN4]; writes (=) dx [LEN4], parts [PARTS].
// Grid: ceil(PARTS / WG) workgroups. Reference: ops/gaussian_nll.rs `GaussianNllGrad::reference`.
#import lib/grid
#import lib/channels
const LEN4: u32 = 1u; // uniform
const PARTS: u32 = 1u; // uniform
const BATCH: f32 = 1.0; // uniform
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> dy: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> t: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read> log_scale: array<f32>; // [1]
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>; // [LEN4]
@group(0) @binding(5) var<storage, read_write> parts: array<f32>; // [PARTS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let j = global_index(group, groups, local);
  if (j >= PARTS) { return; }
  let s = exp(0.5 * log_scale[0]) + FLOOR;
  let factor = dy[0] / (BATCH * s * s);
  var total = vec4<f32>();
  for (var i = j; i < LEN4; i += PARTS) {
    let d = select(vec4<f32>(), t[i] - x[i], is_channel(i));
    dx[i] = factor * d;
    total += d * d;
  }
  parts[j] = (total.x + total.y) + (total.z + total.w);
}

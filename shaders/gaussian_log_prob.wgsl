// y[r] = -sum (t[r / SAMPLES] - x[r])^2 / (2 s^2) - COUNT * (ln s + ln(2 pi) / 2), s =
// exp(log_scale / 2) + FLOOR, rows r, channels only.
// Reads x [ROWS, LEN4], t [ROWS / SAMPLES, LEN4], log_scale [1]; writes (=) y [ROWS].
// Grid: ROWS workgroups, folded; invocation j adds vec4s j, j + WG, …, then a tree.
// Reference: ops/importance.rs `GaussianLogProb::reference`.
#import lib/channels
const WG: u32 = 64u; // spec
const ROWS: u32 = 1u; // uniform
const SAMPLES: u32 = 1u; // uniform: rows of x per row of t
const LEN4: u32 = 1u; // uniform: vec4s of a row
const COUNT: f32 = 1.0; // uniform: pixels times channels of a row
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [ROWS, LEN4]
@group(0) @binding(1) var<storage, read> t: array<vec4<f32>>; // [ROWS / SAMPLES, LEN4]
@group(0) @binding(2) var<storage, read> log_scale: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [ROWS]
var<workgroup> sh_total: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= ROWS) { return; }
  var total = vec4<f32>();
  for (var i = local; i < LEN4; i += WG) {
    let d = select(vec4<f32>(), t[row / SAMPLES * LEN4 + i] - x[row * LEN4 + i], is_channel(i));
    total += d * d;
  }
  sh_total[local] = (total.x + total.y) + (total.z + total.w);
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_total[local] += sh_total[local + half]; }
  }
  if (local == 0u) {
    let s = exp(0.5 * log_scale[0]) + FLOOR;
    y[row] = -0.5 * sh_total[0] / (s * s) - COUNT * (log(s) + 0.9189385332046727);
  }
}

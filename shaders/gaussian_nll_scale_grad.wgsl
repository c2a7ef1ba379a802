// dlog_scale = dy * (q / s^3 - COUNT / s) * exp(log_scale / 2) / 2, s = exp(log_scale / 2) + FLOOR.
// Reads dy, q, log_scale [1], q the mean over the batch of the squared error of an example;
// writes (=) dlog_scale [1].
// Grid: 1 workgroup. Reference: ops/gaussian_nll.rs `GaussianNllGrad::reference`.
const COUNT: f32 = 1.0; // uniform: pixels times channels of an example
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> dy: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> q: array<f32>; // [1]
@group(0) @binding(2) var<storage, read> log_scale: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> dlog_scale: array<f32>; // [1]

@compute @workgroup_size(1)
fn main() {
  let root = exp(0.5 * log_scale[0]);
  let s = root + FLOOR;
  dlog_scale[0] = dy[0] * (q[0] / (s * s) - COUNT) / s * (0.5 * root);
}

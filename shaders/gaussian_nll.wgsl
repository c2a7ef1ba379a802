// y = -q / (2 s^2) - COUNT * (ln s + ln(2 pi) / 2), s = exp(log_scale / 2) + FLOOR: last stage of
// the log-likelihood.
// Reads q [1] (mean over the batch of the squared error of an example), log_scale [1]; writes (=) y
// [1].
// Grid: 1 workgroup. Reference: ops/gaussian_nll.rs `GaussianNll::reference`.
const COUNT: f32 = 1.0; // uniform: pixels times channels of an example
const FLOOR: f32 = 1e-6; // uniform
@group(0) @binding(0) var<storage, read> q: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> log_scale: array<f32>; // [1]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [1]

@compute @workgroup_size(1)
fn main() {
  let s = exp(0.5 * log_scale[0]) + FLOOR;
  y[0] = -0.5 * q[0] / (s * s) - COUNT * (log(s) + 0.9189385332046727);
}

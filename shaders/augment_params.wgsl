// params[i] = view i / M drawn for image first_sample + i mod M, M = N / VIEWS;
// ops/augment_params.rs specifies every draw and the layout.
// Reads the step; writes (=) params [N, 32].
// Grid: ceil(N / WG) workgroups; one view per invocation.
// Reference: ops/augment_params.rs `AugmentParams::reference`.
#import lib/grid
#import lib/step
#import lib/rng
#import lib/augment
const N: u32 = 1u; // uniform
const STREAM: u32 = 5u; // uniform: STREAM_AUGMENT
const VIEWS: u32 = 1u; // uniform: views of an image
const IN_H: f32 = 1.0; // uniform
const IN_W: f32 = 1.0; // uniform
const SCALE_LO: f32 = 1.0; // uniform
const SCALE_SPAN: f32 = 0.0; // uniform
const LOG_RATIO_LO: f32 = 0.0; // uniform
const LOG_RATIO_SPAN: f32 = 0.0; // uniform
const FALLBACK_TOP: f32 = 0.0; // uniform
const FALLBACK_LEFT: f32 = 0.0; // uniform
const FALLBACK_HEIGHT: f32 = 1.0; // uniform
const FALLBACK_WIDTH: f32 = 1.0; // uniform
const FLIP_P: f32 = 0.0; // uniform
const JITTER_P: f32 = 0.0; // uniform
const GREY_P: f32 = 0.0; // uniform
const BLUR_P: f32 = 0.0; // uniform
const FACTOR_LO: f32 = 1.0; // uniform
const FACTOR_SPAN: f32 = 0.0; // uniform
const HUE: f32 = 0.0; // uniform
const SIGMA_LO: f32 = 1.0; // uniform
const SIGMA_SPAN: f32 = 0.0; // uniform
const M: u32 = N / VIEWS; // images
const VIEW: u32 = 16u; // indices of the draws of one view
@group(0) @binding(0) var<storage, read_write> params: array<vec4<f32>>; // [N, PARAMS4]
@group(0) @binding(1) var<uniform> step: Step;

fn crop(key: vec2<u32>, sample: u32, first: u32) -> vec4<f32> {
  for (var t = 0u; t < 10u; t++) {
    let u = uniforms(philox(key, step.step, sample, first + t));
    let area = IN_H * IN_W * (SCALE_LO + SCALE_SPAN * u.x);
    let ratio = exp(LOG_RATIO_LO + LOG_RATIO_SPAN * u.y);
    let size = floor(sqrt(vec2<f32>(area / ratio, area * ratio)) + 0.5); // height, width
    let free = vec2<f32>(IN_H, IN_W) - size;
    if (all(size >= vec2<f32>(1.0)) && all(free >= vec2<f32>())) {
      return vec4<f32>(floor(u.zw * (free + 1.0)), size);
    }
  }
  return vec4<f32>(FALLBACK_TOP, FALLBACK_LEFT, FALLBACK_HEIGHT, FALLBACK_WIDTH);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= N) { return; }
  let key = rng_key(step.seed_lo, step.seed_hi, STREAM);
  let sample = step.first_sample + i % M;
  let first = i / M * VIEW;
  let chance = uniforms(philox(key, step.step, sample, first + 10u));
  let u = uniforms(philox(key, step.step, sample, first + 11u));
  let shuffle = uniforms(philox(key, step.step, sample, first + 12u));
  var order = vec4<f32>(0.0, 1.0, 2.0, 3.0);
  for (var k = 0u; k < 3u; k++) { // unroll
    let a = 3u - k;
    let b = u32(shuffle[k] * f32(a + 1u));
    let held = order[a];
    order[a] = order[b];
    order[b] = held;
  }
  let row = i * PARAMS4;
  params[row + P_BOX] = crop(key, sample, first);
  params[row + P_FLAGS] = select(vec4<f32>(), vec4<f32>(1.0), chance < vec4<f32>(FLIP_P, JITTER_P, GREY_P, BLUR_P));
  params[row + P_ORDER] = order;
  params[row + P_FACTORS] = vec4<f32>(FACTOR_LO + FACTOR_SPAN * u.xyz, HUE * (2.0 * u.w - 1.0));
  params[row + P_SIGMA] = vec4<f32>(SIGMA_LO + SIGMA_SPAN * shuffle.w, 0.0, 0.0, 0.0);
  for (var k = P_SIGMA + 1u; k < PARAMS4; k++) { params[row + k] = vec4<f32>(); }
}

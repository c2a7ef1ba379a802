// y[n, i, j] = standardize(x[n, reflect(i + dy), reflect(j' + dx)]), dy and dx drawn from -PAD ..
// PAD, j' = j or W - 1 - j:
// a random crop of the image padded by reflection, a random flip; ops/probe_augment.rs specifies
// the draws.
// Reads step, x [N, H, W] packed pixels; writes (=) y [N, H, W, 4], PIXELS = N*H*W.
// Grid: ceil(PIXELS / WG) workgroups, folded.
// Reference: ops/probe_augment.rs `ProbeAugment::reference`.
#import lib/grid
#import lib/step
#import lib/rng
#import lib/pixel
const PIXELS: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
const PAD: u32 = 0u; // uniform
@group(0) @binding(0) var<storage, read> x: array<u32>; // [PIXELS]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [PIXELS]
@group(0) @binding(2) var<uniform> step: Step;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  let n = i / (H * W);
  let u = uniforms(philox(rng_key(step.seed_lo, step.seed_hi, STREAM_PROBE), step.step, step.first_sample + n, 0u));
  let shift = vec2<i32>(floor(u.xy * f32(2u * PAD + 1u))) - i32(PAD);
  let column = select(i % W, W - 1u - i % W, u.z < 0.5);
  let at = abs(vec2<i32>(i32(i / W % H), i32(column)) + shift);
  let last = vec2<i32>(i32(H), i32(W)) - 1;
  let source = vec2<u32>(select(at, 2 * last - at, at > last));
  y[i] = vec4<f32>(standardize(unpack(x[(n * H + source.x) * W + source.y])), 0.0);
}

// y[n, e] = standard normals: lane e % 4 of the draw
// (stream Noise, step, first_sample + n, FIRST_QUAD + e / 4).
// Reads the step; writes (=) y [N, PER].
// Grid: ceil(QUADS / WG) workgroups, folded; four elements of one sample per invocation.
// Reference: ops/random_normal.rs `RandomNormal::reference`.
#import lib/grid
#import lib/rng
#import lib/step
const PER: u32 = 1u; // uniform: elements of a sample
const QUADS_PER: u32 = 1u; // uniform: ceil(PER / 4)
const QUADS: u32 = 1u; // uniform: N * QUADS_PER
const FIRST_QUAD: u32 = 0u; // uniform: quads of a sample's sequence passed over
@group(0) @binding(0) var<storage, read_write> y: array<f32>; // [N, PER]
@group(0) @binding(1) var<uniform> step: Step;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= QUADS) { return; }
  let n = i / QUADS_PER;
  let quad = i % QUADS_PER;
  let draw = normals(philox(rng_key(step.seed_lo, step.seed_hi, STREAM_NOISE), step.step, step.first_sample + n, FIRST_QUAD + quad));
  let first = n * PER + quad * 4u;
  let count = min(4u, PER - quad * 4u);
  y[first] = draw.x;
  if (count > 1u) { y[first + 1u] = draw.y; }
  if (count > 2u) { y[first + 2u] = draw.z; }
  if (count > 3u) { y[first + 3u] = draw.w; }
}

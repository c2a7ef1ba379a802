// y = standardize(grey(jitter[3](jitter[2](jitter[1](jitter[0](x)))))): the four jitters in the
// drawn order, each step where
// its flag says so, the last where NORMALIZE.
// Reads x [PIXELS, 4], params [N, 32], mean [N] (grey before contrast); writes (=) y [PIXELS, 4],
// PIXELS = N * IMAGE.
// Grid: ceil(PIXELS / WG) workgroups, folded. Reference: ops/augment.rs `ColorJitter::reference`.
#import lib/grid
#import lib/augment
#import lib/color
#import lib/pixel
const PIXELS: u32 = 1u; // uniform
const IMAGE: u32 = 1u; // uniform
const NORMALIZE: bool = false; // spec
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [PIXELS]
@group(0) @binding(1) var<storage, read> params: array<vec4<f32>>; // [N, PARAMS4]
@group(0) @binding(2) var<storage, read> mean: array<f32>; // [N]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>; // [PIXELS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  let n = i / IMAGE;
  let row = n * PARAMS4;
  let flags = params[row + P_FLAGS];
  var v = x[i].rgb;
  if (flags.y > 0.5) {
    let order = vec4<u32>(params[row + P_ORDER]);
    let factors = params[row + P_FACTORS];
    for (var k = 0u; k < 4u; k++) { v = jitter(order[k], v, factors, mean[n]); }
  }
  if (flags.z > 0.5) { v = vec3<f32>(grey(v)); }
  if (NORMALIZE) { v = standardize(v); }
  y[i] = vec4<f32>(v, 0.0);
}

// y[c] = (x[c] - mean[c]) / std[c], y[3] = 0.
// Reads x [PIXELS, 4]; writes (=) y [PIXELS, 4].
// Grid: ceil(PIXELS / WG) workgroups, folded. Reference: ops/decode.rs `Normalize::reference`.
#import lib/grid
#import lib/pixel
const PIXELS: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [PIXELS]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [PIXELS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= PIXELS) { return; }
  y[i] = vec4<f32>(standardize(x[i].rgb), 0.0);
}

// acc = SCALE x in the first batch of a step (its first sample is 0), else acc + SCALE x.
// Reads x [LEN4], the step; updates (in place) acc [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/accumulate.rs `Accumulate::reference`.
#import lib/grid
#import lib/step
const LEN4: u32 = 1u; // uniform
const SCALE: f32 = 1.0; // uniform
@group(0) @binding(0) var<storage, read_write> acc: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<uniform> step: Step;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4) { return; }
  acc[i] = select(acc[i], vec4<f32>(), vec4<bool>(step.first_sample == 0u)) + SCALE * x[i];
}

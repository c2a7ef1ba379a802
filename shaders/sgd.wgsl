// b = MOMENTUM b + g; p -= lr * b, or lr * (g + MOMENTUM b) with NESTEROV; g = grad + DECAY p.
// Nothing is written where guard is not finite; with MASKED, blocks whose bit is set do not decay.
// Reads grad [LEN4], guard [1], the step [, plain [ceil(LEN4 / 512)]]; updates (in place) p, b
// [LEN4].
// Grid: ceil(LEN4 / WG) workgroups, folded. Reference: ops/optimizer.rs `Sgd::reference`.
#import lib/grid
#import lib/finite
#import lib/step
const LEN4: u32 = 1u; // uniform
const MOMENTUM: f32 = 0.9; // spec
const DECAY: f32 = 0.0; // spec
const MASKED: bool = false; // spec
const NESTEROV: bool = true; // spec
@group(0) @binding(0) var<storage, read_write> p: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read_write> b: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read> guard: array<f32>; // [1]
@group(0) @binding(4) var<uniform> step: Step;
// #if MASKED
@group(0) @binding(5) var<storage, read> plain: array<u32>; // [ceil(LEN4 / 512)], a bit for 16 vec4s
// #end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = global_index(group, groups, local);
  if (i >= LEN4 || !is_finite(guard[0])) { return; }
  let old = p[i];
  var decay = DECAY;
  // #if MASKED
  decay = select(DECAY, 0.0, ((plain[i / 512u] >> (i / 16u % 32u)) & 1u) == 1u);
  // #end
  let g = grad[i] + decay * old;
  let moved = MOMENTUM * b[i] + g;
  p[i] = old - step.learning_rate * select(moved, g + MOMENTUM * moved, NESTEROV);
  b[i] = moved;
}

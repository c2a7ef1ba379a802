// b = MOMENTUM b + ratio (grad + DECAY p); p -= lr * b. Plain tensors do not decay; nothing is
// written where guard is not finite.
// Reads grad [LEN4], ratios [SEGMENTS], chunks [CHUNKS], guard [1], the step; updates (in place) p,
// b [LEN4].
// Grid: CHUNKS workgroups, folded. Reference: ops/layerwise.rs `Lars::reference`.
#import lib/grid
#import lib/finite
#import lib/step
#import lib/segments
const MOMENTUM: f32 = 0.9; // spec
const DECAY: f32 = 0.0; // spec
@group(0) @binding(0) var<storage, read_write> p: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read_write> b: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read> ratios: array<f32>; // [SEGMENTS]
@group(0) @binding(4) var<storage, read> chunks: array<Chunk>; // [CHUNKS]
@group(0) @binding(5) var<storage, read> guard: array<f32>; // [1]
@group(0) @binding(6) var<uniform> step: Step;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let c = group.y * groups.x + group.x;
  if (c >= CHUNKS || !is_finite(guard[0])) { return; }
  let chunk = chunks[c];
  let ratio = ratios[chunk.segment];
  let decay = select(DECAY, 0.0, chunk.plain == 1u);
  for (var i = chunk.first + local; 4u * i < chunk.end; i += WG) {
    let inside = before(i, chunk.end);
    let old = p[i];
    let moved = MOMENTUM * b[i] + ratio * (grad[i] + decay * old);
    p[i] = select(old, old - step.learning_rate * moved, inside);
    b[i] = select(b[i], moved, inside);
  }
}

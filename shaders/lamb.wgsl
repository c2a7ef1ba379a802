// m = BETA1 m + (1 - BETA1) grad; v = BETA2 v + (1 - BETA2) grad^2; p -= lr * ratio * u, u = m
// bias1 / (sqrt(v bias2) + EPS) + DECAY p.
// Plain tensors do not decay; nothing is written where guard is not finite.
// Reads grad [LEN4], ratios [SEGMENTS], chunks [CHUNKS], guard [1], the step; updates (in place) p,
// m, v [LEN4].
// Grid: CHUNKS workgroups, folded. Reference: ops/layerwise.rs `Lamb::reference`.
#import lib/grid
#import lib/finite
#import lib/step
#import lib/segments
const BETA1: f32 = 0.9; // spec
const BETA1_REST: f32 = 0.1; // spec: 1 - BETA1, rounded once
const BETA2: f32 = 0.999; // spec
const BETA2_REST: f32 = 0.001; // spec: 1 - BETA2, rounded once
const EPS: f32 = 1e-6; // spec
const DECAY: f32 = 0.0; // spec
@group(0) @binding(0) var<storage, read_write> p: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read_write> m: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read_write> v: array<vec4<f32>>; // [LEN4]
@group(0) @binding(4) var<storage, read> ratios: array<f32>; // [SEGMENTS]
@group(0) @binding(5) var<storage, read> chunks: array<Chunk>; // [CHUNKS]
@group(0) @binding(6) var<storage, read> guard: array<f32>; // [1]
@group(0) @binding(7) var<uniform> step: Step;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let c = group.y * groups.x + group.x;
  if (c >= CHUNKS || !is_finite(guard[0])) { return; }
  let chunk = chunks[c];
  let rate = step.learning_rate * ratios[chunk.segment];
  let decay = select(DECAY, 0.0, chunk.plain == 1u);
  for (var i = chunk.first + local; 4u * i < chunk.end; i += WG) {
    let inside = before(i, chunk.end);
    let g = grad[i];
    let old = p[i];
    let first = BETA1 * m[i] + BETA1_REST * g;
    let second = BETA2 * v[i] + BETA2_REST * g * g;
    let u = (first * step.bias1) / (sqrt(second * step.bias2) + EPS) + decay * old;
    p[i] = select(old, old - rate * u, inside);
    m[i] = select(m[i], first, inside);
    v[i] = select(v[i], second, inside);
  }
}

// parts[c] = (sum p^2, sum u^2) over chunk c of a tensor, u the direction that lamb.wgsl goes.
// Reads p, grad, m, v [LEN4], chunks [CHUNKS], the step; writes (=) parts [CHUNKS].
// Grid: CHUNKS workgroups, folded. Reference: ops/layerwise.rs `Lamb::reference`.
#import lib/grid
#import lib/step
#import lib/segments
#import lib/sum2
const BETA1: f32 = 0.9; // spec
const BETA1_REST: f32 = 0.1; // spec: 1 - BETA1, rounded once
const BETA2: f32 = 0.999; // spec
const BETA2_REST: f32 = 0.001; // spec: 1 - BETA2, rounded once
const EPS: f32 = 1e-6; // spec
const DECAY: f32 = 0.0; // spec
@group(0) @binding(0) var<storage, read> p: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> m: array<vec4<f32>>; // [LEN4]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; // [LEN4]
@group(0) @binding(4) var<storage, read> chunks: array<Chunk>; // [CHUNKS]
@group(0) @binding(5) var<storage, read_write> parts: array<vec2<f32>>; // [CHUNKS]
@group(0) @binding(6) var<uniform> step: Step;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let c = group.y * groups.x + group.x;
  if (c >= CHUNKS) { return; }
  let chunk = chunks[c];
  let decay = select(DECAY, 0.0, chunk.plain == 1u);
  var sums = vec2<f32>();
  for (var i = chunk.first + local; 4u * i < chunk.end; i += WG) {
    let inside = before(i, chunk.end);
    let g = grad[i];
    let first = BETA1 * m[i] + BETA1_REST * g;
    let second = BETA2 * v[i] + BETA2_REST * g * g;
    let w = select(vec4<f32>(), p[i], inside);
    let u = select(vec4<f32>(), (first * step.bias1) / (sqrt(second * step.bias2) + EPS) + decay * w, inside);
    sums += vec2<f32>(dot(w, w), dot(u, u));
  }
  sums = workgroup_sum(local, sums);
  if (local == 0u) { parts[c] = sums; }
}

// y[s] = SCALE |p| / (|x| + DECAY |p| + EPS) of tensor s from parts (sum p^2, sum x^2); 1 where
// either norm is 0 or the tensor is plain.
// Reads parts [CHUNKS], segments [SEGMENTS] (first chunk, chunk after the last, plain, 0);
// writes (=) y [SEGMENTS].
// Grid: SEGMENTS workgroups, folded. Reference: ops/layerwise.rs `ratio`.
#import lib/grid
#import lib/sum2
const SEGMENTS: u32 = 1u; // uniform
const SCALE: f32 = 1.0; // spec
const DECAY: f32 = 0.0; // spec
const EPS: f32 = 0.0; // spec
@group(0) @binding(0) var<storage, read> parts: array<vec2<f32>>; // [CHUNKS]
@group(0) @binding(1) var<storage, read> segments: array<vec4<u32>>; // [SEGMENTS]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [SEGMENTS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let s = group.y * groups.x + group.x;
  if (s >= SEGMENTS) { return; }
  let segment = segments[s];
  var sums = vec2<f32>();
  for (var c = segment.x + local; c < segment.y; c += WG) { sums += parts[c]; }
  sums = workgroup_sum(local, sums);
  if (local > 0u) { return; }
  let norms = sqrt(sums);
  let one = segment.z == 1u || norms.x == 0.0 || norms.y == 0.0;
  y[s] = select(SCALE * norms.x / (norms.y + DECAY * norms.x + EPS), 1.0, one);
}

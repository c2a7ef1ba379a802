// parts[c] = (sum p^2, sum grad^2) over chunk c of a tensor.
// Reads p, grad [LEN4], chunks [CHUNKS]; writes (=) parts [CHUNKS].
// Grid: CHUNKS workgroups, folded. Reference: ops/layerwise.rs `Lars::reference`.
#import lib/grid
#import lib/segments
#import lib/sum2
@group(0) @binding(0) var<storage, read> p: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read> chunks: array<Chunk>; // [CHUNKS]
@group(0) @binding(3) var<storage, read_write> parts: array<vec2<f32>>; // [CHUNKS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let c = group.y * groups.x + group.x;
  if (c >= CHUNKS) { return; }
  let chunk = chunks[c];
  var sums = vec2<f32>();
  for (var i = chunk.first + local; 4u * i < chunk.end; i += WG) {
    let inside = before(i, chunk.end);
    let w = select(vec4<f32>(), p[i], inside);
    let g = select(vec4<f32>(), grad[i], inside);
    sums += vec2<f32>(dot(w, w), dot(g, g));
  }
  sums = workgroup_sum(local, sums);
  if (local == 0u) { parts[c] = sums; }
}

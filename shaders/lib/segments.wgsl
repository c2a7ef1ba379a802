// Chunks of the tensors of a flat buffer, one per workgroup; ops/segments.rs makes the table.
// Requires of the importer: workgroups of WG invocations, whose invocation j takes vec4s j, j + WG,
// … of its chunk.
#import lib/grid
const CHUNKS: u32 = 1u; // uniform
struct Chunk {
  first: u32,   // vec4
  end: u32,     // element
  segment: u32,
  plain: u32,   // 1: no decay, ratio 1
}
// Lanes of vec4 i that lie before an end.
fn before(i: u32, end: u32) -> vec4<bool> {
  return vec4<u32>(0u, 1u, 2u, 3u) + 4u * i < vec4<u32>(end);
}

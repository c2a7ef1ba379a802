// y[FIRST + j] = NaN if one of the elements that invocation j reads is not finite, else 0.
// Reads x [LEN]; writes (=) y [FIRST .. FIRST + invocations]. The words of y, read again, are such
// elements.
// Grid: ceil(LEN4 / (WG * DEPTH)) workgroups, folded; a workgroup reads a run of x.
// Reference: ops/all_finite.rs `AllFinite::reference`.
#import lib/grid
#import lib/finite
const LEN: u32 = 1u; // uniform
const DEPTH: u32 = 16u; // uniform: vec4s per invocation
const FIRST: u32 = 0u; // uniform
const LEN4: u32 = (LEN + 3u) / 4u;
const COUNT: u32 = (LEN4 + WG * DEPTH - 1u) / (WG * DEPTH) * WG;
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>; // [LEN4], the bits of floats
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [at least FIRST + COUNT]

@compute @workgroup_size(WG)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) local: u32,
) {
  let j = global_index(group, groups, local);
  if (j >= COUNT) { return; }
  let first = j / WG * WG * DEPTH + local;
  var bad = vec4<bool>();
  for (var d = 0u; d < DEPTH; d++) {
    let i = first + d * WG;
    if (i < LEN4) {
      // What stands behind the last element is nothing.
      let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * i < vec4<u32>(LEN);
      bad = bad | (inside & are_not_finite(x[i]));
    }
  }
  y[FIRST + j] = select(0u, QUIET_NAN, any(bad));
}

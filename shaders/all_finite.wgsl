// y = 0 if y and every word of flags are finite, else NaN: the last pass of a check of whole
// tensors.
// Reads flags [COUNT], which is a multiple of 4; updates (in place) y [1].
// Grid: 1 workgroup; invocation j reads vec4s j, j + WG, …, then a tree over the WG words.
// Reference: ops/all_finite.rs `AllFinite::reference`.
#import lib/grid
#import lib/finite
const COUNT: u32 = 64u; // uniform
@group(0) @binding(0) var<storage, read> flags: array<vec4<u32>>; // [COUNT / 4], the bits of floats
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [1], the bits of a float
var<workgroup> sh_bad: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) local: u32) {
  var bad = are_not_finite(vec4<u32>(y[0]));
  for (var i = local; i < COUNT / 4u; i += WG) { bad = bad | are_not_finite(flags[i]); }
  sh_bad[local] = u32(any(bad));
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_bad[local] |= sh_bad[local + half]; }
  }
  if (local == 0u) { y[0] = select(0u, QUIET_NAN, sh_bad[0] == 1u); }
}

// Two sums over a workgroup in a fixed tree, of use to invocation 0 only.
// Requires of the importer: workgroups of WG invocations, all of which call it once.
#import lib/grid
var<workgroup> sh_sums: array<vec2<f32>, WG>;
fn workgroup_sum(local: u32, x: vec2<f32>) -> vec2<f32> {
  sh_sums[local] = x;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_sums[local] += sh_sums[local + half]; }
  }
  return sh_sums[local];
}

// Sums of the lanes of a part (lib/lanes.wgsl) in a fixed tree, of use to lane 0 only.
// Requires of the importer: all invocations of a workgroup call it once.
#import lib/lanes
struct Sums {
  plain: vec4<f32>,
  moment: vec4<f32>,
}
// #if SHARED
var<workgroup> sh_plain: array<vec4<f32>, WG>;
var<workgroup> sh_moment: array<vec4<f32>, WG>;
// #end

fn sum_lanes(own: Sums, local: u32) -> Sums {
  var total = own;
  // #if SHARED
  sh_plain[local] = total.plain;
  sh_moment[local] = total.moment;
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half * WIDTH) {
      total.plain += sh_plain[local + half * WIDTH];
      total.moment += sh_moment[local + half * WIDTH];
      sh_plain[local] = total.plain;
      sh_moment[local] = total.moment;
    }
  }
  // #end
  return total;
}

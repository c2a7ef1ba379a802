// Moments of the lanes of a part (lib/lanes.wgsl) merged by twos (Chan) in a fixed tree, of use to
// lane 0 only.
// Requires of the importer: all invocations of a workgroup call it once; behind a lane without rows
// there is none with any; means are shifted by one value that is near them.
#import lib/lanes
struct Moments {
  n: f32,          // rows
  mean: vec4<f32>,
  m2: vec4<f32>,   // sum (x - mean)^2
}
// #if SHARED
var<workgroup> sh_n: array<f32, WG>;
var<workgroup> sh_mean: array<vec4<f32>, WG>;
var<workgroup> sh_m2: array<vec4<f32>, WG>;
// #end

fn merge_lanes(own: Moments, local: u32) -> Moments {
  var total = own;
  // #if SHARED
  sh_n[local] = total.n;
  sh_mean[local] = total.mean;
  sh_m2[local] = total.m2;
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half * WIDTH) {
      let other = local + half * WIDTH;
      let rows = sh_n[other];
      if (rows > 0.0) {
        let weight = rows / (total.n + rows);
        let apart = sh_mean[other] - total.mean;
        total.m2 += sh_m2[other] + apart * apart * (total.n * weight);
        total.mean += apart * weight;
        total.n += rows;
        sh_n[local] = total.n;
        sh_mean[local] = total.mean;
        sh_m2[local] = total.m2;
      }
    }
  }
  // #end
  return total;
}

// Antialiased bilinear resampling of packed pixels; ops/augment.rs has the formula.
// Declares the importer's binding 0, the pixels. Requires nothing of the importer.
#import lib/pixel
const IN_W: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> x: array<u32>; // [N, IN_H, IN_W], packed pixels

// Pixel `at` (row, column) of a box of `size` (height, width), resized to `full`; the box begins at
// x[corner]. In [0, 1].
fn resample(corner: u32, size: vec2<f32>, full: vec2<f32>, at: vec2<f32>) -> vec3<f32> {
  let scale = size / full;
  let support = max(scale, vec2<f32>(1.0));
  let centre = (at + 0.5) * scale;
  let first = vec2<u32>(max(centre - support + 0.5, vec2<f32>()));
  let end = vec2<u32>(min(centre + support + 0.5, size));
  var total = vec3<f32>();
  var weights = 0.0;
  for (var v = first.x; v < end.x; v++) {
    let wv = max(0.0, 1.0 - abs(f32(v) + 0.5 - centre.x) / support.x);
    for (var u = first.y; u < end.y; u++) {
      let w = wv * max(0.0, 1.0 - abs(f32(u) + 0.5 - centre.y) / support.y);
      total += w * unpack(x[corner + v * IN_W + u]);
      weights += w;
    }
  }
  return total / weights;
}

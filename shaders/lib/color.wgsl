// Colour jitter of one pixel. Requires nothing of the importer.
const CONTRAST: u32 = 1u; // the one op that needs the whole image

fn grey(v: vec3<f32>) -> f32 {
  return dot(v, vec3<f32>(0.2989, 0.587, 0.114));
}

fn blend(v: vec3<f32>, other: f32, factor: f32) -> vec3<f32> {
  return clamp(factor * v + (1.0 - factor) * other, vec3<f32>(), vec3<f32>(1.0));
}

// HSV without its six cases: channel n = 5, 3, 1 is value - chroma * clamp(min(k, 4 - k), 0, 1), k
// = (n + hue in sixths) mod 6.
fn shift_hue(v: vec3<f32>, turns: f32) -> vec3<f32> {
  let high = max(v.r, max(v.g, v.b));
  let chroma = high - min(v.r, min(v.g, v.b));
  if (chroma == 0.0) { return v; }
  let d = (high - v) / chroma;
  var sixths = 4.0 + d.g - d.r;
  if (high == v.g) { sixths = 2.0 + d.r - d.b; }
  if (high == v.r) { sixths = d.b - d.g; }
  let k = 6.0 * fract((sixths + vec3<f32>(5.0, 3.0, 1.0)) / 6.0 + turns);
  return high - chroma * clamp(min(k, 4.0 - k), vec3<f32>(), vec3<f32>(1.0));
}

// One op of the jitter: 0 brightness, 1 contrast, 2 saturation, 3 hue; mean is the image's mean
// grey before contrast.
fn jitter(op: u32, v: vec3<f32>, factors: vec4<f32>, mean: f32) -> vec3<f32> {
  switch op {
    case 0u: { return blend(v, 0.0, factors.x); }
    case 1u: { return blend(v, mean, factors.y); }
    case 2u: { return blend(v, grey(v), factors.z); }
    default: { return shift_hue(v, factors.w); }
  }
}

// Pixels: unpacking and normalisation. Channel order R, G, B, 0. Requires nothing of the importer.
const MEAN_R: f32 = 0.0; // uniform
const MEAN_G: f32 = 0.0; // uniform
const MEAN_B: f32 = 0.0; // uniform
const STD_R: f32 = 1.0; // uniform
const STD_G: f32 = 1.0; // uniform
const STD_B: f32 = 1.0; // uniform

// R | G << 8 | B << 16, to [0, 1].
fn unpack(pixel: u32) -> vec3<f32> {
  return unpack4x8unorm(pixel).rgb;
}

fn standardize(v: vec3<f32>) -> vec3<f32> {
  return (v - vec3<f32>(MEAN_R, MEAN_G, MEAN_B)) / vec3<f32>(STD_R, STD_G, STD_B);
}

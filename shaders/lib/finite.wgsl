// Infinities and NaN, told by their bits: a compiler may assume that no float is NaN, and max(x, y) may
// lose one. Requires nothing of the importer.

// Neither infinite nor NaN.
fn is_finite(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7F800000u) != 0x7F800000u;
}

fn is_nan(x: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7FFFFFFFu)) > vec4<u32>(0x7F800000u);
}

// The larger; NaN where either is.
fn larger(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
  return select(select(max(x, y), y, is_nan(y)), x, is_nan(x));
}

// Infinities and NaN, told by their bits: a compiler may assume that no float is NaN, and max(x, y)
// may
// lose one. Requires nothing of the importer.
const EXPONENT: u32 = 0x7F800000u;
const QUIET_NAN: u32 = 0x7FC00000u;

// Neither infinite nor NaN.
fn is_finite(x: f32) -> bool {
  return (bitcast<u32>(x) & EXPONENT) != EXPONENT;
}

// Which of these bits are those of an infinity or a NaN.
fn are_not_finite(bits: vec4<u32>) -> vec4<bool> {
  return (bits & vec4<u32>(EXPONENT)) == vec4<u32>(EXPONENT);
}

fn is_nan(x: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7FFFFFFFu)) > vec4<u32>(EXPONENT);
}

// The larger; NaN where either is.
fn larger(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
  return select(select(max(x, y), y, is_nan(y)), x, is_nan(x));
}

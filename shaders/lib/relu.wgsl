// ReLU and its gradient as PyTorch has them: NaN stays NaN, and dy passes where y is NaN. They look
// at
// bits: a compiler may assume that no float is NaN. Requires nothing of the importer.

// From -infinity to -0.
fn is_negative(x: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(x) ^ vec4<u32>(0x80000000u)) <= vec4<u32>(0x7F800000u);
}

// 0 where x < 0, else x.
fn relu(x: vec4<f32>) -> vec4<f32> {
  return select(x, vec4<f32>(), is_negative(x));
}

// 0 where y <= 0, else dy.
fn relu_mask(dy: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
  return select(dy, vec4<f32>(), is_negative(y) | (bitcast<vec4<u32>>(y) == vec4<u32>()));
}

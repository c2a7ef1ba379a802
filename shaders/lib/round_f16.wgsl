// What f32 is as f16, to the nearest, ties to even, by its bits: of a conversion there and back
// NVIDIA's compiler for Vulkan (580.159.04) makes nothing.
// Requires nothing of the importer.

fn round_f16(x: vec4<f32>) -> vec4<f32> {
  let bits = bitcast<vec4<u32>>(x);
  let size = bits & vec4<u32>(0x7FFFFFFFu);
  // 13 of the 23 bits of the fraction go.
  let odd = (size >> vec4<u32>(13u)) & vec4<u32>(1u);
  let normal = (size + vec4<u32>(0x0FFFu) + odd) & vec4<u32>(0xFFFFE000u);
  // From 65520 on it is infinite; NaN stays.
  let large = select(vec4<u32>(0x7F800000u), size, size > vec4<u32>(0x7F800000u));
  // Below 2^-14 it is a multiple of 2^-24.
  let steps = round(min(bitcast<vec4<f32>>(size), vec4<f32>(1.0)) * 16777216.0);
  let small = bitcast<vec4<u32>>(steps * 5.9604644775390625e-8);
  var rounded = select(normal, large, size >= vec4<u32>(0x477FF000u));
  rounded = select(rounded, small, size < vec4<u32>(0x38800000u));
  return bitcast<vec4<f32>>(rounded | (bits & vec4<u32>(0x80000000u)));
}

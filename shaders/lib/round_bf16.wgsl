// What f32 is as bf16, to the nearest, ties to even: its upper half.
// Requires nothing of the importer.

fn round_bf16(x: vec4<f32>) -> vec4<f32> {
  let bits = bitcast<vec4<u32>>(x);
  let odd = (bits >> vec4<u32>(16u)) & vec4<u32>(1u);
  // A carry goes into the exponent, and beyond the largest number to infinity.
  let rounded = (bits + vec4<u32>(0x7FFFu) + odd) & vec4<u32>(0xFFFF0000u);
  let nan = (bits & vec4<u32>(0x7FFFFFFFu)) > vec4<u32>(0x7F800000u);
  return bitcast<vec4<f32>>(select(rounded, bits, nan));
}

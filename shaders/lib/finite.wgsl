// Neither infinite nor NaN, from the exponent bits: comparisons with NaN may be optimised away. Requires nothing of the importer.
fn is_finite(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7F800000u) != 0x7F800000u;
}

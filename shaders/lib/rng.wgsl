// Philox4x32-10, bit-equal to src/rng.rs, where the streams and counters are listed; uniforms and
// Box-Muller normals from its words.
// Use: philox(rng_key(seed_lo, seed_hi, STREAM_…), step, sample, index). Requires nothing of the
// importer.
const STREAM_NOISE: u32 = 4u;
const STREAM_AUGMENT: u32 = 5u;
const STREAM_PROBE: u32 = 6u;

fn rng_key(seed_lo: u32, seed_hi: u32, stream: u32) -> vec2<u32> {
  return vec2<u32>(seed_lo, seed_hi ^ (stream * 0x9E3779B9u));
}

// High word of the 64-bit product, from 16-bit halves; no partial sum overflows: 0xFFFF^2 +
// 2*0xFFFF = 0xFFFFFFFF.
fn mul_high(a: u32, b: u32) -> u32 {
  let a0 = a & 0xFFFFu;
  let a1 = a >> 16u;
  let b0 = b & 0xFFFFu;
  let b1 = b >> 16u;
  let middle = a1 * b0 + ((a0 * b0) >> 16u);
  let carry = a0 * b1 + (middle & 0xFFFFu);
  return a1 * b1 + (middle >> 16u) + (carry >> 16u);
}

fn philox(key: vec2<u32>, step: u32, sample: u32, index: u32) -> vec4<u32> {
  var c = vec4<u32>(step, sample, index, 0u);
  var k = key;
  for (var round = 0u; round < 10u; round++) {
    c = vec4<u32>(
      mul_high(0xCD9E8D57u, c.z) ^ c.y ^ k.x,
      0xCD9E8D57u * c.z,
      mul_high(0xD2511F53u, c.x) ^ c.w ^ k.y,
      0xD2511F53u * c.x,
    );
    k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
  }
  return c;
}

// Uniforms in [0, 1): 24 bits of each word, exact.
fn uniforms(words: vec4<u32>) -> vec4<f32> {
  return vec4<f32>(words >> vec4<u32>(8u)) * 5.9604644775390625e-8; // 2^-24
}

// Standard normals: Box-Muller on words 0, 1 and on words 2, 3. WGSL promises little of log near 1
// and of sin and cos, so those
// parts are polynomials with an error near f32's rounding: every device draws the same noise.
fn normals(words: vec4<u32>) -> vec4<f32> {
  let r = sqrt(2.0 * minus_log(words.xz >> vec2<u32>(8u)));
  let first = direction(words.y >> 8u);
  let second = direction(words.w >> 8u);
  return vec4<f32>(r.x * first, r.y * second);
}

// -ln((bits + 0.5) * 2^-24), bits below 2^24. Above one half -ln(1 - d) = 2 atanh(s), s = d /
// (2 - d) <= 1/3; d is exact.
fn minus_log(bits: vec2<u32>) -> vec2<f32> {
  let u = (vec2<f32>(bits) + vec2<f32>(0.5)) * 5.9604644775390625e-8;
  let d = (vec2<f32>(vec2<u32>(16777216u) - bits) - vec2<f32>(0.5)) * 5.9604644775390625e-8;
  let s = d / (2.0 - d);
  let q = s * s;
  let series = 1.0 + q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * (0.09090909 + q * (0.07692308 + q * 0.06666667))))));
  return select(2.0 * s * series, -log(u), bits < vec2<u32>(8388608u));
}

// (cos, sin) of bits * 2^-24 turns: the nearest quarter turn, exactly, then Taylor polynomials
// within an eighth of a turn.
fn direction(bits: u32) -> vec2<f32> {
  let quarter = (bits + 2097152u) >> 22u;
  let x = f32(i32(bits) - i32(quarter << 22u)) * 3.7450702829e-7; // 2 pi * 2^-24
  let q = x * x;
  let s = x * (1.0 - q * (0.16666667 - q * (0.0083333333 - q * (0.00019841270 - q * 0.0000027557319))));
  let c = 1.0 - q * (0.5 - q * (0.041666667 - q * (0.0013888889 - q * 0.000024801587)));
  let even = select(vec2<f32>(c, s), vec2<f32>(-s, c), (quarter & 1u) == 1u);
  return select(even, -even, (quarter & 2u) == 2u);
}

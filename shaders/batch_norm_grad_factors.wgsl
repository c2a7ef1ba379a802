// dbeta = sum dy, dgamma = rstd * sum dy * (x - mean), and the factors of dx = scale * (dy - level
// - (x - mean) * slope).
// With FROZEN the statistics are constants (level = slope = 0) and spread is the variance, not
// rstd.
// Reads parts [PARTS, 2, C4], gamma, spread [C4]; writes (=) dgamma, dbeta [C4], factors [3, C4]
// (scale, level, slope).
// Grid: ceil(C4 / WIDTH) workgroups, folded; without SHARED, ceil(C4 / WG).
// Reference: ops/batch_norm/grad.rs `BatchNormGrad::reference`.
#import lib/ahead
#import lib/lane_sums
const ROWS: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const PARTS: u32 = 1u; // uniform
const FROZEN: bool = false; // spec
const EPS: f32 = 1e-5; // uniform
@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [PARTS, 2, C4]
@group(0) @binding(1) var<storage, read> gamma: array<vec4<f32>>; // [C4]
@group(0) @binding(2) var<storage, read> spread: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read_write> dgamma: array<vec4<f32>>; // [C4]
@group(0) @binding(4) var<storage, read_write> dbeta: array<vec4<f32>>; // [C4]
@group(0) @binding(5) var<storage, read_write> factors: array<vec4<f32>>; // [3, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = place(group, groups, local, C4);
  let c = min(at.y, C4 - 1u);
  var own: Sums;
  for (var p = at.z; p < PARTS; p += AHEAD * LANES) {
    var plains: array<vec4<f32>, AHEAD>;
    var moments: array<vec4<f32>, AHEAD>;
    for (var i = 0u; i < AHEAD; i++) { // unroll
      let q = min(p + i * LANES, PARTS - 1u);
      plains[i] = parts[2u * q * C4 + c];
      moments[i] = parts[(2u * q + 1u) * C4 + c];
    }
    for (var i = 0u; i < AHEAD; i++) { // unroll
      own.plain += select(vec4<f32>(), plains[i], p + i * LANES < PARTS);
      own.moment += select(vec4<f32>(), moments[i], p + i * LANES < PARTS);
    }
  }
  let total = sum_lanes(own, local);
  if (at.x > 0u || at.y >= C4 || at.z > 0u) { return; }
  var rstd = spread[c];
  // #if FROZEN
  rstd = 1.0 / sqrt(rstd + EPS);
  // #end
  let scaled = rstd * total.moment;
  dbeta[c] = total.plain;
  dgamma[c] = scaled;
  factors[c] = gamma[c] * rstd;
  factors[C4 + c] = select(total.plain / f32(ROWS), vec4<f32>(), FROZEN);
  factors[2u * C4 + c] = select(rstd * (scaled / f32(ROWS)), vec4<f32>(), FROZEN);
}

// Merges the moments of FAN_IN chunks (Chan): mean = sum n_j mean_j / n, M2 = sum M2_j + sum n_j
// (mean_j - mean)^2.
// Reads parts [PARTS, 2, C4], each of SPAN rows (the last one the rest). Not FINAL:
// writes (=) merged [OUT, 2, C4].
// FINAL (OUT = 1): writes (=) mean, rstd [C4] and updates (in place) running_mean, running_var
// [C4].
// Grid: OUT * ceil(C4 / WIDTH) workgroups, folded; without SHARED, ceil(OUT * C4 / WG).
// Reference: ops/batch_norm/mod.rs `BatchNorm::reference`.
#import lib/ahead
#import lib/lane_moments
#import lib/relu
const ROWS: u32 = 2u; // uniform
const C4: u32 = 1u; // uniform
const SPAN: u32 = 1u; // uniform
const FAN_IN: u32 = 2u; // uniform
const EPS: f32 = 1e-5; // uniform
const MOMENTUM: f32 = 0.1; // uniform
const FINAL: bool = true; // spec
const PARTS: u32 = (ROWS + SPAN - 1u) / SPAN;
const OUT: u32 = (PARTS + FAN_IN - 1u) / FAN_IN;
@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [PARTS, 2, C4]
// #if !FINAL
@group(0) @binding(1) var<storage, read_write> merged: array<vec4<f32>>; // [OUT, 2, C4]
// #end
// #if FINAL
@group(0) @binding(1) var<storage, read_write> mean: array<vec4<f32>>; // [C4]
@group(0) @binding(2) var<storage, read_write> rstd: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read_write> running_mean: array<vec4<f32>>; // [C4]
@group(0) @binding(4) var<storage, read_write> running_var: array<vec4<f32>>; // [C4]
// #end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = place(group, groups, local, C4);
  let c = min(at.y, C4 - 1u);
  let first = at.x * FAN_IN + at.z;
  let last = min(at.x * FAN_IN + FAN_IN, PARTS);
  // Shifted by the first mean, as the rows of a chunk are by the first row.
  let shift = parts[2u * min(first, PARTS - 1u) * C4 + c];
  // Lanes merge means that are shifted by the first of all: rounding does not add up.
  var base = shift;
  // #if SHARED
  base = parts[2u * min(at.x * FAN_IN, PARTS - 1u) * C4 + c];
  // #end
  var count = 0u;
  var sum = vec4<f32>();
  var squares = vec4<f32>();
  var m2 = vec4<f32>();
  for (var p = first; p < last; p += AHEAD * LANES) {
    var means: array<vec4<f32>, AHEAD>;
    var spreads: array<vec4<f32>, AHEAD>;
    for (var k = 0u; k < AHEAD; k++) { // unroll
      let q = min(p + k * LANES, last - 1u);
      means[k] = parts[2u * q * C4 + c];
      spreads[k] = parts[(2u * q + 1u) * C4 + c];
    }
    for (var k = 0u; k < AHEAD; k++) { // unroll
      let q = p + k * LANES;
      let rows = select(0u, min((q + 1u) * SPAN, ROWS) - q * SPAN, q < last);
      let d = means[k] - shift;
      let weighted = d * f32(rows);
      count += rows;
      sum += weighted;
      squares += weighted * d;
      m2 += select(vec4<f32>(), spreads[k], q < last);
    }
  }
  let apart = sum / max(f32(count), 1.0);
  m2 += relu(squares - sum * apart); // rounding may leave less than 0; NaN stays
  let total = merge_lanes(Moments(f32(count), (shift - base) + apart, m2), local);
  if (at.x >= OUT || at.y >= C4 || at.z > 0u) { return; }
  let centre = base + total.mean;
  // #if !FINAL
  merged[2u * at.x * C4 + c] = centre;
  merged[(2u * at.x + 1u) * C4 + c] = total.m2;
  // #end
  // #if FINAL
  let n = total.n;
  mean[c] = centre;
  rstd[c] = 1.0 / sqrt(total.m2 / n + EPS);
  running_mean[c] = (1.0 - MOMENTUM) * running_mean[c] + MOMENTUM * centre;
  running_var[c] = (1.0 - MOMENTUM) * running_var[c] + MOMENTUM * (total.m2 / (n - 1.0));
  // #end
}

// Merges the moments of FAN_IN chunks (Chan): mean = sum n_j mean_j / n, M2 = sum M2_j + sum n_j
// (mean_j - mean)^2.
// Reads parts [PARTS, 2, C4], each of SPAN rows (the last one the rest). Not FINAL:
// writes (=) merged [OUT, 2, C4].
// FINAL (OUT = 1): writes (=) mean, rstd [C4] and updates (in place) running_mean, running_var
// [C4].
// Grid: ceil(OUT * C4 / WG) workgroups, folded.
// Reference: ops/batch_norm/mod.rs `BatchNorm::reference`.
#import lib/ahead
#import lib/grid
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
  let i = global_index(group, groups, local);
  if (i >= OUT * C4) { return; }
  let at = divide(i, C4);
  let c = at.y;
  let j = at.x;
  let first = j * FAN_IN;
  let last = min(first + FAN_IN, PARTS);
  let n = f32(min(last * SPAN, ROWS) - first * SPAN);
  // Shifted by the first mean, as the rows of a chunk are by the first row.
  let shift = parts[2u * first * C4 + c];
  var sum = vec4<f32>();
  var squares = vec4<f32>();
  var m2 = vec4<f32>();
  for (var p = first; p < last; p += AHEAD) {
    var means: array<vec4<f32>, AHEAD>;
    var spreads: array<vec4<f32>, AHEAD>;
    for (var k = 0u; k < AHEAD; k++) { // unroll
      let at = min(p + k, last - 1u);
      means[k] = parts[2u * at * C4 + c];
      spreads[k] = parts[(2u * at + 1u) * C4 + c];
    }
    for (var k = 0u; k < AHEAD; k++) { // unroll
      let there = p + k < last;
      let d = means[k] - shift;
      let weighted = d * f32(select(0u, min((p + k + 1u) * SPAN, ROWS) - (p + k) * SPAN, there));
      sum += weighted;
      squares += weighted * d;
      m2 += select(vec4<f32>(), spreads[k], there);
    }
  }
  let centre = shift + sum / n;
  m2 += relu(squares - sum * (sum / n)); // rounding may leave less than 0; NaN stays
  // #if !FINAL
  merged[2u * j * C4 + c] = centre;
  merged[(2u * j + 1u) * C4 + c] = m2;
  // #end
  // #if FINAL
  mean[c] = centre;
  rstd[c] = 1.0 / sqrt(m2 / n + EPS);
  running_mean[c] = (1.0 - MOMENTUM) * running_mean[c] + MOMENTUM * centre;
  running_var[c] = (1.0 - MOMENTUM) * running_var[c] + MOMENTUM * (m2 / (n - 1.0));
  // #end
}

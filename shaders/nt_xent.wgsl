// Row i of VIEWS, with the positive j = (i + VIEWS / 2) mod VIEWS and best the maximum over k != i,
// k < VIEWS:
//   losses[i] = ln sum_{k != i} exp((s[i, k] - best) / T) + (best - s[i, j]) / T;  rows[i] =
//   (best, that sum)
//   hits[i] = 1 where s[i, j] exceeds every other s[i, k]
// Reads s [at least VIEWS, S4]; writes (=) losses, hits, rows [VIEWS]; sum_parts.wgsl adds up the
// first two.
// Grid: VIEWS workgroups, folded; one row per workgroup, a fixed tree over its WG parts.
// Reference: ops/nt_xent.rs `NtXent::reference`.
const WG: u32 = 64u; // spec
const VIEWS: u32 = 2u; // uniform
const T: f32 = 1.0; // uniform
const S4: u32 = 1u; // uniform: stored columns / 4
@group(0) @binding(0) var<storage, read> s: array<f32>; // [at least VIEWS, S4 * 4]
@group(0) @binding(1) var<storage, read_write> losses: array<f32>; // [VIEWS]
@group(0) @binding(2) var<storage, read_write> hits: array<f32>; // [VIEWS]
@group(0) @binding(3) var<storage, read_write> rows: array<vec2<f32>>; // [VIEWS]
var<workgroup> sh_best: array<f32, WG>;
var<workgroup> sh_sums: array<vec2<f32>, WG>; // of exp, of rivals as similar as the positive

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let i = group.y * groups.x + group.x;
  if (i >= VIEWS) { return; }
  let first = i * S4 * 4u;
  let j = (i + VIEWS / 2u) % VIEWS;
  let own = s[first + j];
  var best = own;
  for (var k = local; k < VIEWS; k += WG) { best = select(best, max(best, s[first + k]), k != i); }
  sh_best[local] = best;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_best[local] = max(sh_best[local], sh_best[local + half]); }
  }
  workgroupBarrier();
  best = sh_best[0];
  var sums = vec2<f32>();
  for (var k = local; k < VIEWS; k += WG) {
    if (k != i) {
      let v = s[first + k];
      sums += vec2<f32>(exp((v - best) / T), select(0.0, 1.0, v >= own && k != j));
    }
  }
  sh_sums[local] = sums;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_sums[local] += sh_sums[local + half]; }
  }
  if (local == 0u) {
    let total = sh_sums[0];
    losses[i] = log(total.x) + (best - own) / T;
    hits[i] = select(0.0, 1.0, total.y == 0.0);
    rows[i] = vec2<f32>(best, total.x);
  }
}

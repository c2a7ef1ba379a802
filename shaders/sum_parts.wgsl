// y = SCALE * sum(parts): last stage of every reduction to a scalar, in a fixed tree.
// Reads parts [PARTS]; writes (=) y [1].
// Grid: 1 workgroup; invocation j adds parts j, j + WG, …, then a tree over the WG subtotals.
// Reference: ops/pointwise.rs `Dot::reference`, and that of every other op whose result is a
// scalar.
const WG: u32 = 64u; // spec
const PARTS: u32 = 256u; // uniform
const SCALE: f32 = 1.0; // uniform
@group(0) @binding(0) var<storage, read> parts: array<f32>; // [PARTS]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [1]
var<workgroup> sh_total: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) local: u32) {
  var total = 0.0;
  for (var j = local; j < PARTS; j += WG) { total += parts[j]; }
  sh_total[local] = total;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_total[local] += sh_total[local + half]; }
  }
  if (local == 0u) { y[0] = SCALE * sh_total[0]; }
}

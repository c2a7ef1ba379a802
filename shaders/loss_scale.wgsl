// factor = 1 / scale, NaN where nothing is updated; then scale = scale / 2 if a word of flags is not
// finite, min(2 scale, MOST) after GROWTH steps in which all were.
// Reads flags [COUNT], which is a multiple of 4, and loss [1]; updates (in place) state [3] and
// failed [1]; writes (=) factor [1].
// Grid: 1 workgroup; invocation j reads vec4s j, j + WG, …, then a tree over the WG words.
// Reference: ops/loss_scale.rs `LossScale::reference`.
#import lib/grid
#import lib/finite
const COUNT: u32 = 64u; // uniform
const GROWTH: f32 = 2000.0; // spec: good steps in a row after which the scale doubles
const LEAST: f32 = 1.0; // spec
const MOST: f32 = 16777216.0; // spec
@group(0) @binding(0) var<storage, read> flags: array<vec4<u32>>; // [COUNT / 4], the bits of floats
@group(0) @binding(1) var<storage, read> loss: array<u32>; // [1], the bits of a float
@group(0) @binding(2) var<storage, read_write> state: array<f32>; // [3]: scale, good, skipped
@group(0) @binding(3) var<storage, read_write> failed: array<u32>; // [1], the bits of a float
@group(0) @binding(4) var<storage, read_write> factor: array<u32>; // [1], the bits of a float
var<workgroup> sh_bad: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) local: u32) {
  var bad = vec4<bool>();
  for (var i = local; i < COUNT / 4u; i += WG) { bad = bad | are_not_finite(flags[i]); }
  sh_bad[local] = u32(any(bad));
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (local < half) { sh_bad[local] |= sh_bad[local + half]; }
  }
  if (local == 0u) {
    let overflows = sh_bad[0] == 1u;
    let scale = state[0];
    let fails = any(are_not_finite(vec4<u32>(loss[0], failed[0], 0u, 0u)));
    let fails_now = fails || (overflows && scale <= LEAST);
    failed[0] = select(0u, QUIET_NAN, fails_now);
    // The reciprocal of a power of two by its bits: a division may be rounded.
    factor[0] = select(0x7F000000u - bitcast<u32>(scale), QUIET_NAN, fails_now || overflows);
    if (fails_now) { return; }
    let good = select(state[1] + 1.0, 0.0, overflows);
    let grows = good >= GROWTH;
    state[0] = select(select(scale, min(2.0 * scale, MOST), grows), 0.5 * scale, overflows);
    state[1] = select(good, 0.0, grows);
    state[2] += select(0.0, 1.0, overflows);
  }
}

// ds[i, k] = dloss / (VIEWS T) (exp((s[i, k] - max_i) / T) / sum_i - [k = j]), j = (i + VIEWS / 2)
// mod VIEWS, for i, k < VIEWS and k != i;
// 0 elsewhere.
// Reads dloss [1], s [S, S4], rows [VIEWS] of (max, sum); writes (=) ds [S, S4], S = 4 * S4.
// Grid: ceil(S * S4 / WG) workgroups, folded. Reference: ops/nt_xent.rs `NtXentGrad::reference`.
#import lib/grid
const VIEWS: u32 = 2u; // uniform
const T: f32 = 1.0; // uniform
const S4: u32 = 1u; // uniform: stored columns / 4
@group(0) @binding(0) var<storage, read> dloss: array<f32>; // [1]
@group(0) @binding(1) var<storage, read> s: array<vec4<f32>>; // [S, S4]
@group(0) @binding(2) var<storage, read> rows: array<vec2<f32>>; // [VIEWS]
@group(0) @binding(3) var<storage, read_write> ds: array<vec4<f32>>; // [S, S4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = global_index(group, groups, local);
  if (at >= 4u * S4 * S4) { return; }
  let i = at / S4;
  if (i >= VIEWS) {
    ds[at] = vec4<f32>();
    return;
  }
  let k = vec4<u32>(0u, 1u, 2u, 3u) + at % S4 * 4u;
  let row = rows[i];
  // The diagonal may exceed the maximum, which leaves it out: it must not overflow on its way to
  // being masked.
  let p = exp(min((s[at] - row.x) / T, vec4<f32>())) / row.y;
  let own = select(vec4<f32>(), vec4<f32>(1.0), k == vec4<u32>((i + VIEWS / 2u) % VIEWS));
  let counts = (k < vec4<u32>(VIEWS)) & (k != vec4<u32>(i));
  ds[at] = select(vec4<f32>(), dloss[0] / (f32(VIEWS) * T) * (p - own), counts);
}

// y[n, i, j, c] = max of x[n, p, q, c] over |p - 2i| <= 1, |q - 2j| <= 1 inside the image; NaN if
// one is.
// Reads x [N, H, W, C4]; writes (=) y [N, OH, OW, C4].
// Grid: ceil(N * OH * OW * C4 / WG) workgroups, folded.
// Reference: ops/pool.rs `MaxPool2d::reference`.
#import lib/grid
#import lib/finite
const N: u32 = 1u; // uniform
const H: u32 = 1u; // uniform
const W: u32 = 1u; // uniform
const C4: u32 = 1u; // uniform
const OH: u32 = (H + 1u) / 2u;
const OW: u32 = (W + 1u) / 2u;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N, H, W, C4]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [N, OH, OW, C4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let at = global_index(group, groups, local);
  if (at >= N * OH * OW * C4) { return; }
  let c = at % C4;
  let j = at / C4 % OW;
  let i = at / (C4 * OW) % OH;
  let n = at / (C4 * OW * OH);
  var top = x[((n * H + 2u * i) * W + 2u * j) * C4 + c];
  // max(2i, 1) - 1 is max(2i - 1, 0) without going below zero.
  for (var p = max(2u * i, 1u) - 1u; p < min(2u * i + 2u, H); p++) {
    for (var q = max(2u * j, 1u) - 1u; q < min(2u * j + 2u, W); q++) { top = larger(top, x[((n * H + p) * W + q) * C4 + c]); }
  }
  y[at] = top;
}

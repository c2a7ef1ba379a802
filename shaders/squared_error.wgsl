// parts[j] = sum of (a[i] - b[i])^2 over the channels of the vec4s i = j, j + PARTS, …: first
// stage, fixed order.
// Reads a, b [LEN4]; writes (=) parts [PARTS]; sum_parts.wgsl adds them up.
// Grid: ceil(PARTS / WG) workgroups. Reference: ops/mse.rs `Mse::reference`.
#import lib/grid
#import lib/channels
const LEN4: u32 = 1u; // uniform
const PARTS: u32 = 1u; // uniform
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [LEN4]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [LEN4]
@group(0) @binding(2) var<storage, read_write> parts: array<f32>; // [PARTS]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let j = global_index(group, groups, local);
  if (j >= PARTS) { return; }
  var total = vec4<f32>();
  for (var i = j; i < LEN4; i += PARTS) {
    let d = select(vec4<f32>(), a[i] - b[i], is_channel(i));
    total += d * d;
  }
  parts[j] = (total.x + total.y) + (total.z + total.w);
}

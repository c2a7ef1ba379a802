// y_k = x_k for each of the pairs 0 to 7 that are present: weights of several layers, which become
// 16-bit floats where y_k holds such.
//   A workgroup takes SPAN vec4s of one pair: pair k has the workgroups from END_(k-1) on that lie
//   before END_k.
// Reads x0 [LEN0], x1 [LEN1], x2 [LEN2], x3 [LEN3], x4 [LEN4], x5 [LEN5], x6 [LEN6], x7 [LEN7];
// writes (=) y0, y1, y2, y3, y4, y5, y6, y7, of the same lengths.
// Grid: ceil(LEN_k / SPAN) workgroups for each pair, folded; invocation j takes vec4s j, j + WG, …
// of its workgroup's. Reference: ops/cast.rs `Cast::reference`.
#import lib/grid
const EACH: u32 = 4u; // spec: vec4s of an invocation
const SPAN: u32 = EACH * WG;
const PAIR1: bool = false; // spec
const PAIR2: bool = false; // spec
const PAIR3: bool = false; // spec
const PAIR4: bool = false; // spec
const PAIR5: bool = false; // spec
const PAIR6: bool = false; // spec
const PAIR7: bool = false; // spec
const LEN0: u32 = 1u; // uniform
const LEN1: u32 = 0u; // uniform
const LEN2: u32 = 0u; // uniform
const LEN3: u32 = 0u; // uniform
const LEN4: u32 = 0u; // uniform
const LEN5: u32 = 0u; // uniform
const LEN6: u32 = 0u; // uniform
const LEN7: u32 = 0u; // uniform
const END0: u32 = (LEN0 + SPAN - 1u) / SPAN;
const END1: u32 = END0 + (LEN1 + SPAN - 1u) / SPAN;
const END2: u32 = END1 + (LEN2 + SPAN - 1u) / SPAN;
const END3: u32 = END2 + (LEN3 + SPAN - 1u) / SPAN;
const END4: u32 = END3 + (LEN4 + SPAN - 1u) / SPAN;
const END5: u32 = END4 + (LEN5 + SPAN - 1u) / SPAN;
const END6: u32 = END5 + (LEN6 + SPAN - 1u) / SPAN;
const END7: u32 = END6 + (LEN7 + SPAN - 1u) / SPAN;
@group(0) @binding(0) var<storage, read> x0: array<vec4<f32>>; // [LEN0]
@group(0) @binding(1) var<storage, read_write> y0: array<vec4<f32>>; // [LEN0]
// #if PAIR1
@group(0) @binding(2) var<storage, read> x1: array<vec4<f32>>; // [LEN1]
@group(0) @binding(3) var<storage, read_write> y1: array<vec4<f32>>; // [LEN1]
// #end
// #if PAIR2
@group(0) @binding(4) var<storage, read> x2: array<vec4<f32>>; // [LEN2]
@group(0) @binding(5) var<storage, read_write> y2: array<vec4<f32>>; // [LEN2]
// #end
// #if PAIR3
@group(0) @binding(6) var<storage, read> x3: array<vec4<f32>>; // [LEN3]
@group(0) @binding(7) var<storage, read_write> y3: array<vec4<f32>>; // [LEN3]
// #end
// #if PAIR4
@group(0) @binding(8) var<storage, read> x4: array<vec4<f32>>; // [LEN4]
@group(0) @binding(9) var<storage, read_write> y4: array<vec4<f32>>; // [LEN4]
// #end
// #if PAIR5
@group(0) @binding(10) var<storage, read> x5: array<vec4<f32>>; // [LEN5]
@group(0) @binding(11) var<storage, read_write> y5: array<vec4<f32>>; // [LEN5]
// #end
// #if PAIR6
@group(0) @binding(12) var<storage, read> x6: array<vec4<f32>>; // [LEN6]
@group(0) @binding(13) var<storage, read_write> y6: array<vec4<f32>>; // [LEN6]
// #end
// #if PAIR7
@group(0) @binding(14) var<storage, read> x7: array<vec4<f32>>; // [LEN7]
@group(0) @binding(15) var<storage, read_write> y7: array<vec4<f32>>; // [LEN7]
// #end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let g = group.y * groups.x + group.x;
  // All loads of an invocation are under way before the first store.
  var v: array<vec4<f32>, EACH>;
  if (g < END0) {
    let i = g * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x0[min(i + j * WG, LEN0 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN0) {
        y0[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #if PAIR1
  if (g < END1) {
    let i = (g - END0) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x1[min(i + j * WG, LEN1 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN1) {
        y1[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
  // #if PAIR2
  if (g < END2) {
    let i = (g - END1) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x2[min(i + j * WG, LEN2 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN2) {
        y2[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
  // #if PAIR3
  if (g < END3) {
    let i = (g - END2) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x3[min(i + j * WG, LEN3 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN3) {
        y3[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
  // #if PAIR4
  if (g < END4) {
    let i = (g - END3) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x4[min(i + j * WG, LEN4 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN4) {
        y4[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
  // #if PAIR5
  if (g < END5) {
    let i = (g - END4) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x5[min(i + j * WG, LEN5 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN5) {
        y5[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
  // #if PAIR6
  if (g < END6) {
    let i = (g - END5) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x6[min(i + j * WG, LEN6 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN6) {
        y6[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
  // #if PAIR7
  if (g < END7) {
    let i = (g - END6) * SPAN + local;
    for (var j = 0u; j < EACH; j++) { // unroll
      v[j] = x7[min(i + j * WG, LEN7 - 1u)];
    }
    for (var j = 0u; j < EACH; j++) { // unroll
      if (i + j * WG < LEN7) {
        y7[i + j * WG] = v[j];
      }
    }
    return;
  }
  // #end
}

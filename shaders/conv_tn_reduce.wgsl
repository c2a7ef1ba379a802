// Second stage of a weight gradient: the split sums in a fixed order.
//   dw[i] = sum_s partial[s, i],  s = 0, 1, .. SPLIT - 1
// Reads partial [SPLIT, LEN]; writes (=) dw [LEN]. LEN is a multiple of 4.
// Grid: ceil(LEN4 / WG) groups, folded as (GRID_X, rest); one vec4 per invocation.

const LEN: u32 = 2304u; // spec: OC * KH * KW * C
const SPLIT: u32 = 8u; // spec
const WG: u32 = 64u; // spec

const LEN4: u32 = LEN / 4u;
const GRID_X: u32 = min((LEN4 + WG - 1u) / WG, 32768u);

@group(0) @binding(0) var<storage, read> partial: array<vec4<f32>>; // [SPLIT, LEN4]
@group(0) @binding(1) var<storage, read_write> dw: array<vec4<f32>>; // [LEN4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * GRID_X + group.x) * WG + local;
    if (i >= LEN4) {
        return;
    }
    var sum = partial[i];
    for (var s = 1u; s < SPLIT; s++) {
        sum += partial[s * LEN4 + i];
    }
    dw[i] = sum;
}

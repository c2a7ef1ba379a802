// Second stage of a weight gradient: the split sums in a fixed order.
//   dw[i] = sum_s partial[s, i],  s = 0, 1, .. SPLIT - 1;  with BIAS, db[i] = sum_s sums[s, i]
// Reads partial [SPLIT, LEN4] and sums [SPLIT, OC4]; writes (=) dw [LEN4] and db [OC4].
// LANES invocations share a vec4: lane l adds s = l, l + LANES, .., then the first adds the lanes.
// Grid: ceil((LEN4 + OC4) * LANES / WG) workgroups, folded. Without BIAS, OC4 is 0.
// Reference: ops/conv2d/mod.rs `Conv2dWeightGrad::reference`.
#import lib/ahead
#import lib/grid
const LEN4: u32 = 576u; // uniform: OC * KH * KW * IC / 4
const OC4: u32 = 0u; // uniform
const SPLIT: u32 = 8u; // uniform
const LANES: u32 = 1u; // spec: divides WG
const SHARED: bool = false; // spec: LANES > 1
const BIAS: bool = false; // spec
const COLUMNS: u32 = WG / LANES; // vec4s of a workgroup, neighbours of which are read together

@group(0) @binding(0) var<storage, read> partial: array<vec4<f32>>; // [SPLIT, LEN4]
@group(0) @binding(1) var<storage, read_write> dw: array<vec4<f32>>; // [LEN4]
// #if BIAS
@group(0) @binding(2) var<storage, read> sums: array<vec4<f32>>; // [SPLIT, OC4]
@group(0) @binding(3) var<storage, read_write> db: array<vec4<f32>>; // [OC4]
// #end

// #if SHARED
var<workgroup> sh_sum: array<vec4<f32>, WG>; // [LANES, COLUMNS]
// #end

// Part s of vec4 i, of dw or behind it of db.
fn part(s: u32, i: u32) -> vec4<f32> {
    // #if BIAS
    if (i >= LEN4) {
        return sums[s * OC4 + i - LEN4];
    }
    // #end
    return partial[s * LEN4 + i];
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local / COLUMNS;
    let i = (group.y * groups.x + group.x) * COLUMNS + local % COLUMNS;
    let inside = i < LEN4 + OC4;
    let at = select(0u, i, inside);
    var sum = vec4<f32>();
    for (var first = lane; first < SPLIT; first += LANES * AHEAD) {
        var parts: array<vec4<f32>, AHEAD>;
        for (var k = 0u; k < AHEAD; k++) { // unroll
            parts[k] = part(min(first + k * LANES, SPLIT - 1u), at);
        }
        for (var k = 0u; k < AHEAD; k++) { // unroll
            sum += select(vec4<f32>(), parts[k], first + k * LANES < SPLIT);
        }
    }
    // #if SHARED
    sh_sum[local] = sum;
    workgroupBarrier();
    for (var l = 1u; l < LANES; l++) {
        sum += sh_sum[l * COLUMNS + local % COLUMNS];
    }
    // #end
    if (inside && lane == 0u) {
        // #if BIAS
        if (i >= LEN4) {
            db[i - LEN4] = sum;
            return;
        }
        // #end
        dw[i] = sum;
    }
}

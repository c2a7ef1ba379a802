// Weights of a 3x3 convolution as those of a transposed 4x4 one of half the image, and the adjoint.
//   SIDE 3, PHASED 4: v[c, a, b, o]  = sum of w[o, i, j, c] over 2-a <= i <= 3-a, 2-b <= j <= 3-b
//   SIDE 4, PHASED 3: dw[o, i, j, c] = sum of dv[c, a, b, o] over 2-i <= a <= 3-i, 2-j <= b <= 3-j
// Reads w [FROM, SIDE, SIDE, TO]; writes (=) v [TO, PHASED, PHASED, FROM4]. FROM is a multiple of
// 4.
// Grid: ceil(TO * PHASED * PHASED * FROM4 / WG) workgroups, folded; one vec4 of v per invocation.
// Reference: ops/phase_weights.rs `PhaseWeights::reference`, `PhaseWeightsGrad::reference`.
#import lib/grid
const FROM: u32 = 16u; // uniform
const TO: u32 = 16u; // uniform
const SIDE: u32 = 3u; // uniform
const PHASED: u32 = 4u; // uniform

const FROM4: u32 = FROM / 4u;

@group(0) @binding(0) var<storage, read> w: array<f32>; // [FROM, SIDE, SIDE, TO]
@group(0) @binding(1) var<storage, read_write> v: array<vec4<f32>>; // [TO, PHASED, PHASED, FROM4]

// The first and the last weight of a side that are added to one of the other.
fn added(at: u32) -> vec2<u32> {
    return vec2<u32>(2u - min(at, 2u), min(3u - at, SIDE - 1u));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = global_index(group, groups, local);
    if (at >= TO * PHASED * PHASED * FROM4) {
        return;
    }
    let place = divide(at, FROM4); // channel and tap of v, vec4 of its last channel
    let line = divide(place.x, PHASED); // channel and row, column
    let channel = divide(line.x, PHASED); // channel, row
    let rows = added(channel.y);
    let columns = added(line.y);
    let stride = SIDE * SIDE * TO;
    var sum = vec4<f32>();
    for (var i = rows.x; i <= rows.y; i++) {
        for (var j = columns.x; j <= columns.y; j++) {
            let first = place.y * 4u * stride + (i * SIDE + j) * TO + channel.x;
            let low = vec2<f32>(w[first], w[first + stride]);
            let high = vec2<f32>(w[first + 2u * stride], w[first + 3u * stride]);
            sum += vec4<f32>(low, high);
        }
    }
    v[at] = sum;
}

// What conv_nt_coop and conv_nt_async find out about every SPAN pixels of their results: moments,
// or what the gradient of a batch norm sums. A lane counts what it has finished, lanes meet in sh_y.
// Requires M, OC4 and CLASSES of the importer.
#import lib/coop
#import lib/epilogue4
// #if WITH_PARTS
const PARTS: u32 = CLASSES * CLASSES * ((M + SPAN - 1u) / SPAN);
const HEIGHT: u32 = min(SG / STRIP4, T); // lanes on top of each other; each has every HEIGHTth pixel
const PART: u32 = SPAN / WM; // subgroups on top of each other whose pixels are a part
// #end
// #if MOMENTS

// The results of a lane in a strip of columns, shifted by the first of them.
struct Lane {
    shift: vec4<f32>,
    sum: vec4<f32>,
    squares: vec4<f32>,
}

// How many pixels a lane has of the subgroup's, which begin at `top`: those from top + h on, HEIGHT
// apart.
fn pixels_of(top: u32, h: u32) -> u32 {
    let end = min(top + WM, M);
    return select(0u, (end - top - h + HEIGHT - 1u) / HEIGHT, top + h < end);
}

// Counts a result of strip `s`; the first pixel of a lane comes first.
fn count(lanes: ptr<function, array<Lane, STRIPS>>, s: u32, v: vec4<f32>, first: bool) {
    if (first) {
        (*lanes)[s].shift = v;
        return;
    }
    let d = v - (*lanes)[s].shift;
    (*lanes)[s].sum += d;
    (*lanes)[s].squares += d * d;
}

// The mean and M2 of a lane's results.
fn meet(lane: Lane, m0: u32, local: u32) {
    let pixels = pixels_of(m0 + local / SG / BESIDE * WM, local % SG / STRIP4);
    let mean = lane.sum / f32(max(pixels, 1u));
    sh_y[local * 2u] = lane.shift + mean;
    sh_y[local * 2u + 1u] = relu(lane.squares - lane.sum * mean); // NaN stays
}
// #end
// #if SUMS

// The sums of y and of y * (norm_x - norm_mean) of a lane in a strip of columns.
struct Lane {
    plain: vec4<f32>,
    moment: vec4<f32>,
}

// Those of a lane; one that has no pixel has zeros.
fn meet(lane: Lane, m0: u32, local: u32) {
    sh_y[local * 2u] = lane.plain;
    sh_y[local * 2u + 1u] = lane.moment;
}
// #end
// #if WITH_PARTS

// Writes the columns from `n` on of each subgroup: moments of the lanes on top of each other,
// merged as batch_norm_merge does it, or their sums, added.
fn merge(m0: u32, n0: u32, n: u32, parity: u32, local: u32) {
    let c = local % STRIP4;
    let b = local / STRIP4 % BESIDE;
    let p = local / (STRIP4 * BESIDE);
    let col = (n0 + b * WN + n) / 4u + c;
    let first = m0 + p * SPAN;
    if (p >= BM / SPAN || col >= OC4 || first >= M) {
        return;
    }
    // #if MOMENTS
    var shift = vec4<f32>();
    var sum = vec4<f32>();
    var squares = vec4<f32>();
    var m2 = vec4<f32>();
    for (var i = 0u; i < PART * HEIGHT; i++) {
        let h = i % HEIGHT;
        let pixels = pixels_of(first + i / HEIGHT * WM, h);
        let at = (((p * PART + i / HEIGHT) * BESIDE + b) * SG + h * STRIP4 + c) * 2u;
        if (pixels > 0u) {
            shift = select(shift, sh_y[at], i == 0u);
            let d = sh_y[at] - shift;
            sum += f32(pixels) * d;
            squares += f32(pixels) * d * d;
            m2 += sh_y[at + 1u];
        }
    }
    let mean = sum / f32(min(SPAN, M - first));
    // #end
    // #if SUMS
    var plain = vec4<f32>();
    var moment = vec4<f32>();
    for (var i = 0u; i < PART * HEIGHT; i++) {
        let at = (((p * PART + i / HEIGHT) * BESIDE + b) * SG + i % HEIGHT * STRIP4 + c) * 2u;
        plain += sh_y[at];
        moment += sh_y[at + 1u];
    }
    // #end
    let part = parity * (PARTS / (CLASSES * CLASSES)) + first / SPAN;
    // #if MOMENTS
    parts[part * 2u * OC4 + col] = shift + mean;
    parts[(part * 2u + 1u) * OC4 + col] = m2 + relu(squares - sum * mean); // NaN stays
    // #end
    // #if SUMS
    parts[part * 2u * OC4 + col] = plain;
    parts[(part * 2u + 1u) * OC4 + col] = moment;
    // #end
}
// #end

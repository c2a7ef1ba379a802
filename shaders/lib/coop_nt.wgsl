// A forward-type product by cooperative matrices: which pixels and taps there are, and the way out
// of its sums.
// Requires nothing of the importer.
#import lib/coop
#import lib/conv_nt
#import lib/epilogue4
#import lib/coop_parts
const PIECE4: u32 = 1u; // spec: vec4s that an invocation fetches at once

const OC4: u32 = OC / 4u;
const OWC: u32 = (OW + CLASSES - 1u) / CLASSES; // columns of one parity
const M: u32 = N * OHC * OWC;
const TAPS_Y: u32 = (KH + CLASSES - 1u) / CLASSES; // of one parity, at most; below 16
const TAPS_X: u32 = (KW + CLASSES - 1u) / CLASSES;
const K4: u32 = BK / 4u;
const ROWS: u32 = WG / (K4 / PIECE4); // rows of a tile that the group fetches at once
const LOADS_A: u32 = (BM + ROWS - 1u) / ROWS; // at most 32
const ALIGNED: bool = IC4 % K4 == 0u; // no tile holds two taps
const NEVER: u32 = 0x80000000u; // a tap that no pixel has

// The taps of this group's parity: kh = kh0 + CLASSES * row, kw = kw0 + CLASSES * column.
struct Taps {
    kh0: u32,
    kw0: u32,
    columns: u32,
    tiles: u32, // of all taps and channels
    depth: u32, // the same in vec4s
    n0: u32, // the group's first output channel
}

// The pixels that an invocation fetches, from `m0` on: where their tap (0, 0) is in x, and, as bits
// `row` and 16 + `column`, which taps lie inside the image.
fn pixels(
    m0: u32,
    py: u32,
    px: u32,
    taps: Taps,
    first: ptr<function, array<u32, LOADS_A>>,
    seen: ptr<function, array<u32, LOADS_A>>,
) {
    for (var i = 0u; i < LOADS_A; i++) { // unroll
        let m = m0 + i * ROWS;
        let top = coordinate(shifted(first_tap(m / OWC % OHC * CLASSES + py), taps.kh0));
        let left = coordinate(shifted(first_tap(m % OWC * CLASSES + px), taps.kw0));
        var inside = 0u;
        for (var r = 0u; r < TAPS_Y; r++) {
            let iy = u32(select(top + i32(r), top - i32(r), TRANSPOSED)); // wraps below zero
            inside |= select(0u, 1u << r, iy < IH);
        }
        for (var c = 0u; c < TAPS_X; c++) {
            let ix = u32(select(left + i32(c), left - i32(c), TRANSPOSED));
            inside |= select(0u, 65536u << c, ix < IW);
        }
        let line = m / (OHC * OWC) * IH;
        (*first)[i] = ((line + u32(top)) * IW + u32(left)) * IC4; // may wrap
        (*seen)[i] = select(0u, inside, m < M);
    }
}

// Those of a parity, for a group whose output channels begin at n0.
fn taps_of(py: u32, px: u32, n0: u32) -> Taps {
    var taps: Taps;
    taps.kh0 = (py + PAD) % CLASSES;
    taps.kw0 = (px + PAD) % CLASSES;
    taps.columns = (KW + CLASSES - 1u - taps.kw0) / CLASSES;
    taps.depth = taps.columns * ((KH + CLASSES - 1u - taps.kh0) / CLASSES) * IC4;
    taps.tiles = (taps.depth + K4 - 1u) / K4;
    taps.n0 = n0;
    return taps;
}

const NOWHERE: u32 = 0xffffffffu; // a result that is not there

// Writes strip `s` of the subgroups' results, from pixel `m` of each on. What the results meet is
// loaded before the first of them is needed.
fn finish(
    // #if WITH_PARTS
    lanes: ptr<function, array<Lane, STRIPS>>,
    // #end
    m0: u32,
    n0: u32,
    py: u32,
    px: u32,
    m: u32,
    s: u32,
    local: u32,
) {
    let subgroup = local / SG;
    var places: array<u32, PIECES>;
    var others: array<Beside, PIECES>;
    for (var i = 0u; i < PIECES; i++) { // unroll
        let e = local % SG + i * SG;
        let pixel = m0 + subgroup / BESIDE * WM + m + e / STRIP4;
        let col = (n0 + subgroup % BESIDE * WN) / 4u + s * STRIP4 + e % STRIP4;
        let oy = pixel / OWC % OHC * CLASSES + py;
        let ox = pixel % OWC * CLASSES + px;
        let whole = T * STRIP4 % SG == 0u || e < T * STRIP4;
        let here = whole && pixel < M && oy < OH && ox < OW && col < OC4;
        let strided = (pixel / (OHC * OWC) * OH + oy) * OW + ox;
        let index = select(strided, pixel, CLASSES == 1u) * OC4 + col;
        places[i] = select(NOWHERE, index, here);
        others[i] = beside(select(0u, index, here));
    }
    for (var i = 0u; i < PIECES; i++) { // unroll
        let e = local % SG + i * SG;
        let col = (n0 + subgroup % BESIDE * WN) / 4u + s * STRIP4 + e % STRIP4;
        if (places[i] != NOWHERE) {
            let sum = sh_y[(subgroup * T + e / STRIP4) * SY + e % STRIP4];
            let v = epilogue(sum, others[i], col);
            y[places[i]] = v;
            // #if MOMENTS
            count(lanes, s, stored(v), m == 0u && i == 0u);
            // #end
            // #if SUMS
            let g = stored(v);
            (*lanes)[s].plain += g;
            (*lanes)[s].moment += g * (others[i].norm_x - norm_mean[col]);
            // #end
        }
    }
}

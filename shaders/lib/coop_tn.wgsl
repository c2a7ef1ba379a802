// A weight gradient by cooperative matrices: its chunks of pixels, and the way out of its sums.
// Requires nothing of the importer.
#import lib/coop
#import lib/conv_tn
const COLS4: u32 = KH * KW * IC4;
const PIXELS: u32 = N * OH * OW;
const CHUNK: u32 = (PIXELS + SPLIT - 1u) / SPLIT;

// Writes a strip of the subgroups' results, from channel `m` and column `n` of each on.
fn finish(group: vec3<u32>, m: u32, n: u32, local: u32) {
    let subgroup = local / SG;
    for (var i = 0u; i < PIECES; i++) {
        let e = local % SG + i * SG;
        let co = group.y * BM + subgroup / BESIDE * WM + m + e / STRIP4;
        let col = (group.x * BN + subgroup % BESIDE * WN + n) / 4u + e % STRIP4;
        let whole = T * STRIP4 % SG == 0u || e < T * STRIP4;
        if (whole && co < OC && col < COLS4) {
            let at = (subgroup * T + e / STRIP4) * SY + e % STRIP4;
            partial[(group.z * OC + co) * COLS4 + col] = sh_y[at];
        }
    }
}

use super::super::winograd_weight::weight_gradient;
use super::*;

/// Noise between -1 and 1 around a mean.
fn noise(len: usize, seed: u32, mean: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        mean + (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// `y`, `dx` and `dw` by every product, in f64.
fn direct(g: &Geometry, x: &[f32], w: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
    let mut sums = [dy, x, w].map(|like| vec![0.0; like.len()]);
    for (row, taps) in (0..g.n * g.oh).flat_map(|row| (0..9).map(move |taps| (row, taps))) {
        for ox in 0..g.ow {
            let (y, x_) =
                ((row % g.oh + taps / 3).wrapping_sub(1), (ox + taps % 3).wrapping_sub(1));
            if y >= g.ih || x_ >= g.iw {
                continue;
            }
            let to = (row * g.ow + ox) * g.oc;
            let from = ((row / g.oh * g.ih + y) * g.iw + x_) * g.c;
            for o in 0..g.oc {
                for c in 0..g.c {
                    let at = (o * 9 + taps) * g.c + c;
                    let [x, w, dy] = [x[from + c], w[at], dy[to + o]].map(f64::from);
                    sums[0][to + o] += x * w;
                    sums[1][from + c] += dy * w;
                    sums[2][at] += dy * x;
                }
            }
        }
    }
    sums
}

/// Largest error, over that of rounding a sum of so many terms at its largest.
fn error(got: &[f32], want: &[f64], terms: usize) -> f64 {
    let largest = |x: &mut dyn Iterator<Item = f64>| x.fold(0.0, |a, b| if b <= a { a } else { b });
    let error = largest(&mut got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()));
    let scale = largest(&mut want.iter().map(|w| w.abs()));
    error / (f64::from(f32::EPSILON) * (terms as f64).sqrt() * scale)
}

#[test]
fn agrees_with_direct_sums() {
    // Sizes that cut tiles, channels that fill no vector or block, one image and several a task.
    for [n, h, w, c, oc] in
        [[3, 7, 10, 20, 36], [9, 3, 4, 16, 16], [1, 13, 8, 68, 132], [2, 33, 5, 32, 64]]
    {
        let g = Geometry { n, ih: h, iw: w, c, oh: h, ow: w, oc, k: 3, stride: 1, pad: 1 };
        for mean in [0.0, 30.0] {
            let x = noise(n * h * w * c, 1, mean);
            let (weights, dy) = (noise(oc * 9 * c, 2, 0.0), noise(n * h * w * oc, 3, mean));
            let [y, dx, dw] = direct(&g, &x, &weights, &dy);
            let (mut got, mut again) = (vec![0.0; y.len()], vec![f32::NAN; y.len()]);
            let close = |got: &[f32], want: &[f64], terms: usize, what: &str| {
                let error = error(got, want, terms);
                assert!(error < 1.0, "{what} of {g:?} around {mean}: {error} of the tolerance");
            };
            let [source, result] = Strips::of(&g);
            let weight = |o: usize, tap: usize, i: usize| weights[(o * 9 + tap) * c + i];
            let convolution = Convolution::new(source, result, weight, Tail::default(), &x);
            convolution.by_tiles(&mut got);
            convolution.by_weights(&mut again);
            close(&got, &y, 9 * c, "result");
            assert!(got == again, "the order of sums is that of the shape alone");
            let mut got = vec![f32::NAN; dx.len()];
            input_gradient(&g, &dy, &weights, Tail::default(), &mut got);
            close(&got, &dx, 9 * oc, "input gradient");
            let mut got = vec![f32::NAN; dw.len()];
            weight_gradient(&g, &x, &dy, &mut got);
            close(&got, &dw, n * h * w, "weight gradient");
        }
    }
}

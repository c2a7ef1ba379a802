//! Convolutions of the `cpu` device. Output pixels x output channels are tiled in registers (`R` pixels by `V` vectors); the source
//! image is copied into a zero border once, so that no tap needs a bounds test, and the products of one kernel row are one
//! contiguous run of `Kw * C` source elements. The three passes share two loops: [`Gather`] (forward, and the input gradient as
//! `stride^2` parity classes) and [`Outer`] (weight gradient).
//!
//! Measured against im2col and a GEMM crate on the layers of the width-16 network, this is what brings the step to PyTorch's speed
//! (`shaders/README.md` has the numbers).
//!
//! The order of every sum depends on shapes only: results do not depend on the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// One convolution: `x [n, ih, iw, c]`, `y [n, oh, ow, oc]`, `w [oc, k, k, c]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) n: usize,
    pub(super) ih: usize,
    pub(super) iw: usize,
    pub(super) c: usize,
    pub(super) oh: usize,
    pub(super) ow: usize,
    pub(super) oc: usize,
    pub(super) k: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
}

/// Pixels per task when a 1x1 convolution is cut as a matrix product.
const ROWS: usize = 256;
/// Partial sums of a weight gradient: fixed, so that the summation order is.
const PARTIALS: usize = 8;

impl Geometry {
    /// A 1x1 convolution of stride 1 sees no neighbours: its pixels are the rows of one matrix.
    fn is_matrix(&self) -> bool {
        self.k == 1 && self.stride == 1 && self.pad == 0
    }
}

/// What is done to a finished output, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail<'a> {
    pub(super) bias: Option<&'a [f32]>,
    pub(super) add: Option<&'a [f32]>,
    pub(super) relu: bool,
    pub(super) mask: Option<&'a [f32]>,
}

impl<'a> Tail<'a> {
    fn slice(self, at: usize, len: usize) -> Self {
        let cut = |x: Option<&'a [f32]>| x.map(|x| &x[at..at + len]);
        Self { add: cut(self.add), mask: cut(self.mask), ..self }
    }
    fn apply(&self, y: &mut [f32]) {
        if let Some(add) = self.add {
            y.iter_mut().zip(add).for_each(|(y, a)| *y += a);
        }
        if self.relu {
            y.iter_mut().for_each(|y| *y = y.max(0.0));
        }
        if let Some(mask) = self.mask {
            y.iter_mut().zip(mask).for_each(|(y, m)| *y = if *m > 0.0 { *y } else { 0.0 });
        }
    }
}

/// One family of output pixels of an image, all with the same taps: pixel `(a, b)` of the family is output pixel
/// `(y0 + a * step, x0 + b * step)` and reads source rows `a * rows + row_at + t`, columns from `b * cols + col_at`, `run` elements each.
struct Class {
    h: usize,
    w: usize,
    y0: usize,
    x0: usize,
    step: usize,
    rows: usize,
    cols: usize,
    row_at: usize,
    col_at: usize,
    taps: usize,
    run: usize,
    /// `[block of V vectors][tap][run][V * lanes]`.
    weights: Vec<f32>,
}

/// Border around the source image, in pixels: before and after, the same for rows and columns.
#[derive(Clone, Copy)]
struct Border {
    before: usize,
    after: usize,
}

struct Gather<'a> {
    src: &'a [f32],
    src_w: usize,
    c: usize,
    classes: &'a [Class],
    bias: &'a [f32],
    out: &'a mut [f32],
    out_w: usize,
    oc: usize,
}

#[inline(always)]
fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// Vectors per register tile for `channels` output channels.
fn vectors(channels: usize, lanes: usize) -> usize {
    if channels.div_ceil(lanes).is_multiple_of(2) { 2 } else { 1 }
}

impl WithSimd for Gather<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if vectors(self.oc, S::F32_LANES) == 2 { self.image::<S, 2>(simd) } else { self.image::<S, 1>(simd) }
    }
}

impl Gather<'_> {
    #[inline(always)]
    fn image<S: Simd, const V: usize>(mut self, simd: S) {
        let width = V * S::F32_LANES;
        let classes = self.classes;
        for class in classes {
            let block_len = class.taps * class.run * width;
            for block in 0..self.oc.div_ceil(width) {
                let weights = S::as_simd_f32s(&class.weights[block * block_len..][..block_len]).0;
                let bias = S::as_simd_f32s(&self.bias[block * width..][..width]).0;
                for a in 0..class.h {
                    let mut b = 0;
                    while b < class.w {
                        let left = class.w - b;
                        let wide = S::F32_LANES >= 16;
                        b += if V == 1 && wide && left >= 16 {
                            self.tile::<S, 16, V>(simd, class, weights, bias, block, a, b)
                        } else if left >= 8 && (V == 1 || wide) {
                            self.tile::<S, 8, V>(simd, class, weights, bias, block, a, b)
                        } else if left >= 4 {
                            self.tile::<S, 4, V>(simd, class, weights, bias, block, a, b)
                        } else {
                            self.tile::<S, 1, V>(simd, class, weights, bias, block, a, b)
                        };
                    }
                }
            }
        }
    }

    /// `R` neighbouring pixels of a class by `V` vectors of channels; returns `R`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the coordinates of a tile; a struct would only rename them")]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        class: &Class,
        weights: &[S::f32s],
        bias: &[S::f32s],
        block: usize,
        a: usize,
        b: usize,
    ) -> usize {
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        for row in &mut acc {
            row.copy_from_slice(&bias[..V]);
        }
        let pixel = class.cols * self.c;
        for (t, weights) in weights.chunks_exact(class.run * V).enumerate() {
            let at = ((a * class.rows + class.row_at + t) * self.src_w + b * class.cols + class.col_at) * self.c;
            let src: [&[f32]; R] = std::array::from_fn(|r| &self.src[at + r * pixel..][..class.run]);
            for (j, w) in weights.chunks_exact(V).enumerate() {
                for r in 0..R {
                    let x = simd.splat_f32s(src[r][j]);
                    for v in 0..V {
                        acc[r][v] = simd.mul_add_e_f32s(x, w[v], acc[r][v]);
                    }
                }
            }
        }
        let lanes = S::F32_LANES;
        for (r, row) in acc.iter().enumerate() {
            let pixel = (class.y0 + a * class.step) * self.out_w + class.x0 + (b + r) * class.step;
            for (v, value) in row.iter().enumerate() {
                let from = (block * V + v) * lanes;
                if from < self.oc {
                    let to = (from + lanes).min(self.oc);
                    simd.partial_store_f32s(&mut self.out[pixel * self.oc + from..pixel * self.oc + to], *value);
                }
            }
        }
        R
    }
}

/// Copies an image into a zero border.
fn padded(x: &[f32], h: usize, w: usize, c: usize, border: Border, to: &mut Vec<f32>) {
    let wide = w + border.before + border.after;
    to.clear();
    to.resize((h + border.before + border.after) * wide * c, 0.0);
    for (y, row) in x.chunks_exact(w * c).enumerate() {
        let at = ((y + border.before) * wide + border.before) * c;
        to[at..at + w * c].copy_from_slice(row);
    }
}

/// Packs weights for a class: `value(output channel, tap, j)`.
fn pack(oc: usize, taps: usize, run: usize, lanes: usize, value: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
    let width = vectors(oc, lanes) * lanes;
    let mut packed = vec![0.0; oc.div_ceil(width) * taps * run * width];
    for (block, packed) in packed.chunks_exact_mut(taps * run * width).enumerate() {
        for (row, packed) in packed.chunks_exact_mut(width).enumerate() {
            let (tap, j) = (row / run, row % run);
            for (i, p) in packed.iter_mut().enumerate().take(oc - (block * width).min(oc)) {
                *p = value(block * width + i, tap, j);
            }
        }
    }
    packed
}

/// Runs the classes over every image of the source.
#[allow(clippy::too_many_arguments, reason = "shapes of two tensors; called from two places")]
fn gather(
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    border: Border,
    classes: &[Class],
    oc: usize,
    out_w: usize,
    tail: Tail<'_>,
    src: &[f32],
    out: &mut [f32],
) {
    let arch = Arch::new();
    let lanes = lanes();
    let mut bias = vec![0.0; oc.next_multiple_of(2 * lanes)];
    if let Some(b) = tail.bias {
        bias[..oc].copy_from_slice(b);
    }
    let bordered = border.before + border.after > 0;
    let per_image = out.len() / n;
    out.par_chunks_mut(per_image).zip(src.par_chunks(h * w * c)).enumerate().for_each_init(Vec::new, |scratch, (i, (out, src))| {
        if bordered {
            padded(src, h, w, c, border, scratch);
        }
        let image = if bordered { &scratch[..] } else { src };
        let src_w = w + border.before + border.after;
        arch.dispatch(Gather { src: image, src_w, c, classes, bias: &bias, out, out_w, oc });
        tail.slice(i * per_image, per_image).apply(out);
    });
}

/// A matrix product of rows: `y [rows, oc] = x [rows, c] * packed weights`.
fn rows(c: usize, oc: usize, weights: Vec<f32>, tail: Tail<'_>, x: &[f32], y: &mut [f32]) {
    let arch = Arch::new();
    let mut bias = vec![0.0; oc.next_multiple_of(2 * lanes())];
    if let Some(b) = tail.bias {
        bias[..oc].copy_from_slice(b);
    }
    let class = |w: usize, weights: Vec<f32>| Class {
        h: 1,
        w,
        y0: 0,
        x0: 0,
        step: 1,
        rows: 1,
        cols: 1,
        row_at: 0,
        col_at: 0,
        taps: 1,
        run: c,
        weights,
    };
    let total = x.len() / c;
    // Few rows (a linear layer): narrower tasks keep every thread busy.
    let size = if total < 4 * ROWS { total.div_ceil(4).next_multiple_of(8) } else { ROWS };
    let full = [class(size.min(total), weights)];
    let last = [class((total % size).max(1), full[0].weights.clone())];
    y.par_chunks_mut(size * oc).zip(x.par_chunks(size * c)).enumerate().for_each(|(i, (out, src))| {
        let classes = if src.len() == full[0].w * c { &full } else { &last };
        let len = out.len();
        arch.dispatch(Gather { src, src_w: src.len() / c, c, classes, bias: &bias, out, out_w: src.len() / c, oc });
        tail.slice(i * size * oc, len).apply(out);
    });
}

/// `y = conv(x, w)` and its tail.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], tail: Tail<'_>, y: &mut [f32]) {
    let (lanes, run) = (lanes(), g.k * g.c);
    let weights = pack(g.oc, g.k, run, lanes, |o, t, j| w[(o * g.k + t) * run + j]);
    if g.is_matrix() {
        return rows(g.c, g.oc, weights, tail, x, y);
    }
    let class =
        Class { h: g.oh, w: g.ow, y0: 0, x0: 0, step: 1, rows: g.stride, cols: g.stride, row_at: 0, col_at: 0, taps: g.k, run, weights };
    // The last window may reach past the padding that the shape needs, never past `pad`.
    gather(g.n, g.ih, g.iw, g.c, Border { before: g.pad, after: g.pad }, &[class], g.oc, g.ow, tail, x, y);
}

/// `dx = conv_transpose(dy, w)` and its tail: output pixels fall into `stride^2` parity classes with fixed taps each.
pub(super) fn input_gradient(g: &Geometry, dy: &[f32], w: &[f32], tail: Tail<'_>, dx: &mut [f32]) {
    let lanes = lanes();
    // w [oc, k, k, c]: here `oc` channels are read and `c` channels written.
    let weight = |c: usize, kh: usize, kw: usize, o: usize| w[((o * g.k + kh) * g.k + kw) * g.c + c];
    if g.is_matrix() {
        return rows(g.oc, g.c, pack(g.c, 1, g.oc, lanes, |c, _, o| weight(c, 0, 0, o)), tail, dy, dx);
    }
    // Taps of the class of residue r, by ascending source offset (r + pad - k) / stride.
    let taps = |r: usize| -> Vec<usize> { (0..g.k).rev().filter(|k| (r + g.pad + g.k * g.stride - k).is_multiple_of(g.stride)).collect() };
    let offset = |r: usize, k: usize| (r as isize + g.pad as isize - k as isize).div_euclid(g.stride as isize);
    let extent = |size: usize, r: usize| size.saturating_sub(r).div_ceil(g.stride);
    let residues: Vec<usize> = (0..g.stride).filter(|&r| !taps(r).is_empty()).collect();
    let before = residues.iter().map(|&r| -offset(r, taps(r)[0])).max().unwrap_or(0).max(0);
    let reach = |size: usize, out: usize| {
        residues
            .iter()
            .map(|&r| extent(size, r) as isize - 1 + offset(r, taps(r)[taps(r).len() - 1]) - (out as isize - 1))
            .max()
            .unwrap_or(0)
    };
    let after = reach(g.ih, g.oh).max(reach(g.iw, g.ow)).max(0);
    let mut classes = Vec::new();
    for &ry in &residues {
        for &rx in &residues {
            let (ty, tx) = (taps(ry), taps(rx));
            let run = tx.len() * g.oc;
            classes.push(Class {
                h: extent(g.ih, ry),
                w: extent(g.iw, rx),
                y0: ry,
                x0: rx,
                step: g.stride,
                rows: 1,
                cols: 1,
                row_at: (offset(ry, ty[0]) + before) as usize,
                col_at: (offset(rx, tx[0]) + before) as usize,
                taps: ty.len(),
                run,
                weights: pack(g.c, ty.len(), run, lanes, |c, t, j| weight(c, ty[t], tx[j / g.oc], j % g.oc)),
            });
        }
    }
    if residues.len() < g.stride {
        dx.fill(0.0); // pixels that no tap reaches (1x1 with stride 2)
    }
    gather(g.n, g.oh, g.ow, g.oc, Border { before: before as usize, after: after as usize }, &classes, g.c, g.iw, tail, dy, dx);
}

/// Adds one image's products to a partial weight gradient `[k][run][channels]`, channels padded to whole vectors.
struct Outer<'a> {
    src: &'a [f32],
    src_w: usize,
    c: usize,
    stride: usize,
    k: usize,
    run: usize,
    /// `[oh * ow, channels]`.
    dy: &'a [f32],
    oh: usize,
    ow: usize,
    channels: usize,
    partial: &'a mut [f32],
}

impl WithSimd for Outer<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if vectors(self.channels, S::F32_LANES) == 2 { self.image::<S, 2>(simd) } else { self.image::<S, 1>(simd) }
    }
}

impl Outer<'_> {
    #[inline(always)]
    fn image<S: Simd, const V: usize>(mut self, simd: S) {
        let wide = S::F32_LANES >= 16;
        for kh in 0..self.k {
            for block in 0..self.channels / (V * S::F32_LANES) {
                let mut j = 0;
                while j < self.run {
                    let left = self.run - j;
                    j += if V == 1 && wide && left >= 16 {
                        self.tile::<S, 16, V>(simd, kh, block, j)
                    } else if wide && left >= 12 {
                        self.tile::<S, 12, V>(simd, kh, block, j)
                    } else if left >= 8 && (V == 1 || wide) {
                        self.tile::<S, 8, V>(simd, kh, block, j)
                    } else if left >= 4 {
                        self.tile::<S, 4, V>(simd, kh, block, j)
                    } else {
                        self.tile::<S, 1, V>(simd, kh, block, j)
                    };
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, kh: usize, block: usize, j: usize) -> usize {
        let vectors = self.channels / S::F32_LANES;
        let at = (kh * self.run + j) * vectors + block * V;
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        {
            let partial = S::as_simd_f32s(self.partial).0;
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = partial[at + r * vectors + v];
                }
            }
        }
        let dy = S::as_simd_f32s(self.dy).0;
        for oy in 0..self.oh {
            let src = &self.src[(oy * self.stride + kh) * self.src_w * self.c + j..];
            let dy = &dy[oy * self.ow * vectors..][..self.ow * vectors];
            for (ox, dy) in dy.chunks_exact(vectors).enumerate() {
                let dy = &dy[block * V..][..V];
                let src = &src[ox * self.stride * self.c..][..R];
                for r in 0..R {
                    let x = simd.splat_f32s(src[r]);
                    for v in 0..V {
                        acc[r][v] = simd.mul_add_e_f32s(x, dy[v], acc[r][v]);
                    }
                }
            }
        }
        let partial = S::as_mut_simd_f32s(self.partial).0;
        for r in 0..R {
            for v in 0..V {
                partial[at + r * vectors + v] = acc[r][v];
            }
        }
        R
    }
}

/// `dw[o, kh, kw, c] = sum over pixels of dy[p, o] * x[pixel(p, kh, kw), c]`.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let arch = Arch::new();
    let channels = g.oc.next_multiple_of(lanes());
    let (run, matrix) = (g.k * g.c, g.is_matrix());
    // Units of work: images, or runs of rows of one matrix.
    let total = if matrix { g.n * g.ih * g.iw } else { g.n };
    let share = total.div_ceil(PARTIALS);
    let (x_unit, y_unit) = if matrix { (g.c, g.oc) } else { (g.ih * g.iw * g.c, g.oh * g.ow * g.oc) };
    let partials: Vec<Vec<f32>> = x
        .par_chunks(share * x_unit)
        .zip(dy.par_chunks(share * y_unit))
        .map(|(x, dy)| {
            let mut partial = vec![0.0; g.k * run * channels];
            let (mut border, mut wide) = (Vec::new(), Vec::new());
            let (xs, ys) = if matrix { (x.len(), dy.len()) } else { (x_unit, y_unit) };
            for (x, dy) in x.chunks(xs).zip(dy.chunks(ys)) {
                if g.pad > 0 {
                    padded(x, g.ih, g.iw, g.c, Border { before: g.pad, after: g.pad }, &mut border);
                }
                if channels != g.oc {
                    wide.clear();
                    wide.resize(dy.len() / g.oc * channels, 0.0);
                    for (to, from) in wide.chunks_exact_mut(channels).zip(dy.chunks_exact(g.oc)) {
                        to[..g.oc].copy_from_slice(from);
                    }
                }
                let src = if g.pad > 0 { &border[..] } else { x };
                let dy = if channels == g.oc { dy } else { &wide[..] };
                let (oh, ow, src_w) = if matrix { (1, dy.len() / channels, x.len() / g.c) } else { (g.oh, g.ow, g.iw + 2 * g.pad) };
                arch.dispatch(Outer { src, src_w, c: g.c, stride: g.stride, k: g.k, run, dy, oh, ow, channels, partial: &mut partial });
            }
            partial
        })
        .collect();
    dw.par_chunks_mut(g.k * run).enumerate().for_each(|(o, dw)| {
        for (j, dw) in dw.iter_mut().enumerate() {
            *dw = partials.iter().map(|p| p[j * channels + o]).sum();
        }
    });
}

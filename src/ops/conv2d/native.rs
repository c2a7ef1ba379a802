//! Convolutions of the `cpu` device. Output pixels x output channels are tiled in registers (`R`
//! pixels by `V` vectors); the source image is copied into a zero border once, so that no tap needs
//! a bounds test, and the products of one kernel row are one contiguous run of `Kw * C` source
//! elements. The three passes share two loops: [`Gather`] (forward, and the input gradient as
//! `stride^2` parity classes) and `Outer` of `native_weight.rs` (weight gradient). Where 3x3
//! convolutions are `winograd.rs`'s, they are its matrix products.
//!
//! `shaders/README.md` sets its rates beside those of GEMM crates, whose figures are products alone
//! and from separate runs.
//!
//! The order of every sum depends on shapes only: results do not depend on the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::Cell;
use std::thread::LocalKey;

use super::epilogue::Tail;
use super::geometry::Geometry;

/// Pixels per task when a 1x1 convolution is cut as a matrix product.
pub(super) const ROWS: usize = 256;

/// One family of output pixels of an image, all with the same taps: pixel `(a, b)` of the family is
/// output pixel `(y0 + a * step, x0 + b * step)` and reads source rows `a * rows + row_at + t`,
/// columns from `b * cols + col_at`, `run` elements each.
struct Class<'a> {
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
    weights: &'a [f32],
}

/// Border around the source image, in pixels: before and after, the same for rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Border {
    pub(super) before: usize,
    pub(super) after: usize,
}

struct Gather<'a> {
    src: &'a [f32],
    src_w: usize,
    c: usize,
    classes: &'a [Class<'a>],
    /// Where sums start, if not at what `out` holds.
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
    out_w: usize,
    oc: usize,
}

#[inline(always)]
pub(super) fn lanes() -> usize {
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
pub(super) fn vectors(channels: usize, lanes: usize) -> usize {
    if channels.div_ceil(lanes).is_multiple_of(2) { 2 } else { 1 }
}

impl WithSimd for Gather<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if vectors(self.oc, S::F32_LANES) == 2 {
            self.image::<S, 2>(simd)
        } else {
            self.image::<S, 1>(simd)
        }
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
                let bias = self.bias.map(|b| S::as_simd_f32s(&b[block * width..][..width]).0);
                for a in 0..class.h {
                    let mut b = 0;
                    while b < class.w {
                        let left = class.w - b;
                        let wide = S::F32_LANES >= 16;
                        b += if V == 1 && wide && left >= 16 {
                            // Sixteen pointers do not fit the registers; a stride known to the
                            // compiler needs one.
                            match class.cols * self.c {
                                4 => self
                                    .tile::<S, 16, V, 4>(simd, class, weights, bias, block, a, b),
                                8 => self
                                    .tile::<S, 16, V, 8>(simd, class, weights, bias, block, a, b),
                                16 => self
                                    .tile::<S, 16, V, 16>(simd, class, weights, bias, block, a, b),
                                32 => self
                                    .tile::<S, 16, V, 32>(simd, class, weights, bias, block, a, b),
                                _ => {
                                    self.tile::<S, 8, V, 0>(simd, class, weights, bias, block, a, b)
                                }
                            }
                        } else if left >= 8 && (V == 1 || wide) {
                            self.tile::<S, 8, V, 0>(simd, class, weights, bias, block, a, b)
                        } else if left >= 4 {
                            self.tile::<S, 4, V, 0>(simd, class, weights, bias, block, a, b)
                        } else {
                            self.tile::<S, 1, V, 0>(simd, class, weights, bias, block, a, b)
                        };
                    }
                }
            }
        }
    }

    /// `R` neighbouring pixels of a class by `V` vectors of channels; returns `R`. `P`: elements
    /// from one pixel to the next, 0 if not known to the compiler.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "the coordinates of a tile; a struct would only \
        rename them"
    )]
    fn tile<S: Simd, const R: usize, const V: usize, const P: usize>(
        &mut self,
        simd: S,
        class: &Class<'_>,
        weights: &[S::f32s],
        bias: Option<&[S::f32s]>,
        block: usize,
        a: usize,
        b: usize,
    ) -> usize {
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        let lanes = S::F32_LANES;
        for (r, row) in acc.iter_mut().enumerate() {
            let pixel = (class.y0 + a * class.step) * self.out_w + class.x0 + (b + r) * class.step;
            for (v, value) in row.iter_mut().enumerate() {
                let from = (block * V + v) * lanes;
                let to = (from + lanes).min(self.oc);
                if let Some(bias) = bias {
                    *value = bias[v];
                } else if from < to {
                    let held = &self.out[pixel * self.oc + from..pixel * self.oc + to];
                    *value = simd.partial_load_f32s(held);
                }
            }
        }
        let pixel = class.cols * self.c;
        for (t, weights) in weights.chunks_exact(class.run * V).enumerate() {
            let at =
                ((a * class.rows + class.row_at + t) * self.src_w + b * class.cols + class.col_at)
                    * self.c;
            if P > 0 {
                let span = (R - 1) * P + 1;
                let windows = self.src[at..][..span - 1 + class.run].windows(span);
                for (src, w) in windows.zip(weights.chunks_exact(V)) {
                    for r in 0..R {
                        let x = simd.splat_f32s(src[r * P]);
                        for v in 0..V {
                            acc[r][v] = simd.mul_add_e_f32s(x, w[v], acc[r][v]);
                        }
                    }
                }
                continue;
            }
            let src: [&[f32]; R] =
                std::array::from_fn(|r| &self.src[at + r * pixel..][..class.run]);
            for (j, w) in weights.chunks_exact(V).enumerate() {
                for r in 0..R {
                    let x = simd.splat_f32s(src[r][j]);
                    for v in 0..V {
                        acc[r][v] = simd.mul_add_e_f32s(x, w[v], acc[r][v]);
                    }
                }
            }
        }
        for (r, row) in acc.iter().enumerate() {
            let pixel = (class.y0 + a * class.step) * self.out_w + class.x0 + (b + r) * class.step;
            for (v, value) in row.iter().enumerate() {
                let from = (block * V + v) * lanes;
                if from < self.oc {
                    let to = (from + lanes).min(self.oc);
                    simd.partial_store_f32s(
                        &mut self.out[pixel * self.oc + from..pixel * self.oc + to],
                        *value,
                    );
                }
            }
        }
        R
    }
}

/// Copies an image into a zero border.
pub(super) fn padded(x: &[f32], w: usize, c: usize, border: Border, to: &mut [f32]) {
    let (before, row) = (border.before * c, (w + border.before + border.after) * c);
    // What lies between the last pixel of a row and the first of the next is zero, as is everything
    // above and below.
    let mut end = 0;
    for (y, from) in x.chunks_exact(w * c).enumerate() {
        let at = (y + border.before) * row + before;
        to[end..at].fill(0.0);
        end = at + w * c;
        to[at..end].copy_from_slice(from);
    }
    to[end..].fill(0.0);
}

/// Elements in a cache line: vectors that straddle two cost two loads.
pub(super) const LINE: usize = 16;

/// Zeroes that start at a cache line.
#[derive(Default)]
pub(super) struct Aligned {
    data: Vec<f32>,
    at: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let data = vec![0.0_f32; len + LINE];
        let at = data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Self { data, at }
    }
    /// At least `len` elements, with whatever they held.
    pub(super) fn reserve(&mut self, len: usize) -> &mut [f32] {
        if self.data.len() < len + LINE {
            *self = Self::new(len);
        }
        &mut self.data[self.at..self.at + len]
    }
    fn get(&self) -> &[f32] {
        &self.data[self.at..]
    }
}

thread_local! {
    /// Bordered images, and partial gradients: kept, because fresh pages cost as much as the copy.
    pub(super) static BORDERED: Cell<Aligned> = const { Cell::new(Aligned { data: Vec::new(), at: 0 }) };
    pub(super) static PARTIAL: Cell<Aligned> = const { Cell::new(Aligned { data: Vec::new(), at: 0 }) };
}

/// Lends this thread's scratch memory.
pub(super) fn scratch<R>(
    key: &'static LocalKey<Cell<Aligned>>,
    body: impl FnOnce(&mut Aligned) -> R,
) -> R {
    let mut memory = key.take();
    let result = body(&mut memory);
    key.set(memory);
    result
}

/// Packs weights for a class, `value(output channel, tap, j)`, for `f` neighbouring pixels whose
/// windows lie `shift` apart.
fn pack(
    f: usize,
    shift: usize,
    oc: usize,
    taps: usize,
    run: usize,
    lanes: usize,
    value: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Aligned {
    let width = vectors(oc * f, lanes) * lanes;
    let block = (run + (f - 1) * shift) * width;
    let mut packed = Aligned::new((oc * f).div_ceil(width) * taps * block);
    let len = packed.data.len() - LINE;
    packed.reserve(len).par_chunks_mut(block).enumerate().for_each(|(i, packed)| {
        let (first, tap) = (i / taps * width, i % taps);
        let channels = (oc - first).min(width);
        for j in 0..run {
            for p in 0..f {
                let row = &mut packed[(j + p * shift) * width + p * oc..][..channels];
                row.iter_mut().enumerate().for_each(|(i, w)| *w = value(first + i, tap, j));
            }
        }
    });
    packed
}

/// Neighbouring pixels of a row that share a vector, so that few output channels fill it: `f`
/// pixels of `oc` channels are one pixel of `f * oc`, whose weights are those of the kernel at `f`
/// positions and zero elsewhere. A window of `k` columns becomes one of `(f - 1) * stride + k`,
/// less than `f` windows unless `stride >= k`.
fn fold(oc: usize, ow: usize, k: usize, stride: usize, lanes: usize) -> usize {
    let fits = |f: &usize| oc * f <= lanes && ow.is_multiple_of(*f);
    if stride < k { [4, 2].into_iter().find(fits).unwrap_or(1) } else { 1 }
}

/// Runs the classes over every image of the source.
#[allow(clippy::too_many_arguments, reason = "shapes of two tensors; called from two places")]
fn gather(
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    border: Border,
    classes: &[Class<'_>],
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
        bias[..oc].chunks_exact_mut(b.len()).for_each(|bias| bias.copy_from_slice(b));
    }
    let per_image = out.len() / n;
    let src_w = w + border.before + border.after;
    let len = (h + border.before + border.after) * src_w * c;
    out.par_chunks_mut(per_image).zip(src.par_chunks(h * w * c)).enumerate().for_each(
        |(i, (out, src))| {
            scratch(&BORDERED, |bordered| {
                let image = if len == src.len() {
                    src
                } else {
                    let bordered = bordered.reserve(len);
                    padded(src, w, c, border, bordered);
                    bordered
                };
                arch.dispatch(Gather {
                    src: image,
                    src_w,
                    c,
                    classes,
                    bias: Some(&bias),
                    out,
                    out_w,
                    oc,
                });
            });
            tail.slice(i * per_image, per_image).apply(out);
        },
    );
}

/// A matrix product: `y [rows, oc] = bias + x [rows, c] * packed weights`, added to what `y` holds
/// where there is no bias.
pub(super) fn product(
    arch: Arch,
    [c, oc]: [usize; 2],
    weights: &[f32],
    bias: Option<&[f32]>,
    x: &[f32],
    y: &mut [f32],
) {
    let rows = x.len() / c;
    let class = Class {
        h: 1,
        w: rows,
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
    let classes = &[class];
    arch.dispatch(Gather { src: x, src_w: rows, c, classes, bias, out: y, out_w: rows, oc });
}

/// A large matrix product and its tail, in tasks of some rows.
fn rows(c: usize, oc: usize, weights: &[f32], tail: Tail<'_>, x: &[f32], y: &mut [f32]) {
    let arch = Arch::new();
    let mut bias = vec![0.0; oc.next_multiple_of(2 * lanes())];
    if let Some(b) = tail.bias {
        bias[..oc].copy_from_slice(b);
    }
    let total = x.len() / c;
    // Few rows (a linear layer): narrower tasks keep every thread busy.
    let size = if total < 4 * ROWS { total.div_ceil(4).next_multiple_of(8) } else { ROWS };
    y.par_chunks_mut(size * oc).zip(x.par_chunks(size * c)).enumerate().for_each(|(i, (y, x))| {
        product(arch, [c, oc], weights, Some(&bias), x, y);
        tail.slice(i * size * oc, y.len()).apply(y);
    });
}

/// `y = conv(x, w)` and its tail.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], tail: Tail<'_>, y: &mut [f32]) {
    let lanes = lanes();
    if g.is_matrix() {
        return rows(
            g.c,
            g.oc,
            pack(1, 0, g.oc, 1, g.c, lanes, |o, _, j| w[o * g.c + j]).get(),
            tail,
            x,
            y,
        );
    }
    let f = fold(g.oc, g.ow, g.k, g.stride, lanes);
    let (step, run) = (g.stride * g.c, g.k * g.c);
    let weights = pack(f, step, g.oc, g.k, run, lanes, |o, t, j| w[(o * g.k + t) * run + j]);
    let class = Class {
        h: g.oh,
        w: g.ow / f,
        y0: 0,
        x0: 0,
        step: 1,
        rows: g.stride,
        cols: g.stride * f,
        row_at: 0,
        col_at: 0,
        taps: g.k,
        run: (f - 1) * step + run,
        weights: weights.get(),
    };
    // The last window may reach past the padding that the shape needs, never past `pad`.
    gather(
        g.n,
        g.ih,
        g.iw,
        g.c,
        Border { before: g.pad, after: g.pad },
        &[class],
        g.oc * f,
        g.ow / f,
        tail,
        x,
        y,
    );
}

/// Output pixels of an input gradient along one axis that are `at` modulo the stride: all of them
/// have the same taps.
struct Residue {
    at: usize,
    /// By ascending source pixel.
    taps: Vec<usize>,
    /// Source pixels of the first and the last tap, from the class's own place on.
    reach: [isize; 2],
}

impl Residue {
    /// Those that have taps: a 1x1 kernel of stride 2 reaches every other pixel.
    fn all(g: &Geometry) -> Vec<Self> {
        let reads = |at: usize, tap: usize| {
            (at as isize + g.pad as isize - tap as isize).div_euclid(g.stride as isize)
        };
        let of = |at: usize| {
            let meets = |k: &usize| (at + g.pad + g.k * g.stride - k).is_multiple_of(g.stride);
            let taps: Vec<usize> = (0..g.k).rev().filter(meets).collect();
            let reach = [reads(at, *taps.first()?), reads(at, *taps.last()?)];
            Some(Self { at, taps, reach })
        };
        (0..g.stride).filter_map(of).collect()
    }

    /// How many there are among `size` pixels.
    fn extent(&self, size: usize, g: &Geometry) -> usize {
        size.saturating_sub(self.at).div_ceil(g.stride)
    }

    /// What all of them read beyond the source image.
    fn border(all: &[Self], g: &Geometry) -> Border {
        let before = all.iter().map(|r| -r.reach[0]).max().unwrap_or(0).max(0);
        let beyond = |r: &Self, size: usize, source: usize| {
            r.extent(size, g) as isize + r.reach[1] - source as isize
        };
        let after = all.iter().map(|r| beyond(r, g.ih, g.oh).max(beyond(r, g.iw, g.ow)));
        Border { before: before as usize, after: after.max().unwrap_or(0).max(0) as usize }
    }
}

/// `dx = conv_transpose(dy, w)` and its tail: output pixels fall into `stride^2` parity classes
/// with fixed taps each.
pub(super) fn input_gradient(g: &Geometry, dy: &[f32], w: &[f32], tail: Tail<'_>, dx: &mut [f32]) {
    let lanes = lanes();
    // w [oc, k, k, c]: here `oc` channels are read and `c` channels written.
    let weight =
        |c: usize, kh: usize, kw: usize, o: usize| w[((o * g.k + kh) * g.k + kw) * g.c + c];
    if g.is_matrix() {
        return rows(
            g.oc,
            g.c,
            pack(1, 0, g.c, 1, g.oc, lanes, |c, _, o| weight(c, 0, 0, o)).get(),
            tail,
            dy,
            dx,
        );
    }
    let residues = Residue::all(g);
    let border = Residue::border(&residues, g);
    // Pixels of a class are neighbours only if there is one class.
    let f = if g.stride == 1 { fold(g.c, g.iw, g.k, 1, lanes) } else { 1 };
    let mut packed = Vec::new();
    for (ry, rx) in residues.iter().flat_map(|ry| residues.iter().map(move |rx| (ry, rx))) {
        let (ty, tx) = (&ry.taps, &rx.taps);
        let value = |c: usize, t: usize, j: usize| weight(c, ty[t], tx[j / g.oc], j % g.oc);
        packed.push(pack(f, g.oc, g.c, ty.len(), tx.len() * g.oc, lanes, value));
    }
    let mut classes = Vec::new();
    for ry in &residues {
        for rx in &residues {
            classes.push(Class {
                h: ry.extent(g.ih, g),
                w: rx.extent(g.iw, g) / f,
                y0: ry.at,
                x0: rx.at,
                step: g.stride,
                rows: 1,
                cols: f,
                row_at: (ry.reach[0] + border.before as isize) as usize,
                col_at: (rx.reach[0] + border.before as isize) as usize,
                taps: ry.taps.len(),
                run: (rx.taps.len() + f - 1) * g.oc,
                weights: packed[classes.len()].get(),
            });
        }
    }
    if residues.len() < g.stride {
        // Pixels that no tap reaches (1x1 with stride 2).
        match tail.bias {
            Some(bias) => dx.chunks_exact_mut(g.c).for_each(|pixel| pixel.copy_from_slice(bias)),
            None => dx.fill(0.0),
        }
    }
    gather(g.n, g.oh, g.ow, g.oc, border, &classes, g.c * f, g.iw / f, tail, dy, dx);
}

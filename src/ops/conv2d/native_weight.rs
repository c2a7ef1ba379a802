//! Weight gradients of the `cpu` device: vectors lie along the run `Kw * C`, output channels are
//! broadcast, and tiles stay in registers over all images of a task. Tasks depend on shapes only,
//! so that results do not depend on the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::geometry::Geometry;
use super::native::{BORDERED, Border, LINE, PARTIAL, ROWS, lanes, padded, scratch};

/// Elements of source and gradient that a weight gradient goes over at once: they stay in the
/// second-level cache.
const GROUP: usize = 96 * 1024;
/// Elements of a weight gradient that a task computes at most.
const BLOCK: usize = 32 * 1024;
/// Tasks of a weight gradient, at least: fixed, so that the summation order is.
pub(super) const TASKS: usize = 8;

/// Adds the products of some images to a partial weight gradient `[oc][k][run]`. Vectors lie along
/// the run, which is contiguous in the source as in the gradient; output channels are broadcast. A
/// tile of `O` channels by `U` vectors stays in registers over all images.
struct Outer<'a> {
    /// Images with their borders, and a vector of slack behind the last where a run is not a whole
    /// number of vectors.
    src: &'a [f32],
    src_h: usize,
    src_w: usize,
    c: usize,
    stride: usize,
    k: usize,
    /// `[images, oh, ow, oc]`.
    dy: &'a [f32],
    oh: usize,
    ow: usize,
    /// All output channels, and the first of this task's.
    oc: usize,
    first: usize,
    /// `[channels of this task][k][run]`.
    partial: &'a mut [f32],
    /// Whether the partial gradient holds something already.
    add: bool,
}

impl WithSimd for Outer<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let vectors = (self.k * self.c).div_ceil(S::F32_LANES);
        let wide = S::F32_LANES >= 16;
        for kh in 0..self.k {
            let mut v = 0;
            while v < vectors {
                v += match vectors - v {
                    1 => self.column::<S, 1>(simd, kh, v),
                    2 => self.column::<S, 2>(simd, kh, v),
                    4 if !wide => self.column::<S, 2>(simd, kh, v),
                    3 | 5 | 6 => self.column::<S, 3>(simd, kh, v),
                    _ if wide => self.column::<S, 4>(simd, kh, v),
                    _ => self.column::<S, 3>(simd, kh, v),
                };
            }
        }
    }
}

impl Outer<'_> {
    /// All output channels by `U` vectors from vector `v` of kernel row `kh`; returns `U`. Tiles
    /// have 16 accumulators on 32 registers, 12 on 16: more spill.
    #[inline(always)]
    fn column<S: Simd, const U: usize>(&mut self, simd: S, kh: usize, v: usize) -> usize {
        let (wide, channels) =
            (S::F32_LANES >= 16, self.partial.len() / (self.k * self.k * self.c));
        let mut o = 0;
        while o < channels {
            let left = channels - o;
            o += if left >= 16 && U == 1 && wide {
                self.tile::<S, 16, U>(simd, kh, v, o)
            } else if left >= 8 && (U == 1 || U == 2 && wide) {
                self.tile::<S, 8, U>(simd, kh, v, o)
            } else if left >= 4 {
                self.tile::<S, 4, U>(simd, kh, v, o)
            } else {
                self.tile::<S, 1, U>(simd, kh, v, o)
            };
        }
        U
    }

    #[inline(always)]
    fn tile<S: Simd, const O: usize, const U: usize>(
        &mut self,
        simd: S,
        kh: usize,
        v: usize,
        o: usize,
    ) -> usize {
        let (lanes, run) = (S::F32_LANES, self.k * self.c);
        let j = v * lanes;
        let (row, step) = (self.src_w * self.c, self.stride * self.c);
        let mut acc = [[simd.splat_f32s(0.0); U]; O];
        let (image, result) = (self.src_h * row, self.oh * self.ow * self.oc);
        for n in 0..self.dy.len() / result {
            for oy in 0..self.oh {
                let src = &self.src[n * image + (oy * self.stride + kh) * row + j..];
                let dy = &self.dy[n * result + oy * self.ow * self.oc..][..self.ow * self.oc];
                for (x, dy) in src.windows(U * lanes).step_by(step).zip(dy.chunks_exact(self.oc)) {
                    let x = S::as_simd_f32s(x).0;
                    let x: [S::f32s; U] = std::array::from_fn(|u| x[u]);
                    let dy = &dy[self.first + o..][..O];
                    for i in 0..O {
                        let d = simd.splat_f32s(dy[i]);
                        for u in 0..U {
                            acc[i][u] = simd.mul_add_e_f32s(d, x[u], acc[i][u]);
                        }
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            let row = &mut self.partial[((o + i) * self.k + kh) * run..][..run];
            for (acc, to) in acc.iter().zip(row[j..].chunks_mut(lanes)) {
                let sum =
                    if self.add { simd.add_f32s(*acc, simd.partial_load_f32s(to)) } else { *acc };
                simd.partial_store_f32s(to, sum);
            }
        }
        O
    }
}

/// A matrix product: `sums [oc, c] = dy^T [oc, rows] * x [rows, c]`, added to what they hold if
/// `add`. A vector of slack follows `x` where `c` is not a whole number of vectors.
pub(super) fn outer(
    arch: Arch,
    [c, oc]: [usize; 2],
    x: &[f32],
    dy: &[f32],
    sums: &mut [f32],
    add: bool,
) {
    let rows = dy.len() / oc;
    arch.dispatch(Outer {
        src: x,
        src_h: 1,
        src_w: rows,
        c,
        stride: 1,
        k: 1,
        dy,
        oh: 1,
        ow: rows,
        oc,
        first: 0,
        partial: sums,
        add,
    });
}

/// `dw[o, kh, kw, c] = sum over pixels of dy[p, o] * x[pixel(p, kh, kw), c]`.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    // A matrix is cut into images of one row.
    let g = if g.is_matrix() {
        let pixels = g.n * g.ih * g.iw;
        let width = (1..=ROWS.min(pixels.div_ceil(TASKS)))
            .rev()
            .find(|w| pixels.is_multiple_of(*w))
            .unwrap_or(1);
        Geometry { n: pixels / width, ih: 1, iw: width, oh: 1, ow: width, ..*g }
    } else {
        *g
    };
    // Tasks are blocks of output channels where the gradient is large, shares of the images where
    // it is small.
    let row = g.k * g.k * g.c;
    let block = (BLOCK / row).next_multiple_of(LINE).min(g.oc) * row;
    let share = g.n.div_ceil((TASKS / dw.len().div_ceil(block)).max(1));
    let parts = g.n.div_ceil(share);
    if parts == 1 {
        return weight_partial(&g, x, dy, block, dw);
    }
    scratch(&PARTIAL, |memory| {
        let partials = memory.reserve(parts * dw.len());
        let (x_share, y_share) = (share * g.ih * g.iw * g.c, share * g.oh * g.ow * g.oc);
        let images = x.par_chunks(x_share).zip(dy.par_chunks(y_share));
        partials
            .par_chunks_mut(dw.len())
            .zip(images)
            .for_each(|(partial, (x, dy))| weight_partial(&g, x, dy, block, partial));
        let (first, rest) = partials.split_at(dw.len());
        dw.par_chunks_mut(BLOCK).enumerate().for_each(|(i, dw)| {
            dw.copy_from_slice(&first[i * BLOCK..][..dw.len()]);
            for partial in rest.chunks_exact(first.len()) {
                dw.iter_mut().zip(&partial[i * BLOCK..]).for_each(|(dw, p)| *dw += p);
            }
        });
    });
}

/// The weight gradient of some images, by blocks of output channels.
fn weight_partial(g: &Geometry, x: &[f32], dy: &[f32], block: usize, dw: &mut [f32]) {
    let Geometry { c, stride, k, oh, ow, oc, .. } = *g;
    let (src_h, src_w) = (g.ih + 2 * g.pad, g.iw + 2 * g.pad);
    let (x_image, src_image, y_image) = (g.ih * g.iw * c, src_h * src_w * c, oh * ow * oc);
    let slack = if (k * c).is_multiple_of(lanes()) { 0 } else { LINE };
    let images = (GROUP / (src_image + y_image)).clamp(1, x.len() / x_image);
    let arch = Arch::new();
    dw.par_chunks_mut(block).enumerate().for_each(|(b, partial)| {
        scratch(&BORDERED, |bordered| {
            for (i, (x, dy)) in
                x.chunks(images * x_image).zip(dy.chunks(images * y_image)).enumerate()
            {
                let src = if g.pad == 0 && slack == 0 {
                    x
                } else {
                    let bordered = bordered.reserve(images * src_image + slack);
                    for (x, to) in x.chunks_exact(x_image).zip(bordered.chunks_exact_mut(src_image))
                    {
                        padded(x, g.iw, c, Border { before: g.pad, after: g.pad }, to);
                    }
                    bordered
                };
                let first = b * block / (k * k * c);
                arch.dispatch(Outer {
                    src,
                    src_h,
                    src_w,
                    c,
                    stride,
                    k,
                    dy,
                    oh,
                    ow,
                    oc,
                    first,
                    partial: &mut *partial,
                    add: i > 0,
                });
            }
        });
    });
}

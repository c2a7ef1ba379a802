//! Winograd's minimal filtering F(4x4, 3x3) for the 3x3 convolutions of stride 1 and padding 1 of
//! the `cpu` device: 36 products for 16 pixels where direct convolution takes 144 (Lavin and Gray,
//! Fast Algorithms for Convolutional Neural Networks, 2015). With tiles `d` of 6x6 source pixels
//! that step by 4, kernels `g` of 3x3 and `*` of equal places:
//!
//! ```text
//! y  = A^T [ sum_c (G g G^T) * (B^T d B) ] A       forward; input gradient: g turned by 180 deg
//! dw = G^T [ sum_tiles (B^T d B) * (A dy A^T) ] G  weight gradient
//! ```
//!
//! The sums are 36 matrix products (`product`, `outer`), one for each place, or plane. The matrices
//! interpolate at 0, 1/sqrt 2, -1/sqrt 2, sqrt 2, -sqrt 2 and infinity, which keeps their numbers
//! near 1: errors are about twice those of direct sums, half those at Lavin and Gray's 0, 1, -1, 2,
//! -2 (`shaders/README.md`).
//!
//! A transform is two passes of a [`Line`], down the columns and along the rows. The first goes
//! over a strip of tiles, one tile high and as wide as the image, whose rows are contiguous.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};
use std::marker::PhantomData;
use std::ops::Range;

use super::epilogue::Tail;
use super::geometry::Geometry;
use super::native::{BORDERED, LINE, PARTIAL, lanes, product, scratch, vectors};
use super::native_weight::TASKS;
use crate::tensor::TensorType;

/// Side of a tile of results, and of the source pixels that it reads.
pub(super) const TILE: usize = 4;
pub(super) const SIDE: usize = 6;
pub(super) const PLANES: usize = SIDE * SIDE;

/// Tiles that a task transforms and multiplies at once, about: their planes stay in the
/// second-level cache, and weights are read once for all of them.
pub(super) const TILES: usize = 32;
/// Channels that a task takes at once, at most, where it does not take all.
pub(super) const BLOCK: usize = 64;

/// Whether it is faster than direct sums, for a convolution and its input gradient, by the shape
/// alone (`shaders/README.md`): with fewer channels transforms take as long as direct sums, with
/// fewer tiles those of the weights do. Tiles that reach beyond the image must be few. Maps of
/// 16-bit floats are imitated here, and not for speed: what is rounded to them are direct sums.
pub(super) fn pays(g: &Geometry, inputs: &[TensorType]) -> bool {
    let tiles = g.oh.div_ceil(TILE) * g.ow.div_ceil(TILE);
    (g.k, g.stride, g.pad) == (3, 1, 1)
        && inputs.iter().all(|ty| ty.dtype.half().is_none())
        && g.c.min(g.oc) >= 16
        && g.n * tiles >= 8
        && 9 * g.oh * g.ow >= 2 * PLANES * tiles
}

/// The same for its weight gradient, which transforms two maps.
pub(super) fn pays_for_weights(g: &Geometry, inputs: &[TensorType]) -> bool {
    pays(g, inputs) && g.c * g.oc >= 512
}

/// One of the transforms' matrices, as what it makes of a column.
pub(super) trait Line<const I: usize, const O: usize> {
    fn of<S: Simd>(simd: S, x: [S::f32s; I]) -> [S::f32s; O];
}

/// `B^T`.
pub(super) struct Source;
/// `A`.
pub(super) struct Gradient;
/// `A^T`.
struct Result;
/// `G`.
struct Kernel;
/// `G^T`.
pub(super) struct KernelGradient;

/// `[e + f * o, e - f * o]`.
#[inline(always)]
fn pair<S: Simd>(simd: S, e: S::f32s, f: f32, o: S::f32s) -> [S::f32s; 2] {
    [simd.mul_add_e_f32s(simd.splat_f32s(f), o, e), simd.mul_add_e_f32s(simd.splat_f32s(-f), o, e)]
}

impl Line<6, 6> for Source {
    #[inline(always)]
    fn of<S: Simd>(simd: S, d: [S::f32s; 6]) -> [S::f32s; 6] {
        let add = |factor: f32, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y);
        let [a, b] = pair(simd, add(-2.0, d[2], d[4]), FRAC_1_SQRT_2, add(-2.0, d[1], d[3]));
        let [c, e] = pair(simd, add(-0.5, d[2], d[4]), SQRT_2, add(-0.5, d[1], d[3]));
        let first = add(-2.5, d[2], simd.add_f32s(d[0], d[4]));
        [first, a, b, c, e, add(-2.5, d[3], simd.add_f32s(d[1], d[5]))]
    }
}

impl Line<4, 6> for Gradient {
    #[inline(always)]
    fn of<S: Simd>(simd: S, d: [S::f32s; 4]) -> [S::f32s; 6] {
        let add = |factor: f32, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y);
        let [a, b] = pair(simd, add(0.5, d[2], d[0]), FRAC_1_SQRT_2, add(0.5, d[3], d[1]));
        let [c, e] = pair(simd, add(2.0, d[2], d[0]), SQRT_2, add(2.0, d[3], d[1]));
        [d[0], a, b, c, e, d[3]]
    }
}

impl Line<6, 4> for Result {
    #[inline(always)]
    fn of<S: Simd>(simd: S, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let add = |factor: f32, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y);
        let times = |factor: f32, x| simd.mul_f32s(simd.splat_f32s(factor), x);
        let (s, t) = (simd.add_f32s(m[1], m[2]), simd.add_f32s(m[3], m[4]));
        let (d, e) = (simd.sub_f32s(m[1], m[2]), simd.sub_f32s(m[3], m[4]));
        [
            simd.add_f32s(m[0], simd.add_f32s(s, t)),
            add(FRAC_1_SQRT_2, d, times(SQRT_2, e)),
            add(0.5, s, times(2.0, t)),
            add(0.5 * FRAC_1_SQRT_2, d, add(2.0 * SQRT_2, e, m[5])),
        ]
    }
}

impl Line<3, 6> for Kernel {
    #[inline(always)]
    fn of<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; 6] {
        let add = |factor: f32, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y);
        let times = |factor: f32, x| simd.mul_f32s(simd.splat_f32s(factor), x);
        let near = add(-2.0 / 3.0, g[0], times(-1.0 / 3.0, g[2]));
        let far = add(1.0 / 6.0, g[0], times(1.0 / 3.0, g[2]));
        let [a, b] = pair(simd, near, FRAC_1_SQRT_2 * -2.0 / 3.0, g[1]);
        let [c, e] = pair(simd, far, SQRT_2 / 6.0, g[1]);
        [g[0], a, b, c, e, g[2]]
    }
}

impl Line<6, 3> for KernelGradient {
    #[inline(always)]
    fn of<S: Simd>(simd: S, m: [S::f32s; 6]) -> [S::f32s; 3] {
        let add = |factor: f32, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y);
        let times = |factor: f32, x| simd.mul_f32s(simd.splat_f32s(factor), x);
        let (s, t) = (simd.add_f32s(m[1], m[2]), simd.add_f32s(m[3], m[4]));
        let (d, e) = (simd.sub_f32s(m[1], m[2]), simd.sub_f32s(m[3], m[4]));
        [
            add(-2.0 / 3.0, s, add(1.0 / 6.0, t, m[0])),
            add(FRAC_1_SQRT_2 * -2.0 / 3.0, d, times(SQRT_2 / 6.0, e)),
            add(1.0 / 3.0, simd.sub_f32s(t, s), m[5]),
        ]
    }
}

/// Applies a line to every element of some slices of one length.
#[inline(always)]
pub(super) fn apply<L: Line<I, O>, S: Simd, const I: usize, const O: usize>(
    simd: S,
    from: [&[f32]; I],
    to: [&mut [f32]; O],
) {
    // Plain loops: closures over arrays stay calls, without the registers of `S`.
    let len = to[0].len();
    let vectors = len / S::F32_LANES;
    let body = vectors * S::F32_LANES;
    for o in 0..O {
        assert!(to[o].len() == len);
    }
    for i in 0..I {
        assert!(from[i].len() == len);
    }
    let mut x = [simd.splat_f32s(0.0); I];
    for at in (0..body).step_by(S::F32_LANES) {
        for i in 0..I {
            x[i] = S::as_simd_f32s(&from[i][at..at + S::F32_LANES]).0[0];
        }
        let y = L::of(simd, x);
        for o in 0..O {
            S::as_mut_simd_f32s(&mut to[o][at..at + S::F32_LANES]).0[0] = y[o];
        }
    }
    if body < len {
        for i in 0..I {
            x[i] = simd.partial_load_f32s(&from[i][body..]);
        }
        let y = L::of(simd, x);
        for o in 0..O {
            simd.partial_store_f32s(&mut to[o][body..], y[o]);
        }
    }
}

/// Cuts `N` pieces of `len` elements out of a slice, each `step` behind the one before.
#[inline(always)]
pub(super) fn cut<const N: usize>(x: &[f32], step: usize, len: usize) -> [&[f32]; N] {
    let x = &x[..(N - 1) * step + len];
    let mut pieces = [&x[..0]; N];
    for i in 0..N {
        pieces[i] = &x[i * step..][..len];
    }
    pieces
}

/// A slice to put into an array first.
const fn nothing() -> &'static mut [f32] {
    &mut []
}

/// [`cut`] for writing.
#[inline(always)]
pub(super) fn cut_mut<const N: usize>(x: &mut [f32], step: usize, len: usize) -> [&mut [f32]; N] {
    let mut rest = &mut x[..(N - 1) * step + len];
    let mut pieces = [const { nothing() }; N];
    for i in 0..N - 1 {
        let (piece, after) = rest.split_at_mut(step);
        pieces[i] = &mut piece[..len];
        rest = after;
    }
    pieces[N - 1] = rest;
    pieces
}

/// Images of one size, cut into strips of tiles.
#[derive(Clone, Copy)]
pub(super) struct Strips {
    h: usize,
    w: usize,
    c: usize,
}

impl Strips {
    /// Those of a convolution's source, and of its result.
    pub(super) fn of(g: &Geometry) -> [Self; 2] {
        [Self { h: g.ih, w: g.iw, c: g.c }, Self { h: g.oh, w: g.ow, c: g.oc }]
    }
    /// Tiles of a strip.
    pub(super) fn across(self) -> usize {
        self.w.div_ceil(TILE)
    }
    /// Strips of an image.
    pub(super) fn down(self) -> usize {
        self.h.div_ceil(TILE)
    }
    /// Elements of a row, and of an image.
    fn row(self) -> usize {
        self.w * self.c
    }
    fn image(self) -> usize {
        self.h * self.row()
    }
}

/// Transforms some strips: `I` pixels a tile, zero outside the image. Tile `t` of them becomes row
/// `t` of the planes `[36][plane / channels][channels]`.
pub(super) struct Transform<'a, L, const I: usize> {
    pub(super) line: PhantomData<L>,
    pub(super) map: Strips,
    pub(super) images: &'a [f32],
    pub(super) strips: Range<usize>,
    pub(super) channels: Range<usize>,
    pub(super) memory: &'a mut [f32],
    pub(super) planes: &'a mut [f32],
    pub(super) plane: usize,
}

impl<L, const I: usize> Transform<'_, L, I> {
    /// Elements of `memory`: a row of zeros, and a strip that is transformed along its columns.
    pub(super) fn memory(map: Strips, channels: usize) -> usize {
        map.row() + SIDE * (TILE * map.across() + I - TILE) * channels
    }
}

impl<L: Line<I, SIDE>, const I: usize> WithSimd for Transform<'_, L, I> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (Strips { h, w, c: all }, c, plane) = (self.map, self.channels.len(), self.plane);
        let (row, down, across) = (self.map.row(), self.map.down(), self.map.across());
        let before = (I - TILE) / 2;
        let columns = (TILE * across + I - TILE) * c;
        self.memory.fill(0.0);
        let (zero, memory) = self.memory.split_at_mut(row);
        let zero = &*zero;
        for (n, strip) in self.strips.enumerate() {
            let (image, y) = (strip / down * h, strip % down * TILE);
            let mut rows = [zero; I];
            for (i, to) in rows.iter_mut().enumerate() {
                if y + i >= before && y + i - before < h {
                    *to = &self.images[(image + y + i - before) * row..][..row];
                }
            }
            // All channels of a row are contiguous.
            let (pixels, len) = if c == all { (1, row) } else { (w, c) };
            for p in 0..pixels {
                let mut from = rows;
                for x in &mut from {
                    *x = &x[p * all + self.channels.start..][..len];
                }
                let to = cut_mut(&mut memory[(before + p) * c..], columns, len);
                apply::<L, S, I, SIDE>(simd, from, to);
            }
            let lines = memory.chunks_exact(columns).zip(self.planes.chunks_mut(SIDE * plane));
            for (from, to) in lines {
                for t in 0..across {
                    let from = cut(&from[t * TILE * c..], c, c);
                    let to = cut_mut(&mut to[(n * across + t) * c..], plane, c);
                    apply::<L, S, I, SIDE>(simd, from, to);
                }
            }
        }
    }
}

/// Results of some strips, from row `first` on of the planes `[block][36][plane / width][width]`.
struct Restore<'a> {
    map: Strips,
    planes: &'a [f32],
    plane: usize,
    width: usize,
    first: usize,
    /// A strip that is restored along its rows, and rows below an image.
    memory: &'a mut [f32],
    /// Whole rows of images.
    y: &'a mut [f32],
}

impl Restore<'_> {
    fn memory(map: Strips) -> usize {
        SIDE * TILE * map.across() * map.c + (TILE - 1) * map.row()
    }
}

impl WithSimd for Restore<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { map, plane, width, .. } = self;
        let (row, across) = (map.row(), map.across());
        let columns = TILE * across * map.c;
        let (memory, outside) = self.memory.split_at_mut(SIDE * columns);
        let mut first = self.first;
        for strip in self.y.chunks_mut(map.image()).flat_map(|y| y.chunks_mut(TILE * row)) {
            for (b, planes) in self.planes.chunks_exact(PLANES * plane).enumerate() {
                let channel = b * width;
                let len = (map.c - channel).min(width);
                let lines = planes.chunks_exact(SIDE * plane);
                for (from, to) in lines.zip(memory.chunks_exact_mut(columns)) {
                    for t in 0..across {
                        let from = cut(&from[(first + t) * width..], plane, len);
                        let to = cut_mut(&mut to[t * TILE * map.c + channel..], map.c, len);
                        apply::<Result, S, SIDE, TILE>(simd, from, to);
                    }
                }
            }
            let mut rows = strip.chunks_exact_mut(row).chain(outside.chunks_exact_mut(row));
            let mut to = [const { nothing() }; TILE];
            for to in &mut to {
                *to = rows.next().unwrap_or_else(|| unreachable!("{TILE} rows"));
            }
            apply::<Result, S, SIDE, TILE>(simd, cut(memory, columns, row), to);
            first += across;
        }
    }
}

/// Kernels `[9][run]` of some input channels and a block of output channels, to planes.
struct Pack<'a> {
    kernels: &'a [f32],
    columns: &'a mut [f32],
    planes: &'a mut [f32],
    plane: usize,
}

impl WithSimd for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let run = self.kernels.len() / 9;
        let columns = cut_mut(self.columns, 3 * run, 3 * run);
        apply::<Kernel, S, 3, SIDE>(simd, cut(self.kernels, 3 * run, 3 * run), columns);
        let lines = self.columns.chunks_exact(3 * run);
        for (from, to) in lines.zip(self.planes.chunks_mut(SIDE * self.plane)) {
            let to = cut_mut(to, self.plane, run);
            apply::<Kernel, S, 3, SIDE>(simd, cut(from, run, run), to);
        }
    }
}

/// A convolution with its operands.
struct Convolution<'a, W> {
    arch: Arch,
    source: Strips,
    result: Strips,
    /// Output channels that are summed at once.
    width: usize,
    /// Of an output channel, a tap and an input channel.
    weight: W,
    tail: Tail<'a>,
    x: &'a [f32],
}

impl<'a, W: Fn(usize, usize, usize) -> f32 + Sync> Convolution<'a, W> {
    fn new(source: Strips, result: Strips, weight: W, tail: Tail<'a>, x: &'a [f32]) -> Self {
        let width = vectors(result.c, lanes()) * lanes();
        Self { arch: Arch::new(), source, result, width, weight, tail, x }
    }

    /// Blocks of output channels.
    fn blocks(&self) -> usize {
        self.result.c.div_ceil(self.width)
    }

    /// Weights of a block of output channels and some input channels as planes
    /// `[36][channels][width]`.
    fn pack(&self, block: usize, channels: Range<usize>, planes: &mut [f32]) {
        let (width, plane) = (self.width, channels.len() * self.width);
        let outputs = (self.result.c - block * width).min(width);
        // As many input channels at once as share a cache line of the weights.
        let run = LINE * width;
        let (mut kernels, mut columns) = (vec![0.0; 9 * run], vec![0.0; 3 * SIDE * run]);
        for first in channels.clone().step_by(LINE) {
            let run = LINE.min(channels.end - first) * width;
            for (tap, kernels) in kernels[..9 * run].chunks_exact_mut(run).enumerate() {
                for i in 0..outputs {
                    for (j, row) in kernels.chunks_exact_mut(width).enumerate() {
                        row[i] = (self.weight)(block * width + i, tap, first + j);
                    }
                }
            }
            self.arch.dispatch(Pack {
                kernels: &kernels[..9 * run],
                columns: &mut columns[..3 * SIDE * run],
                planes: &mut planes[(first - channels.start) * width..],
                plane,
            });
        }
    }

    /// What follows the sums of the elements of the result from `at` on.
    fn finish(&self, at: usize, y: &mut [f32]) {
        if let Some(bias) = self.tail.bias {
            for pixel in y.chunks_exact_mut(bias.len()) {
                pixel.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        self.tail.slice(at, y.len()).apply(y);
    }

    /// For few weights: all of them are transformed first, then each task has some tiles.
    fn by_tiles(&self, y: &mut [f32]) {
        let (source, result) = (self.source, self.result);
        let (image, down, across) = (result.image(), source.down(), source.across());
        // Some strips of an image, or whole images.
        let tiles = (y.len() / image * down * across / TASKS).clamp(TILES / 4, TILES);
        let images = (tiles / (down * across)).max(1);
        let strips = if images > 1 { down } else { (tiles / across).clamp(1, down) };
        let len = if strips == down { images * image } else { strips * TILE * result.row() };
        scratch(&PARTIAL, |weights| {
            let block = PLANES * source.c * self.width;
            let weights = weights.reserve(self.blocks() * block);
            let blocks = weights.par_chunks_mut(block).enumerate();
            blocks.for_each(|(b, planes)| self.pack(b, 0..source.c, planes));
            let weights = &*weights;
            y.par_chunks_mut(images * image).enumerate().for_each(|(i, y)| {
                y.par_chunks_mut(len).enumerate().for_each(|(j, y)| {
                    self.strips(i * images * down + j * strips, weights, y);
                    self.finish(i * images * image + j * len, y);
                });
            });
        });
    }

    /// The strips from `first` on, that fill `y`.
    fn strips(&self, first: usize, weights: &[f32], y: &mut [f32]) {
        let (arch, width, source, c) = (self.arch, self.width, self.source, self.source.c);
        let (image, strip) = (self.result.image(), TILE * self.result.row());
        let count = y.chunks(image).map(|y| y.len().div_ceil(strip)).sum::<usize>();
        let tiles = count * source.across();
        let (x_plane, plane) = (tiles * c, tiles * width);
        let planes = PLANES * x_plane + self.blocks() * PLANES * plane;
        let more = Transform::<Source, SIDE>::memory(source, c).max(Restore::memory(self.result));
        scratch(&BORDERED, |memory| {
            let (planes, memory) = memory.reserve(planes + more).split_at_mut(planes);
            let (xs, ys) = planes.split_at_mut(PLANES * x_plane);
            arch.dispatch(Transform {
                line: PhantomData::<Source>,
                map: source,
                images: self.x,
                strips: first..first + count,
                channels: 0..c,
                memory: &mut memory[..Transform::<Source, SIDE>::memory(source, c)],
                planes: xs,
                plane: x_plane,
            });
            for (p, x) in xs.chunks_exact(x_plane).enumerate() {
                for at in (p..self.blocks() * PLANES).step_by(PLANES) {
                    let weights = &weights[at * c * width..][..c * width];
                    let y = &mut ys[at * plane..][..plane];
                    product(arch, [c, width], weights, Some(&[0.0; 2 * LINE]), x, y);
                }
            }
            let map = self.result;
            arch.dispatch(Restore { map, planes: ys, plane, width, first: 0, memory, y });
        });
    }

    /// For few tiles: all of them are transformed first, then each task has some weights, which are
    /// used from the cache and never stored.
    fn by_weights(&self, y: &mut [f32]) {
        let (arch, width, source, c) = (self.arch, self.width, self.source, self.source.c);
        let (image, down) = (self.result.image(), source.down());
        let strips = y.len() / image * down;
        let tiles = strips * source.across();
        let (x_plane, plane) = (tiles * BLOCK, tiles * width);
        let xs = c.div_ceil(BLOCK) * PLANES * x_plane;
        let part = |i: usize| i * BLOCK..((i + 1) * BLOCK).min(c);
        scratch(&PARTIAL, |planes| {
            let planes = planes.reserve(xs + self.blocks() * PLANES * plane);
            let (xs, ys) = planes.split_at_mut(xs);
            xs.par_chunks_mut(PLANES * x_plane).enumerate().for_each(|(i, planes)| {
                let (channels, images) = (part(i), self.x);
                let more = Transform::<Source, SIDE>::memory(source, channels.len());
                scratch(&BORDERED, |memory| {
                    let memory = memory.reserve(more);
                    let (line, map, strips, plane) =
                        (PhantomData::<Source>, source, 0..strips, x_plane);
                    let t =
                        Transform { line, map, images, strips, channels, memory, planes, plane };
                    arch.dispatch(t);
                });
            });
            ys.par_chunks_mut(PLANES * plane).enumerate().for_each(|(b, ys)| {
                scratch(&BORDERED, |weights| {
                    let weights = weights.reserve(PLANES * BLOCK * width);
                    for (i, xs) in xs.chunks_exact(PLANES * x_plane).enumerate() {
                        let c = part(i).len();
                        self.pack(b, part(i), weights);
                        let bias = (i == 0).then_some(&[0.0; 2 * LINE][..]);
                        for (p, y) in ys.chunks_exact_mut(plane).enumerate() {
                            let (x, w) = (&xs[p * x_plane..], &weights[p * c * width..]);
                            let (x, w) = (&x[..tiles * c], &w[..c * width]);
                            product(arch, [c, width], w, bias, x, y);
                        }
                    }
                });
            });
            let ys = &*ys;
            y.par_chunks_mut(image).enumerate().for_each(|(i, y)| {
                scratch(&BORDERED, |memory| {
                    let (map, first) = (self.result, i * down * source.across());
                    let memory = memory.reserve(Restore::memory(map));
                    let planes = ys;
                    arch.dispatch(Restore { map, planes, plane, width, first, memory, y: &mut *y });
                });
                self.finish(i * image, y);
            });
        });
    }

    /// By whichever way leaves less in memory: the planes of the weights, or of both maps.
    fn run(&self, y: &mut [f32]) {
        let (c, oc) = (self.source.c, self.result.c);
        let tiles = y.len() / self.result.image() * self.source.down() * self.source.across();
        if tiles * (c + oc) < c * oc { self.by_weights(y) } else { self.by_tiles(y) }
    }
}

/// `y = conv(x, w)` and its tail.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], tail: Tail<'_>, y: &mut [f32]) {
    let [source, result] = Strips::of(g);
    let weight = |o: usize, tap: usize, c: usize| w[(o * 9 + tap) * g.c + c];
    Convolution::new(source, result, weight, tail, x).run(y);
}

/// `dx = conv_transpose(dy, w)` and its tail.
pub(super) fn input_gradient(g: &Geometry, dy: &[f32], w: &[f32], tail: Tail<'_>, dx: &mut [f32]) {
    let [result, source] = Strips::of(g);
    let weight = |c: usize, tap: usize, o: usize| w[(o * 9 + 8 - tap) * g.c + c];
    Convolution::new(source, result, weight, tail, dy).run(dx);
}

#[cfg(test)]
mod tests;

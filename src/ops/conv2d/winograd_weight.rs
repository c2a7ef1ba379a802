//! The weight gradient by Winograd, `dw = G^T [ sum_tiles (B^T d B) * (A dy A^T) ] G`, in the terms
//! of `winograd.rs`. Tasks depend on shapes only, as in `native_weight.rs`.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::geometry::Geometry;
use super::native::{Aligned, BORDERED, LINE, PARTIAL, lanes, scratch};
use super::native_weight::{TASKS, outer};
use super::winograd::{BLOCK, Gradient, KernelGradient, PLANES, SIDE, Source, Strips, TILE, TILES};
use super::winograd::{Transform, apply, cut, cut_mut};

/// A block of a weight gradient, over some images.
struct Block<'a> {
    arch: Arch,
    x: &'a [f32],
    source: Strips,
    dy: &'a [f32],
    result: Strips,
    strips: Range<usize>,
    /// Channels of the source and of the result.
    c: Range<usize>,
    o: Range<usize>,
}

impl Block<'_> {
    /// Computes `dw [o][9][c]`.
    fn run(&self, memory: &mut Aligned, dw: &mut [f32]) {
        let Self { arch, source, result, .. } = *self;
        let (across, c, o) = (source.across(), self.c.len(), self.o.len());
        let at_once = (TILES / across).clamp(1, self.strips.len());
        let slack = if c.is_multiple_of(lanes()) { 0 } else { LINE };
        let tiles = at_once * across;
        let (x_plane, y_plane, plane) = (tiles * c + slack, tiles * o, o * c);
        let [x_memory, y_memory] = [
            Transform::<Source, SIDE>::memory(source, c),
            Transform::<Gradient, TILE>::memory(result, o),
        ];
        let planes = PLANES * (x_plane + y_plane + plane);
        let more = x_memory.max(y_memory).max(3 * SIDE * c);
        let (planes, memory) = memory.reserve(planes + more).split_at_mut(planes);
        let (sums, planes) = planes.split_at_mut(PLANES * plane);
        let (xs, ys) = planes.split_at_mut(PLANES * x_plane);
        for first in self.strips.clone().step_by(at_once) {
            let strips = first..(first + at_once).min(self.strips.end);
            let tiles = strips.len() * across;
            arch.dispatch(Transform {
                line: PhantomData::<Source>,
                map: source,
                images: self.x,
                strips: strips.clone(),
                channels: self.c.clone(),
                memory: &mut memory[..x_memory],
                planes: xs,
                plane: x_plane,
            });
            arch.dispatch(Transform {
                line: PhantomData::<Gradient>,
                map: result,
                images: self.dy,
                strips,
                channels: self.o.clone(),
                memory: &mut memory[..y_memory],
                planes: ys,
                plane: y_plane,
            });
            let add = first > self.strips.start;
            for (p, sums) in sums.chunks_exact_mut(plane).enumerate() {
                let x = &xs[p * x_plane..][..tiles * c + slack];
                outer(arch, [c, o], x, &ys[p * y_plane..][..tiles * o], sums, add);
            }
        }
        arch.dispatch(Restore { sums, plane, c, columns: &mut memory[..3 * SIDE * c], dw });
    }
}

/// Sums `[36][plane / c][c]` to gradients `[plane / c][9][c]`.
struct Restore<'a> {
    sums: &'a [f32],
    plane: usize,
    c: usize,
    columns: &'a mut [f32],
    dw: &'a mut [f32],
}

impl WithSimd for Restore<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sums, plane, c, columns, dw } = self;
        for (o, dw) in dw.chunks_exact_mut(9 * c).enumerate() {
            for j in 0..SIDE {
                let from = cut(&sums[j * plane + o * c..], SIDE * plane, c);
                let to = cut_mut(&mut columns[j * c..], SIDE * c, c);
                apply::<KernelGradient, S, SIDE, 3>(simd, from, to);
            }
            for (from, to) in columns.chunks_exact(SIDE * c).zip(dw.chunks_exact_mut(3 * c)) {
                apply::<KernelGradient, S, SIDE, 3>(simd, cut(from, c, c), cut_mut(to, c, c));
            }
        }
    }
}

/// `dw[o, kh, kw, c] = sum over pixels of dy[p, o] * x[pixel(p, kh, kw), c]`.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (arch, [source, result]) = (Arch::new(), Strips::of(g));
    // Tasks are blocks of channels of both maps, and shares of the images where blocks are few.
    let (cs, os) = (g.c.div_ceil(BLOCK), g.oc.div_ceil(BLOCK));
    let tiles = g.n * source.down() * source.across();
    let shares = (TASKS / (cs * os)).min(tiles / TILES).max(1);
    let share = g.n.div_ceil(shares);
    let block = 9 * BLOCK.min(g.c) * BLOCK.min(g.oc);
    let part = |i: usize, of: usize| i * BLOCK..((i + 1) * BLOCK).min(of);
    scratch(&PARTIAL, |memory| {
        let partials = memory.reserve(g.n.div_ceil(share) * cs * os * block);
        partials.par_chunks_mut(block).enumerate().for_each(|(i, partial)| {
            let (n, o, c) = (i / (cs * os), part(i / cs % os, g.oc), part(i % cs, g.c));
            let strips = n * share * source.down()..((n + 1) * share).min(g.n) * source.down();
            let dw = &mut partial[..9 * o.len() * c.len()];
            let block = Block { arch, x, source, dy, result, strips, c, o };
            scratch(&BORDERED, |memory| block.run(memory, dw));
        });
        // Blocks lie side by side in the gradient; shares are added in order.
        dw.par_chunks_mut(9 * g.c).enumerate().for_each(|(o, dw)| {
            for (tap, dw) in dw.chunks_exact_mut(g.c).enumerate() {
                for (i, dw) in dw.chunks_mut(BLOCK).enumerate() {
                    let at = (o / BLOCK * cs + i) * block + (o % BLOCK * 9 + tap) * dw.len();
                    dw.copy_from_slice(&partials[at..][..dw.len()]);
                    for partial in partials[at..].chunks(cs * os * block).skip(1) {
                        dw.iter_mut().zip(partial).for_each(|(dw, p)| *dw += p);
                    }
                }
            }
        });
    });
}

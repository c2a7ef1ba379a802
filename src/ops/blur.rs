//! Gaussian blur with a width per image, separable, borders reflected without repeating the edge
//! (torchvision's):
//!
//! ```text
//! y = g * g^T * x,    g_i ~ exp(-i^2 / (2 sigma^2)),  |i| <= kernel / 2,  sum g = 1
//! ```
//!
//! Images whose flag is 0 are copied.

use rayon::prelude::*;

use super::augment_params::{check_params, slot};
use super::decode::{check_image, put};
use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity,
};
use crate::tensor::{DType, Shape, TensorType};

/// Index `i` of `n`, reflected at both ends; `i` is out by less than `n`.
pub(super) fn reflect(i: isize, n: usize) -> usize {
    let (i, last) = (i.unsigned_abs(), n - 1);
    if i > last { 2 * last - i } else { i }
}

fn weights(kernel: usize, sigma: f64) -> Vec<f64> {
    let radius = (kernel / 2) as f64;
    let g: Vec<f64> =
        (0..kernel).map(|i| (-0.5 * ((i as f64 - radius) / sigma).powi(2)).exp()).collect();
    let total: f64 = g.iter().sum();
    g.iter().map(|g| g / total).collect()
}

/// Image, parameters -> image.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianBlur {
    /// Width of the kernel in pixels, odd.
    pub kernel: usize,
}

impl OpDef for GaussianBlur {
    const NAME: &'static str = "gaussian_blur";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        let s = check_image(Self::NAME, inputs[0])?;
        check_params(Self::NAME, inputs[1], s.n)?;
        if self.kernel.is_multiple_of(2) || self.kernel / 2 >= s.h.min(s.w) {
            let message = format!(
                "a kernel of {} on images of {} x {}: it is odd, and its half is smaller \
                    than the image",
                self.kernel, s.h, s.w
            );
            return Err(ShapeError::new(Self::NAME, message));
        }
        Ok(vec![inputs[0]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (s, x, params) = (call.in_shape(0), call.inputs[0].f(), call.inputs[1].f());
        let radius = (self.kernel / 2) as isize;
        call.outputs[0]
            .par_chunks_mut(s.h * s.w * 4)
            .zip(params.par_chunks(slot::COUNT))
            .enumerate()
            .for_each(|(n, (image, p))| {
                if p[slot::BLUR].get() < 0.5 {
                    image.copy_from_slice(&x[s.at(n, 0, 0, 0)..][..image.len()]);
                    return;
                }
                let g = weights(self.kernel, p[slot::SIGMA].get());
                for (i, pixel) in image.chunks_mut(4).enumerate() {
                    let (y, x0) = ((i / s.w) as isize, (i % s.w) as isize);
                    let mut total = [0.0; 3];
                    for (gy, j) in g.iter().zip(-radius..) {
                        for (gx, i) in g.iter().zip(-radius..) {
                            let at = s.at(n, reflect(y + j, s.h), reflect(x0 + i, s.w), 0);
                            total = std::array::from_fn(|c| total[c] + gy * gx * x[at + c].get());
                        }
                    }
                    put(pixel, total);
                }
            });
    }
    /// Two passes: a kernel of 9 costs 18 taps instead of 81.
    fn native(&self, call: &mut Call<'_, f32>) {
        let (s, x, params) = (call.in_shape(0), call.inputs[0].f(), call.inputs[1].f());
        let len = s.h * s.w * 4;
        let radius = (self.kernel / 2) as isize;
        let images = call.outputs[0].par_chunks_mut(len).zip(x.par_chunks(len));
        images.zip(params.par_chunks(slot::COUNT)).for_each(|((image, x), p)| {
            if p[slot::BLUR] < 0.5 {
                image.copy_from_slice(x);
                return;
            }
            let g: Vec<f32> =
                weights(self.kernel, f64::from(p[slot::SIGMA])).iter().map(|&g| g as f32).collect();
            let mut rows = vec![0f32; len];
            for (from, to) in x.chunks(s.w * 4).zip(rows.chunks_mut(s.w * 4)) {
                for (x0, to) in to.chunks_mut(4).enumerate() {
                    for (g, i) in g.iter().zip(-radius..) {
                        let from = &from[reflect(x0 as isize + i, s.w) * 4..][..4];
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += g * from);
                    }
                }
            }
            for (y, to) in image.chunks_mut(s.w * 4).enumerate() {
                to.fill(0.0);
                for (g, j) in g.iter().zip(-radius..) {
                    let from = &rows[reflect(y as isize + j, s.h) * s.w * 4..][..s.w * 4];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += g * from);
                }
                to.chunks_mut(4).for_each(|pixel| pixel[3] = 0.0);
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let s = io.inputs[0].shape;
        let mut l = Lowering::default();
        let rows = l.scratch(DType::F32, s.len());
        let pass = |length: usize, stride: usize| {
            Kernel::new("gaussian_blur")
                .set("PIXELS", s.pixels())
                .set("IMAGE", s.h * s.w)
                .set("LENGTH", length)
                .set("STRIDE", stride)
                .set("RADIUS", self.kernel / 2)
        };
        let grid = target.grid_1d(s.pixels());
        l.push(pass(s.w, 1), grid, &[Binding::Input(0), Binding::Input(1), rows]);
        l.push(pass(s.h, s.w), grid, &[rows, Binding::Input(1), Binding::Output(0)]);
        l
    }
    fn cases() -> Vec<Case> {
        let case = |name, kernel, n, h: usize, w: usize| {
            let inputs = [
                (Shape::new(n, h, w, 4), Fill::Uniform(0.0, 1.0)),
                (Shape::rows(n, slot::COUNT), Fill::AugmentParams(h, w)),
            ];
            Case::new(name, GaussianBlur { kernel }, &inputs)
        };
        vec![
            case("k9 stl", 9, 4, 96, 96),
            case("k3n7h11w13", 3, 7, 11, 13),
            case("k9 reflects all of 5x7", 9, 5, 5, 7),
            case("k1 one pixel", 1, 3, 1, 1),
        ]
    }
}

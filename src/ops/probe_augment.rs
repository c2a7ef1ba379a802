//! Augmentation of the linear probe on CIFAR-10: a crop of the image padded by reflection, a flip,
//! the normalisation.
//!
//! The words of `rng::Philox::words(step, first_sample + n, 0)` of [`Stream::Probe`] give, in this
//! order, `dy = floor(u (2 pad + 1))`, `dx = floor(u (2 pad + 1))` and `flip = u < 1/2`. With `W`
//! the width,
//!
//! ```text
//! y[i, j] = x[reflect(i + dy - pad), reflect((flip ? W - 1 - j : j) + dx - pad)]
//! ```

use rayon::prelude::*;

use super::blur::reflect;
use super::decode::{check_pixels, put, set_normalization, standardize, unpack};
use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity,
};
use crate::rng::{Philox, Stream};
use crate::tensor::{Shape, TensorType};

/// Pixels `u32 [N, H, W, 1]` -> normalised image `[N, H, W, 4]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeAugment {
    /// Pixels of padding on each side.
    pub pad: usize,
    /// Mean of each channel, of values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

impl OpDef for ProbeAugment {
    const NAME: &'static str = "probe_augment";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        let s = check_pixels(Self::NAME, inputs[0])?;
        if self.pad >= s.h.min(s.w) {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "padding of {} reflects past images of \
                {} x {}",
                    self.pad, s.h, s.w
                ),
            ));
        }
        Ok(vec![TensorType::f32(Shape { c: 4, ..s })])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (s, pixels, step) = (call.in_shape(0), call.inputs[0].u(), call.step);
        let rng = Philox::new(step.seed(), Stream::Probe);
        call.outputs[0].par_chunks_mut(s.h * s.w * 4).enumerate().for_each(|(n, image)| {
            let [dy, dx, flip, _] =
                rng.uniforms(step.step, step.first_sample.wrapping_add(n as u32), 0);
            let shift =
                |u: f32| (u * (2 * self.pad + 1) as f32).floor() as isize - self.pad as isize;
            for (i, pixel) in image.chunks_mut(4).enumerate() {
                let (y, x) = (i / s.w, if flip < 0.5 { s.w - 1 - i % s.w } else { i % s.w });
                let at = s.at(
                    n,
                    reflect(y as isize + shift(dy), s.h),
                    reflect(x as isize + shift(dx), s.w),
                    0,
                );
                put(pixel, standardize(unpack(pixels[at]), self.mean, self.std));
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let s = io.inputs[0].shape;
        let kernel = Kernel::new("probe_augment")
            .set("PIXELS", s.pixels())
            .set("H", s.h)
            .set("W", s.w)
            .set("PAD", self.pad);
        let kernel = set_normalization(kernel, self.mean, self.std);
        Lowering::one(
            kernel,
            target.grid_1d(s.pixels()),
            &[Binding::Input(0), Binding::Output(0), Binding::Step],
        )
    }
    fn cases() -> Vec<Case> {
        let op = |pad| ProbeAugment { pad, mean: [0.49, 0.48, 0.45], std: [0.25, 0.24, 0.26] };
        vec![
            Case::new("cifar", op(4), &[(Shape::new(11, 32, 32, 1), Fill::Pixels)]),
            Case::new(
                "n13h5w7, padding reflects \
                all",
                op(4),
                &[(Shape::new(13, 5, 7, 1), Fill::Pixels)],
            ),
            Case::new("one pixel, no padding", op(0), &[(Shape::SCALAR, Fill::Pixels)]),
        ]
    }
}

//! The test images of the linear probe on STL-10: resized, the centre cut out, normalised.
//!
//! An image `h x w` is resized to `full_h x full_w` by the filter of [`super::CropResize`]; row `i`
//! of the output is row `i + top` of that, `top = (full_h - out_h) / 2` rounded to an integer,
//! halves to the even one as torchvision does (96 of 105: 4), and columns alike. torchvision rounds
//! resized images to bytes where they are PIL's; here they stay floats.

use rayon::prelude::*;

use super::augment::taps;
use super::decode::{check_pixels, put, set_normalization, standardize, unpack};
use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity,
};
use crate::tensor::{Shape, TensorType};

/// Pixels `u32 [N, H, W, 1]` -> normalised image `[N, out_h, out_w, 4]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ResizeCenter {
    /// Height that images are resized to.
    pub full_h: usize,
    /// Width that images are resized to.
    pub full_w: usize,
    /// Height of the centre, at most `full_h`.
    pub out_h: usize,
    /// Width of the centre, at most `full_w`.
    pub out_w: usize,
    /// Mean of each channel, of values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

/// First row or column of the centre.
fn margin(full: usize, out: usize) -> usize {
    let (half, odd) = ((full - out) / 2, (full - out) % 2);
    half + odd * (half % 2)
}

impl OpDef for ResizeCenter {
    const NAME: &'static str = "resize_center";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        let s = check_pixels(Self::NAME, inputs[0])?;
        let (out, full) = ([self.out_h, self.out_w], [self.full_h, self.full_w]);
        if out.contains(&0) || out[0] > full[0] || out[1] > full[1] {
            let message = format!(
                "no centre of {} x {} in an image of {} x \
                {}",
                out[0], out[1], full[0], full[1]
            );
            return Err(ShapeError::new(Self::NAME, message));
        }
        Ok(vec![TensorType::f32(Shape::new(s.n, self.out_h, self.out_w, 4))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (s, pixels) = (call.in_shape(0), call.inputs[0].u());
        let (top, left) = (margin(self.full_h, self.out_h), margin(self.full_w, self.out_w));
        let columns: Vec<_> = (0..self.out_w).map(|x| taps(left + x, s.w, self.full_w)).collect();
        call.outputs[0].par_chunks_mut(self.out_h * self.out_w * 4).enumerate().for_each(
            |(n, image)| {
                for (y, row) in image.chunks_mut(self.out_w * 4).enumerate() {
                    let (y0, wy) = taps(top + y, s.h, self.full_h);
                    for (pixel, (x0, wx)) in row.chunks_mut(4).zip(&columns) {
                        let mut total = [0.0; 3];
                        for (j, wy) in wy.iter().enumerate() {
                            for (i, wx) in wx.iter().enumerate() {
                                let v = unpack(pixels[s.at(n, y0 + j, x0 + i, 0)]);
                                total = std::array::from_fn(|c| total[c] + wy * wx * v[c]);
                            }
                        }
                        put(pixel, standardize(total, self.mean, self.std));
                    }
                }
            },
        );
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (s, out) = (io.inputs[0].shape, io.outputs[0].shape);
        let kernel = Kernel::new("resize_center")
            .set("PIXELS", out.pixels())
            .set("IN_H", s.h)
            .set("IN_W", s.w)
            .set("FULL_H", self.full_h)
            .set("FULL_W", self.full_w)
            .set("OUT_H", self.out_h)
            .set("OUT_W", self.out_w)
            .set("TOP", margin(self.full_h, self.out_h))
            .set("LEFT", margin(self.full_w, self.out_w));
        let kernel = set_normalization(kernel, self.mean, self.std);
        Lowering::one(
            kernel,
            target.grid_1d(out.pixels()),
            &[Binding::Input(0), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        let case = |name,
                    n,
                    [h, w]: [usize; 2],
                    [full_h, full_w]: [usize; 2],
                    [out_h, out_w]: [usize; 2]| {
            let op = ResizeCenter {
                full_h,
                full_w,
                out_h,
                out_w,
                mean: [0.43, 0.42, 0.39],
                std: [0.27, 0.26, 0.27],
            };
            // Slack: the place of a tap is rounded as well as its weight.
            Case::new(name, op, &[(Shape::new(n, h, w, 1), Fill::Pixels)]).slack(4.0)
        };
        vec![
            case("stl", 5, [96, 96], [105, 105], [96, 96]),
            case("down 41x23 to 19x14, centre 12x13", 7, [41, 23], [19, 14], [12, 13]),
            case("up 5x7 to 23x16, centre 16x1", 3, [5, 7], [23, 16], [16, 1]),
            case("one pixel", 2, [1, 1], [1, 1], [1, 1]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int(round((full - out) / 2))` of Python.
    #[test]
    fn margins_round_halves_to_even() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7, 9].map(|d| margin(20 + d, 20)), [0, 0, 1, 2, 2, 2, 4, 4]);
    }
}

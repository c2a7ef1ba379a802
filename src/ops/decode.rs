//! Pixels to normalised images.
//!
//! A pixel is one u32, `R | G << 8 | B << 16`. An image is f32 NHWC with 4 channels, the fourth 0:
//!
//! ```text
//! decode:     y[c] = (byte_c / 255 - mean[c]) / std[c]
//! normalize:  y[c] = (x[c] - mean[c]) / std[c]
//! ```
//!
//! Mean 0 and standard deviation 1 leave values in `[0, 1]`. None of the ops on images has a
//! gradient: they come before the parameters. Their references go over the images in parallel and
//! are what the `cpu` device runs, unless the op's file says otherwise: next to a training step
//! they take no time.

use rayon::prelude::*;

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity,
};
use crate::tensor::{DType, Shape, TensorType};

/// Refuses anything but pixels `u32 [N, H, W, 1]`.
pub(super) fn check_pixels(op: &'static str, ty: TensorType) -> Result<Shape, ShapeError> {
    let good = ty.dtype == DType::U32 && ty.shape.c == 1 && !ty.shape.is_empty();
    if good {
        Ok(ty.shape)
    } else {
        Err(ShapeError::new(
            op,
            format!(
                "pixels are {ty}, expected \
        u32[N, H, W, 1]"
            ),
        ))
    }
}

/// Refuses anything but an image `[N, H, W, 4]`.
pub(super) fn check_image(op: &'static str, ty: TensorType) -> Result<Shape, ShapeError> {
    let good = ty.dtype == DType::F32 && ty.shape.c == 4 && !ty.shape.is_empty();
    if good {
        Ok(ty.shape)
    } else {
        Err(ShapeError::new(
            op,
            format!(
                "the image is {ty}, expected \
        [N, H, W, 4]"
            ),
        ))
    }
}

/// Channels of a packed pixel, in `[0, 1]`.
pub(super) fn unpack(pixel: u32) -> [f64; 3] {
    [0, 8, 16].map(|shift| f64::from(pixel >> shift & 255) / 255.0)
}

/// Channels of an image's pixel.
pub(super) fn rgb<T: Real>(x: &[T]) -> [f64; 3] {
    [x[0].get(), x[1].get(), x[2].get()]
}

/// Writes a pixel and its zero channel.
pub(super) fn put<T: Real>(y: &mut [T], rgb: [f64; 3]) {
    let [r, g, b] = rgb;
    y.copy_from_slice(&[r, g, b, 0.0].map(T::of));
}

/// `(x - mean) / std`.
pub(super) fn standardize(rgb: [f64; 3], mean: [f32; 3], std: [f32; 3]) -> [f64; 3] {
    std::array::from_fn(|c| (rgb[c] - f64::from(mean[c])) / f64::from(std[c]))
}

/// Sets the consts of `lib/pixel.wgsl`.
pub(super) fn set_normalization(kernel: Kernel, mean: [f32; 3], std: [f32; 3]) -> Kernel {
    let kernel = kernel.set("MEAN_R", mean[0]).set("MEAN_G", mean[1]).set("MEAN_B", mean[2]);
    kernel.set("STD_R", std[0]).set("STD_G", std[1]).set("STD_B", std[2])
}

/// Packed pixels `u32 [N, H, W, 1]` to a normalised image `[N, H, W, 4]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// Mean of each channel, of values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

impl OpDef for Decode {
    const NAME: &'static str = "decode";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        let s = check_pixels(Self::NAME, inputs[0])?;
        Ok(vec![TensorType::f32(Shape { c: 4, ..s })])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let x = call.inputs[0].u();
        call.outputs[0]
            .par_chunks_mut(4)
            .zip(x)
            .for_each(|(y, &x)| put(y, standardize(unpack(x), self.mean, self.std)));
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let pixels = io.outputs[0].shape.pixels();
        let kernel =
            set_normalization(Kernel::new("decode").set("PIXELS", pixels), self.mean, self.std);
        Lowering::one(kernel, target.grid_1d(pixels), &[Binding::Input(0), Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        let (mean, std) = ([0.43, 0.42, 0.39], [0.27, 0.26, 0.27]);
        vec![
            Case::new("n3h11w7", Decode { mean, std }, &[(Shape::new(3, 11, 7, 1), Fill::Pixels)]),
            Case::new(
                "one pixel in [0,1]",
                Decode { mean: [0.0; 3], std: [1.0; 3] },
                &[(Shape::SCALAR, Fill::Pixels)],
            ),
            Case::new(
                "over 65535 groups",
                Decode { mean, std },
                &[(Shape::new(65, 256, 257, 1), Fill::Pixels)],
            ),
        ]
    }
}

/// Normalises an image `[N, H, W, 4]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalize {
    /// Mean of each channel.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

impl OpDef for Normalize {
    const NAME: &'static str = "normalize";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        check_image(Self::NAME, inputs[0])?;
        Ok(vec![inputs[0]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let x = call.inputs[0].f();
        call.outputs[0]
            .par_chunks_mut(4)
            .zip(x.par_chunks(4))
            .for_each(|(y, x)| put(y, standardize(rgb(x), self.mean, self.std)));
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let pixels = io.outputs[0].shape.pixels();
        let kernel =
            set_normalization(Kernel::new("normalize").set("PIXELS", pixels), self.mean, self.std);
        Lowering::one(kernel, target.grid_1d(pixels), &[Binding::Input(0), Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        let op = Normalize { mean: [0.43, 0.42, 0.39], std: [0.27, 0.26, 0.25] };
        vec![
            Case::new("n3h11w7", op.clone(), &[(Shape::new(3, 11, 7, 4), Fill::Uniform(0.0, 1.0))]),
            Case::new("stl", op.clone(), &[(Shape::new(2, 96, 96, 4), Fill::Uniform(0.0, 1.0))]),
            Case::new("one pixel", op, &[(Shape::vector(4), Fill::Uniform(0.0, 1.0))]),
        ]
    }
}

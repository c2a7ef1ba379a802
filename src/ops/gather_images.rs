//! Pixels of images that stay on a device ([`crate::ir::resident`]), where a step uploads which
//! images it wants and not the images.
//!
//! An image is its bytes (R, G, B a pixel) in words, the first byte lowest, from a word of its own
//! on. The images lie in parts that a device can bind, whole images in each, counted on from one
//! part to the next. With `b` the bytes of image `indices[n]`,
//!
//! ```text
//! y[n, p] = b[3 p] | b[3 p + 1] << 8 | b[3 p + 2] << 16
//! ```
//!
//! Three bytes a pixel, and not the word that the ops behind it read: a set takes three quarters of
//! the memory, and a step moves less than a thousandth of its bytes here either way. Each part is a
//! dispatch, which writes the images that lie there, so that any number of parts binds three
//! buffers.

use rayon::prelude::*;

use super::{Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target};
use crate::tensor::{Shape, TensorType};

/// Indices `u32 [N, 1, 1, 1]` and parts `u32 [images, 1, 1, words of an image]` -> pixels
/// `u32 [N, H, W, 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherImages {
    /// Height of an image.
    pub h: usize,
    /// Width of an image.
    pub w: usize,
}

impl GatherImages {
    /// Words that an image takes.
    pub fn words(&self) -> usize {
        (3 * self.h * self.w).div_ceil(size_of::<u32>())
    }

    /// The type of so many images.
    pub fn images(&self, images: usize) -> TensorType {
        TensorType::u32(Shape::new(images, 1, 1, self.words()))
    }
}

impl OpDef for GatherImages {
    const NAME: &'static str = "gather_images";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let [indices, parts @ ..] = inputs else {
            return Err(ShapeError::new(Self::NAME, "takes indices and parts, got nothing"));
        };
        let n = indices.shape.n;
        let good = *indices == TensorType::u32(Shape::new(n, 1, 1, 1)) && n > 0;
        if !good || parts.is_empty() {
            let count = parts.len();
            let message = format!("takes u32[N, 1, 1, 1] and parts, got {indices} and {count}");
            return Err(ShapeError::new(Self::NAME, message));
        }
        if let Some(ty) = parts.iter().find(|ty| **ty != self.images(ty.shape.n) || ty.shape.n == 0)
        {
            let message = format!("a part is {ty}, expected images of {} words", self.words());
            return Err(ShapeError::new(Self::NAME, message));
        }
        Ok(vec![TensorType::u32(Shape::new(n, self.h, self.w, 1))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (indices, words) = (call.inputs[0].u(), self.words());
        let parts: Vec<&[u32]> = call.inputs[1..].iter().map(super::Input::u).collect();
        let images: Vec<&[u32]> = parts.iter().flat_map(|part| part.chunks(words)).collect();
        let rows = call.words[0].par_chunks_mut(self.h * self.w);
        rows.zip(indices).for_each(|(row, &index)| {
            let image = images[index as usize];
            let byte = |k: usize| image[k / 4] >> (8 * (k % 4)) & 255;
            for (p, y) in row.iter_mut().enumerate() {
                *y = byte(3 * p) | byte(3 * p + 1) << 8 | byte(3 * p + 2) << 16;
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (pixels, mut first) = (io.outputs[0].shape.pixels(), 0);
        let mut lowering = Lowering::default();
        for (i, part) in io.inputs.iter().enumerate().skip(1) {
            let kernel = Kernel::new("gather_images")
                .set("PIXELS", pixels)
                .set("IMAGE", self.h * self.w)
                .set("WORDS", self.words())
                .set("FIRST", first)
                .set("COUNT", part.shape.n);
            let bindings = [Binding::Input(0), Binding::Input(i), Binding::Output(0)];
            lowering.push(kernel, target.grid_1d(pixels), &bindings);
            first += part.shape.n;
        }
        lowering
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, n: usize, [h, w]: [usize; 2], parts: &[usize]| {
            let op = GatherImages { h, w };
            let all: usize = parts.iter().sum();
            let indices = (Shape::new(n, 1, 1, 1), Fill::Below(all as u32));
            let part = |images: &usize| (op.images(*images).shape, Fill::Words);
            let inputs: Vec<_> = std::iter::once(indices).chain(parts.iter().map(part)).collect();
            Case::new(name, op, &inputs)
        };
        vec![
            case("37 of 50", 37, [32, 32], &[50]),
            case("odd side, bytes behind the last pixel", 11, [5, 7], &[13]),
            case("three parts, one of one image", 64, [6, 3], &[5, 1, 7]),
            case("more parts than a dispatch binds", 40, [3, 3], &[2; 9]),
            case("one pixel of one image", 3, [1, 1], &[1]),
            case("over 65535 groups", 65, [256, 257], &[2, 1]),
        ]
    }
}

//! SimCLR's augmentation, the images: crop and colour. [`super::AugmentParams`] draws the
//! parameters; both follow torchvision on floats.
//!
//! Crop: the box `h x w` is resized to `H x W` by an antialiased bilinear filter, then flipped.
//! Along one axis, with `s = h / H`, output `i` is
//!
//! ```text
//! y_i = sum_j k_j x_j / sum_j k_j,    k_j = max(0, 1 - |j + 1/2 - s (i + 1/2)| / max(s, 1)),    j inside the box
//! ```
//!
//! Colour jitter: `grey(x) = 0.2989 r + 0.587 g + 0.114 b`, and in the drawn order, each result
//! clamped to `[0, 1]`,
//!
//! ```text
//! brightness:  f x              contrast:  f x + (1 - f) mean(grey(x)) over the image as it then is
//! saturation:  f x + (1 - f) grey(x)      hue:  HSV, h + f modulo 1, back to RGB
//! ```
//!
//! Then `grey(x)` in all channels where the flag says so, and the normalisation.

use rayon::prelude::*;

use super::augment_params::{check_params, slot};
use super::decode::{check_image, check_pixels, put, rgb, set_normalization, standardize, unpack};
use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity,
};
use crate::tensor::{DType, Shape, TensorType};

/// First tap and weights of output `i`, for a box of `n` resized to `out`.
pub(super) fn taps(i: usize, n: usize, out: usize) -> (usize, Vec<f64>) {
    let scale = n as f64 / out as f64;
    let support = scale.max(1.0);
    let centre = (i as f64 + 0.5) * scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(n);
    let weights: Vec<f64> = (first..end)
        .map(|j| (1.0 - ((j as f64 + 0.5 - centre) / support).abs()).max(0.0))
        .collect();
    let total: f64 = weights.iter().sum();
    (first, weights.iter().map(|w| w / total).collect())
}

/// Pixels `u32 [N, H, W, 1]`, parameters of `V` views -> image `[V * N, out_h, out_w, 4]` in
/// `[0, 1]`: crop, resize, flip. Row `i` of the parameters is for image `i mod N`.
#[derive(Clone, Debug, PartialEq)]
pub struct CropResize {
    /// Height of the output.
    pub out_h: usize,
    /// Width of the output.
    pub out_w: usize,
}

impl OpDef for CropResize {
    const NAME: &'static str = "crop_resize";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        let s = check_pixels(Self::NAME, inputs[0])?;
        // At least one view.
        let rows = (inputs[1].shape.n / s.n).max(1) * s.n;
        check_params(Self::NAME, inputs[1], rows)?;
        if self.out_h * self.out_w == 0 {
            return Err(ShapeError::new(
                Self::NAME,
                format!("no output: {} x {}", self.out_h, self.out_w),
            ));
        }
        Ok(vec![TensorType::f32(Shape::new(rows, self.out_h, self.out_w, 4))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (s, pixels, params) = (call.in_shape(0), call.inputs[0].u(), call.inputs[1].f());
        let images = call.outputs[0].par_chunks_mut(self.out_h * self.out_w * 4);
        images.zip(params.par_chunks(slot::COUNT)).enumerate().for_each(|(i, (image, p))| {
            let n = i % s.n;
            let [top, left, h, w] = [0, 1, 2, 3].map(|i| p[slot::BOX + i].get() as usize);
            let columns: Vec<_> = (0..self.out_w).map(|x| taps(x, w, self.out_w)).collect();
            for y in 0..self.out_h {
                let (y0, wy) = taps(y, h, self.out_h);
                for x in 0..self.out_w {
                    let (x0, wx) =
                        &columns[if p[slot::FLIP].get() > 0.5 { self.out_w - 1 - x } else { x }];
                    let mut total = [0.0; 3];
                    for (j, wy) in wy.iter().enumerate() {
                        for (i, wx) in wx.iter().enumerate() {
                            let v = unpack(pixels[s.at(n, top + y0 + j, left + x0 + i, 0)]);
                            total = std::array::from_fn(|c| total[c] + wy * wx * v[c]);
                        }
                    }
                    put(&mut image[(y * self.out_w + x) * 4..][..4], total);
                }
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (s, out) = (io.inputs[0].shape, io.outputs[0].shape);
        let kernel = Kernel::new("crop_resize")
            .set("PIXELS", out.pixels())
            .set("IN_H", s.h)
            .set("IN_W", s.w)
            .set("OUT_H", self.out_h)
            .set("OUT_W", self.out_w);
        let kernel = if out.n > s.n { kernel.set("VIEWS", out.n / s.n) } else { kernel };
        Lowering::one(
            kernel,
            target.grid_1d(out.pixels()),
            &[Binding::Input(0), Binding::Input(1), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        let views = |name, views, n, h: usize, w: usize, out_h, out_w| {
            let inputs = [
                (Shape::new(n, h, w, 1), Fill::Pixels),
                (Shape::rows(views * n, slot::COUNT), Fill::AugmentParams(h, w)),
            ];
            // Slack: the place of a tap is rounded as well as its weight.
            Case::new(name, CropResize { out_h, out_w }, &inputs).slack(4.0)
        };
        let case = |name, n, h, w, out_h, out_w| views(name, 1, n, h, w, out_h, out_w);
        vec![
            case("cifar", 12, 32, 32, 32, 32),
            case("stl", 6, 96, 96, 96, 96),
            case("down 97x61 to 13x11", 7, 97, 61, 13, 11),
            case("up 5x7 to 23x17", 7, 5, 7, 23, 17),
            case("one pixel to 3x2", 2, 1, 1, 3, 2),
            case("to one pixel", 3, 11, 13, 1, 1),
            views("three views of five", 3, 5, 13, 11, 9, 7),
        ]
    }
}

fn grey([r, g, b]: [f64; 3]) -> f64 {
    0.2989 * r + 0.587 * g + 0.114 * b
}

fn blend(x: [f64; 3], other: f64, factor: f64) -> [f64; 3] {
    x.map(|x| (factor * x + (1.0 - factor) * other).clamp(0.0, 1.0))
}

/// Adds `turns` to the hue, by way of HSV.
fn shift_hue([r, g, b]: [f64; 3], turns: f64) -> [f64; 3] {
    let (v, low) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = v - low;
    if chroma == 0.0 {
        return [r, g, b];
    }
    let [rc, gc, bc] = [r, g, b].map(|x| (v - x) / chroma);
    let sixths = if v == r {
        bc - gc
    } else if v == g {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    let h = (sixths / 6.0 + turns).rem_euclid(1.0) * 6.0;
    let (s, f) = (chroma / v, h.fract());
    let (p, q, t) = (v * (1.0 - s), v * (1.0 - s * f), v * (1.0 - s * (1.0 - f)));
    [[v, t, p], [q, v, p], [p, v, t], [p, q, v], [t, p, v], [v, p, q]][h as usize % 6]
}

/// Image, parameters -> image: colour jitter, then grey, then the normalisation, where there is
/// one.
#[derive(Clone, Debug, PartialEq)]
pub struct ColorJitter {
    /// Mean and standard deviation of each channel; `None` leaves values in `[0, 1]` (a blur
    /// follows).
    pub normalize: Option<([f32; 3], [f32; 3])>,
}

impl OpDef for ColorJitter {
    const NAME: &'static str = "color_jitter";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        let s = check_image(Self::NAME, inputs[0])?;
        check_params(Self::NAME, inputs[1], s.n)?;
        Ok(vec![inputs[0]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (s, x, params) = (call.in_shape(0), call.inputs[0].f(), call.inputs[1].f());
        let len = s.h * s.w * 4;
        let images = call.outputs[0].par_chunks_mut(len).zip(x.par_chunks(len));
        images.zip(params.par_chunks(slot::COUNT)).for_each(|((y, x), p)| {
            let p = |i: usize| p[i].get();
            let mut image: Vec<[f64; 3]> = x.chunks(4).map(rgb).collect();
            if p(slot::JITTER) > 0.5 {
                for place in 0..4 {
                    let op = p(slot::ORDER + place) as usize;
                    let f = p(slot::FACTORS + op);
                    let mean = image.iter().map(|&v| grey(v)).sum::<f64>() / image.len() as f64;
                    image.iter_mut().for_each(|v| {
                        *v = match op {
                            0 => blend(*v, 0.0, f),
                            1 => blend(*v, mean, f),
                            2 => blend(*v, grey(*v), f),
                            _ => shift_hue(*v, f),
                        };
                    });
                }
            }
            for (y, v) in y.chunks_mut(4).zip(image) {
                let v = if p(slot::GREY) > 0.5 { [grey(v); 3] } else { v };
                put(y, self.normalize.map_or(v, |(mean, std)| standardize(v, mean, std)));
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let s = io.inputs[0].shape;
        let mut l = Lowering::default();
        let (rows, mean) = (l.scratch(DType::F32, s.n * s.h), l.scratch(DType::F32, s.n));
        let kernel =
            Kernel::new("color_jitter_rows").set("ROWS", s.n * s.h).set("H", s.h).set("W", s.w);
        l.push(kernel, target.grid_1d(s.n * s.h), &[Binding::Input(0), Binding::Input(1), rows]);
        let kernel = Kernel::new("color_jitter_mean").set("N", s.n).set("H", s.h).set("W", s.w);
        l.push(kernel, target.grid_1d(s.n), &[rows, mean]);
        let mut kernel =
            Kernel::new("color_jitter").set("PIXELS", s.pixels()).set("IMAGE", s.h * s.w);
        if let Some((mean, std)) = self.normalize {
            kernel = set_normalization(kernel.set("NORMALIZE", true), mean, std);
        }
        l.push(
            kernel,
            target.grid_1d(s.pixels()),
            &[Binding::Input(0), Binding::Input(1), mean, Binding::Output(0)],
        );
        l
    }
    fn cases() -> Vec<Case> {
        let case = |name, n, h: usize, w: usize, fill, normalize| {
            let inputs = [
                (Shape::new(n, h, w, 4), fill),
                (Shape::rows(n, slot::COUNT), Fill::AugmentParams(h, w)),
            ];
            Case::new(name, ColorJitter { normalize }, &inputs)
        };
        let unit = Fill::Uniform(0.0, 1.0);
        vec![
            case("stl", 5, 96, 96, unit, None),
            case("cifar", 24, 32, 32, unit, Some(([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]))),
            case("n7h11w13", 7, 11, 13, unit, None),
            case("dark, near grey", 7, 5, 3, Fill::Uniform(0.0, 1e-3), None),
            case("black", 3, 5, 3, Fill::Constant(0.0), None),
            case("grey", 3, 5, 3, Fill::Constant(0.7), None),
            case("two channels equal", 8, 5, 4, Fill::Alternate(0.2, 0.8), None),
            case("one pixel", 5, 1, 1, unit, None),
        ]
    }
}

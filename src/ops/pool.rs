//! Pooling. `max_pool2d: y[i, j] = max of x[p, q] over |p - 2i| <= 1, |q - 2j| <= 1` (3x3, stride
//! 2, padding 1: the ImageNet stem), NaN if one of them is, as in PyTorch. Its gradient goes to one
//! pixel of each window, the first in row-major order that equals the maximum, as in PyTorch (of
//! several NaN PyTorch takes the last).
//! `global_avg_pool: y[n, c] = mean over h, w of x[n, h, w, c]`; its gradient is `dy / (h*w)`
//! everywhere.

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, activation, arity, same,
};
use crate::tensor::{Shape, TensorType};
use Fill::{Normal, Ties};
use rayon::prelude::*;

const ODD: Shape = Shape::new(3, 11, 7, 4);

/// Output of the max-pool: `floor((h + 2 - 3) / 2) + 1`, likewise in `w`.
fn halved(x: Shape) -> Shape {
    Shape { h: x.h.div_ceil(2), w: x.w.div_ceil(2), ..x }
}

/// Pixels of the window around `2i`, clipped to the image.
fn window(i: usize, len: usize) -> std::ops::Range<usize> {
    (2 * i).saturating_sub(1)..(2 * i + 2).min(len)
}

/// Whether the reference takes a pixel for the maximum.
fn equal(x: f64, y: f64) -> bool {
    x == y || x.is_nan() && y.is_nan()
}

fn max_pool_kernel(file: &'static str, x: Shape) -> Kernel {
    Kernel::new(file).set("N", x.n).set("H", x.h).set("W", x.w).set("C4", x.c / 4)
}

/// Maximum over 3x3 windows, stride 2, padding 1.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPool2d;

impl OpDef for MaxPool2d {
    const NAME: &'static str = "max_pool2d";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        activation(Self::NAME, "x", inputs[0])?;
        Ok(vec![TensorType::f32(halved(inputs[0].shape))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, xs, ys) = (call.inputs[0].f(), call.in_shape(0), call.out_shape(0));
        for n in 0..ys.n {
            for i in 0..ys.h {
                for j in 0..ys.w {
                    for c in 0..ys.c {
                        let mut top: Option<T> = None;
                        for ky in 0..3 {
                            for kx in 0..3 {
                                let (Some(p), Some(q)) =
                                    ((2 * i + ky).checked_sub(1), (2 * j + kx).checked_sub(1))
                                else {
                                    continue;
                                };
                                if p < xs.h && q < xs.w {
                                    let here = x[xs.at(n, p, q, c)];
                                    let stays = |t: &T| t.get().is_nan() || t.get() >= here.get();
                                    top = top.filter(stays).or(Some(here));
                                }
                            }
                        }
                        call.outputs[0][ys.at(n, i, j, c)] =
                            top.expect("a window holds its centre");
                    }
                }
            }
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (x, xs, ys) = (call.inputs[0].f(), call.in_shape(0), call.out_shape(0));
        call.outputs[0].par_chunks_mut(ys.w * ys.c).enumerate().for_each(|(row, y)| {
            let (n, i) = (row / ys.h, row % ys.h);
            for (j, pixel) in y.chunks_exact_mut(ys.c).enumerate() {
                pixel.copy_from_slice(&x[xs.at(n, 2 * i, 2 * j, 0)..][..ys.c]);
                for p in window(i, xs.h) {
                    for q in window(j, xs.w) {
                        pixel
                            .iter_mut()
                            .zip(&x[xs.at(n, p, q, 0)..])
                            .for_each(|(y, &x)| *y = if x > *y || x.is_nan() { x } else { *y });
                    }
                }
            }
        });
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![node.dy[0].map(|dy| g.emit1(MaxPool2dGrad.into(), &[dy, node.x[0], node.y[0]]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let kernel = max_pool_kernel("max_pool2d", io.inputs[0].shape);
        Lowering::one(
            kernel,
            target.grid_1d(io.outputs[0].shape.len() / 4),
            &[Binding::Input(0), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n3h11w7c4", MaxPool2d, &[(ODD, Normal)]),
            Case::new("h1w1", MaxPool2d, &[(Shape::new(5, 1, 1, 36), Normal)]),
            Case::new("h2w8, ties", MaxPool2d, &[(Shape::new(2, 2, 8, 36), Ties)]),
            Case::new("all negative", MaxPool2d, &[(ODD, Fill::Uniform(-2.0, -1.0))]),
        ]
    }
}

/// Gradient of [`MaxPool2d`] from `dy`, `x` and `y`: each window gives `dy` to its first pixel that
/// equals `y`.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPool2dGrad;

impl OpDef for MaxPool2dGrad {
    const NAME: &'static str = "max_pool2d_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0, 1, 2], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        activation(Self::NAME, "x", inputs[1])?;
        let y = TensorType::f32(halved(inputs[1].shape));
        same(Self::NAME, "dy", y, inputs[0])?;
        same(Self::NAME, "y", y, inputs[2])?;
        Ok(vec![inputs[1]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, x, y) = (call.inputs[0].f(), call.inputs[1].f(), call.inputs[2].f());
        let (ys, xs) = (call.in_shape(0), call.out_shape(0));
        let mut dx = vec![0.0; xs.len()];
        for n in 0..ys.n {
            for i in 0..ys.h {
                for j in 0..ys.w {
                    for c in 0..ys.c {
                        let out = ys.at(n, i, j, c);
                        let mut pixels = (0..9).filter_map(|k| {
                            Some(((2 * i + k / 3).checked_sub(1)?, (2 * j + k % 3).checked_sub(1)?))
                        });
                        let first = pixels.find(|&(p, q)| {
                            p < xs.h && q < xs.w && equal(x[xs.at(n, p, q, c)].get(), y[out].get())
                        });
                        if let Some((p, q)) = first {
                            dx[xs.at(n, p, q, c)] += dy[out].get();
                        }
                    }
                }
            }
        }
        call.outputs[0].iter_mut().zip(dx).for_each(|(to, from)| *to = T::of(from));
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (dy, x, y) = (call.inputs[0].f(), call.inputs[1].f(), call.inputs[2].f());
        let (ys, xs) = (call.in_shape(0), call.out_shape(0));
        call.outputs[0].par_chunks_mut(xs.h * xs.w * xs.c).enumerate().for_each(|(n, dx)| {
            dx.fill(0.0);
            let mut open = vec![0.0; xs.c];
            for i in 0..ys.h {
                for j in 0..ys.w {
                    let out = ys.at(n, i, j, 0);
                    // What each channel still has to give away.
                    open.copy_from_slice(&dy[out..][..xs.c]);
                    for p in window(i, xs.h) {
                        for q in window(j, xs.w) {
                            let x = &x[xs.at(n, p, q, 0)..][..xs.c];
                            let dx = &mut dx[(p * xs.w + q) * xs.c..][..xs.c];
                            for (((dx, open), x), y) in
                                dx.iter_mut().zip(&mut open).zip(x).zip(&y[out..])
                            {
                                let hit = x == y || x.is_nan() && y.is_nan();
                                *dx += if hit { *open } else { 0.0 };
                                *open = if hit { 0.0 } else { *open };
                            }
                        }
                    }
                }
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let x = io.inputs[1].shape;
        let bindings =
            [Binding::Input(0), Binding::Input(1), Binding::Input(2), Binding::Output(0)];
        Lowering::one(max_pool_kernel("max_pool2d_grad", x), target.grid_1d(x.len() / 4), &bindings)
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, x: Shape| {
            Case::new(name, MaxPool2dGrad, &[(halved(x), Normal), (x, Ties), (halved(x), Ties)])
        };
        vec![
            case("n3h11w7c4", ODD),
            case("h1w1", Shape::new(5, 1, 1, 36)),
            case("h2w8", Shape::new(2, 2, 8, 36)),
            Case::new(
                "all equal",
                MaxPool2dGrad,
                &[
                    (halved(ODD), Normal),
                    (ODD, Fill::Constant(2.0)),
                    (halved(ODD), Fill::Constant(2.0)),
                ],
            ),
        ]
    }
}

/// Mean over the image: `[N, H, W, C]` to `[N, 1, 1, C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalAvgPool;

impl OpDef for GlobalAvgPool {
    const NAME: &'static str = "global_avg_pool";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        activation(Self::NAME, "x", inputs[0])?;
        Ok(vec![TensorType::f32(Shape::rows(inputs[0].shape.n, inputs[0].shape.c))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, s) = (call.inputs[0].f(), call.in_shape(0));
        for n in 0..s.n {
            for c in 0..s.c {
                let mut total = 0.0;
                for i in 0..s.h {
                    for j in 0..s.w {
                        total += x[s.at(n, i, j, c)].get();
                    }
                }
                call.outputs[0][n * s.c + c] = T::of(total / (s.h * s.w) as f64);
            }
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (x, s) = (call.inputs[0].f(), call.in_shape(0));
        let image = s.h * s.w * s.c;
        call.outputs[0].par_chunks_mut(s.c).zip(x.par_chunks(image)).for_each(|(y, x)| {
            y.fill(0.0);
            for pixel in x.chunks_exact(s.c) {
                y.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= (s.h * s.w) as f32);
        });
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Shape { h, w, .. } = g.ty(node.x[0]).shape;
        vec![node.dy[0].map(|dy| g.emit1(GlobalAvgPoolGrad { h, w }.into(), &[dy]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let x = io.inputs[0].shape;
        let kernel = Kernel::new("global_avg_pool")
            .set("N", x.n)
            .set("PIXELS", x.h * x.w)
            .set("C4", x.c / 4);
        Lowering::one(
            kernel,
            target.grid_1d(io.outputs[0].shape.len() / 4),
            &[Binding::Input(0), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n3h11w7c4", GlobalAvgPool, &[(ODD, Normal)]),
            Case::new("h11w11c36", GlobalAvgPool, &[(Shape::new(2, 11, 11, 36), Normal)]),
            Case::new("h1w1", GlobalAvgPool, &[(Shape::new(1, 1, 1, 4), Normal)]),
        ]
    }
}

/// Gradient of [`GlobalAvgPool`] over `h x w` pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalAvgPoolGrad {
    /// Height of the gradient.
    pub h: usize,
    /// Width of the gradient.
    pub w: usize,
}

impl OpDef for GlobalAvgPoolGrad {
    const NAME: &'static str = "global_avg_pool_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        activation(Self::NAME, "dy", inputs[0])?;
        let s = inputs[0].shape;
        if s.h * s.w != 1 || self.h * self.w == 0 {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "dy is {s}, dx has {} x {} \
                pixels",
                    self.h, self.w
                ),
            ));
        }
        Ok(vec![TensorType::f32(Shape { h: self.h, w: self.w, ..s })])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, s) = (call.inputs[0].f(), call.out_shape(0));
        for (at, dx) in call.outputs[0].iter_mut().enumerate() {
            let (n, c) = (at / (s.h * s.w * s.c), at % s.c);
            *dx = T::of(dy[n * s.c + c].get() / (s.h * s.w) as f64);
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (dy, s) = (call.inputs[0].f(), call.out_shape(0));
        call.outputs[0].par_chunks_mut(s.h * s.w * s.c).zip(dy.par_chunks(s.c)).for_each(
            |(dx, dy)| {
                for pixel in dx.chunks_exact_mut(s.c) {
                    pixel.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy / (s.h * s.w) as f32);
                }
            },
        );
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let x = io.outputs[0].shape;
        let kernel = Kernel::new("global_avg_pool_grad")
            .set("N", x.n)
            .set("PIXELS", x.h * x.w)
            .set("C4", x.c / 4);
        Lowering::one(kernel, target.grid_1d(x.len() / 4), &[Binding::Input(0), Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new(
                "h11w11c36",
                GlobalAvgPoolGrad { h: 11, w: 11 },
                &[(Shape::rows(3, 36), Normal)],
            ),
            Case::new("h1w1", GlobalAvgPoolGrad { h: 1, w: 1 }, &[(Shape::rows(1, 4), Normal)]),
        ]
    }
}

//! Nearest-neighbour resizing, `y[n, i, j, c] = x[n, floor(i*H/h), floor(j*W/w), c]` from `[H, W]`
//! to `[h, w]` (PyTorch's "nearest"). Its gradient adds up the pixels that copied one: those with
//! `ceil(p*h/H) <= i < ceil((p+1)*h/H)`, likewise in `j`.

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, activation, arity,
};
use crate::tensor::{Shape, TensorType};
use Fill::Normal;
use rayon::prelude::*;

fn resized(
    op: &'static str,
    inputs: &[TensorType],
    h: usize,
    w: usize,
) -> Result<Vec<TensorType>, ShapeError> {
    arity(op, inputs, 1)?;
    activation(op, "the input", inputs[0])?;
    if h == 0 || w == 0 {
        return Err(ShapeError::new(op, format!("{h} x {w} pixels")));
    }
    Ok(vec![TensorType::f32(Shape { h, w, ..inputs[0].shape })])
}

/// Columns of the large side that an invocation writes: what it divides by is not known to the
/// kernel's text, and a division costs a processor as much as they.
const STRIP: usize = 4;

/// The kernel between the two sides of a resizing.
fn resize(file: &'static str, small: Shape, large: Shape) -> Kernel {
    Kernel::new(file)
        .set("N", small.n)
        .set("H", small.h)
        .set("W", small.w)
        .set("OH", large.h)
        .set("OW", large.w)
        .set("C4", small.c / 4)
}

/// Resizes to `h x w`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpsampleNearest {
    /// Height of the output.
    pub h: usize,
    /// Width of the output.
    pub w: usize,
}

impl OpDef for UpsampleNearest {
    const NAME: &'static str = "upsample_nearest";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        resized(Self::NAME, inputs, self.h, self.w)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, xs, ys) = (call.inputs[0].f(), call.in_shape(0), call.out_shape(0));
        for n in 0..ys.n {
            for i in 0..ys.h {
                for j in 0..ys.w {
                    for c in 0..ys.c {
                        call.outputs[0][ys.at(n, i, j, c)] =
                            x[xs.at(n, i * xs.h / ys.h, j * xs.w / ys.w, c)];
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
                pixel.copy_from_slice(&x[xs.at(n, i * xs.h / ys.h, j * xs.w / ys.w, 0)..][..ys.c]);
            }
        });
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Shape { h, w, .. } = g.ty(node.x[0]).shape;
        vec![node.dy[0].map(|dy| g.emit1(UpsampleNearestGrad { h, w }.into(), &[dy]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (x, y) = (io.inputs[0].shape, io.outputs[0].shape);
        let kernel = resize("upsample_nearest", x, y).set("STRIP", STRIP);
        let grid = target.grid_1d(y.n * y.h * y.w.div_ceil(STRIP) * (y.c / 4));
        Lowering::one(kernel, grid, &[Binding::Input(0), Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        let case =
            |name: &str, x: Shape, h, w| Case::new(name, UpsampleNearest { h, w }, &[(x, Normal)]);
        vec![
            case("x2", Shape::new(2, 3, 5, 4), 6, 10),
            case("3x2 to 7x5", Shape::new(3, 3, 2, 36), 7, 5),
            case("1x1 to 11x11", Shape::new(2, 1, 1, 4), 11, 11),
            case("7x5 to 3x5", Shape::new(2, 7, 5, 4), 3, 5),
            case("over 65535 groups", Shape::new(1, 8, 1, 4), 2100 * 2048, 1).forward_only(),
        ]
    }
}

/// Gradient of [`UpsampleNearest`] from an input of `h x w`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpsampleNearestGrad {
    /// Height of the gradient.
    pub h: usize,
    /// Width of the gradient.
    pub w: usize,
}

impl OpDef for UpsampleNearestGrad {
    const NAME: &'static str = "upsample_nearest_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        resized(Self::NAME, inputs, self.h, self.w)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, ys, xs) = (call.inputs[0].f(), call.in_shape(0), call.out_shape(0));
        let mut dx = vec![0.0; xs.len()];
        for n in 0..ys.n {
            for i in 0..ys.h {
                for j in 0..ys.w {
                    for c in 0..ys.c {
                        dx[xs.at(n, i * xs.h / ys.h, j * xs.w / ys.w, c)] +=
                            dy[ys.at(n, i, j, c)].get();
                    }
                }
            }
        }
        call.outputs[0].iter_mut().zip(dx).for_each(|(to, from)| *to = T::of(from));
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (dy, ys, xs) = (call.inputs[0].f(), call.in_shape(0), call.out_shape(0));
        let copies = |p: usize, small: usize, large: usize| {
            (p * large).div_ceil(small)..((p + 1) * large).div_ceil(small)
        };
        call.outputs[0].par_chunks_mut(xs.w * xs.c).enumerate().for_each(|(row, dx)| {
            let (n, p) = (row / xs.h, row % xs.h);
            dx.fill(0.0);
            for (q, pixel) in dx.chunks_exact_mut(xs.c).enumerate() {
                for i in copies(p, xs.h, ys.h) {
                    for j in copies(q, xs.w, ys.w) {
                        pixel
                            .iter_mut()
                            .zip(&dy[ys.at(n, i, j, 0)..])
                            .for_each(|(to, from)| *to += from);
                    }
                }
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (dy, dx) = (io.inputs[0].shape, io.outputs[0].shape);
        let kernel = resize("upsample_nearest_grad", dx, dy);
        let grid = target.grid_1d(dx.len() / 4);
        Lowering::one(kernel, grid, &[Binding::Input(0), Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, dy: Shape, h, w| {
            Case::new(name, UpsampleNearestGrad { h, w }, &[(dy, Normal)])
        };
        vec![
            case("x2", Shape::new(2, 6, 10, 4), 3, 5),
            case("7x5 to 3x2", Shape::new(3, 7, 5, 36), 3, 2),
            case("11x11 to 1x1", Shape::new(2, 11, 11, 4), 1, 1),
            case("3x5 to 7x5, some never copied", Shape::new(2, 3, 5, 4), 7, 5),
        ]
    }
}

//! Rows on the unit sphere: `y[n] = x[n] / r_n` with `r_n = max(|x[n]|, 1e-12)`, as PyTorch's
//! `F.normalize`.
//!
//! ```text
//! dx[n] = (dy[n] - y[n] (y[n] . dy[n])) / r_n    where |x[n]| > 1e-12, else dy[n] / r_n
//! ```
//!
//! Rows of zeros may be appended, so that the rows can be the columns of a product (`y y^T`), whose
//! number is a multiple of 4.

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, activation, arity,
};
use crate::tensor::{Shape, TensorType};
use Fill::{Constant, Normal, Uniform};

const EPS: f32 = 1e-12;

fn check(op: &'static str, x: TensorType) -> Result<(), ShapeError> {
    activation(op, "the input", x)?;
    if x.shape == Shape::rows(x.shape.n, x.shape.c) {
        Ok(())
    } else {
        Err(ShapeError::new(
            op,
            format!(
                "the \
        input is {x}, expected rows"
            ),
        ))
    }
}

fn norm<T: Real>(x: &[T]) -> f64 {
    x.iter().map(|x| x.get() * x.get()).sum::<f64>().sqrt()
}

/// `max(norm, EPS)`, NaN where the norm is: the whole row is then.
fn radius(norm: f64) -> f64 {
    let eps = f64::from(EPS);
    if norm < eps { eps } else { norm }
}

fn kernel(file: &'static str, x: Shape) -> Kernel {
    Kernel::new(file).set("N", x.n).set("C4", x.c / 4).set("EPS", EPS)
}

/// `[N, 1, 1, C]` to `[rows, 1, 1, C]`: rows of length 1, then rows of zeros.
#[derive(Clone, Debug, PartialEq)]
pub struct L2Normalize {
    /// Rows of the output, at least those of the input.
    pub rows: usize,
}

impl OpDef for L2Normalize {
    const NAME: &'static str = "l2_normalize";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        check(Self::NAME, inputs[0])?;
        if self.rows < inputs[0].shape.n {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "{} rows do not hold the input \
                {}",
                    self.rows, inputs[0]
                ),
            ));
        }
        Ok(vec![TensorType::f32(Shape { n: self.rows, ..inputs[0].shape })])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, s) = (call.inputs[0].f(), call.in_shape(0));
        let (rows, rest) = call.outputs[0].split_at_mut(s.len());
        for (y, x) in rows.chunks_mut(s.c).zip(x.chunks(s.c)) {
            let r = radius(norm(x));
            y.iter_mut().zip(x).for_each(|(y, x)| *y = T::of(x.get() / r));
        }
        rest.fill(T::of(0.0));
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![node.dy[0].map(|dy| g.emit1(L2NormalizeGrad.into(), &[dy, node.x[0]]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let kernel = kernel("l2_normalize", io.inputs[0].shape).set("ROWS", self.rows);
        Lowering::one(kernel, target.grid_1d(self.rows), &[Binding::Input(0), Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        let case = |name, rows, n, c, fill| {
            Case::new(name, L2Normalize { rows }, &[(Shape::rows(n, c), fill)])
        };
        vec![
            case("n1c4", 1, 1, 4, Normal),
            case("n7c36 to 8", 8, 7, 36, Normal),
            case("n67c128 to 68", 68, 67, 128, Normal),
            case("nearly one direction", 5, 5, 8, Uniform(0.999, 1.0)),
            case("zero rows", 8, 5, 8, Constant(0.0)),
            case("below the floor", 4, 3, 8, Uniform(-1e-13, 1e-13)).forward_only(),
            case("large", 4, 4, 8, Uniform(-1e15, 1e15)).forward_only(),
        ]
    }
}

/// Gradient of the rows, of (dy, x); the appended rows have none.
#[derive(Clone, Debug, PartialEq)]
pub struct L2NormalizeGrad;

impl OpDef for L2NormalizeGrad {
    const NAME: &'static str = "l2_normalize_grad";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        check(Self::NAME, inputs[1])?;
        L2Normalize { rows: inputs[0].shape.n }.outputs(&inputs[1..])?;
        super::same(
            Self::NAME,
            "dy",
            TensorType::f32(Shape { n: inputs[0].shape.n, ..inputs[1].shape }),
            inputs[0],
        )?;
        Ok(vec![inputs[1]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, x, c) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(1).c);
        for ((dx, dy), x) in call.outputs[0].chunks_mut(c).zip(dy.chunks(c)).zip(x.chunks(c)) {
            let (r, eps) = (norm(x), f64::from(EPS));
            let along = if r > eps {
                x.iter().zip(dy).map(|(x, dy)| x.get() / r * dy.get()).sum()
            } else {
                0.0
            };
            let r = radius(r);
            dx.iter_mut()
                .zip(x)
                .zip(dy)
                .for_each(|((dx, x), dy)| *dx = T::of((dy.get() - x.get() / r * along) / r));
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let x = io.inputs[1].shape;
        let bindings = [Binding::Input(0), Binding::Input(1), Binding::Output(0)];
        Lowering::one(kernel("l2_normalize_grad", x), target.grid_1d(x.n), &bindings)
    }
    fn cases() -> Vec<Case> {
        let case = |name, rows, n, c, fill| {
            Case::new(
                name,
                L2NormalizeGrad,
                &[(Shape::rows(rows, c), Normal), (Shape::rows(n, c), fill)],
            )
        };
        vec![
            case("n1c4", 1, 1, 4, Normal),
            case("n7c36 of 8", 8, 7, 36, Normal),
            case("n67c128 of 68", 68, 67, 128, Normal),
            case("zero rows", 8, 5, 8, Constant(0.0)),
            case("below the floor", 4, 3, 8, Uniform(-1e-13, 1e-13)),
            case("large", 4, 4, 8, Uniform(-1e15, 1e15)),
        ]
    }
}

//! Column sums: `y[c] = sum over n, h, w of x[n, h, w, c]`, the gradient of a bias.
//!
//! A column may have 262,144 rows, so it is summed as a tree: chunks of at most [`FAN_IN`] rows,
//! then chunks of chunks. Depth `d` of fan-in `f` bounds the relative error by `d*f*eps` (of the
//! sum of magnitudes) instead of `rows*eps`, and the order is fixed by the shape.

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Normal, Uniform};
use rayon::prelude::*;

use super::native::{folded, run_length, simd, task_length};

/// Most partials that one invocation reads.
pub(super) const FAN_IN: usize = 64;

/// Rows that one invocation reads: few enough to occupy a GPU, enough that 4,096 rows need one
/// stage of partials.
pub(super) fn chunk_rows(rows: usize) -> usize {
    rows.div_ceil(FAN_IN).clamp(16, FAN_IN)
}

/// One stage: `rows` rows to `ceil(rows / chunk)`.
fn stage(
    l: &mut Lowering,
    target: &Target,
    rows: usize,
    chunk: usize,
    columns: usize,
    bindings: &[Binding],
) {
    let vector = columns.is_multiple_of(4);
    let lanes = if vector { columns / 4 } else { columns };
    let file = if vector { "sum_rows" } else { "sum_rows_scalar" };
    let kernel = Kernel::new(file).set("ROWS", rows).set("CHUNK", chunk).set("LANES", lanes);
    let kernel = if vector { kernel.set("AHEAD", target.rows_ahead()) } else { kernel };
    l.push(kernel, target.grid_1d(rows.div_ceil(chunk) * lanes), bindings);
}

/// Adds the stages that leave at most `most` rows, and returns where they are and how many.
pub(super) fn shrink(
    l: &mut Lowering,
    target: &Target,
    mut from: Binding,
    mut rows: usize,
    columns: usize,
    most: usize,
) -> (Binding, usize) {
    while rows > most {
        let chunk = chunk_rows(rows);
        let to = l.scratch(DType::F32, rows.div_ceil(chunk) * columns);
        stage(l, target, rows, chunk, columns, &[from, to]);
        (from, rows) = (to, rows.div_ceil(chunk));
    }
    (from, rows)
}

/// Adds the stages that leave the sums of so many columns.
pub(super) fn sum_to(
    l: &mut Lowering,
    target: &Target,
    from: Binding,
    [rows, columns]: [usize; 2],
    to: Binding,
) {
    let (from, rows) = shrink(l, target, from, rows, columns, FAN_IN);
    stage(l, target, rows, rows, columns, &[from, to]);
}

/// The column sums of rows as long as `y`, natively.
pub(super) fn column_sums(x: &[f32], y: &mut [f32]) {
    let (c, length) = (y.len(), run_length(y.len()));
    let parts: Vec<Vec<f64>> = x
        .par_chunks(task_length(c))
        .map(|x| {
            let mut total = vec![0.0; length];
            simd(
                #[inline(always)]
                || {
                    x.chunks(length)
                        .for_each(|x| total.iter_mut().zip(x).for_each(|(t, x)| *t += x))
                },
            );
            folded(&total, c)
        })
        .collect();
    for (c, y) in y.iter_mut().enumerate() {
        *y = parts.iter().map(|p| p[c]).sum::<f64>() as f32;
    }
}

/// `y[c] = sum over n, h, w of x[n, h, w, c]`; any number of channels.
#[derive(Clone, Debug, PartialEq)]
pub struct SumRows;

impl OpDef for SumRows {
    const NAME: &'static str = "sum_rows";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        same(Self::NAME, "x", TensorType::f32(inputs[0].shape), inputs[0])?;
        if inputs[0].shape.is_empty() {
            return Err(ShapeError::new(Self::NAME, format!("x is {}, which is empty", inputs[0])));
        }
        Ok(vec![TensorType::f32(Shape::vector(inputs[0].shape.c))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, s) = (call.inputs[0].f(), call.in_shape(0));
        for c in 0..s.c {
            call.outputs[0][c] = T::of((0..s.pixels()).map(|row| x[row * s.c + c].get()).sum());
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        column_sums(call.inputs[0].f(), call.outputs[0]);
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let s = io.inputs[0].shape;
        let mut l = Lowering::default();
        sum_to(&mut l, target, Binding::Input(0), [s.pixels(), s.c], Binding::Output(0));
        l
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n3h11w11c4", SumRows, &[(Shape::new(3, 11, 11, 4), Normal)]),
            Case::new("rows1c36", SumRows, &[(Shape::rows(1, 36), Normal)]),
            Case::new("rows64c10", SumRows, &[(Shape::rows(64, 10), Normal)]),
            Case::new("rows4097c1", SumRows, &[(Shape::rows(4097, 1), Normal)]),
            Case::new("rows7c2048", SumRows, &[(Shape::rows(7, 2048), Normal)]),
            Case::new("rows262144c4", SumRows, &[(Shape::new(64, 64, 64, 4), Uniform(0.0, 1.0))]),
        ]
    }
}

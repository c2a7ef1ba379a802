//! Cosine similarity of rows, logged for pairs of latents:
//! `y[n] = a.b / (max(|a|, 1e-8) max(|b|, 1e-8))`, as PyTorch. No gradient.

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity, same,
};
use crate::tensor::{Shape, TensorType};
use Fill::Normal;

const EPS: f32 = 1e-8;

/// Similarity of each row of (a, b), `[N, 1, 1, L]` to `[N, 1, 1, 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CosineSimilarity;

impl OpDef for CosineSimilarity {
    const NAME: &'static str = "cosine_similarity";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        same(Self::NAME, "the second input", inputs[0], inputs[1])?;
        Ok(vec![TensorType::f32(Shape::rows(inputs[0].shape.n, 1))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (a, b) = (call.inputs[0].f(), call.inputs[1].f());
        let len = call.in_shape(0).len() / call.in_shape(0).n;
        for (n, y) in call.outputs[0].iter_mut().enumerate() {
            let (a, b) = (&a[n * len..][..len], &b[n * len..][..len]);
            let dot =
                |p: &[T], q: &[T]| p.iter().zip(q).map(|(p, q)| p.get() * q.get()).sum::<f64>();
            let norm = |p: &[T]| dot(p, p).sqrt().max(f64::from(EPS));
            *y = T::of(dot(a, b) / (norm(a) * norm(b)));
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let kernel = Kernel::new("cosine_similarity")
            .set("N", shape.n)
            .set("L", shape.len() / shape.n)
            .set("EPS", EPS);
        Lowering::one(
            kernel,
            target.grid_1d(shape.n),
            &[Binding::Input(0), Binding::Input(1), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        let pair = |shape: Shape, fill: Fill| [(shape, Normal), (shape, fill)];
        vec![
            Case::new("n1c4", CosineSimilarity, &pair(Shape::rows(1, 4), Normal)),
            Case::new("n67c36", CosineSimilarity, &pair(Shape::rows(67, 36), Normal)),
            Case::new("zero rows", CosineSimilarity, &pair(Shape::rows(5, 8), Fill::Constant(0.0))),
            Case::new(
                "opposite",
                CosineSimilarity,
                &[
                    (Shape::rows(3, 128), Fill::Constant(2.0)),
                    (Shape::rows(3, 128), Fill::Constant(-0.5)),
                ],
            ),
        ]
    }
}

//! Noise of the reparameterised sample: every sample has a sequence of normals, of which element
//! `i` is lane `i mod 4` of the normals of `philox(stream Noise, step, first_sample + n, i / 4)`
//! (`rng.rs`), whatever the batch size and the device. Element `e` of the output's sample `n` is
//! number `first + e`.

use super::{Binding, Call, Case, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity};
use crate::rng::{Philox, Stream};
use crate::tensor::{Shape, TensorType};

/// Standard normals, new ones each step.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomNormal {
    /// Shape of the output, `[N, …]`.
    pub shape: Shape,
    /// Elements of a sample's sequence that are passed over, a multiple of 4: a step that draws
    /// twice draws different ones.
    pub first: usize,
}

impl RandomNormal {
    /// The beginning of every sample's sequence.
    pub const fn new(shape: Shape) -> Self {
        Self { shape, first: 0 }
    }
}

impl OpDef for RandomNormal {
    const NAME: &'static str = "random_normal";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 0)?;
        if self.shape.is_empty() || !self.first.is_multiple_of(4) {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "{} is empty, or {} is no multiple of \
                4",
                    self.shape, self.first
                ),
            ));
        }
        Ok(vec![TensorType::f32(self.shape)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let rng = Philox::new(call.step.seed(), Stream::Noise);
        for n in 0..self.shape.n {
            for e in 0..self.shape.at(1, 0, 0, 0) {
                let draw = rng.normals(
                    call.step.step,
                    call.step.first_sample.wrapping_add(n as u32),
                    ((self.first + e) / 4) as u32,
                );
                call.outputs[0][self.shape.at(n, 0, 0, 0) + e] = T::of(draw[e % 4]);
            }
        }
    }
    fn lower(&self, _io: &Io, target: &Target) -> Lowering {
        let per = self.shape.len() / self.shape.n;
        let quads = self.shape.n * per.div_ceil(4);
        let kernel = Kernel::new("random_normal")
            .set("PER", per)
            .set("QUADS_PER", per.div_ceil(4))
            .set("QUADS", quads)
            .set("FIRST_QUAD", self.first / 4);
        Lowering::one(kernel, target.grid_1d(quads), &[Binding::Output(0), Binding::Step])
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n1c1", RandomNormal::new(Shape::SCALAR), &[]),
            Case::new("n5c4", RandomNormal::new(Shape::rows(5, 4)), &[]),
            Case::new("n3h2w1c7", RandomNormal::new(Shape::new(3, 2, 1, 7)), &[]),
            Case::new("n257c128", RandomNormal::new(Shape::rows(257, 128)), &[]),
            Case::new("n5c8 from 24", RandomNormal { shape: Shape::rows(5, 8), first: 24 }, &[]),
        ]
    }
}

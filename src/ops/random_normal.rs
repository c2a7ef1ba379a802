//! Noise of the reparameterised sample: element `e` of sample `n` is lane `e mod 4` of the normals of
//! `philox(stream Noise, step, first_sample + n, e / 4)` (`rng.rs`), whatever the batch size and the device.

use super::{Binding, Case, Io, Kernel, Lowering, OpDef, Real, Run, ShapeError, Target, arity};
use crate::rng::{Philox, Stream};
use crate::tensor::{Shape, TensorType};

/// Standard normals, new ones each step.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomNormal {
    /// Shape of the output, `[N, …]`.
    pub shape: Shape,
}

impl OpDef for RandomNormal {
    const NAME: &'static str = "random_normal";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 0)?;
        if self.shape.is_empty() { Err(ShapeError::new(Self::NAME, format!("{} is empty", self.shape))) } else { Ok(vec![TensorType::f32(self.shape)]) }
    }
    fn reference<T: Real>(&self, run: &mut Run<'_, T>) {
        let rng = Philox::new(run.step.seed(), Stream::Noise);
        for n in 0..self.shape.n {
            for e in 0..self.shape.at(1, 0, 0, 0) {
                let draw = rng.normals(run.step.step, run.step.first_sample.wrapping_add(n as u32), (e / 4) as u32);
                run.outputs[0][self.shape.at(n, 0, 0, 0) + e] = T::of(draw[e % 4]);
            }
        }
    }
    fn lower(&self, _io: &Io, target: &Target) -> Lowering {
        let per = self.shape.len() / self.shape.n;
        let quads = self.shape.n * per.div_ceil(4);
        let kernel = Kernel::new("random_normal").set("PER", per).set("QUADS_PER", per.div_ceil(4)).set("QUADS", quads);
        Lowering::one(kernel, target.grid_1d(quads), &[Binding::Output(0), Binding::Step])
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n1c1", RandomNormal { shape: Shape::SCALAR }, &[]),
            Case::new("n5c4", RandomNormal { shape: Shape::rows(5, 4) }, &[]),
            Case::new("n3h2w1c7", RandomNormal { shape: Shape::new(3, 2, 1, 7) }, &[]),
            Case::new("n257c128", RandomNormal { shape: Shape::rows(257, 128) }, &[]),
        ]
    }
}

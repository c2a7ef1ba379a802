//! Mean over the batches of an accumulated step: `acc = scale x` in the first batch, whose first
//! sample is 0, and `acc + scale x` in the others. The first batch replaces what was there, so
//! nothing is cleared between steps, and a NaN does not outlive its step.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, Op, OpDef, Real, ShapeError, Target, arity,
    same,
};
use crate::tensor::{Shape, TensorType};
use Fill::Normal;

/// Elements of a task of the native version.
const CHUNK: usize = 1 << 16;

/// Adds `scale x` to the accumulator; inputs (acc, x), updating acc.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulate {
    /// 1 over the number of batches.
    pub scale: f32,
}

impl OpDef for Accumulate {
    const NAME: &'static str = "accumulate";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        same(
            Self::NAME,
            "the accumulator",
            TensorType::f32(Shape::vector(inputs[0].shape.len())),
            inputs[0],
        )?;
        same(Self::NAME, "x", inputs[0], inputs[1])?;
        Ok(vec![inputs[0]])
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
    fn part(&self, _elements: Range<usize>) -> Option<Op> {
        Some(self.clone().into())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, first) = (call.inputs[1].f(), call.step.first_sample == 0);
        for (acc, x) in call.outputs[0].iter_mut().zip(x) {
            let before = if first { 0.0 } else { acc.get() };
            *acc = T::of(before + f64::from(self.scale) * x.get());
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (x, first, scale) = (call.inputs[1].f(), call.step.first_sample == 0, self.scale);
        call.outputs[0].par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(acc, x)| {
            let pairs = acc.iter_mut().zip(x);
            if first {
                pairs.for_each(|(acc, x)| *acc = scale * x)
            } else {
                pairs.for_each(|(acc, x)| *acc += scale * x)
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let vec4s = io.inputs[0].shape.len().div_ceil(4);
        let kernel = Kernel::new("accumulate").set("LEN4", vec4s).set("SCALE", self.scale);
        Lowering::one(
            kernel,
            target.grid_1d(vec4s),
            &[Binding::Output(0), Binding::Input(1), Binding::Step],
        )
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, len: usize| {
            Case::new(name, Self { scale: 0.25 }, &[(Shape::vector(len), Normal); 2])
        };
        vec![case("p64", 64), case("p1", 1), case("p100003", 100_003)]
    }
}

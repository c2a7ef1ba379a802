//! The scale of the loss: where it starts, how it moves, and the guard that it gives an update. The
//! formulae are those of [`LossScale`].

use super::{FINITE, gradient};
use crate::ir::{Graph, Group, Range};
use crate::ops::{Emit, LossScale, ScaleBy, ValueId};
use crate::tensor::Shape;

/// The first scale: the default of PyTorch's `GradScaler`.
pub const FIRST: f32 = 65_536.0;
/// Good steps in a row after which the scale doubles: the default of PyTorch's `GradScaler`, as are
/// the factors 2 and 1/2.
pub const GROWTH: u32 = 2000;
/// The smallest scale: a gradient that overflows f16 without any is the training's fault.
pub const LEAST: f32 = 1.0;
/// The largest scale, which PyTorch's has not: the smallest f16 is 2^-24, so gradients down to
/// 2^-48 are kept, and a run that only overflows stops within 25 steps.
pub const MOST: f32 = 16_777_216.0;

/// The state of a run that begins.
pub const fn begin() -> [f32; 3] {
    [FIRST, 0.0, 0.0]
}

/// What is wrong with a state that no training makes; `None` for one that it may.
pub fn fault(state: &[f32]) -> Option<&'static str> {
    let counts = |x: &f32| *x >= 0.0 && x.fract() == 0.0;
    match state {
        [scale, ..] if !(LEAST..=MOST).contains(scale) || scale.log2().fract() != 0.0 => {
            Some("the scale of a loss is a power of two from 1 to 2^24")
        }
        [_, steps @ ..] if steps.iter().all(counts) => None,
        _ => Some("the steps of a scale are counted"),
    }
}

/// Appends the check of a loss and its scaled gradients, the next step's scale, an output
/// [`FINITE`], and the gradients without the scale; returns the guard of an optimiser, and where
/// these gradients are: in that of two flat buffers where the others are not, since a step writes
/// nothing twice.
pub(super) fn unscale(g: &mut Graph, gradients: Group, loss: ValueId) -> (ValueId, Group) {
    let to = if gradients == Group::Grad { Group::Accumulated } else { Group::Grad };
    let (state, flag, x) = (g.layout.loss_scale(), g.layout.guard(), gradient(g, gradients));
    let state = g.at("loss_scale", Shape::vector(state.len), state);
    let flag = g.at("guard", Shape::SCALAR, flag);
    g.label("guard");
    let op = LossScale { growth: GROWTH, least: LEAST, most: MOST };
    let outputs = g.emit(op.into(), &[state, flag, loss, x]);
    g.output(FINITE, outputs[1]);
    let unscaled = g.emit1(ScaleBy.into(), &[x, outputs[2]]);
    let len = g.layout.size(Group::Param);
    g.values[unscaled.0 as usize].pin = Some(Range { group: to, offset: 0, len });
    (outputs[2], to)
}

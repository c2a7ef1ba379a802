//! One update from several batches: each adds its part to the mean gradient and the mean loss, and
//! the update follows the last.

use super::{Update, gradient};
use crate::ir::{Graph, Group, Layout};
use crate::ops::{Accumulate, Emit, ValueId};
use crate::tensor::Shape;

/// Appends the part of this batch in the mean gradient and the mean loss of `batches`.
pub fn accumulate(g: &mut Graph, batches: usize, loss: ValueId) {
    let scale = 1.0 / batches as f32;
    let (sum, grad) = (gradient(g, Group::Accumulated), g.whole(Group::Grad));
    g.label("accumulate");
    g.emit(Accumulate { scale }.into(), &[sum, grad]);
    let mean = mean_loss(g);
    g.emit(Accumulate { scale }.into(), &[mean, loss]);
}

/// The update from the gradient that [`accumulate`] has gathered. Its output is
/// [`FINITE`](super::FINITE).
pub fn update(layout: &Layout, rule: Update) -> Graph {
    let mut g = Graph::with_layout(layout.clone());
    let loss = mean_loss(&mut g);
    rule.emit(&mut g, Group::Accumulated, loss);
    g
}

/// The mean loss of a step's batches. It is finite only if each of them is.
fn mean_loss(g: &mut Graph) -> ValueId {
    let range = g.layout.accumulated_loss();
    g.at("accumulated_loss", Shape::SCALAR, range)
}

//! The flag that lets updates go ahead: it lives in the state, so that the weights stay those of
//! the first step that failed, however late the host looks.

use super::gradient;
use crate::ir::{Graph, Group};
use crate::ops::{AllFinite, Emit, ValueId};
use crate::tensor::Shape;

/// The scalar output of a graph that updates: 0, or NaN from the step on in which the loss or a
/// gradient was not finite. It is the last scalar, and no metric.
pub const FINITE: &str = "finite";

/// Appends the check of a loss and its gradients, and returns the flag for an optimiser to take as
/// its guard.
pub fn guard(g: &mut Graph, gradients: Group, loss: ValueId) -> ValueId {
    let (flag, gradient) = (g.layout.guard(), gradient(g, gradients));
    let flag = g.at("guard", Shape::SCALAR, flag);
    g.label("guard");
    g.emit1(AllFinite.into(), &[flag, loss, gradient])
}

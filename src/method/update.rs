//! What turns gradients into new weights.

use serde::{Deserialize, Serialize};

use crate::ir::{Graph, Group, Layout, Range};
use crate::ops::{Adam, AllFinite, Emit, Lamb, Lars, Op, Segment, Sgd, ValueId};
use crate::tensor::Shape;

/// Optimisers; their formulae are in `ops::optimizer` and `ops::layerwise`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// PyTorch's Adam with its defaults, which the paper uses; weight decay is L2.
    #[default]
    Adam,
    /// SGD with momentum 0.9; weight decay is L2.
    Sgd,
    /// LARS with momentum 0.9 and trust coefficient 0.001.
    Lars,
    /// LAMB with Adam's decays; weight decay is decoupled.
    Lamb,
}

/// An optimiser and its weight decay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// Optimiser.
    pub optimizer: Optimizer,
    /// Weight decay; one-dimensional tensors (BatchNorm's parameters, biases, the log-scale) have
    /// none.
    pub weight_decay: f32,
}

impl Optimizer {
    /// Name in papers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adam => "Adam",
            Self::Sgd => "SGD",
            Self::Lars => "LARS",
            Self::Lamb => "LAMB",
        }
    }
}

impl Update {
    /// The moments it keeps.
    pub const fn moments(&self) -> &'static [Group] {
        match self.optimizer {
            Optimizer::Adam | Optimizer::Lamb => &[Group::Moment1, Group::Moment2],
            Optimizer::Sgd | Optimizer::Lars => &[Group::Moment1],
        }
    }

    /// Appends the update of all parameters from the gradients in `gradients`, which are those of
    /// `loss`, and an output [`FINITE`]. Nothing changes from the step on in which one of them was
    /// not finite.
    pub fn emit(&self, g: &mut Graph, gradients: Group, loss: ValueId) {
        let guard = guard(g, gradients, loss);
        g.output(FINITE, guard);
        let (weight_decay, segments) = (f64::from(self.weight_decay), segments(&g.layout));
        // Without decay there is nothing to leave out.
        let plain = if weight_decay == 0.0 {
            vec![]
        } else {
            plain_ranges(&segments, g.layout.size(Group::Param))
        };
        let op: Op = match self.optimizer {
            // PyTorch's defaults.
            Optimizer::Adam => {
                Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, plain }.into()
            }
            Optimizer::Sgd => Sgd { momentum: 0.9, nesterov: false, weight_decay, plain }.into(),
            // The trust coefficient and eps of the common SimCLR implementations.
            Optimizer::Lars => {
                Lars { momentum: 0.9, weight_decay, trust: 1e-3, eps: 1e-8, segments }.into()
            }
            // The paper's section 4.
            Optimizer::Lamb => {
                Lamb { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay, segments }.into()
            }
        };
        let mut inputs = vec![g.whole(Group::Param), gradient(g, gradients)];
        inputs.extend(self.moments().iter().map(|&group| g.whole(group)));
        inputs.push(guard);
        g.label("optimizer");
        g.emit(op, &inputs);
    }
}

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

/// The gradients of all parameters, wherever they are, as a vector.
pub(super) fn gradient(g: &mut Graph, group: Group) -> ValueId {
    let len = g.layout.size(Group::Param);
    g.at(&format!("{group:?}").to_lowercase(), Shape::vector(len), Range { group, offset: 0, len })
}

/// The trained tensors in the order of the flat buffer; plain are those of one dimension.
fn segments(layout: &Layout) -> Vec<Segment> {
    let mut segments: Vec<_> = layout
        .states
        .iter()
        .filter(|s| s.range.group == Group::Param)
        .map(|s| Segment {
            offset: s.range.offset,
            len: s.range.len,
            plain: s.shape == Shape::vector(s.shape.c),
        })
        .collect();
    segments.sort_by_key(|s| s.offset);
    segments
}

/// The plain tensors, each to the start of the next tensor.
fn plain_ranges(segments: &[Segment], len: usize) -> Vec<std::ops::Range<usize>> {
    let ends = segments.iter().skip(1).map(|s| s.offset).chain([len]);
    segments.iter().zip(ends).filter(|(s, _)| s.plain).map(|(s, end)| s.offset..end).collect()
}

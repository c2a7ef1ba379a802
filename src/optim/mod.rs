//! What turns gradients into new weights: the optimisers and their hyper-parameters, the guard
//! that stops an update after the first failure, the scale of the loss, and the mean gradient of
//! several batches.
//!
//! The formulae are in `ops::optimizer` and `ops::layerwise`. Every hyper-parameter that no setting
//! changes stands here, once.

mod accumulate;
mod guard;
pub mod loss_scale;

pub use accumulate::{accumulate, update};
pub use guard::{FINITE, guard};

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::ir::{Graph, Group, Layout, Range};
use crate::ops::{Adam, Emit, Lamb, Lars, Op, Segment, Sgd, ValueId};
use crate::tensor::Shape;

/// Decays of the first and the second moment of Adam and LAMB: the defaults of PyTorch's Adam
/// (Kingma and Ba, 2015), which the paper uses.
const BETAS: [f64; 2] = [0.9, 0.999];
/// What Adam adds to the root of the second moment: PyTorch's default.
const ADAM_EPS: f64 = 1e-8;
/// What LAMB adds there: section 4 of its paper (You et al., 2020).
const LAMB_EPS: f64 = 1e-6;
/// Momentum of SGD and LARS: the paper's section 4, and SimCLR's.
const MOMENTUM: f64 = 0.9;
/// Trust coefficient of LARS: that of the common SimCLR implementations.
const LARS_TRUST: f64 = 1e-3;
/// What LARS adds to the norm of the gradient there.
const LARS_EPS: f64 = 1e-8;

/// Which formula updates the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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

impl Optimizer {
    /// Its name in papers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adam => "Adam",
            Self::Sgd => "SGD",
            Self::Lars => "LARS",
            Self::Lamb => "LAMB",
        }
    }
}

/// An optimiser and what may be set of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// Which formula it is.
    pub optimizer: Optimizer,
    /// Weight decay; one-dimensional tensors (BatchNorm's parameters, biases, the log-scale) have
    /// none.
    pub weight_decay: f32,
    /// Whether SGD looks ahead by one momentum step (Nesterov), as the linear probe's does. The
    /// others do not.
    pub nesterov: bool,
}

impl Update {
    /// The moments that it keeps.
    pub const fn moments(&self) -> &'static [Group] {
        match self.optimizer {
            Optimizer::Adam | Optimizer::Lamb => &[Group::Moment1, Group::Moment2],
            Optimizer::Sgd | Optimizer::Lars => &[Group::Moment1],
        }
    }

    /// Its op over all parameters of a layout.
    fn op(&self, layout: &Layout) -> Op {
        let (weight_decay, segments) = (f64::from(self.weight_decay), segments(layout));
        // Without decay there is nothing to leave out.
        let plain = if weight_decay == 0.0 {
            vec![]
        } else {
            plain_ranges(&segments, layout.size(Group::Param))
        };
        let [beta1, beta2] = BETAS;
        match self.optimizer {
            Optimizer::Adam => Adam { beta1, beta2, eps: ADAM_EPS, weight_decay, plain }.into(),
            Optimizer::Sgd => {
                Sgd { momentum: MOMENTUM, nesterov: self.nesterov, weight_decay, plain }.into()
            }
            Optimizer::Lars => {
                let (momentum, trust, eps) = (MOMENTUM, LARS_TRUST, LARS_EPS);
                Lars { momentum, weight_decay, trust, eps, segments }.into()
            }
            Optimizer::Lamb => Lamb { beta1, beta2, eps: LAMB_EPS, weight_decay, segments }.into(),
        }
    }

    /// Appends the update of all parameters from the gradients in `gradients`, which are those of
    /// `loss`, and an output [`FINITE`]. Nothing changes from the step on in which one of them was
    /// not finite. Where the loss is scaled, gradients that are not finite change nothing in their
    /// step alone, until no scale is left.
    pub fn emit(&self, g: &mut Graph, gradients: Group, loss: ValueId) {
        let (guard, gradients) = if g.layout.scaled {
            loss_scale::unscale(g, gradients, loss)
        } else {
            let guard = guard(g, gradients, loss);
            g.output(FINITE, guard);
            (guard, gradients)
        };
        let op = self.op(&g.layout);
        let mut inputs = vec![g.whole(Group::Param), gradient(g, gradients)];
        inputs.extend(self.moments().iter().map(|&group| g.whole(group)));
        inputs.push(guard);
        g.label("optimizer");
        g.emit(op, &inputs);
    }
}

/// The factors `1 / (1 - beta^t)` that undo the bias of Adam's and LAMB's moments in the update
/// after `step` others, `t = step + 1`.
pub fn bias_corrections(step: u64) -> [f32; 2] {
    let t = step as f64 + 1.0;
    BETAS.map(|beta| (1.0 / (1.0 - beta.powf(t))) as f32)
}

/// Half a cosine from 1 to 0: what a learning rate that decays by it is multiplied with when this
/// fraction of the decay is `done` (Loshchilov and Hutter, 2017).
pub fn half_cosine(done: f64) -> f64 {
    0.5 * (1.0 + (PI * done).cos())
}

/// The gradients of all parameters, wherever they are, as a vector.
fn gradient(g: &mut Graph, group: Group) -> ValueId {
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

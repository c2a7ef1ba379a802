//! How a step is cut into submissions, so that none runs long.
//!
//! Windows resets a GPU whose submission takes two seconds, a desktop stutters long before. Before
//! anything is known a step's cost is its FLOPs and bytes at the rates of a slow integrated GPU;
//! then what its pieces were measured to take.

use std::ops::Range;

use crate::plan::Plan;

/// Seconds of a submission that are aimed at.
pub const SUBMISSION: f64 = 0.25;
/// FLOP/s that any GPU reaches: a tenth of a small integrated one's peak.
const FLOPS: f64 = 3e10;
/// Bytes per second that any GPU moves.
const BYTES: f64 = 4e9;
/// Seconds of a dispatch that does nothing.
const DISPATCH: f64 = 2e-5;
/// Share of a shorter measurement that counts: one quick piece must not undo what a slow one
/// taught.
const RELIEF: f64 = 0.25;

/// Expected seconds of every op of a plan.
#[derive(Clone, Debug)]
pub struct Pace {
    seconds: Vec<f64>,
    /// Whole steps that were measured.
    passes: u32,
}

impl Pace {
    /// The pessimistic guess.
    pub fn new(plan: &Plan) -> Self {
        let guess = |step: &crate::plan::PlannedOp| {
            let dispatches = step.dispatches.len() as f64 * DISPATCH;
            step.flops as f64 / FLOPS + step.bytes() as f64 / BYTES + dispatches
        };
        Self { seconds: plan.ops.iter().map(guess).collect(), passes: 0 }
    }

    /// Whether every op has been measured. The first time of an op may include its compilation, so
    /// it takes two.
    pub fn is_measured(&self) -> bool {
        self.passes >= 2
    }

    /// The step in pieces that are expected to take at most [`SUBMISSION`] each; an op that is
    /// expected to take longer is a piece of its own.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let (mut pieces, mut first, mut sum) = (Vec::new(), 0, 0.0);
        for (i, seconds) in self.seconds.iter().enumerate() {
            if i > first && sum + seconds > SUBMISSION {
                pieces.push(first..i);
                (first, sum) = (i, 0.0);
            }
            sum += seconds;
        }
        pieces.push(first..self.seconds.len());
        pieces
    }

    /// Takes in what a piece took. A longer time counts at once and a shorter one gradually, except
    /// before the plan [is measured](Self::is_measured).
    pub fn observe(&mut self, piece: Range<usize>, seconds: f64) {
        let last = piece.end == self.seconds.len();
        let expected: f64 = self.seconds[piece.clone()].iter().sum();
        if expected > 0.0 && seconds > 0.0 {
            let ratio = seconds / expected;
            let ratio = if ratio < 1.0 && self.is_measured() {
                1.0 - RELIEF * (1.0 - ratio)
            } else {
                ratio
            };
            for s in &mut self.seconds[piece] {
                *s *= ratio;
            }
        }
        // Pieces are observed in order, so the last one completes a pass.
        self.passes = self.passes.saturating_add(u32::from(last));
    }
}

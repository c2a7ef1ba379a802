//! Moves elementwise work into the tail of the convolution that produces its operand: one pass over
//! memory instead of several. A pure rewrite, after differentiation: `tests/plans.rs` compares
//! fused and unfused graphs.
//!
//! ```text
//! conv2d -> weighted_sum(1, 1) -> relu                        forward residual block
//! conv2d_input_grad -> weighted_sum(1, 1) -> relu_grad        gradients that meet, the producer's ReLU
//! ```

use super::Graph;
use crate::ops::{Epilogue, Op, Target, ValueId, WeightedSum};

/// Absorbs what can be absorbed on a device.
pub fn fuse(g: &mut Graph, target: &Target) {
    if !target.epilogues {
        return;
    }
    let mut removed = vec![false; g.nodes.len()];
    for i in 0..g.nodes.len() {
        let Some(&y) = g.nodes[i].outputs.first() else { continue };
        if Epilogue::of(&mut g.nodes[i].op).is_none()
            || g.uses(y) != 1
            || g.values[y.0 as usize].pin.is_some()
        {
            continue;
        }
        let Some(j) = g.nodes.iter().position(|n| n.inputs.contains(&y)) else { continue };
        let Some((op, extra)) = absorb(&g.nodes[i].op, &g.nodes[j].op, &g.nodes[j].inputs, y)
        else {
            continue;
        };
        // The fused node stands where its consumer stood, when every operand is there; it is looked
        // at again when the loop comes to `j`.
        let mut inputs = g.nodes[i].inputs.clone();
        inputs.extend(extra);
        g.nodes[j].name = std::mem::take(&mut g.nodes[i].name);
        g.nodes[j].op = op;
        g.nodes[j].inputs = inputs;
        g.nodes[i].inputs.clear();
        removed[i] = true;
    }
    for (node, gone) in std::mem::take(&mut g.nodes).into_iter().zip(removed) {
        if !gone {
            g.push(node);
        }
    }
}

/// The producer with the consumer in its tail, and the inputs that adds; `None` if the order of the
/// tail forbids it.
fn absorb(
    producer: &Op,
    consumer: &Op,
    inputs: &[ValueId],
    y: ValueId,
) -> Option<(Op, Option<ValueId>)> {
    let mut op = producer.clone();
    let tail = Epilogue::of(&mut op)?;
    let extra = match consumer {
        Op::WeightedSum(WeightedSum { a: 1.0, b: 1.0 })
            if !(tail.add || tail.relu || tail.mask) =>
        {
            tail.add = true;
            Some(*inputs.iter().find(|&&x| x != y)?)
        }
        Op::Relu(_) if !(tail.relu || tail.mask) => {
            tail.relu = true;
            None
        }
        Op::ReluGrad(_) if inputs[0] == y && inputs[1] != y && !tail.mask => {
            tail.mask = true;
            Some(inputs[1])
        }
        _ => return None,
    };
    Some((op, extra))
}

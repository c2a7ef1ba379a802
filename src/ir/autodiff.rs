//! Reverse-mode differentiation. Knows no op: it calls `OpDef::gradient` and adds up contributions.
//!
//! Contract for `OpDef::gradient`: every returned gradient must use `dy`. A formula that assumes
//! `dy = 1` passes as the last op of a graph and is wrong everywhere else; `tests/gradients.rs`
//! therefore places every op mid-graph with a random cotangent.

use std::collections::BTreeMap;

use super::{Graph, Group, Range, Source};
use crate::ops::{Constant, Emit, Forward, Scale, ValueId, WeightedSum};
use crate::tensor::Shape;

/// Appends the gradient of the scalar `loss` in every parameter it depends on, and pins each into
/// the flat gradient buffer. Returns parameter value -> gradient value. Where the layout has a
/// scale of the loss, all are as many times themselves.
pub fn backward(g: &mut Graph, loss: ValueId) -> BTreeMap<ValueId, ValueId> {
    backward_in(g, loss, &|_| true)
}

/// As [`backward`], in the parameters of these names alone; the others are constants. So a
/// classifier trains on features that it does not move.
pub fn backward_in(
    g: &mut Graph,
    loss: ValueId,
    trains: &dyn Fn(&str) -> bool,
) -> BTreeMap<ValueId, ValueId> {
    assert_eq!(g.ty(loss).shape, Shape::SCALAR, "the loss is a scalar");
    let needs = needs_gradient(g, trains);
    let mut grads: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    g.label("loss.backward");
    let seed = seed(g);
    grads.insert(loss, seed);
    for node in (0..g.nodes.len()).rev() {
        let node = g.nodes[node].clone();
        let dy: Vec<_> = node.outputs.iter().map(|y| grads.get(y).copied()).collect();
        let wants: Vec<_> = node.inputs.iter().map(|x| needs[x.0 as usize]).collect();
        if dy.iter().all(Option::is_none) || !wants.iter().any(|&w| w) {
            continue;
        }
        g.label(format!("{}.backward", node.name));
        let dx = node
            .op
            .gradient(g, &Forward { x: &node.inputs, y: &node.outputs, dy: &dy, wants: &wants });
        assert_eq!(dx.len(), node.inputs.len(), "{}: one gradient per input", node.op.name());
        for (i, dx) in dx.into_iter().enumerate() {
            let (x, Some(dx)) = (node.inputs[i], dx) else { continue };
            if !wants[i] {
                continue;
            }
            assert_eq!(
                g.ty(dx),
                g.ty(x),
                "{}: the gradient of input {i} has another type",
                node.op.name()
            );
            let total = match grads.get(&x) {
                Some(&other) => g.emit1(WeightedSum { a: 1.0, b: 1.0 }.into(), &[other, dx]),
                None => dx,
            };
            grads.insert(x, total);
        }
    }
    pin(g, &grads)
}

/// The gradient of the loss in itself: 1, or its scale.
fn seed(g: &mut Graph) -> ValueId {
    if g.layout.scaled {
        let scale = Range { len: 1, ..g.layout.loss_scale() };
        g.at("loss_scale", Shape::SCALAR, scale)
    } else {
        g.emit1(Constant { shape: Shape::SCALAR, value: 1.0 }.into(), &[])
    }
}

/// Values that depend on a parameter that is trained.
fn needs_gradient(g: &Graph, trains: &dyn Fn(&str) -> bool) -> Vec<bool> {
    let param =
        |source: &Source| matches!(source, Source::State(Range { group: Group::Param, .. }));
    let mut needs: Vec<bool> =
        g.values.iter().map(|v| param(&v.source) && trains(&v.name)).collect();
    for node in &g.nodes {
        if node.inputs.iter().any(|x| needs[x.0 as usize]) {
            for y in &node.outputs {
                needs[y.0 as usize] = true;
            }
        }
    }
    needs
}

/// Places the gradient of each parameter at the parameter's offset in `Group::Grad`.
fn pin(g: &mut Graph, grads: &BTreeMap<ValueId, ValueId>) -> BTreeMap<ValueId, ValueId> {
    let mut pinned = BTreeMap::new();
    for (&param, &grad) in grads {
        let Source::State(range) = g.values[param.0 as usize].source else { continue };
        let free = |g: &Graph, v: ValueId| {
            matches!(g.values[v.0 as usize].source, Source::Node { .. })
                && g.values[v.0 as usize].pin.is_none()
                && g.uses(v) == 0
        };
        // A gradient that already lives elsewhere (one value is the gradient of two parameters) is
        // copied, and so is one that other nodes read: such a node may write a gradient too, and no
        // dispatch reads and writes the flat buffer.
        let grad = if free(g, grad) { grad } else { g.emit1(Scale { a: 1.0 }.into(), &[grad]) };
        g.values[grad.0 as usize].pin = Some(Range { group: Group::Grad, ..range });
        pinned.insert(param, grad);
    }
    pinned
}

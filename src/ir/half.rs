//! Mixed precision: what passes between layers is stored as 16-bit floats. A pure rewrite of
//! types, after differentiation and fusion.
//!
//! | 16-bit | f32 |
//! |---|---|
//! | maps between layers, and their gradients | weights, their gradients, moments, statistics |
//! | operands of the products of such maps | sums of products, losses, latents, features |
//!
//! Arithmetic is f32 everywhere, so no op knows of this: its kernels widen what they load and round
//! what they store ([`crate::ops::Storage`]), a host rounds what an op has written. Only a product
//! differs: where one operand is 16-bit, so is the other ([`crate::ops::OpDef::rounded`]), so that a
//! device may multiply by matrix units.

use std::collections::HashMap;

use super::{Graph, Node, Source, Value};
use crate::ops::{Cast, Emit, Io, ValueId};
use crate::tensor::{DType, Half, TensorType};

/// Stores as `half` what passes between layers: the maps that an op writes and only ops read that
/// may read them so. What has no extent, a loss or a row of features, stays as it is.
pub fn halve(g: &mut Graph, half: Half) {
    let mut may = candidates(g);
    for value in g.outputs.iter().map(|o| o.1) {
        may[value.0 as usize] = false;
    }
    for (value, may) in g.values.iter_mut().zip(may) {
        let map = value.ty.shape.h * value.ty.shape.w > 1;
        if may && map && matches!(value.source, Source::Node { .. }) {
            value.ty.dtype = half.dtype();
        }
    }
}

/// Rounds the weights of products of 16-bit floats once, in front of the first that takes them, to a
/// copy that all of them read: where a device copies operands to workgroup memory as they are
/// ([`crate::ops::Target::copies`]).
pub fn narrow(g: &mut Graph) {
    let mut narrowed: HashMap<ValueId, ValueId> = HashMap::new();
    for mut node in std::mem::take(&mut g.nodes) {
        let types = |values: &[ValueId]| values.iter().map(|v| g.ty(*v)).collect();
        let io = Io { inputs: types(&node.inputs), outputs: types(&node.outputs) };
        for i in node.op.rounded(&io) {
            let weights = node.inputs[i];
            let copy = narrowed.entry(weights).or_insert_with(|| {
                let Value { ty, name, .. } = g.values[weights.0 as usize].clone();
                let (dtype, name) = (io.inputs[0].dtype, format!("{name}:cast"));
                let ty = TensorType { dtype, ..ty };
                // Where it is made is said by the node.
                let source = Source::Node { node: g.nodes.len(), output: 0 };
                let copy = g.value(Value { ty, name: name.clone(), source, pin: None });
                g.push(Node { op: Cast.into(), name, inputs: vec![weights], outputs: vec![copy] });
                copy
            });
            node.inputs[i] = *copy;
        }
        g.push(node);
    }
}

/// What [`halve`] does, of a graph's inputs and outputs too: a trial of one op on such operands.
pub fn halve_ports(g: &mut Graph, half: Half) {
    let may = candidates(g);
    for (value, may) in g.values.iter_mut().zip(may) {
        if may {
            value.ty.dtype = half.dtype();
        }
    }
}

/// The floats that have no fixed place and that every op which writes or reads them takes as 16-bit
/// floats.
fn candidates(g: &Graph) -> Vec<bool> {
    let mut touched = vec![false; g.values.len()];
    let mut may: Vec<bool> = (g.values.iter())
        .map(|v| {
            let fixed = v.pin.is_some() || matches!(v.source, Source::State(_));
            v.ty.dtype == DType::F32 && !fixed
        })
        .collect();
    for node in &g.nodes {
        let [inputs, outputs] = node.op.halves();
        let mut meet = |values: &[ValueId], halves: &[usize]| {
            for (i, value) in values.iter().enumerate() {
                touched[value.0 as usize] = true;
                may[value.0 as usize] &= halves.contains(&i);
            }
        };
        meet(&node.inputs, &inputs);
        meet(&node.outputs, &outputs);
    }
    may.iter().zip(touched).map(|(may, touched)| *may && touched).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Group;
    use crate::ops::{Conv2d, Conv2dInputGrad, Epilogue, Op, Relu};
    use crate::tensor::Shape;

    #[test]
    fn weights_are_narrowed_once_in_front_of_all_that_take_them() {
        let mut g = Graph::default();
        let x = g.input("x", TensorType::f32(Shape::new(2, 4, 4, 8)));
        let w = g.state("w", Shape::new(8, 3, 3, 8), Group::Param);
        let x = g.emit1(Relu.into(), &[x]);
        let y = g.emit1(Conv2d::new(1, 1).into(), &[x, w]);
        let epilogue = Epilogue::default();
        let back = Conv2dInputGrad { stride: 1, pad: 1, h: 4, w: 4, epilogue };
        let dx = g.emit1(back.into(), &[y, w]);
        g.output("dx", dx);
        let full = g.nodes.len();
        narrow(&mut g);
        assert_eq!(g.nodes.len(), full, "products of f32 round nothing");
        halve(&mut g, Half::Bf16);
        narrow(&mut g);
        let kinds: Vec<_> = g.nodes.iter().map(|n| n.op.name()).collect();
        assert_eq!(kinds, ["relu", "cast", "conv2d", "conv2d_input_grad"]);
        let copy = g.nodes[1].outputs[0];
        assert_eq!(g.ty(copy), TensorType { dtype: DType::BF16, ..g.ty(w) });
        assert!(g.nodes[1].inputs == [w] && matches!(g.nodes[1].op, Op::Cast(_)));
        for product in &g.nodes[2..] {
            assert_eq!(product.inputs[1], copy);
        }
        for (node, value) in g.nodes.iter().enumerate().map(|(i, n)| (i, n.outputs[0])) {
            assert_eq!(g.values[value.0 as usize].source, Source::Node { node, output: 0 });
        }
        narrow(&mut g);
        assert_eq!(g.nodes.len(), 4, "what is narrow stays");
    }
}

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
//! differs: where one operand is 16-bit, so is the other ([`crate::ops::OpDef::rounded`]), so that
//! a device may multiply by matrix units.

use std::collections::HashMap;

use super::{Graph, Node, Source};
use crate::ops::{Cast, Emit, Io, ValueId};
use crate::tensor::{DType, Half};

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

/// Rounds the weights of products of 16-bit floats once, to copies that all of them read: where a
/// device copies operands to workgroup memory as they are ([`crate::ops::Target::copies`]). One op
/// does it, in front of the first product that takes any. An operand that the step itself makes is
/// rounded by what makes it, where that can and all its readers round it, else in front of the
/// first product that takes it.
pub fn narrow(g: &mut Graph) {
    store_rounded(g);
    let nodes = std::mem::take(&mut g.nodes);
    let mut rest: Vec<(ValueId, DType)> = Vec::new();
    for (i, node) in nodes.iter().flat_map(|n| rounded(g, n).into_iter().map(move |i| (i, n))) {
        let weights = node.inputs[i];
        if rest.iter().all(|r| r.0 != weights) {
            rest.push((weights, g.ty(node.inputs[0]).dtype));
        }
    }
    let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
    for mut node in nodes {
        for i in rounded(g, &node) {
            let weights = node.inputs[i];
            if !copies.contains_key(&weights) {
                let persists =
                    |v: ValueId| matches!(g.values[v.0 as usize].source, Source::State(_));
                let now = |(v, _): &(ValueId, DType)| *v == weights || persists(*v);
                let (now, later) = rest.into_iter().partition::<Vec<_>, _>(now);
                rest = later;
                copies.extend(cast(g, &now));
            }
            node.inputs[i] = copies[&weights];
        }
        g.push(node);
    }
}

/// Stores as 16-bit floats what an op of the graph makes that may write such, and what every reader
/// would round to one type.
fn store_rounded(g: &mut Graph) {
    let mut types: Vec<Option<DType>> = vec![None; g.values.len()];
    for node in &g.nodes {
        let [_, may] = node.op.halves();
        let made = may.iter().filter_map(|output| node.outputs.get(*output));
        for value in made.filter(|v| g.values[v.0 as usize].pin.is_none()) {
            let reader = |n: &&Node| n.inputs.contains(value);
            let mut readers = g.nodes.iter().filter(reader).map(|n| {
                let rounds = |i: &usize| n.inputs[*i] == *value;
                rounded(g, n).iter().any(rounds).then(|| g.ty(n.inputs[0]).dtype)
            });
            let first = readers.next().flatten();
            types[value.0 as usize] = first.filter(|ty| readers.all(|other| other == Some(*ty)));
        }
    }
    for (_, output) in &g.outputs {
        types[output.0 as usize] = None;
    }
    for (value, ty) in g.values.iter_mut().zip(types) {
        value.ty.dtype = ty.unwrap_or(value.ty.dtype);
    }
}

/// The inputs of a node that it rounds by itself.
fn rounded(g: &Graph, node: &Node) -> Vec<usize> {
    let types = |values: &[ValueId]| values.iter().map(|v| g.ty(*v)).collect();
    node.op.rounded(&Io { inputs: types(&node.inputs), outputs: types(&node.outputs) })
}

/// Adds a node that rounds values to these types; returns each and its copy.
fn cast(g: &mut Graph, values: &[(ValueId, DType)]) -> Vec<(ValueId, ValueId)> {
    let inputs: Vec<ValueId> = values.iter().map(|v| v.0).collect();
    g.label("weights");
    let copies = g.emit(Cast { tensors: inputs.len() }.into(), &inputs);
    for ((of, dtype), copy) in values.iter().zip(&copies) {
        let name = format!("{}:cast", g.values[of.0 as usize].name);
        let copy = &mut g.values[copy.0 as usize];
        (copy.name, copy.ty.dtype) = (name, *dtype);
    }
    inputs.into_iter().zip(copies).collect()
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
    use crate::ops::{
        Conv2d, Conv2dInputGrad, Dot, Epilogue, Op, PhaseWeights, PhaseWeightsGrad, Relu,
    };
    use crate::tensor::{Shape, TensorType};

    fn names(g: &Graph) -> Vec<&'static str> {
        g.nodes.iter().map(|n| n.op.name()).collect()
    }

    #[test]
    fn weights_are_narrowed_once_in_front_of_all_that_take_them() {
        let mut g = Graph::default();
        let x = g.input("x", TensorType::f32(Shape::new(2, 4, 4, 8)));
        let mut state = |name: &str| g.state(name, Shape::new(8, 3, 3, 8), Group::Param);
        let weights = [state("first"), state("second")];
        let x = g.emit1(Relu.into(), &[x]);
        let conv = Op::from(Conv2d::new(1, 1));
        let y = weights.iter().fold(x, |x, w| g.emit1(conv.clone(), &[x, *w]));
        let epilogue = Epilogue::default();
        let back = Op::from(Conv2dInputGrad { stride: 1, pad: 1, h: 4, w: 4, epilogue });
        let dx = weights.iter().rev().fold(y, |dy, w| g.emit1(back.clone(), &[dy, *w]));
        g.output("dx", dx);
        let full = g.nodes.len();
        narrow(&mut g);
        assert_eq!(g.nodes.len(), full, "products of f32 round nothing");
        halve(&mut g, Half::Bf16);
        narrow(&mut g);
        let products = ["conv2d", "conv2d", "conv2d_input_grad", "conv2d_input_grad"];
        assert_eq!(names(&g), [&["relu", "cast"][..], &products].concat());
        let copies = g.nodes[1].outputs.clone();
        assert!(g.nodes[1].inputs == weights && g.nodes[1].op == Cast { tensors: 2 }.into());
        for (w, copy) in weights.iter().zip(&copies) {
            assert_eq!(g.ty(*copy), TensorType { dtype: DType::BF16, ..g.ty(*w) });
        }
        for (product, copy) in g.nodes[2..].iter().zip([0, 1, 1, 0]) {
            assert_eq!(product.inputs[1], copies[copy]);
        }
        for (node, n) in g.nodes.iter().enumerate() {
            for (output, y) in n.outputs.iter().enumerate() {
                assert_eq!(g.values[y.0 as usize].source, Source::Node { node, output });
            }
        }
        narrow(&mut g);
        assert_eq!(g.nodes.len(), full + 1, "what is narrow stays");
    }

    #[test]
    fn what_a_step_makes_is_narrowed_when_it_is_there() {
        let mut g = Graph::default();
        let x = g.input("x", TensorType::f32(Shape::new(2, 4, 4, 8)));
        let w = g.state("w", Shape::new(8, 3, 3, 8), Group::Param);
        let v = g.state("v", Shape::new(8, 4, 4, 8), Group::Param);
        let x = g.emit1(Relu.into(), &[x]);
        let y = g.emit1(Conv2d::new(1, 1).into(), &[x, w]);
        // One writes 16-bit floats, one does not, and one has a reader that takes none.
        let conv = |g: &mut Graph, y, made| g.emit1(Conv2d::new(1, 1).into(), &[y, made]);
        let phased = g.emit1(PhaseWeights.into(), &[w]);
        let y = conv(&mut g, y, phased);
        let summed = g.emit1(PhaseWeightsGrad.into(), &[v]);
        let y = conv(&mut g, y, summed);
        let read = g.emit1(PhaseWeights.into(), &[w]);
        let y = conv(&mut g, y, read);
        let square = g.emit1(Dot.into(), &[read, read]);
        g.output("y", y);
        g.output("square", square);
        halve(&mut g, Half::F16);
        narrow(&mut g);
        let all = [
            &["relu", "cast", "conv2d", "phase_weights", "conv2d"][..],
            &["phase_weights_grad", "cast", "conv2d", "phase_weights", "cast", "conv2d", "dot"],
        ];
        assert_eq!(names(&g), all.concat());
        assert_eq!(g.ty(phased).dtype, DType::F16);
        assert!([summed, read].iter().all(|v| g.ty(*v).dtype == DType::F32));
        assert!(g.nodes[1].inputs == [w] && g.nodes[6].inputs == [summed]);
        assert!(g.nodes[9].inputs == [read]);
    }
}

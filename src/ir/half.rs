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

use super::{Graph, Source};
use crate::ops::ValueId;
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

/// The same of a graph's inputs and outputs too: a trial of one op on such operands.
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

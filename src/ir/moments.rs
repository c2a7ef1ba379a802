//! Lets a convolution write the moments of its result, so that the batch norm that follows need not
//! read the map once more to find them. A pure rewrite, after differentiation and
//! [`super::half`]: `tests/plans.rs` compares graphs with and without it.
//!
//! ```text
//! conv2d -> y          batch_norm(y)             before
//! conv2d -> y, parts   batch_norm(y, parts)      after
//! ```

use super::{Graph, Source, Value};
use crate::ops::{Choices, Emit, Io, Op, OpDef, Target};

/// Gives every batch norm the moments of a convolution's result that are worth it on a device: not
/// where the variant that the convolution takes ([`Choices::variant`]) has none.
pub fn share(g: &mut Graph, target: &Target, choices: &Choices) {
    let Some(rows) = target.moments else { return };
    for j in 0..g.nodes.len() {
        let x = g.nodes[j].inputs.first().copied();
        let Some(source) = x.map(|x| g.values[x.0 as usize].source) else { continue };
        let Source::Node { node: i, output: 0 } = source else { continue };
        let (Op::BatchNorm(norm), Op::Conv2d(conv)) = (&g.nodes[j].op, &g.nodes[i].op) else {
            continue;
        };
        let (mut norm, mut conv) = (norm.clone(), conv.clone());
        if norm.parts.is_some() {
            continue;
        }
        if conv.epilogue.moments.is_none() {
            let y = g.ty(g.nodes[i].outputs[0]);
            let inputs = g.nodes[i].inputs.iter().map(|x| g.ty(*x)).collect();
            let plain = Io { inputs, outputs: vec![y] };
            let taken = choices.variant(&g.nodes[i].op, &plain, target);
            conv.epilogue.moments = Some(rows);
            let io = Io { outputs: conv.epilogue.outputs(y, 1), ..plain };
            if !conv.variants(&io, target).contains(&taken) {
                continue;
            }
            let name = format!("{}:moments", g.nodes[i].name);
            let source = Source::Node { node: i, output: 1 };
            let parts = g.value(Value { ty: io.outputs[1], name, source, pin: None });
            g.nodes[i].outputs.push(parts);
            g.nodes[i].op = conv.into();
        }
        norm.parts = Some(rows);
        let parts = g.nodes[i].outputs[1];
        g.nodes[j].inputs.push(parts);
        g.nodes[j].op = norm.into();
    }
}

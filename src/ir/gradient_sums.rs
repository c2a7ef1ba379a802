//! Lets a convolution that writes the gradient of a batch norm's result write what the gradient of
//! that batch norm sums over it too, so that this need not read the map, and that which the batch
//! norm has read, once more to sum. It masks what it writes where the batch norm ends with a ReLU:
//! the mask is read once, not twice. A pure rewrite, after differentiation, [`super::fuse`] and
//! [`super::half`]: `tests/plans.rs` compares graphs with and without it.
//!
//! ```text
//! conv2d_input_grad -> dy                    batch_norm_grad(dy, x, .., y)           before
//! conv2d_input_grad(.., y, x) -> dy, sums    batch_norm_grad(dy, x, .., sums)        after
//! ```

use super::{Graph, Node, Source, Value};
use crate::ops::{BatchNormGrad, Choices, Emit, Epilogue, Io, Op, Target, ValueId};

/// Gives every gradient of a batch norm the sums of the convolution that writes its dy, where they
/// are worth it on a device: not where the variant that the convolution takes
/// ([`Choices::variant`]) has none.
pub fn share(g: &mut Graph, target: &Target, choices: &Choices) {
    let Some(rows) = target.moments else { return };
    for j in 0..g.nodes.len() {
        let Op::BatchNormGrad(norm) = &g.nodes[j].op else { continue };
        if norm.parts {
            continue;
        }
        let norm = norm.clone();
        let Source::Node { node: i, output: 0 } = source(g, g.nodes[j].inputs[0]) else { continue };
        if let Some(conv) = with_sums(g, i, j, &norm, rows, target, choices) {
            let parts = conv.outputs[1];
            g.nodes[i] = conv;
            // The mask is the convolution's now.
            g.nodes[j].inputs.truncate(5);
            g.nodes[j].inputs.push(parts);
            g.nodes[j].op = BatchNormGrad { relu: false, parts: true, ..norm }.into();
        }
    }
}

fn source(g: &Graph, value: ValueId) -> Source {
    g.values[value.0 as usize].source
}

/// The convolution `i`, if it is one, with the sums of the batch norm's gradient `j` and its mask.
fn with_sums(
    g: &mut Graph,
    i: usize,
    j: usize,
    norm: &BatchNormGrad,
    rows: usize,
    target: &Target,
    choices: &Choices,
) -> Option<Node> {
    let mut conv = g.nodes[i].clone();
    let tail = Epilogue::of(&mut conv.op)?;
    let dy = conv.outputs[0];
    let of_norm = g.nodes[j].inputs.clone();
    let (x, mean, y) = (of_norm[1], of_norm[3], of_norm.get(5));
    let alike = |map: &ValueId| g.ty(*map) == g.ty(dy);
    // Whoever else reads dy would find it masked.
    let masks = !tail.mask && g.uses(dy) == 1;
    if conv.outputs.len() > 1
        || tail.bias
        || tail.relu
        || norm.relu && !masks
        || !y.into_iter().chain([&x]).all(alike)
    {
        return None;
    }
    if let Some(y) = y {
        tail.mask = true;
        conv.inputs.push(*y);
    }
    // A gradient is later than what it is the gradient of.
    let known = |v: &ValueId| !matches!(source(g, *v), Source::Node { node, .. } if node >= i);
    let io = |g: &Graph, conv: &Node| Io {
        inputs: conv.inputs.iter().map(|v| g.ty(*v)).collect(),
        outputs: vec![g.ty(dy)],
    };
    let taken = choices.variant(&conv.op, &io(g, &conv), target);
    let parities = conv.op.parities();
    let tail = Epilogue::of(&mut conv.op)?;
    tail.gradient_sums = Some(rows);
    let outputs = tail.outputs(g.ty(dy), parities);
    conv.inputs.extend([x, mean]);
    let io = Io { outputs: outputs.clone(), ..io(g, &conv) };
    if !conv.inputs.iter().all(known) || !conv.op.variants(&io, target).contains(&taken) {
        return None;
    }
    let name = format!("{}:sums", conv.name);
    let source = Source::Node { node: i, output: 1 };
    conv.outputs.push(g.value(Value { ty: outputs[1], name, source, pin: None }));
    Some(conv)
}

//! Cuts ops on whole flat buffers into ops on ranges that a device can bind. A pure rewrite, before
//! lowering: the tensors of a model are bound one by one anyway, so only its update and what looks
//! at all gradients at once are affected.
//!
//! Ranges end where a tensor begins: an update may take a norm of each tensor, and offsets stay
//! aligned. `tests/updates.rs` compares the bits of cut and uncut graphs.

use std::borrow::Cow;

use super::{Graph, Group, Layout, Node, Range, Source};
use crate::ops::{Emit, Op, ValueId};
use crate::tensor::{DType, Shape};

/// The graph with no flat operand of more than `max_bytes`, but for ranges of a single tensor that
/// is larger.
pub fn cut(g: &Graph, max_bytes: usize) -> Cow<'_, Graph> {
    let large = |node: &Node| !flat_operands(g, node, max_bytes).is_empty();
    if !g.nodes.iter().any(large) {
        return Cow::Borrowed(g);
    }
    let parts = parts(&g.layout, max_bytes / DType::F32.bytes());
    let mut cut = g.clone();
    cut.nodes.clear();
    for node in &g.nodes {
        let flat = flat_operands(g, node, max_bytes);
        if flat.is_empty() {
            cut.push(node.clone());
        } else if matches!(node.op, Op::AllFinite(_) | Op::LossScale(_)) {
            // It takes any number of tensors, and no output is a flat buffer.
            let whole = |x: &ValueId| {
                if flat.contains(x) { ranges(&mut cut, *x, &parts) } else { vec![*x] }
            };
            let inputs = node.inputs.iter().flat_map(whole).collect();
            cut.push(Node { inputs, ..node.clone() });
        } else {
            apart(&mut cut, node, &flat, &parts);
        }
    }
    Cow::Owned(cut)
}

/// The operands of a node that are all of a flat buffer, or of one's gradients, and exceed the
/// limit.
fn flat_operands(g: &Graph, node: &Node, max_bytes: usize) -> Vec<ValueId> {
    let whole = |x: &ValueId| {
        let all = |r: Range| {
            r.group != Group::Buffer && r.offset == 0 && r.len == g.layout.size(Group::Param)
        };
        g.ty(*x).bytes() > max_bytes
            && matches!(g.values[x.0 as usize].source, Source::State(r) if all(r))
    };
    node.inputs.iter().copied().filter(whole).collect()
}

/// Whole tensors in ranges of at most `most` elements, in order; a larger tensor is a range of its
/// own.
fn parts(layout: &Layout, most: usize) -> Vec<std::ops::Range<usize>> {
    let mut starts: Vec<usize> = layout
        .states
        .iter()
        .filter(|s| s.range.group == Group::Param)
        .map(|s| s.range.offset)
        .collect();
    starts.sort_unstable();
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    let ends = starts.iter().copied().skip(1).chain([layout.size(Group::Param)]);
    for (&start, end) in starts.iter().zip(ends) {
        match parts.last_mut() {
            Some(part) if end - part.start <= most => part.end = end,
            _ => parts.push(start..end),
        }
    }
    parts
}

/// A flat buffer as these ranges.
fn ranges(g: &mut Graph, whole: ValueId, parts: &[std::ops::Range<usize>]) -> Vec<ValueId> {
    parts.iter().map(|part| range(g, whole, part)).collect()
}

fn range(g: &mut Graph, whole: ValueId, part: &std::ops::Range<usize>) -> ValueId {
    let Source::State(Range { group, .. }) = g.values[whole.0 as usize].source else {
        unreachable!("a flat buffer is persistent")
    };
    let range = Range { group, offset: part.start, len: part.len() };
    let name = format!("{}[{}..{}]", g.values[whole.0 as usize].name, part.start, part.end);
    g.at(&name, Shape::vector(range.len), range)
}

/// Appends an op that updates or writes flat buffers, part by part.
///
/// # Panics
/// If its op cannot be cut, or what it writes is no flat buffer: neither is so of an update of the
/// weights.
fn apart(g: &mut Graph, node: &Node, flat: &[ValueId], parts: &[std::ops::Range<usize>]) {
    g.label(node.name.clone());
    for part in parts {
        let op = node
            .op
            .part(part.clone())
            .unwrap_or_else(|| panic!("`{}` takes a flat buffer whole", node.op.name()));
        let inputs: Vec<_> = node
            .inputs
            .iter()
            .map(|x| if flat.contains(x) { range(g, *x, part) } else { *x })
            .collect();
        for (y, whole) in g.emit(op, &inputs).into_iter().zip(&node.outputs) {
            // What is updated in place is pinned already.
            if let (None, Some(pin)) = (g.range(y), g.range(*whole)) {
                let range = Range { offset: pin.offset + part.start, len: part.len(), ..pin };
                g.values[y.0 as usize].pin = Some(range);
            }
        }
    }
    for y in &node.outputs {
        let value = &mut g.values[y.0 as usize];
        value.source = Source::State(
            value.pin.unwrap_or_else(|| panic!("`{}` is no flat buffer", value.name)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_tensors() {
        let mut layout = Layout::default();
        for (i, len) in [64, 100, 1, 500, 64, 3].into_iter().enumerate() {
            layout.register(&format!("p{i}"), Shape::vector(len), Group::Param);
        }
        layout.register("statistics", Shape::vector(64), Group::Buffer);
        // They begin at 0, 64, 192, 256, 768 and 832, and end at 896.
        let all = parts(&layout, 10_000);
        assert!(all.len() == 1 && all[0] == (0..896), "{all:?}");
        assert_eq!(parts(&layout, 300), [0..256, 256..768, 768..896]);
        assert_eq!(parts(&layout, 64), [0..64, 64..192, 192..256, 256..768, 768..832, 832..896]);
    }
}

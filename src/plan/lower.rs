//! Graph to plan: drops dead nodes, finds the life of every value, gives it a place, and lowers
//! every op. No choices are left for devices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::slots::{Life, assign};
use super::{Buffer, OpIo, Place, Plan, PlannedOp, Port, Ring, UNIFORM_ALIGN};
use crate::ir::{Graph, Group, Source, cut, fuse, half};
use crate::ops::{Choices, DEFAULTS, Emit, Io, Kernel, Op, Record, Target, ValueId, Variant};
use crate::shader;
use crate::tensor::TensorType;

/// How to lower.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What the device can run.
    pub target: Target,
    /// Which of its variants an op takes.
    pub choices: &'a Choices,
    /// Move elementwise ops into the tails of convolutions, as far as the device can (false only to
    /// prove that this changes nothing).
    pub fuse: bool,
    /// Reuse buffers (false only to prove that reuse changes nothing).
    pub alias: bool,
}

impl Options<'_> {
    /// The table of defaults for a device.
    pub fn new(target: Target) -> Self {
        Self { target, choices: &DEFAULTS, fuse: true, alias: true }
    }
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self::new(Target::default())
    }
}

/// Nodes that an output, an in-place update or a pinned gradient depends on, in order.
fn live_nodes(g: &Graph) -> Vec<usize> {
    let mut live = vec![false; g.nodes.len()];
    let mut wanted: BTreeSet<ValueId> = g.outputs.iter().map(|o| o.1).collect();
    for (i, node) in g.nodes.iter().enumerate().rev() {
        let effect = node.outputs.iter().any(|y| g.values[y.0 as usize].pin.is_some());
        if effect || node.outputs.iter().any(|y| wanted.contains(y)) {
            live[i] = true;
            wanted.extend(&node.inputs);
        }
    }
    (0..g.nodes.len()).filter(|&i| live[i]).collect()
}

/// Plans a graph for a device: rewrites it into what the device can do, then lowers every op.
pub fn lower(name: &str, g: &Graph, options: Options<'_>) -> Plan {
    let mut g = g.clone();
    if options.fuse {
        fuse::fuse(&mut g, &options.target);
    }
    if options.target.half {
        half::halve(&mut g);
    }
    let g = &*cut::cut(&g, options.target.max_binding);
    let nodes = live_nodes(g);
    let io: Vec<Io> = nodes
        .iter()
        .map(|&n| Io {
            inputs: g.nodes[n].inputs.iter().map(|&v| g.ty(v)).collect(),
            outputs: g.nodes[n].outputs.iter().map(|&v| g.ty(v)).collect(),
        })
        .collect();
    let variant =
        |(&n, io): (&usize, &Io)| options.choices.variant(&g.nodes[n].op, io, &options.target);
    let variants: Vec<Variant> = nodes.iter().zip(&io).map(variant).collect();
    let lowered: Vec<_> = (nodes.iter().zip(&io).zip(&variants))
        .map(|((&n, io), &variant)| g.nodes[n].op.lower_as(io, &options.target, variant))
        .collect();

    // Lives of the values without a fixed place, then of the scratch buffers.
    let mut first = vec![usize::MAX; g.values.len()];
    let mut last = vec![0; g.values.len()];
    for (step, &n) in nodes.iter().enumerate() {
        for v in &g.nodes[n].outputs {
            first[v.0 as usize] = step;
            last[v.0 as usize] = step;
        }
        for v in &g.nodes[n].inputs {
            last[v.0 as usize] = step;
        }
    }
    for (_, v) in &g.outputs {
        last[v.0 as usize] = nodes.len();
    }
    let floating: Vec<ValueId> = (0..g.values.len())
        .filter(|&v| {
            first[v] != usize::MAX
                && g.values[v].pin.is_none()
                && matches!(g.values[v].source, Source::Node { .. })
        })
        .map(|v| ValueId(v as u32))
        .collect();
    let mut lives: Vec<Life> = floating
        .iter()
        .map(|v| Life {
            bytes: g.ty(*v).bytes(),
            first: first[v.0 as usize],
            last: last[v.0 as usize],
        })
        .collect();
    let scratch_from = lives.len();
    for (step, l) in lowered.iter().enumerate() {
        lives.extend(l.scratch.iter().map(|&bytes| Life { bytes, first: step, last: step }));
    }
    let table_bytes: usize =
        lowered.iter().flat_map(|l| &l.tables).map(|words| size_of_val(&words[..])).sum();
    let unaliased_bytes =
        lives.iter().map(|l| l.bytes.max(16).next_multiple_of(16)).sum::<usize>() + table_bytes;
    let (mut buffers, slots) = assign(&lives, options.alias);

    let mut places: Vec<Option<Place>> =
        (0..g.values.len()).map(|v| g.range(ValueId(v as u32)).map(Place::State)).collect();
    for (v, slot) in floating.iter().zip(&slots) {
        places[v.0 as usize] = Some(Place::Buffer(*slot));
    }
    let mut inputs = Vec::new();
    for &v in &g.inputs {
        let used = nodes.iter().any(|&n| g.nodes[n].inputs.contains(&v));
        assert!(used, "input `{}` is not used by the plan `{name}`", g.values[v.0 as usize].name);
        buffers.push(Buffer { bytes: g.ty(v).bytes().next_multiple_of(16) });
        places[v.0 as usize] = Some(Place::Buffer(buffers.len() - 1));
        inputs.push(Port {
            name: g.values[v.0 as usize].name.clone(),
            ty: g.ty(v),
            place: Place::Buffer(buffers.len() - 1),
            value: v,
        });
    }
    let place = |v: ValueId| {
        places[v.0 as usize].unwrap_or_else(|| {
            panic!("`{}` is read but never written", g.values[v.0 as usize].name)
        })
    };

    let mut next_scratch = scratch_from;
    let mut ops = Vec::new();
    let mut uniforms = Uniforms::default();
    for (((&n, io), l), variant) in nodes.iter().zip(io).zip(lowered).zip(variants) {
        let node = &g.nodes[n];
        let scratch = (0..l.scratch.len()).map(|i| slots[next_scratch + i]).collect();
        next_scratch += l.scratch.len();
        ops.push(PlannedOp {
            label: format!("{}:{}", node.name, node.op.name()),
            flops: node.op.flops(&io),
            op: node.op.clone(),
            variant,
            io: OpIo { inputs: io.inputs, outputs: io.outputs },
            inputs: node.inputs.iter().map(|&v| (v, place(v))).collect(),
            outputs: node.outputs.iter().map(|&v| (v, place(v))).collect(),
            scratch,
            tables: l.tables,
            constants: l.dispatches.iter().map(|d| uniforms.place(&d.kernel)).collect(),
            dispatches: l.dispatches,
        });
    }
    let outputs: Vec<Port> = g
        .outputs
        .iter()
        .map(|(name, v)| Port { name: name.clone(), ty: g.ty(*v), place: place(*v), value: *v })
        .collect();
    let mut names: Vec<String> = g.values.iter().map(|v| v.name.clone()).collect();
    buffers.push(Buffer { bytes: 0 });
    let (ring, mut record) = record(&outputs, buffers.len() - 1, names.len(), &options.target);
    record.constants = record.dispatches.iter().map(|d| uniforms.place(&d.kernel)).collect();
    buffers[ring.buffer].bytes = ring.ty.bytes().next_multiple_of(16);
    names.extend(["ring".into(), "ring:record".into()]);
    ops.push(record);
    let touched: BTreeSet<Group> = ops
        .iter()
        .flat_map(|s| s.inputs.iter().chain(&s.outputs))
        .filter_map(|(_, p)| if let Place::State(r) = p { Some(r.group) } else { None })
        .collect();
    Plan {
        name: name.into(),
        target: options.target,
        layout: g.layout.clone(),
        groups: touched.into_iter().collect(),
        buffers,
        unaliased_bytes: unaliased_bytes + size_of_val(&uniforms.words[..]),
        inputs,
        outputs,
        ring,
        ops,
        constants: uniforms.words,
        names,
    }
}

/// The uniforms of a plan's kernels; equal ones are one.
#[derive(Default)]
struct Uniforms {
    words: Vec<u32>,
    at: BTreeMap<Vec<u32>, usize>,
    seen: HashMap<String, Vec<u32>>,
}

impl Uniforms {
    /// Where the words of a kernel's uniform are.
    fn place(&mut self, kernel: &Kernel) -> Range<usize> {
        let key = format!("{kernel:?}");
        let block = self.seen.entry(key).or_insert_with(|| shader::constants(kernel)).clone();
        if block.is_empty() {
            return 0..0;
        }
        let (length, words) = (block.len(), &mut self.words);
        let at = *self.at.entry(block).or_insert_with_key(|block| {
            let at = words.len();
            words.extend(block);
            words.resize(words.len().next_multiple_of(UNIFORM_ALIGN), 0);
            at
        });
        at..at + length
    }
}

/// The ring of a plan and the op that writes it: the last one, so that its stamp says that the step
/// is done.
fn record(outputs: &[Port], buffer: usize, values: usize, target: &Target) -> (Ring, PlannedOp) {
    let scalars: Vec<&Port> = outputs.iter().filter(|p| p.ty.shape.len() == 1).collect();
    let ty = TensorType::f32(Ring::shape(scalars.len()));
    let [before, after] = [0, 1].map(|i| ValueId((values + i) as u32));
    let (op, place) = (Op::from(Record), Place::Buffer(buffer));
    let inputs = std::iter::once(ty).chain(scalars.iter().map(|p| p.ty)).collect();
    let io = OpIo { inputs, outputs: vec![ty] };
    let lowering = op.lower(&Io::from(&io), target);
    let step = PlannedOp {
        label: "ring:record".into(),
        op,
        variant: Variant::Only,
        io,
        inputs: std::iter::once((before, place))
            .chain(scalars.iter().map(|p| (p.value, p.place)))
            .collect(),
        outputs: vec![(after, place)],
        scratch: vec![],
        tables: vec![],
        constants: vec![],
        dispatches: lowering.dispatches,
        flops: 0,
    };
    let scalars = scalars.iter().map(|p| p.name.clone()).collect();
    (Ring { buffer, ty, value: before, scalars }, step)
}

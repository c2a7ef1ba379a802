//! Graph to plan: drops dead nodes, finds the life of every value, gives it a place, and lowers
//! every op. No choices are left for devices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::slots::{Life, assign};
use super::{Buffer, OpIo, Place, Plan, PlannedOp, Port, Ring, UNIFORM_ALIGN};
use crate::ir::{Graph, Group, Source, cut, fuse, gradient_sums, half, moments};
use crate::ops::{
    Choices, DEFAULTS, Emit, Io, Kernel, Lowering, Op, Record, Target, ValueId, Variant,
};
use crate::shader;
use crate::tensor::{DType, TensorType};

/// How to lower.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What the device can run.
    pub target: Target,
    /// Which of its variants an op takes.
    pub choices: &'a Choices,
    /// Move elementwise ops and what batch norms sum into the tails of convolutions, as far as the
    /// device can (false only to prove that this changes nothing).
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
    if let Some(kind) = options.target.half {
        half::halve(&mut g, kind);
    }
    if options.target.copies {
        half::narrow(&mut g);
    }
    if options.fuse {
        moments::share(&mut g, &options.target, options.choices);
        gradient_sums::share(&mut g, &options.target, options.choices);
    }
    let g = &*cut::cut(&g, options.target.max_binding);
    let lowered = lower_ops(g, &options);
    let Memory { mut buffers, places, scratch, bytes: unaliased_bytes } =
        Memory::assign(name, g, &lowered, options.alias);
    let place = |v: ValueId| {
        places[v.0 as usize].unwrap_or_else(|| {
            panic!("`{}` is read but never written", g.values[v.0 as usize].name)
        })
    };
    let port =
        |name: &str, v: ValueId| Port { name: name.into(), ty: g.ty(v), place: place(v), value: v };

    let mut uniforms = Uniforms::default();
    let ops =
        lowered.into_iter().zip(scratch).map(|(Lowered { node, io, variant, to }, scratch)| {
            let node = &g.nodes[node];
            PlannedOp {
                label: format!("{}:{}", node.name, node.op.name()),
                flops: node.op.flops(&io),
                op: node.op.clone(),
                variant,
                io: OpIo { inputs: io.inputs, outputs: io.outputs },
                inputs: node.inputs.iter().map(|&v| (v, place(v))).collect(),
                outputs: node.outputs.iter().map(|&v| (v, place(v))).collect(),
                scratch,
                tables: to.tables,
                constants: to.dispatches.iter().map(|d| uniforms.place(&d.kernel)).collect(),
                dispatches: to.dispatches,
            }
        });
    let mut ops: Vec<PlannedOp> = ops.collect();
    let inputs = g.inputs.iter().map(|&v| port(&g.values[v.0 as usize].name, v)).collect();
    let images = g.images().map(|v| port(&g.values[v.0 as usize].name, v)).collect();
    let outputs: Vec<Port> = g.outputs.iter().map(|(name, v)| port(name, *v)).collect();
    let mut names: Vec<String> = g.values.iter().map(|v| v.name.clone()).collect();
    let (ring, mut record) = record(&outputs, buffers.len(), names.len(), &options.target);
    record.constants = record.dispatches.iter().map(|d| uniforms.place(&d.kernel)).collect();
    buffers.push(Buffer { bytes: ring.ty.bytes().next_multiple_of(16) });
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
        images,
        outputs,
        ring,
        ops,
        constants: uniforms.words,
        names,
    }
}

/// A node of the graph, lowered.
struct Lowered {
    node: usize,
    io: Io,
    variant: Variant,
    to: Lowering,
}

/// Lowers every node that something depends on, by the variants that were chosen.
fn lower_ops(g: &Graph, options: &Options<'_>) -> Vec<Lowered> {
    let lower = |node: usize| {
        let types = |values: &[ValueId]| values.iter().map(|&v| g.ty(v)).collect();
        let io =
            Io { inputs: types(&g.nodes[node].inputs), outputs: types(&g.nodes[node].outputs) };
        let op = &g.nodes[node].op;
        let variant = options.choices.variant(op, &io, &options.target);
        let to = op.lower_as(&io, &options.target, variant);
        Lowered { node, io, variant, to }
    };
    live_nodes(g).into_iter().map(lower).collect()
}

/// Where everything is that a plan reads and writes.
struct Memory {
    buffers: Vec<Buffer>,
    /// The place of each value; `None` for one that nothing writes.
    places: Vec<Option<Place>>,
    /// The scratch buffers of each op.
    scratch: Vec<Vec<usize>>,
    /// What values, scratch and tables would take if each had a buffer of its own.
    bytes: usize,
}

impl Memory {
    /// Gives values and scratch buffers that live at different times the same buffers, and each
    /// input one of its own. So has a value of integers, which a host does not keep where floats
    /// are.
    fn assign(name: &str, g: &Graph, lowered: &[Lowered], alias: bool) -> Self {
        let (floating, mut lives) = lives(g, lowered);
        for (step, l) in lowered.iter().enumerate() {
            lives.extend(l.to.scratch.iter().map(|&bytes| Life { bytes, first: step, last: step }));
        }
        let tables = lowered.iter().flat_map(|l| &l.to.tables);
        let bytes = lives.iter().map(|l| l.bytes.max(16).next_multiple_of(16)).sum::<usize>()
            + tables.map(|words| size_of_val(&words[..])).sum::<usize>();
        let (mut buffers, slots) = assign(&lives, alias);

        let mut places: Vec<Option<Place>> =
            (0..g.values.len()).map(|v| g.range(ValueId(v as u32)).map(Place::State)).collect();
        for (v, slot) in floating.iter().zip(&slots) {
            places[v.0 as usize] = Some(Place::Buffer(*slot));
        }
        let mut rest = slots[floating.len()..].iter().copied();
        let scratch =
            lowered.iter().map(|l| rest.by_ref().take(l.to.scratch.len()).collect()).collect();
        for &v in &g.inputs {
            let value = &g.values[v.0 as usize];
            let used = lowered.iter().any(|l| g.nodes[l.node].inputs.contains(&v));
            assert!(used, "input `{}` is not used by the plan `{name}`", value.name);
            places[v.0 as usize] = Some(Place::Buffer(buffers.len()));
            buffers.push(Buffer { bytes: g.ty(v).bytes().next_multiple_of(16) });
        }
        let mut bytes = bytes;
        for &v in lowered.iter().flat_map(|l| &g.nodes[l.node].outputs) {
            if g.ty(v).dtype == DType::U32 {
                places[v.0 as usize] = Some(Place::Buffer(buffers.len()));
                buffers.push(Buffer { bytes: g.ty(v).bytes().next_multiple_of(16) });
                bytes += g.ty(v).bytes().next_multiple_of(16);
            }
        }
        for (part, v) in g.images().enumerate() {
            places[v.0 as usize] = Some(Place::Images(part));
        }
        Self { buffers, places, scratch, bytes }
    }
}

/// The values that ops make and that have no fixed place, and how long each lives.
fn lives(g: &Graph, lowered: &[Lowered]) -> (Vec<ValueId>, Vec<Life>) {
    let mut first = vec![usize::MAX; g.values.len()];
    let mut last = vec![0; g.values.len()];
    for (step, l) in lowered.iter().enumerate() {
        for v in &g.nodes[l.node].outputs {
            first[v.0 as usize] = step;
            last[v.0 as usize] = step;
        }
        for v in &g.nodes[l.node].inputs {
            last[v.0 as usize] = step;
        }
    }
    for (_, v) in &g.outputs {
        last[v.0 as usize] = lowered.len();
    }
    let floats = |v: &usize| {
        let value = &g.values[*v];
        first[*v] != usize::MAX
            && value.pin.is_none()
            && value.ty.dtype != DType::U32
            && matches!(value.source, Source::Node { .. })
    };
    let life = |v: usize| {
        let id = ValueId(v as u32);
        (id, Life { bytes: g.ty(id).bytes(), first: first[v], last: last[v] })
    };
    (0..g.values.len()).filter(floats).map(life).unzip()
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

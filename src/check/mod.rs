//! Trials: one op, one case, one device against the f64 reference. `tests/ops.rs` runs them all,
//! and `aavae check` runs them on a user's device.

mod compare;
mod pair;

pub use compare::{Mismatch, close};
pub use pair::Pair;

use crate::device::{Data, DeviceError, Host, PlanId, Session};
use crate::ir::{Graph, Group, half};
use crate::ops::{Case, Choices, Emit, Fill, Io, StepUniforms, Target, ValueId, Variant, key};
use crate::plan::{Options, Plan, PlannedOp, lower};
use crate::rng::{Philox, Stream, fnv1a, uniform};
use crate::tensor::TensorType;

/// The per-step values of every trial: not the first batch of its step.
pub const STEP: StepUniforms = StepUniforms {
    seed_lo: 1234,
    seed_hi: 0,
    step: 5,
    first_sample: 3,
    learning_rate: 0.01,
    bias1: 2.0,
    bias2: 3.0,
    serial: 3 << 16 | 70,
};

/// An input of a trial.
#[derive(Clone, Debug)]
pub enum Filled {
    /// For a tensor of floats.
    F(Vec<f32>),
    /// For a tensor of integers.
    U(Vec<u32>),
}

/// Fills an input from the name of its trial: the same on every device and in every run.
pub fn contents(trial: &str, input: usize, ty: TensorType, fill: Fill) -> Filled {
    let rng = Philox::new(u64::from(fnv1a(trial)), Stream::Test);
    let len = ty.shape.len();
    let word = |i: usize| rng.words(input as u32, (i / 4) as u32, 0)[i % 4];
    match fill {
        Fill::Normal => Filled::F(
            (0..len).map(|i| rng.normals(input as u32, (i / 4) as u32, 0)[i % 4] as f32).collect(),
        ),
        Fill::Uniform(a, b) => {
            Filled::F((0..len).map(|i| a + (b - a) * uniform(word(i))).collect())
        }
        Fill::Constant(x) => Filled::F(vec![x; len]),
        Fill::Alternate(a, b) => {
            Filled::F((0..len).map(|i| if i % 2 == 0 { a } else { b }).collect())
        }
        Fill::Ties => Filled::F((0..len).map(|i| (word(i) % 3) as f32).collect()),
        Fill::Below(n) => Filled::U((0..len).map(|i| word(i) % n).collect()),
        Fill::AugmentParams(h, w) => {
            Filled::F(crate::ops::sample_augment_params(ty.shape.n, h, w, u64::from(fnv1a(trial))))
        }
        Fill::Pixels => Filled::U((0..len).map(|i| word(i) & 0x00ff_ffff).collect()),
        Fill::Words => Filled::U((0..len).map(word).collect()),
    }
}

/// A trial's name, `op/case`.
pub fn name(case: &Case) -> String {
    format!("{}/{}", case.op.name(), case.name)
}

fn inputs(case: &Case) -> Vec<Filled> {
    let name = name(case);
    case.inputs.iter().enumerate().map(|(i, (ty, fill))| contents(&name, i, *ty, *fill)).collect()
}

/// The op alone in a graph: inputs updated in place are persistent, the others are uploaded.
pub fn graph(case: &Case) -> Graph {
    let mut g = Graph::default();
    let in_place = case.op.in_place();
    let input = |g: &mut Graph, i: usize, ty: TensorType| {
        let name = format!("x{i}");
        if in_place.iter().any(|p| p.0 == i) {
            g.state(&name, ty.shape, Group::Buffer)
        } else {
            g.input(&name, ty)
        }
    };
    let ids: Vec<ValueId> =
        case.inputs.iter().enumerate().map(|(i, (ty, _))| input(&mut g, i, *ty)).collect();
    g.label("trial");
    for (i, y) in g.emit(case.op.clone(), &ids).into_iter().enumerate() {
        g.output(&format!("y{i}"), y);
    }
    if let Some(kind) = case.half {
        half::halve_ports(&mut g, kind);
    }
    g
}

fn feed(session: &mut Session, id: PlanId, g: &Graph, data: &[Filled]) -> Result<(), DeviceError> {
    for (i, data) in data.iter().enumerate() {
        let name = format!("x{i}");
        let input = session.plan(id).input(&name).map(|p| p.0);
        match (input, data) {
            (Some(p), Filled::F(x)) => session.upload(id, p, Data::F32(x))?,
            (Some(p), Filled::U(x)) => session.upload(id, p, Data::U32(x))?,
            (None, Filled::F(x)) => {
                let range = g
                    .layout
                    .get(&name)
                    .unwrap_or_else(|| panic!("{name} is neither uploaded nor persistent"))
                    .range;
                session.write_state(range.group, range.offset, x)?;
            }
            (None, Filled::U(_)) => unreachable!("no op updates integers in place"),
        }
    }
    Ok(())
}

/// Types around the op of a case.
pub fn io(case: &Case) -> Io {
    let g = graph(case);
    let [node] = &g.nodes[..] else { unreachable!("a trial has one op") };
    let types = |values: &[ValueId]| values.iter().map(|v| g.ty(*v)).collect();
    Io { inputs: types(&node.inputs), outputs: types(&node.outputs) }
}

/// The ways to lower the op of a case on a device, the portable one first.
pub fn variants(case: &Case, target: &Target) -> Vec<Variant> {
    case.op.variants(&io(case), target)
}

/// The plan of a trial, to compile many at once ([`Session::prepare`]).
pub fn plan(case: &Case, target: &Target, variant: Variant) -> Plan {
    let mut choices = Choices::default();
    choices.set(key(&case.op, &io(case)), variant);
    lower("trial", &graph(case), Options { choices: &choices, ..Options::new(*target) })
}

/// A case with its inputs and what the f64 reference makes of them, for trials of several variants.
pub struct Reference<'a> {
    case: &'a Case,
    graph: Graph,
    inputs: Vec<Filled>,
    outputs: Vec<Vec<f64>>,
}

impl<'a> Reference<'a> {
    /// Computes the outputs.
    ///
    /// # Errors
    /// None that the reference device can cause.
    pub fn of(case: &'a Case) -> Result<Self, DeviceError> {
        let (graph, inputs) = (graph(case), inputs(case));
        let mut host = Session::from(Host::<f64>::new());
        host.allocate(&graph.layout);
        let id = host.load(lower("trial", &graph, Options::default()))?;
        feed(&mut host, id, &graph, &inputs)?;
        host.count_from(id, STEP.serial);
        host.run(id, &STEP)?;
        let outputs: Result<_, _> =
            (0..graph.outputs.len()).map(|o| host.read_f64(id, o)).collect();
        Ok(Self { case, inputs, outputs: outputs?, graph })
    }

    /// Runs the case twice on a session that is emptied first, in one of its [`variants`], outputs
    /// poisoned, and compares with the reference. The second run must give the same bits: an op
    /// writes (=), and is deterministic. Returns the worst ratio of error to tolerance.
    ///
    /// # Errors
    /// What differs, or what the device said.
    pub fn trial(&self, session: &mut Session, variant: Variant) -> Result<f64, String> {
        let device = |e: DeviceError| e.to_string();
        let (case, want) = (self.case, &self.outputs);
        session.reset();
        session.allocate(&self.graph.layout);
        let io = io(case);
        let plan = plan(case, &session.target(), variant);
        let runs = |o: &PlannedOp| o.op == case.op && o.variant == variant;
        assert!(plan.ops.iter().any(runs), "{}: a variant that this device cannot run", name(case));
        let id = session.load(plan).map_err(device)?;
        let terms = case.inputs.iter().map(|i| i.0.shape.len()).sum();
        let mut first: Vec<Vec<f32>> = Vec::new();
        let mut worst = 0.0f64;
        for run in 0..2 {
            if run == 0 {
                session.poison(id).map_err(device)?;
            }
            feed(session, id, &self.graph, &self.inputs).map_err(device)?;
            session.count_from(id, STEP.serial);
            session.run(id, &STEP).map_err(device)?;
            let got = (0..want.len())
                .map(|o| session.read(id, o))
                .collect::<Result<Vec<_>, _>>()
                .map_err(device)?;
            for (o, (got, want)) in got.iter().zip(want).enumerate() {
                let ratio = close(got, want, terms, case.slack, io.outputs[o].dtype)
                    .map_err(|e| format!("output {o}, run {run}: {e}"))?;
                worst = worst.max(ratio);
            }
            let same = run == 0
                || first
                    .iter()
                    .flatten()
                    .zip(got.iter().flatten())
                    .all(|(a, b)| a.to_bits() == b.to_bits());
            if !same {
                return Err(
                    "the second run gave other bits: the op adds where it should write, or is \
                    not deterministic"
                        .into(),
                );
            }
            first = got;
        }
        Ok(worst)
    }
}

/// One [`Reference::trial`] of a case.
///
/// # Errors
/// What differs, or what the device said.
pub fn trial(case: &Case, session: &mut Session, variant: Variant) -> Result<f64, String> {
    Reference::of(case).map_err(|e| e.to_string())?.trial(session, variant)
}

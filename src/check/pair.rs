//! Two variants of one op on one device, at one shape: whether they agree. Used where an output is
//! too large to be read back for every candidate of a tuner.

use crate::device::{DeviceError, PlanId, Session, Stopwatch};
use crate::ir::Graph;
use crate::ops::{
    Choices, Dot, Emit, Io, Op, RandomNormal, StepUniforms, Variant, WeightedSum, key,
};
use crate::plan::{Options, Plan, lower};
use crate::tensor::{DType, TensorType};

/// Largest accepted `|a - b| / |a|` over whole outputs (L2). Orders of summation differ by about
/// 3e-7 of the length, and one element that is wrong by its own size shows in an output of up to
/// 1e9 elements.
const TOLERANCE: f64 = 1e-5;
/// The same of outputs in 16-bit floats, over [`Half::epsilon`]: sums that differ by rounding are
/// rounded to neighbours here and there, a unit of the last place apart.
const HALF_TOLERANCE: f64 = 0.2;

/// Elements of noise that an operand's draws are apart from the next one's, in every sample.
const APART: usize = 1 << 24;

/// An op loaded twice on the same noise, in the variant to be trusted and then in the candidate.
#[derive(Debug)]
pub struct Pair {
    id: PlanId,
    /// Which op of the plan is the trusted one; the candidate is the next.
    trusted: usize,
    tolerance: f64,
    /// Bits of the lengths of the candidate's outputs in the first run.
    first: Option<Vec<u32>>,
}

/// The plan of a pair: noise for each operand, drawn on the device, both results, and of each
/// output the squared distance and both squared lengths. No two values share a buffer, so that each
/// op can be run again alone.
fn plan(session: &Session, op: &Op, io: &Io, trusted: Variant, candidate: Variant) -> Plan {
    let mut g = Graph::default();
    g.label("noise");
    let noise = |(i, ty): (usize, &TensorType)| {
        assert!(ty.dtype != DType::U32, "products take floats");
        g.emit1(RandomNormal { shape: ty.shape, first: i * APART }.into(), &[])
    };
    let inputs: Vec<_> = io.inputs.iter().enumerate().map(noise).collect();
    g.label("pair");
    let a_b = [(); 2].map(|()| g.emit(op.clone(), &inputs));
    for (o, (&a, &b)) in a_b[0].iter().zip(&a_b[1]).enumerate() {
        let difference = g.emit1(WeightedSum { a: 1.0, b: -1.0 }.into(), &[a, b]);
        for (name, x) in [("difference", difference), ("trusted", a), ("candidate", b)] {
            let square = g.emit1(Dot.into(), &[x, x]);
            g.output(&format!("{name} {o}"), square);
        }
    }
    // Ops are emitted on floats; how those are stored is said afterwards, as `ir::half` does it.
    for (values, types) in [(&inputs, &io.inputs), (&a_b[0], &io.outputs), (&a_b[1], &io.outputs)] {
        for (value, ty) in values.iter().zip(types) {
            g.values[value.0 as usize].ty = *ty;
        }
    }
    let planned = |variant| {
        let mut choices = Choices::default();
        choices.set(key(op, io), variant);
        lower(
            "pair",
            &g,
            Options {
                choices: &choices,
                fuse: false,
                alias: false,
                ..Options::new(session.target())
            },
        )
    };
    let (mut plan, mut other) = (planned(trusted), planned(candidate));
    // The two plans are the same but for the products and their scratch.
    let at = inputs.len() + 1;
    let mut step = other.ops.swap_remove(at);
    (step.inputs, step.outputs) = (plan.ops[at].inputs.clone(), plan.ops[at].outputs.clone());
    for scratch in &mut step.scratch {
        plan.buffers.push(other.buffers[*scratch]);
        *scratch = plan.buffers.len() - 1;
    }
    for words in &mut step.constants {
        *words = plan.add_uniform(&other.constants[words.clone()]);
    }
    plan.ops[at] = step;
    plan
}

impl Pair {
    /// The plan that [`Pair::load`] loads, to compile many at once ([`Session::prepare`]).
    pub fn plan(session: &Session, op: &Op, io: &Io, trusted: Variant, candidate: Variant) -> Plan {
        plan(session, op, io, trusted, candidate)
    }

    /// Loads a pair on an empty session.
    ///
    /// # Errors
    /// If the device has no room or its driver refuses a kernel.
    pub fn load(
        session: &mut Session,
        op: &Op,
        io: &Io,
        trusted: Variant,
        candidate: Variant,
    ) -> Result<Self, DeviceError> {
        session.reset();
        Self::beside(session, plan(session, op, io, trusted, candidate), io)
    }

    /// Loads the plan of a pair ([`Pair::plan`]) beside whatever a session holds.
    ///
    /// # Errors
    /// If the device has no room or its driver refuses a kernel.
    pub fn beside(session: &mut Session, plan: Plan, io: &Io) -> Result<Self, DeviceError> {
        let id = session.load_beside(plan)?;
        let half = io.outputs.iter().find_map(|y| y.dtype.half());
        let tolerance = half.map_or(TOLERANCE, |half| HALF_TOLERANCE * half.epsilon());
        Ok(Self { id, trusted: io.inputs.len(), tolerance, first: None })
    }

    /// Runs both and compares: `Ok(None)` if they agree, else what is wrong with the candidate.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn compare(&mut self, session: &mut Session) -> Result<Option<String>, DeviceError> {
        if self.first.is_none() {
            session.poison_op(self.id, self.trusted + 1)?;
        }
        session.run(self.id, &StepUniforms::default())?;
        let rows = session.drain(self.id)?;
        let Some((_, values)) = rows.last() else { unreachable!("one run has one row") };
        for output in values.chunks(3) {
            let [difference, trusted, _] = output[..] else { unreachable!("three of each") };
            let error = (f64::from(difference) / f64::from(trusted)).sqrt();
            if !(trusted > 0.0) {
                return Ok(Some(format!("the trusted kernel gives a length of {trusted}")));
            }
            if !(error <= self.tolerance) {
                return Ok(Some(format!(
                    "it differs from the trusted kernel by {error:.1e} of its length"
                )));
            }
        }
        let bits: Vec<u32> = values.chunks(3).map(|output| output[2].to_bits()).collect();
        if self.first.as_ref().is_some_and(|first| *first != bits) {
            return Ok(Some("two runs on the same data differ".into()));
        }
        self.first = Some(bits);
        Ok(None)
    }

    /// Seconds of the trusted variant and of the candidate.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn seconds(&self, session: &mut Session, candidate: bool) -> Result<f64, DeviceError> {
        Ok(session.time_op(self.id, self.trusted + usize::from(candidate))?.seconds)
    }

    /// Measures the trusted variant, or the candidate, sample by sample.
    pub fn stopwatch(&self, candidate: bool) -> Stopwatch {
        Stopwatch::new(self.id, self.trusted + usize::from(candidate))
    }

    /// Gives back what it took.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn unload(self, session: &mut Session) -> Result<(), DeviceError> {
        session.unload(self.id)
    }
}

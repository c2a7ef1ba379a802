//! Two variants of one op on one device, at one shape: whether they agree. Used where an output is
//! too large to be read back for every candidate of a tuner.

use crate::device::{Data, DeviceError, PlanId, Session};
use crate::ir::Graph;
use crate::ops::{Choices, Dot, Emit, Io, Op, StepUniforms, Variant, WeightedSum, key};
use crate::plan::{Options, Plan, lower};
use crate::rng::{Philox, Stream};
use crate::tensor::{DType, TensorType};

/// Largest accepted `|a - b| / |a|` over whole outputs (L2). Orders of summation differ by about
/// 3e-7 of the length, and one element that is wrong by its own size shows in an output of up to
/// 1e9 elements.
const TOLERANCE: f64 = 1e-5;
/// The same of outputs in f16: sums that differ by rounding are rounded to neighbours here and
/// there, half a unit of the last place of 11 bits at the most.
const HALF_TOLERANCE: f64 = 2e-4;

/// An op loaded twice: step 0 in the variant to be trusted, step 1 in the candidate.
#[derive(Debug)]
pub struct Pair {
    id: PlanId,
    tolerance: f64,
    /// Bits of the candidate's result in the first run.
    first: Option<u32>,
}

/// The plan of a pair: both results, their squared distance and the squared length of each.
fn plan(session: &Session, op: &Op, io: &Io, trusted: Variant, candidate: Variant) -> Plan {
    let mut g = Graph::default();
    // Ops are emitted on floats; how those are stored is said afterwards, as `ir::half` does it.
    let float = |ty: &TensorType| match ty.dtype {
        DType::F16 => TensorType::f32(ty.shape),
        DType::F32 | DType::U32 => *ty,
    };
    let named = |(i, ty): (usize, &TensorType)| g.input(&format!("x{i}"), float(ty));
    let inputs: Vec<_> = io.inputs.iter().enumerate().map(named).collect();
    g.label("pair");
    let a_b = [(); 2].map(|()| g.emit(op.clone(), &inputs));
    let [a, b] = a_b.clone();
    let mut apart = |(a, b)| g.emit1(WeightedSum { a: 1.0, b: -1.0 }.into(), &[a, b]);
    let difference = a.iter().copied().zip(b.iter().copied()).map(&mut apart).collect();
    for (name, outputs) in [("difference", difference), ("trusted", a), ("candidate", b)] {
        let squares: Vec<_> = outputs.iter().map(|&x| g.emit1(Dot.into(), &[x, x])).collect();
        let both = WeightedSum { a: 1.0, b: 1.0 };
        let sum = squares.into_iter().reduce(|a, b| g.emit1(both.clone().into(), &[a, b]));
        g.output(name, sum.unwrap_or_else(|| unreachable!("an op has an output")));
    }
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
            Options { choices: &choices, fuse: false, ..Options::new(session.target()) },
        )
    };
    let (mut plan, mut other) = (planned(trusted), planned(candidate));
    // The two plans are the same but for the products and their scratch.
    let mut step = other.ops.swap_remove(1);
    (step.inputs, step.outputs) = (plan.ops[1].inputs.clone(), plan.ops[1].outputs.clone());
    for scratch in &mut step.scratch {
        plan.buffers.push(other.buffers[*scratch]);
        *scratch = plan.buffers.len() - 1;
    }
    for words in &mut step.constants {
        *words = plan.add_uniform(&other.constants[words.clone()]);
    }
    plan.ops[1] = step;
    plan
}

impl Pair {
    /// The plan that [`Pair::load`] loads, to compile many at once ([`Session::prepare`]).
    pub fn plan(session: &Session, op: &Op, io: &Io, trusted: Variant, candidate: Variant) -> Plan {
        plan(session, op, io, trusted, candidate)
    }

    /// Loads a pair on an empty session and fills its inputs with noise.
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
        let plan = plan(session, op, io, trusted, candidate);
        let types: Vec<TensorType> = plan.inputs.iter().map(|p| p.ty).collect();
        let id = session.load(plan)?;
        for (i, ty) in types.into_iter().enumerate() {
            assert!(ty.dtype != DType::U32, "products take floats");
            let rng = Philox::new(i as u64, Stream::Test);
            let value = |e: usize| rng.uniforms(0, 0, (e / 4) as u32)[e % 4] - 0.5;
            // Noise of a prime period, so that no two rows of an operand are alike.
            let noise: Vec<f32> = (0..ty.shape.len().min(16_381)).map(value).collect();
            let data: Vec<f32> = noise.iter().copied().cycle().take(ty.shape.len()).collect();
            session.upload(id, i, Data::F32(&data))?;
        }
        let half = io.outputs.iter().any(|y| y.dtype == DType::F16);
        let tolerance = if half { HALF_TOLERANCE } else { TOLERANCE };
        Ok(Self { id, tolerance, first: None })
    }

    /// Runs both and compares: `Ok(None)` if they agree, else what is wrong with the candidate.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn compare(&mut self, session: &mut Session) -> Result<Option<String>, DeviceError> {
        if self.first.is_none() {
            session.poison(self.id)?;
        }
        session.run(self.id, &StepUniforms::default())?;
        let rows = session.drain(self.id)?;
        let Some((_, values)) = rows.last() else { unreachable!("one run has one row") };
        let [difference, trusted, candidate] = values[..] else { unreachable!("three scalars") };
        let error = (f64::from(difference) / f64::from(trusted)).sqrt();
        if !(trusted > 0.0) {
            return Ok(Some(format!("the portable kernel gives a length of {trusted}")));
        }
        if !(error <= self.tolerance) {
            return Ok(Some(format!(
                "it differs from the portable kernel by {error:.1e} of its length"
            )));
        }
        if self.first.is_some_and(|bits| bits != candidate.to_bits()) {
            return Ok(Some("two runs on the same data differ".into()));
        }
        self.first = Some(candidate.to_bits());
        Ok(None)
    }

    /// Seconds of the trusted variant and of the candidate.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn seconds(&self, session: &mut Session, candidate: bool) -> Result<f64, DeviceError> {
        Ok(session.time_op(self.id, usize::from(candidate))?.seconds)
    }
}

//! Plans that a device has room for, or what would fit.

use super::RunError;
use crate::device::{DeviceError, PlanId, Session};
use crate::ir::{Graph, Group, Layout, Source, StateTensor, Value};
use crate::ops::Target;
use crate::plan::{Plan, PlanError, verify};
use crate::tensor::DType;

/// A number that a user may lower until something fits.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// The option that sets it.
    pub option: &'static str,
    /// What was asked for.
    pub asked: usize,
    /// The least that makes sense.
    pub least: usize,
}

impl Fit {
    /// What was asked for, or an error whose hint names the largest number that fits. More never
    /// needs less.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn largest<T>(&self, attempt: impl Fn(usize) -> Result<T, String>) -> Result<T, RunError> {
        let message = match attempt(self.asked) {
            Ok(done) => return Ok(done),
            Err(message) => message,
        };
        let hint = if self.asked > self.least && attempt(self.least).is_ok() {
            // Invariant: `low` fits and `high` does not.
            let (mut low, mut high) = (self.least, self.asked);
            while high - low > 1 {
                let middle = low.midpoint(high);
                *(if attempt(middle).is_ok() { &mut low } else { &mut high }) = middle;
            }
            format!("`{} {low}` fits; `aavae devices` lists other adapters", self.option)
        } else {
            let what = self.option.trim_start_matches("--").replace("-size", "");
            format!("no {what} fits; use a smaller --width, or another adapter of `aavae devices`")
        };
        Err(RunError::TooLarge { message, hint })
    }
}

/// Plans a graph beside what a session holds already.
///
/// # Errors
/// If a tensor exceeds a limit of the device, or the whole plan its memory; the hint names the
/// largest number that fits.
pub fn plan(
    session: &Session,
    name: &str,
    fit: Fit,
    graph: &dyn Fn(usize) -> Graph,
) -> Result<Plan, RunError> {
    fit.largest(|n| {
        let plan = fits(session, name, &graph(n))?;
        let held = session.allocated_bytes();
        // A flat buffer is allocated when a plan first needs it.
        let new = plan.groups.iter().filter(|&&group| !session.holds(group));
        let state: usize = new.map(|&group| plan.layout.bytes(group)).sum();
        let reads = session.capabilities().read_bytes.unwrap_or(0);
        check_memory(session, name, held + state + plan.buffer_bytes() + reads)?;
        Ok(plan)
    })
}

/// Plans a graph beside what a session holds already, and loads it.
///
/// # Errors
/// Like [`plan`], also where the driver finds only now that there is no room; whatever else the
/// device says.
pub fn load(
    session: &mut Session,
    name: &str,
    fit: Fit,
    graph: &dyn Fn(usize) -> Graph,
) -> Result<PlanId, RunError> {
    let planned = plan(session, name, fit, graph)?;
    match session.load(planned) {
        // The session has learned how much memory there is, so that planning again says what fits.
        Err(error @ DeviceError::OutOfMemory { .. }) => {
            Err(plan(session, name, fit, graph).err().unwrap_or(error.into()))
        }
        loaded => Ok(loaded?),
    }
}

/// Checks that a model's flat buffers fit on a device, before they are allocated.
///
/// # Errors
/// If they do not.
pub fn check_state(session: &Session, layout: &Layout) -> Result<(), RunError> {
    let message = check_tensors(session, layout).and_then(|()| {
        let bytes = Group::ALL.iter().map(|&group| layout.bytes(group)).sum();
        check_memory(session, "the state", bytes)
    });
    let hint = "use a smaller --width, or another adapter of `aavae devices`";
    message.map_err(|message| RunError::config(message, Some(hint)))
}

/// Checks that a device can bind each tensor; what works on all of them at once is cut to size
/// ([`crate::ir::cut`]).
fn check_tensors(session: &Session, layout: &Layout) -> Result<(), String> {
    let bytes = |s: &StateTensor| s.shape.len() * DType::F32.bytes();
    let largest = layout.states.iter().max_by_key(|s| bytes(s));
    largest.map_or(Ok(()), |s| check_binding(session, &s.name, bytes(s)))
}

fn check_binding(session: &Session, tensor: &str, bytes: usize) -> Result<(), String> {
    let limit = session.limits().max_binding.min(Target::LARGEST_BINDING);
    if bytes <= limit {
        return Ok(());
    }
    Err(PlanError::TooLarge { tensor: tensor.into(), bytes, limit }.to_string())
}

/// The plan of a graph, or which limit of the device it exceeds.
pub(crate) fn fits(session: &Session, name: &str, graph: &Graph) -> Result<Plan, String> {
    let limits = session.limits();
    // This comes before lowering, which counts in 32 bits.
    check_tensors(session, &graph.layout)?;
    let made = |v: &&Value| !matches!(v.source, Source::State(_));
    if let Some(value) =
        graph.values.iter().filter(made).filter(|v| v.pin.is_none()).max_by_key(|v| v.ty.bytes())
    {
        check_binding(session, &value.name, value.ty.bytes())?;
    }
    let plan = session.lower(name, graph);
    verify(&plan, &limits).map_err(|e| e.to_string())?;
    Ok(plan)
}

/// Compares what is needed with what the device has, where that is known: without this the system
/// would kill a process that trains on the processor.
pub(crate) fn check_memory(session: &Session, what: &str, bytes: usize) -> Result<(), String> {
    match session.memory() {
        Some(memory) if bytes > memory => {
            let device = session.device();
            Err(format!("{what} needs {bytes} bytes, but `{device}` has {memory} bytes of memory"))
        }
        _ => Ok(()),
    }
}

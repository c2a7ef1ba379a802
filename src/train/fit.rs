//! Plans that a device has room for, or the batch size that would fit.

use super::TrainError;
use crate::device::Session;
use crate::ir::{Graph, Group, Layout, Source, State, Value};
use crate::ops::Target;
use crate::plan::{Limits, Options, Plan, PlanError, lower, verify};
use crate::tensor::DType;

/// Plans a graph for a device.
///
/// # Errors
/// If a tensor exceeds a limit of the device, or the whole plan its memory; the hint names the largest batch that fits.
pub fn plan(session: &Session, name: &str, batch: usize, graph: &dyn Fn(usize) -> Graph) -> Result<Plan, TrainError> {
    let attempt = |n: usize| attempt(session, name, &graph(n));
    let message = match attempt(batch) {
        Ok(plan) => return Ok(plan),
        Err(message) => message,
    };
    // More images never need less; `low` fits, `high` does not.
    let hint = if batch > 2 && attempt(2).is_ok() {
        let (mut low, mut high) = (2, batch);
        while high - low > 1 {
            let middle = low.midpoint(high);
            *(if attempt(middle).is_ok() { &mut low } else { &mut high }) = middle;
        }
        format!("`--batch-size {low}` fits; `aavae devices` lists other adapters")
    } else {
        "no batch fits; use a smaller --width, or another adapter of `aavae devices`".into()
    };
    Err(TrainError::Config { message, hint: Some(hint) })
}

/// Checks that a model's flat buffers fit on a device, before they are allocated.
///
/// # Errors
/// If they do not.
pub fn check_state(session: &Session, layout: &Layout) -> Result<(), TrainError> {
    let message = check_tensors(session, layout).and_then(|()| {
        let bytes = Group::ALL.iter().map(|&group| layout.bytes(group)).sum();
        check_memory(session, "state", bytes)
    });
    let hint = "use a smaller --width, or another adapter of `aavae devices`";
    message.map_err(|message| TrainError::config(message, Some(hint)))
}

/// Checks that a device can bind each tensor; what works on all of them at once is cut to size ([`crate::ir::cut`]).
fn check_tensors(session: &Session, layout: &Layout) -> Result<(), String> {
    let bytes = |s: &State| s.shape.len() * DType::F32.bytes();
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

/// The plan, or why the device has no room for it.
fn attempt(session: &Session, name: &str, graph: &Graph) -> Result<Plan, String> {
    let limits = session.limits();
    // Before lowering, which counts in 32 bits.
    check_tensors(session, &graph.layout)?;
    let made = |v: &&Value| !matches!(v.source, Source::State(_));
    if let Some(value) = graph.values.iter().filter(made).filter(|v| v.pin.is_none()).max_by_key(|v| v.ty.bytes()) {
        check_binding(session, &value.name, value.ty.bytes())?;
    }
    let plan = lower(name, graph, Options { target: session.target(), alias: true });
    verify(&plan, &limits).map_err(|e| e.to_string())?;
    // What other plans of the model use counts too, but few accumulate.
    let used = |group: &&Group| **group != Group::Accumulated || plan.groups.contains(group);
    let state: usize = Group::ALL.iter().filter(used).map(|&group| plan.layout.bytes(group)).sum();
    check_memory(session, name, state + plan.buffer_bytes())?;
    Ok(plan)
}

/// Host devices have no limit of their own, but the machine has: without this the system would kill the process.
fn check_memory(session: &Session, name: &str, bytes: usize) -> Result<(), String> {
    if session.limits() != Limits::NONE {
        return Ok(());
    }
    match machine_memory() {
        Some(memory) if bytes > memory => {
            Err(format!("the {name} plan needs {bytes} bytes, but this machine has {memory} bytes of memory"))
        }
        _ => Ok(()),
    }
}

/// Bytes of memory that this process may use at most; `None` where the system does not say.
fn machine_memory() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let group: Option<usize> = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    let total: Option<usize> = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
    });
    [group, total].into_iter().flatten().min()
}

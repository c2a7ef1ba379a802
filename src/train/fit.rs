//! Plans that a device has room for, or the batch size that would fit.

use super::TrainError;
use crate::device::Session;
use crate::ir::{Graph, Group, Layout};
use crate::plan::{Limits, Plan, PlanError, verify};

/// Most elements of a tensor: kernels index with 32 bits, and scratch may be a few times as long as what it is for.
const MAX_ELEMENTS: usize = 1 << 29;

/// Plans a graph for a device.
///
/// # Errors
/// If a tensor exceeds a limit of the device, or the whole plan its memory; the hint names the largest batch that fits.
pub fn plan(session: &Session, name: &str, batch: usize, graph: &dyn Fn(usize) -> Graph) -> Result<Plan, TrainError> {
    let attempt = |n: usize| fits(session, name, &graph(n));
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
    let sizes = Group::ALL.map(|group| layout.size(group) * 4);
    let limit = session.limits().max_binding.min(MAX_ELEMENTS * 4);
    let message = match sizes.into_iter().max().filter(|&bytes| bytes > limit) {
        Some(bytes) => Err(PlanError::TooLarge { tensor: "parameters".into(), bytes, limit }.to_string()),
        None => check_memory(session, "state", sizes.iter().sum()),
    };
    let hint = "use a smaller --width, or another adapter of `aavae devices`";
    message.map_err(|message| TrainError::config(message, Some(hint)))
}

/// The plan, or why the device has no room for it.
pub(super) fn fits(session: &Session, name: &str, graph: &Graph) -> Result<Plan, String> {
    let limits = session.limits();
    // Before lowering, which counts in 32 bits.
    let limit = limits.max_binding.min(MAX_ELEMENTS * 4);
    if let Some(value) = graph.values.iter().max_by_key(|v| v.ty.bytes()).filter(|v| v.ty.bytes() > limit) {
        return Err(PlanError::TooLarge { tensor: value.name.clone(), bytes: value.ty.bytes(), limit }.to_string());
    }
    let plan = session.lower(name, graph);
    verify(&plan, &limits).map_err(|e| e.to_string())?;
    // What other plans of the model use counts too, but few accumulate.
    let used = |group: &&Group| **group != Group::Accumulated || plan.groups.contains(group);
    let state: usize = Group::ALL.iter().filter(used).map(|&group| plan.layout.size(group) * 4).sum();
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

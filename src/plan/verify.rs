//! Checks a finished plan against rules that its construction does not share code with: a broken
//! plan never reaches a device.

use super::{Place, Plan, PlanError, UNIFORM_ALIGN};
use crate::ir::Range;
use crate::ops::{Binding, Op, ValueId};
use crate::tensor::TensorType;

/// Limits of a device that a plan must respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one storage binding.
    pub max_binding: usize,
    /// Workgroups along an axis.
    pub max_groups: u32,
    /// Storage buffers of one dispatch.
    pub max_storage_buffers: usize,
}

impl Limits {
    /// Baseline WebGPU.
    pub const WEBGPU: Self =
        Self { max_binding: 128 << 20, max_groups: 65_535, max_storage_buffers: 8 };
    /// No limit: host devices.
    pub const NONE: Self =
        Self { max_binding: usize::MAX, max_groups: u32::MAX, max_storage_buffers: usize::MAX };
}

/// Verifies a plan.
///
/// # Errors
/// If a limit of the device is exceeded: a user's shapes can do that.
///
/// # Panics
/// If the plan is wrong: a read of something unwritten or overwritten, a buffer read and written by
/// one dispatch, overlapping writes. That is a bug of the planner.
pub fn verify(plan: &Plan, limits: &Limits) -> Result<(), PlanError> {
    // Who owns each buffer now.
    let mut owner: Vec<Option<ValueId>> = vec![None; plan.buffers.len()];
    let mut input_buffers = vec![false; plan.buffers.len()];
    for port in &plan.inputs {
        if let Place::Buffer(b) = port.place {
            input_buffers[b] = true;
            owner[b] = Some(port.value);
        }
    }
    owner[plan.ring.buffer] = Some(plan.ring.value);
    let ring = Place::Buffer(plan.ring.buffer);
    let last = plan.ops.last().map(|step| (&step.op, &step.outputs[..]));
    let stamped = matches!(last, Some((Op::Record(_), [(_, place)])) if *place == ring);
    assert!(stamped, "{}: the last step does not record that the others are done", plan.name);
    let written = plan.ops.iter().flat_map(|s| &s.outputs).filter(|y| y.1 == ring).count();
    assert!(written == 1, "{}: a step writes into the ring", plan.name);
    // What was written so far, and whether in place.
    let mut updated: Vec<(Range, ValueId, bool)> = Vec::new();
    let mut read: Vec<Range> = Vec::new();
    for step in &plan.ops {
        let label = &step.label;
        for (i, (value, place)) in step.inputs.iter().enumerate() {
            assert!(
                holds(plan, place, step.io.inputs[i]),
                "{label}: input {i} is larger than its place"
            );
            match place {
                Place::Buffer(b) => assert_eq!(
                    owner[*b],
                    Some(*value),
                    "{label}: input {i} reads buffer {b}, which no longer holds `{}`",
                    plan.names[value.0 as usize]
                ),
                Place::State(range) => {
                    // What is written for the first time, a gradient, is read as part of a larger
                    // range too.
                    let stale = updated
                        .iter()
                        .any(|(r, v, in_place)| *in_place && r.overlaps(range) && v != value);
                    assert!(
                        !stale,
                        "{label}: input {i} reads `{}` after its update in place",
                        plan.names[value.0 as usize]
                    );
                    read.push(*range);
                }
            }
        }
        for (i, (value, place)) in step.outputs.iter().enumerate() {
            for (j, (_, other)) in step.inputs.iter().enumerate() {
                let updated_too = step.op.in_place().iter().any(|p| p.0 == j);
                assert!(
                    updated_too || !conflict(place, other),
                    "{label}: output {i} shares a buffer with input {j}"
                );
            }
            for (j, (_, other)) in step.outputs.iter().enumerate().filter(|(j, _)| *j != i) {
                assert!(!overlap(place, other), "{label}: outputs {i} and {j} overlap");
            }
            for s in &step.scratch {
                assert!(*place != Place::Buffer(*s), "{label}: output {i} is also scratch");
            }
            assert!(
                holds(plan, place, step.io.outputs[i]),
                "{label}: output {i} exceeds its place"
            );
            match place {
                Place::Buffer(b) => {
                    assert!(
                        !input_buffers[*b],
                        "{label}: output {i} overwrites an input of the step"
                    );
                    owner[*b] = Some(*value);
                }
                Place::State(range) => {
                    let twice = updated.iter().any(|(r, ..)| r.overlaps(range));
                    assert!(!twice, "{label}: output {i} overwrites what an earlier op wrote");
                    // A gradient that was read before it is written was the last step's.
                    let in_place = step.op.in_place().iter().any(|p| p.1 == i);
                    assert!(
                        in_place || !read.iter().any(|r| r.overlaps(range)),
                        "{label}: output {i} was read before it is written"
                    );
                    updated.push((*range, *value, in_place));
                }
            }
        }
        for (i, s) in step.scratch.iter().enumerate() {
            assert!(
                !step.inputs.iter().any(|(_, p)| *p == Place::Buffer(*s)),
                "{label}: scratch {i} is also an input"
            );
            assert!(!step.scratch[..i].contains(s), "{label}: scratch {i} is bound twice");
            owner[*s] = None;
        }
        check_limits(plan, step, limits)?;
    }
    for port in &plan.outputs {
        if let Place::Buffer(b) = port.place {
            assert!(owner[b] == Some(port.value), "output `{}` was overwritten", port.name);
        }
    }
    Ok(())
}

/// Whether a tensor fits where it is.
fn holds(plan: &Plan, place: &Place, ty: TensorType) -> bool {
    match place {
        Place::Buffer(b) => plan.buffers[*b].bytes >= ty.bytes(),
        Place::State(r) => r.len >= ty.shape.len() && r.offset + r.len <= plan.layout.size(r.group),
    }
}

fn check_limits(plan: &Plan, step: &super::PlannedOp, limits: &Limits) -> Result<(), PlanError> {
    for (ty, (value, _)) in
        step.io.inputs.iter().zip(&step.inputs).chain(step.io.outputs.iter().zip(&step.outputs))
    {
        if ty.bytes() > limits.max_binding {
            return Err(PlanError::TooLarge {
                tensor: plan.names[value.0 as usize].clone(),
                bytes: ty.bytes(),
                limit: limits.max_binding,
            });
        }
    }
    for s in &step.scratch {
        let bytes = plan.buffers[*s].bytes;
        if bytes > limits.max_binding {
            return Err(PlanError::TooLarge {
                tensor: format!("{} (scratch)", step.label),
                bytes,
                limit: limits.max_binding,
            });
        }
    }
    if let Some(bytes) = step
        .tables
        .iter()
        .map(|words| size_of_val(&words[..]))
        .max()
        .filter(|bytes| *bytes > limits.max_binding)
    {
        return Err(PlanError::TooLarge {
            tensor: format!("{} (table)", step.label),
            bytes,
            limit: limits.max_binding,
        });
    }
    let uniforms = step.constants.iter().filter(|words| !words.is_empty());
    for words in uniforms {
        let whole = words.start.is_multiple_of(UNIFORM_ALIGN) && words.end <= plan.constants.len();
        assert!(whole, "{}: a uniform at {words:?}", step.label);
    }
    assert_eq!(step.constants.len(), step.dispatches.len(), "{}: uniforms", step.label);
    for dispatch in &step.dispatches {
        if let Some(&groups) = dispatch.grid.iter().find(|&&g| g > limits.max_groups) {
            return Err(PlanError::Grid {
                step: step.label.clone(),
                groups,
                limit: limits.max_groups,
            });
        }
        assert!(dispatch.grid.iter().all(|&g| g > 0), "{}: an empty grid", step.label);
        let bindings = dispatch
            .bindings
            .iter()
            .filter(|b| !matches!(b, Binding::Step | Binding::Skip))
            .count();
        if bindings > limits.max_storage_buffers {
            return Err(PlanError::Bindings {
                step: step.label.clone(),
                bindings,
                limit: limits.max_storage_buffers,
            });
        }
    }
    Ok(())
}

/// A write and a read that one dispatch may not do: WebGPU tracks usage per buffer, so the same
/// flat buffer counts.
fn conflict(write: &Place, read: &Place) -> bool {
    match (write, read) {
        (Place::Buffer(a), Place::Buffer(b)) => a == b,
        (Place::State(a), Place::State(b)) => a.group == b.group,
        _ => false,
    }
}

fn overlap(a: &Place, b: &Place) -> bool {
    match (a, b) {
        (Place::Buffer(a), Place::Buffer(b)) => a == b,
        (Place::State(a), Place::State(b)) => a.overlaps(b),
        _ => false,
    }
}

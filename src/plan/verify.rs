//! Checks a finished plan against rules that its construction does not share code with: a broken
//! plan never reaches a device.

use super::{Place, Plan, PlanError, PlannedOp, UNIFORM_ALIGN};
use crate::ir::Range;
use crate::ops::{Binding, Op, Target, ValueId};
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
    /// Baseline WebGPU, as [`Target::WEBGPU`].
    pub const WEBGPU: Self = Self {
        max_binding: Target::WEBGPU.max_binding,
        max_groups: Target::WEBGPU.max_groups,
        max_storage_buffers: Target::WEBGPU.storage_buffers,
    };
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
    check_ring(plan);
    let mut held = Held::new(plan);
    for op in &plan.ops {
        held.check_inputs(op);
        held.check_outputs(op);
        held.check_scratch(op);
        check_limits(plan, op, limits)?;
    }
    for port in &plan.outputs {
        if let Place::Buffer(b) = port.place {
            assert!(held.owner[b] == Some(port.value), "output `{}` was overwritten", port.name);
        }
    }
    Ok(())
}

/// Checks that the last op, and no other, writes the ring.
fn check_ring(plan: &Plan) {
    let ring = Place::Buffer(plan.ring.buffer);
    let last = plan.ops.last().map(|op| (&op.op, &op.outputs[..]));
    let stamped = matches!(last, Some((Op::Record(_), [(_, place)])) if *place == ring);
    assert!(stamped, "{}: the last step does not record that the others are done", plan.name);
    let written = plan.ops.iter().flat_map(|op| &op.outputs).filter(|y| y.1 == ring).count();
    assert!(written == 1, "{}: a step writes into the ring", plan.name);
}

/// What buffers and state hold after some of a plan's ops.
struct Held<'a> {
    plan: &'a Plan,
    /// The value in each buffer.
    owner: Vec<Option<ValueId>>,
    /// Buffers that the host writes.
    inputs: Vec<bool>,
    /// Ranges of state that were written, by which value, and whether in place.
    updated: Vec<(Range, ValueId, bool)>,
    /// Ranges of state that were read.
    read: Vec<Range>,
}

impl<'a> Held<'a> {
    /// Before the first op.
    fn new(plan: &'a Plan) -> Self {
        let mut owner: Vec<Option<ValueId>> = vec![None; plan.buffers.len()];
        let mut inputs = vec![false; plan.buffers.len()];
        for port in &plan.inputs {
            if let Place::Buffer(b) = port.place {
                inputs[b] = true;
                owner[b] = Some(port.value);
            }
        }
        owner[plan.ring.buffer] = Some(plan.ring.value);
        Self { plan, owner, inputs, updated: Vec::new(), read: Vec::new() }
    }

    /// Checks that each input of an op is still where it is read.
    fn check_inputs(&mut self, op: &PlannedOp) {
        let (plan, label) = (self.plan, &op.label);
        let name = |value: &ValueId| &plan.names[value.0 as usize];
        for (i, (value, place)) in op.inputs.iter().enumerate() {
            let fits = holds(plan, place, op.io.inputs[i]);
            assert!(fits, "{label}: input {i} is larger than its place");
            match place {
                Place::Buffer(b) => assert_eq!(
                    self.owner[*b],
                    Some(*value),
                    "{label}: input {i} reads buffer {b}, which no longer holds `{}`",
                    name(value)
                ),
                Place::State(range) => {
                    // What is written for the first time, a gradient, is read as part of a larger
                    // range too.
                    let stale = self
                        .updated
                        .iter()
                        .any(|(r, v, in_place)| *in_place && r.overlaps(range) && v != value);
                    assert!(
                        !stale,
                        "{label}: input {i} reads `{}` after its update in place",
                        name(value)
                    );
                    self.read.push(*range);
                }
                // Nothing that runs writes them.
                Place::Images(_) => {}
            }
        }
    }

    /// Checks that each output of an op overwrites nothing that this op or a later one reads, and
    /// notes it.
    fn check_outputs(&mut self, op: &PlannedOp) {
        let label = &op.label;
        for (i, (value, place)) in op.outputs.iter().enumerate() {
            check_apart(op, i, place);
            let fits = holds(self.plan, place, op.io.outputs[i]);
            assert!(fits, "{label}: output {i} exceeds its place");
            match place {
                Place::Buffer(b) => {
                    let overwrites = self.inputs[*b];
                    assert!(!overwrites, "{label}: output {i} overwrites an input of the step");
                    self.owner[*b] = Some(*value);
                }
                Place::State(range) => {
                    let twice = self.updated.iter().any(|(r, ..)| r.overlaps(range));
                    assert!(!twice, "{label}: output {i} overwrites what an earlier op wrote");
                    // A gradient that was read before it is written was the last step's.
                    let in_place = op.op.in_place().iter().any(|p| p.1 == i);
                    assert!(
                        in_place || !self.read.iter().any(|r| r.overlaps(range)),
                        "{label}: output {i} was read before it is written"
                    );
                    self.updated.push((*range, *value, in_place));
                }
                Place::Images(_) => panic!("{label}: output {i} overwrites images that stay"),
            }
        }
    }

    /// Checks that the scratch buffers of an op are nothing else of it; what they held is gone.
    fn check_scratch(&mut self, op: &PlannedOp) {
        let label = &op.label;
        for (i, s) in op.scratch.iter().enumerate() {
            let read = op.inputs.iter().any(|(_, place)| *place == Place::Buffer(*s));
            assert!(!read, "{label}: scratch {i} is also an input");
            assert!(!op.scratch[..i].contains(s), "{label}: scratch {i} is bound twice");
            self.owner[*s] = None;
        }
    }
}

/// Checks that an output shares no buffer with an input, unless it updates it in place, nor its
/// place with another output or with scratch.
fn check_apart(op: &PlannedOp, i: usize, place: &Place) {
    let label = &op.label;
    for (j, (_, other)) in op.inputs.iter().enumerate() {
        let updates = op.op.in_place().iter().any(|p| p.0 == j);
        assert!(
            updates || !conflict(place, other),
            "{label}: output {i} shares a buffer with input {j}"
        );
    }
    for (j, (_, other)) in op.outputs.iter().enumerate().filter(|(j, _)| *j != i) {
        assert!(!overlap(place, other), "{label}: outputs {i} and {j} overlap");
    }
    for s in &op.scratch {
        assert!(*place != Place::Buffer(*s), "{label}: output {i} is also scratch");
    }
}

/// Whether a tensor fits where it is.
fn holds(plan: &Plan, place: &Place, ty: TensorType) -> bool {
    match place {
        Place::Buffer(b) => plan.buffers[*b].bytes >= ty.bytes(),
        Place::State(r) => r.len >= ty.shape.len() && r.offset + r.len <= plan.layout.size(r.group),
        Place::Images(part) => plan.images.get(*part).is_some_and(|port| port.ty == ty),
    }
}

fn check_limits(plan: &Plan, step: &PlannedOp, limits: &Limits) -> Result<(), PlanError> {
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

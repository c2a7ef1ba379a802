//! Devices that run ops on the host. `Host<f64>` is `reference`: naive, slow, exact, and it fills
//! every buffer with NaN once its value is dead, so that a planner's mistake becomes a wrong answer
//! at once. `Host<f32>` is `cpu`: the native versions of the hot ops, rayon threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use web_time::Instant;

use super::{
    Bound, BufferId, Capabilities, Data, Device, DeviceError, Done, ProgramId, Progress, Ticket,
    Values,
};
use rayon::prelude::*;

use crate::ops::{Call, Input, Output, Real, StepUniforms, Target};
use crate::plan::{Limits, Place, Plan};
use crate::tensor::{DType, Half};

/// Elements that a task rounds.
const CHUNK: usize = 1 << 14;

/// How a host device stores numbers and runs ops.
pub trait Precision: Real {
    /// Name of the device.
    const NAME: &'static str;
    /// Value of dead storage.
    const POISON: Option<f64>;
    /// Runs an op.
    fn execute(op: &crate::ops::Op, call: &mut Call<'_, Self>);
    /// Elements for the host.
    fn values(elements: &[Self]) -> Values;
}

impl Precision for f64 {
    const NAME: &'static str = "reference";
    const POISON: Option<f64> = Some(f64::NAN);
    fn execute(op: &crate::ops::Op, call: &mut Call<'_, Self>) {
        op.reference(call);
    }
    fn values(elements: &[Self]) -> Values {
        Values::F64(elements.to_vec())
    }
}

impl Precision for f32 {
    const NAME: &'static str = "cpu";
    const POISON: Option<f64> = None;
    fn execute(op: &crate::ops::Op, call: &mut Call<'_, Self>) {
        op.native(call);
    }
    fn values(elements: &[Self]) -> Values {
        Values::F32(elements.to_vec())
    }
}

/// A buffer: one of the two is used at a time.
#[derive(Debug, Default)]
struct Memory<T> {
    floats: Vec<T>,
    words: Vec<u32>,
    /// What was asked for. An element may take more: a 16-bit float is held as what it is computed
    /// in.
    bytes: usize,
}

impl<T: Copy> Memory<T> {
    /// Overwrites what is dead.
    fn spoil(&mut self, poison: T) {
        self.floats.fill(poison);
        self.words.fill(u32::MAX);
    }
}

#[derive(Debug)]
struct Program {
    plan: Rc<Plan>,
    bound: Bound,
    /// Buffers of the plan whose value is dead after each step.
    dead: Vec<Vec<usize>>,
}

/// A host device.
#[derive(Debug)]
pub struct Host<T> {
    capabilities: Capabilities,
    /// Empty where a buffer was freed.
    buffers: Vec<Memory<T>>,
    programs: BTreeMap<ProgramId, Program>,
    next_program: usize,
    /// What has been done and not been asked for.
    done: BTreeMap<Ticket, Done>,
    next_ticket: u64,
}

impl<T: Precision> Default for Host<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Precision> Host<T> {
    /// An empty device.
    pub fn new() -> Self {
        Self {
            capabilities: Capabilities {
                name: T::NAME.into(),
                target: Target {
                    max_groups: u32::MAX,
                    max_binding: Target::LARGEST_BINDING,
                    moments: None,
                    ..Target::WEBGPU
                },
                dispatches: false,
                halves: Half::ALL,
                limits: Limits::NONE,
                memory: machine_memory(),
                overhead: 0,
                read_bytes: None,
                watched: false,
                timestamps: true,
            },
            buffers: Vec::new(),
            programs: BTreeMap::new(),
            next_program: 0,
            done: BTreeMap::new(),
            next_ticket: 0,
        }
    }

    fn ticket(&mut self, done: Done) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        // Nobody asks after most runs; only the latest few could still be waited for.
        self.done.retain(|t, d| d.values.is_some() || t.0 + 64 > ticket.0);
        self.done.insert(ticket, done);
        ticket
    }
}

/// Runs one step. Written storage is taken out of the device while the op runs, so that plain
/// borrows suffice.
fn execute<T: Precision>(
    buffers: &mut [Memory<T>],
    program: &Program,
    step: &crate::plan::PlannedOp,
    uniforms: &StepUniforms,
) {
    let in_place = step.op.in_place();
    let locate = |place: Place| program.bound.place(place);
    let mut taken: Vec<(BufferId, Vec<T>)> = Vec::new();
    let mut integers: Vec<(BufferId, Vec<u32>)> = Vec::new();
    for ((_, place), ty) in step.outputs.iter().zip(&step.io.outputs) {
        let (buffer, _) = locate(*place);
        if ty.dtype == DType::U32 {
            integers.push((buffer, std::mem::take(&mut buffers[buffer.0].words)));
        } else if !taken.iter().any(|t| t.0 == buffer) {
            taken.push((buffer, std::mem::take(&mut buffers[buffer.0].floats)));
        }
    }
    // Weights that are multiplied with 16-bit floats, and are rounded to such.
    let half = step.io.inputs.first().and_then(|x| x.dtype.half());
    let rounded: BTreeMap<usize, Vec<T>> = (step.op.rounded(&(&step.io).into()).into_iter())
        .map(|j| {
            let (buffer, offset) = locate(step.inputs[j].1);
            let half = half.unwrap_or_else(|| unreachable!("what is rounded meets a half"));
            let range = offset..offset + step.io.inputs[j].shape.len();
            (j, buffers[buffer.0].floats[range].iter().map(|x| x.rounded(half)).collect())
        })
        .collect();
    let inputs = (step.inputs.iter().zip(&step.io.inputs).enumerate())
        .map(|(j, ((_, place), ty))| {
            if in_place.iter().any(|p| p.0 == j) {
                return Input::InPlace;
            }
            let (buffer, offset) = locate(*place);
            let range = offset..offset + ty.shape.len();
            match ty.dtype {
                DType::U32 => Input::U(&buffers[buffer.0].words[range]),
                _ if rounded.contains_key(&j) => Input::F(&rounded[&j]),
                _ => Input::F(&buffers[buffer.0].floats[range]),
            }
        })
        .collect();
    let mut outputs: Vec<(usize, Output<'_, T>)> = Vec::new();
    for (buffer, memory) in &mut taken {
        // First element, length and output of each part of this buffer, in order.
        let mut parts: Vec<[usize; 3]> = Vec::new();
        for (o, ((_, place), ty)) in step.outputs.iter().zip(&step.io.outputs).enumerate() {
            let (of, offset) = locate(*place);
            if of == *buffer {
                parts.push([offset, ty.shape.len(), o]);
            }
        }
        parts.sort_unstable();
        let (mut rest, mut at) = (&mut memory[..], 0);
        for [offset, len, o] in parts {
            let (_, tail) = rest.split_at_mut(offset - at);
            let (slice, tail) = tail.split_at_mut(len);
            outputs.push((o, slice));
            (rest, at) = (tail, offset + len);
        }
    }
    outputs.sort_by_key(|o| o.0);
    let outputs = outputs.into_iter().map(|o| o.1).collect();
    let (in_types, out_types) = (&step.io.inputs[..], &step.io.outputs[..]);
    let floats = out_types.iter().filter(|ty| ty.dtype != DType::U32);
    // A value of integers has a buffer of its own, which may be longer.
    let lengths = out_types.iter().filter(|ty| ty.dtype == DType::U32).map(|ty| ty.shape.len());
    let words = integers.iter_mut().zip(lengths).map(|(i, len)| &mut i.1[..len]).collect();
    let mut call = Call { inputs, outputs, words, in_types, out_types, step: uniforms };
    T::execute(&step.op, &mut call);
    for (output, ty) in call.outputs.iter_mut().zip(floats) {
        if let Some(half) = ty.dtype.half() {
            let round = |part: &mut [T]| part.iter_mut().for_each(|x| *x = x.rounded(half));
            output.par_chunks_mut(CHUNK).for_each(round);
        }
    }
    for (buffer, memory) in taken {
        buffers[buffer.0].floats = memory;
    }
    for (buffer, words) in integers {
        buffers[buffer.0].words = words;
    }
}

/// For each step, the buffers that no later step reads before it is written again.
fn dead_after(plan: &Plan) -> Vec<Vec<usize>> {
    let mut wanted: Vec<bool> = vec![false; plan.buffers.len()];
    for port in plan.outputs.iter().chain(&plan.inputs) {
        if let Place::Buffer(b) = port.place {
            wanted[b] = true;
        }
    }
    wanted[plan.ring.buffer] = true;
    let mut dead = vec![Vec::new(); plan.ops.len()];
    for (i, step) in plan.ops.iter().enumerate().rev() {
        for (_, place) in &step.outputs {
            if let Place::Buffer(b) = place {
                if !wanted[*b] {
                    dead[i].push(*b);
                }
                wanted[*b] = false;
            }
        }
        for (_, place) in &step.inputs {
            if let Place::Buffer(b) = place {
                let updated = step.outputs.iter().any(|y| y.1 == *place);
                if !wanted[*b] && !updated {
                    dead[i].push(*b);
                }
                wanted[*b] = true;
            }
        }
    }
    dead
}

impl<T: Precision> Device for Host<T> {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn allocate(
        &mut self,
        _label: &str,
        ty: DType,
        elements: usize,
    ) -> Result<BufferId, DeviceError> {
        let bytes = elements * ty.bytes();
        let memory = match ty {
            DType::U32 => Memory { floats: vec![], words: vec![0; elements], bytes },
            DType::F32 | DType::F16 | DType::BF16 => {
                Memory { floats: vec![T::default(); elements], words: vec![], bytes }
            }
        };
        self.buffers.push(memory);
        Ok(BufferId(self.buffers.len() - 1))
    }
    fn write(
        &mut self,
        buffer: BufferId,
        offset: usize,
        data: Data<'_>,
    ) -> Result<(), DeviceError> {
        let memory = &mut self.buffers[buffer.0];
        let range = offset..offset + data.len();
        match data {
            Data::F32(x) => {
                memory.floats[range].iter_mut().zip(x).for_each(|(y, x)| *y = T::of(f64::from(*x)))
            }
            Data::F64(x) => {
                memory.floats[range].iter_mut().zip(x).for_each(|(y, x)| *y = T::of(*x))
            }
            Data::U32(x) => memory.words[range].copy_from_slice(x),
        }
        Ok(())
    }
    fn load(
        &mut self,
        plan: &Rc<Plan>,
        bound: Bound,
        _progress: Progress<'_>,
    ) -> Result<ProgramId, DeviceError> {
        if let Some(poison) = T::POISON {
            for (b, buffer) in bound.buffers.iter().enumerate() {
                if b != plan.ring.buffer {
                    self.buffers[buffer.0].spoil(T::of(poison));
                }
            }
        }
        let id = ProgramId(self.next_program);
        self.next_program += 1;
        self.programs.insert(id, Program { plan: Rc::clone(plan), bound, dead: dead_after(plan) });
        Ok(id)
    }
    fn run(
        &mut self,
        program: ProgramId,
        steps: Range<usize>,
        uniforms: &StepUniforms,
        timed: bool,
    ) -> Result<Ticket, DeviceError> {
        let program = &self.programs[&program];
        let start = Instant::now();
        for i in steps {
            execute(&mut self.buffers, program, &program.plan.ops[i], uniforms);
            if let Some(poison) = T::POISON {
                for &b in &program.dead[i] {
                    self.buffers[program.bound.buffers[b].0].spoil(T::of(poison));
                }
            }
        }
        let seconds = timed.then(|| start.elapsed().as_secs_f64());
        Ok(self.ticket(Done { values: None, seconds }))
    }
    fn read(
        &mut self,
        buffer: BufferId,
        offset: usize,
        elements: usize,
    ) -> Result<Ticket, DeviceError> {
        let (memory, range) = (&self.buffers[buffer.0], offset..offset + elements);
        let values = if memory.words.is_empty() {
            T::values(&memory.floats[range])
        } else {
            // As every device: integers come back as the bits of floats.
            Values::F32(memory.words[range].iter().map(|w| f32::from_bits(*w)).collect())
        };
        Ok(self.ticket(Done { values: Some(values), seconds: None }))
    }
    fn poll(&mut self, ticket: Ticket, _wait: bool) -> Result<Option<Done>, DeviceError> {
        Ok(Some(self.done.remove(&ticket).unwrap_or_default()))
    }
    fn free(&mut self, programs: &[ProgramId], buffers: &[BufferId]) {
        for program in programs {
            self.programs.remove(program);
        }
        for buffer in buffers {
            self.buffers[buffer.0] = Memory { floats: vec![], words: vec![], bytes: 0 };
        }
    }
    fn held_bytes(&self) -> usize {
        self.buffers.iter().map(|m| m.bytes).sum()
    }
}

/// Bytes of memory that this process may use at most; `None` where the system does not say.
fn machine_memory() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let group: Option<usize> =
        read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    let total: Option<usize> = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
    });
    [group, total].into_iter().flatten().min()
}

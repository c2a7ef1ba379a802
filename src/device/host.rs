//! Devices that run ops on the host. `Host<f64>` is `reference`: naive, slow, exact, and it fills every buffer with NaN once its
//! value is dead, so that a planner's mistake becomes a wrong answer at once. `Host<f32>` is `cpu`: the native versions of the hot
//! ops, rayon threads.

use crate::ir::{Group, Layout, Range};
use crate::ops::{Gemm, Input, Real, Run, StepUniforms, Target};
use crate::plan::{Limits, Place, Plan, verify};
use crate::tensor::DType;

use super::{Data, DeviceError, PlanId, Session};

/// How a host device stores numbers and runs ops.
pub trait Precision: Real {
    /// Name of the device.
    const NAME: &'static str;
    /// Value of dead storage.
    const POISON: Option<f64>;
    /// Runs an op.
    fn execute(op: &crate::ops::Op, run: &mut Run<'_, Self>);
}

impl Precision for f64 {
    const NAME: &'static str = "reference";
    const POISON: Option<f64> = Some(f64::NAN);
    fn execute(op: &crate::ops::Op, run: &mut Run<'_, Self>) {
        op.reference(run);
    }
}

impl Precision for f32 {
    const NAME: &'static str = "cpu";
    const POISON: Option<f64> = None;
    fn execute(op: &crate::ops::Op, run: &mut Run<'_, Self>) {
        op.native(run);
    }
}

/// A buffer: one of the two is used at a time.
#[derive(Debug, Default)]
struct Memory<T> {
    floats: Vec<T>,
    words: Vec<u32>,
}

#[derive(Debug)]
struct Loaded<T> {
    plan: Plan,
    buffers: Vec<Memory<T>>,
    /// Buffers whose value is dead after each step.
    dead: Vec<Vec<usize>>,
    /// Positions of the scalar outputs.
    scalars: Vec<usize>,
    log: Vec<(u32, Vec<f32>)>,
}

/// A host device holding one model.
#[derive(Debug, Default)]
pub struct Host<T> {
    layout: Layout,
    /// By group; empty where nothing has used it.
    flats: Vec<Vec<T>>,
    plans: Vec<Loaded<T>>,
}

impl<T: Precision> Host<T> {
    /// An empty device.
    pub fn new() -> Self {
        Self { layout: Layout::default(), flats: Vec::new(), plans: Vec::new() }
    }

    /// Reads a value of the plan with full precision (the reference device's tests).
    pub fn read_f64(&self, id: PlanId, output: usize) -> Vec<f64> {
        let port = &self.plans[id.0].plan.outputs[output];
        self.floats(id, port.place, port.ty.shape.len()).iter().map(|x| x.get()).collect()
    }
    /// Writes part of a flat buffer with full precision.
    pub fn write_f64(&mut self, group: Group, offset: usize, data: &[f64]) {
        for (to, from) in self.flat(group)[offset..].iter_mut().zip(data) {
            *to = T::of(*from);
        }
    }
    /// Sets a float input with full precision.
    pub fn upload_f64(&mut self, id: PlanId, input: usize, data: &[f64]) {
        let loaded = &mut self.plans[id.0];
        let Place::Buffer(b) = loaded.plan.inputs[input].place else { unreachable!("inputs live in buffers") };
        loaded.buffers[b].floats = data.iter().map(|x| T::of(*x)).collect();
    }

    /// A flat buffer, allocated on first use.
    fn flat(&mut self, group: Group) -> &mut Vec<T> {
        let size = self.layout.size(group);
        let flat = &mut self.flats[group as usize];
        flat.resize(size, T::default());
        flat
    }

    fn floats(&self, id: PlanId, place: Place, len: usize) -> &[T] {
        match place {
            Place::Buffer(b) => &self.plans[id.0].buffers[b].floats[..len],
            Place::State(r) => &self.flats[r.group as usize][r.offset..r.offset + r.len],
        }
    }

    /// Runs step `i` of a plan. Written storage is taken out of the device while the op runs, so that plain borrows suffice.
    fn execute(&mut self, id: PlanId, i: usize, uniforms: &StepUniforms) {
        let loaded = &mut self.plans[id.0];
        let step = &loaded.plan.steps[i];
        let in_place = step.op.in_place();
        let mut written: Vec<(usize, Vec<T>)> = Vec::new();
        let mut flats: Vec<(Group, Vec<T>)> = Vec::new();
        for (o, (_, place)) in step.outputs.iter().enumerate() {
            match place {
                Place::Buffer(b) => {
                    let mut memory = std::mem::take(&mut loaded.buffers[*b].floats);
                    memory.resize(memory.len().max(step.io.outputs[o].shape.len()), T::default());
                    written.push((o, memory));
                }
                Place::State(r) => {
                    if !flats.iter().any(|f| f.0 == r.group) {
                        flats.push((r.group, std::mem::take(&mut self.flats[r.group as usize])));
                    }
                }
            }
        }
        let inputs = step
            .inputs
            .iter()
            .zip(&step.io.inputs)
            .enumerate()
            .map(|(j, ((_, place), ty))| {
                let len = ty.shape.len();
                if in_place.iter().any(|p| p.0 == j) {
                    return Input::InPlace;
                }
                match (place, ty.dtype) {
                    (Place::Buffer(b), DType::F32) => Input::F(&loaded.buffers[*b].floats[..len]),
                    (Place::Buffer(b), DType::U32) => Input::U(&loaded.buffers[*b].words[..len]),
                    (Place::State(r), _) => Input::F(&self.flats[r.group as usize][r.offset..r.offset + r.len]),
                }
            })
            .collect();
        let mut slices: Vec<(usize, &mut [T])> =
            written.iter_mut().map(|(o, memory)| (*o, &mut memory[..step.io.outputs[*o].shape.len()])).collect();
        for (group, memory) in &mut flats {
            let mut ranges: Vec<(usize, Range)> = step
                .outputs
                .iter()
                .enumerate()
                .filter_map(|(o, (_, p))| match p {
                    Place::State(r) if r.group == *group => Some((o, *r)),
                    _ => None,
                })
                .collect();
            ranges.sort_by_key(|(_, r)| r.offset);
            let (mut rest, mut at) = (&mut memory[..], 0);
            for (o, r) in ranges {
                let (_, tail) = rest.split_at_mut(r.offset - at);
                let (slice, tail) = tail.split_at_mut(r.len);
                slices.push((o, slice));
                (rest, at) = (tail, r.offset + r.len);
            }
        }
        slices.sort_by_key(|s| s.0);
        let outputs = slices.into_iter().map(|s| s.1).collect();
        let mut run = Run { inputs, outputs, in_types: &step.io.inputs, out_types: &step.io.outputs, step: uniforms };
        T::execute(&step.op, &mut run);
        for (o, memory) in written {
            let Place::Buffer(b) = step.outputs[o].1 else { unreachable!("taken from a buffer") };
            loaded.buffers[b].floats = memory;
        }
        for (group, memory) in flats {
            self.flats[group as usize] = memory;
        }
        if let Some(poison) = T::POISON {
            for &b in &loaded.dead[i] {
                loaded.buffers[b].floats.fill(T::of(poison));
            }
        }
    }

    fn scalars(&self, id: PlanId) -> Vec<f32> {
        let loaded = &self.plans[id.0];
        loaded.scalars.iter().map(|&o| self.floats(id, loaded.plan.outputs[o].place, 1)[0].get() as f32).collect()
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
    let mut dead = vec![Vec::new(); plan.steps.len()];
    for (i, step) in plan.steps.iter().enumerate().rev() {
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
                if !wanted[*b] {
                    dead[i].push(*b);
                }
                wanted[*b] = true;
            }
        }
    }
    dead
}

impl<T: Precision> Session for Host<T> {
    fn device(&self) -> String {
        T::NAME.into()
    }
    fn target(&self) -> Target {
        Target { gemm: Gemm::Tile, max_groups: u32::MAX }
    }
    fn limits(&self) -> Limits {
        Limits::NONE
    }
    fn allocate(&mut self, layout: &Layout) -> Result<(), DeviceError> {
        self.layout = layout.clone();
        self.flats = vec![Vec::new(); Group::ALL.len()];
        Ok(())
    }
    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        verify(&plan, &self.limits())?;
        assert_eq!(plan.layout, self.layout, "plan `{}` was made for another model", plan.name);
        for &group in &plan.groups {
            self.flat(group);
        }
        let mut words = vec![false; plan.buffers.len()];
        for port in &plan.inputs {
            if let (Place::Buffer(b), DType::U32) = (port.place, port.ty.dtype) {
                words[b] = true;
            }
        }
        let buffers = plan
            .buffers
            .iter()
            .zip(&words)
            .map(|(b, &w)| {
                let len = b.bytes / 4;
                let fill = T::of(T::POISON.unwrap_or(0.0));
                if w { Memory { floats: vec![], words: vec![0; len] } } else { Memory { floats: vec![fill; len], words: vec![] } }
            })
            .collect();
        let scalars = (0..plan.outputs.len()).filter(|&o| plan.outputs[o].ty.shape.len() == 1).collect();
        self.plans.push(Loaded { dead: dead_after(&plan), plan, buffers, scalars, log: Vec::new() });
        Ok(PlanId(self.plans.len() - 1))
    }
    fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[id.0].plan
    }
    fn write_state(&mut self, group: Group, offset: usize, data: &[f32]) -> Result<(), DeviceError> {
        for (to, from) in self.flat(group)[offset..offset + data.len()].iter_mut().zip(data) {
            *to = T::of(f64::from(*from));
        }
        Ok(())
    }
    fn read_state(&mut self, group: Group) -> Result<Vec<f32>, DeviceError> {
        Ok(self.flat(group).iter().map(|x| x.get() as f32).collect())
    }
    fn upload(&mut self, id: PlanId, input: usize, data: Data<'_>) -> Result<(), DeviceError> {
        let loaded = &mut self.plans[id.0];
        let port = &loaded.plan.inputs[input];
        assert_eq!(data.len(), port.ty.shape.len(), "input `{}`", port.name);
        let Place::Buffer(b) = port.place else { unreachable!("inputs live in buffers") };
        let memory = &mut loaded.buffers[b];
        match data {
            Data::F32(x) => memory.floats.iter_mut().zip(x).for_each(|(to, from)| *to = T::of(f64::from(*from))),
            Data::U32(x) => memory.words[..x.len()].copy_from_slice(x),
        }
        Ok(())
    }
    fn run(&mut self, id: PlanId, step: &StepUniforms) -> Result<(), DeviceError> {
        for i in 0..self.plans[id.0].plan.steps.len() {
            self.execute(id, i, step);
        }
        let scalars = self.scalars(id);
        self.plans[id.0].log.push((step.step, scalars));
        Ok(())
    }
    fn read(&mut self, id: PlanId, output: usize) -> Result<Vec<f32>, DeviceError> {
        let port = &self.plans[id.0].plan.outputs[output];
        Ok(self.floats(id, port.place, port.ty.shape.len()).iter().map(|x| x.get() as f32).collect())
    }
    fn drain(&mut self, id: PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError> {
        Ok(std::mem::take(&mut self.plans[id.0].log))
    }
    fn allocated_bytes(&self) -> usize {
        let plans: usize = self.plans.iter().map(|p| p.plan.buffer_bytes()).sum();
        plans + self.flats.iter().map(|f| f.len() * 4).sum::<usize>()
    }
    fn first_non_finite(&mut self, id: PlanId, step: &StepUniforms) -> Result<Option<String>, DeviceError> {
        let bad = |x: &[T]| x.iter().any(|v| !v.get().is_finite());
        let layout = self.layout.clone();
        for s in &layout.states {
            let r = s.range;
            if bad(&self.flat(r.group)[r.offset..r.offset + r.len]) {
                return Ok(Some(s.name.clone()));
            }
        }
        for i in 0..self.plans[id.0].plan.steps.len() {
            self.execute(id, i, step);
            let step = &self.plans[id.0].plan.steps[i];
            for ((_, place), ty) in step.outputs.iter().zip(&step.io.outputs) {
                if bad(self.floats(id, *place, ty.shape.len())) && T::POISON.is_none() {
                    return Ok(Some(step.label.clone()));
                }
            }
        }
        Ok(None)
    }
    fn time_step(&mut self, id: PlanId, step: usize, times: usize) -> Result<f64, DeviceError> {
        let start = std::time::Instant::now();
        for _ in 0..times {
            self.execute(id, step, &StepUniforms::default());
        }
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }
    fn host_seconds(&self) -> f64 {
        0.0
    }
    fn poison(&mut self, id: PlanId) -> Result<(), DeviceError> {
        let loaded = &mut self.plans[id.0];
        let inputs: Vec<_> = loaded.plan.inputs.iter().map(|p| p.place).collect();
        for (b, memory) in loaded.buffers.iter_mut().enumerate() {
            if !inputs.contains(&Place::Buffer(b)) {
                memory.floats.fill(T::of(f64::NAN));
            }
        }
        Ok(())
    }
}

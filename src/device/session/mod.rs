//! One model on one device: what every device does alike.

mod apart;
mod elements;
mod hunt;
mod images;
mod loading;
mod timing;

pub use loading::Compiled;
pub use timing::{Stopwatch, Timing};

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use web_time::Instant;

use super::pace::Pace;
use super::{
    Bound, BufferId, Capabilities, Data, Device, DeviceError, Done, ProgramId, Ticket, Values,
};
use crate::ir::{Graph, Group, Layout};
use crate::ops::{Choices, STAMP, StepUniforms, Target};
use crate::plan::{Limits, Options, Plan, RING, lower};
use crate::tensor::{DType, TensorType};

/// Pieces queued ahead of the device: it always has work, and a read does not wait long.
const IN_FLIGHT: usize = 2;

/// A plan loaded on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId(pub usize);

/// A run whose scalars are in the ring.
#[derive(Clone, Copy, Debug)]
struct Pending {
    serial: u32,
    step: u32,
}

struct Loaded {
    plan: Rc<Plan>,
    program: ProgramId,
    bound: Bound,
    pace: Pace,
    /// Runs so far.
    serial: u32,
    pending: Vec<Pending>,
    /// Reads of the ring that were asked for, and the runs that they are of.
    asked: VecDeque<(Ticket, Vec<Pending>)>,
    log: Vec<(u32, Vec<f32>)>,
}

/// A read of a flat buffer that was asked for.
#[derive(Debug)]
pub struct StateRead(Ticket);

/// A submission that may not be done.
struct Flight {
    ticket: Ticket,
    plan: usize,
    piece: Range<usize>,
    began: Duration,
}

/// Where the time comes from: the machine's clock, or a test's.
pub type Clock = Box<dyn Fn() -> Duration>;

/// Called while kernels are compiled, with how many are ready and how many there are.
pub type OnCompile = Box<dyn Fn(usize, usize) + Sync>;

/// One model on one device: flat persistent buffers and the plans that work on them.
pub struct Session {
    device: Box<dyn Device>,
    clock: Clock,
    target: Target,
    choices: Choices,
    /// Bytes that have turned out to be all there are.
    room: Option<usize>,
    layout: Layout,
    states: BTreeMap<Group, BufferId>,
    /// The parts of the images that stay.
    images: Vec<(BufferId, TensorType)>,
    /// Whether images may stay.
    keeps_images: bool,
    plans: BTreeMap<usize, Loaded>,
    next_plan: usize,
    in_flight: VecDeque<Flight>,
    /// When the latest submission that was waited for was done.
    done_at: Duration,
    host_time: Duration,
    on_compile: Option<OnCompile>,
    compiled: Compiled,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("device", &self.device()).finish_non_exhaustive()
    }
}

impl<D: Device + 'static> From<D> for Session {
    fn from(device: D) -> Self {
        Self::new(Box::new(device))
    }
}

impl Session {
    /// An empty session.
    pub fn new(device: Box<dyn Device>) -> Self {
        let start = Instant::now();
        Self {
            target: device.capabilities().target,
            choices: Choices::default(),
            // A host reads images where they are.
            keeps_images: device.capabilities().dispatches,
            images: Vec::new(),
            room: None,
            device,
            clock: Box::new(move || start.elapsed()),
            layout: Layout::default(),
            states: BTreeMap::new(),
            plans: BTreeMap::new(),
            next_plan: 0,
            in_flight: VecDeque::new(),
            done_at: Duration::ZERO,
            host_time: Duration::ZERO,
            on_compile: None,
            compiled: Compiled::default(),
        }
    }

    /// Takes the time from elsewhere (tests).
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sets what is called while kernels are compiled.
    pub fn on_compile(&mut self, call: OnCompile) {
        self.on_compile = Some(call);
    }

    /// What it runs on, for people.
    pub fn device(&self) -> String {
        self.device.capabilities().name.clone()
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.device.capabilities()
    }

    /// What plans for it should be lowered to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Sets what plans should be lowered to.
    pub fn set_target(&mut self, target: Target) {
        self.target = target;
    }

    /// Which variants ops take, beside the table of defaults.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }

    /// Sets which variants ops take.
    pub fn set_choices(&mut self, choices: Choices) {
        self.choices = choices;
    }

    /// How plans for it should be lowered.
    pub fn options(&self) -> Options<'_> {
        Options { choices: &self.choices, ..Options::new(self.target) }
    }

    /// Plans a graph for it.
    pub fn lower(&self, name: &str, graph: &Graph) -> Plan {
        lower(name, graph, self.options())
    }

    /// Bytes that buffers may take in all, where that is known: from the device, or because an
    /// allocation failed.
    pub fn memory(&self) -> Option<usize> {
        [self.device.capabilities().memory, self.room].into_iter().flatten().min()
    }

    /// Limits that plans must respect.
    pub fn limits(&self) -> Limits {
        self.device.capabilities().limits
    }

    /// Forgets model and plans and frees what they took: the device can hold another.
    pub fn reset(&mut self) {
        let programs: Vec<_> = self.plans.values().map(|p| p.program).collect();
        let mut buffers: Vec<_> = self.plans.values().flat_map(|p| p.bound.own()).collect();
        buffers.extend(self.states.values());
        buffers.extend(self.images.drain(..).map(|part| part.0));
        // What was asked for takes memory until it is taken. A device that is lost has none.
        for (ticket, _) in self.plans.values().flat_map(|p| &p.asked) {
            self.device.poll(*ticket, true).ok();
        }
        self.device.free(&programs, &buffers);
        self.plans.clear();
        self.states.clear();
        self.in_flight.clear();
        self.layout = Layout::default();
    }

    /// Sets the model whose flat buffers the plans work on; each is allocated, zeroed, when first
    /// used.
    ///
    /// # Panics
    /// If plans of another model are loaded.
    pub fn allocate(&mut self, layout: &Layout) {
        assert!(self.plans.is_empty(), "a session holds one model; `reset` makes room for another");
        self.reset();
        self.layout = layout.clone();
    }

    fn loaded(&mut self, id: PlanId) -> &mut Loaded {
        self.plans.get_mut(&id.0).unwrap_or_else(|| panic!("plan {} is not loaded", id.0))
    }

    /// The loaded plan.
    pub fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[&id.0].plan
    }

    /// A flat buffer, allocated on first use.
    fn state(&mut self, group: Group) -> Result<BufferId, DeviceError> {
        if let Some(&buffer) = self.states.get(&group) {
            return Ok(buffer);
        }
        let label = format!("{group:?}").to_lowercase();
        // An empty group still has an address.
        let elements = self.layout.size(group).max(4);
        let buffer = self.device.allocate(&label, DType::F32, elements)?;
        self.states.insert(group, buffer);
        Ok(buffer)
    }

    /// Whether a flat buffer is allocated.
    pub fn holds(&self, group: Group) -> bool {
        self.states.contains_key(&group)
    }

    /// Writes part of a flat buffer.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn write_state(
        &mut self,
        group: Group,
        offset: usize,
        data: &[f32],
    ) -> Result<(), DeviceError> {
        self.write_state_of(group, offset, Data::F32(data))
    }

    /// Writes part of a flat buffer in the precision of `data`.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn write_state_of(
        &mut self,
        group: Group,
        offset: usize,
        data: Data<'_>,
    ) -> Result<(), DeviceError> {
        let (end, size) = (offset + data.len(), self.layout.size(group));
        assert!(end <= size, "{group:?} has {size} elements, not {end}");
        let buffer = self.state(group)?;
        self.device.write(buffer, offset, data)
    }

    /// Reads a flat buffer.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn read_state(&mut self, group: Group) -> Result<Vec<f32>, DeviceError> {
        let buffer = self.state(group)?;
        Ok(self.fetch(buffer, 0, self.layout.size(group))?.into_f32())
    }

    /// Asks for part of a flat buffer, as it is after the steps queued so far.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn request_state(
        &mut self,
        group: Group,
        range: Range<usize>,
    ) -> Result<StateRead, DeviceError> {
        let buffer = self.state(group)?;
        Ok(StateRead(self.device.read(buffer, range.start, range.len())?))
    }

    /// Waits for what was asked for, not for the steps queued since.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn requested_state(&mut self, read: StateRead) -> Result<Vec<f32>, DeviceError> {
        Ok(self.wait(read.0)?.values.unwrap_or_else(|| panic!("a read without values")).into_f32())
    }

    /// Queues one step, in as many submissions as keep each of them short.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn run(&mut self, id: PlanId, step: &StepUniforms) -> Result<(), DeviceError> {
        if self.plans[&id.0].pending.len() == RING {
            self.collect(id)?;
        }
        let watched = self.device.capabilities().watched;
        let loaded = self.loaded(id);
        let uniforms = StepUniforms { serial: loaded.serial, ..*step };
        loaded.pending.push(Pending { serial: loaded.serial, step: step.step });
        loaded.serial = loaded.serial.wrapping_add(1);
        let (program, measured) = (loaded.program, !watched || loaded.pace.is_measured());
        let all = 0..loaded.plan.ops.len();
        let pieces = if watched { loaded.pace.pieces() } else { vec![all] };
        // What was never measured is waited for piece by piece: a queue of long submissions is a
        // long one.
        let ahead = if measured { IN_FLIGHT } else { 1 };
        for piece in pieces {
            while self.in_flight.len() >= ahead {
                self.land()?;
            }
            let began = (self.clock)();
            let ticket = self.device.run(program, piece.clone(), &uniforms, false)?;
            self.host_time += (self.clock)().saturating_sub(began);
            self.in_flight.push_back(Flight { ticket, plan: id.0, piece, began });
        }
        if measured { Ok(()) } else { self.settle() }
    }

    /// Sets which run of its plan the next one is (trials of what writes the ring).
    pub fn count_from(&mut self, id: PlanId, serial: u32) {
        self.loaded(id).serial = serial;
    }

    /// Waits for the oldest submission and learns from it.
    fn land(&mut self) -> Result<(), DeviceError> {
        let Some(flight) = self.in_flight.pop_front() else { return Ok(()) };
        // Only a submission that is waited for shows when it ended.
        let waited = self.device.poll(flight.ticket, false)?.is_none();
        if waited {
            self.wait(flight.ticket)?;
        }
        let now = (self.clock)();
        let seconds = now.saturating_sub(flight.began.max(self.done_at)).as_secs_f64();
        let pace = &mut self.loaded(PlanId(flight.plan)).pace;
        if waited || !pace.is_measured() {
            pace.observe(flight.piece, seconds);
        }
        self.done_at = now;
        Ok(())
    }

    /// Waits for all that is queued.
    fn settle(&mut self) -> Result<(), DeviceError> {
        while !self.in_flight.is_empty() {
            self.land()?;
        }
        Ok(())
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Done, DeviceError> {
        let done = self.device.poll(ticket, true)?;
        Ok(done.unwrap_or_else(|| {
            panic!("{}: a poll that may wait came back without a result", self.device())
        }))
    }

    /// Waits for the steps queued so far and reads an output by position.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn read(&mut self, id: PlanId, output: usize) -> Result<Vec<f32>, DeviceError> {
        Ok(self.output(id, output)?.into_f32())
    }

    /// Like [`Session::read`], with the full precision of `reference`.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn read_f64(&mut self, id: PlanId, output: usize) -> Result<Vec<f64>, DeviceError> {
        Ok(self.output(id, output)?.into_f64())
    }

    fn output(&mut self, id: PlanId, output: usize) -> Result<Values, DeviceError> {
        let loaded = &self.plans[&id.0];
        let port = &loaded.plan.outputs[output];
        let (place, ty) = (loaded.bound.place(port.place), port.ty);
        self.fetch_tensor(place, ty)
    }

    /// Reads elements of a buffer, in pieces that the device has room for.
    fn fetch(
        &mut self,
        buffer: BufferId,
        offset: usize,
        len: usize,
    ) -> Result<Values, DeviceError> {
        let piece = self.device.capabilities().read_bytes;
        let most = piece.map_or(len, |bytes| bytes / DType::F32.bytes()).max(1);
        let mut all: Option<Values> = None;
        for first in (0..len).step_by(most) {
            let ticket = self.device.read(buffer, offset + first, most.min(len - first))?;
            let values =
                self.wait(ticket)?.values.unwrap_or_else(|| panic!("a read without values"));
            all = Some(match (all, values) {
                (None, values) => values,
                (Some(Values::F32(mut a)), Values::F32(b)) => {
                    a.extend(b);
                    Values::F32(a)
                }
                (Some(Values::F64(mut a)), Values::F64(b)) => {
                    a.extend(b);
                    Values::F64(a)
                }
                _ => unreachable!("a device has one precision"),
            });
        }
        // Everything queued before a read is done.
        self.in_flight.clear();
        self.done_at = (self.clock)();
        Ok(all.unwrap_or(Values::F32(vec![])))
    }

    /// Scalar outputs of the runs since the last call, oldest first:
    /// `(step, one value per scalar output)`. Waits for all that is queued.
    ///
    /// # Errors
    /// If the driver fails, or did not carry out a run that it reported as done.
    pub fn drain(&mut self, id: PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError> {
        self.collect(id)?;
        Ok(std::mem::take(&mut self.loaded(id).log))
    }

    /// Asks for the scalar outputs of the runs so far, which [`Session::requested`] returns: with
    /// other work queued between the two, the device has something to do while the host reads.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn request(&mut self, id: PlanId) -> Result<(), DeviceError> {
        let loaded = self.loaded(id);
        let pending = std::mem::take(&mut loaded.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let ring = &loaded.plan.ring;
        let (buffer, len) = (loaded.bound.buffers[ring.buffer], ring.ty.shape.len());
        let ticket = self.device.read(buffer, 0, len)?;
        self.loaded(id).asked.push_back((ticket, pending));
        Ok(())
    }

    /// Scalar outputs of the runs that were asked for, as [`Session::drain`] returns them. Waits
    /// for those runs, not for what is queued behind them.
    ///
    /// # Errors
    /// As of [`Session::drain`].
    pub fn requested(&mut self, id: PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError> {
        self.receive(id)?;
        Ok(std::mem::take(&mut self.loaded(id).log))
    }

    /// Reads the ring of the pending runs.
    fn collect(&mut self, id: PlanId) -> Result<(), DeviceError> {
        if !self.loaded(id).pending.is_empty() {
            self.settle()?;
            self.request(id)?;
        }
        self.receive(id)
    }

    /// Takes the rings that were asked for, and checks that each run has left its stamp.
    fn receive(&mut self, id: PlanId) -> Result<(), DeviceError> {
        while let Some((ticket, runs)) = self.loaded(id).asked.pop_front() {
            let rows = self.requested_state(StateRead(ticket))?;
            let width = self.plans[&id.0].plan.ring.width();
            for run in runs {
                let row = &rows[run.serial as usize % RING * width..][..width];
                let (stamp, values) = row.split_at(STAMP);
                if stamp != [(run.serial & 0xffff) as f32, (run.serial >> 16) as f32] {
                    let plan = &self.plans[&id.0].plan.name;
                    let message = format!(
                        "step {} of the plan `{plan}` was reported as done but has not run to its \
                         end",
                        run.step
                    );
                    return Err(DeviceError::Lost { device: self.device(), message });
                }
                self.loaded(id).log.push((run.step, values.to_vec()));
            }
        }
        Ok(())
    }

    /// Bytes of device memory that are held now, counted from the buffers.
    pub fn allocated_bytes(&self) -> usize {
        self.device.held_bytes()
    }

    /// Seconds spent on queueing steps so far, waiting for the device excluded.
    pub fn host_seconds(&self) -> f64 {
        self.host_time.as_secs_f64()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Buffers and programs go with the device; nothing is asked of one that may be lost.
        self.plans.clear();
    }
}

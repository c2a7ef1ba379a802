//! A device with a clock and a temper: the `cpu` device, except that its time is a test's, that it
//! can be lost, and that it can report as done what it has not done.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use aavae::device::{
    Bound, BufferId, Capabilities, Data, Device, DeviceError, Done, Host, ProgramId, Progress,
    Ticket,
};
use aavae::ops::{Io, StepUniforms, Variant, key};
use aavae::plan::{Plan, PlannedOp};
use aavae::tensor::{DType, Half};

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The device is lost at this step of the plan `train`.
    Loud(u32),
    /// From this step of the plan `train` on nothing is carried out, and everything reported as
    /// done.
    Silent(u32),
}

/// What a test watches and sets while a session runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Temper {
    /// The time.
    pub(crate) now: Rc<Cell<Duration>>,
    /// FLOP/s; 0 is no time at all.
    pub(crate) flops: Rc<Cell<f64>>,
    /// How often the host waited for all that was queued, and the device was idle then.
    pub(crate) idle: Rc<Cell<usize>>,
    /// Seconds of every submission so far.
    pub(crate) submissions: Rc<RefCell<Vec<f64>>>,
    /// What will go wrong; once it has, nothing more does.
    pub(crate) fault: Rc<Cell<Fault>>,
    /// Bytes that fit, if not all.
    pub(crate) memory: Rc<Cell<Option<usize>>>,
    /// Variants that get one element of their output wrong, where the key of their product, or the
    /// op as it is debugged, contains the text.
    pub(crate) crooked: Rc<RefCell<Vec<(Variant, String)>>>,
    /// What was to be compiled together: the variants of all products of each call.
    pub(crate) prepared: Rc<RefCell<Vec<Vec<Variant>>>>,
    /// Why compiling together fails, if it does.
    pub(crate) unprepared: Rc<RefCell<Option<DeviceError>>>,
    /// A variant that plans of a name cannot be loaded with.
    pub(crate) unloadable: Rc<Cell<Option<(&'static str, Variant)>>>,
    /// Seconds of an op by its variant, for a device that measures; others take one.
    pub(crate) costs: Rc<RefCell<BTreeMap<Variant, f64>>>,
}

pub(crate) struct Faulty {
    host: Host<f32>,
    capabilities: Capabilities,
    temper: Temper,
    plans: BTreeMap<ProgramId, (Rc<Plan>, Bound)>,
    dead: bool,
    /// When each queued submission is done.
    ends: BTreeMap<Ticket, Duration>,
    busy_until: Duration,
    silent_ticket: u64,
    /// Of the latest timed run.
    seconds: Option<f64>,
}

impl Temper {
    fn is_crooked(&self, step: &PlannedOp) -> bool {
        let key = format!("{} {:?}", key(&step.op, &Io::from(&step.io)), step.op);
        self.crooked
            .borrow()
            .iter()
            .any(|(variant, text)| step.variant == *variant && key.contains(text))
    }
}

impl Faulty {
    /// A device that offers kernels of subgroups as well and measures what they take.
    pub(crate) fn with_variants(temper: Temper) -> Self {
        let mut faulty = Self::new(temper, false);
        faulty.capabilities.target.subgroup = Some(8);
        faulty.capabilities.timestamps = true;
        faulty.capabilities.dispatches = true;
        faulty
    }

    /// A device that says how much memory it has, and takes some of it to read.
    pub(crate) fn bounded(memory: usize, reads: usize) -> Self {
        let mut faulty = Self::new(Temper::default(), false);
        faulty.capabilities.memory = Some(memory);
        faulty.capabilities.read_bytes = Some(reads);
        faulty
    }

    /// A device that stores these 16-bit floats.
    pub(crate) fn storing(halves: &'static [Half]) -> Self {
        let mut faulty = Self::new(Temper::default(), false);
        faulty.capabilities.halves = halves;
        faulty
    }

    /// A device that binds at most so many bytes.
    pub(crate) fn narrow(max_binding: usize) -> Self {
        let mut faulty = Self::new(Temper::default(), false);
        faulty.capabilities.limits.max_binding = max_binding;
        faulty
    }

    pub(crate) fn new(temper: Temper, watched: bool) -> Self {
        let host = Host::<f32>::new();
        let capabilities = Capabilities {
            name: "faulty".into(),
            watched,
            timestamps: false,
            memory: None,
            ..host.capabilities().clone()
        };
        Self {
            host,
            capabilities,
            temper,
            plans: BTreeMap::new(),
            dead: false,
            ends: BTreeMap::new(),
            busy_until: Duration::ZERO,
            silent_ticket: 1 << 40,
            seconds: None,
        }
    }

    /// The session's clock.
    pub(crate) fn clock(temper: &Temper) -> Box<dyn Fn() -> Duration> {
        let now = Rc::clone(&temper.now);
        Box::new(move || now.get())
    }

    fn lost(&self) -> DeviceError {
        DeviceError::Lost { device: "faulty".into(), message: "as the test asked".into() }
    }
}

impl Device for Faulty {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn allocate(
        &mut self,
        label: &str,
        ty: DType,
        elements: usize,
    ) -> Result<BufferId, DeviceError> {
        let (bytes, held) = (elements * ty.bytes(), self.host.held_bytes());
        if self.temper.memory.get().is_some_and(|room| held + bytes > room) {
            let (device, buffer) = ("faulty".into(), label.into());
            return Err(DeviceError::OutOfMemory { device, buffer, bytes, held });
        }
        self.host.allocate(label, ty, elements)
    }
    fn write(
        &mut self,
        buffer: BufferId,
        offset: usize,
        data: Data<'_>,
    ) -> Result<(), DeviceError> {
        self.host.write(buffer, offset, data)
    }
    fn prepare(&mut self, plans: &[&Plan], _: Progress<'_>) -> Result<(), DeviceError> {
        // The candidate of a pair is its second product.
        let products = |p: &&Plan| p.ops.iter().filter(|s| s.flops > 0).map(|s| s.variant).nth(1);
        let variants = plans.iter().filter_map(products).collect();
        self.temper.prepared.borrow_mut().push(variants);
        self.temper.unprepared.borrow().clone().map_or(Ok(()), Err)
    }
    fn load(
        &mut self,
        plan: &Rc<Plan>,
        bound: Bound,
        progress: Progress<'_>,
    ) -> Result<ProgramId, DeviceError> {
        let refused = self.temper.unloadable.get().filter(|(name, _)| plan.name == *name);
        if plan.ops.iter().any(|op| refused.is_some_and(|(_, variant)| op.variant == variant)) {
            let (device, message) = ("faulty".into(), "as the test asked".into());
            return Err(DeviceError::Driver { device, message });
        }
        let id = self.host.load(plan, bound.clone(), progress)?;
        self.plans.insert(id, (Rc::clone(plan), bound));
        Ok(id)
    }
    fn run(
        &mut self,
        program: ProgramId,
        steps: Range<usize>,
        uniforms: &StepUniforms,
        timed: bool,
    ) -> Result<Ticket, DeviceError> {
        let (plan, bound) = &self.plans[&program];
        match self.temper.fault.get() {
            Fault::Loud(step) if plan.name == "train" && uniforms.step == step => {
                self.temper.fault.set(Fault::None);
                return Err(self.lost());
            }
            Fault::Silent(step) if plan.name == "train" && uniforms.step == step => {
                self.temper.fault.set(Fault::None);
                self.dead = true;
            }
            _ => {}
        }
        let flops: u64 = plan.ops[steps.clone()].iter().map(|s| s.flops).sum();
        let rate = self.temper.flops.get();
        let seconds = if rate > 0.0 { flops as f64 / rate } else { 0.0 };
        self.temper.submissions.borrow_mut().push(seconds);
        if timed {
            let cost =
                |s: &PlannedOp| self.temper.costs.borrow().get(&s.variant).copied().unwrap_or(1.0);
            self.seconds = Some(plan.ops[steps.clone()].iter().map(cost).sum());
        }
        let mut ticket = Ticket(0);
        if self.dead {
            self.silent_ticket += 1;
            ticket = Ticket(self.silent_ticket);
        } else {
            for i in steps {
                ticket = self.host.run(program, i..i + 1, uniforms, timed)?;
                if self.temper.is_crooked(&plan.ops[i]) {
                    let (buffer, offset) = bound.place(plan.ops[i].outputs[0].1);
                    self.host.write(buffer, offset + 7, Data::F32(&[0.4321]))?;
                }
            }
        }
        self.busy_until =
            self.busy_until.max(self.temper.now.get()) + Duration::from_secs_f64(seconds);
        self.ends.insert(ticket, self.busy_until);
        Ok(ticket)
    }
    fn read(
        &mut self,
        buffer: BufferId,
        offset: usize,
        elements: usize,
    ) -> Result<Ticket, DeviceError> {
        let ticket = self.host.read(buffer, offset, elements)?;
        self.ends.insert(ticket, self.busy_until);
        Ok(ticket)
    }
    fn poll(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Done>, DeviceError> {
        let end = self.ends.get(&ticket).copied().unwrap_or_default();
        if end > self.temper.now.get() {
            if !wait {
                return Ok(None);
            }
            if end == self.busy_until {
                self.temper.idle.set(self.temper.idle.get() + 1);
            }
            self.temper.now.set(end);
        }
        self.ends.remove(&ticket);
        let done = self.host.poll(ticket, wait)?;
        Ok(done.map(|d| Done { seconds: d.seconds.and(self.seconds), ..d }))
    }
    fn free(&mut self, programs: &[ProgramId], buffers: &[BufferId]) {
        self.host.free(programs, buffers);
    }
    fn held_bytes(&self) -> usize {
        self.host.held_bytes()
    }
}

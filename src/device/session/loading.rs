//! Plans on a device: compiled, bound to buffers, exchanged, given back.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Loaded, Pace, PlanId, Session, elements};
use crate::device::{Bound, Data, Device, DeviceError, Progress};
use crate::ops::Dispatch;
use crate::plan::{Plan, verify};
use crate::tensor::DType;

/// Bytes to which the memory that is left is measured.
const LEAST: usize = 64 << 10;

/// Kernels that a session compiled, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// How many kernels were compiled.
    pub kernels: usize,
    /// How long, in all.
    pub time: Duration,
}

impl Session {
    /// Verifies and loads a plan: after this a step allocates nothing.
    ///
    /// # Errors
    /// If a limit is exceeded, the device has no room, or its driver refuses a kernel.
    pub fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        let needed = plan.peak_bytes();
        let loaded = self.load_beside(plan);
        if matches!(loaded, Err(DeviceError::OutOfMemory { .. })) {
            self.room = Some(self.find_room(needed));
        }
        loaded
    }

    /// Like [`Session::load`], of a plan that can be done without: how much room there is otherwise
    /// is not measured where it has none. A plan that touches no flat buffer may be of another
    /// model.
    ///
    /// # Errors
    /// If a limit is exceeded, the device has no room, or its driver refuses a kernel.
    pub fn load_beside(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        let id = self.next_plan;
        self.load_as(id, plan)?;
        self.next_plan += 1;
        Ok(PlanId(id))
    }

    /// Loads a plan in place of one of the same graph, whose inputs and outputs it has: the first
    /// is given back before, and with it what was not drained. The flat buffers stay as they are.
    /// Where the second cannot be loaded, there is none until another takes its place.
    ///
    /// # Errors
    /// If the device has no room, or its driver refuses a kernel.
    pub fn reload(&mut self, id: PlanId, plan: Plan) -> Result<(), DeviceError> {
        self.unload(id)?;
        self.load_as(id.0, plan)
    }

    /// Gives a plan back, and with it what was not drained.
    ///
    /// # Errors
    /// If the driver fails at what is queued.
    pub fn unload(&mut self, id: PlanId) -> Result<(), DeviceError> {
        self.settle()?;
        if let Some(loaded) = self.plans.remove(&id.0) {
            for (ticket, _) in loaded.asked {
                self.wait(ticket)?;
            }
            self.device.free(&[loaded.program], &loaded.bound.own());
        }
        Ok(())
    }

    /// Compiles the kernels of plans together, on every core, so that loading them one by one takes
    /// little time.
    ///
    /// # Errors
    /// If a plan exceeds a limit, or the driver refuses a kernel.
    pub fn prepare(&mut self, plans: &[Plan]) -> Result<(), DeviceError> {
        for plan in plans {
            verify(plan, &self.limits())?;
        }
        let plans: Vec<&Plan> = plans.iter().collect();
        self.compiling(|device, progress| device.prepare(&plans, progress))
    }

    /// Dispatches of plans whose kernels the device has not compiled yet, one for each kernel.
    /// None where a device does not compile ahead.
    pub fn missing(&self, plans: &[Plan]) -> Vec<Dispatch> {
        self.device.missing(&plans.iter().collect::<Vec<_>>())
    }

    /// Compiles one of those ([`Session::missing`]). Nobody is told: it is not waited for.
    ///
    /// # Errors
    /// If the driver refuses it.
    pub fn compile(&mut self, dispatch: &Dispatch) -> Result<(), DeviceError> {
        self.device.compile(std::slice::from_ref(dispatch), &|_, _| ())
    }

    /// What was compiled by [`Session::prepare`] and to load plans.
    pub fn compiled(&self) -> Compiled {
        self.compiled
    }

    /// Counts what a device compiles, and tells of it.
    fn compiling<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Device, Progress<'_>) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let (began, count) = ((self.clock)(), AtomicUsize::new(0));
        let progress = |ready: usize, of: usize| {
            count.fetch_max(ready, Ordering::Relaxed);
            if let Some(call) = &self.on_compile {
                call(ready, of);
            }
        };
        let done = work(&mut *self.device, &progress);
        let kernels = count.into_inner();
        if kernels > 0 {
            self.compiled.kernels += kernels;
            self.compiled.time += (self.clock)().saturating_sub(began);
        }
        done
    }

    /// Bytes that there are in all, of which at most so many more are of interest: by taking them
    /// piece by piece and giving them back.
    fn find_room(&mut self, more: usize) -> usize {
        let (mut taken, mut piece, mut left) = (Vec::new(), more, more);
        while piece > LEAST && left > 0 {
            match self.device.allocate(
                "room",
                DType::F32,
                piece.min(left).div_ceil(DType::F32.bytes()),
            ) {
                Ok(buffer) => {
                    taken.push(buffer);
                    left = left.saturating_sub(piece);
                }
                Err(_) => piece /= 2,
            }
        }
        let room = self.device.held_bytes();
        self.device.free(&[], &taken);
        room
    }

    fn load_as(&mut self, id: usize, plan: Plan) -> Result<(), DeviceError> {
        verify(&plan, &self.limits())?;
        assert!(
            plan.groups.is_empty() || plan.layout == self.layout,
            "plan `{}` was made for another model",
            plan.name
        );
        let mut bound = Bound::default();
        let plan = Rc::new(plan);
        let program = self.bind(&plan, &mut bound).and_then(|()| {
            self.compiling(|device, progress| device.load(&plan, bound.clone(), progress))
        });
        let program = match program {
            Ok(program) => program,
            Err(error) => {
                // What was made for a plan that cannot be loaded is in nobody's way.
                self.device.free(&[], &bound.own());
                return Err(error);
            }
        };
        let pace = Pace::new(&plan);
        let loaded = Loaded {
            plan,
            program,
            bound,
            pace,
            serial: 0,
            pending: vec![],
            asked: VecDeque::new(),
            log: vec![],
        };
        self.plans.insert(id, loaded);
        Ok(())
    }

    /// Allocates what a plan works on and fills its tables.
    fn bind(&mut self, plan: &Plan, bound: &mut Bound) -> Result<(), DeviceError> {
        for &group in &plan.groups {
            bound.states.insert(group, self.state(group)?);
        }
        for (part, port) in plan.images.iter().enumerate() {
            let (buffer, ty) = self.images[part];
            assert_eq!(ty, port.ty, "plan `{}` reads other images than there are", plan.name);
            bound.images.push(buffer);
        }
        for (i, (buffer, ty)) in plan.buffers.iter().zip(elements::types(plan)).enumerate() {
            let label = format!("{}.b{i}", plan.name);
            bound.buffers.push(self.device.allocate(&label, ty, buffer.bytes / ty.bytes())?);
        }
        for step in &plan.ops {
            bound.tables.push(Vec::new());
            for table in &step.tables {
                let label = format!("{} (table)", step.label);
                let buffer = self.device.allocate(&label, DType::U32, table.len())?;
                bound
                    .tables
                    .last_mut()
                    .unwrap_or_else(|| unreachable!("pushed above"))
                    .push(buffer);
                self.device.write(buffer, 0, Data::U32(table))?;
            }
        }
        if !plan.constants.is_empty() {
            let label = format!("{} (constants)", plan.name);
            let buffer = self.device.allocate(&label, DType::U32, plan.constants.len())?;
            bound.constants = Some(buffer);
            self.device.write(buffer, 0, Data::U32(&plan.constants))?;
        }
        Ok(())
    }
}

//! Devices carry out plans and decide nothing: `reference` (f64, the oracle), `cpu` (f32, threads), `wgpu` (WGSL).

mod host;
mod select;
pub mod wgpu;

pub use host::{Host, Precision};
pub use select::{Choice, auto, open};

use crate::ir::{Group, Layout};
use crate::ops::{StepUniforms, Target};
use crate::plan::{Limits, Plan, PlanError};

/// Contents of an input.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Integers.
    U32(&'a [u32]),
}

impl Data<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::U32(x) => x.len(),
        }
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What can go wrong on a device.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such device.
    #[error("{0}")]
    NotFound(String),
    /// A limit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The driver failed.
    #[error("device `{device}`: {message}")]
    Driver {
        /// Device.
        device: String,
        /// What it said.
        message: String,
    },
}

/// A plan loaded on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId(pub usize);

/// One model on one device: flat persistent buffers and the plans that work on them.
pub trait Session {
    /// What it runs on, for people.
    fn device(&self) -> String;
    /// What plans for it should be lowered to.
    fn target(&self) -> Target;
    /// Limits that plans must respect.
    fn limits(&self) -> Limits;
    /// Allocates the flat buffers of a model, zeroed.
    ///
    /// # Errors
    /// If the device has no room.
    fn allocate(&mut self, layout: &Layout) -> Result<(), DeviceError>;
    /// Verifies and loads a plan: after this a step allocates nothing.
    ///
    /// # Errors
    /// If a limit is exceeded or the driver refuses a kernel.
    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError>;
    /// The loaded plan.
    fn plan(&self, id: PlanId) -> &Plan;
    /// Writes part of a flat buffer.
    ///
    /// # Errors
    /// If the driver fails.
    fn write_state(&mut self, group: Group, offset: usize, data: &[f32]) -> Result<(), DeviceError>;
    /// Reads a flat buffer.
    ///
    /// # Errors
    /// If the driver fails.
    fn read_state(&mut self, group: Group) -> Result<Vec<f32>, DeviceError>;
    /// Sets an input of a plan by position.
    ///
    /// # Errors
    /// If the driver fails.
    fn upload(&mut self, id: PlanId, input: usize, data: Data<'_>) -> Result<(), DeviceError>;
    /// Queues one step.
    ///
    /// # Errors
    /// If the driver fails.
    fn run(&mut self, id: PlanId, step: &StepUniforms) -> Result<(), DeviceError>;
    /// Waits for the steps queued so far and reads an output by position.
    ///
    /// # Errors
    /// If the driver fails.
    fn read(&mut self, id: PlanId, output: usize) -> Result<Vec<f32>, DeviceError>;
    /// Scalar outputs of the steps since the last call, oldest first: `(step, one value per scalar output)`. Steps are read back
    /// together, so that the device does not wait for the host.
    ///
    /// # Errors
    /// If the driver fails.
    fn drain(&mut self, id: PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError>;
    /// Bytes of device memory that this session holds now.
    fn allocated_bytes(&self) -> usize;
    /// Runs a step op by op and reports the first output that holds a NaN or an infinity.
    ///
    /// # Errors
    /// If the driver fails.
    fn first_non_finite(&mut self, id: PlanId, step: &StepUniforms) -> Result<Option<String>, DeviceError>;
    /// Seconds of one op of a plan, as the mean of `times` runs (benchmarks).
    ///
    /// # Errors
    /// If the driver fails.
    fn time_step(&mut self, id: PlanId, step: usize, times: usize) -> Result<f64, DeviceError>;
    /// Host seconds spent on queueing steps so far, waiting for the device excluded; 0 where host and device are one.
    fn host_seconds(&self) -> f64;
    /// Fills the transient buffers with NaN, so that an element a kernel does not write shows (tests).
    ///
    /// # Errors
    /// If the driver fails.
    fn poison(&mut self, id: PlanId) -> Result<(), DeviceError>;
}

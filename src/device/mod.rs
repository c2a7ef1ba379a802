//! Devices carry out plans and decide nothing.
//!
//! A [`Device`] is narrow: capabilities, memory, a plan's ops, asynchronous reads. What every
//! device would do alike stands once, in the [`Session`] above it: limits and layout, the ring of
//! scalars, cutting long steps into short submissions ([`pace`]), the hunt for the first non-finite
//! tensor, timing, poison. There are `reference` (f64, the oracle) and `cpu` (f32, threads), both
//! [`Host`], `wgpu` (WGSL) and, with the feature, `cuda`.

#[cfg(feature = "cuda")]
pub mod cuda;
mod host;
pub mod pace;
#[cfg(feature = "native")]
mod select;
mod session;
pub mod wait;
pub mod wgpu;

pub use self::wgpu::Pick;
pub use host::{Host, Precision};
#[cfg(feature = "native")]
pub use select::{DeviceSpec, auto, open};
pub use session::{Clock, Compiled, OnCompile, PlanId, Session, StateRead, Stopwatch, Timing};

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::ir::Group;
use crate::ops::{Dispatch, StepUniforms, Target};
use crate::plan::{Limits, Place, Plan, PlanError};
use crate::tensor::{DType, Half};

/// Elements on their way to a device.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Floats of 32 bits.
    F32(&'a [f32]),
    /// Floats with full precision: only `reference` keeps it.
    F64(&'a [f64]),
    /// Integers of 32 bits.
    U32(&'a [u32]),
}

impl Data<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
            Self::U32(x) => x.len(),
        }
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Floats on their way back, as the device stores them.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Every device but `reference`.
    F32(Vec<f32>),
    /// The device `reference`.
    F64(Vec<f64>),
}

impl Values {
    /// In single precision.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(x) => x,
            Self::F64(x) => x.into_iter().map(|x| x as f32).collect(),
        }
    }
    /// In double precision.
    pub fn into_f64(self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.into_iter().map(f64::from).collect(),
            Self::F64(x) => x,
        }
    }
}

/// What can go wrong on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such device.
    #[error("{message}")]
    NotFound {
        /// What was looked for and what there is.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A plan that the device's limits do not allow.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is no room for a buffer.
    #[error(
        "`{buffer}` needs {bytes} bytes, but `{device}` has no memory left beside the {held} bytes \
         held there"
    )]
    OutOfMemory {
        /// The device without room.
        device: String,
        /// What was to be allocated.
        buffer: String,
        /// The bytes that it needs.
        bytes: usize,
        /// What the session holds there.
        held: usize,
    },
    /// The device is gone: reset by the system, unplugged, or it did not do what it reported as
    /// done. What it held is lost; another session on a device opened anew can go on from a
    /// checkpoint.
    #[error("device `{device}` was lost: {message}")]
    Lost {
        /// The device that was lost.
        device: String,
        /// What is known of it.
        message: String,
    },
    /// The driver failed.
    #[error("device `{device}`: {message}")]
    Driver {
        /// The device whose driver it is.
        device: String,
        /// What it said.
        message: String,
    },
}

impl DeviceError {
    /// Of a `--device` that means nothing.
    pub(crate) fn unknown(text: &str) -> Self {
        const DEVICES: &str = "auto, cpu, reference, wgpu, wgpu:INDEX, wgpu:NAME, wgpu:BACKEND:NAME, \
            cuda and cuda:INDEX are devices; `aavae devices` lists adapters";
        Self::NotFound { message: format!("unknown device `{text}`"), hint: Some(DEVICES.into()) }
    }
    /// What a user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NotFound { hint, .. } => hint.as_deref(),
            Self::Plan(_) => {
                Some("a smaller --batch-size or --width fits; `aavae devices` lists other adapters")
            }
            Self::Lost { .. } => Some(
                "a driver that resets often may be out of date; `aavae check` shows whether the \
                 device works",
            ),
            Self::OutOfMemory { .. } => {
                Some("use a smaller --batch-size or --width, or close what else uses the device")
            }
            _ => None,
        }
    }
}

/// A buffer on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub usize);

/// A plan on a device, bound to buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub usize);

/// Something that a device will have done: asked for by [`Device::run`] or [`Device::read`], in
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What became of a ticket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// What was read.
    pub values: Option<Values>,
    /// Seconds that the device itself measured, for a run that asked for them.
    pub seconds: Option<f64>,
}

/// What a device can do.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// Name, for people and checkpoints, e.g. `wgpu:llvmpipe (LLVM 15.0.6, 256 bits) (vulkan, …)`.
    pub name: String,
    /// What plans for it are lowered to.
    pub target: Target,
    /// It carries out a plan's dispatches. A host runs the ops as they are, so variants mean
    /// nothing to it.
    pub dispatches: bool,
    /// The 16-bit floats that it stores.
    pub halves: &'static [Half],
    /// Limits that plans must respect.
    pub limits: Limits,
    /// Bytes that buffers may take in all, where that is known before they are allocated.
    pub memory: Option<usize>,
    /// Bytes that the device itself holds beside the buffers it was asked for and what a read
    /// takes.
    pub overhead: usize,
    /// Bytes that reads take at most: larger ones are cut, down to a plan's ring. `None` where
    /// reading takes no memory.
    pub read_bytes: Option<usize>,
    /// Submissions should be short: an operating system may reset the device over a long one.
    pub watched: bool,
    /// [`Device::run`] can measure.
    pub timestamps: bool,
}

impl Capabilities {
    /// Whether it stores a 16-bit float.
    pub fn stores(&self, half: Half) -> bool {
        self.halves.contains(&half)
    }
}

/// The buffers that a program works on.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// By the plan's buffers.
    pub buffers: Vec<BufferId>,
    /// By op and table.
    pub tables: Vec<Vec<BufferId>>,
    /// The words of the kernels' uniforms, if there are any.
    pub constants: Option<BufferId>,
    /// The flat buffers that the plan touches.
    pub states: BTreeMap<Group, BufferId>,
    /// The images that stay, by part, where the plan reads them.
    pub images: Vec<BufferId>,
}

impl Bound {
    /// The buffers that are the program's own.
    pub fn own(&self) -> Vec<BufferId> {
        let tables = self.tables.iter().flatten();
        self.buffers.iter().chain(tables).chain(&self.constants).copied().collect()
    }
    /// Buffer and first element of a place.
    pub fn place(&self, place: Place) -> (BufferId, usize) {
        match place {
            Place::Buffer(b) => (self.buffers[b], 0),
            Place::State(range) => (self.states[&range.group], range.offset),
            Place::Images(part) => (self.images[part], 0),
        }
    }
}

/// Called while kernels are compiled, with how many are ready and how many there are.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What a device must be able to do. It is asked in order and carries out in order; nothing here
/// waits for it except [`Device::poll`], if told to.
pub trait Device {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;
    /// A buffer of `elements` zeros.
    ///
    /// # Errors
    /// If there is no room.
    fn allocate(
        &mut self,
        label: &str,
        ty: DType,
        elements: usize,
    ) -> Result<BufferId, DeviceError>;
    /// Writes elements of a buffer.
    ///
    /// # Errors
    /// If the driver fails.
    fn write(&mut self, buffer: BufferId, offset: usize, data: Data<'_>)
    -> Result<(), DeviceError>;
    /// Compiles what verified plans will need, on every core where the device can. It takes no
    /// memory for them, and [`Device::load`] works without it.
    ///
    /// # Errors
    /// If the driver refuses a kernel.
    fn prepare(&mut self, plans: &[&Plan], progress: Progress<'_>) -> Result<(), DeviceError> {
        let missing = self.missing(plans);
        self.compile(&missing, progress)
    }
    /// Dispatches of plans whose kernels are not compiled yet, one for each kernel, where a device
    /// tells.
    fn missing(&self, _plans: &[&Plan]) -> Vec<Dispatch> {
        vec![]
    }
    /// Compiles the kernels of such dispatches.
    ///
    /// # Errors
    /// If the driver refuses one.
    fn compile(&mut self, _of: &[Dispatch], _progress: Progress<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Compiles a verified plan.
    ///
    /// # Errors
    /// If the driver refuses a kernel.
    fn load(
        &mut self,
        plan: &Rc<Plan>,
        bound: Bound,
        progress: Progress<'_>,
    ) -> Result<ProgramId, DeviceError>;
    /// Queues some of the plan's ops; `timed` asks for the seconds they take, where the device
    /// can tell.
    ///
    /// # Errors
    /// If the driver fails.
    fn run(
        &mut self,
        program: ProgramId,
        steps: Range<usize>,
        uniforms: &StepUniforms,
        timed: bool,
    ) -> Result<Ticket, DeviceError>;
    /// Asks for floats of a buffer, as they are once everything queued so far is done; of integers
    /// for their bits.
    ///
    /// # Errors
    /// If the driver fails.
    fn read(
        &mut self,
        buffer: BufferId,
        offset: usize,
        elements: usize,
    ) -> Result<Ticket, DeviceError>;
    /// What became of a ticket; `None` if it is not done, which it is after a poll that may `wait`.
    /// A ticket that was found done is spent.
    ///
    /// # Errors
    /// If the driver fails or the device is lost.
    fn poll(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Done>, DeviceError>;
    /// Frees a program, then buffers that nothing uses any more. A read that was asked for before
    /// can still be polled.
    fn free(&mut self, programs: &[ProgramId], buffers: &[BufferId]);
    /// Bytes of all buffers that exist now, counted from the buffers themselves.
    fn held_bytes(&self) -> usize;
}

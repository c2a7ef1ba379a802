//! A plan: a graph as plain data (kernels, specialisation, grids, bindings, buffers). It knows no
//! GPU type and is the same for every device; a device only carries it out. Printable, diffable,
//! verified before any device sees it.

mod lower;
mod slots;
mod text;
mod verify;

pub use lower::{Options, lower};
pub use text::{Summary, summary};
pub use verify::{Limits, verify};

use crate::ir::{Group, Layout, Range};
use crate::ops::{Binding, Dispatch, Io, Library, Op, STAMP, Target, ValueId, Variant};
use crate::tensor::{Shape, TensorType};

/// Runs of a plan whose scalars stay on the device before they are read back together.
pub const RING: usize = 64;

/// Words that a uniform may begin at a multiple of on every device (256 bytes).
pub const UNIFORM_ALIGN: usize = 64;

/// Where a tensor is while a plan runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// The start of a buffer of the plan.
    Buffer(usize),
    /// Part of a flat buffer that outlives the run.
    State(Range),
    /// A part of the images that stay on the device.
    Images(usize),
}

/// A buffer of the plan, reused by values whose lives do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Size; a multiple of 16.
    pub bytes: usize,
}

/// A tensor that crosses the border of the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// What the graph calls it.
    pub name: String,
    /// Shape and type of the elements.
    pub ty: TensorType,
    /// Where it lies.
    pub place: Place,
    /// The value it is.
    pub value: ValueId,
}

/// Where the scalars of the latest runs of a plan are: `[rows, 2 + scalars]`, written by the plan's
/// last op ([`crate::ops::Record`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Ring {
    /// The buffer; no value shares it.
    pub buffer: usize,
    /// Type: a row for each of [`RING`] runs.
    pub ty: TensorType,
    /// The value it holds before the run.
    pub value: ValueId,
    /// Names of the scalar outputs, in the order of a row behind its stamp.
    pub scalars: Vec<String>,
}

impl Ring {
    /// Words of a row.
    pub fn width(&self) -> usize {
        STAMP + self.scalars.len()
    }
    fn shape(scalars: usize) -> Shape {
        Shape::rows(RING, STAMP + scalars)
    }
}

/// An op of a plan, with the places of its tensors and its dispatches.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedOp {
    /// Layer and op, e.g. `encoder.layer1.0.conv1:conv2d`.
    pub label: String,
    /// The op; host devices run it as is.
    pub op: Op,
    /// How it is lowered.
    pub variant: Variant,
    /// Types around it.
    pub io: OpIo,
    /// Inputs: value and place.
    pub inputs: Vec<(ValueId, Place)>,
    /// Outputs: value and place.
    pub outputs: Vec<(ValueId, Place)>,
    /// Buffers that only this op uses, while it runs.
    pub scratch: Vec<usize>,
    /// Constant words, one buffer each.
    pub tables: Vec<Vec<u32>>,
    /// WGSL dispatches, in order.
    pub dispatches: Vec<Dispatch>,
    /// Where the uniform of each is in [`Plan::constants`]; empty for a kernel that has none.
    pub constants: Vec<std::ops::Range<usize>>,
    /// Floating-point operations (convolutions and linear layers, 2 per multiply-add).
    pub flops: u64,
}

/// Types around an op, comparable.
#[derive(Clone, Debug, PartialEq)]
pub struct OpIo {
    /// Types of the inputs.
    pub inputs: Vec<TensorType>,
    /// Types of the outputs.
    pub outputs: Vec<TensorType>,
}

impl From<&OpIo> for Io {
    fn from(io: &OpIo) -> Self {
        Self { inputs: io.inputs.clone(), outputs: io.outputs.clone() }
    }
}

impl PlannedOp {
    /// Bytes of an input that are read: of images that stay on the device no more than there are
    /// pixels in the output.
    fn input_bytes(&self, i: usize) -> usize {
        let bytes = self.io.inputs[i].bytes();
        let stays = matches!(self.inputs[i].1, Place::Images(_));
        if stays { bytes.min(self.io.outputs[0].bytes()) } else { bytes }
    }
    /// Bytes read and written, each tensor once.
    pub fn bytes(&self) -> usize {
        let inputs: usize = (0..self.io.inputs.len()).map(|i| self.input_bytes(i)).sum();
        inputs + self.io.outputs.iter().map(TensorType::bytes).sum::<usize>()
    }
    /// Which library of the vendor's is called in place of the first dispatch, and for which of its
    /// proposals, if one is.
    pub fn library(&self) -> Option<(Library, u32)> {
        match self.variant {
            Variant::Library { of, rank } => Some((of, rank)),
            _ => None,
        }
    }
    /// The dispatches that are kernels on a device with such a library: all others.
    pub fn kernels(&self) -> &[Dispatch] {
        &self.dispatches[usize::from(self.library().is_some())..]
    }
    /// Bytes that its dispatches move: each input and output once for each dispatch that binds it.
    pub fn moved_bytes(&self) -> usize {
        let bytes = |binding: &Binding| match *binding {
            Binding::Input(i) => self.input_bytes(i),
            Binding::Output(i) => self.io.outputs[i].bytes(),
            _ => 0,
        };
        self.dispatches.iter().flat_map(|d| &d.bindings).map(bytes).sum()
    }
}

/// Ops in order, ready for any device.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What it is for, e.g. `train`.
    pub name: String,
    /// What the lowering assumed.
    pub target: Target,
    /// Where the persistent tensors are.
    pub layout: Layout,
    /// Which flat buffers the ops touch.
    pub groups: Vec<Group>,
    /// Buffers that hold values within a step.
    pub buffers: Vec<Buffer>,
    /// Bytes if no two values shared a buffer.
    pub unaliased_bytes: usize,
    /// Uploaded before the run.
    pub inputs: Vec<Port>,
    /// Parts of the images that stay on the device, where it reads any.
    pub images: Vec<Port>,
    /// Read back after it.
    pub outputs: Vec<Port>,
    /// Scalar outputs of the latest runs.
    pub ring: Ring,
    /// In execution order.
    pub ops: Vec<PlannedOp>,
    /// Words of the kernels' uniforms, each from a multiple of [`UNIFORM_ALIGN`] on.
    pub constants: Vec<u32>,
    /// Names of values, for messages.
    pub names: Vec<String>,
}

impl Plan {
    /// Bytes of the transient buffers, the constant tables and the uniforms.
    pub fn buffer_bytes(&self) -> usize {
        let constants = size_of_val(&self.constants[..]);
        self.buffers.iter().map(|b| b.bytes).sum::<usize>() + self.table_bytes() + constants
    }
    /// Bytes of the constant tables.
    fn table_bytes(&self) -> usize {
        self.ops.iter().flat_map(|s| &s.tables).map(|words| size_of_val(&words[..])).sum()
    }
    /// Bytes of the flat buffers this plan touches.
    pub fn state_bytes(&self) -> usize {
        self.groups.iter().map(|&g| self.layout.bytes(g)).sum()
    }
    /// Bytes of the images that stay on the device for it.
    pub fn image_bytes(&self) -> usize {
        self.images.iter().map(|port| port.ty.bytes().next_multiple_of(16)).sum()
    }
    /// Device memory of a run: transient and persistent buffers.
    pub fn peak_bytes(&self) -> usize {
        self.buffer_bytes() + self.state_bytes() + self.image_bytes()
    }
    /// Adds the words of a kernel's uniform; returns where they are.
    pub(crate) fn add_uniform(&mut self, words: &[u32]) -> std::ops::Range<usize> {
        let at = self.constants.len();
        self.constants.extend(words);
        self.constants.resize(self.constants.len().next_multiple_of(UNIFORM_ALIGN), 0);
        if words.is_empty() { 0..0 } else { at..at + words.len() }
    }
    /// FLOPs of a run.
    pub fn flops(&self) -> u64 {
        self.ops.iter().map(|s| s.flops).sum()
    }
    /// Finds an output.
    pub fn output(&self, name: &str) -> Option<&Port> {
        self.outputs.iter().find(|p| p.name == name)
    }
    /// Finds an input.
    pub fn input(&self, name: &str) -> Option<(usize, &Port)> {
        self.inputs.iter().enumerate().find(|(_, p)| p.name == name)
    }
}

/// Device memory of several plans of one model: each flat buffer counts once, and so do the images
/// that stay.
pub fn held_bytes(plans: &[Plan]) -> usize {
    let state = |group: Group| {
        plans.iter().find(|p| p.groups.contains(&group)).map_or(0, |p| p.layout.bytes(group))
    };
    plans.iter().map(Plan::buffer_bytes).sum::<usize>()
        + Group::ALL.map(state).iter().sum::<usize>()
        + plans.iter().map(Plan::image_bytes).max().unwrap_or(0)
}

/// A plan that a device cannot carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A tensor exceeds a binding limit.
    #[error(
        "`{tensor}` needs {bytes} bytes, but the device binds at most {limit} bytes per buffer"
    )]
    TooLarge {
        /// Label of the tensor that is too large.
        tensor: String,
        /// Its size in bytes.
        bytes: usize,
        /// The most that a binding holds.
        limit: usize,
    },
    /// A buffer exceeds the limit.
    #[error(
        "`{buffer}` needs {bytes} bytes, but the device takes at most {limit} bytes per buffer"
    )]
    Buffer {
        /// Label of the buffer that is too large.
        buffer: String,
        /// Its size in bytes.
        bytes: usize,
        /// The most that a buffer holds.
        limit: usize,
    },
    /// A grid exceeds the limit.
    #[error(
        "`{step}` needs {groups} workgroups along an axis, but the device takes at most {limit}"
    )]
    Grid {
        /// Label of the op.
        step: String,
        /// Workgroups that it asks for in one dimension.
        groups: u32,
        /// The most that there are.
        limit: u32,
    },
    /// Too many bindings.
    #[error("`{step}` binds {bindings} storage buffers, but the device takes at most {limit}")]
    Bindings {
        /// Label of the op.
        step: String,
        /// Storage buffers that a dispatch of it binds.
        bindings: usize,
        /// The most that may be bound.
        limit: usize,
    },
}

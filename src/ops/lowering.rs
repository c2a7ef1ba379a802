//! What an op lowers to: WGSL dispatches with their constants, grid and bindings. Plain data, no
//! GPU type.

use crate::tensor::{DType, Half, TensorType};

/// Invocations of a one-dimensional workgroup; `const WG` of the shaders.
pub const WORKGROUP: u32 = 64;

/// What the lowering needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Workgroups along one grid axis.
    pub max_groups: u32,
    /// Bytes of one storage binding, at most [`Target::LARGEST_BINDING`].
    pub max_binding: usize,
    /// Storage buffers that one dispatch binds.
    pub storage_buffers: usize,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Lanes of a subgroup, where every pipeline has the same number.
    pub subgroup: Option<u32>,
    /// A processor that calls itself a GPU: a barrier costs it a switch of context, so kernels
    /// without any are preferred before anything is measured.
    pub software: bool,
    /// Convolutions take elementwise ops into their tails ([`super::Epilogue`]).
    pub epilogues: bool,
    /// Rows of a map for which the convolution that writes it gives a batch norm their moments
    /// (`Epilogue::moments`), or the gradient of one its sums (`Epilogue::gradient_sums`); `None`
    /// where these had better read the map.
    pub moments: Option<usize>,
    /// Compiling costs more than computing: products share pipelines ([`super::Tile::compact`])
    /// until something else is measured.
    pub compact: bool,
    /// What passes between layers is stored as this ([`crate::ir::half`]), if not as f32.
    pub half: Option<Half>,
    /// Edge of the square matrices, of any half that the device stores, with sums in f32, that a
    /// subgroup multiplies.
    pub coop: Option<u32>,
    /// Copies to workgroup memory go on while the invocation does. Products that use them take
    /// weights as they are multiplied, rounded once ([`crate::ir::half`]).
    pub copies: bool,
    /// A library of the device's vendor computes products too ([`super::Variant::Library`]).
    pub library: bool,
}

impl Target {
    /// Baseline WebGPU: the default limits of its specification (section "Limits"), which every
    /// device has at least. Whoever needs one of them reads it here.
    pub const WEBGPU: Self = Self {
        max_groups: 65_535,         // maxComputeWorkgroupsPerDimension
        max_binding: 128 << 20,     // maxStorageBufferBindingSize
        storage_buffers: 8,         // maxStorageBuffersPerShaderStage
        max_invocations: 256,       // maxComputeInvocationsPerWorkgroup
        workgroup_memory: 16 << 10, // maxComputeWorkgroupStorageSize
        subgroup: None,
        software: false,
        epilogues: true,
        moments: Some(64),
        compact: false,
        half: None,
        coop: None,
        copies: false,
        library: false,
    };

    /// Rows that a sum over rows loads before it adds up the first (`lib/ahead.wgsl`). A processor
    /// looks ahead by itself, and what it holds for longer it spills.
    pub fn rows_ahead(&self) -> u32 {
        if self.software { 1 } else { 8 }
    }

    /// Whether the device can run what a variant requires.
    pub fn can(&self, needs: &Requirements) -> bool {
        needs.subgroup.is_none_or(|lanes| self.subgroup == Some(lanes))
            && needs.coop.is_none_or(|edge| self.coop == Some(edge))
            && (!needs.copies || self.copies)
            && (!needs.library || self.library)
            && needs.invocations <= self.max_invocations
            && needs.workgroup_memory <= self.workgroup_memory
    }
}

impl Default for Target {
    fn default() -> Self {
        Self::WEBGPU
    }
}

/// What a variant requires of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Subgroups of this many lanes.
    pub subgroup: Option<u32>,
    /// Invocations of a workgroup.
    pub invocations: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Cooperative matrices of this edge.
    pub coop: Option<u32>,
    /// Copies to workgroup memory that go on by themselves.
    pub copies: bool,
    /// A library of the vendor's.
    pub library: bool,
}

/// Value of a shader constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Const {
    /// `u32` or `i32`.
    U(u32),
    /// An `f32` of WGSL.
    F(f32),
    /// A `bool` of WGSL.
    B(bool),
}

impl From<u32> for Const {
    fn from(x: u32) -> Self {
        Self::U(x)
    }
}
impl From<usize> for Const {
    fn from(x: usize) -> Self {
        Self::U(u32::try_from(x).unwrap_or_else(|_| {
            panic!("shader constant {x} exceeds u32; run::fit refuses such tensors")
        }))
    }
}
impl From<f32> for Const {
    fn from(x: f32) -> Self {
        Self::F(x)
    }
}
impl From<bool> for Const {
    fn from(x: bool) -> Self {
        Self::B(x)
    }
}

impl std::fmt::Display for Const {
    /// The WGSL literal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::U(x) => write!(f, "{x}u"),
            Self::F(x) => write!(f, "{x:?}f"),
            Self::B(x) => write!(f, "{x}"),
        }
    }
}

/// How a binding holds what the text of a kernel takes for `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As a 16-bit float: loads widen, stores round.
    Half(Half),
    /// As f32 that is rounded to a 16-bit float by every load, because it is multiplied with such.
    Rounded(Half),
}

/// A shader file and the constants it is specialised with.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// File name in `shaders/`, without extension.
    pub file: &'static str,
    /// `const NAME` of the file and its value.
    pub consts: Vec<(&'static str, Const)>,
    /// Whether the `// uniform` consts too are part of the text; else they are data, and one text
    /// serves every shape.
    pub shaped: bool,
    /// The `@binding`s that do not hold plain `f32`. An [`super::Op`] sets them from the types
    /// of the tensors that are bound there.
    pub storage: Vec<(u32, Storage)>,
}

impl Kernel {
    /// A kernel without constants.
    pub fn new(file: &'static str) -> Self {
        Self { file, consts: Vec::new(), shaped: false, storage: Vec::new() }
    }
    /// Sets a constant.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: impl Into<Const>) -> Self {
        self.consts.push((name, value.into()));
        self
    }
    /// Sets whether all its constants are part of the text.
    #[must_use]
    pub fn shaped(mut self, shaped: bool) -> Self {
        self.shaped = shaped;
        self
    }
}

/// What stands at a binding of a dispatch, in the order of the shader's `@binding`s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Input of the op, read.
    Input(usize),
    /// Output of the op, written (an in-place input is bound as its output).
    Output(usize),
    /// Scratch buffer of the op.
    Scratch(usize),
    /// Constant words of the op, read.
    Table(usize),
    /// The per-step uniform.
    Step,
    /// Nothing: this `@binding` is guarded away.
    Skip,
}

/// One run of a kernel over a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// The kernel with its constants.
    pub kernel: Kernel,
    /// Workgroups along x, y, z.
    pub grid: [u32; 3],
    /// What is bound at 0, 1, 2, …
    pub bindings: Vec<Binding>,
}

/// All dispatches of an op.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowering {
    /// The dispatches, in order.
    pub dispatches: Vec<Dispatch>,
    /// Sizes of the scratch buffers, in bytes.
    pub scratch: Vec<usize>,
    /// Constant words that kernels read: what does not fit into constants of the text.
    pub tables: Vec<Vec<u32>>,
}

impl Lowering {
    /// One dispatch, nothing beside it.
    pub fn one(kernel: Kernel, grid: [u32; 3], bindings: &[Binding]) -> Self {
        Self {
            dispatches: vec![Dispatch { kernel, grid, bindings: bindings.to_vec() }],
            ..Self::default()
        }
    }
    /// Adds a scratch buffer of so many elements and returns its binding.
    pub fn scratch(&mut self, dtype: DType, elements: usize) -> Binding {
        self.scratch.push(elements * dtype.bytes());
        Binding::Scratch(self.scratch.len() - 1)
    }
    /// Adds a table of whole `vec4<u32>`s, padded with zeros, and returns its binding.
    pub fn table(&mut self, mut words: Vec<u32>) -> Binding {
        words.resize(words.len().next_multiple_of(4), 0);
        self.tables.push(words);
        Binding::Table(self.tables.len() - 1)
    }
    /// Tells the kernels which of their bindings hold 16-bit floats, or f32 that counts as such: an
    /// op's inputs `rounded`, to the type of its first.
    #[must_use]
    pub(super) fn stored(mut self, io: &Io, rounded: &[usize]) -> Self {
        let half = |ty: &TensorType| ty.dtype.half().map(Storage::Half);
        let first = io.inputs.first().and_then(|x| x.dtype.half());
        for dispatch in &mut self.dispatches {
            let storage = dispatch.bindings.iter().map(|binding| match *binding {
                Binding::Input(i) if rounded.contains(&i) => first.map(Storage::Rounded),
                Binding::Input(i) => half(&io.inputs[i]),
                Binding::Output(i) => half(&io.outputs[i]),
                _ => None,
            });
            let storage = (0..).zip(storage).filter_map(|(at, s)| Some((at, s?)));
            dispatch.kernel.storage = storage.collect();
        }
        self
    }
    /// Adds a dispatch.
    pub fn push(&mut self, kernel: Kernel, grid: [u32; 3], bindings: &[Binding]) {
        self.dispatches.push(Dispatch { kernel, grid, bindings: bindings.to_vec() });
    }
}

/// Types around an op at lowering.
#[derive(Clone, Debug, PartialEq)]
pub struct Io {
    /// Types of the inputs.
    pub inputs: Vec<TensorType>,
    /// Types of the outputs.
    pub outputs: Vec<TensorType>,
}

impl Target {
    /// Bytes that any device binds at most: kernels index with 32 bits, and scratch may be a few
    /// times as long as what it is for.
    pub const LARGEST_BINDING: usize = 1 << 31;

    /// Grid of `items` invocations in workgroups of [`WORKGROUP`], folded to two axes
    /// (`lib/grid.wgsl` `global_index` undoes the folding).
    pub fn grid_1d(&self, items: usize) -> [u32; 3] {
        self.groups_1d(items.div_ceil(WORKGROUP as usize))
    }
    /// Grid of `groups` workgroups, folded to two axes.
    pub fn groups_1d(&self, groups: usize) -> [u32; 3] {
        let groups = u32::try_from(groups).unwrap_or_else(|_| panic!("{groups} workgroups"));
        let y = groups.div_ceil(self.max_groups).max(1);
        [groups.div_ceil(y), y, 1]
    }
}

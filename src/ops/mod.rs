//! Operations: one file each, holding the mathematics, the shape rule, the naive reference, the
//! gradient, the lowering to WGSL dispatches and the test cases. [`OpDef`] is what a file provides,
//! [`ops!`](self) is the one list of them.
//!
//! Backward kernels are ops too, so they have a reference, cases and trials of their own.

use std::ops::Range;

use crate::tensor::{DType, Half, Shape, TensorType};

mod lowering;
mod native;
mod run;
mod segments;
mod variant;

pub use augment_params::{Recipe, sample_augment_params, slot};
pub use conv2d::Epilogue;
pub use lowering::{
    Binding, Const, Dispatch, Io, Kernel, Lowering, Requirements, Storage, Target, WORKGROUP,
};
pub use record::STAMP;
pub use run::{Call, Input, Output, Real, StepUniforms};
pub use segments::Segment;
pub use variant::{Choices, CoopTile, DEFAULTS, Library, Tile, Variant, key};

/// A value of the graph under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// An input that an op cannot take, with the numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {message}")]
pub struct ShapeError {
    /// Op that refused.
    pub op: &'static str,
    /// What it got and what it needs.
    pub message: String,
}

impl ShapeError {
    /// A refusal by `op` of the shapes it was given.
    pub fn new(op: &'static str, message: impl Into<String>) -> Self {
        Self { op, message: message.into() }
    }
}

/// Checks the number of inputs of an op.
pub(crate) fn arity(
    op: &'static str,
    inputs: &[TensorType],
    want: usize,
) -> Result<(), ShapeError> {
    if inputs.len() == want {
        Ok(())
    } else {
        Err(ShapeError::new(op, format!("takes {want} inputs, got {}", inputs.len())))
    }
}

/// Checks that two types are equal.
pub(crate) fn same(
    op: &'static str,
    what: &str,
    a: TensorType,
    b: TensorType,
) -> Result<(), ShapeError> {
    if a == b { Ok(()) } else { Err(ShapeError::new(op, format!("{what} is {b}, expected {a}"))) }
}

/// Checks that an input is f32, not empty, and has channels that kernels can load as `vec4`s.
pub(crate) fn activation(op: &'static str, what: &str, ty: TensorType) -> Result<(), ShapeError> {
    same(op, what, TensorType::f32(ty.shape), ty)?;
    if ty.shape.is_empty() || !ty.shape.c.is_multiple_of(4) {
        return Err(ShapeError::new(
            op,
            format!("{what} is {ty}, expected a multiple of 4 channels and no empty extent"),
        ));
    }
    Ok(())
}

/// Where gradients are written down: the graph, seen by an op.
pub trait Emit {
    /// Adds a node and returns its outputs.
    fn emit(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId>;
    /// Type of a value.
    fn ty(&self, value: ValueId) -> TensorType;
    /// Adds a node with one output.
    fn emit1(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.emit(op, inputs)[0]
    }
}

/// A node whose gradient is wanted: its inputs, outputs, and the gradient of each output (None: not
/// used by the loss).
pub struct Forward<'a> {
    /// The values that it takes.
    pub x: &'a [ValueId],
    /// The values that it makes.
    pub y: &'a [ValueId],
    /// Gradient of the loss in each output.
    pub dy: &'a [Option<ValueId>],
    /// Which inputs need a gradient.
    pub wants: &'a [bool],
}

/// What the file of an op provides.
pub trait OpDef: Clone + PartialEq + std::fmt::Debug {
    /// Name in plans, trials, bench rows and the README's table.
    const NAME: &'static str;
    /// Types of the outputs, or why the inputs are refused.
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError>;
    /// Pairs (input, output) that are one buffer, updated in place.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }
    /// The op on these elements of its flat operands, for one that works on whole flat buffers,
    /// which a device may not bind at once (`ir::cut`). The elements are those of whole tensors.
    fn part(&self, _elements: Range<usize>) -> Option<Op> {
        None
    }
    /// Which inputs and which outputs may be 16-bit floats in memory: what passes between layers
    /// ([`crate::ir::half`]).
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![]]
    }
    /// Inputs in f32 that are rounded to the type of the first input when they are read, a 16-bit
    /// float, because they are multiplied with it. Devices see to it, not the op.
    fn rounded(&self, _io: &Io) -> Vec<usize> {
        vec![]
    }
    /// Naive loops with f64 accumulation, independent of every kernel's decomposition: the oracle.
    /// Writes (=) every element.
    fn reference<T: Real>(&self, call: &mut Call<'_, T>);
    /// Fast f32 version of the `cpu` device, where a profile asked for one.
    fn native(&self, call: &mut Call<'_, f32>) {
        self.reference(call);
    }
    /// Emits the gradient of each input; `None` where there is none.
    fn gradient(&self, _g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![None; node.x.len()]
    }
    /// Inputs in which the op is differentiable (checked against central differences).
    fn differentiable(&self) -> &'static [usize] {
        &[]
    }
    /// The ways to lower it on a device, the portable one first.
    fn variants(&self, _io: &Io, _target: &Target) -> Vec<Variant> {
        vec![Variant::Only]
    }
    /// The one of [`OpDef::variants`] that is taken where nothing has been measured.
    fn preferred(&self, io: &Io, target: &Target) -> Variant {
        self.variants(io, target)[0]
    }
    /// WGSL dispatches, in the only way or the portable one.
    fn lower(&self, io: &Io, target: &Target) -> Lowering;
    /// WGSL dispatches of one of [`OpDef::variants`].
    fn lower_as(&self, io: &Io, target: &Target, variant: Variant) -> Lowering {
        assert_eq!(variant, Variant::Only, "{} is lowered in one way only", Self::NAME);
        self.lower(io, target)
    }
    /// Multiply-adds counted as 2, convolutions and linear layers only (as the paper's cost tables
    /// do).
    fn flops(&self, _io: &Io) -> u64 {
        0
    }
    /// Inputs of trials: shapes that hurt.
    fn cases() -> Vec<Case>;
}

/// How a trial fills an input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Standard normal numbers.
    Normal,
    /// Uniform in a range.
    Uniform(f32, f32),
    /// One value everywhere.
    Constant(f32),
    /// Every other element alternates between these two.
    Alternate(f32, f32),
    /// Random integers below the bound (labels).
    Below(u32),
    /// Random packed RGB pixels.
    Pixels,
    /// Random words of 32 bits.
    Words,
    /// Small integers, so that ties happen.
    Ties,
    /// Augmentation parameters for images of this height and width ([`sample_augment_params`]).
    AugmentParams(usize, usize),
}

/// One trial of an op.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short description of the shape.
    pub name: String,
    /// The op with its constants.
    pub op: Op,
    /// Inputs: type and contents.
    pub inputs: Vec<(TensorType, Fill)>,
    /// Factor on the comparator's tolerance; above 1 only with a reason in the op's file.
    pub slack: f64,
    /// Checked against central differences as well (smooth inputs, small shapes).
    pub gradient: bool,
    /// What may be a 16-bit float ([`OpDef::halves`]) is this one.
    pub half: Option<Half>,
}

impl Case {
    /// A trial with f32 inputs that is also a gradient check where the op is differentiable and the
    /// shape is small.
    pub fn new(name: impl Into<String>, op: impl Into<Op>, inputs: &[(Shape, Fill)]) -> Self {
        let inputs: Vec<_> = inputs
            .iter()
            .map(|&(shape, fill)| {
                let dtype = if matches!(fill, Fill::Below(_) | Fill::Pixels | Fill::Words) {
                    DType::U32
                } else {
                    DType::F32
                };
                (TensorType { shape, dtype }, fill)
            })
            .collect();
        let gradient = inputs.iter().map(|(t, _)| t.shape.len()).sum::<usize>() <= 2000
            && inputs
                .iter()
                .all(|(_, f)| !matches!(f, Fill::Constant(_) | Fill::Alternate(..) | Fill::Ties));
        Self { name: name.into(), op: op.into(), inputs, slack: 1.0, gradient, half: None }
    }
    /// Widens the tolerance, for a reason written where it is called.
    #[must_use]
    pub fn slack(mut self, factor: f64) -> Self {
        self.slack = factor;
        self
    }
    /// The same trial with a 16-bit float wherever the op may have one.
    #[must_use]
    pub fn halved(&self, half: Half) -> Option<Self> {
        let any = self.op.halves().iter().any(|operands| !operands.is_empty());
        let case = || Self { half: Some(half), gradient: false, ..self.clone() };
        any.then(|| Self { name: format!("{}, {}", self.name, half.name()), ..case() })
    }
    /// Leaves out the central differences (kinks or extreme values).
    #[must_use]
    pub fn forward_only(mut self) -> Self {
        self.gradient = false;
        self
    }
}

/// Expands the list of ops to the enum and its folds.
macro_rules! ops {
    ($($module:ident :: { $($variant:ident),+ }),+ $(,)?) => {
        $(mod $module; pub use $module::{$($variant),+};)+

        /// An op of any kind.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is the documented struct of the same name")]
        pub enum Op { $($($variant($variant)),+),+ }

        $($(impl From<$variant> for Op { fn from(op: $variant) -> Self { Self::$variant(op) } })+)+

        /// Name and number of cases of every op.
        pub fn table() -> Vec<(&'static str, usize)> {
            vec![$($(($variant::NAME, $variant::cases().len())),+),+]
        }
        /// Every trial of every op.
        pub fn all_cases() -> Vec<Case> {
            let cases = [$($($variant::cases()),+),+].concat();
            let all = |case: Case| { let halves: Vec<_> = Half::ALL.iter().filter_map(|half| case.halved(*half)).collect(); [case].into_iter().chain(halves) };
            cases.into_iter().flat_map(all).collect()
        }

        impl Op {
            /// See [`OpDef::NAME`].
            pub fn name(&self) -> &'static str { match self { $($(Self::$variant(_) => $variant::NAME),+),+ } }
            /// See [`OpDef::outputs`].
            pub fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> { match self { $($(Self::$variant(op) => op.outputs(inputs)),+),+ } }
            /// See [`OpDef::in_place`].
            pub fn in_place(&self) -> &'static [(usize, usize)] { match self { $($(Self::$variant(op) => op.in_place()),+),+ } }
            /// See [`OpDef::part`].
            pub fn part(&self, elements: Range<usize>) -> Option<Op> { match self { $($(Self::$variant(op) => op.part(elements)),+),+ } }
            /// See [`OpDef::halves`].
            pub fn halves(&self) -> [Vec<usize>; 2] { match self { $($(Self::$variant(op) => op.halves()),+),+ } }
            /// See [`OpDef::rounded`].
            pub fn rounded(&self, io: &Io) -> Vec<usize> { match self { $($(Self::$variant(op) => op.rounded(io)),+),+ } }
            /// See [`OpDef::reference`].
            pub fn reference<T: Real>(&self, call: &mut Call<'_, T>) { match self { $($(Self::$variant(op) => op.reference(call)),+),+ } }
            /// See [`OpDef::native`].
            pub fn native(&self, call: &mut Call<'_, f32>) { match self { $($(Self::$variant(op) => op.native(call)),+),+ } }
            /// See [`OpDef::gradient`].
            pub fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> { match self { $($(Self::$variant(op) => op.gradient(g, node)),+),+ } }
            /// See [`OpDef::differentiable`].
            pub fn differentiable(&self) -> &'static [usize] { match self { $($(Self::$variant(op) => op.differentiable()),+),+ } }
            /// See [`OpDef::lower`].
            pub fn lower(&self, io: &Io, target: &Target) -> Lowering { (match self { $($(Self::$variant(op) => op.lower(io, target)),+),+ }).stored(io, &self.rounded(io)) }
            /// See [`OpDef::variants`].
            pub fn variants(&self, io: &Io, target: &Target) -> Vec<Variant> { match self { $($(Self::$variant(op) => op.variants(io, target)),+),+ } }
            /// See [`OpDef::preferred`].
            pub fn preferred(&self, io: &Io, target: &Target) -> Variant { match self { $($(Self::$variant(op) => op.preferred(io, target)),+),+ } }
            /// See [`OpDef::lower_as`].
            pub fn lower_as(&self, io: &Io, target: &Target, variant: Variant) -> Lowering { (match self { $($(Self::$variant(op) => op.lower_as(io, target, variant)),+),+ }).stored(io, &self.rounded(io)) }
            /// See [`OpDef::flops`].
            pub fn flops(&self, io: &Io) -> u64 { match self { $($(Self::$variant(op) => op.flops(io)),+),+ } }
        }
    };
}

ops! {
    accumulate::{ Accumulate },
    all_finite::{ AllFinite },
    augment::{ CropResize, ColorJitter },
    augment_params::{ AugmentParams },
    batch_norm::{ BatchNorm, BatchNormEval, BatchNormGrad },
    blur::{ GaussianBlur },
    cast::{ Cast },
    conv2d::{ Conv2d, Conv2dInputGrad, Conv2dWeightGrad },
    cosine::{ CosineSimilarity },
    cross_entropy::{ SoftmaxCrossEntropy, SoftmaxCrossEntropyGrad },
    decode::{ Decode, Normalize },
    gather_images::{ GatherImages },
    gaussian_nll::{ GaussianNll, GaussianNllGrad },
    importance::{ GaussianLogProb, LatentLogRatio },
    kl::{ KlNormal, KlNormalGrad, KlGaussians },
    layerwise::{ Lars, Lamb },
    l2_normalize::{ L2Normalize, L2NormalizeGrad },
    loss_scale::{ LossScale },
    mse::{ Mse, MseGrad },
    nt_xent::{ NtXent, NtXentGrad },
    optimizer::{ Adam, Sgd },
    phase_weights::{ PhaseWeights, PhaseWeightsGrad },
    pointwise::{ Relu, ReluGrad, WeightedSum, Scale, Dot, ScaleBy, Constant, Reshape },
    pool::{ MaxPool2d, MaxPool2dGrad, GlobalAvgPool, GlobalAvgPoolGrad },
    probe_augment::{ ProbeAugment },
    random_normal::{ RandomNormal },
    record::{ Record },
    reparameterize::{ Reparameterize, ReparameterizeGrad },
    resize_center::{ ResizeCenter },
    sum_rows::{ SumRows },
    upsample::{ UpsampleNearest, UpsampleNearestGrad },
}

//! What an op sees when it runs on the host: typed slices of its inputs and outputs.

use crate::rng::EVALUATION_STEP;
use crate::tensor::{Half, Shape, TensorType};

/// Per-step values, the only host-to-device write of a step besides the batch. Laid out as
/// `struct Step` in `shaders/lib/step.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct StepUniforms {
    /// Low word of the seed.
    pub seed_lo: u32,
    /// High word of the seed.
    pub seed_hi: u32,
    /// Global step: counter word 0 of every draw.
    pub step: u32,
    /// Added to the position in the batch: counter word 1 of every draw. 0 in the first batch of a
    /// step, and only there.
    pub first_sample: u32,
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Adam: `1 / (1 - beta1^t)`.
    pub bias1: f32,
    /// Adam: `1 / (1 - beta2^t)`.
    pub bias2: f32,
    /// Which run of its plan this is. The session counts; whatever a caller says is replaced.
    /// [`super::Record`] writes it.
    pub serial: u32,
}

impl StepUniforms {
    /// What keys the draws of a step.
    pub fn seeded(seed: u64, step: u32) -> Self {
        let (seed_lo, seed_hi) = (seed as u32, (seed >> 32) as u32);
        Self { seed_lo, seed_hi, step, ..Self::default() }
    }

    /// What keys the draws of a batch of an evaluation: no training step has them.
    pub fn evaluation(seed: u64, batch: u64) -> Self {
        Self::seeded(seed, EVALUATION_STEP + batch as u32)
    }

    /// The seed as one word.
    pub fn seed(&self) -> u64 {
        u64::from(self.seed_hi) << 32 | u64::from(self.seed_lo)
    }
}

/// Storage type of a host device; arithmetic is f64 either way.
pub trait Real: Copy + Default + Send + Sync + 'static {
    /// Rounds to the storage type.
    fn of(value: f64) -> Self;
    /// The same number as an f64.
    fn get(self) -> f64;
    /// Rounds to a 16-bit float.
    fn rounded(self, to: Half) -> Self;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
    fn get(self) -> f64 {
        f64::from(self)
    }
    fn rounded(self, to: Half) -> Self {
        to.round(self)
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn get(self) -> f64 {
        self
    }
    fn rounded(self, to: Half) -> Self {
        to.round_wide(self)
    }
}

/// An input as an op sees it.
#[derive(Debug)]
pub enum Input<'a, T> {
    /// Floats, in the device's precision.
    F(&'a [T]),
    /// Integers of 32 bits.
    U(&'a [u32]),
    /// The output of the same buffer holds it ([`super::OpDef::in_place`]).
    InPlace,
}

impl<'a, T> Input<'a, T> {
    /// Floats of this input.
    pub fn f(&self) -> &'a [T] {
        match self {
            Self::F(x) => x,
            _ => unreachable!("input is not f32: OpDef::outputs let a wrong type pass"),
        }
    }
    /// Integers of this input.
    pub fn u(&self) -> &'a [u32] {
        match self {
            Self::U(x) => x,
            _ => unreachable!("input is not u32: OpDef::outputs let a wrong type pass"),
        }
    }
}

/// An output of floats as an op sees it.
pub type Output<'a, T> = &'a mut [T];

/// One execution of an op on the host.
#[derive(Debug)]
pub struct Call<'a, T> {
    /// The tensors that it reads.
    pub inputs: Vec<Input<'a, T>>,
    /// Outputs of floats; those updated in place hold the input's contents.
    pub outputs: Vec<Output<'a, T>>,
    /// Outputs of integers.
    pub words: Vec<&'a mut [u32]>,
    /// Types of the inputs.
    pub in_types: &'a [TensorType],
    /// Types of the outputs.
    pub out_types: &'a [TensorType],
    /// What the step draws and how far it goes.
    pub step: &'a StepUniforms,
}

impl<T> Call<'_, T> {
    /// Shape of an input.
    pub fn in_shape(&self, i: usize) -> Shape {
        self.in_types[i].shape
    }
    /// Shape of an output.
    pub fn out_shape(&self, i: usize) -> Shape {
        self.out_types[i].shape
    }
}

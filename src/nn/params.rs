//! Parameters: initial values and the map between memory (NHWC, padded) and files (PyTorch's
//! shapes).

use rayon::prelude::*;

use crate::ir::Group;
use crate::rng::{Philox, Stream, fnv1a};
use crate::tensor::Shape;

/// Initial values, drawn in the order of the file's elements: `rng` stream `Init`, counter (0,
/// FNV-1a of the name, element / 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same for every element.
    Constant(f32),
    /// Uniform in `[-bound, bound)`.
    Uniform(f32),
    /// Normal with this standard deviation.
    Normal(f32),
}

impl Init {
    /// PyTorch's default of linear and convolution layers: Kaiming uniform with `a = sqrt 5`, which
    /// is `U(+-1/sqrt(fan_in))`; biases too.
    pub fn pytorch_uniform(fan_in: usize) -> Self {
        Self::Uniform(1.0 / (fan_in as f32).sqrt())
    }
    /// Kaiming normal, fan out, gain of ReLU: the encoder's convolutions.
    pub fn kaiming_fan_out(outputs: usize, kernel: usize) -> Self {
        Self::Normal((2.0 / (outputs * kernel * kernel) as f32).sqrt())
    }
    fn values(self, name: &str, len: usize, seed: u64) -> Vec<f32> {
        let (rng, sample) = (Philox::new(seed, Stream::Init), fnv1a(name));
        let mut values = vec![0.0; len];
        values.par_chunks_mut(4).enumerate().for_each(|(i, chunk)| {
            let draws = match self {
                Self::Constant(x) => [x; 4],
                Self::Uniform(bound) => {
                    rng.uniforms(0, sample, i as u32).map(|u| (2.0 * u - 1.0) * bound)
                }
                Self::Normal(std) => rng.normals(0, sample, i as u32).map(|z| z as f32 * std),
            };
            chunk.copy_from_slice(&draws[..chunk.len()]);
        });
        values
    }
}

/// How a tensor is stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLayout {
    /// The kernels of a convolution, OIHW.
    Conv {
        /// Output channels, O.
        outputs: usize,
        /// Input channels, I.
        inputs: usize,
        /// Side of the kernel or image, H = W.
        kernel: usize,
    },
    /// The matrix of a linear layer, `[out, in]`.
    Linear {
        /// Rows of the matrix.
        outputs: usize,
        /// Columns of the matrix.
        inputs: usize,
    },
    /// `[channels * side * side, in]` whose rows are a CHW image in the file and HWC in memory.
    LinearImage {
        /// Channels of the image, C.
        channels: usize,
        /// Side of the kernel or image, H = W.
        side: usize,
        /// Columns of the matrix.
        inputs: usize,
    },
    /// A tensor of one dimension, `[len]`.
    Vector {
        /// How many elements.
        len: usize,
    },
    /// `[channels * side * side]`, CHW in the file and HWC in memory.
    VectorImage {
        /// Channels of the image, C.
        channels: usize,
        /// Side of the kernel or image, H = W.
        side: usize,
    },
}

impl FileLayout {
    /// Shape in the file.
    pub fn shape(&self) -> Vec<usize> {
        match *self {
            Self::Conv { outputs, inputs, kernel } => vec![outputs, inputs, kernel, kernel],
            Self::Linear { outputs, inputs } => vec![outputs, inputs],
            Self::LinearImage { channels, side, inputs } => vec![channels * side * side, inputs],
            Self::Vector { len } => vec![len],
            Self::VectorImage { channels, side } => vec![channels * side * side],
        }
    }
    /// For each element of the file in order: its index in memory of that shape.
    fn indices(&self, memory: Shape) -> Vec<usize> {
        let mut to = Vec::with_capacity(self.shape().iter().product());
        match *self {
            Self::Conv { outputs, inputs, kernel } => {
                for o in 0..outputs {
                    for i in 0..inputs {
                        for y in 0..kernel {
                            to.extend((0..kernel).map(|x| memory.at(o, y, x, i)));
                        }
                    }
                }
            }
            Self::Linear { outputs, inputs } => {
                for o in 0..outputs {
                    to.extend((0..inputs).map(|i| memory.at(o, 0, 0, i)));
                }
            }
            Self::LinearImage { channels, side, inputs } => {
                for c in 0..channels {
                    for p in 0..side * side {
                        to.extend((0..inputs).map(|i| memory.at(p * channels + c, 0, 0, i)));
                    }
                }
            }
            Self::Vector { len } => to.extend(0..len),
            Self::VectorImage { channels, side } => {
                for c in 0..channels {
                    to.extend((0..side * side).map(|p| p * channels + c));
                }
            }
        }
        to
    }
    /// From the file's order to memory; padding is zero.
    pub fn to_memory(&self, file: &[f32], memory: Shape) -> Vec<f32> {
        let mut out = vec![0.0; memory.len()];
        for (x, at) in file.iter().zip(self.indices(memory)) {
            out[at] = *x;
        }
        out
    }
    /// From memory to the file's order.
    pub fn to_file(&self, data: &[f32], memory: Shape) -> Vec<f32> {
        self.indices(memory).into_iter().map(|at| data[at]).collect()
    }
}

/// A named parameter or buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name in checkpoints.
    pub name: String,
    /// Shape in memory.
    pub shape: Shape,
    /// `Param` or `Buffer`.
    pub group: Group,
    /// How its initial values are drawn.
    pub init: Init,
    /// Layout in files.
    pub file: FileLayout,
}

impl Param {
    /// Initial values in memory order.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let len = self.file.shape().iter().product();
        self.file.to_memory(&self.init.values(&self.name, len, seed), self.shape)
    }
}

/// Parameters and buffers in order of registration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// All of them.
    pub all: Vec<Param>,
}

impl Params {
    /// Adds one; adding it again (a second use) changes nothing.
    ///
    /// # Panics
    /// If two layers share a name but not the parameter.
    pub fn add(&mut self, param: Param) {
        match self.all.iter().find(|p| p.name == param.name) {
            Some(p) => assert_eq!(*p, param, "two parameters are named {}", param.name),
            None => self.all.push(param),
        }
    }
    /// The same tensors in a layout that is [`frozen`](crate::ir::Layout::frozen).
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.all.iter_mut().for_each(|param| param.group = Group::Buffer);
        self
    }
    /// Number of trained values, padding excluded.
    pub fn count(&self) -> usize {
        self.all
            .iter()
            .filter(|p| p.group == Group::Param)
            .map(|p| p.file.shape().iter().product::<usize>())
            .sum()
    }
}

//! Shapes and types. Every tensor has rank 4 and is stored NHWC, contiguous.
//!
//! | what | shape |
//! |---|---|
//! | image batch, activation | `[N, H, W, C]` |
//! | feature rows | `[N, 1, 1, C]` |
//! | convolution weight | `[Cout, Kh, Kw, Cin]` (linear: `Kh = Kw = 1`) |
//! | per-channel vector | `[1, 1, 1, C]` |
//! | scalar | `[1, 1, 1, 1]` |
//!
//! Channels of activations are a multiple of 4 so that kernels load `vec4`s; RGB is stored as 4
//! with a zero channel.

use std::fmt;

/// Element type of a tensor in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float, for what passes between layers ([`crate::ir::half`]). Arithmetic is f32: loads
    /// widen, stores round to the nearest, ties to even.
    F16,
    /// 32-bit unsigned integer: labels, or pixels packed as `R | G << 8 | B << 16`.
    U32,
}

impl DType {
    /// Size of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 => size_of::<half::f16>(),
            Self::U32 => size_of::<u32>(),
        }
    }
}

/// Extents of a tensor in NHWC order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Batch (or output channels of a weight).
    pub n: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// Channels (or input channels of a weight).
    pub c: usize,
}

impl Shape {
    /// `[n, h, w, c]`.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self { n, h, w, c }
    }
    /// `[n, 1, 1, c]`.
    pub const fn rows(n: usize, c: usize) -> Self {
        Self::new(n, 1, 1, c)
    }
    /// `[1, 1, 1, c]`.
    pub const fn vector(c: usize) -> Self {
        Self::new(1, 1, 1, c)
    }
    /// `[1, 1, 1, 1]`.
    pub const SCALAR: Self = Self::new(1, 1, 1, 1);
    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    /// True if any extent is zero.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// `n * h * w`: the rows of the tensor seen as a matrix with `c` columns.
    pub const fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }
    /// Linear index of an element.
    pub const fn at(&self, n: usize, y: usize, x: usize, c: usize) -> usize {
        ((n * self.h + y) * self.w + x) * self.c + c
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.n, self.h, self.w, self.c)
    }
}

/// Shape and element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Extents.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl TensorType {
    /// An f32 tensor.
    pub const fn f32(shape: Shape) -> Self {
        Self { shape, dtype: DType::F32 }
    }
    /// A u32 tensor.
    pub const fn u32(shape: Shape) -> Self {
        Self { shape, dtype: DType::U32 }
    }
    /// Size in bytes.
    pub const fn bytes(&self) -> usize {
        self.shape.len() * self.dtype.bytes()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            DType::F32 => write!(f, "{}", self.shape),
            DType::F16 => write!(f, "f16{}", self.shape),
            DType::U32 => write!(f, "u32{}", self.shape),
        }
    }
}

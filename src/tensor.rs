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

use half::{bf16, f16};

/// A 16-bit float: how memory may hold what is computed in f32, so that it takes half the bytes.
/// Loads widen, stores round to the nearest, ties to even; a NaN stays one, and what is beyond the
/// largest number becomes infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE 754's binary16: 11 bits of precision, up to 65504.
    F16,
    /// bfloat16: 8 bits of precision, the range of f32.
    Bf16,
}

impl Half {
    /// Both formats, f16 first.
    pub const ALL: &[Self] = &[Self::F16, Self::Bf16];

    /// Name, as settings and plans have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The element type.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Bits of the nearest number.
    pub fn bits(self, x: f32) -> u16 {
        match self {
            Self::F16 => f16::from_f32(x).to_bits(),
            Self::Bf16 => bf16::from_f32(x).to_bits(),
        }
    }

    /// The number of some bits, exactly.
    pub fn value(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    /// The nearest number: that of [`Self::bits`], without a branch, so that a loop over a tensor
    /// becomes vector code.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        // Bits of 2^-14, below which a binary16 has fewer digits, and of 2^16.
        const LEAST: u32 = 0x3880_0000;
        const BEYOND: u32 = 0x4780_0000;
        let (sign, size) = (x.to_bits() & 1 << 31, x.to_bits() & !(1 << 31));
        let (cut, narrow) = match self {
            Self::F16 => (13, true),
            Self::Bf16 => (16, false),
        };
        let whole = |bits: u32| bits >> cut << cut;
        // Ties go to the even one; a carry goes into the exponent.
        let near = whole(size + (1 << (cut - 1)) - 1 + (size >> cut & 1));
        let rounded = if x.is_nan() {
            whole(size) | 1 << 22
        } else if narrow && size < LEAST {
            // The last digit of a sum with 1/2 is worth what binary16's smallest number is.
            (f32::from_bits(size) + 0.5 - 0.5).to_bits()
        } else if narrow && near >= BEYOND {
            f32::INFINITY.to_bits()
        } else {
            near
        };
        f32::from_bits(sign | rounded)
    }

    /// The number nearest to a wider one. An f32 between, rounded to odd, says on which side of the
    /// middle between two numbers it is.
    pub fn round_wide(self, x: f64) -> f64 {
        let near = x as f32;
        let mut bits = near.to_bits();
        if f64::from(near) != x && !x.is_nan() {
            bits = (bits - u32::from(f64::from(near).abs() > x.abs())) | 1;
        }
        f64::from(self.round(f32::from_bits(bits)))
    }

    /// Distance from 1 to the next number.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::F16 => f16::EPSILON.to_f64(),
            Self::Bf16 => bf16::EPSILON.to_f64(),
        }
    }

    /// The smallest number above zero.
    pub fn smallest(self) -> f64 {
        f64::from(self.value(1))
    }
}

/// Element type of a tensor in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// A float of 32 bits.
    F32,
    /// [`Half::F16`], for what passes between layers ([`crate::ir::half`]).
    F16,
    /// [`Half::Bf16`], for the same.
    BF16,
    /// 32-bit unsigned integer: labels, or pixels packed as `R | G << 8 | B << 16`.
    U32,
}

impl DType {
    /// Size of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 | Self::BF16 => size_of::<u16>(),
            Self::U32 => size_of::<u32>(),
        }
    }

    /// Which 16-bit float it is, if it is one.
    pub const fn half(self) -> Option<Half> {
        match self {
            Self::F16 => Some(Half::F16),
            Self::BF16 => Some(Half::Bf16),
            Self::F32 | Self::U32 => None,
        }
    }
}

/// Extents of a tensor in NHWC order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Batch (or output channels of a weight).
    pub n: usize,
    /// Height in pixels.
    pub h: usize,
    /// Width in pixels.
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
    /// Extent of each axis.
    pub shape: Shape,
    /// What an element is.
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
            DType::BF16 => write!(f, "bf16{}", self.shape),
            DType::U32 => write!(f, "u32{}", self.shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`Half::round`] against the conversions of `half`: every number of either format, what lies
    /// between it and the next, and what lies beside those.
    #[test]
    fn rounding_is_that_of_the_bits() {
        for &half in Half::ALL {
            for bits in 0..=u16::MAX {
                let [this, next] = [bits, bits.wrapping_add(1)].map(|bits| half.value(bits));
                for x in [this, this / 2.0 + next / 2.0, 1.5 * this] {
                    for near in [-1, 0, 1] {
                        let x = f32::from_bits(x.to_bits().wrapping_add_signed(near));
                        let [want, got] = [half.value(half.bits(x)), half.round(x)];
                        assert_eq!(got.to_bits(), want.to_bits(), "{half:?} {x:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn halves_round_to_the_nearest_and_ties_to_even() {
        for (half, digits) in [(Half::F16, 10), (Half::Bf16, 7)] {
            let unit = 2f64.powi(-digits);
            assert_eq!(half.epsilon(), unit);
            for units in [0.0, 1.0, 2.0, 3.0] {
                for (part, want) in [
                    (0.25, units),
                    (0.5, if units % 2.0 == 0.0 { units } else { units + 1.0 }),
                    (0.5 + 1e-4, units + 1.0),
                    (0.5 - 1e-4, units),
                ] {
                    let (x, want) = (1.0 + (units + part) * unit, 1.0 + want * unit);
                    for sign in [1.0, -1.0] {
                        assert_eq!(half.round_wide(sign * x), sign * want, "{half:?} {x}");
                        assert_eq!(f64::from(half.round((sign * x) as f32)), sign * want);
                    }
                }
            }
            // What an f32 cannot tell from the middle.
            let middle = 1.0 + 0.5 * unit;
            assert_eq!(half.round_wide(middle + 1e-14), 1.0 + unit);
            assert_eq!(half.round_wide(middle - 1e-14), 1.0);
            assert!(half.round(f32::NAN).is_nan() && half.round_wide(f64::NAN).is_nan());
            // A NaN whose upper bits are those of an infinity.
            assert!(half.round(f32::from_bits(0x7f80_0001)).is_nan());
            assert_eq!(half.round_wide(f64::NEG_INFINITY), f64::NEG_INFINITY);
            assert_eq!(half.round_wide(half.smallest()), half.smallest());
            assert_eq!(half.round_wide(half.smallest() / 2.0), 0.0);
            assert_eq!(half.round_wide(1e300), f64::INFINITY);
        }
        // The largest numbers, and the first beyond them that is infinite.
        assert_eq!(Half::F16.round(65_519.0), 65_504.0);
        assert_eq!(Half::F16.round(65_520.0), f32::INFINITY);
        let most = f32::from_bits(0x7f7f_0000);
        assert_eq!(Half::Bf16.round(f32::from_bits(0x7f7f_7fff)), most);
        assert_eq!(Half::Bf16.round(f32::from_bits(0x7f7f_8000)), f32::INFINITY);
        assert_eq!(Half::Bf16.round(65_520.0), 65_536.0);
    }
}

//! What happens to a finished sum: `v += bias[o]; v += add; v = relu(v); v = 0 where mask <= 0`.

use crate::ops::pointwise::relu;
use crate::ops::{Call, Real, ShapeError, same};
use crate::tensor::{Shape, TensorType};

/// What happens to a finished sum; each present part is one more input, in this order after the
/// operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epilogue {
    /// Adds `bias [1,1,1,Cout]`.
    pub bias: bool,
    /// Adds a tensor of the output's type.
    pub add: bool,
    /// Zeroes the result where it is negative; NaN stays.
    pub relu: bool,
    /// Zeroes the result where a tensor of the output's type is at most 0.
    pub mask: bool,
    /// A second output, `[ceil(R / rows), 1, 2, Cout]` of the result's R pixels: mean and
    /// `M2 = sum (y - mean)^2` of every so many rows of a channel, of what is stored.
    /// [`crate::ops::BatchNorm`] takes them. Only a forward convolution has it.
    pub moments: Option<usize>,
}

impl Epilogue {
    /// Number of inputs it takes.
    pub fn inputs(&self) -> usize {
        usize::from(self.bias) + usize::from(self.add) + usize::from(self.mask)
    }
    /// Whether a bias is all that happens.
    pub(super) fn is_linear(&self) -> bool {
        *self == Self { bias: self.bias, ..Self::default() }
    }
    /// The inputs of a product with this epilogue in which it is differentiable: before fusion.
    pub(super) fn differentiable(&self) -> &'static [usize] {
        match (self.is_linear(), self.bias) {
            (true, true) => &[0, 1, 2],
            (true, false) => &[0, 1],
            (false, _) => &[],
        }
    }
    /// Positions of bias, add and mask among the op's inputs (operands come first).
    pub(super) fn positions(&self) -> [Option<usize>; 3] {
        let mut next = 2;
        [self.bias, self.add, self.mask].map(|present| {
            present.then(|| {
                next += 1;
                next - 1
            })
        })
    }
    /// Inputs of the op that may be 16-bit floats: the first operand, and what has the output's
    /// type.
    pub(super) fn halves(&self) -> Vec<usize> {
        let [_, add, mask] = self.positions();
        [Some(0), add, mask].into_iter().flatten().collect()
    }
    /// Checks the types of its inputs against that of the output `y`.
    pub(super) fn check(
        &self,
        op: &'static str,
        inputs: &[TensorType],
        y: TensorType,
    ) -> Result<(), ShapeError> {
        let [bias, add, mask] = self.positions();
        bias.map_or(Ok(()), |i| {
            same(op, "the bias", TensorType::f32(Shape::vector(y.shape.c)), inputs[i])
        })?;
        add.map_or(Ok(()), |i| same(op, "the residual", y, inputs[i]))?;
        mask.map_or(Ok(()), |i| same(op, "the mask", y, inputs[i]))
    }
    /// The outputs of an op with the result `y`.
    pub(crate) fn outputs(&self, y: TensorType) -> Vec<TensorType> {
        let parts = self.moments.map(|rows| {
            TensorType::f32(Shape::new(y.shape.pixels().div_ceil(rows), 1, 2, y.shape.c))
        });
        std::iter::once(y).chain(parts).collect()
    }
    /// The second output, from the first, for the reference.
    pub(super) fn moments<T: Real>(&self, call: &mut Call<'_, T>) {
        let (Some(rows), y) = (self.moments, call.out_types[0]) else { return };
        let [result, parts] = &mut call.outputs[..] else { unreachable!("two outputs") };
        let stored = |v: T| y.dtype.half().map_or(v, |half| v.rounded(half)).get();
        let c = y.shape.c;
        for (part, result) in parts.chunks_mut(2 * c).zip(result.chunks(rows * c)) {
            for o in 0..c {
                let column = || result[o..].iter().step_by(c).map(|v| stored(*v));
                let mean = column().sum::<f64>() / (result.len() / c) as f64;
                part[o] = T::of(mean);
                part[c + o] = T::of(column().map(|v| (v - mean).powi(2)).sum());
            }
        }
    }
    /// The finished sum of element `at`, of one channel, for the references.
    pub(super) fn apply<T: Real>(
        &self,
        call: &Call<'_, T>,
        sum: f64,
        at: usize,
        channel: usize,
    ) -> f64 {
        let [bias, add, mask] = self.positions();
        let mut v = sum;
        v += bias.map_or(0.0, |i| call.inputs[i].f()[channel].get());
        v += add.map_or(0.0, |i| call.inputs[i].f()[at].get());
        if self.relu {
            v = relu(v);
        }
        if mask.is_some_and(|i| call.inputs[i].f()[at].get() <= 0.0) { 0.0 } else { v }
    }
    /// The same as slices, for the native versions.
    pub(super) fn tail<'a>(&self, call: &Call<'a, f32>) -> Tail<'a> {
        let [bias, add, mask] = self.positions().map(|p| p.map(|i| call.inputs[i].f()));
        Tail { bias, add, relu: self.relu, mask }
    }
}

/// An [`Epilogue`] with the tensors that it reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail<'a> {
    /// Where the native sums start.
    pub(super) bias: Option<&'a [f32]>,
    add: Option<&'a [f32]>,
    relu: bool,
    mask: Option<&'a [f32]>,
}

impl<'a> Tail<'a> {
    /// The tail of `len` elements of the output from `at` on.
    pub(super) fn slice(self, at: usize, len: usize) -> Self {
        let cut = |x: Option<&'a [f32]>| x.map(|x| &x[at..at + len]);
        Self { add: cut(self.add), mask: cut(self.mask), ..self }
    }
    /// What follows the bias.
    pub(super) fn apply(&self, y: &mut [f32]) {
        if let Some(add) = self.add {
            y.iter_mut().zip(add).for_each(|(y, a)| *y += a);
        }
        if self.relu {
            y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
        }
        if let Some(mask) = self.mask {
            y.iter_mut().zip(mask).for_each(|(y, m)| *y = if *m <= 0.0 { 0.0 } else { *y });
        }
    }
}

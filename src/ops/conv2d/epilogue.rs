//! What happens to a finished sum: `v += bias[o]; v += add; v = relu(v); v = 0 where mask <= 0`,
//! and what else is found out about the results while they are at hand.

use crate::ops::pointwise::relu;
use crate::ops::{Call, Op, Real, ShapeError, same};
use crate::tensor::{DType, Shape, TensorType};

/// What happens to a finished sum. Bias, what is added and the mask are one more input each where
/// present, in this order after the operands, then gradient sums two.
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
    /// A second output, of the sums of `v` and of `v * (x - mean)` of every so many pixels of a
    /// channel, `v` as it is stored: what the gradient of a batch norm sums whose `dy` is `v`
    /// ([`crate::ops::BatchNormGrad`]). Two more inputs: the `x` that the batch norm has read, of
    /// the output's type, and `mean [1,1,1,Cout]`. Of an input gradient of stride 2 each parity of
    /// pixels is counted by itself, the parts of one behind those of another.
    pub gradient_sums: Option<usize>,
}

impl Op {
    /// Parities of the pixels of a result on an axis, each with its own parts of what a convolution
    /// finds out about them.
    pub(crate) fn parities(&self) -> usize {
        if let Self::Conv2dInputGrad(c) = self { c.stride } else { 1 }
    }
}

impl Epilogue {
    /// That of an op which has one.
    pub(crate) fn of(op: &mut Op) -> Option<&mut Self> {
        match op {
            Op::Conv2d(c) => Some(&mut c.epilogue),
            Op::Conv2dInputGrad(c) => Some(&mut c.epilogue),
            _ => None,
        }
    }
    /// Number of inputs it takes.
    pub fn inputs(&self) -> usize {
        let alike = [self.bias, self.add, self.mask].map(usize::from).iter().sum::<usize>();
        alike + 2 * usize::from(self.gradient_sums.is_some())
    }
    /// Rows of a part of the second output, if there is one.
    pub(super) fn rows(&self) -> Option<usize> {
        self.moments.or(self.gradient_sums)
    }
    /// The same without a second output: what a library computes.
    #[must_use]
    pub fn without_parts(self) -> Self {
        Self { moments: None, gradient_sums: None, ..self }
    }
    /// Whether a convolution with it is what [`Library::Matrices`](crate::ops::Library::Matrices)
    /// computes: products of a pixel and one tap. It has no mask, adds a bias in the type of the
    /// result only, and of its ReLU nobody says that a NaN stays one.
    pub(crate) fn is_of_matrices(
        &self,
        weights: Shape,
        [stride, pad]: [usize; 2],
        result: DType,
    ) -> bool {
        let one_tap = [weights.h, weights.w] == [1, 1] && stride == 1 && pad == 0;
        let other = self.relu || self.mask || (self.bias && result.half().is_some());
        one_tap && !other
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
    /// Positions of `x` and `mean` of the gradient sums.
    pub(super) fn sums_positions(&self) -> Option<[usize; 2]> {
        let first = 2 + self.without_parts().inputs();
        self.gradient_sums.map(|_| [first, first + 1])
    }
    /// Inputs of the op that may be 16-bit floats: the first operand, and what has the output's
    /// type.
    pub(super) fn halves(&self) -> Vec<usize> {
        let [_, add, mask] = self.positions();
        let x = self.sums_positions().map(|p| p[0]);
        [Some(0), add, mask, x].into_iter().flatten().collect()
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
        mask.map_or(Ok(()), |i| same(op, "the mask", y, inputs[i]))?;
        let Some([x, mean]) = self.sums_positions() else { return Ok(()) };
        same(op, "the batch norm's input", y, inputs[x])?;
        same(op, "the batch norm's mean", TensorType::f32(Shape::vector(y.shape.c)), inputs[mean])?;
        // A bias would be one more buffer than WebGPU binds, and a gradient ends with no ReLU.
        if self.bias || self.relu || self.moments.is_some() {
            return Err(ShapeError::new(op, "gradient sums are not those of a layer's result"));
        }
        Ok(())
    }
    /// The outputs of an op with the result `y`, whose pixels have so many parities on an axis: the
    /// parts of each lie behind each other.
    pub(crate) fn outputs(&self, y: TensorType, parities: usize) -> Vec<TensorType> {
        let parts = self.rows().map(|rows| {
            let s = y.shape;
            let pixels = s.n * s.h.div_ceil(parities) * s.w.div_ceil(parities);
            let parts = parities * parities * pixels.div_ceil(rows);
            TensorType::f32(Shape::new(parts, 1, 2, s.c))
        });
        std::iter::once(y).chain(parts).collect()
    }
    /// The second output, from the first, for the reference.
    pub(super) fn parts<T: Real>(&self, call: &mut Call<'_, T>, parities: usize) {
        self.moments(call);
        self.sum_gradients(call, parities);
    }
    /// Mean and M2 of every so many rows.
    fn moments<T: Real>(&self, call: &mut Call<'_, T>) {
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
    /// The gradient sums of every so many pixels of a parity.
    fn sum_gradients<T: Real>(&self, call: &mut Call<'_, T>, parities: usize) {
        let (Some(rows), Some([x, mean])) = (self.gradient_sums, self.sums_positions()) else {
            return;
        };
        let y = call.out_types[0];
        let stored = |v: T| y.dtype.half().map_or(v, |half| v.rounded(half)).get();
        let s = y.shape;
        let [height, width] = [s.h, s.w].map(|extent| extent.div_ceil(parities));
        let of_parity = (s.n * height * width).div_ceil(rows);
        let (x, mean) = (call.inputs[x].f(), call.inputs[mean].f());
        let [result, parts] = &mut call.outputs[..] else { unreachable!("two outputs") };
        let mut sums = vec![0.0; parts.len()];
        for at in 0..s.pixels() {
            let (image, row, column) = (at / (s.h * s.w), at / s.w % s.h, at % s.w);
            let parity = row % parities * parities + column % parities;
            let pixel = (image * height + row / parities) * width + column / parities;
            let part = (parity * of_parity + pixel / rows) * 2 * s.c;
            for c in 0..s.c {
                let v = stored(result[at * s.c + c]);
                sums[part + c] += v;
                sums[part + s.c + c] += v * (x[at * s.c + c].get() - mean[c].get());
            }
        }
        for (part, sum) in parts.iter_mut().zip(sums) {
            *part = T::of(sum);
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

//! Batch normalisation. With `mean` and `var` over the `R = N*H*W` rows of a channel and
//! `rstd = 1/sqrt(var + eps)`,
//!
//! ```text
//! xhat = (x - mean) * rstd        y = gamma * xhat + beta  [+ add]  [relu]
//! running_mean' = (1 - momentum) * running_mean + momentum * mean
//! running_var'  = (1 - momentum) * running_var  + momentum * var * R / (R - 1)
//! dbeta = sum dy      dgamma = sum dy * xhat      dx = gamma * rstd * (dy - dbeta / R - xhat * dgamma / R)
//! ```
//!
//! In evaluation `mean` and `var` are the running ones, constants: `dx = gamma * rstd * dy`.
//!
//! Moments stay accurate when `|mean| >> std`. Of a chunk of `n` rows, with the first as shift `k`,
//! `s = sum (x - k)` and `q = sum (x - k)^2` give `mean = k + s/n` and
//! `M2 = sum (x - mean)^2 = q - s^2/n`. Because `k` is one of the rows, `q <= n*M2`, so the
//! subtraction loses a factor `n` at worst, and `n` is small. Chunks are merged by Chan's formula,
//! which has the same shape with means in place of rows:
//! `M2 = sum M2_j + sum n_j (mean_j - mean)^2`.

mod grad;
mod lanes;

pub use grad::BatchNormGrad;
pub(super) use grad::part_sums;

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ReluGrad,
    ShapeError, Target, ValueId, activation, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Constant, Normal, Uniform};
use lanes::Lanes;
use rayon::prelude::*;

use super::native::{folded, repeated, run_length, simd, task_length};
use super::sum_rows::chunk_rows;

/// Rows that an invocation of the elementwise kernels handles, all of them at once on a GPU.
const STRIP: usize = 4;

/// Checks `x`, the vectors from input `first` to `last`, and whether the others have the type of
/// `x`.
fn check(
    op: &'static str,
    inputs: &[TensorType],
    count: usize,
    x: usize,
    vectors: std::ops::Range<usize>,
) -> Result<(), ShapeError> {
    arity(op, inputs, count)?;
    activation(op, "x", inputs[x])?;
    let vector = TensorType::f32(Shape::vector(inputs[x].shape.c));
    for (i, &ty) in inputs.iter().enumerate() {
        same(op, &format!("input {i}"), if vectors.contains(&i) { vector } else { inputs[x] }, ty)?;
    }
    Ok(())
}

fn elementwise(file: &'static str, x: Shape, target: &Target) -> (Kernel, [u32; 3]) {
    let kernel = Kernel::new(file).set("ROWS", x.pixels()).set("C4", x.c / 4).set("STRIP", STRIP);
    let kernel = kernel.set("AHEAD", target.rows_ahead().min(STRIP as u32));
    (kernel, target.grid_1d(x.pixels().div_ceil(STRIP) * (x.c / 4)))
}

/// `y = (x - mean) * rstd * gamma + beta [+ add] [relu]` of all rows, for the references.
fn apply_naive<T: Real>(
    call: &mut Call<'_, T>,
    c: usize,
    mean: f64,
    rstd: f64,
    add: bool,
    relu: bool,
) {
    let (x, s) = (call.inputs[0].f(), call.in_shape(0));
    let (gamma, beta) = (call.inputs[1].f()[c].get(), call.inputs[2].f()[c].get());
    for i in (c..s.len()).step_by(s.c) {
        let mut y = (x[i].get() - mean) * rstd * gamma + beta;
        if add {
            y += call.inputs[5].f()[i].get();
        }
        call.outputs[0][i] = T::of(if relu { super::pointwise::relu(y) } else { y });
    }
}

/// The same, fast.
fn apply_native(call: &mut Call<'_, f32>, mean: &[f32], rstd: &[f32], add: bool, relu: bool) {
    let (x, c) = (call.inputs[0].f(), call.in_shape(0).c);
    let scale: Vec<f32> = call.inputs[1].f().iter().zip(rstd).map(|(g, r)| g * r).collect();
    let [mean, scale, beta] = [mean, &scale, call.inputs[2].f()].map(repeated);
    let (length, task) = (run_length(c), task_length(c));
    // Without a residual zeros are added; without a ReLU nothing is below the floor.
    let zeros = vec![0.0; if add { 0 } else { task }];
    let other = |part: usize, len: usize| {
        if add { &call.inputs[5].f()[part * task..][..len] } else { &zeros[..len] }
    };
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    call.outputs[0].par_chunks_mut(task).zip(x.par_chunks(task)).enumerate().for_each(
        |(part, (y, x))| {
            let other = other(part, x.len());
            simd(
                #[inline(always)]
                || {
                    for ((y, x), other) in
                        y.chunks_mut(length).zip(x.chunks(length)).zip(other.chunks(length))
                    {
                        let n = y.len();
                        let (y, x, other, mean, scale, beta) = (
                            &mut y[..n],
                            &x[..n],
                            &other[..n],
                            &mean[..n],
                            &scale[..n],
                            &beta[..n],
                        );
                        for i in 0..n {
                            let v = (x[i] - mean[i]) * scale[i] + beta[i] + other[i];
                            y[i] = if v < floor { floor } else { v };
                        }
                    }
                },
            );
        },
    );
}

/// Bindings of `batch_norm_apply.wgsl`.
fn apply_bindings(mean: Binding, spread: Binding, add: bool) -> Vec<Binding> {
    let mut bindings = vec![
        Binding::Input(0),
        Binding::Input(1),
        Binding::Input(2),
        mean,
        spread,
        Binding::Output(0),
    ];
    bindings.extend(add.then_some(Binding::Input(5)));
    bindings
}

/// Gradient of both modes; `spread` of `[mean, spread]` is as [`BatchNormGrad`] takes it.
fn gradient(
    g: &mut dyn Emit,
    node: &Forward<'_>,
    [mean, spread]: [ValueId; 2],
    add: bool,
    relu: bool,
    frozen: Option<f32>,
) -> Vec<Option<ValueId>> {
    let mut dx = vec![None; node.x.len()];
    let Some(dy) = node.dy[0] else { return dx };
    // With `add`, the masked gradient is needed on its own: it is the gradient of that input.
    let dy = if add && relu { g.emit1(ReluGrad.into(), &[dy, node.y[0]]) } else { dy };
    if add {
        dx[5] = Some(dy).filter(|_| node.wants[5]);
    }
    if node.wants[..3].contains(&true) {
        let relu = relu && !add;
        let mut inputs = vec![dy, node.x[0], node.x[1], mean, spread];
        inputs.extend(relu.then_some(node.y[0]));
        let grads = g.emit(BatchNormGrad { relu, frozen, parts: false }.into(), &inputs);
        for (i, grad) in grads.into_iter().enumerate() {
            dx[i] = Some(grad).filter(|_| node.wants[i]);
        }
    }
    dx
}

/// Training: inputs `x, gamma, beta, running_mean, running_var [, add] [, parts]`, outputs
/// `y, mean, rstd, running_mean', running_var'`.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Weight of the batch in the running statistics.
    pub momentum: f32,
    /// Adds a sixth input to the result (a residual connection).
    pub add: bool,
    /// Ends with a ReLU.
    pub relu: bool,
    /// Takes the moments of every so many rows of `x` as its last input
    /// (`Epilogue::moments`), in place of finding them.
    pub parts: Option<usize>,
}

impl BatchNorm {
    /// Mean and `M2` of all rows of a channel, for the reference.
    fn moments<T: Real>(&self, call: &Call<'_, T>, channel: usize) -> (f64, f64) {
        let (x, s) = (call.inputs[0].f(), call.in_shape(0));
        let rows = s.pixels() as f64;
        let Some(span) = self.parts else {
            let column = || (channel..s.len()).step_by(s.c).map(|i| x[i].get());
            let mean = column().sum::<f64>() / rows;
            return (mean, column().map(|x| (x - mean).powi(2)).sum());
        };
        let parts = call.inputs[5 + usize::from(self.add)].f().chunks(2 * s.c).enumerate();
        let parts = parts.map(|(j, part)| {
            let rows = span.min(s.pixels() - j * span) as f64;
            (rows, part[channel].get(), part[s.c + channel].get())
        });
        let mean = parts.clone().map(|(n, mean, _)| n * mean).sum::<f64>() / rows;
        (mean, parts.map(|(n, part, m2)| m2 + n * (part - mean).powi(2)).sum())
    }
}

/// Adds the kernel that reads rows of so many columns and writes mean and M2 of every `chunk` of
/// them.
pub(super) fn part_moments(
    l: &mut Lowering,
    target: &Target,
    [rows, columns]: [usize; 2],
    chunk: usize,
    from_to: [Binding; 2],
) {
    let c4 = columns / 4;
    let parts = rows.div_ceil(chunk);
    let lanes = Lanes::of_given(target, parts, chunk, c4);
    let kernel = Kernel::new("batch_norm_moments").set("ROWS", rows).set("C4", c4);
    let kernel = lanes.set(target, kernel.set("CHUNK", chunk));
    l.push(kernel, lanes.grid(target, parts, c4), &from_to);
}

impl OpDef for BatchNorm {
    const NAME: &'static str = "batch_norm";
    fn halves(&self) -> [Vec<usize>; 2] {
        [if self.add { vec![0, 5] } else { vec![0] }, vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let count = 5 + usize::from(self.add);
        arity(Self::NAME, inputs, count + usize::from(self.parts.is_some()))?;
        check(Self::NAME, &inputs[..count], count, 0, 1..5)?;
        let x = inputs[0].shape;
        if let Some(rows) = self.parts {
            let parts = Shape::new(x.pixels().div_ceil(rows), 1, 2, x.c);
            same(Self::NAME, "the moments", TensorType::f32(parts), inputs[count])?;
        }
        if x.pixels() == 1 {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "x is {x}: one value per channel has no \
                variance to train with"
                ),
            ));
        }
        let vector = TensorType::f32(Shape::vector(x.c));
        Ok(vec![inputs[0], vector, vector, vector, vector])
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(3, 3), (4, 4)]
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let s = call.in_shape(0);
        let rows = s.pixels() as f64;
        let momentum = f64::from(self.momentum);
        for c in 0..s.c {
            let (mean, m2) = self.moments(call, c);
            let var = m2 / rows;
            let rstd = 1.0 / (var + f64::from(self.eps)).sqrt();
            apply_naive(call, c, mean, rstd, self.add, self.relu);
            call.outputs[1][c] = T::of(mean);
            call.outputs[2][c] = T::of(rstd);
            call.outputs[3][c] =
                T::of((1.0 - momentum) * call.outputs[3][c].get() + momentum * mean);
            call.outputs[4][c] = T::of(
                (1.0 - momentum) * call.outputs[4][c].get() + momentum * var * rows / (rows - 1.0),
            );
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        // No host device asks for parts (`Target::moments`).
        if self.parts.is_some() {
            return self.reference(call);
        }
        let (x, s) = (call.inputs[0].f(), call.in_shape(0));
        // (shift, rows, sum, sum of squares) of each task, about the task's first row.
        let length = run_length(s.c);
        let parts: Vec<_> = x
            .par_chunks(task_length(s.c))
            .map(|x| {
                let shift = repeated(&x[..s.c]);
                let (mut sum, mut squares) = (vec![0.0_f32; length], vec![0.0_f32; length]);
                simd(
                    #[inline(always)]
                    || {
                        for x in x.chunks(length) {
                            let n = x.len();
                            let (shift, sum, squares) =
                                (&shift[..n], &mut sum[..n], &mut squares[..n]);
                            for i in 0..n {
                                let d = x[i] - shift[i];
                                sum[i] += d;
                                squares[i] += d * d;
                            }
                        }
                    },
                );
                (&x[..s.c], x.len() / s.c, folded(&sum, s.c), folded(&squares, s.c))
            })
            .collect();
        let rows = s.pixels() as f64;
        let momentum = f64::from(self.momentum);
        let (mut means, mut rstds) = (vec![0.0; s.c], vec![0.0; s.c]);
        for c in 0..s.c {
            let (mut n, mut mean, mut m2) = (0.0, 0.0, 0.0);
            for (shift, count, sum, squares) in &parts {
                let (k, sum, squares) = (*count as f64, sum[c], squares[c]);
                let apart = f64::from(shift[c]) + sum / k - mean;
                m2 += squares - sum * sum / k + apart * apart * n * k / (n + k);
                n += k;
                mean += apart * k / n;
            }
            let m2 = if m2 < 0.0 { 0.0 } else { m2 }; // rounding; NaN stays
            means[c] = mean as f32;
            rstds[c] = (1.0 / (m2 / rows + f64::from(self.eps)).sqrt()) as f32;
            call.outputs[3][c] =
                ((1.0 - momentum) * f64::from(call.outputs[3][c]) + momentum * mean) as f32;
            call.outputs[4][c] = ((1.0 - momentum) * f64::from(call.outputs[4][c])
                + momentum * m2 / (rows - 1.0)) as f32;
        }
        apply_native(call, &means, &rstds, self.add, self.relu);
        call.outputs[1].copy_from_slice(&means);
        call.outputs[2].copy_from_slice(&rstds);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        assert!(
            node.dy[1..].iter().all(Option::is_none),
            "the statistics of batch_norm have no \
            gradient"
        );
        gradient(g, node, [node.y[1], node.y[2]], self.add, self.relu, None)
    }
    fn differentiable(&self) -> &'static [usize] {
        match (self.parts, self.add) {
            (Some(_), _) => &[],
            (None, true) => &[0, 1, 2, 5],
            (None, false) => &[0, 1, 2],
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let x = io.inputs[0].shape;
        let (rows, c4) = (x.pixels(), x.c / 4);
        let mut l = Lowering::default();
        let (_, chunk) = Lanes::of_rows(target, rows, c4);
        let mut span = self.parts.unwrap_or(chunk);
        let mut count = rows.div_ceil(span);
        let mut parts = Binding::Input(io.inputs.len() - 1);
        if self.parts.is_none() {
            parts = l.scratch(DType::F32, count * 2 * x.c);
            part_moments(&mut l, target, [rows, x.c], span, [Binding::Input(0), parts]);
        }
        let merge = |span: usize, fan_in: usize| {
            let lanes = Lanes::of_parts(target, fan_in, c4);
            let kernel = Kernel::new("batch_norm_merge")
                .set("ROWS", rows)
                .set("C4", c4)
                .set("SPAN", span)
                .set("FAN_IN", fan_in)
                .set("EPS", self.eps)
                .set("MOMENTUM", self.momentum);
            (lanes.set(target, kernel), lanes)
        };
        while count > Lanes::most(target) {
            let fan_in = chunk_rows(count);
            let left = count.div_ceil(fan_in);
            let merged = l.scratch(DType::F32, left * 2 * x.c);
            let (kernel, lanes) = merge(span, fan_in);
            let grid = lanes.grid(target, left, c4);
            l.push(kernel.set("FINAL", false), grid, &[parts, merged]);
            (span, count, parts) = (span * fan_in, left, merged);
        }
        let bindings =
            [parts, Binding::Output(1), Binding::Output(2), Binding::Output(3), Binding::Output(4)];
        let (kernel, lanes) = merge(span, count);
        l.push(kernel.set("FINAL", true), lanes.grid(target, 1, c4), &bindings);
        let (kernel, grid) = elementwise("batch_norm_apply", x, target);
        let kernel = kernel.set("ADD", self.add).set("RELU", self.relu).set("EVAL", false);
        l.push(kernel, grid, &apply_bindings(Binding::Output(1), Binding::Output(2), self.add));
        l
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, x: Shape, fill: Fill, add: bool, relu: bool| {
            let op = Self { eps: 1e-5, momentum: 0.1, add, relu, parts: None };
            let v = Shape::vector(x.c);
            let positive = Uniform(0.5, 1.5);
            let inputs =
                [(x, fill), (v, positive), (v, Normal), (v, Normal), (v, positive), (x, Normal)];
            Case::new(name, op, &inputs[..5 + usize::from(add)])
        };
        let odd = Shape::new(3, 5, 7, 4);
        // Parts that have nothing to do with x, each of other moments.
        let given = |name: &str, x: Shape, rows: usize, add: bool| {
            let parts = Shape::new(x.pixels().div_ceil(rows), 1, 2, x.c);
            let mut case = case(name, x, Normal, add, true);
            case.op = Self { eps: 1e-5, momentum: 0.1, add, relu: true, parts: Some(rows) }.into();
            case.inputs.push((TensorType::f32(parts), Uniform(0.5, 40.0)));
            case
        };
        vec![
            given("moments given, rows105c4 relu", odd, 64, false),
            given("moments given, rows7c36 add relu", Shape::rows(7, 36), 64, true),
            given("moments given, rows4160c8 relu", Shape::new(5, 26, 32, 8), 32, false),
            // More parts than one merge takes, the last ones not full.
            given("moments given, rows20007c4", Shape::new(27, 19, 39, 4), 4, false),
            given("moments given, rows300c68 add relu", Shape::rows(300, 68), 4, true),
            case("n3h5w7c4", odd, Normal, false, false),
            case("n3h5w7c4 relu", odd, Normal, false, true),
            case("n3h5w7c4 add", odd, Normal, true, false),
            case("n3h5w7c4 add relu", odd, Normal, true, true),
            case("rows2c36 add relu", Shape::rows(2, 36), Normal, true, true).forward_only(),
            case("rows31c2048 relu", Shape::rows(31, 2048), Normal, false, true),
            case("h11w11c36", Shape::new(2, 11, 11, 36), Normal, false, false),
            case("rows4097c8", Shape::new(1, 17, 241, 8), Normal, false, false),
            case("rows515c132", Shape::new(5, 103, 1, 132), Normal, false, false),
            case("rows262144c4", Shape::new(64, 64, 64, 4), Normal, false, false),
            case("variance 0", odd, Constant(0.1), false, false),
            case(
                "mean 1000, std 1",
                Shape::new(5, 11, 11, 8),
                Uniform(998.268, 1001.732),
                false,
                false,
            ),
        ]
    }
}

/// Evaluation: inputs `x, gamma, beta, running_mean, running_var [, add]`, output `y` from the
/// running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormEval {
    /// Added to the variance.
    pub eps: f32,
    /// Adds a sixth input to the result (a residual connection).
    pub add: bool,
    /// Ends with a ReLU.
    pub relu: bool,
}

impl OpDef for BatchNormEval {
    const NAME: &'static str = "batch_norm_eval";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0, 5], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        check(Self::NAME, inputs, 5 + usize::from(self.add), 0, 1..5)?;
        Ok(vec![inputs[0]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        for c in 0..call.in_shape(0).c {
            let (mean, var) = (call.inputs[3].f()[c].get(), call.inputs[4].f()[c].get());
            apply_naive(
                call,
                c,
                mean,
                1.0 / (var + f64::from(self.eps)).sqrt(),
                self.add,
                self.relu,
            );
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let rstd: Vec<f32> =
            call.inputs[4].f().iter().map(|var| 1.0 / (var + self.eps).sqrt()).collect();
        apply_native(call, call.inputs[3].f(), &rstd, self.add, self.relu);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        gradient(g, node, [node.x[3], node.x[4]], self.add, self.relu, Some(self.eps))
    }
    fn differentiable(&self) -> &'static [usize] {
        if self.add { &[0, 1, 2, 5] } else { &[0, 1, 2] }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (kernel, grid) = elementwise("batch_norm_apply", io.inputs[0].shape, target);
        let kernel = kernel
            .set("ADD", self.add)
            .set("RELU", self.relu)
            .set("EVAL", true)
            .set("EPS", self.eps);
        Lowering::one(kernel, grid, &apply_bindings(Binding::Input(3), Binding::Input(4), self.add))
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, x: Shape, var: Fill, add: bool, relu: bool| {
            let v = Shape::vector(x.c);
            let inputs =
                [(x, Normal), (v, Normal), (v, Normal), (v, Normal), (v, var), (x, Normal)];
            Case::new(name, Self { eps: 1e-5, add, relu }, &inputs[..5 + usize::from(add)])
        };
        let positive = Uniform(0.1, 2.0);
        vec![
            case("n3h11w7c4", Shape::new(3, 11, 7, 4), positive, false, false),
            case("n3h11w7c36 add relu", Shape::new(3, 11, 7, 36), positive, true, true),
            case("rows1c36 add", Shape::rows(1, 36), positive, true, false),
            case("n2h5w3c8 relu", Shape::new(2, 5, 3, 8), positive, false, true),
            case("n2h5w3c8 add relu", Shape::new(2, 5, 3, 8), positive, true, true),
            case("rows1c4 relu, variance 0", Shape::rows(1, 4), Constant(0.0), false, true),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_one_value_per_channel_and_channels_that_are_no_vec4() {
        let op = BatchNorm { eps: 1e-5, momentum: 0.1, add: false, relu: false, parts: None };
        let inputs = |x: Shape| {
            let v = TensorType::f32(Shape::vector(x.c));
            [TensorType::f32(x), v, v, v, v]
        };
        assert!(
            op.outputs(&inputs(Shape::rows(1, 4)))
                .unwrap_err()
                .message
                .contains("one value per channel")
        );
        assert!(
            op.outputs(&inputs(Shape::rows(3, 6))).unwrap_err().message.contains("multiple of 4")
        );
        assert_eq!(op.outputs(&inputs(Shape::rows(2, 4))).unwrap().len(), 5);
    }
}

//! The gradient of batch normalisation; the formulas are beside the forward pass.

use rayon::prelude::*;

use super::super::native::{folded, repeated, run_length, simd, task_length};
use super::super::sum_rows::shrink;
use super::super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity, same,
};
use super::lanes::Lanes;
use super::{check, elementwise};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Normal, Uniform};

/// Adds the kernel that sums dy and dy * (x - mean) of every so many rows: of `maps` dy, x and mean
/// to parts, dy counting as 0 where the mask is.
fn sums(
    l: &mut Lowering,
    target: &Target,
    [rows, columns]: [usize; 2],
    (lanes, chunk): (Lanes, usize),
    maps: [Binding; 4],
    mask: Option<Binding>,
) {
    let kernel = Kernel::new("batch_norm_grad_sums")
        .set("ROWS", rows)
        .set("C4", columns / 4)
        .set("CHUNK", chunk)
        .set("RELU", mask.is_some());
    let grid = lanes.grid(target, rows.div_ceil(chunk), columns / 4);
    let bindings: Vec<Binding> = maps.into_iter().chain(mask).collect();
    l.push(lanes.set(target, kernel), grid, &bindings);
}

/// The same for rows of a given number, without a mask: what a convolution's kernel would find.
pub(in super::super) fn part_sums(
    l: &mut Lowering,
    target: &Target,
    extents: [usize; 2],
    chunk: usize,
    maps: [Binding; 4],
) {
    let lanes = Lanes::of_given(target, extents[0].div_ceil(chunk), chunk, extents[1] / 4);
    sums(l, target, extents, (lanes, chunk), maps, None);
}

/// Gradient of [`super::BatchNorm`] through the statistics, or of [`super::BatchNormEval`] with
/// constant ones: inputs `dy, x, gamma, mean, rstd [, y] [, parts]`, outputs `dx, dgamma, dbeta`.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormGrad {
    /// The sixth input is `y`; `dy` counts as 0 where `y <= 0`.
    pub relu: bool,
    /// The statistics are constants; in place of `rstd` stands the variance, and this is what is
    /// added to it.
    pub frozen: Option<f32>,
    /// Takes sums of dy and of dy * (x - mean), as parts `[P, 1, 2, C]`, as its last input
    /// (`Epilogue::gradient_sums`), in place of finding them.
    pub parts: bool,
}

impl BatchNormGrad {
    /// The sums of dy and of dy * (x - mean) that are given of a channel, if any are.
    fn given<T: Real>(&self, call: &Call<'_, T>, channel: usize) -> Option<[f64; 2]> {
        let columns = 2 * call.in_shape(1).c;
        let parts = self.parts.then(|| call.inputs[5 + usize::from(self.relu)].f())?;
        let at = [channel, columns / 2 + channel];
        Some(at.map(|at| parts[at..].iter().step_by(columns).map(|part| part.get()).sum()))
    }
}

impl OpDef for BatchNormGrad {
    const NAME: &'static str = "batch_norm_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0, 1, 5], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let count = 5 + usize::from(self.relu);
        arity(Self::NAME, inputs, count + usize::from(self.parts))?;
        check(Self::NAME, &inputs[..count], count, 1, 2..5)?;
        if let Some(&parts) = inputs.get(count) {
            let whole = Shape::new(parts.shape.n, 1, 2, inputs[1].shape.c);
            same(Self::NAME, "the sums", TensorType::f32(whole), parts)?;
        }
        Ok(vec![inputs[1], inputs[2], inputs[2]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, x, s) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(1));
        let rows = s.pixels() as f64;
        for c in 0..s.c {
            let [gamma, mean, spread] = [2, 3, 4].map(|i| call.inputs[i].f()[c].get());
            let rstd = self.frozen.map_or(spread, |eps| 1.0 / (spread + f64::from(eps)).sqrt());
            let column = || (c..s.len()).step_by(s.c);
            let xhat = |i: usize| (x[i].get() - mean) * rstd;
            let dy = |i: usize| {
                if self.relu && call.inputs[5].f()[i].get() <= 0.0 { 0.0 } else { dy[i].get() }
            };
            let [dbeta, dgamma] = self.given(call, c).map_or_else(
                || [column().map(dy).sum(), column().map(|i| dy(i) * xhat(i)).sum()],
                |[plain, moment]| [plain, moment * rstd],
            );
            for i in column() {
                let through = if self.frozen.is_some() {
                    0.0
                } else {
                    dbeta / rows + xhat(i) * dgamma / rows
                };
                call.outputs[0][i] = T::of(gamma * rstd * (dy(i) - through));
            }
            call.outputs[1][c] = T::of(dgamma);
            call.outputs[2][c] = T::of(dbeta);
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        // No host device asks for parts (`Target::moments`).
        if self.parts {
            return self.reference(call);
        }
        let (dy, x, s) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(1));
        let [gamma, mean, spread] = [2, 3, 4].map(|i| call.inputs[i].f());
        let rstd = |c: usize| self.frozen.map_or(spread[c], |eps| 1.0 / (spread[c] + eps).sqrt());
        let c = s.c;
        let (length, task) = (run_length(c), task_length(c));
        let mean = &repeated(mean)[..];
        // Without a mask, dy stands in for y, and nothing is <= NaN.
        let (y, floor) = if self.relu { (call.inputs[5].f(), 0.0) } else { (dy, f32::NAN) };
        // (sum dy, sum dy * (x - mean)) of each task.
        let parts: Vec<_> = dy
            .par_chunks(task)
            .zip(x.par_chunks(task))
            .zip(y.par_chunks(task))
            .map(|((dy, x), y)| {
                let (mut plain, mut moment) = (vec![0.0_f32; length], vec![0.0_f32; length]);
                simd(
                    #[inline(always)]
                    || {
                        for ((dy, x), y) in
                            dy.chunks(length).zip(x.chunks(length)).zip(y.chunks(length))
                        {
                            let n = dy.len();
                            let (dy, x, y, mean) = (&dy[..n], &x[..n], &y[..n], &mean[..n]);
                            let (plain, moment) = (&mut plain[..n], &mut moment[..n]);
                            for i in 0..n {
                                let dy = if y[i] <= floor { 0.0 } else { dy[i] };
                                plain[i] += dy;
                                moment[i] += dy * (x[i] - mean[i]);
                            }
                        }
                    },
                );
                (folded(&plain, c), folded(&moment, c))
            })
            .collect();
        // dx = scale * (dy - level - (x - mean) * slope).
        let [mut scale, mut level, mut slope] = [(); 3].map(|()| vec![0.0_f32; c]);
        let rows = s.pixels() as f64;
        for c in 0..c {
            let dbeta: f64 = parts.iter().map(|p| p.0[c]).sum();
            let rstd = rstd(c);
            let dgamma = f64::from(rstd) * parts.iter().map(|p| p.1[c]).sum::<f64>();
            scale[c] = gamma[c] * rstd;
            if self.frozen.is_none() {
                level[c] = (dbeta / rows) as f32;
                slope[c] = (dgamma / rows) as f32 * rstd;
            }
            call.outputs[1][c] = dgamma as f32;
            call.outputs[2][c] = dbeta as f32;
        }
        let [scale, level, slope] = [&scale, &level, &slope].map(|v| repeated(v));
        call.outputs[0]
            .par_chunks_mut(task)
            .zip(dy.par_chunks(task))
            .zip(x.par_chunks(task))
            .zip(y.par_chunks(task))
            .for_each(|(((dx, dy), x), y)| {
                simd(
                    #[inline(always)]
                    || {
                        for (((dx, dy), x), y) in dx
                            .chunks_mut(length)
                            .zip(dy.chunks(length))
                            .zip(x.chunks(length))
                            .zip(y.chunks(length))
                        {
                            let n = dx.len();
                            let (dx, dy, x, y, mean) =
                                (&mut dx[..n], &dy[..n], &x[..n], &y[..n], &mean[..n]);
                            let (scale, level, slope) = (&scale[..n], &level[..n], &slope[..n]);
                            for i in 0..n {
                                let dy = if y[i] <= floor { 0.0 } else { dy[i] };
                                dx[i] = scale[i] * (dy - level[i] - (x[i] - mean[i]) * slope[i]);
                            }
                        }
                    },
                );
            });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let x = io.inputs[1].shape;
        let (rows, c4) = (x.pixels(), x.c / 4);
        let mut l = Lowering::default();
        let mask = self.relu.then_some(Binding::Input(5));
        let (parts, count) = if self.parts {
            let last = io.inputs.len() - 1;
            (Binding::Input(last), io.inputs[last].shape.n)
        } else {
            let (lanes, chunk) = Lanes::of_rows(target, rows, c4);
            let count = rows.div_ceil(chunk);
            let parts = l.scratch(DType::F32, count * 2 * x.c);
            let maps = [Binding::Input(0), Binding::Input(1), Binding::Input(3), parts];
            sums(&mut l, target, [rows, x.c], (lanes, chunk), maps, mask);
            (parts, count)
        };
        let most = Lanes::most(target);
        let (parts, count) = shrink(&mut l, target, parts, count, 2 * x.c, most);
        let lanes = Lanes::of_parts(target, count, c4);
        let factors = l.scratch(DType::F32, 3 * x.c);
        let kernel = Kernel::new("batch_norm_grad_factors")
            .set("ROWS", rows)
            .set("C4", c4)
            .set("PARTS", count);
        let kernel = lanes.set(target, kernel);
        let kernel =
            self.frozen.map_or(kernel.clone(), |eps| kernel.set("FROZEN", true).set("EPS", eps));
        let bindings = [
            parts,
            Binding::Input(2),
            Binding::Input(4),
            Binding::Output(1),
            Binding::Output(2),
            factors,
        ];
        l.push(kernel, lanes.grid(target, 1, c4), &bindings);
        let (kernel, grid) = elementwise("batch_norm_grad", x, target);
        let mut bindings = vec![
            Binding::Input(0),
            Binding::Input(1),
            Binding::Input(3),
            factors,
            Binding::Output(0),
        ];
        bindings.extend(mask);
        l.push(kernel.set("RELU", self.relu), grid, &bindings);
        l
    }
    fn cases() -> Vec<Case> {
        let with = |name: &str, x: Shape, relu: bool, frozen: Option<f32>| {
            let v = Shape::vector(x.c);
            let inputs = [
                (x, Normal),
                (x, Normal),
                (v, Normal),
                (v, Normal),
                (v, Uniform(0.5, 1.5)),
                (x, Normal),
            ];
            let op = Self { relu, frozen, parts: false };
            Case::new(name, op, &inputs[..5 + usize::from(relu)])
        };
        // Sums that have nothing to do with dy.
        let given = |name: &str, x: Shape, parts: usize, relu: bool, frozen: Option<f32>| {
            let mut case = with(name, x, relu, frozen);
            case.op = Self { relu, frozen, parts: true }.into();
            case.inputs.push((TensorType::f32(Shape::new(parts, 1, 2, x.c)), Normal));
            case
        };
        let case = |name: &str, x: Shape, relu: bool| with(name, x, relu, None);
        vec![
            case("n3h11w7c4", Shape::new(3, 11, 7, 4), false),
            case("n3h11w7c36 relu", Shape::new(3, 11, 7, 36), true),
            case("rows1c4", Shape::rows(1, 4), false),
            case("rows31c2048 relu", Shape::rows(31, 2048), true),
            case("rows4097c8", Shape::new(1, 17, 241, 8), false),
            case("rows515c132 relu", Shape::new(5, 103, 1, 132), true),
            case("rows20007c4", Shape::new(27, 19, 39, 4), false),
            case("rows262144c4 relu", Shape::new(64, 64, 64, 4), true),
            with("n3h11w7c36 relu, frozen", Shape::new(3, 11, 7, 36), true, Some(1e-5)),
            with("rows1c4, frozen", Shape::rows(1, 4), false, Some(0.1)),
            given("sums given, n3h11w7c36 relu", Shape::new(3, 11, 7, 36), 4, true, None),
            given("sums given, rows7c132", Shape::rows(7, 132), 1, false, None),
            given("sums given, rows31c8, frozen", Shape::rows(31, 8), 3, false, Some(0.1)),
            // More parts than are merged at once.
            given("sums given, rows20007c4", Shape::new(27, 19, 39, 4), 5002, false, None),
        ]
    }
}

//! Divergence of the posterior from the prior, `KL(N(mu, std) || N(0, I))`, summed over latents, a
//! mean over the batch. With `root = exp(logvar / 2)`, `std = root + 1e-6`:
//!
//! ```text
//! y       = sum ((std^2 + mu^2 - 1) / 2 - ln std) / N
//! dmu     = dy * mu / N
//! dlogvar = dy * (std - 1 / std) * root / 2 / N
//! ```
//!
//! `kl_gaussians` is the divergence of one Gaussian from another, `KL(N(mu, std) || N(mu', std'))`,
//! without a gradient:
//! `y = sum ((std^2 + (mu - mu')^2) / (2 std'^2) - 1 / 2 - ln(std / std')) / N`.

use super::mse::parts;
use super::reparameterize::{STD_FLOOR, deviation};
use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Constant, Normal, Uniform};

/// Mean over the batch of the analytic divergence, of (mu, logvar).
#[derive(Clone, Debug, PartialEq)]
pub struct KlNormal;

impl OpDef for KlNormal {
    const NAME: &'static str = "kl_normal";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        same(Self::NAME, "logvar", inputs[0], inputs[1])?;
        Ok(vec![TensorType::f32(Shape::SCALAR)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (mu, logvar, n) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(0).n);
        let mut total = 0.0;
        for (mu, logvar) in mu.iter().zip(logvar) {
            let std = deviation(logvar.get());
            total += (std * std + mu.get() * mu.get() - 1.0) / 2.0 - std.ln();
        }
        call.outputs[0][0] = T::of(total / n as f64);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Some(dy) = node.dy[0] else { return vec![None; 2] };
        let grads = g.emit(KlNormalGrad.into(), &[dy, node.x[0], node.x[1]]);
        vec![node.wants[0].then_some(grads[0]), node.wants[1].then_some(grads[1])]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0, 1]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let n_parts = parts(shape.len());
        let mut l = Lowering::default();
        let partial = l.scratch(DType::F32, n_parts);
        let kernel = Kernel::new("kl_normal")
            .set("LEN", shape.len())
            .set("PARTS", n_parts)
            .set("FLOOR", STD_FLOOR);
        l.push(kernel, target.grid_1d(n_parts), &[Binding::Input(0), Binding::Input(1), partial]);
        let kernel =
            Kernel::new("sum_parts").set("PARTS", n_parts).set("SCALE", 1.0 / shape.n as f32);
        l.push(kernel, [1, 1, 1], &[partial, Binding::Output(0)]);
        l
    }
    fn cases() -> Vec<Case> {
        let (small, odd) = (Shape::rows(1, 4), Shape::rows(7, 36));
        vec![
            Case::new("n1c4", KlNormal, &[(small, Normal), (small, Normal)]),
            Case::new("n7c36", KlNormal, &[(odd, Normal), (odd, Normal)]),
            Case::new("n1c1", KlNormal, &[(Shape::SCALAR, Normal), (Shape::SCALAR, Normal)]),
            Case::new(
                "n257c128",
                KlNormal,
                &[(Shape::rows(257, 128), Normal), (Shape::rows(257, 128), Normal)],
            ),
            // Slack: WGSL bounds the error of exp(x) by 3 + 2|x| ulp, |x| is 15 here, and the
            // square doubles it.
            Case::new("logvar 30", KlNormal, &[(odd, Normal), (odd, Constant(30.0))]).slack(4.0),
            Case::new("logvar -30", KlNormal, &[(odd, Normal), (odd, Constant(-30.0))]),
            Case::new("logvar within 30", KlNormal, &[(odd, Normal), (odd, Uniform(-30.0, 30.0))])
                .forward_only()
                .slack(4.0),
        ]
    }
}

/// Gradients of mu and logvar, of (dy, mu, logvar).
#[derive(Clone, Debug, PartialEq)]
pub struct KlNormalGrad;

impl OpDef for KlNormalGrad {
    const NAME: &'static str = "kl_normal_grad";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        same(
            Self::NAME,
            "the gradient of the \
            divergence",
            TensorType::f32(Shape::SCALAR),
            inputs[0],
        )?;
        same(Self::NAME, "logvar", inputs[1], inputs[2])?;
        Ok(vec![inputs[1], inputs[1]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, mu, logvar) =
            (call.inputs[0].f()[0].get(), call.inputs[1].f(), call.inputs[2].f());
        let n = call.in_shape(1).n as f64;
        for i in 0..mu.len() {
            let std = deviation(logvar[i].get());
            call.outputs[0][i] = T::of(dy * mu[i].get() / n);
            call.outputs[1][i] =
                T::of(dy * (std - 1.0 / std) * (logvar[i].get() / 2.0).exp() / 2.0 / n);
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[1].shape;
        let vec4s = shape.len().div_ceil(4);
        let kernel = Kernel::new("kl_normal_grad")
            .set("LEN4", vec4s)
            .set("BATCH", shape.n as f32)
            .set("FLOOR", STD_FLOOR);
        let [dy, mu, logvar] = [0, 1, 2].map(Binding::Input);
        Lowering::one(
            kernel,
            target.grid_1d(vec4s),
            &[dy, mu, logvar, Binding::Output(0), Binding::Output(1)],
        )
    }
    fn cases() -> Vec<Case> {
        let inputs = |shape: Shape, logvar: Fill| {
            [(Shape::SCALAR, Normal), (shape, Normal), (shape, logvar)]
        };
        let odd = Shape::rows(7, 36);
        vec![
            Case::new("n1c4", KlNormalGrad, &inputs(Shape::rows(1, 4), Normal)),
            Case::new("n7c36", KlNormalGrad, &inputs(odd, Normal)),
            Case::new("n1c1", KlNormalGrad, &inputs(Shape::SCALAR, Normal)),
            // Slack: as the forward op.
            Case::new("logvar 30", KlNormalGrad, &inputs(odd, Constant(30.0))).slack(4.0),
            Case::new("logvar -30", KlNormalGrad, &inputs(odd, Constant(-30.0))).slack(4.0),
        ]
    }
}

/// Mean over the batch of the divergence of `N(mu, std)` from `N(mu', std')`, of (mu, logvar, mu',
/// logvar').
#[derive(Clone, Debug, PartialEq)]
pub struct KlGaussians;

impl OpDef for KlGaussians {
    const NAME: &'static str = "kl_gaussians";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 4)?;
        for (what, ty) in
            ["logvar", "the second mu", "the second logvar"].into_iter().zip(&inputs[1..])
        {
            same(Self::NAME, what, inputs[0], *ty)?;
        }
        Ok(vec![TensorType::f32(Shape::SCALAR)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let [mu, logvar, mu2, logvar2] = [0, 1, 2, 3].map(|i| call.inputs[i].f());
        let mut total = 0.0;
        for i in 0..mu.len() {
            let (std, std2) = (deviation(logvar[i].get()), deviation(logvar2[i].get()));
            let distance = mu[i].get() - mu2[i].get();
            total +=
                (std * std + distance * distance) / (2.0 * std2 * std2) - 0.5 - (std / std2).ln();
        }
        call.outputs[0][0] = T::of(total / call.in_shape(0).n as f64);
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let n_parts = parts(shape.len());
        let mut l = Lowering::default();
        let partial = l.scratch(DType::F32, n_parts);
        let kernel = Kernel::new("kl_gaussians")
            .set("LEN", shape.len())
            .set("PARTS", n_parts)
            .set("FLOOR", STD_FLOOR);
        let [mu, logvar, mu2, logvar2] = [0, 1, 2, 3].map(Binding::Input);
        l.push(kernel, target.grid_1d(n_parts), &[mu, logvar, mu2, logvar2, partial]);
        let kernel =
            Kernel::new("sum_parts").set("PARTS", n_parts).set("SCALE", 1.0 / shape.n as f32);
        l.push(kernel, [1, 1, 1], &[partial, Binding::Output(0)]);
        l
    }
    fn cases() -> Vec<Case> {
        let odd = Shape::rows(7, 36);
        let case = |name: &str, shape: Shape, logvar: [Fill; 2]| {
            Case::new(
                name,
                KlGaussians,
                &[(shape, Normal), (shape, logvar[0]), (shape, Normal), (shape, logvar[1])],
            )
        };
        vec![
            case("n1c1", Shape::SCALAR, [Normal; 2]),
            case("n7c36", odd, [Normal; 2]),
            case("n257c128", Shape::rows(257, 128), [Normal; 2]),
            Case::new(
                "equal",
                KlGaussians,
                &[Constant(0.3), Constant(-1.7), Constant(0.3), Constant(-1.7)]
                    .map(|fill| (odd, fill)),
            ),
            case("wide from narrow", odd, [Constant(3.0), Constant(-3.0)]),
            // Slack: two exponentials of up to 15 each (see `kl_normal`), and their quotient
            // squared.
            case("logvar within 30", odd, [Uniform(-30.0, 30.0); 2]).slack(8.0),
        ]
    }
}

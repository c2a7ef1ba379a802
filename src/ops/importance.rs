//! Importance weights of samples from the posterior. With K samples `z = mu + std * eps` of each of
//! N images `t`,
//!
//! ```text
//! ln w              = ln p(t|z) + ln p(z) - ln q(z|x)        and ln p(t) is about ln mean w
//! gaussian_log_prob:  ln p(t|z)          = -sum (t - x)^2 / (2 scale^2) - M (ln scale + ln(2 pi) / 2)        M = H*W*channels
//! latent_log_ratio:   ln p(z) - ln q(z|x) = sum ((eps - z) (eps + z) / 2 + ln std)                           ln(2 pi) cancels
//! ```
//!
//! `scale = exp(log_scale / 2) + 1e-6`, `std = exp(logvar / 2) + 1e-6`. Both have a row per sample
//! and no gradient: they measure.

use super::mse::images;
use super::reparameterize::{STD_FLOOR, deviation};
use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, activation,
    arity, same,
};
use crate::tensor::{Shape, TensorType};
use Fill::{Constant, Normal, Uniform};

/// `ln p(t|z)` of (reconstructions `[N*K, H, W, C]`, targets `[N, H, W, C]`, log_scale):
/// `[N, K, 1, 1]`. The K reconstructions of a target follow one another.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianLogProb {
    /// Channels that count; the others are padding.
    pub channels: usize,
}

impl OpDef for GaussianLogProb {
    const NAME: &'static str = "gaussian_log_prob";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        let (x, t) = (inputs[0].shape, inputs[1].shape);
        images(
            Self::NAME,
            inputs[0],
            TensorType { shape: Shape { n: x.n, ..t }, ..inputs[1] },
            self.channels,
        )?;
        same(Self::NAME, "log_scale", TensorType::f32(Shape::SCALAR), inputs[2])?;
        if x.is_empty() || !x.n.is_multiple_of(t.n) {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "{} reconstructions are no multiple of \
                {} targets",
                    x.n, t.n
                ),
            ));
        }
        Ok(vec![TensorType::f32(Shape::new(t.n, x.n / t.n, 1, 1))])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, t, shape) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(0));
        let samples = call.out_shape(0).h;
        let scale = deviation(call.inputs[2].f()[0].get());
        let half_ln_2pi = (2.0 * std::f64::consts::PI).ln() / 2.0;
        let len = shape.len() / shape.n;
        for (row, y) in call.outputs[0].iter_mut().enumerate() {
            let (x, t) = (&x[row * len..][..len], &t[row / samples * len..][..len]);
            let mut total = 0.0;
            for i in (0..len).filter(|i| i % shape.c < self.channels) {
                let d = (t[i].get() - x[i].get()) / scale;
                total += -d * d / 2.0 - scale.ln() - half_ln_2pi;
            }
            *y = T::of(total);
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let (shape, y) = (io.inputs[0].shape, io.outputs[0].shape);
        let kernel = Kernel::new("gaussian_log_prob")
            .set("ROWS", shape.n)
            .set("SAMPLES", y.h)
            .set("LEN4", shape.len() / shape.n / 4)
            .set("C4", shape.c / 4)
            .set("CHANNELS", self.channels)
            .set("COUNT", (shape.h * shape.w * self.channels) as f32)
            .set("FLOOR", STD_FLOOR);
        Lowering::one(
            kernel,
            target.groups_1d(shape.n),
            &[Binding::Input(0), Binding::Input(1), Binding::Input(2), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, channels: usize, x: Shape, n: usize, log_scale: Fill| {
            let inputs = [(x, Normal), (Shape { n, ..x }, Normal), (Shape::SCALAR, log_scale)];
            Case::new(name, GaussianLogProb { channels }, &inputs)
        };
        vec![
            case("n1k1h1w1c4 of 1", 1, Shape::rows(1, 4), 1, Normal),
            case("n3k1h5w7c4 of 3", 3, Shape::new(3, 5, 7, 4), 3, Normal),
            case("n2k3h3w11c12 of 9", 9, Shape::new(6, 3, 11, 12), 2, Normal),
            case("n1k7h2w2c4 of 3", 3, Shape::new(7, 2, 2, 4), 1, Uniform(-5.0, -4.9)),
            case("n8k16h32w32c4 of 3", 3, Shape::new(128, 32, 32, 4), 8, Constant(0.0)),
        ]
    }
}

/// `ln p(z) - ln q(z|x)` of (mu, logvar, eps), all `[N, K, 1, L]`: `[N, K, 1, 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentLogRatio;

impl OpDef for LatentLogRatio {
    const NAME: &'static str = "latent_log_ratio";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        activation(Self::NAME, "mu", inputs[0])?;
        same(Self::NAME, "logvar", inputs[0], inputs[1])?;
        same(Self::NAME, "eps", inputs[0], inputs[2])?;
        Ok(vec![TensorType::f32(Shape { c: 1, ..inputs[0].shape })])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (mu, logvar, eps, latent) =
            (call.inputs[0].f(), call.inputs[1].f(), call.inputs[2].f(), call.in_shape(0).c);
        let half_ln_2pi = (2.0 * std::f64::consts::PI).ln() / 2.0;
        for (row, y) in call.outputs[0].iter_mut().enumerate() {
            let mut total = 0.0;
            for i in row * latent..(row + 1) * latent {
                let (std, eps) = (deviation(logvar[i].get()), eps[i].get());
                let z = mu[i].get() + std * eps;
                let (prior, posterior) =
                    (-z * z / 2.0 - half_ln_2pi, -eps * eps / 2.0 - std.ln() - half_ln_2pi);
                total += prior - posterior;
            }
            *y = T::of(total);
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let kernel = Kernel::new("latent_log_ratio")
            .set("ROWS", shape.pixels())
            .set("L4", shape.c / 4)
            .set("FLOOR", STD_FLOOR);
        let bindings =
            [Binding::Input(0), Binding::Input(1), Binding::Input(2), Binding::Output(0)];
        Lowering::one(kernel, target.grid_1d(shape.pixels()), &bindings)
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, shape: Shape, logvar: Fill| {
            Case::new(name, LatentLogRatio, &[(shape, Normal), (shape, logvar), (shape, Normal)])
        };
        let odd = Shape::new(7, 3, 1, 36);
        vec![
            case("n1k1l4", Shape::rows(1, 4), Normal),
            case("n7k3l36", odd, Normal),
            case("n67k16l128", Shape::new(67, 16, 1, 128), Normal),
            case("logvar -30", odd, Constant(-30.0)),
            // Slack: as the divergence (kl.rs): WGSL bounds the error of exp(x) by 3 + 2|x| ulp,
            // and the square doubles it.
            case("logvar within 30", odd, Uniform(-30.0, 30.0)).slack(4.0),
        ]
    }
}

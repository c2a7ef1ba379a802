//! Log-likelihood of images under a Gaussian of one width, a mean over the batch.
//! `scale = exp(log_scale / 2) + 1e-6`: `log_scale` is a log variance. With `M = H*W*channels` and
//! `q = sum (t - x)^2 / N`:
//!
//! ```text
//! y            = -q / (2 scale^2) - M (ln scale + ln(2 pi) / 2)
//! dx           = dy * (t - x) / (N scale^2)                                 0 in the padding channels
//! dlog_scale   = dy * (q / scale^3 - M / scale) * exp(log_scale / 2) / 2
//! ```

use super::mse::{images, parts, squared_error};
use super::native::{scaled_difference, squared_distance};
use super::reparameterize::{STD_FLOOR, deviation};
use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Normal, Uniform};

/// Mean over the batch of `sum ln N(target; reconstruction, scale)`, of (reconstruction, target,
/// log_scale).
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianNll {
    /// Channels that count; the others are padding.
    pub channels: usize,
}

/// Squared error of an example, mean over the batch.
fn mean_squared_error<T: Real>(x: &[T], t: &[T], shape: Shape, channels: usize) -> f64 {
    let counts = |i: &usize| i % shape.c < channels;
    (0..shape.len()).filter(counts).map(|i| (t[i].get() - x[i].get()).powi(2)).sum::<f64>()
        / shape.n as f64
}

impl OpDef for GaussianNll {
    const NAME: &'static str = "gaussian_nll";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        images(Self::NAME, inputs[0], inputs[1], self.channels)?;
        same(Self::NAME, "log_scale", TensorType::f32(Shape::SCALAR), inputs[2])?;
        Ok(vec![inputs[2]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, t, shape) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(0));
        let scale = deviation(call.inputs[2].f()[0].get());
        let half_ln_2pi = (2.0 * std::f64::consts::PI).ln() / 2.0;
        let mut total = 0.0;
        for pixel in 0..shape.pixels() {
            for c in 0..self.channels {
                let i = pixel * shape.c + c;
                let d = (t[i].get() - x[i].get()) / scale;
                total += -d * d / 2.0 - scale.ln() - half_ln_2pi;
            }
        }
        call.outputs[0][0] = T::of(total / shape.n as f64);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (x, t, shape) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(0));
        let scale = deviation(f64::from(call.inputs[2].f()[0]));
        let q = squared_distance(x, t, shape.c, self.channels);
        let count = (shape.pixels() * self.channels) as f64;
        let constant = scale.ln() + (2.0 * std::f64::consts::PI).ln() / 2.0;
        call.outputs[0][0] =
            ((-q / (2.0 * scale * scale) - count * constant) / shape.n as f64) as f32;
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Some(dy) = node.dy[0].filter(|_| node.wants[0] || node.wants[2]) else {
            return vec![None; 3];
        };
        let grads = g.emit(
            GaussianNllGrad { channels: self.channels }.into(),
            &[dy, node.x[0], node.x[1], node.x[2]],
        );
        vec![node.wants[0].then_some(grads[0]), None, node.wants[2].then_some(grads[1])]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0, 2]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let mut l = Lowering::default();
        let q = l.scratch(DType::F32, 1);
        squared_error(&mut l, shape, self.channels, 1.0 / shape.n as f32, q, target);
        let kernel = Kernel::new("gaussian_nll")
            .set("COUNT", (shape.h * shape.w * self.channels) as f32)
            .set("FLOOR", STD_FLOOR);
        l.push(kernel, [1, 1, 1], &[q, Binding::Input(2), Binding::Output(0)]);
        l
    }
    fn cases() -> Vec<Case> {
        let inputs = |shape: Shape, log_scale: Fill| {
            [(shape, Normal), (shape, Normal), (Shape::SCALAR, log_scale)]
        };
        let odd = Shape::new(3, 5, 7, 4);
        vec![
            Case::new(
                "n1h1w1c4 of 1",
                GaussianNll { channels: 1 },
                &inputs(Shape::rows(1, 4), Normal),
            ),
            Case::new("n3h5w7c4 of 3", GaussianNll { channels: 3 }, &inputs(odd, Normal)),
            Case::new(
                "n2h3w11c12 of 9",
                GaussianNll { channels: 9 },
                &inputs(Shape::new(2, 3, 11, 12), Normal),
            ),
            Case::new(
                "log_scale -5",
                GaussianNll { channels: 3 },
                &inputs(odd, Uniform(-5.0, -4.9)),
            ),
            Case::new("log_scale 2", GaussianNll { channels: 3 }, &inputs(odd, Uniform(1.9, 2.0))),
            Case::new(
                "n67h32w32c4 of 3",
                GaussianNll { channels: 3 },
                &inputs(Shape::new(67, 32, 32, 4), Fill::Constant(0.0)),
            ),
        ]
    }
}

/// Gradients of the reconstruction and of `log_scale`, of (dy, reconstruction, target, log_scale).
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianNllGrad {
    /// Channels that count; the others get 0.
    pub channels: usize,
}

impl OpDef for GaussianNllGrad {
    const NAME: &'static str = "gaussian_nll_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![1], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 4)?;
        let scalar = TensorType::f32(Shape::SCALAR);
        same(Self::NAME, "the gradient of the log-likelihood", scalar, inputs[0])?;
        images(Self::NAME, inputs[1], inputs[2], self.channels)?;
        same(Self::NAME, "log_scale", scalar, inputs[3])?;
        Ok(vec![inputs[1], scalar])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, x, t) = (call.inputs[0].f()[0].get(), call.inputs[1].f(), call.inputs[2].f());
        let (log_scale, shape) = (call.inputs[3].f()[0].get(), call.in_shape(1));
        let scale = deviation(log_scale);
        for (i, dx) in call.outputs[0].iter_mut().enumerate() {
            let d = if i % shape.c < self.channels { t[i].get() - x[i].get() } else { 0.0 };
            *dx = T::of(dy * d / (shape.n as f64 * scale * scale));
        }
        let q = mean_squared_error(x, t, shape, self.channels);
        let count = (shape.h * shape.w * self.channels) as f64;
        call.outputs[1][0] =
            T::of(dy * (q / scale.powi(3) - count / scale) * (log_scale / 2.0).exp() / 2.0);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (dy, x, t) = (f64::from(call.inputs[0].f()[0]), call.inputs[1].f(), call.inputs[2].f());
        let (log_scale, shape) = (f64::from(call.inputs[3].f()[0]), call.in_shape(1));
        let scale = deviation(log_scale);
        let factor = (dy / (shape.n as f64 * scale * scale)) as f32;
        scaled_difference(call.outputs[0], t, x, factor, shape.c, self.channels);
        let q = squared_distance(x, t, shape.c, self.channels) / shape.n as f64;
        let count = (shape.h * shape.w * self.channels) as f64;
        call.outputs[1][0] =
            (dy * (q / scale.powi(3) - count / scale) * (log_scale / 2.0).exp() / 2.0) as f32;
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[1].shape;
        let (vec4s, n_parts) = (shape.len() / 4, parts(shape.len() / 4));
        let mut l = Lowering::default();
        let partial = l.scratch(DType::F32, n_parts);
        let q = l.scratch(DType::F32, 1);
        let kernel = Kernel::new("gaussian_nll_grad")
            .set("LEN4", vec4s)
            .set("PARTS", n_parts)
            .set("C4", shape.c / 4)
            .set("CHANNELS", self.channels)
            .set("BATCH", shape.n as f32)
            .set("FLOOR", STD_FLOOR);
        let [dy, x, t, log_scale] = [0, 1, 2, 3].map(Binding::Input);
        l.push(
            kernel,
            target.grid_1d(n_parts),
            &[dy, x, t, log_scale, Binding::Output(0), partial],
        );
        l.push(
            Kernel::new("sum_parts").set("PARTS", n_parts).set("SCALE", 1.0 / shape.n as f32),
            [1, 1, 1],
            &[partial, q],
        );
        let count = (shape.h * shape.w * self.channels) as f32;
        let kernel =
            Kernel::new("gaussian_nll_scale_grad").set("COUNT", count).set("FLOOR", STD_FLOOR);
        l.push(kernel, [1, 1, 1], &[dy, q, log_scale, Binding::Output(1)]);
        l
    }
    fn cases() -> Vec<Case> {
        let inputs = |shape: Shape, log_scale: Fill| {
            [(Shape::SCALAR, Normal), (shape, Normal), (shape, Normal), (Shape::SCALAR, log_scale)]
        };
        let odd = Shape::new(3, 5, 7, 4);
        vec![
            Case::new(
                "n1h1w1c4 of 1",
                GaussianNllGrad { channels: 1 },
                &inputs(Shape::rows(1, 4), Normal),
            ),
            Case::new("n3h5w7c4 of 3", GaussianNllGrad { channels: 3 }, &inputs(odd, Normal)),
            Case::new(
                "n2h3w11c12 of 9",
                GaussianNllGrad { channels: 9 },
                &inputs(Shape::new(2, 3, 11, 12), Normal),
            ),
            Case::new(
                "log_scale -5",
                GaussianNllGrad { channels: 3 },
                &inputs(odd, Fill::Constant(-5.0)),
            ),
            Case::new(
                "log_scale 2",
                GaussianNllGrad { channels: 3 },
                &inputs(odd, Fill::Constant(2.0)),
            ),
            Case::new(
                "n67h32w32c4 of 3",
                GaussianNllGrad { channels: 3 },
                &inputs(Shape::new(67, 32, 32, 4), Fill::Constant(0.0)),
            ),
        ]
    }
}

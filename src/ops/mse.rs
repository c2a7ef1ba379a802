//! Mean squared error over images whose stored channels beyond `channels` are padding.
//! With `M = N*H*W*channels`: `y = sum (x - t)^2 / M`, `dx = dy * 2 (x - t) / M`, 0 in the padding.

use super::native::{scaled_difference, squared_distance};
use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::Normal;

/// Checks a pair of images: vec4 channels, of which `channels` count.
pub(super) fn images(
    op: &'static str,
    x: TensorType,
    t: TensorType,
    channels: usize,
) -> Result<(), ShapeError> {
    same(op, "the target", x, t)?;
    if !x.shape.c.is_multiple_of(4) || channels == 0 || channels > x.shape.c {
        let message = format!(
            "{x} must store a multiple of 4 channels, at least the {channels} \
            (not 0) that count"
        );
        return Err(ShapeError::new(op, message));
    }
    Ok(())
}

/// First-stage partial sums over that many vec4s: a function of the shape alone, so the summation
/// order is.
pub(super) fn parts(vec4s: usize) -> usize {
    vec4s.div_ceil(16).clamp(1, 4096)
}

/// Adds the total of the squared errors of inputs 0 and 1, times `scale`, as a scratch scalar or
/// output.
pub(super) fn squared_error(
    l: &mut Lowering,
    shape: Shape,
    channels: usize,
    scale: f32,
    to: Binding,
    target: &Target,
) {
    let (vec4s, n_parts) = (shape.len() / 4, parts(shape.len() / 4));
    let partial = l.scratch(DType::F32, n_parts);
    let kernel = Kernel::new("squared_error")
        .set("LEN4", vec4s)
        .set("PARTS", n_parts)
        .set("C4", shape.c / 4)
        .set("CHANNELS", channels);
    l.push(kernel, target.grid_1d(n_parts), &[Binding::Input(0), Binding::Input(1), partial]);
    l.push(
        Kernel::new("sum_parts").set("PARTS", n_parts).set("SCALE", scale),
        [1, 1, 1],
        &[partial, to],
    );
}

/// Mean squared error of (reconstruction, target).
#[derive(Clone, Debug, PartialEq)]
pub struct Mse {
    /// Channels that count; the others are padding.
    pub channels: usize,
}

impl OpDef for Mse {
    const NAME: &'static str = "mse";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        images(Self::NAME, inputs[0], inputs[1], self.channels)?;
        Ok(vec![TensorType::f32(Shape::SCALAR)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, t, shape) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(0));
        let mut total = 0.0;
        for pixel in 0..shape.pixels() {
            for c in 0..self.channels {
                let i = pixel * shape.c + c;
                total += (x[i].get() - t[i].get()).powi(2);
            }
        }
        call.outputs[0][0] = T::of(total / (shape.pixels() * self.channels) as f64);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (x, t, shape) = (call.inputs[0].f(), call.inputs[1].f(), call.in_shape(0));
        let total = squared_distance(x, t, shape.c, self.channels);
        call.outputs[0][0] = (total / (shape.pixels() * self.channels) as f64) as f32;
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let dy = node.dy[0].filter(|_| node.wants[0]);
        vec![
            dy.map(|dy| {
                g.emit1(MseGrad { channels: self.channels }.into(), &[dy, node.x[0], node.x[1]])
            }),
            None,
        ]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let mut l = Lowering::default();
        let mean = 1.0 / (shape.pixels() * self.channels) as f32;
        squared_error(&mut l, shape, self.channels, mean, Binding::Output(0), target);
        l
    }
    fn cases() -> Vec<Case> {
        let pair = |shape: Shape| [(shape, Normal), (shape, Normal)];
        vec![
            Case::new("n1h1w1c4 of 1", Mse { channels: 1 }, &pair(Shape::rows(1, 4))),
            Case::new("n3h5w7c4 of 3", Mse { channels: 3 }, &pair(Shape::new(3, 5, 7, 4))),
            Case::new("n2h3w11c12 of 9", Mse { channels: 9 }, &pair(Shape::new(2, 3, 11, 12))),
            Case::new("n67h32w32c4 of 3", Mse { channels: 3 }, &pair(Shape::new(67, 32, 32, 4))),
        ]
    }
}

/// `dx = dy * 2 (x - t) / M` of (dy, reconstruction, target).
#[derive(Clone, Debug, PartialEq)]
pub struct MseGrad {
    /// Channels that count; the others get 0.
    pub channels: usize,
}

impl OpDef for MseGrad {
    const NAME: &'static str = "mse_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![1], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        same(Self::NAME, "the gradient of the loss", TensorType::f32(Shape::SCALAR), inputs[0])?;
        images(Self::NAME, inputs[1], inputs[2], self.channels)?;
        Ok(vec![inputs[1]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, x, t, shape) =
            (call.inputs[0].f()[0].get(), call.inputs[1].f(), call.inputs[2].f(), call.in_shape(1));
        let count = (shape.pixels() * self.channels) as f64;
        for (i, dx) in call.outputs[0].iter_mut().enumerate() {
            *dx = T::of(if i % shape.c < self.channels {
                dy * 2.0 * (x[i].get() - t[i].get()) / count
            } else {
                0.0
            });
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (dy, x, t, shape) = (
            f64::from(call.inputs[0].f()[0]),
            call.inputs[1].f(),
            call.inputs[2].f(),
            call.in_shape(1),
        );
        let factor = (2.0 * dy / (shape.pixels() * self.channels) as f64) as f32;
        scaled_difference(call.outputs[0], x, t, factor, shape.c, self.channels);
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[1].shape;
        let vec4s = shape.len() / 4;
        let factor = 2.0 / (shape.pixels() * self.channels) as f32;
        let kernel = Kernel::new("mse_grad")
            .set("LEN4", vec4s)
            .set("C4", shape.c / 4)
            .set("CHANNELS", self.channels)
            .set("FACTOR", factor);
        Lowering::one(
            kernel,
            target.grid_1d(vec4s),
            &[Binding::Input(0), Binding::Input(1), Binding::Input(2), Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        let inputs = |shape: Shape| [(Shape::SCALAR, Normal), (shape, Normal), (shape, Normal)];
        vec![
            Case::new("n1h1w1c4 of 1", MseGrad { channels: 1 }, &inputs(Shape::rows(1, 4))),
            Case::new("n3h5w7c4 of 3", MseGrad { channels: 3 }, &inputs(Shape::new(3, 5, 7, 4))),
            Case::new(
                "n2h3w11c12 of 9",
                MseGrad { channels: 9 },
                &inputs(Shape::new(2, 3, 11, 12)),
            ),
        ]
    }
}

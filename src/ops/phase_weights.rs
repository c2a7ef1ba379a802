//! Weights for a 3x3 convolution of an image whose pixels are repeated, applied to the image
//! itself. With twice the side
//!
//! ```text
//! conv2d(upsample_nearest(x), w, pad 1) = conv_transpose2d(x, v, stride 2, pad 1)
//! phase_weights:       v[c,a,b,o]  = sum of w[o,i,j,c] over 2-a <= i <= 3-a, 2-b <= j <= 3-b
//! phase_weights_grad:  dw[o,i,j,c] = sum of dv[c,a,b,o] over 2-i <= a <= 3-i, 2-j <= b <= 3-j
//! ```
//!
//! Of the three rows that a window covers two are copies of one row of `x`, so that their weights
//! can be added first: a pixel of `y` is a sum over 2x2 pixels of `x` instead of 3x3 copies, with
//! other weights for each of its four phases (even or odd row, even or odd column). `v` holds the
//! four as one 4x4 kernel. [`super::Conv2dInputGrad`] is the transposed convolution, and its
//! gradients are products of as few: 16 taps at the pixels of `x` stand for 9 at four times as
//! many.

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, activation, arity,
};
use crate::tensor::{Shape, TensorType};
use rayon::prelude::*;

/// Side of the convolution's kernel, and of the transposed one's.
const SIDE: usize = 3;
const PHASED: usize = 4;

/// How often each weight of the convolution's side is in each of the transposed one's: once where
/// the pixel that it multiplies is a copy of the same one.
const COPIES: [[f64; SIDE]; PHASED] = [[0., 0., 1.], [0., 1., 1.], [1., 1., 0.], [1., 0., 0.]];

fn exchanged(
    op: &'static str,
    inputs: &[TensorType],
    from: usize,
    to: usize,
) -> Result<Vec<TensorType>, ShapeError> {
    arity(op, inputs, 1)?;
    activation(op, "the weight", inputs[0])?;
    let w = inputs[0].shape;
    if [w.h, w.w] != [from; 2] || !w.n.is_multiple_of(4) {
        let message = format!(
            "the weight is {w}, expected a {from}x{from} kernel from and to multiples of 4 channels"
        );
        return Err(ShapeError::new(op, message));
    }
    Ok(vec![TensorType::f32(Shape::new(w.c, to, to, w.n))])
}

/// Sums over all weights of a pair of channels, each times its `copies` along either axis.
fn reference<T: Real>(call: &mut Call<'_, T>, copies: impl Fn(usize, usize) -> f64) {
    let (from, to) = (call.in_shape(0), call.out_shape(0));
    let w = call.inputs[0].f();
    for n in 0..from.n {
        for c in 0..from.c {
            for a in 0..to.h {
                for b in 0..to.w {
                    let mut sum = 0.0;
                    for i in 0..from.h {
                        for j in 0..from.w {
                            sum += copies(a, i) * copies(b, j) * w[from.at(n, i, j, c)].get();
                        }
                    }
                    call.outputs[0][to.at(c, a, b, n)] = T::of(sum);
                }
            }
        }
    }
}

/// The same by what is added alone, of a side `at` of the result.
fn native(call: &mut Call<'_, f32>) {
    let (from, to) = (call.in_shape(0), call.out_shape(0));
    let w = call.inputs[0].f();
    let added = |at: usize| 2_usize.saturating_sub(at)..=(3 - at).min(from.h - 1);
    call.outputs[0].par_chunks_mut(to.h * to.w * to.c).enumerate().for_each(|(c, v)| {
        v.fill(0.0);
        for (tap, v) in v.chunks_exact_mut(to.c).enumerate() {
            for i in added(tap / to.w) {
                for j in added(tap % to.w) {
                    v.iter_mut().enumerate().for_each(|(n, v)| *v += w[from.at(n, i, j, c)]);
                }
            }
        }
    });
}

fn lower(io: &Io, target: &Target) -> Lowering {
    let (from, to) = (io.inputs[0].shape, io.outputs[0].shape);
    let kernel = Kernel::new("phase_weights")
        .set("FROM", from.n)
        .set("TO", from.c)
        .set("SIDE", from.h)
        .set("PHASED", to.h);
    Lowering::one(kernel, target.grid_1d(to.len() / 4), &[Binding::Input(0), Binding::Output(0)])
}

/// `v` of a convolution's weights `w [O, 3, 3, C]`: `[C, 4, 4, O]`, as a transposed convolution
/// takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseWeights;

impl OpDef for PhaseWeights {
    const NAME: &'static str = "phase_weights";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        exchanged(Self::NAME, inputs, SIDE, PHASED)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        reference(call, |a, i| COPIES[a][i]);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        native(call);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![node.dy[0].map(|dv| g.emit1(PhaseWeightsGrad.into(), &[dv]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        lower(io, target)
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, o, c| {
            Case::new(name, Self, &[(Shape::new(o, SIDE, SIDE, c), Fill::Normal)])
        };
        vec![case("o4c4", 4, 4), case("o12c20", 12, 20), case("o68c36", 68, 36)]
    }
}

/// Gradient of [`PhaseWeights`] in `w`.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseWeightsGrad;

impl OpDef for PhaseWeightsGrad {
    const NAME: &'static str = "phase_weights_grad";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        exchanged(Self::NAME, inputs, PHASED, SIDE)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        reference(call, |i, a| COPIES[a][i]);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        native(call);
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        lower(io, target)
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, o, c| {
            Case::new(name, Self, &[(Shape::new(c, PHASED, PHASED, o), Fill::Normal)])
        };
        vec![case("o4c4", 4, 4), case("o12c20", 12, 20), case("o68c36", 68, 36)]
    }
}

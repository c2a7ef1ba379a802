//! The sampled latent. `z = mu + std * eps`, `std = exp(logvar / 2) + 1e-6`, so
//! `dmu = dz`, `dlogvar = dz * eps * exp(logvar / 2) / 2`.

use super::pointwise::elementwise;
use super::{
    Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target,
    ValueId, arity, same,
};
use crate::tensor::{Shape, TensorType};
use Fill::{Normal, Uniform};

/// Added to a standard deviation that comes from a log variance.
pub(super) const STD_FLOOR: f32 = 1e-6;

/// `exp(log_variance / 2) + 1e-6`.
pub(super) fn deviation(log_variance: f64) -> f64 {
    (log_variance / 2.0).exp() + f64::from(STD_FLOOR)
}

fn three_alike(op: &'static str, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
    arity(op, inputs, 3)?;
    same(op, "the second input", inputs[0], inputs[1])?;
    same(op, "the third input", inputs[0], inputs[2])?;
    Ok(vec![inputs[0]])
}

/// `z = mu + (exp(logvar / 2) + 1e-6) * eps` of (mu, logvar, eps).
#[derive(Clone, Debug, PartialEq)]
pub struct Reparameterize;

impl OpDef for Reparameterize {
    const NAME: &'static str = "reparameterize";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        three_alike(Self::NAME, inputs)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (mu, logvar, eps) = (call.inputs[0].f(), call.inputs[1].f(), call.inputs[2].f());
        for (i, z) in call.outputs[0].iter_mut().enumerate() {
            *z = T::of(mu[i].get() + deviation(logvar[i].get()) * eps[i].get());
        }
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Some(dz) = node.dy[0] else { return vec![None; 3] };
        let dlogvar =
            node.wants[1].then(|| g.emit1(ReparameterizeGrad.into(), &[dz, node.x[1], node.x[2]]));
        vec![node.wants[0].then_some(dz), dlogvar, None]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0, 1]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("reparameterize").set("FLOOR", STD_FLOOR), io, target)
    }
    fn cases() -> Vec<Case> {
        let odd = Shape::rows(7, 36);
        vec![
            Case::new("n1c4", Reparameterize, &[(Shape::rows(1, 4), Normal); 3]),
            Case::new("n7c36", Reparameterize, &[(odd, Normal); 3]),
            Case::new("n1c5", Reparameterize, &[(Shape::rows(1, 5), Normal); 3]),
            // Slack: WGSL bounds the error of exp(x) by 3 + 2|x| ulp, and |x| reaches 15 here.
            Case::new(
                "logvar within 30",
                Reparameterize,
                &[(odd, Normal), (odd, Uniform(-30.0, 30.0)), (odd, Normal)],
            )
            .slack(2.0),
        ]
    }
}

/// `dlogvar = dz * eps * exp(logvar / 2) / 2` of (dz, logvar, eps).
#[derive(Clone, Debug, PartialEq)]
pub struct ReparameterizeGrad;

impl OpDef for ReparameterizeGrad {
    const NAME: &'static str = "reparameterize_grad";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        three_alike(Self::NAME, inputs)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dz, logvar, eps) = (call.inputs[0].f(), call.inputs[1].f(), call.inputs[2].f());
        for (i, d) in call.outputs[0].iter_mut().enumerate() {
            *d = T::of(dz[i].get() * eps[i].get() * (logvar[i].get() / 2.0).exp() / 2.0);
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("reparameterize_grad"), io, target)
    }
    fn cases() -> Vec<Case> {
        let odd = Shape::rows(7, 36);
        vec![
            Case::new("n1c4", ReparameterizeGrad, &[(Shape::rows(1, 4), Normal); 3]),
            Case::new("n7c36", ReparameterizeGrad, &[(odd, Normal); 3]),
            // Slack: as the forward op.
            Case::new(
                "logvar within 30",
                ReparameterizeGrad,
                &[(odd, Normal), (odd, Uniform(-30.0, 30.0)), (odd, Normal)],
            )
            .slack(2.0),
        ]
    }
}

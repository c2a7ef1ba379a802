//! Dynamic scale of the loss, for gradients that are stored as f16 on their way: its smallest
//! positive number is 2^-24, and what is smaller is lost. The gradient of the loss starts from the
//! scale `s`, a power of two, in place of 1, so every gradient is `s` times itself; the update
//! takes it without. Per step:
//!
//! ```text
//! failed   the loss is not finite, a step before has failed, or a gradient is not finite at s = least
//! skipped  a gradient is not finite: s = s / 2, good = 0, skipped = skipped + 1
//! good     good = good + 1; after `growth` of them s = min(2 s, most), good = 0
//! ```
//!
//! as PyTorch's `GradScaler`, which has neither a least scale nor a failure. The factor that
//! gradients are multiplied with ([`super::ScaleBy`]) is `1 / s` of the step's own scale in a good
//! step, exactly, and NaN in the others: it is the guard of the optimiser too, so these leave
//! weights and moments as they are. A step that failed leaves the scale alone, so that it can be
//! run again to find the tensor that began it. From the largest scale, at most `log2(most / least)`
//! steps in a row are skipped.
//!
//! Two things move in a step that is skipped, as in PyTorch: the running statistics of BatchNorm,
//! and the learning rate's schedule. One differs: Adam's bias correction counts the steps that were
//! skipped, so the first updates after a few skipped steps are smaller than PyTorch's.

use rayon::prelude::*;

use super::all_finite::{has_bad, lower_flags};
use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Alternate, Constant, Normal};

/// Elements of a task of the native version.
const CHUNK: usize = 1 << 16;

/// Checks the gradients `x` and moves the scale; inputs (state, flag, loss, x…), updating the state
/// `[s, good, skipped]` and the flag, 0 or NaN once a step has failed. Its third output is the
/// factor. Each `x` is a tensor of any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct LossScale {
    /// Good steps in a row after which the scale doubles.
    pub growth: u32,
    /// Smallest scale, a power of two.
    pub least: f32,
    /// Largest scale, a power of two.
    pub most: f32,
}

/// Elements of the state: the scale, the good steps in a row, the skipped steps in all.
const STATE: usize = 3;

impl LossScale {
    /// The state after a step, and whether the step was good, skipped (`Some(false)`) or failed.
    fn after(
        &self,
        [scale, good, skipped]: [f64; STATE],
        fails: bool,
        overflows: bool,
    ) -> ([f64; STATE], Option<bool>) {
        if fails || overflows && scale <= f64::from(self.least) {
            ([scale, good, skipped], None)
        } else if overflows {
            ([scale / 2.0, 0.0, skipped + 1.0], Some(false))
        } else if good + 1.0 >= f64::from(self.growth) {
            ([(2.0 * scale).min(f64::from(self.most)), 0.0, skipped], Some(true))
        } else {
            ([scale, good + 1.0, skipped], Some(true))
        }
    }

    /// Writes the outputs of a step.
    fn step<T: Real>(&self, call: &mut Call<'_, T>, overflows: bool) {
        let loss = call.inputs[2].f()[0].get();
        let [state, flag, factor] = &mut call.outputs[..] else { unreachable!("three outputs") };
        let fails = !(flag[0].get().is_finite() && loss.is_finite());
        let before = [state[0].get(), state[1].get(), state[2].get()];
        let (after, good) = self.after(before, fails, overflows);
        state.iter_mut().zip(after).for_each(|(state, after)| *state = T::of(after));
        flag[0] = T::of(if good.is_none() { f64::NAN } else { 0.0 });
        factor[0] = T::of(if good == Some(true) { 1.0 / before[0] } else { f64::NAN });
    }
}

impl OpDef for LossScale {
    const NAME: &'static str = "loss_scale";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let [state, flag, loss, x @ ..] = inputs else {
            let message = format!("takes a state, a flag, a loss and tensors, got {inputs:?}");
            return Err(ShapeError::new(Self::NAME, message));
        };
        let scalar = TensorType::f32(Shape::SCALAR);
        same(Self::NAME, "the state", TensorType::f32(Shape::vector(STATE)), *state)?;
        same(Self::NAME, "the flag", scalar, *flag)?;
        same(Self::NAME, "the loss", scalar, *loss)?;
        match x.iter().find(|x| x.dtype != DType::F32 || x.shape.is_empty()) {
            Some(x) => {
                Err(ShapeError::new(Self::NAME, format!("a tensor is {x}, expected floats")))
            }
            None if x.is_empty() => Err(ShapeError::new(Self::NAME, "there is no gradient")),
            None => Ok(vec![*state, *flag, scalar]),
        }
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1)]
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let finite = |x: &T| x.get().is_finite();
        let overflows = !call.inputs[3..].iter().all(|x| x.f().iter().all(finite));
        self.step(call, overflows);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let overflows = call.inputs[3..].iter().any(|x| x.f().par_chunks(CHUNK).any(has_bad));
        self.step(call, overflows);
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let mut l = Lowering::default();
        let (flags, count) = lower_flags(&mut l, io, 3, target);
        let kernel = Kernel::new("loss_scale")
            .set("COUNT", count)
            .set("GROWTH", self.growth as f32)
            .set("LEAST", self.least)
            .set("MOST", self.most);
        let [state, flag, factor] = [0, 1, 2].map(Binding::Output);
        l.push(kernel, [1, 1, 1], &[flags, Binding::Input(2), state, flag, factor]);
        l
    }
    fn cases() -> Vec<Case> {
        let op = Self { growth: 2000, least: 1.0, most: 16_777_216.0 };
        let case = |name: &str, scale: f32, good: f32, x: &[(Shape, Fill)]| {
            // The skipped steps are as many as the scale.
            let state = (Shape::vector(STATE), Alternate(scale, good));
            let mut inputs = vec![state, (Shape::SCALAR, Constant(0.0)), (Shape::SCALAR, Normal)];
            inputs.extend(x);
            Case::new(name, op.clone(), &inputs)
        };
        let vector = Shape::vector;
        vec![
            case("p1", 65_536.0, 0.0, &[(vector(1), Normal)]),
            case("p1031, before the scale grows", 1.0, 1998.0, &[(vector(1031), Normal)]),
            case(
                "two of odd lengths, the scale grows",
                1.0,
                1999.0,
                &[(vector(3), Normal), (Shape::new(3, 5, 7, 2), Normal)],
            ),
            case(
                "p300007, the scale is the largest",
                16_777_216.0,
                1999.0,
                &[(vector(300_007), Alternate(f32::MAX, -1e-45))],
            ),
            case("p5000000, passes over flags", 4.0, 7.0, &[(vector(5_000_000), Constant(1.0))]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP: LossScale = LossScale { growth: 3, least: 1.0, most: 8.0 };

    #[test]
    fn takes_a_state_a_flag_a_loss_and_floats() {
        let (state, scalar) =
            (TensorType::f32(Shape::vector(STATE)), TensorType::f32(Shape::SCALAR));
        let x = TensorType::f32(Shape::vector(7));
        assert!(OP.outputs(&[state, scalar, scalar, x, x]).is_ok());
        for inputs in [
            &[][..],
            &[state, scalar, scalar],
            &[scalar, scalar, scalar, x],
            &[state, scalar, x, x],
            &[state, scalar, scalar, TensorType::u32(x.shape)],
        ] {
            assert!(OP.outputs(inputs).is_err(), "{inputs:?}");
        }
    }

    /// A run whose fourth and fifth steps overflow grows again, and never beyond the largest scale.
    #[test]
    fn the_scale_halves_and_doubles() {
        let mut state = [4.0, 0.0, 0.0];
        let overflows = |step| step == 3 || step == 4;
        let scales: Vec<f64> = (0..15)
            .map(|step| {
                let (after, good) = OP.after(state, false, overflows(step));
                assert_eq!(good, Some(!overflows(step)), "step {step}");
                state = after;
                state[0]
            })
            .collect();
        let want = [4, 4, 8, 4, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8].map(f64::from);
        assert_eq!(scales, want);
        assert_eq!(state[1..], [1.0, 2.0]);
    }

    /// What fails leaves the state as it was, for the step to be run again.
    #[test]
    fn a_step_fails_where_no_scale_is_left() {
        for (scale, fails, overflows) in [(1.0, false, true), (8.0, true, true), (8.0, true, false)]
        {
            let state = [scale, 2.0, 5.0];
            assert_eq!(OP.after(state, fails, overflows), (state, None));
        }
        let mut state = [8.0, 0.0, 0.0];
        let skips = (0..10).take_while(|_| {
            let (after, good) = OP.after(state, false, true);
            state = after;
            good.is_some()
        });
        assert_eq!(skips.count(), 3, "log2(most / least) steps at most are skipped in a row");
    }
}

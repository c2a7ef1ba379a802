//! Whether everything is finite, as a flag that guards an update: 0 while every element of the
//! inputs has been finite, NaN ever after one was not.
//!
//! The flag outlives the step, so the weights stay those of the first step that failed: the host,
//! which looks at the flags of many steps at once, can run that step again and find the tensor that
//! began it.

use rayon::prelude::*;

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, WORKGROUP,
    native::simd, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Constant, Normal, Uniform};

/// Elements of a task of the native version.
const CHUNK: usize = 1 << 16;
/// `vec4`s that an invocation of `all_finite_flags.wgsl` reads.
const DEPTH: usize = 16;
/// Words that the one workgroup of `all_finite.wgsl` reads at most.
const LAST: usize = 1 << 14;

/// `flag = 0 if flag and every x are finite, else NaN`; inputs (flag, x…), updating the flag. Each
/// `x` is a tensor of any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct AllFinite;

/// Whether the exponent bits of an element are all set.
pub(super) fn has_bad(x: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    simd(
        #[inline(always)]
        || x.iter().fold(0, |bad, x| bad | u32::from(x.to_bits() & EXPONENT == EXPONENT)) != 0,
    )
}

/// Words that a pass over `len` elements leaves: one for each invocation.
fn flags(len: usize) -> usize {
    let wg = WORKGROUP as usize;
    len.div_ceil(4 * DEPTH * wg) * wg
}

/// Passes over the inputs from the `skip`th on; returns the words that say which of their elements
/// are not finite, and how many words these are: few enough for one workgroup.
pub(super) fn lower_flags(
    l: &mut Lowering,
    io: &Io,
    skip: usize,
    target: &Target,
) -> (Binding, usize) {
    let mut count: usize = io.inputs[skip..].iter().map(|x| flags(x.shape.len())).sum();
    let mut words = l.scratch(DType::U32, count);
    let pass = |l: &mut Lowering, len: usize, first: usize, from: Binding, to: Binding| {
        let kernel =
            Kernel::new("all_finite_flags").set("LEN", len).set("DEPTH", DEPTH).set("FIRST", first);
        l.push(kernel, target.grid_1d(flags(len)), &[from, to]);
    };
    let mut first = 0;
    for (i, x) in io.inputs.iter().enumerate().skip(skip) {
        pass(l, x.shape.len(), first, Binding::Input(i), words);
        first += flags(x.shape.len());
    }
    while count > LAST {
        let fewer = l.scratch(DType::U32, flags(count));
        pass(l, count, 0, words, fewer);
        (count, words) = (flags(count), fewer);
    }
    (words, count)
}

impl OpDef for AllFinite {
    const NAME: &'static str = "all_finite";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let [flag, x @ ..] = inputs else {
            return Err(ShapeError::new(
                Self::NAME,
                "takes a flag \
            and tensors, got nothing",
            ));
        };
        same(Self::NAME, "the flag", TensorType::f32(Shape::SCALAR), *flag)?;
        match x.iter().find(|x| x.dtype != DType::F32 || x.shape.is_empty()) {
            Some(x) => Err(ShapeError::new(
                Self::NAME,
                format!(
                    "a tensor is {x}, expected \
                floats"
                ),
            )),
            None if x.is_empty() => Err(ShapeError::new(
                Self::NAME,
                "there is no tensor beside the \
                flag",
            )),
            None => Ok(vec![*flag]),
        }
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let finite = |x: &T| x.get().is_finite();
        let all = call.outputs[0].iter().all(finite)
            && call.inputs[1..].iter().all(|x| x.f().iter().all(finite));
        call.outputs[0][0] = T::of(if all { 0.0 } else { f64::NAN });
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let bad = has_bad(call.outputs[0])
            || call.inputs[1..].iter().any(|x| x.f().par_chunks(CHUNK).any(has_bad));
        call.outputs[0][0] = if bad { f32::NAN } else { 0.0 };
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let mut l = Lowering::default();
        let (words, count) = lower_flags(&mut l, io, 1, target);
        l.push(
            Kernel::new("all_finite").set("COUNT", count),
            [1, 1, 1],
            &[words, Binding::Output(0)],
        );
        l
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[(Shape, Fill)]| {
            let mut inputs = vec![(Shape::SCALAR, Constant(0.0))];
            inputs.extend(x);
            Case::new(name, Self, &inputs)
        };
        let vector = Shape::vector;
        vec![
            case("p1", &[(vector(1), Normal)]),
            case("loss and p64", &[(Shape::SCALAR, Normal), (vector(64), Normal)]),
            case(
                "three of odd lengths",
                &[(vector(3), Normal), (vector(1031), Normal), (Shape::new(3, 5, 7, 2), Normal)],
            ),
            case("p300007", &[(vector(300_007), Normal)]),
            case("p5000000, passes over flags", &[(vector(5_000_000), Constant(1.0))]),
            case(
                "the largest and the smallest \
                floats",
                &[(vector(68), Fill::Alternate(f32::MAX, -1e-45))],
            ),
            case("large and small", &[(vector(100), Uniform(-1e38, 1e38))]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_flag_and_floats() {
        let (flag, x) = (TensorType::f32(Shape::SCALAR), TensorType::f32(Shape::vector(7)));
        assert!(AllFinite.outputs(&[flag, x, flag]).is_ok());
        for inputs in [
            &[][..],
            &[flag],
            &[x, x],
            &[flag, TensorType::u32(x.shape)],
            &[flag, TensorType::f32(Shape::vector(0))],
        ] {
            assert!(AllFinite.outputs(inputs).is_err(), "{inputs:?}");
        }
    }
}

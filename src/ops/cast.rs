//! `cast: y = x`, of several tensors at once: what a copy in another type of the elements takes.

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, WORKGROUP,
    arity,
};
use crate::tensor::{Shape, TensorType};
use Fill::{Alternate, Normal};

/// Pairs of a tensor and its copy that `cast.wgsl` binds at most, and what it calls those behind
/// the first.
const PAIRS: usize = 8;
const PRESENT: [&str; PAIRS - 1] = ["PAIR1", "PAIR2", "PAIR3", "PAIR4", "PAIR5", "PAIR6", "PAIR7"];
const LENGTHS: [&str; PAIRS] = ["LEN0", "LEN1", "LEN2", "LEN3", "LEN4", "LEN5", "LEN6", "LEN7"];
/// `vec4`s of an invocation.
const EACH: usize = 4;

/// The same elements of each tensor, to be stored as a 16-bit float: weights as they are multiplied
/// ([`crate::ir::half`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// Inputs, and as many outputs.
    pub tensors: usize,
}

impl OpDef for Cast {
    const NAME: &'static str = "cast";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![], (0..self.tensors).collect()]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, self.tensors)?;
        Ok(inputs.to_vec())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        for (y, x) in call.outputs.iter_mut().zip(&call.inputs) {
            y.copy_from_slice(x.f());
        }
    }
    /// As many tensors a dispatch as the device binds.
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let most = PAIRS.min(target.storage_buffers / 2);
        let all: Vec<usize> = (0..self.tensors).collect();
        let mut l = Lowering::default();
        for tensors in all.chunks(most) {
            let mut kernel = Kernel::new("cast").set("EACH", EACH);
            let (mut groups, mut bindings) = (0, Vec::new());
            for (&tensor, name) in tensors.iter().zip(LENGTHS) {
                let vec4s = io.outputs[tensor].shape.len().div_ceil(4);
                groups += vec4s.div_ceil(EACH * WORKGROUP as usize);
                kernel = kernel.set(name, vec4s);
                bindings.extend([Binding::Input(tensor), Binding::Output(tensor)]);
            }
            for name in &PRESENT[..tensors.len() - 1] {
                kernel = kernel.set(name, true);
            }
            l.push(kernel, target.groups_1d(groups), &bindings);
        }
        l
    }
    fn cases() -> Vec<Case> {
        let odd = Shape::new(3, 11, 7, 4);
        let one = |name: &str, fill| Case::new(name, Self { tensors: 1 }, &[(odd, fill)]);
        let many = |name: &str, lengths: &[usize]| {
            let inputs: Vec<_> = lengths.iter().map(|n| (Shape::vector(*n), Normal)).collect();
            Case::new(name, Self { tensors: lengths.len() }, &inputs)
        };
        vec![
            one("n3h11w7c4", Normal),
            // Ties go to the even neighbour, in f16 and in bf16.
            one("between two f16", Alternate(1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0)),
            one("between two bf16", Alternate(1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0)),
            one("beyond the largest f16", Alternate(65_519.0, -65_519.0)),
            many("a dispatch of baseline webgpu", &[5, 1, 1024, 64]),
            // Whole workgroups, one element more and one fewer.
            many("more than one dispatch", &[1024, 1, 1025, 2049, 1023, 3, 9000, 17, 6]),
            many(
                "three dispatches",
                &[7, 1030, 2, 64, 130, 5, 4096, 1, 66, 3, 2050, 8, 1, 1, 31, 4, 9],
            ),
        ]
    }
}

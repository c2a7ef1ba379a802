//! What the host wants to know of a step, kept on the device until it asks: row `serial % rows` of
//! a ring becomes `(serial & 0xffff, serial >> 16, value_0, value_1, …)`.
//!
//! It is the last op of every plan. The host reads the ring once in many steps, so it never waits
//! for one; and a row that does not hold the serial number of its run says that the device did not
//! carry out what it reported as done (Metal completes a command buffer that its watchdog has
//! killed without an error).

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, same,
};
use crate::tensor::{Shape, TensorType};

/// Words of a row before the values: the two halves of the serial number, each exact in an f32.
pub const STAMP: usize = 2;
/// Values of one dispatch: with the ring, one less than the 8 storage buffers of baseline WebGPU.
const VALUES: usize = 6;

/// Writes a row of the ring; inputs the ring `[rows, 1, 1, 2 + values]`, updated in place, and the
/// scalars.
#[derive(Clone, Debug, PartialEq)]
pub struct Record;

impl OpDef for Record {
    const NAME: &'static str = "record";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let Some((ring, values)) = inputs.split_first() else {
            return Err(ShapeError::new(Self::NAME, "takes a ring and scalars, got nothing"));
        };
        let rows = Shape::rows(ring.shape.n, STAMP + values.len());
        same(Self::NAME, "the ring", TensorType::f32(rows), *ring)?;
        for value in values {
            same(Self::NAME, "a value", TensorType::f32(Shape::SCALAR), *value)?;
        }
        Ok(vec![*ring])
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (shape, serial) = (call.out_shape(0), call.step.serial);
        let at = serial as usize % shape.n * shape.c;
        let row = &mut call.outputs[0][at..at + shape.c];
        row[0] = T::of(f64::from(serial & 0xffff));
        row[1] = T::of(f64::from(serial >> 16));
        for (to, value) in row[STAMP..].iter_mut().zip(&call.inputs[1..]) {
            *to = value.f()[0];
        }
    }
    fn lower(&self, io: &Io, _target: &Target) -> Lowering {
        const PRESENT: [&str; VALUES] = ["V0", "V1", "V2", "V3", "V4", "V5"];
        let (ring, values) = (io.inputs[0].shape, io.inputs.len() - 1);
        let mut l = Lowering::default();
        // A plan without scalars still leaves its stamp.
        for first in (0..values.max(1)).step_by(VALUES) {
            let count = VALUES.min(values - first);
            let mut kernel = Kernel::new("record")
                .set("ROWS", ring.n)
                .set("WIDTH", ring.c)
                .set("COLUMN", STAMP + first)
                // The stamp comes with the last values: before it, the step is not done.
                .set("STAMP", first + count == values);
            for name in &PRESENT[..count] {
                kernel = kernel.set(name, true);
            }
            let mut bindings = vec![Binding::Output(0), Binding::Step];
            bindings.extend((first..first + count).map(|v| Binding::Input(1 + v)));
            l.push(kernel, [1, 1, 1], &bindings);
        }
        l
    }
    fn cases() -> Vec<Case> {
        let case = |rows: usize, values: usize| {
            let mut inputs = vec![(Shape::rows(rows, STAMP + values), Fill::Normal)];
            inputs.extend(vec![(Shape::SCALAR, Fill::Normal); values]);
            Case::new(format!("r{rows}v{values}"), Self, &inputs)
        };
        vec![case(64, 4), case(1, 0), case(7, 6), case(5, 7), case(3, 13)]
    }
}

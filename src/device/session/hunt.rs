//! The hunt for the first tensor that is not finite.

use std::rc::Rc;

use super::{PlanId, Session};
use crate::device::{BufferId, DeviceError, Values};
use crate::ops::StepUniforms;
use crate::plan::{Place, PlannedOp};
use crate::tensor::TensorType;

impl Session {
    /// Runs a step op by op and reports the first tensor that holds a NaN or an infinity. What an
    /// op only updates, like running statistics in training, is not to blame for what it held
    /// before.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn first_non_finite(
        &mut self,
        id: PlanId,
        step: &StepUniforms,
    ) -> Result<Option<String>, DeviceError> {
        let (plan, program) = (Rc::clone(&self.plans[&id.0].plan), self.plans[&id.0].program);
        let updates =
            |op: &PlannedOp, input: usize| op.op.in_place().iter().any(|pair| pair.0 == input);
        for state in &plan.layout.states {
            let reads = |op: &PlannedOp| {
                let inputs = op.inputs.iter().enumerate();
                inputs.into_iter().any(|(i, x)| {
                    matches!(x.1, Place::State(r) if r.overlaps(&state.range)) && !updates(op, i)
                })
            };
            let read = plan.ops.iter().any(reads);
            let buffer = self.state(state.range.group)?;
            if read && self.is_bad((buffer, state.range.offset), TensorType::f32(state.shape))? {
                return Ok(Some(state.name.clone()));
            }
        }
        for (i, op) in plan.ops.iter().enumerate() {
            let mut before = Vec::new();
            for &(_, output) in op.op.in_place() {
                let place = self.plans[&id.0].bound.place(op.outputs[output].1);
                if self.is_bad(place, op.io.outputs[output])? {
                    before.push(output);
                }
            }
            self.device.run(program, i..i + 1, step, false)?;
            for (output, ((value, place), ty)) in op.outputs.iter().zip(&op.io.outputs).enumerate()
            {
                // What nobody reads is nobody's fault, and `reference` poisons it at once.
                let read = plan.ops[i + 1..].iter().any(|s| s.inputs.iter().any(|x| x.0 == *value))
                    || plan.outputs.iter().any(|y| y.value == *value)
                    || matches!(place, Place::State(_));
                let place = self.plans[&id.0].bound.place(*place);
                if read && !before.contains(&output) && self.is_bad(place, *ty)? {
                    return Ok(Some(op.label.clone()));
                }
            }
        }
        Ok(None)
    }

    fn is_bad(&mut self, place: (BufferId, usize), ty: TensorType) -> Result<bool, DeviceError> {
        Ok(match self.fetch_tensor(place, ty)? {
            Values::F32(x) => x.iter().any(|x| !x.is_finite()),
            Values::F64(x) => x.iter().any(|x| !x.is_finite()),
        })
    }
}

//! A step beside its ops one by one: what a kernel of another maker writes where it should not, and
//! what goes wrong only when kernels follow each other without a pause.

use std::rc::Rc;

use super::{PlanId, Session};
use crate::device::DeviceError;
use crate::ir::{Group, Range};
use crate::ops::StepUniforms;
use crate::plan::Place;

/// What ops fill one after the other, tensor beside tensor.
const FILLED: [Group; 3] = [Group::Buffer, Group::Grad, Group::Accumulated];

impl Session {
    /// Runs a step op by op and looks after each whether it has written anything beside its own
    /// results; then runs it at once, twice, as it is trained, and compares what it leaves, bit
    /// for bit. `Ok(None)` if nothing differs, else what does. `begin` sets the state that a step
    /// begins with, all of it: it is called before each run. Reads every gradient after every
    /// op that makes one.
    ///
    /// # Errors
    /// If the driver fails, or `begin`.
    pub fn compare_step<E: From<DeviceError>>(
        &mut self,
        id: PlanId,
        step: &StepUniforms,
        mut begin: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<Option<String>, E> {
        begin(self)?;
        if let Some(beyond) = self.writes_beyond(id, step)? {
            return Ok(Some(beyond));
        }
        let apart = self.groups(Group::ALL)?;
        // A device may run a step kernel by kernel at first and as one from then on.
        for how in ["at once", "at once for the second time"] {
            begin(self)?;
            self.run(id, step)?;
            let whole = self.groups(Group::ALL)?;
            let differs = apart.iter().zip(&whole).find_map(|((group, apart), (_, whole))| {
                let at = apart.iter().zip(whole).position(|(a, b)| a.to_bits() != b.to_bits())?;
                Some(self.place(id, *group, at))
            });
            if let Some(place) = differs {
                return Ok(Some(format!(
                    "run {how}, the step leaves another {place} than op by op"
                )));
            }
        }
        Ok(None)
    }

    /// Runs a step op by op; the first op that writes beside its results.
    fn writes_beyond(
        &mut self,
        id: PlanId,
        step: &StepUniforms,
    ) -> Result<Option<String>, DeviceError> {
        let (plan, program) = (Rc::clone(&self.plans[&id.0].plan), self.plans[&id.0].program);
        let mut held = self.groups(FILLED)?;
        for (i, op) in plan.ops.iter().enumerate() {
            self.device.run(program, i..i + 1, step, false)?;
            let results = op.outputs.iter().filter_map(|(_, place)| match place {
                Place::State(range) => Some(*range),
                Place::Buffer(_) | Place::Images(_) => None,
            });
            let results: Vec<Range> = results.collect();
            for (group, before) in &mut held {
                if results.iter().all(|r| r.group != *group) {
                    continue;
                }
                let own = |at: usize| {
                    let mut own = results.iter().filter(|r| r.group == *group);
                    own.any(|r| (r.offset..r.offset + r.len).contains(&at))
                };
                let after = self.read_state(*group)?;
                let changed = |at: &usize| before[*at].to_bits() != after[*at].to_bits();
                if let Some(at) = (0..after.len()).filter(changed).find(|at| !own(*at)) {
                    let place = self.place(id, *group, at);
                    return Ok(Some(format!("`{}` changes {place} too", op.label)));
                }
                *before = after;
            }
        }
        Ok(None)
    }

    /// What groups hold, of those that there are.
    fn groups(
        &mut self,
        groups: impl IntoIterator<Item = Group>,
    ) -> Result<Vec<(Group, Vec<f32>)>, DeviceError> {
        let held: Vec<Group> = groups.into_iter().filter(|group| self.holds(*group)).collect();
        held.into_iter().map(|group| Ok((group, self.read_state(group)?))).collect()
    }

    /// What stands in a group there, for people.
    fn place(&self, id: PlanId, group: Group, at: usize) -> String {
        let kind = match group {
            Group::Param => "weight",
            Group::Buffer => "statistic",
            Group::Grad | Group::Accumulated => "gradient",
            Group::Moment1 | Group::Moment2 => "moment",
        };
        // Gradients and moments lie as their weights do.
        let layout = if group == Group::Buffer { Group::Buffer } else { Group::Param };
        let states = &self.plan(id).layout.states;
        let before = states.iter().filter(|s| s.range.group == layout && s.range.offset <= at);
        match before.max_by_key(|s| s.range.offset) {
            Some(s) if at < s.range.offset + s.range.len => format!("{kind} of `{}`", s.name),
            Some(s) => format!("{kind} behind those of `{}`", s.name),
            None => format!("{kind} number {at}"),
        }
    }
}

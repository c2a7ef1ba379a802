//! How long ops take.

use std::time::Duration;

use super::{PlanId, Session};
use crate::device::{DeviceError, ProgramId};
use crate::ops::StepUniforms;

/// Wall-clock samples of a device without timestamps are at least this long, so that a submission's
/// latency does not count.
const SAMPLE: Duration = Duration::from_millis(20);
/// Samples whose median counts.
const SAMPLES: usize = 5;

/// How long steps take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median seconds of one execution.
    pub seconds: f64,
    /// Executions that were timed.
    pub runs: usize,
    /// The device measured, not the host's clock.
    pub by_device: bool,
}

impl Session {
    /// How long one op of a plan takes: by the device's own clock where it has one, else by samples
    /// so long that a submission's latency does not count.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn time_op(&mut self, id: PlanId, op: usize) -> Result<Timing, DeviceError> {
        let program = self.plans[id.0].program;
        let step = StepUniforms::default();
        let once = |s: &mut Self, timed| {
            let ticket = s.device.run(program, op..op + 1, &step, timed)?;
            s.wait(ticket)
        };
        // The first compiles and fills caches.
        once(self, false)?;
        let mut seconds = Vec::new();
        if self.device.capabilities().timestamps {
            for _ in 0..SAMPLES {
                seconds.extend(once(self, true)?.seconds);
            }
        }
        let by_device = seconds.len() == SAMPLES && seconds.iter().all(|s| *s > 0.0);
        let mut runs = SAMPLES;
        if !by_device {
            (seconds, runs) = self.time_by_clock(program, op)?;
        }
        seconds.sort_by(f64::total_cmp);
        Ok(Timing { seconds: seconds[seconds.len() / 2], runs, by_device })
    }

    fn time_by_clock(
        &mut self,
        program: ProgramId,
        op: usize,
    ) -> Result<(Vec<f64>, usize), DeviceError> {
        let step = StepUniforms::default();
        let (mut times, mut seconds) = (1u32, Vec::new());
        while seconds.len() < SAMPLES {
            let began = (self.clock)();
            let mut last = None;
            for _ in 0..times {
                last = Some(self.device.run(program, op..op + 1, &step, false)?);
            }
            if let Some(last) = last {
                self.wait(last)?;
            }
            let spent = (self.clock)().saturating_sub(began);
            if spent >= SAMPLE || times >= 1 << 12 {
                seconds.push(spent.as_secs_f64() / f64::from(times));
            } else {
                times *= 2;
            }
        }
        Ok((seconds, SAMPLES * times as usize))
    }
}

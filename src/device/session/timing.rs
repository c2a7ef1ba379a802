//! How long ops take.

use std::time::Duration;

use super::{PlanId, Session};
use crate::device::DeviceError;
use crate::ops::StepUniforms;

/// Wall-clock samples of a device without timestamps are at least this long, so that a submission's
/// latency does not count.
const SAMPLE: Duration = Duration::from_millis(20);
/// Samples whose median counts.
const SAMPLES: usize = 5;
/// How many times as many executions the next sample has, at most, where one was too short.
const GROWTH: f64 = 8.0;
/// Executions of a sample at most.
const MOST: f64 = 4096.0;

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

/// A measurement of one op of a plan, sample by sample.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    id: PlanId,
    op: usize,
    /// Whether the device measures; unknown before the first execution, which compiles and fills
    /// caches.
    by_device: Option<bool>,
    /// Executions of a sample by the clock.
    times: u32,
    seconds: Vec<f64>,
}

impl Stopwatch {
    /// Of an op of a plan.
    pub fn new(id: PlanId, op: usize) -> Self {
        Self { id, op, by_device: None, times: 1, seconds: vec![] }
    }
}

impl Session {
    /// How long one op of a plan takes: by the device's own clock where it has one, else by samples
    /// so long that a submission's latency does not count.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn time_op(&mut self, id: PlanId, op: usize) -> Result<Timing, DeviceError> {
        let mut watch = Stopwatch::new(id, op);
        loop {
            if let Some(timing) = self.sample(&mut watch)? {
                return Ok(timing);
            }
        }
    }

    /// Takes one sample, of 20 ms or of a single execution that takes longer; the result, once
    /// there are enough.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn sample(&mut self, watch: &mut Stopwatch) -> Result<Option<Timing>, DeviceError> {
        self.settle()?;
        match watch.by_device {
            None => {
                self.execute(watch, false)?;
                watch.by_device = Some(self.device.capabilities().timestamps);
            }
            Some(true) => match self.execute(watch, true)? {
                Some(seconds) if seconds > 0.0 => watch.seconds.push(seconds),
                _ => {
                    watch.by_device = Some(false);
                    watch.seconds.clear();
                }
            },
            Some(false) => self.sample_by_clock(watch)?,
        }
        if watch.seconds.len() < SAMPLES {
            return Ok(None);
        }
        watch.seconds.sort_by(f64::total_cmp);
        let seconds = watch.seconds[SAMPLES / 2];
        let runs = SAMPLES * watch.times as usize;
        Ok(Some(Timing { seconds, runs, by_device: watch.by_device == Some(true) }))
    }

    /// Executes the op once; the seconds that the device measured, if it was to.
    fn execute(&mut self, watch: &Stopwatch, timed: bool) -> Result<Option<f64>, DeviceError> {
        let (program, op) = (self.plans[&watch.id.0].program, watch.op);
        let ticket = self.device.run(program, op..op + 1, &StepUniforms::default(), timed)?;
        Ok(self.wait(ticket)?.seconds)
    }

    fn sample_by_clock(&mut self, watch: &mut Stopwatch) -> Result<(), DeviceError> {
        let (program, op) = (self.plans[&watch.id.0].program, watch.op);
        let (began, step) = ((self.clock)(), StepUniforms::default());
        let mut last = None;
        for _ in 0..watch.times {
            last = Some(self.device.run(program, op..op + 1, &step, false)?);
        }
        if let Some(last) = last {
            self.wait(last)?;
        }
        let (spent, times) = ((self.clock)().saturating_sub(began), f64::from(watch.times));
        if spent >= SAMPLE || times >= MOST {
            watch.seconds.push(spent.as_secs_f64() / times);
        } else {
            let growth = SAMPLE.as_secs_f64() / spent.as_secs_f64();
            watch.times = (times * growth.clamp(2.0, GROWTH)).min(MOST) as u32;
        }
        Ok(())
    }
}

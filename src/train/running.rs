//! A run in progress: what is due after a step, and who does it. The trainer takes the steps, the
//! recorder writes what is measured, the saver keeps states.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::progress::TrainingProgress;
use super::recorder::Recorder;
use super::schedule::Timetable;
use super::trainer::{Asked, Step, Trainer, record};
use crate::data::{Batch, DataError, Loader};
use crate::run::RunError;
use crate::run::folder::RunFolder;
use crate::run::metrics::MetricsRecord;
use crate::run::resume::OWES;
use crate::run::saver::{PendingSave, Saver, Writer};
use crate::run::settings::RunConfig;

/// What a run did.
#[derive(Debug)]
pub struct Outcome {
    /// Steps taken in all.
    pub steps: u64,
    /// Step from which this session continued; 0 if it began the run.
    pub resumed_at: u64,
    /// Stopped before the end by Ctrl-C.
    pub interrupted: bool,
    /// Seconds of this session.
    pub seconds: f64,
    /// Images per second over this session's steps.
    pub images_per_second: f64,
    /// Device, for people.
    pub device: String,
    /// Last training record.
    pub last: Option<MetricsRecord>,
    /// Last validation record.
    pub validation: Option<MetricsRecord>,
    /// Last evaluation record.
    pub evaluation: Option<MetricsRecord>,
    /// SHA-256 of the final weights and optimiser state.
    pub digest: String,
    /// Checkpoint with the final weights.
    pub checkpoint: PathBuf,
}

/// What a checkpoint says of its run, besides the settings.
pub(super) struct Identity {
    /// Fingerprint of the images and labels.
    pub(super) data: String,
    /// The device, as it names itself.
    pub(super) device: String,
}

/// A run in progress.
pub(super) struct Running<'a> {
    config: &'a RunConfig,
    timetable: Timetable<'a>,
    trainer: Trainer<'a>,
    recorder: Recorder,
    saver: Saver,
    progress: TrainingProgress,
    pace: Pace,
    /// The record of training that is to be written.
    asked: Option<Asked>,
    identity: Identity,
    /// Steps that had been taken when this session began.
    start: u64,
    /// Steps taken so far.
    taken: u64,
    /// What is due after them is not all measured and drawn.
    owes: bool,
}

impl<'a> Running<'a> {
    /// Puts the parts together; the weights are set.
    pub(super) fn new(
        config: &'a RunConfig,
        folder: &RunFolder,
        trainer: Trainer<'a>,
        recorder: Recorder,
        timetable: Timetable<'a>,
        identity: Identity,
        start: u64,
    ) -> Result<Self, RunError> {
        let (layout, params) = trainer.tensors();
        let writer = Writer { store: folder.store(), keep: config.keep, layout, params };
        let progress = TrainingProgress::new(timetable.total, config.images_per_step(), start)
            .with_epochs(timetable.per_epoch);
        Ok(Self {
            config,
            timetable,
            trainer,
            recorder,
            saver: Saver::new(writer, config.save_interval()),
            progress: progress.with_log(folder.path().join("train.log"))?,
            pace: Pace::new(start),
            asked: None,
            identity,
            start,
            taken: start,
            owes: false,
        })
    }

    /// Says what is trained, on what, and from where on.
    pub(super) fn greet(&mut self, why: &str, notes: &[String], resumed: bool) {
        notes.iter().for_each(|note| self.progress.message(note));
        self.progress.message(&format!("device: {} ({why})", self.identity.device));
        self.progress.message(&self.trainer.describe());
        self.trainer.describe_images().iter().for_each(|line| self.progress.message(line));
        if resumed {
            let (start, total) = (self.start, self.timetable.total);
            self.progress.message(&format!("resumed at step {start} of {total}"));
        }
    }

    /// The batches of the steps that are left.
    pub(super) fn batches(&self) -> Result<Loader, DataError> {
        self.trainer.batches(self.start..self.timetable.total)
    }

    /// Takes the next step; `None` if the batches end before it is whole.
    pub(super) fn step(
        &mut self,
        batches: &mut impl Iterator<Item = Result<Batch, DataError>>,
    ) -> Result<Option<Step>, RunError> {
        let step = self.trainer.step(batches)?;
        self.taken = step.as_ref().map_or(self.taken, |step| step.number);
        Ok(step)
    }

    /// Whether something else than training may be due after a step: at the end of an epoch, and of
    /// the run.
    pub(super) fn pauses(&self, step: &Step) -> bool {
        self.timetable.epoch_end(step.number).is_some() || step.number == self.timetable.total
    }

    /// Writes the records of the step: of its views, and of training if one is due or the run
    /// stops. One of training waits until the next step is queued, where there is one: the device
    /// never idles while the host reads and writes.
    pub(super) fn log(&mut self, step: &Step, interrupted: bool) -> Result<(), RunError> {
        self.write_asked()?;
        if self.timetable.due(step.number, "view") {
            let values = self.trainer.views(step)?;
            self.recorder.record(step.record("view", &values))?;
        }
        let stops = interrupted || step.number == self.timetable.total;
        if stops || self.timetable.due(step.number, "train") {
            self.asked = Some(self.trainer.ask(step)?);
        }
        if stops || self.pauses(step) { self.write_asked() } else { Ok(()) }
    }

    /// Writes the record that the device was asked for.
    fn write_asked(&mut self) -> Result<(), RunError> {
        let Some(asked) = self.asked.take() else { return Ok(()) };
        let number = asked.number;
        let record = self.trainer.answer(asked)?;
        let loss = record.values.first().map_or(f32::NAN, |value| value.1);
        let rate = self.pace.rate(number) * self.config.images_per_step() as f64;
        self.recorder.record(record.with("images_per_second", rate as f32))?;
        self.progress.update(number, loss);
        Ok(())
    }

    /// Measures and draws what is due after the steps taken so far, for as long as `stop` does not
    /// end the wait for images. Returns whether all of it was done; else the run owes it.
    pub(super) fn look(&mut self, stop: &dyn Fn() -> bool) -> Result<bool, RunError> {
        let looked = self.measure(stop).and_then(|()| self.draw(stop));
        self.owes = matches!(looked, Err(RunError::Data(DataError::Stopped)));
        if self.owes { Ok(false) } else { looked.map(|()| true) }
    }

    /// Measures the held-out images where that is due, and at the end.
    fn measure(&mut self, stop: &dyn Fn() -> bool) -> Result<(), RunError> {
        let (number, last) = (self.taken, self.taken == self.timetable.total);
        let epoch = self.timetable.order.locate(number - 1).0;
        if (last || self.timetable.due(number, "val"))
            && let Some(means) = self.trainer.validate(number, stop)?
        {
            self.recorder.record(record(number, epoch, "val", &means))?;
        }
        if last || self.timetable.due(number, "eval") {
            let values = self.trainer.evaluate(stop)?;
            if !values.is_empty() {
                let text: Vec<_> =
                    values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                self.progress.message(&format!("evaluation at step {number}: {}", text.join(", ")));
                self.recorder.record(record(number, epoch, "eval", &values))?;
            }
        }
        Ok(())
    }

    /// Draws what is trained, where that is due.
    fn draw(&mut self, stop: &dyn Fn() -> bool) -> Result<(), RunError> {
        let step = self.taken;
        if !self.timetable.picture(step) {
            return Ok(());
        }
        if !self.recorder.has_views()
            && let Some(picture) = self.trainer.picture_views(stop)?
        {
            self.recorder.views(&picture)?;
        }
        if let Some(picture) = self.trainer.picture_reconstructions(stop)? {
            self.recorder.reconstruction(step, &picture)?;
        }
        Ok(())
    }

    /// Hands the state over to be saved: at the end, at a milestone, if the run `stops` here, or if
    /// enough time has gone by.
    pub(super) fn save(&mut self, stops: bool) -> Result<(), RunError> {
        let step = self.taken;
        let milestone = self.timetable.milestone(step);
        if !(stops || milestone.is_some() || step == self.timetable.total || self.saver.due()) {
            return Ok(());
        }
        let mut meta = self.trainer.meta(step, &self.identity.data)?;
        if self.owes {
            meta.insert(OWES.into(), "measures".into());
        }
        let (snapshot, logs) = (self.trainer.snapshot(step)?, self.recorder.logs()?);
        self.saver.save(PendingSave { step, milestone, snapshot, meta, logs })
    }

    /// Stops the run if a state could not be saved.
    pub(super) fn see_to_saves(&mut self) -> Result<(), RunError> {
        self.saver.check()?;
        self.saver.warnings().iter().for_each(|warning| self.progress.message(warning));
        Ok(())
    }

    /// Does what is not training: no rate counts its time.
    pub(super) fn pause<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        let began = Instant::now();
        let done = work(self)?;
        self.pace.pause(began.elapsed());
        Ok(done)
    }

    /// Saves what is not saved yet, and waits for it. A run whose batches ended before the last
    /// step was stopped between two steps, or within one.
    pub(super) fn end(mut self, stopped: bool) -> Result<Outcome, RunError> {
        let (steps, total) = (self.taken, self.timetable.total);
        let interrupted = stopped || self.owes || steps < total;
        self.write_asked()?;
        if interrupted && !stopped {
            self.trainer.abandon(steps)?;
        }
        // A run that has nothing to do is saved too, so that its folder is whole.
        if !stopped && (steps < total || steps == self.start) {
            self.save(true)?;
        }
        let seconds = self.pace.began.elapsed();
        self.saver.wait()?;
        self.see_to_saves()?;
        if interrupted {
            self.progress.message(&format!(
                "interrupted: saved at step {steps} of {total}; `--resume` continues"
            ));
        }
        self.progress.finish();
        let saved = self.saver.saved().expect("the end of a run is saved");
        let trained = (steps - self.start) as f64 * self.config.images_per_step() as f64;
        let last = |split| self.recorder.last(split).cloned();
        Ok(Outcome {
            steps,
            resumed_at: self.start,
            interrupted,
            seconds: seconds.as_secs_f64(),
            images_per_second: trained
                / seconds.saturating_sub(self.pace.paused).as_secs_f64().max(1e-9),
            device: self.identity.device,
            last: last("train"),
            validation: last("val"),
            evaluation: last("eval"),
            digest: saved.digest.clone(),
            checkpoint: saved.path.clone(),
        })
    }
}

/// How fast steps are taken.
struct Pace {
    began: Instant,
    /// Time that was not spent on training.
    paused: Duration,
    /// When the rate was last asked for, less what was not spent on training since; after which
    /// step.
    since: Instant,
    step: u64,
}

impl Pace {
    fn new(step: u64) -> Self {
        let now = Instant::now();
        Self { began: now, paused: Duration::ZERO, since: now, step }
    }

    /// Steps a second since the last call.
    fn rate(&mut self, step: u64) -> f64 {
        let rate = (step - self.step) as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        (self.since, self.step) = (Instant::now(), step);
        rate
    }

    fn pause(&mut self, time: Duration) {
        self.paused += time;
        self.since += time;
    }
}

//! Pretraining: the trainer takes steps, the recorder writes what is measured, the saver keeps
//! states. Linear, no callbacks.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::interrupt::Interrupt;
use super::measure::Scalars;
use super::plans;
use super::progress::TrainingProgress;
use super::recorder::Recorder;
use super::schedule::Timetable;
use super::trainer::{Step, Trainer};
use crate::data::{Loader, Splits};
use crate::device::Session;
use crate::eval::knn;
use crate::run::checkpoint::Checkpoint;
use crate::run::folder::RunFolder;
use crate::run::metrics::Record;
use crate::run::resume::{Resumed, window_text};
use crate::run::saver::{Saver, State, Writer};
use crate::run::settings::RunConfig;
use crate::run::trained::{config_text, model_config, open_data, write_config};
use crate::run::{RunError, foreign};
use crate::text;

/// What a run is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    /// Configuration, validated.
    pub config: &'a RunConfig,
    /// Resume on another device than the run was trained on.
    pub another_device: bool,
    /// Measure which kernels are the fastest, where that is not remembered.
    pub tune: bool,
    /// Run folder. What is in it makes way, unless it is resumed.
    pub folder: &'a RunFolder,
    /// Ctrl-C and `kill`: save and stop.
    pub interrupt: &'a Interrupt,
}

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
    pub last: Option<Record>,
    /// Last validation record.
    pub validation: Option<Record>,
    /// Last evaluation record.
    pub evaluation: Option<Record>,
    /// SHA-256 of the final weights and optimiser state.
    pub digest: String,
    /// Checkpoint with the final weights.
    pub checkpoint: PathBuf,
}

/// Pretrains a model, from the beginning or from a checkpoint, on a device that was opened, until
/// the end or until something stops it; the checkpoints written before stay whole. `notes` are for
/// the user.
pub(super) fn train(
    request: &Request<'_>,
    resumed: Option<&Resumed>,
    (mut session, why): (Session, String),
    notes: &[String],
) -> Result<Outcome, RunError> {
    let config = request.config;
    let splits = open_data(config)?;
    let timetable = Timetable::new(config, splits.train.len())?;
    timetable.refuse_endless()?;
    let data = splits.fingerprint();
    let device = session.device();
    if let Some(resumed) = resumed {
        resumed.same_data(&data, config)?;
        resumed.same_device(&device, request.another_device)?;
        resumed.fits(timetable.total)?;
    }
    let mut notes: Vec<String> = notes.to_vec();
    let asked = (config.eval_every > 0).then_some(splits.labelled_train.len());
    let left_out = asked.and_then(knn::knn_left_out);
    notes.extend(splits.notes.iter().chain(&left_out).map(|note| format!("note: {note}")));
    notes.extend(kernels(request, resumed, &mut session, &splits)?);
    let mut trainer = Trainer::new(config, timetable, &splits, session)?;
    let recorder = match resumed {
        Some(resumed) => restore(request, resumed, &mut trainer, timetable)?,
        None => begin(request, &mut trainer, &mut notes)?,
    };
    notes.extend(resumed.iter().flat_map(|resumed| resumed.warnings.clone()));
    let start = resumed.map_or(0, |resumed| resumed.step);
    let mut run =
        Run::new(request, trainer, recorder, timetable, Identity { data, device }, start)?;
    run.greet(&why, &notes, resumed);

    // From here on there is something to save.
    let _saving = request.interrupt.saving();
    let batches = Loader::in_parts(
        &splits.train,
        timetable.order,
        config.accumulate,
        start..timetable.total,
    )?;
    let mut batches = batches.until(|| request.interrupt.asked());
    let mut steps = start;
    let mut interrupted = false;
    while let Some(step) = run.trainer.step(&mut batches)? {
        steps = step.number;
        interrupted = request.interrupt.asked();
        run.see_to_saves()?;
        run.log(&step, interrupted)?;
        if timetable.epoch_end(steps).is_some() || steps == timetable.total || interrupted {
            run.pause(|run| {
                run.measure(&step)?;
                run.draw(steps)?;
                run.save(steps, interrupted)
            })?;
        }
        if interrupted {
            break;
        }
    }
    if steps < timetable.total && !interrupted {
        // Between two steps, or within one.
        interrupted = true;
        run.trainer.abandon(steps)?;
        run.save(steps, true)?;
    } else if steps == start {
        run.save(steps, true)?; // nothing to do, but the run folder is whole
    }
    run.end(steps, interrupted)
}

/// Chooses the kernels: those of the run that is resumed, since others sum in another order and
/// give other bits; else the fastest, or the table of defaults. Returns what there is to say about
/// it.
fn kernels(
    request: &Request<'_>,
    resumed: Option<&Resumed>,
    session: &mut Session,
    splits: &Splits,
) -> Result<Option<String>, RunError> {
    let config = request.config;
    let (model, held_out) = (model_config(config, splits), splits.val.len());
    if let Some(resumed) = resumed {
        let refused = plans::trust(session, config, &model, held_out, &resumed.kernels())?;
        if refused.is_empty() || request.another_device {
            return Ok(None);
        }
        let message = format!(
            "{} was trained with kernels that are wrong here: {}",
            text::name(&resumed.path),
            refused[0]
        );
        let hint = "a driver may have changed; `--allow-device-change` goes on with other kernels \
            and other bits";
        return Err(RunError::config(message, Some(hint)));
    }
    let report = if request.tune { plans::tune(session, config, &model, held_out)? } else { None };
    Ok(report.map(|report| report.to_string()))
}

/// A new run: initial weights, fresh logs. What was in the folder makes way only now that nothing
/// can be refused any more.
fn begin(
    request: &Request<'_>,
    trainer: &mut Trainer<'_>,
    notes: &mut Vec<String>,
) -> Result<Recorder, RunError> {
    let Request { config, folder, .. } = *request;
    match &config.init_from {
        Some(path) => {
            let mut file = Checkpoint::load(path)?;
            let named =
                |message| RunError::config(format!("`{}`: {message}", text::name(path)), None);
            if let Some(prefix) = foreign::unwrap(&mut file).map_err(named)? {
                notes.push(format!(
                    "note: the names of the weights began with `{prefix}`, which was taken off"
                ));
            }
            trainer.initialise(Some(&file)).map_err(|e| e.of_file(path))?;
        }
        None => trainer.initialise(None)?,
    }
    folder.clear()?;
    folder.store().begin()?;
    let recorder = Recorder::begin(folder)?;
    write_config(&folder.path().join("config.toml"), config)?;
    Ok(recorder)
}

/// The run as it was after the checkpoint's step.
fn restore(
    request: &Request<'_>,
    resumed: &Resumed,
    trainer: &mut Trainer<'_>,
    timetable: Timetable<'_>,
) -> Result<Recorder, RunError> {
    let Request { config, folder, .. } = *request;
    let window = resumed.window(trainer.scalars())?;
    trainer.restore(&resumed.checkpoint, window).map_err(|e| e.of_file(&resumed.path))?;
    // It may have been prolonged.
    write_config(&folder.path().join("config.toml"), config)?;
    let (step, ended) = (resumed.step, resumed.step == timetable.total);
    Recorder::resume(folder, step, |r| {
        r.step < step || (r.step == step && (ended || timetable.due(step, &r.split)))
    })
}

/// What a checkpoint says of its run, besides the settings.
struct Identity {
    /// Fingerprint of the images and labels.
    data: String,
    device: String,
}

/// A run in progress.
struct Run<'a> {
    config: &'a RunConfig,
    timetable: Timetable<'a>,
    trainer: Trainer<'a>,
    recorder: Recorder,
    saver: Saver,
    progress: TrainingProgress,
    pace: Pace,
    identity: Identity,
    start: u64,
}

impl<'a> Run<'a> {
    fn new(
        request: &Request<'a>,
        trainer: Trainer<'a>,
        recorder: Recorder,
        timetable: Timetable<'a>,
        identity: Identity,
        start: u64,
    ) -> Result<Self, RunError> {
        let Request { config, folder, .. } = *request;
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
            identity,
            start,
        })
    }

    fn greet(&mut self, why: &str, notes: &[String], resumed: Option<&Resumed>) {
        notes.iter().for_each(|note| self.progress.message(note));
        self.progress.message(&format!("device: {} ({why})", self.identity.device));
        self.progress.message(&self.trainer.describe());
        if let Some(resumed) = resumed {
            self.progress
                .message(&format!("resumed at step {} of {}", resumed.step, self.timetable.total));
        }
    }

    /// Writes the records of the step: of its views, and of training if one is due or the run
    /// stops.
    fn log(&mut self, step: &Step, interrupted: bool) -> Result<(), RunError> {
        if self.timetable.due(step.number, "view") {
            let values = self.trainer.views(step)?;
            self.recorder.record(record(step, "view", &values))?;
        }
        let due = self.timetable.due(step.number, "train");
        if !(due || interrupted || step.number == self.timetable.total) {
            return Ok(());
        }
        let means = self.trainer.means(due)?;
        let rate = self.pace.rate(step.number) * self.config.images_per_step() as f64;
        let record = record(step, "train", &means).with("lr", step.uniform.learning_rate);
        self.recorder.record(record.with("images_per_second", rate as f32))?;
        self.progress.update(step.number, means.first().map_or(f32::NAN, |mean| mean.1));
        Ok(())
    }

    /// Measures the held-out images where that is due, and at the end.
    fn measure(&mut self, step: &Step) -> Result<(), RunError> {
        let (number, last) = (step.number, step.number == self.timetable.total);
        if (last || self.timetable.due(number, "val"))
            && let Some(means) = self.trainer.validate(number)?
        {
            self.recorder.record(record(step, "val", &means))?;
        }
        if last || self.timetable.due(number, "eval") {
            let values = self.trainer.evaluate()?;
            if !values.is_empty() {
                let text: Vec<_> =
                    values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                self.progress.message(&format!("evaluation at step {number}: {}", text.join(", ")));
                self.recorder.record(record(step, "eval", &values))?;
            }
        }
        Ok(())
    }

    /// Draws what is trained, where that is due.
    fn draw(&mut self, step: u64) -> Result<(), RunError> {
        if !self.timetable.picture(step) {
            return Ok(());
        }
        if !self.recorder.has_views()
            && let Some(picture) = self.trainer.picture_views()?
        {
            self.recorder.views(&picture)?;
        }
        if let Some(picture) = self.trainer.picture_reconstructions()? {
            self.recorder.reconstruction(step, &picture)?;
        }
        Ok(())
    }

    /// Hands the state over to be saved: at the end, at a milestone, if the run `stops` here, or if
    /// enough time has gone by.
    fn save(&mut self, step: u64, stops: bool) -> Result<(), RunError> {
        let milestone = self.timetable.milestone(step);
        if !(stops || milestone.is_some() || step == self.timetable.total || self.saver.due()) {
            return Ok(());
        }
        let config = self.config;
        let mut meta = vec![
            ("step", step.to_string()),
            ("seed", config.seed.to_string()),
            ("config", config_text(config)?),
        ];
        meta.push(("version", env!("CARGO_PKG_VERSION").to_owned()));
        meta.push(("data", self.identity.data.clone()));
        meta.push(("device", self.identity.device.clone()));
        meta.push(("kernels", self.trainer.kernels()));
        if !self.trainer.window().is_empty() {
            meta.push(("window", window_text(self.trainer.window())));
        }
        let meta = meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let (snapshot, logs) = (self.trainer.snapshot(step)?, self.recorder.logs()?);
        self.saver.save(State { step, milestone, snapshot, meta, logs })
    }

    /// Stops the run if a state could not be saved.
    fn see_to_saves(&mut self) -> Result<(), RunError> {
        self.saver.check()?;
        self.saver.warnings().iter().for_each(|warning| self.progress.message(warning));
        Ok(())
    }

    /// Does what is not training: no rate counts its time.
    fn pause(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let began = Instant::now();
        work(self)?;
        self.pace.pause(began.elapsed());
        Ok(())
    }

    /// Waits until the last state is saved.
    fn end(mut self, steps: u64, interrupted: bool) -> Result<Outcome, RunError> {
        let seconds = self.pace.began.elapsed();
        self.saver.wait()?;
        self.see_to_saves()?;
        if interrupted {
            let total = self.timetable.total;
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

fn record(step: &Step, split: &str, values: &Scalars) -> Record {
    let empty = Record::new(step.number, u64::from(step.batch.epoch), split);
    values.iter().fold(empty, |record, (name, value)| record.with(name, *value))
}

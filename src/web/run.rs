//! One run in a page: the trainer and the images that it sees, between two commands to begin.

use std::path::PathBuf;

use serde_json::json;
use web_time::Instant;

use super::{Asked, Command, asked, next, post, post_with, show};
use crate::data::Splits;
use crate::device::Session;
use crate::device::wgpu::{Gpu, OpenOptions, Pick};
use crate::ir::Group;
use crate::ops::Choices;
use crate::run::checkpoint::Checkpoint;
use crate::run::resume::Resumed;
use crate::run::settings::RunConfig;
use crate::run::trained::model_config;
use crate::run::{RunError, precision};
use crate::train::plans;
use crate::train::schedule::Timetable;
use crate::train::trainer::{self, Step, Trainer};
use crate::tune::{Kernels, Outlook};

/// Images to choose from.
const GALLERY: usize = 16;

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) timetable: Timetable<'a>,
    pub(super) splits: &'a Splits,
    pub(super) trainer: Trainer<'a>,
    /// Steps that were taken.
    pub(super) steps: u64,
    /// Steps that are still asked for.
    left: u64,
    /// The record of training that is to be posted.
    record: Option<trainer::Asked>,
    /// When the last record was posted, and after how many steps.
    said: (Instant, u64),
}

/// Runs until something else is asked for, which is returned. `kept` is the session of the run
/// before, and then that of this one.
pub(super) fn run(
    config: &RunConfig,
    splits: &Splits,
    (kernels, most): (Kernels, Option<usize>),
    file: Option<Checkpoint>,
    kept: &mut Option<Session>,
) -> Result<Asked, RunError> {
    let timetable = Timetable::new(config, splits.train.len())?;
    timetable.refuse_endless()?;
    let mut session = match kept.take().and_then(emptied) {
        Some(session) => session,
        None => gpu()?,
    };
    precision::train(&mut session, config.half())?;
    let (resumed, weights) = match file.map(|file| (file.step(), file)) {
        Some((Some(step), checkpoint)) => {
            let path = PathBuf::from("the file");
            (Some(Resumed { path, step, checkpoint, warnings: vec![] }), None)
        }
        Some((None, weights)) => (None, Some(weights)),
        None => (None, None),
    };
    if let Some(resumed) = &resumed {
        resumed.same_data(&splits.fingerprint(), config)?;
        // On another device the bits are others whatever the kernels.
        if resumed.same_device(&session.device(), false).is_ok() {
            let (model, held_out) = (model_config(config, splits), splits.val.len());
            plans::trust(&mut session, config, &model, held_out, &resumed.kernels())?;
        }
    }
    // What it learns from can be seen while kernels are compiled.
    let (picture, count) = trainer::gallery(config, splits, GALLERY)?;
    show("gallery", 0, &picture, json!({ "count": count }));
    let mut trainer = Trainer::new(config, timetable, splits, session)?;
    match &resumed {
        Some(resumed) => {
            let window = resumed.window(trainer.scalars())?;
            trainer.restore(&resumed.checkpoint, window)?;
        }
        None => trainer.initialise(weights.as_ref())?,
    }
    let steps = resumed.map_or(0, |resumed| resumed.step);
    let said = (Instant::now(), steps);
    let mut run = Run { config, timetable, splits, trainer, steps, left: 0, record: None, said };
    run.greet();
    let outlook = run.trainer.seek(kernels, most);
    run.say(outlook);
    let asked = run.work()?;
    let mut session = run.trainer.into_session();
    session.reset();
    *kept = Some(session);
    Ok(asked)
}

/// A session that a run has left, as a new one is but for the kernels that it has compiled; `None`
/// where its device was lost meanwhile, which only who uses it is told.
fn emptied(mut session: Session) -> Option<Session> {
    session.set_choices(Choices::default());
    session.read_state(Group::Param).ok()?;
    session.reset();
    Some(session)
}

/// A session on the browser's adapter, which tells of its pipelines.
pub(super) fn gpu() -> Result<Session, RunError> {
    let mut session = Session::from(Gpu::pick(&Pick::Index(0), OpenOptions::default())?);
    session
        .on_compile(Box::new(|ready, of| post("compiled", &json!({ "ready": ready, "of": of }))));
    Ok(session)
}

impl Run<'_> {
    fn greet(&self) {
        let session = self.trainer.session();
        let config = serde_json::to_value(self.config).unwrap_or_default();
        let images = self.trainer.describe_images().map(|images| format!("; {images}"));
        let describe = self.trainer.describe() + &images.unwrap_or_default();
        let text = json!({
            "device": session.device(),
            "describe": describe,
            "settings": config,
            "step": self.steps,
            "total": self.timetable.total,
            "per_epoch": self.timetable.per_epoch,
            "bytes": session.allocated_bytes(),
        });
        post("begun", &text);
    }

    /// Says which kernels it runs, and what they hold.
    fn say(&self, outlook: Outlook) {
        let session = self.trainer.session();
        let shaped = session.choices().len();
        let text = json!({
            "text": outlook.to_string(), "shaped": shaped, "bytes": session.allocated_bytes(),
        });
        post("kernels", &text);
    }

    /// Does what is asked for, and between that the steps that were asked for.
    fn work(&mut self) -> Result<Asked, RunError> {
        let mut batches = self.trainer.batches(self.steps..self.timetable.total)?;
        loop {
            let command = if self.left > 0 { asked() } else { Some(next()) };
            match command {
                Some(end @ (Command::Begin { .. } | Command::Check { .. } | Command::End, _)) => {
                    return Ok(end);
                }
                Some((command, _)) => self.obey(command)?,
                None => match self.trainer.step(&mut batches)? {
                    Some(step) => {
                        self.see_to(&step)?;
                        if let Some(outlook) = self.trainer.settle()? {
                            self.say(outlook);
                        }
                    }
                    None => self.pause(),
                },
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), RunError> {
        self.post_record()?;
        match command {
            Command::Train { steps } => {
                self.left = steps.unwrap_or(u64::MAX).min(self.timetable.total - self.steps);
                self.said = (Instant::now(), self.steps);
                if self.left == 0 {
                    self.pause();
                }
            }
            Command::Pause => self.pause(),
            Command::Rate { learning_rate } => {
                match self.trainer.set_learning_rate(learning_rate) {
                    Ok(()) => post("rate", &json!({ "learning_rate": learning_rate })),
                    Err(error @ RunError::Config { .. }) => {
                        let text = json!({ "what": "settings", "message": error.to_string() });
                        post("refused", &text);
                    }
                    Err(error) => return Err(error),
                }
            }
            Command::Save => {
                let meta = self.trainer.meta(self.steps, &self.splits.fingerprint())?;
                let (layout, params) = self.trainer.tensors();
                let tensors = self.trainer.snapshot(self.steps)?.tensors(&layout, &params);
                let bytes = Checkpoint { tensors, meta }.to_bytes();
                post_with("saved", &json!({ "step": self.steps }), Some(&bytes));
            }
            Command::Begin { .. } | Command::Check { .. } | Command::End => {
                unreachable!("the run ends before")
            }
            looked => self.look(&looked)?,
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.left = 0;
        post("paused", &json!({ "step": self.steps }));
    }

    /// Posts the record that the device was asked for.
    fn post_record(&mut self) -> Result<(), RunError> {
        let Some(asked) = self.record.take() else { return Ok(()) };
        let number = asked.number;
        let record = self.trainer.answer(asked)?;
        let images = (number - self.said.1) * self.config.images_per_step() as u64;
        let rate = images as f64 / self.said.0.elapsed().as_secs_f64().max(1e-3);
        post("record", &record.with("images_per_second", rate as f32));
        self.said = (Instant::now(), number);
        Ok(())
    }

    /// Says of a step what is due, as a run on disk writes it: of training, once the next step is
    /// queued, where nothing else is done before.
    fn see_to(&mut self, step: &Step) -> Result<(), RunError> {
        self.post_record()?;
        self.steps = step.number;
        self.left -= 1;
        if self.timetable.due(self.steps, "view") {
            let values = self.trainer.views(step)?;
            post("record", &step.record("view", &values));
        }
        let last = self.steps == self.timetable.total;
        let pauses = last || self.left == 0 || self.timetable.epoch_end(self.steps).is_some();
        if pauses || self.timetable.due(self.steps, "train") {
            self.record = Some(self.trainer.ask(step)?);
        }
        if pauses {
            self.post_record()?;
        }
        if self.timetable.epoch_end(self.steps).is_some() || last {
            if let Some(means) = self.trainer.validate(self.steps, &|| false)? {
                post("record", &step.record("val", &means));
            }
            if last || self.timetable.due(self.steps, "eval") {
                let values = self.trainer.evaluate(&|| false)?;
                post("record", &step.record("eval", &values));
            }
            self.said = (Instant::now(), self.steps);
        }
        if self.left == 0 {
            self.pause();
        }
        Ok(())
    }
}

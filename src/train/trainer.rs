//! A model on its device while it trains. Knows no file.

mod kernels;
mod look;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::measure::{self, Measures, Scalars};
use super::plans::{self, RunSet, Sizes};
use super::schedule::{Timetable, part_uniforms, uniforms};
use crate::data::{Batch, DataError, Loader, Splits};
use crate::device::{DeviceError, PlanId, Session, StateRead};
use crate::eval::pictures::{self, Picture};
use crate::ir::Layout;
use crate::ir::resident::ImageSet;
use crate::method::{self, ModelConfig};
use crate::nn::Params;
use crate::ops::StepUniforms;
use crate::optim;
use crate::plan::Plan;
use crate::run::checkpoint::Checkpoint;
use crate::run::metrics::MetricsRecord;
use crate::run::resident::{self, feed};
use crate::run::resume::{Window, window_text};
use crate::run::settings::RunConfig;
use crate::run::state::Snapshot;
use crate::run::trained::{config_text, model_config};
use crate::run::{RunError, state};

pub use look::gallery;

/// A model, its plans, and the images that it sees.
pub struct Trainer<'a> {
    config: RunConfig,
    timetable: Timetable<'a>,
    splits: &'a Splits,
    session: Session,
    model: ModelConfig,
    layout: Arc<Layout>,
    params: Arc<Params>,
    plans: RunSet<PlanId>,
    sizes: Sizes,
    /// The images of training as they lie on the device, or why they do not.
    images: Result<ImageSet, String>,
    measures: Measures,
    /// Scalars of the batches since the last record that was due.
    window: Window,
    /// What was asked for while it trains.
    looks: look::Looks,
    /// Other kernels that are sought.
    settling: Option<kernels::Settling>,
}

/// A step that was taken.
pub struct Step {
    /// Its number, counted from 1: the steps taken so far.
    pub number: u64,
    /// What it was given.
    pub uniform: StepUniforms,
    /// Its last batch.
    pub batch: Batch,
}

impl Step {
    /// A line of `metrics.jsonl` about it.
    pub fn record(&self, split: &str, values: &Scalars) -> MetricsRecord {
        record(self.number, self.batch.epoch, split, values)
    }
}

/// A record of training that the device was asked for.
#[derive(Debug)]
pub struct Asked {
    /// The step that it is of.
    pub number: u64,
    epoch: u32,
    rate: f32,
    scale: Option<StateRead>,
    /// The next record begins after it.
    closes: bool,
}

/// A line of `metrics.jsonl` about so many steps, of which the last one was of such an epoch.
pub fn record(steps: u64, epoch: u32, split: &str, values: &Scalars) -> MetricsRecord {
    let empty = MetricsRecord::new(steps, u64::from(epoch), split);
    values.iter().fold(empty, |record, (name, value)| record.with(name, *value))
}

impl<'a> Trainer<'a> {
    /// Loads the plans of a run, and its images where they stay on the device; the weights are
    /// still to be set.
    pub fn new(
        config: &'a RunConfig,
        timetable: Timetable<'a>,
        splits: &'a Splits,
        mut session: Session,
    ) -> Result<Self, RunError> {
        let on = &mut session;
        let model = model_config(config, splits);
        Measures::check(config, splits)?;
        let held_out = splits.val.len();
        let sizes = Sizes::new(config, model.batch, held_out);
        let (graphs, params) = plans::graphs(config, &model, sizes);
        let layout = Arc::new(graphs.train.layout.clone());
        let seen = timetable.total.saturating_mul(config.images_per_step() as u64);
        let (mut images, mut resident) = (resident::set(on, &splits.train, seen), None);
        if let Ok(set) = &images {
            match plans::load_resident(on, graphs, set)? {
                Ok(plans) => resident = Some(plans),
                Err(reason) => images = Err(reason),
            }
        }
        let plans = match resident {
            Some(plans) => plans,
            None => plans::load(on, config, &model, held_out)?,
        };
        if let Ok(set) = &images {
            resident::fill(on, &splits.train, set)?;
        }
        Ok(Self {
            config: config.clone(),
            timetable,
            splits,
            measures: Measures::new(&plans, sizes, config, &model),
            session,
            model,
            layout,
            images,
            params: Arc::new(params),
            plans,
            sizes,
            window: Window::new(),
            looks: look::Looks::default(),
            settling: None,
        })
    }

    /// Where its tensors lie in a [`Snapshot`], and their names and shapes.
    pub fn tensors(&self) -> (Arc<Layout>, Arc<Params>) {
        (Arc::clone(&self.layout), Arc::clone(&self.params))
    }

    /// Which kernels it runs, for its checkpoints: those that are not of the table of defaults.
    fn kernels(&self) -> String {
        self.session.choices().to_json()
    }

    /// What its checkpoints say of it: after so many steps, on images of such a fingerprint.
    ///
    /// # Errors
    /// If the settings cannot be written.
    pub fn meta(&self, steps: u64, data: &str) -> Result<BTreeMap<String, String>, RunError> {
        let mut meta = vec![
            ("step", steps.to_string()),
            ("seed", self.config.seed.to_string()),
            ("config", config_text(&self.config)?),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("data", data.to_owned()),
            ("device", self.session.device()),
            ("kernels", self.kernels()),
        ];
        if !self.window.is_empty() {
            meta.push(("window", window_text(&self.window)));
        }
        Ok(meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The device that it runs on.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session without the trainer, which still holds its plans.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// The plan of a step, or of one of its batches.
    pub fn plan(&self) -> &Plan {
        self.session.plan(self.plans.train)
    }

    /// What is trained, for people.
    pub fn describe(&self) -> String {
        let config = &self.config;
        format!(
            "{} on {:?}: {:?} encoder of width {}, {} parameters, {} training images, {} steps per \
             epoch, seed {}",
            config.method.name(),
            config.dataset,
            config.encoder,
            config.width,
            self.params.count(),
            self.splits.train.len(),
            self.timetable.per_epoch,
            config.seed
        )
    }

    /// Where its images are, for people; `None` on a host, which reads them where they are.
    pub fn describe_images(&self) -> Option<String> {
        let train = self.splits.train.len();
        match &self.images {
            Ok(set) => Some(format!(
                "images: {train} stay on the device, in {:.1} MB",
                set.bytes() as f64 / 1e6
            )),
            Err(reason) if reason.is_empty() => None,
            Err(reason) => Some(format!("images: uploaded by every step, since {reason}")),
        }
    }

    /// The batches of these steps, counted from 0: without pixels where the images stay on the
    /// device.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn batches(&self, steps: Range<u64>) -> Result<Loader, DataError> {
        let order = (self.timetable.order, self.config.accumulate);
        resident::batches(&self.session, self.plans.train, &self.splits.train, order, steps)
    }

    /// Takes the following steps at another learning rate. Records say what it is, and checkpoints
    /// carry it: who restores one goes on at that rate, to the bit.
    ///
    /// # Errors
    /// If it is out of the setting's range, or a step before was not finite.
    pub fn set_learning_rate(&mut self, rate: f32) -> Result<(), RunError> {
        // A step that failed is run again at the rate that it had.
        self.drain()?;
        let config = RunConfig { learning_rate: rate, ..self.config.clone() };
        config.validate().map_err(|message| RunError::config(message, None))?;
        self.config = config;
        Ok(())
    }

    /// Sets the initial weights: drawn from the seed, or given ones.
    pub fn initialise(&mut self, given: Option<&Checkpoint>) -> Result<(), RunError> {
        let session = &mut self.session;
        state::initialise(session, &self.layout, &self.params, self.config.seed)?;
        let Some(given) = given else { return Ok(()) };
        // A classifier that is trained along starts anew, whether the file has one or not.
        let params =
            self.params.all.iter().filter(|p| !p.name.starts_with(method::ONLINE_PROBE)).cloned();
        state::import(session, &self.layout, &Params { all: params.collect() }, given, &[])
    }

    /// Sets weights, moments and the scalars that no record holds yet to those of a checkpoint.
    pub fn restore(&mut self, checkpoint: &Checkpoint, window: Window) -> Result<(), RunError> {
        let moments = self.config.update().moments();
        state::import(&mut self.session, &self.layout, &self.params, checkpoint, moments)?;
        state::resume_loss_scale(&mut self.session, &self.layout, checkpoint)?;
        self.window = window;
        Ok(())
    }

    /// Reads weights and moments after so many steps.
    pub fn snapshot(&mut self, steps: u64) -> Result<Snapshot, RunError> {
        let batches = steps * self.config.accumulate as u64;
        state::snapshot(&mut self.session, batches, self.config.update().moments())
    }

    /// Queues the next step, of batches of its training images; `None` if they end before it is
    /// whole.
    pub fn step(
        &mut self,
        batches: &mut impl Iterator<Item = Result<Batch, DataError>>,
    ) -> Result<Option<Step>, RunError> {
        let parts = self.config.accumulate;
        for part in 0..parts {
            let Some(batch) = batches.next() else { break };
            let batch = batch?;
            let uniform = part_uniforms(&self.config, self.timetable.per_epoch, batch.step, part);
            feed(&mut self.session, self.plans.train, &batch)?;
            self.session.run(self.plans.train, &uniform)?;
            if part + 1 == parts {
                if let Some(update) = self.plans.update {
                    self.session.run(update, &uniform)?;
                }
                return Ok(Some(Step { number: batch.step + 1, uniform, batch }));
            }
        }
        Ok(None)
    }

    /// Asks the device for what a record of training up to a step says. The device goes on with
    /// what is queued until the answer is wanted.
    ///
    /// # Errors
    /// If the device fails.
    pub fn ask(&mut self, step: &Step) -> Result<Asked, RunError> {
        for plan in [Some(self.plans.train), self.plans.update].into_iter().flatten() {
            self.session.request(plan)?;
        }
        let (number, epoch) = (step.number, step.batch.epoch);
        let scale = state::request_scale(&mut self.session, &self.layout)?;
        let (closes, rate) = (self.timetable.due(number, "train"), step.uniform.learning_rate);
        Ok(Asked { number, epoch, rate, scale, closes })
    }

    /// The record that was asked for: means of the scalars of the steps since the last one that was
    /// due; the scale of the loss and the steps that were skipped because a gradient overflowed,
    /// where the loss is scaled; and the learning rate. Stops the run if a scalar is not finite.
    ///
    /// # Errors
    /// If the device fails.
    pub fn answer(&mut self, asked: Asked) -> Result<MetricsRecord, RunError> {
        self.take(Session::requested)?;
        let of = |(step, _): &(u32, Vec<f32>)| u64::from(*step) < asked.number;
        let rows: Window = self.window.iter().filter(|row| of(row)).cloned().collect();
        let mut values = means(self.names(self.plans.train), &rows);
        measure::add_bound(&self.model, &mut values);
        if asked.closes {
            self.window.retain(|row| !of(row));
        }
        if let Some(read) = asked.scale {
            let [scale, skipped] = state::scale(&mut self.session, read)?;
            values.extend([("loss_scale".to_owned(), scale), ("skipped".to_owned(), skipped)]);
        }
        values.push(("lr".to_owned(), asked.rate));
        Ok(record(asked.number, asked.epoch, "train", &values))
    }

    /// Forgets the scalars of a step that was begun after so many: nothing of it counts.
    pub fn abandon(&mut self, steps: u64) -> Result<(), RunError> {
        self.drain()?;
        self.window.retain(|(of, _)| u64::from(*of) < steps);
        Ok(())
    }

    /// Scalars that a training step gives.
    pub fn scalars(&self) -> usize {
        self.names(self.plans.train).len()
    }

    /// Names of the metrics among a plan's scalars; [`optim::FINITE`], which is none, is the last.
    fn names(&self, plan: PlanId) -> Vec<String> {
        let scalars = &self.session.plan(plan).ring.scalars;
        scalars.iter().filter(|name| *name != optim::FINITE).cloned().collect()
    }

    /// Adds the scalars of all batches queued so far to the window. Stops the run if one is not
    /// finite, or a gradient was not.
    fn drain(&mut self) -> Result<(), RunError> {
        self.take(Session::drain)
    }

    /// Adds the scalars that `read` returns of the plans of a step to the window.
    fn take(
        &mut self,
        read: impl Fn(&mut Session, PlanId) -> Result<Vec<(u32, Vec<f32>)>, DeviceError>,
    ) -> Result<(), RunError> {
        let mut batches = read(&mut self.session, self.plans.train)?;
        let updates = match self.plans.update {
            Some(update) => read(&mut self.session, update)?,
            None => vec![],
        };
        let failed = |(_, values): &&(u32, Vec<f32>)| !finite(values);
        let of_update =
            (self.plans.update.unwrap_or(self.plans.train), updates.iter().find(failed));
        let first = [(self.plans.train, batches.iter().find(failed)), of_update].into_iter();
        // Where an update and a batch of the same step failed, the batch is named: it came first.
        let first = first.filter_map(|(plan, row)| Some((plan, row?))).min_by_key(|f| f.1.0);
        if let Some((plan, (step, values))) = first {
            let what = if self.layout.scaled { RunError::what_scaled } else { RunError::what };
            let what = what(&self.session.plan(plan).ring.scalars, values);
            let tensor = self.find_failure(u64::from(*step))?;
            return Err(RunError::NotFinite {
                split: "training",
                step: u64::from(*step) + 1,
                what,
                tensor,
            });
        }
        let metrics = self.names(self.plans.train).len();
        batches.iter_mut().for_each(|(_, values)| values.truncate(metrics));
        self.window.extend(batches);
        Ok(())
    }

    /// Runs a step again, op by op, for the first tensor that is not finite. Since that step
    /// nothing has been updated, so the weights are still those that made it.
    fn find_failure(&mut self, step: u64) -> Result<Option<String>, RunError> {
        let per_epoch = self.timetable.per_epoch;
        for (part, batch) in self.batches(step..step + 1)?.enumerate() {
            feed(&mut self.session, self.plans.train, &batch?)?;
            let uniform = part_uniforms(&self.config, per_epoch, step, part);
            if let Some(tensor) = self.session.first_non_finite(self.plans.train, &uniform)? {
                return Ok(Some(tensor));
            }
        }
        let uniform = uniforms(&self.config, per_epoch, step);
        match self.plans.update {
            Some(update) => Ok(self.session.first_non_finite(update, &uniform)?),
            None => Ok(None),
        }
    }

    /// How alike views and originals of a step are; empty if nobody asks.
    pub fn views(&mut self, step: &Step) -> Result<Scalars, RunError> {
        self.measures.views(&mut self.session, &step.batch, &step.uniform)
    }

    /// Means over the held-out images, if there are any. Stops the run if they are not finite: the
    /// weights that made them are not worth keeping. `stop` ends the wait for images.
    pub fn validate(
        &mut self,
        step: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Scalars>, RunError> {
        let Some(plan) = self.plans.validation else { return Ok(None) };
        let size = self.sizes.validation;
        let (names, seed) = (self.names(plan), self.config.seed);
        let (session, val) = (&mut self.session, &self.splits.val);
        for batch in Loader::eval_batches(val, size)?.unless(stop) {
            let batch = batch?;
            if batch.valid == size {
                feed(session, plan, &batch)?;
                session.run(plan, &StepUniforms::evaluation(seed, batch.step))?;
            }
        }
        let batches = session.drain(plan)?;
        if let Some((batch, (_, values))) =
            batches.iter().enumerate().find(|(_, (_, v))| !finite(v))
        {
            if let Some(again) = Loader::eval_batches(val, size)?.unless(stop).nth(batch) {
                feed(session, plan, &again?)?;
            }
            let tensor =
                session.first_non_finite(plan, &StepUniforms::evaluation(seed, batch as u64))?;
            let what = RunError::what(&session.plan(plan).ring.scalars, values);
            return Err(RunError::NotFinite { split: "validation", step, what, tensor });
        }
        let mut means = means(names, &batches);
        measure::add_bound(&self.model, &mut means);
        Ok(Some(means))
    }

    /// Likelihood and kNN of the held-out images; empty if nobody asks. `stop` ends the wait for
    /// images.
    pub fn evaluate(&mut self, stop: &dyn Fn() -> bool) -> Result<Scalars, RunError> {
        self.measures.evaluate(&mut self.session, self.splits, stop)
    }

    /// A picture of views of the first held-out images, where the method sees views. `stop` ends
    /// the wait for images.
    pub fn picture_views(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Picture>, RunError> {
        let sees = self.model.objective.method.augments();
        sees.then(|| self.picture(pictures::augmentation_grid, stop)).transpose()
    }

    /// A picture of the first held-out images and their reconstructions, where the method
    /// reconstructs. `stop` ends the wait for images.
    pub fn picture_reconstructions(
        &mut self,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Picture>, RunError> {
        let reconstructs = self.model.objective.method.reconstructs();
        reconstructs.then(|| self.picture(pictures::reconstruction_grid, stop)).transpose()
    }

    fn picture(&mut self, draw: Draw, stop: &dyn Fn() -> bool) -> Result<Picture, RunError> {
        let (plan, images) = (self.plans.figures, self.sizes.figures);
        let batch = pictures::first(self.shown(), images, stop)?;
        let step = StepUniforms::evaluation(self.config.seed, 0);
        draw(&mut self.session, plan, &self.model, &batch, &step)
    }
}

type Draw =
    fn(&mut Session, PlanId, &ModelConfig, &Batch, &StepUniforms) -> Result<Picture, RunError>;

fn finite(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_finite())
}

fn means(names: Vec<String>, steps: &[(u32, Vec<f32>)]) -> Scalars {
    let mean =
        |k: usize| steps.iter().map(|(_, v)| f64::from(v[k])).sum::<f64>() / steps.len() as f64;
    if steps.is_empty() {
        vec![]
    } else {
        names.into_iter().enumerate().map(|(k, name)| (name, mean(k) as f32)).collect()
    }
}

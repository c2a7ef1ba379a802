//! The training loop. Linear, no callbacks: read a batch, run the plan, log, save.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::checkpoint::Checkpoint;
use super::config::RunConfig;
use super::events::EventWriter;
use super::metrics::{MetricsLog, Record};
use super::progress::Progress;
use super::run::{model_config, open_data};
use super::store::Store;
use super::{TrainError, evaluate, state};
use crate::data::{Loader, Order, Splits, View};
use crate::device::{self, Choice, Data, PlanId, Session};
use crate::ir::Layout;
use crate::method::{self, ModelConfig, Training};
use crate::nn::Params;
use crate::ops::StepUniforms;
use crate::plan::{Options, lower};

/// Steps of validation and figures draw their randomness from here on, so that they never share a draw with training.
const EVALUATION_STEP: u32 = 1 << 31;

/// What a run is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    /// Configuration, validated.
    pub config: &'a RunConfig,
    /// Device.
    pub device: Choice,
    /// Run folder.
    pub out: &'a Path,
    /// Continue from its latest checkpoint.
    pub resume: bool,
    /// Set by Ctrl-C: save and stop.
    pub interrupt: &'a AtomicBool,
}

/// What a run did.
#[derive(Debug)]
pub struct Outcome {
    /// Steps taken in all.
    pub steps: u64,
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
    /// SHA-256 of the final weights and optimiser state.
    pub digest: String,
    /// Checkpoint with the final weights.
    pub checkpoint: PathBuf,
}

/// Learning rate of a step: linear from 0 over the warm-up, then constant (the paper, section 4).
pub fn learning_rate(config: &RunConfig, steps_per_epoch: u64, step: u64) -> f32 {
    let warmup = config.warmup_epochs as u64 * steps_per_epoch;
    if step < warmup { (f64::from(config.learning_rate) * step as f64 / warmup as f64) as f32 } else { config.learning_rate }
}

/// The uniform of a training step.
pub fn uniforms(config: &RunConfig, steps_per_epoch: u64, step: u64) -> StepUniforms {
    let t = step as f64 + 1.0;
    StepUniforms {
        seed_lo: config.seed as u32,
        seed_hi: (config.seed >> 32) as u32,
        step: step as u32,
        first_sample: 0,
        learning_rate: learning_rate(config, steps_per_epoch, step),
        bias1: (1.0 / (1.0 - 0.9f64.powf(t))) as f32,
        bias2: (1.0 / (1.0 - 0.999f64.powf(t))) as f32,
        reserved: 0.0,
    }
}

fn evaluation_uniforms(seed: u64, batch: u64) -> StepUniforms {
    StepUniforms { seed_lo: seed as u32, seed_hi: (seed >> 32) as u32, step: EVALUATION_STEP + batch as u32, ..StepUniforms::default() }
}

/// Pretrains a model.
///
/// # Errors
/// Whatever stops it; the checkpoints written before stay whole.
pub fn pretrain(request: &Request<'_>) -> Result<Outcome, TrainError> {
    let config = request.config;
    let splits = open_data(config)?;
    let order = Order::new(splits.train.len(), config.batch_size, config.seed, config.shuffle)?;
    let per_epoch = order.steps_per_epoch();
    let total = (config.epochs as u64 * per_epoch).min(config.max_steps.unwrap_or(u64::MAX));
    let (mut session, why) = device::open(&request.device)?;
    let session = session.as_mut();
    let mut run = Run::new(request, session, &splits)?;

    let start = if request.resume { run.resume(session)? } else { run.begin(session)? };
    let log = request.out.join("train.log");
    let mut progress =
        Progress::new(total, config.batch_size, start).with_epochs(per_epoch).with_log(&log).map_err(TrainError::io("open", log))?;
    for warning in std::mem::take(&mut run.warnings) {
        progress.message(&warning);
    }
    progress.message(&format!("device: {} ({why})", session.device()));
    progress.message(&format!(
        "{} on {:?}: {:?} encoder of width {}, {} parameters, {} training images, {per_epoch} steps per epoch, seed {}",
        config.method.name(),
        config.dataset,
        config.encoder,
        config.width,
        run.params.count(),
        splits.train.len(),
        config.seed
    ));
    if start > 0 {
        progress.message(&format!("resumed at step {start} of {total}"));
    }

    let began = Instant::now();
    let (mut logged_at, mut logged_step, mut outside) = (Instant::now(), start, Duration::ZERO);
    let mut step = start;
    let mut interrupted = false;
    for batch in Loader::new(&splits.train, order, start..total)? {
        let batch = batch?;
        let uniform = uniforms(config, per_epoch, step);
        session.upload(run.train, 0, Data::U32(&batch.pixels))?;
        session.run(run.train, &uniform)?;
        step += 1;
        interrupted = request.interrupt.load(Ordering::Relaxed);
        let end_of_epoch = step % per_epoch == 0 || step == total || interrupted;
        if step % config.log_every == 0 || end_of_epoch {
            let means = run.drain(session, &splits.train, order)?;
            let rate = (step - logged_step) as f64 * config.batch_size as f64 / logged_at.elapsed().as_secs_f64().max(1e-9);
            let loss = means.first().map_or(f32::NAN, |m| m.1);
            let record =
                record(step, batch.epoch, "train", &means).with("lr", uniform.learning_rate).with("images_per_second", rate as f32);
            run.log(&record)?;
            run.last = Some(record);
            progress.update(step, loss);
            (logged_at, logged_step) = (Instant::now(), step);
        }
        if end_of_epoch {
            let pause = Instant::now();
            if !interrupted && !splits.val.is_empty() {
                let means = run.validate(session, &splits.val)?;
                let record = record(step, batch.epoch, "val", &means);
                run.log(&record)?;
                run.validation = Some(record);
            }
            let epochs = (step / per_epoch) as usize;
            let picture = epochs == 1 || step == total || epochs.is_multiple_of(config.epochs.div_ceil(8));
            if picture && !interrupted {
                run.figures(session, &splits, step)?;
            }
            run.save(session, step)?;
            outside += pause.elapsed();
            (logged_at, logged_step) = (Instant::now(), step);
        }
        if interrupted {
            progress.message(&format!("interrupted: saved at step {step} of {total}; `--resume` continues"));
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    if step == start {
        run.save(session, step)?; // nothing to do, but the run folder is whole
    }
    progress.finish();
    let trained = (step - start) as f64 * config.batch_size as f64;
    Ok(Outcome {
        steps: step,
        interrupted,
        seconds,
        images_per_second: trained / (seconds - outside.as_secs_f64()).max(1e-9),
        device: session.device(),
        last: run.last,
        validation: run.validation,
        digest: run.digest,
        checkpoint: request.out.join("checkpoints/last.safetensors"),
    })
}

/// A model on its device with its run folder.
struct Run<'a> {
    request: &'a Request<'a>,
    model: ModelConfig,
    layout: Layout,
    params: Params,
    train: PlanId,
    validation_plan: Option<(PlanId, usize)>,
    figure_plan: PlanId,
    figure_batch: usize,
    store: Store,
    metrics: Option<MetricsLog>,
    events: Option<EventWriter>,
    last: Option<Record>,
    validation: Option<Record>,
    warnings: Vec<String>,
    digest: String,
}

impl<'a> Run<'a> {
    fn new(request: &'a Request<'a>, session: &mut dyn Session, splits: &Splits) -> Result<Self, TrainError> {
        let model = model_config(request.config, splits);
        let training = method::training(&model, Training::default());
        let layout = training.graph.layout.clone();
        session.allocate(&layout)?;
        let options = Options { target: session.target(), alias: true };
        let train = session.load(lower("train", &training.graph, options)).map_err(|e| evaluate::fitting(e, model.batch))?;
        let validation_plan = match splits.val.len().min(model.batch) {
            n if n < 2 => None,
            n => Some((
                session.load(lower("validation", &method::validation(&ModelConfig { batch: n, ..model }, &layout).graph, options))?,
                n,
            )),
        };
        let figure_batch = model.batch.min(16);
        let figure = method::reconstruction(&ModelConfig { batch: figure_batch, ..model }, &layout);
        let figure_plan = session.load(lower("figures", &figure.graph, options))?;
        std::fs::create_dir_all(request.out.join("images")).map_err(TrainError::io("create", request.out.join("images")))?;
        let store = Store::new(request.out.join("checkpoints"));
        Ok(Self {
            request,
            model,
            layout,
            params: training.params,
            train,
            validation_plan,
            figure_plan,
            figure_batch,
            store,
            metrics: None,
            events: None,
            last: None,
            validation: None,
            warnings: Vec::new(),
            digest: String::new(),
        })
    }

    /// A new run: initial weights, fresh logs.
    fn begin(&mut self, session: &mut dyn Session) -> Result<u64, TrainError> {
        let config = self.request.config;
        state::initialise(session, &self.layout, &self.params, config.seed)?;
        if let Some(path) = &config.init_from {
            state::import(session, &self.layout, &self.params, &Checkpoint::load(path)?, false)?;
        }
        let text = toml::to_string(config).map_err(|e| TrainError::config(format!("the configuration cannot be written: {e}"), None))?;
        let path = self.request.out.join("config.toml");
        std::fs::write(&path, text).map_err(TrainError::io("write", path))?;
        self.metrics = Some(MetricsLog::create(self.request.out.join("metrics.jsonl"))?);
        self.events = Some(EventWriter::create(self.request.out).map_err(TrainError::io("create event files in", self.request.out))?);
        Ok(0)
    }

    /// Continues from the latest whole checkpoint, or from nothing if the run was killed before the first.
    fn resume(&mut self, session: &mut dyn Session) -> Result<u64, TrainError> {
        let latest = self.store.latest();
        self.warnings = latest.skipped.iter().map(|error| format!("warning: skipped a checkpoint: {error}")).collect();
        let Some((path, checkpoint)) = latest.found else { return self.begin(session) };
        let step =
            checkpoint.meta.get("step").and_then(|s| s.parse().ok()).ok_or_else(|| {
                TrainError::config(format!("{} does not say its step; it is no checkpoint of a run", path.display()), None)
            })?;
        state::import(session, &self.layout, &self.params, &checkpoint, true)?;
        self.digest = checkpoint.digest();
        self.metrics = Some(MetricsLog::resume(self.request.out.join("metrics.jsonl"), step)?);
        self.events = Some(EventWriter::resume(self.request.out, step).map_err(TrainError::io("create event files in", self.request.out))?);
        Ok(step)
    }

    fn names(&self, session: &dyn Session, plan: PlanId) -> Vec<String> {
        session.plan(plan).outputs.iter().filter(|p| p.ty.shape.len() == 1).map(|p| p.name.clone()).collect()
    }

    /// Means of the scalars of the steps since the last call. Stops the run if one is not finite.
    fn drain(&self, session: &mut dyn Session, train: &View, order: Order) -> Result<Vec<(String, f32)>, TrainError> {
        let names = self.names(session, self.train);
        let steps = session.drain(self.train)?;
        if let Some((step, values)) = steps.iter().find(|(_, v)| v.iter().any(|x| !x.is_finite())) {
            // The update skips a step whose loss is not finite, so the weights are still those that made it.
            let step = u64::from(*step);
            for batch in Loader::new(train, order, step..step + 1)? {
                session.upload(self.train, 0, Data::U32(&batch?.pixels))?;
            }
            let uniform = uniforms(self.request.config, order.steps_per_epoch(), step);
            let tensor = session.first_non_finite(self.train, &uniform)?.unwrap_or_else(|| "loss".into());
            return Err(TrainError::NotFinite { step, loss: values[0], tensor });
        }
        Ok(means(names, &steps))
    }

    fn validate(&self, session: &mut dyn Session, val: &View) -> Result<Vec<(String, f32)>, TrainError> {
        let Some((plan, size)) = self.validation_plan else { return Ok(vec![]) };
        let names = self.names(session, plan);
        for batch in Loader::eval_batches(val, size)? {
            let batch = batch?;
            if batch.valid == size {
                session.upload(plan, 0, Data::U32(&batch.pixels))?;
                session.run(plan, &evaluation_uniforms(self.request.config.seed, batch.step))?;
            }
        }
        Ok(means(names, &session.drain(plan)?))
    }

    fn log(&mut self, record: &Record) -> Result<(), TrainError> {
        if let Some(log) = &mut self.metrics {
            log.write(record)?;
        }
        if let Some(events) = &mut self.events {
            let write = |events: &mut EventWriter| -> std::io::Result<()> {
                for (name, value) in &record.values {
                    events.scalar(record.step, &format!("{}/{name}", record.split), *value)?;
                }
                events.flush()
            };
            write(events).map_err(TrainError::io("write event files in", self.request.out))?;
        }
        Ok(())
    }

    /// Pictures of what is trained: originals, views and reconstructions of the first held-out images.
    fn figures(&mut self, session: &mut dyn Session, splits: &Splits, step: u64) -> Result<(), TrainError> {
        let view = if splits.val.len() >= self.figure_batch { &splits.val } else { &splits.train };
        let png = evaluate::reconstruction_grid(
            session,
            self.figure_plan,
            &self.model,
            view,
            self.figure_batch,
            &evaluation_uniforms(self.request.config.seed, 0),
        )?;
        let views = self.request.out.join("images/augmentation.png");
        if self.model.objective.method.augments() && !views.exists() {
            let uniform = evaluation_uniforms(self.request.config.seed, 0);
            let png = evaluate::augmentation_grid(session, self.figure_plan, &self.model, view, self.figure_batch, &uniform)?;
            std::fs::write(&views, &png.bytes).map_err(TrainError::io("write", views))?;
        }
        let path = self.request.out.join(format!("images/reconstruction-{step:06}.png"));
        std::fs::write(&path, &png.bytes).map_err(TrainError::io("write", path))?;
        if let Some(events) = &mut self.events {
            let failed = TrainError::io("write event files in", self.request.out);
            events.image(step, "reconstruction", png.width, png.height, &png.bytes).map_err(failed)?;
        }
        Ok(())
    }

    fn save(&mut self, session: &mut dyn Session, step: u64) -> Result<(), TrainError> {
        let config = self.request.config;
        let text = toml::to_string(config).map_err(|e| TrainError::config(format!("the configuration cannot be written: {e}"), None))?;
        let tensors = state::export(session, &self.layout, &self.params, step, true)?;
        let meta = [("step", step.to_string()), ("seed", config.seed.to_string()), ("config", text)];
        let meta = meta.into_iter().chain([("version", env!("CARGO_PKG_VERSION").to_owned())]);
        let checkpoint = Checkpoint { tensors, meta: meta.map(|(k, v)| (k.to_owned(), v)).collect() };
        self.digest = checkpoint.digest();
        // Metrics first: a run killed between the two is resumed with every record of the steps that its checkpoint holds.
        if let Some(log) = &self.metrics {
            log.sync()?;
        }
        self.store.save(step, &checkpoint, config.keep)?;
        Ok(())
    }
}

fn record(step: u64, epoch: u32, split: &str, values: &[(String, f32)]) -> Record {
    values.iter().fold(Record::new(step, u64::from(epoch), split), |r, (name, value)| r.with(name, *value))
}

fn means(names: Vec<String>, steps: &[(u32, Vec<f32>)]) -> Vec<(String, f32)> {
    let mean = |k: usize| steps.iter().map(|(_, v)| f64::from(v[k])).sum::<f64>() / steps.len() as f64;
    if steps.is_empty() { vec![] } else { names.into_iter().enumerate().map(|(k, name)| (name, mean(k) as f32)).collect() }
}

//! The training loop. Linear, no callbacks: read a batch, run the plan, log, save.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checkpoint::{Checkpoint, NamedTensor, TensorData};
use super::config::RunConfig;
use super::events::EventWriter;
use super::interrupt::Interrupt;
use super::measure::{self, Measures};
use super::metrics::{self, MetricsLog, Record};
use super::plans::{self, Sizes};
use super::progress::Progress;
use super::run::{config_text, model_config, open_data, write_config, write_whole};
use super::schedule::{EVALUATION_STEP, due, evaluation_uniforms, order, part_uniforms, uniforms};
use super::store::Store;
use super::{TrainError, evaluate, foreign, state};
use crate::data::{Batch, Loader, Order, Splits, View};
use crate::device::{self, Choice, Data, PlanId, Session};
use crate::ir::Layout;
use crate::method::{self, ModelConfig};
use crate::nn::Params;
use crate::text;

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

/// Pretrains a model.
///
/// # Errors
/// Whatever stops it; the checkpoints written before stay whole.
pub fn pretrain(request: &Request<'_>) -> Result<Outcome, TrainError> {
    let config = request.config;
    let splits = open_data(config)?;
    let order = order(config, splits.train.len())?;
    let per_epoch = order.steps_per_epoch();
    let total = config.total_steps(per_epoch);
    if total > u64::from(EVALUATION_STEP) {
        let message = format!("{total} steps are more than {EVALUATION_STEP}, the most that have random numbers of their own");
        return Err(TrainError::config(message, Some("use fewer --epochs, or --max-steps")));
    }
    let (mut session, why) = device::open(&request.device)?;
    let session = &mut session;
    let mut run = Run::new(request, session, &splits)?;

    let start = if request.resume { run.resume(session, per_epoch, total)? } else { run.begin(session)? };
    let log = request.out.join("train.log");
    let mut progress =
        Progress::new(total, config.images_per_step(), start).with_epochs(per_epoch).with_log(&log).map_err(TrainError::io("open", log))?;
    let asked = (config.eval_every > 0).then_some(splits.labelled_train.len());
    let left_out = asked.and_then(evaluate::knn_left_out);
    let notes = splits.notes.iter().chain(&left_out).map(|note| format!("note: {note}"));
    for warning in notes.chain(std::mem::take(&mut run.warnings)) {
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
    // From here on there is something to save.
    let saving = request.interrupt.saving();
    let batches = Loader::in_parts(&splits.train, order, config.accumulate, start..total)?;
    for (part, batch) in (0..config.accumulate).cycle().zip(batches.until(|| request.interrupt.asked())) {
        let batch = batch?;
        let uniform = part_uniforms(config, per_epoch, step, part);
        feed(session, run.train, &batch)?;
        session.run(run.train, &uniform)?;
        if part + 1 < config.accumulate {
            continue;
        }
        if let Some(update) = run.update {
            session.run(update, &uniform)?;
        }
        step += 1;
        if config.view_metrics_every > 0 && step.is_multiple_of(config.view_metrics_every) {
            let values = run.measures.views(session, &batch.pixels, &uniform)?;
            run.log(&record(step, batch.epoch, "view", &values))?;
        }
        interrupted = request.interrupt.asked();
        let end_of_epoch = step % per_epoch == 0;
        let stop = step == total || interrupted;
        if due(config, per_epoch, step, "train") || stop {
            run.drain(session, &splits.train, order)?;
            let mut means = means(run.names(session, run.train), &run.window);
            measure::add_bound(&run.model, &mut means);
            let rate = (step - logged_step) as f64 * config.images_per_step() as f64 / logged_at.elapsed().as_secs_f64().max(1e-9);
            let loss = means.first().map_or(f32::NAN, |m| m.1);
            let record =
                record(step, batch.epoch, "train", &means).with("lr", uniform.learning_rate).with("images_per_second", rate as f32);
            run.log(&record)?;
            run.last = Some(record);
            if due(config, per_epoch, step, "train") {
                run.window.clear();
            }
            progress.update(step, loss);
            (logged_at, logged_step) = (Instant::now(), step);
        }
        if end_of_epoch || stop {
            let pause = Instant::now();
            if (end_of_epoch || step == total) && run.validation_plan.is_some() {
                let means = run.validate(session, &splits.val, step)?;
                let record = record(step, batch.epoch, "val", &means);
                run.log(&record)?;
                run.validation = Some(record);
            }
            if due(config, per_epoch, step, "eval") || step == total {
                let values = run.measures.evaluate(session, &splits)?;
                if !values.is_empty() {
                    let text: Vec<_> = values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                    progress.message(&format!("evaluation at step {step}: {}", text.join(", ")));
                    let record = record(step, batch.epoch, "eval", &values);
                    run.log(&record)?;
                    run.evaluation = Some(record);
                }
            }
            let epochs = (step / per_epoch) as usize;
            if step == total || (end_of_epoch && (epochs == 1 || epochs.is_multiple_of(config.epochs.div_ceil(8)))) {
                run.figures(session, &splits, step)?;
            }
            let milestone = if end_of_epoch { config.milestones.iter().find(|m| **m == epochs) } else { None };
            run.save(session, step, milestone.copied())?;
            outside += pause.elapsed();
            (logged_at, logged_step) = (Instant::now(), step);
        }
        if interrupted {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    if step < total && !interrupted {
        // It was interrupted between two steps or within one, of which nothing counts.
        interrupted = true;
        run.drain(session, &splits.train, order)?;
        run.window.retain(|(of, _)| u64::from(*of) < step);
        run.save(session, step, None)?;
    } else if step == start {
        run.save(session, step, None)?; // nothing to do, but the run folder is whole
    }
    if interrupted {
        progress.message(&format!("interrupted: saved at step {step} of {total}; `--resume` continues"));
    }
    drop(saving);
    progress.finish();
    let trained = (step - start) as f64 * config.images_per_step() as f64;
    Ok(Outcome {
        steps: step,
        resumed_at: start,
        interrupted,
        seconds,
        images_per_second: trained / (seconds - outside.as_secs_f64()).max(1e-9),
        device: session.device(),
        last: run.last,
        validation: run.validation,
        evaluation: run.evaluation,
        digest: run.digest,
        checkpoint: request.out.join("checkpoints/last.safetensors"),
    })
}

/// Uploads a batch: the images, and the labels to a plan that reads them (once for each view of the images).
fn feed(session: &mut Session, plan: PlanId, batch: &Batch) -> Result<(), TrainError> {
    session.upload(plan, 0, Data::U32(&batch.pixels))?;
    if let Some((input, port)) = session.plan(plan).input("labels") {
        let views = port.ty.shape.n / batch.labels.len();
        session.upload(plan, input, Data::U32(&batch.labels.repeat(views)))?;
    }
    Ok(())
}

/// A model on its device with its run folder.
struct Run<'a> {
    request: &'a Request<'a>,
    model: ModelConfig,
    layout: Layout,
    params: Params,
    /// A step, or one of its batches.
    train: PlanId,
    /// The update from several batches.
    update: Option<PlanId>,
    validation_plan: Option<(PlanId, usize)>,
    figure_plan: PlanId,
    figure_batch: usize,
    measures: Measures,
    store: Store,
    metrics: Option<MetricsLog>,
    events: Option<EventWriter>,
    /// Scalars of the batches since the last record that was due, by step.
    window: Vec<(u32, Vec<f32>)>,
    last: Option<Record>,
    validation: Option<Record>,
    evaluation: Option<Record>,
    warnings: Vec<String>,
    digest: String,
}

impl<'a> Run<'a> {
    fn new(request: &'a Request<'a>, session: &mut Session, splits: &Splits) -> Result<Self, TrainError> {
        let model = model_config(request.config, splits);
        let config = request.config;
        Measures::check(config, splits)?;
        let held_out = splits.val.len();
        let plans = plans::load(session, config, &model, held_out)?;
        let sizes = Sizes::new(config, model.batch, held_out);
        let (graphs, params) = plans::graphs(config, &model, sizes);
        let measures = Measures::new(&plans, sizes, config, &model);
        std::fs::create_dir_all(request.out.join("images")).map_err(TrainError::io("create", request.out.join("images")))?;
        let store = Store::new(request.out.join("checkpoints"));
        Ok(Self {
            request,
            model,
            layout: graphs.train.layout,
            params,
            train: plans.train,
            update: plans.update,
            validation_plan: plans.validation.map(|plan| (plan, sizes.validation)),
            figure_plan: plans.figures,
            figure_batch: sizes.figures,
            measures,
            store,
            metrics: None,
            events: None,
            window: Vec::new(),
            last: None,
            validation: None,
            evaluation: None,
            warnings: Vec::new(),
            digest: String::new(),
        })
    }

    /// A new run: initial weights, fresh logs.
    fn begin(&mut self, session: &mut Session) -> Result<u64, TrainError> {
        let config = self.request.config;
        state::initialise(session, &self.layout, &self.params, config.seed)?;
        if let Some(path) = &config.init_from {
            // A classifier that is trained along starts anew, whether the file has one or not.
            let params = self.params.all.iter().filter(|p| !p.name.starts_with(method::ONLINE_PROBE)).cloned();
            let params = Params { all: params.collect() };
            let mut file = Checkpoint::load(path)?;
            let named = |message| TrainError::config(format!("`{}`: {message}", text::name(path)), None);
            if let Some(prefix) = foreign::unwrap(&mut file).map_err(named)? {
                self.warnings.push(format!("note: the names of the weights began with `{prefix}`, which was taken off"));
            }
            state::import(session, &self.layout, &params, &file, &[]).map_err(|e| e.of_file(path))?;
        }
        write_config(&self.request.out.join("config.toml"), config)?;
        self.metrics = Some(MetricsLog::create(self.request.out.join("metrics.jsonl"))?);
        self.events = Some(EventWriter::create(self.request.out).map_err(TrainError::io("create event files in", self.request.out))?);
        Ok(0)
    }

    /// Continues from the latest whole checkpoint, or from nothing if the run was killed before the first.
    fn resume(&mut self, session: &mut Session, per_epoch: u64, total: u64) -> Result<u64, TrainError> {
        let (config, out) = (self.request.config, self.request.out);
        let latest = self.store.latest();
        self.warnings = latest.skipped.iter().map(|error| format!("warning: skipped a checkpoint: {error}")).collect();
        let Some((path, checkpoint)) = latest.found else {
            // Training from nothing would bury what is there.
            return match latest.skipped.first() {
                Some(error) => {
                    let message = format!("no checkpoint of {} is whole: {error}", out.display());
                    Err(TrainError::config(message, Some("bring one back from a backup, or start another run with another --out")))
                }
                None => self.begin(session),
            };
        };
        let step =
            checkpoint.meta.get("step").and_then(|s| s.parse().ok()).ok_or_else(|| {
                TrainError::config(format!("{} does not say its step; it is no checkpoint of a run", path.display()), None)
            })?;
        let here = env!("CARGO_PKG_VERSION");
        if let Some(version) = checkpoint.meta.get("version").filter(|version| *version != here) {
            let message = format!("{} is of version {version}, this is {here}: the bits could differ", path.display());
            return Err(TrainError::config(
                message,
                Some("resume it with that version, or start another run from its weights with --init-from"),
            ));
        }
        if step > total {
            let message = format!("{} has taken {step} steps already, more than the {total} asked for", out.display());
            return Err(TrainError::config(message, Some("raise --epochs or --max-steps to continue")));
        }
        state::import(session, &self.layout, &self.params, &checkpoint, config.update().moments()).map_err(|e| e.of_file(&path))?;
        self.digest = checkpoint.digest();
        if let Some(text) = checkpoint.meta.get("window") {
            let metrics = self.names(session, self.train).len();
            let window = serde_json::from_str(text).ok().filter(|w: &Vec<(u32, Vec<u32>)>| w.iter().all(|s| s.1.len() == metrics));
            let window =
                window.ok_or_else(|| TrainError::config(format!("`{}`: the metadata `window` cannot be read", path.display()), None))?;
            self.window = window.into_iter().map(|(step, bits)| (step, bits.into_iter().map(f32::from_bits).collect())).collect();
        }
        // It may have been prolonged.
        write_config(&out.join("config.toml"), config)?;
        let log = out.join("metrics.jsonl");
        let stays = |r: &Record| r.step < step || (r.step == step && (step == total || due(config, per_epoch, step, &r.split)));
        self.metrics = Some(MetricsLog::resume_where(&log, stays)?);
        for record in metrics::read(&log)? {
            match record.split.as_str() {
                "train" => self.last = Some(record),
                "val" => self.validation = Some(record),
                "eval" => self.evaluation = Some(record),
                _ => {}
            }
        }
        // Points of this step that were not due are drawn again.
        let drawn = if step == total || due(config, per_epoch, step, "train") { step } else { step - 1 };
        self.events = Some(EventWriter::resume(out, drawn).map_err(TrainError::io("create event files in", out))?);
        Ok(step)
    }

    /// Names of the metrics among a plan's scalars; [`method::FINITE`], which is none, is the last.
    fn names(&self, session: &Session, plan: PlanId) -> Vec<String> {
        session.plan(plan).ring.scalars.iter().filter(|name| *name != method::FINITE).cloned().collect()
    }

    /// Adds the scalars of the batches since the last call, all of whole steps, to the window. Stops the run if one is not finite, or
    /// a gradient was not.
    fn drain(&mut self, session: &mut Session, train: &View, order: Order) -> Result<(), TrainError> {
        let mut batches = session.drain(self.train)?;
        let updates = self.update.map_or(Ok(vec![]), |update| session.drain(update))?;
        let failed = |(_, values): &&(u32, Vec<f32>)| values.iter().any(|x| !x.is_finite());
        let first = [(self.train, batches.iter().find(failed)), (self.update.unwrap_or(self.train), updates.iter().find(failed))];
        // In the step of an update that failed a batch may have failed first.
        if let Some((plan, (step, values))) = first.into_iter().filter_map(|(plan, row)| Some((plan, row?))).min_by_key(|f| f.1.0) {
            let what = TrainError::what(&session.plan(plan).ring.scalars, values);
            let tensor = self.find_failure(session, train, order, u64::from(*step))?;
            return Err(TrainError::NotFinite { split: "training", step: u64::from(*step) + 1, what, tensor });
        }
        let metrics = self.names(session, self.train).len();
        batches.iter_mut().for_each(|(_, values)| values.truncate(metrics));
        self.window.extend(batches);
        Ok(())
    }

    /// Runs a step again, op by op, for the first tensor that is not finite. Since that step nothing has been updated, so the weights
    /// are still those that made it.
    fn find_failure(&self, session: &mut Session, train: &View, order: Order, step: u64) -> Result<String, TrainError> {
        let (config, per_epoch) = (self.request.config, order.steps_per_epoch());
        for (part, batch) in Loader::in_parts(train, order, config.accumulate, step..step + 1)?.enumerate() {
            feed(session, self.train, &batch?)?;
            let uniform = part_uniforms(config, per_epoch, step, part);
            if let Some(tensor) = session.first_non_finite(self.train, &uniform)? {
                return Ok(tensor);
            }
        }
        let update = self.update.map_or(Ok(None), |plan| session.first_non_finite(plan, &uniforms(config, per_epoch, step)))?;
        Ok(update.unwrap_or_else(|| "loss".into()))
    }

    /// Means over the held-out images. Stops the run if they are not finite: the weights that made them are not worth keeping.
    fn validate(&self, session: &mut Session, val: &View, step: u64) -> Result<Vec<(String, f32)>, TrainError> {
        let Some((plan, size)) = self.validation_plan else { return Ok(vec![]) };
        let names = self.names(session, plan);
        for batch in Loader::eval_batches(val, size)? {
            let batch = batch?;
            if batch.valid == size {
                feed(session, plan, &batch)?;
                session.run(plan, &evaluation_uniforms(self.request.config.seed, batch.step))?;
            }
        }
        let batches = session.drain(plan)?;
        if let Some((batch, (_, values))) = batches.iter().enumerate().find(|(_, (_, v))| v.iter().any(|x| !x.is_finite())) {
            if let Some(again) = Loader::eval_batches(val, size)?.nth(batch) {
                feed(session, plan, &again?)?;
            }
            let uniform = evaluation_uniforms(self.request.config.seed, batch as u64);
            let tensor = session.first_non_finite(plan, &uniform)?.unwrap_or_else(|| "loss".into());
            let what = TrainError::what(&session.plan(plan).ring.scalars, values);
            return Err(TrainError::NotFinite { split: "validation", step, what, tensor });
        }
        let mut means = means(names, &batches);
        measure::add_bound(&self.model, &mut means);
        Ok(means)
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

    /// Pictures of what is trained: originals, views and, where the method has them, reconstructions of the first held-out images.
    fn figures(&mut self, session: &mut Session, splits: &Splits, step: u64) -> Result<(), TrainError> {
        let view = if splits.val.len() >= self.figure_batch { &splits.val } else { &splits.train };
        let (method, uniform) = (self.model.objective.method, evaluation_uniforms(self.request.config.seed, 0));
        let views = self.request.out.join("images/augmentation.png");
        if method.augments() && !views.exists() {
            let png = evaluate::augmentation_grid(session, self.figure_plan, &self.model, view, self.figure_batch, &uniform)?;
            write_whole(&views, &png.bytes)?;
        }
        if !method.reconstructs() {
            return Ok(());
        }
        let png = evaluate::reconstruction_grid(session, self.figure_plan, &self.model, view, self.figure_batch, &uniform)?;
        let path = self.request.out.join(format!("images/reconstruction-{step:06}.png"));
        write_whole(&path, &png.bytes)?;
        if let Some(events) = &mut self.events {
            let failed = TrainError::io("write event files in", self.request.out);
            events.image(step, "reconstruction", png.width, png.height, &png.bytes).map_err(failed)?;
        }
        Ok(())
    }

    fn save(&mut self, session: &mut Session, step: u64, milestone: Option<usize>) -> Result<(), TrainError> {
        let config = self.request.config;
        let batches = step * config.accumulate as u64;
        let tensors = state::export(session, &self.layout, &self.params, batches, config.update().moments())?;
        let bad = |t: &NamedTensor| matches!(&t.data, TensorData::F32(x) if x.iter().any(|x| !x.is_finite()));
        if let Some((tensor, _)) = tensors.iter().find(|(_, t)| bad(t)) {
            return Err(TrainError::NotFiniteState { step, tensor: tensor.clone() });
        }
        let mut meta = vec![("step", step.to_string()), ("seed", config.seed.to_string()), ("config", config_text(config)?)];
        meta.push(("version", env!("CARGO_PKG_VERSION").to_owned()));
        if !self.window.is_empty() {
            let bits: Vec<(u32, Vec<u32>)> = self.window.iter().map(|(s, v)| (*s, v.iter().map(|x| x.to_bits()).collect())).collect();
            meta.push(("window", serde_json::to_string(&bits).expect("numbers")));
        }
        let checkpoint = Checkpoint { tensors, meta: meta.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() };
        self.digest = checkpoint.digest();
        // Metrics first: a run killed between the two is resumed with every record of the steps that its checkpoint holds.
        if let Some(log) = &self.metrics {
            log.sync()?;
        }
        if let Some(epoch) = milestone {
            let mut weights = checkpoint.clone();
            weights.tensors.retain(|name, _| !name.starts_with("optim."));
            self.store.save_milestone(epoch, &weights)?;
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

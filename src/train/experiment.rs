//! A whole experiment in one run folder: pretraining, then the probe and kNN of the frozen encoder,
//! all in `summary.json`.
//!
//! Every stage is resumed where it was stopped: training from its checkpoint, the evaluation from
//! the last line of the summary that is written, so that a process killed at any instant costs at
//! most one evaluation.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::interrupt::Interrupt;
use super::pretrain::{self, Outcome};
use super::progress::{on_compile, timestamp_now};
use super::{recover, schedule};
use crate::data::{Splits, Subset};
use crate::device::{self, DeviceSpec};
use crate::eval::features::{Evaluator, Features};
use crate::eval::knn::{knn_left_out, knn_table};
use crate::eval::probe::{ProbeConfig, ProbeResult, probe};
use crate::method::ModelConfig;
use crate::run::RunError;
use crate::run::folder::RunFolder;
use crate::run::metrics::Record;
use crate::run::resume::{self, Resumed};
use crate::run::settings::RunConfig;
use crate::run::trained::{
    Trained, model_config, open_data, read_config, write_config, write_whole,
};
use crate::text;

/// What is measured once the encoder is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluate {
    /// Nothing.
    Nothing,
    /// Probe and kNN of the final weights.
    End,
    /// The same of the weights at every milestone too.
    Milestones,
}

/// What becomes of a run that is in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// It is an error.
    Refuse,
    /// It is removed.
    Overwrite,
    /// It is resumed; where there is none, one begins.
    Resume,
}

/// What an experiment is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    /// Configuration, validated.
    pub config: &'a RunConfig,
    /// Device.
    pub device: DeviceSpec,
    /// Resume on another device than the run was trained on.
    pub another_device: bool,
    /// Measure which kernels are the fastest, where that is not remembered.
    pub tune: bool,
    /// Run folder.
    pub folder: &'a RunFolder,
    /// What it may hold.
    pub present: Present,
    /// Measurements.
    pub evaluate: Evaluate,
    /// Ctrl-C and `kill`.
    pub interrupt: &'a Interrupt,
}

/// Pretrains and evaluates; returns the contents of `summary.json`. `say` takes lines for people.
///
/// # Errors
/// Whatever stops it; the checkpoints and the summary written before stay whole.
pub fn run(request: &Request<'_>, say: &mut dyn FnMut(&str)) -> Result<Value, RunError> {
    let Request { config, folder, interrupt, .. } = *request;
    let out = folder.path();
    let resumed = match request.present {
        Present::Resume if folder.resumes()? => Some(Resumed::load(folder, config)?),
        Present::Resume => resume::same_beginning(folder, config).map(|()| None)?,
        Present::Refuse => folder.refuse_run().map(|()| None)?,
        Present::Overwrite => None,
    };
    if request.evaluate != Evaluate::Nothing {
        can_be_evaluated(&open_data(config)?)?; // now, not after the training
    }
    let stored =
        resumed.as_ref().map(|resumed| finished(config, out, resumed)).transpose()?.flatten();
    let (mut summary, newest) = match (stored, &resumed) {
        (Some(summary), Some(resumed)) => (summary, resumed.path.clone()),
        _ => {
            let asked = pretrain::Request {
                config,
                another_device: request.another_device,
                tune: request.tune,
                folder,
                interrupt,
            };
            let mut open = || {
                let (mut session, why) = device::open(&request.device)?;
                session.on_compile(on_compile());
                Ok((session, why))
            };
            let outcome = recover::pretrain(&asked, resumed.as_ref(), &mut open)?;
            let summary =
                summary_of(config, out, &outcome, outcome.interrupted || interrupt.asked())?;
            write(out, &summary)?;
            (summary, outcome.checkpoint)
        }
    };
    drop(resumed);
    if request.evaluate == Evaluate::Nothing || summary["interrupted"] == true {
        return Ok(summary);
    }
    let store = folder.store();
    if request.evaluate == Evaluate::Milestones {
        let splits = open_data(config)?;
        for (epoch, step) in schedule::milestones(config, &splits)? {
            let rows =
                summary.get("milestones").and_then(Value::as_array).cloned().unwrap_or_default();
            if rows.iter().any(|row| row["epoch"] == epoch && evaluated(row, config)) {
                continue;
            }
            say(&format!("milestone: epoch {epoch}"));
            let mut row = json!({ "epoch": epoch, "step": step });
            evaluate(config, &request.device, Some(&store.milestone(epoch)), &mut row, say)?;
            if summary["steps"] == step {
                // The end of training: the weights that the summary is about.
                for key in EVALUATION {
                    summary[key] = row[key].clone();
                }
            }
            summary["milestones"] =
                rows.into_iter().filter(|old| old["epoch"] != epoch).chain([row]).collect();
            write(out, &summary)?;
        }
    }
    if !evaluated(&summary, config) {
        evaluate(config, &request.device, Some(&newest), &mut summary, say)?;
        write(out, &summary)?;
    }
    Ok(summary)
}

/// Refuses data that a probe cannot train on: BatchNorm averages over two images at least.
fn can_be_evaluated(splits: &Splits) -> Result<(), RunError> {
    match splits.labelled_train.len() {
        0 | 1 => {
            let message = format!(
                "the probe needs 2 labelled training images, there are {}",
                splits.labelled_train.len()
            );
            Err(RunError::config(
                message,
                Some("add some, or leave the probe and kNN out with --no-eval"),
            ))
        }
        _ => Ok(()),
    }
}

/// Evaluates the encoder that is initialised with a configuration's seed and never trained; returns
/// the contents of `summary.json`.
///
/// # Errors
/// Whatever stops it.
pub fn untrained(request: &Request<'_>, say: &mut dyn FnMut(&str)) -> Result<Value, RunError> {
    let Request { config, folder, .. } = *request;
    let out = folder.path();
    write_config(&out.join("config.toml"), config)?;
    let (session, _) = device::open(&request.device)?;
    let mut summary = json!({
        "run": text::name(&out).to_string(),
        "method": config.method.name(),
        "random_init": true,
        "dataset": config.dataset.name(),
        "seed": config.seed,
        "device": session.device(),
        "steps": 0,
        "seconds": 0.0,
        "finished": timestamp_now(),
        "interrupted": false,
    });
    drop(session);
    evaluate(config, &request.device, None, &mut summary, say)?;
    write(out, &summary)?;
    Ok(summary)
}

/// Whether a summary, or a milestone of one, holds the evaluation that a configuration asks for.
pub fn evaluated(value: &Value, config: &RunConfig) -> bool {
    value["probe"]["epochs"] == config.probe_epochs
        && value["probe"]["accuracy"].is_number()
        && value["knn"].is_array()
}

/// `summary.json` of a folder; `None` if there is none that is whole.
pub fn read_summary(out: &Path) -> Option<Value> {
    std::fs::read(out.join("summary.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

/// The summary of a folder whose training is done: its checkpoint has taken every step and is the
/// one that the summary is about.
fn finished(config: &RunConfig, out: &Path, resumed: &Resumed) -> Result<Option<Value>, RunError> {
    let Some(summary) = read_summary(out).filter(|s| s["interrupted"] == false) else {
        return Ok(None);
    };
    // Where the data is may change.
    let same =
        |stored: RunConfig| RunConfig { data_dir: config.data_dir.clone(), ..stored } == *config;
    if !read_config(&out.join("config.toml")).is_ok_and(same) {
        return Ok(None);
    }
    let total = schedule::total_steps(config, &open_data(config)?)?;
    let whole = resumed.step == total && summary["sha256"] == resumed.checkpoint.digest();
    Ok(whole.then_some(summary))
}

fn write(out: &Path, summary: &Value) -> Result<(), RunError> {
    write_whole(&out.join("summary.json"), format!("{summary:#}\n").as_bytes())
        .map_err(RunError::of_run)
}

fn summary_of(
    config: &RunConfig,
    out: &Path,
    outcome: &Outcome,
    interrupted: bool,
) -> Result<Value, RunError> {
    let record = |r: &Option<Record>| {
        r.as_ref()
            .map(|r| serde_json::to_string(r).and_then(|text| serde_json::from_str::<Value>(&text)))
    };
    let record = |r| {
        record(r)
            .transpose()
            .map_err(|e| RunError::config(format!("the summary cannot be written: {e}"), None))
    };
    Ok(json!({
        "run": text::name(&out).to_string(),
        "method": config.method.name(),
        "dataset": config.dataset.name(),
        "seed": config.seed,
        "device": outcome.device,
        "steps": outcome.steps,
        "resumed_at": outcome.resumed_at,
        "seconds": round(outcome.seconds, 1),
        "images_per_second": round(outcome.images_per_second, 1),
        "train": record(&outcome.last)?,
        "validation": record(&outcome.validation)?,
        "evaluation": record(&outcome.evaluation)?,
        "checkpoint": text::name(&outcome.checkpoint).to_string(),
        "sha256": outcome.digest,
        "finished": timestamp_now(),
        "interrupted": interrupted,
    }))
}

/// What [`evaluate`] adds to a summary.
const EVALUATION: [&str; 3] = ["probe", "knn", "evaluation_seconds"];

/// Probe and kNN of a checkpoint, or of the network as it is initialised, into a summary.
fn evaluate(
    config: &RunConfig,
    choice: &DeviceSpec,
    checkpoint: Option<&Path>,
    summary: &mut Value,
    say: &mut dyn FnMut(&str),
) -> Result<(), RunError> {
    let splits = open_data(config)?;
    can_be_evaluated(&splits)?;
    let trained = checkpoint.map(Trained::open).transpose()?;
    let started = Instant::now();
    let (session, _) = device::open(choice)?;
    // A set with fewer labelled images than the probe's batch is a batch.
    let batch = config.probe_batch().min(splits.labelled_train.len());
    let model = ModelConfig { batch, ..model_config(config, &splits) };
    let Splits { labelled_train: train, test, .. } = &splits;
    let classes = train.dataset.classes().len();
    let (protocol, trained) = (config.protocol(), trained.as_ref());
    let mut evaluator = Evaluator::new(session, model, protocol, classes, trained, config.seed)?;
    say(&format!(
        "evaluating: features of {} training and {} test images",
        train.len(),
        test.len()
    ));
    let train_features = evaluator.features(train, |_| ())?;
    let test_features = evaluator.features(test, |_| ())?;
    let table = knn_table(&train_features, &test_features, classes)?;
    for (k, temperature, accuracy) in &table {
        say(&format!("knn k={k} temperature={temperature}: {accuracy:.4}"));
    }
    knn_left_out(train.len()).inspect(|text| say(text));
    let result =
        probe_view(&mut evaluator, config.seed, config.probe_epochs, train, &test_features, say)?;
    summary["probe"] = json!({ "accuracy": result.test, "train_accuracy": result.train, "epochs": config.probe_epochs });
    summary["knn"] = knn_rows(&table);
    summary["evaluation_seconds"] = json!(round(started.elapsed().as_secs_f64(), 1));
    Ok(())
}

/// Trains a probe on one subset and tests it on features of another, saying every tenth of its
/// epochs.
///
/// # Errors
/// If data or device fail.
pub fn probe_view(
    evaluator: &mut Evaluator,
    seed: u64,
    epochs: usize,
    train: &Subset,
    test: &Features,
    say: &mut dyn FnMut(&str),
) -> Result<ProbeResult, RunError> {
    let every = epochs.div_ceil(10).max(1);
    let result = probe(evaluator, ProbeConfig { epochs, seed }, train, test, |epoch, accuracy| {
        if epoch % every == 0 || epoch == epochs {
            say(&format!("probe epoch {epoch}/{epochs}: train accuracy {accuracy:.4}"));
        }
    })?;
    say(&format!("probe: test accuracy {:.4}", result.test));
    Ok(result)
}

/// kNN accuracies as JSON.
pub fn knn_rows(table: &[(usize, f32, f32)]) -> Value {
    table
        .iter()
        .map(|(k, t, a)| json!({ "k": k, "temperature": short(*t), "accuracy": short(*a) }))
        .collect()
}

/// The number that the shortest text of an f32 stands for: .07, not .07000000029802322.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn round(x: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (x * scale).round() / scale
}

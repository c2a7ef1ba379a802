//! A whole experiment in one run folder: pretraining, then the probe and kNN of the frozen encoder,
//! all in `summary.json`.
//!
//! Every stage is resumed where it was stopped: training from its checkpoint, the evaluation from
//! the last line of the summary that is written, so that a process killed at any instant costs at
//! most one evaluation.

use std::path::Path;
use std::time::Instant;

use super::interrupt::Interrupt;
use super::pretrain::{Outcome, TrainingRequest};
use super::progress::{on_compile, timestamp_now};
use super::{recover, schedule};
use crate::data::{Splits, Subset};
use crate::device::{self, DeviceSpec};
use crate::eval::features::{Evaluator, Features};
use crate::eval::knn::{knn_left_out, knn_table};
use crate::eval::probe::{ProbeConfig, ProbeResult, probe};
use crate::method::ModelConfig;
use crate::run::folder::RunFolder;
use crate::run::resume::{self, Resumed};
use crate::run::settings::{PrecisionKind, RunConfig};
use crate::run::summary::{Evaluation, KnnScore, Milestone, ProbeScore, RunSummary, tenth};
use crate::run::trained::{Trained, model_config, open_data, read_config, write_config};
use crate::run::{RunError, precision};
use crate::text;

/// What is measured once the encoder is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluate {
    /// Training is all.
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
pub struct ExperimentRequest<'a> {
    /// Settings of the run; [`RunConfig::validate`] has let them pass.
    pub config: &'a RunConfig,
    /// Device to train and evaluate on.
    pub device: DeviceSpec,
    /// Resume on another device than the run was trained on.
    pub another_device: bool,
    /// Measure which kernels are the fastest, where that is not remembered.
    pub tune: bool,
    /// Folder of the run, which belongs to this process.
    pub folder: &'a RunFolder,
    /// What it may hold.
    pub present: Present,
    /// What is measured once the encoder is trained.
    pub evaluate: Evaluate,
    /// Ctrl-C and `kill`.
    pub interrupt: &'a Interrupt,
}

/// Pretrains and evaluates; returns what `summary.json` says. `say` takes lines for people.
///
/// # Errors
/// Whatever stops it; the checkpoints and the summary written before stay whole.
pub fn run(
    request: &ExperimentRequest<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<RunSummary, RunError> {
    let ExperimentRequest { folder, interrupt, .. } = *request;
    let config = &decided(request)?;
    let out = folder.path();
    let resumed = match request.present {
        Present::Resume if folder.resumes()? => Some(Resumed::load(folder, config)?),
        Present::Resume => resume::same_beginning(folder, config).map(|()| None)?,
        Present::Refuse => folder.refuse_run().map(|()| None)?,
        Present::Overwrite => None,
    };
    let splits = &open_data(config)?;
    if request.evaluate != Evaluate::Nothing {
        can_be_evaluated(splits)?; // now, not after the training
    }
    let stored = resumed
        .as_ref()
        .map(|resumed| finished(config, splits, out, resumed, say))
        .transpose()?
        .flatten();
    let (mut summary, newest) = match (stored, &resumed) {
        (Some(summary), Some(resumed)) => (summary, resumed.path.clone()),
        _ => {
            let asked = TrainingRequest {
                config,
                splits,
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
            let interrupted = outcome.interrupted || interrupt.asked();
            let summary = summary_of(config, out, &outcome, interrupted);
            summary.write(out)?;
            (summary, outcome.checkpoint)
        }
    };
    drop(resumed);
    if request.evaluate == Evaluate::Nothing || summary.interrupted == Some(true) {
        return Ok(summary);
    }
    let store = folder.store();
    if request.evaluate == Evaluate::Milestones {
        for (epoch, step) in schedule::milestones(config, splits)? {
            if summary.milestone(epoch).is_some_and(|m| m.is_whole(config.probe_epochs)) {
                continue;
            }
            say(&format!("milestone: epoch {epoch}"));
            let weights = store.milestone(epoch);
            let measured = evaluate(config, splits, &request.device, Some(&weights), say)?;
            if summary.steps == Some(step) {
                // This milestone is the end of training, and the summary is about its weights.
                summary.measured = measured.clone();
            }
            let epoch = epoch as u64;
            summary.milestones.retain(|row| row.epoch != epoch);
            summary.milestones.push(Milestone { epoch, step: Some(step), measured });
            summary.write(out)?;
        }
    }
    if !summary.measured.is_whole(config.probe_epochs) {
        summary.measured = evaluate(config, splits, &request.device, Some(&newest), say)?;
        summary.write(out)?;
    }
    Ok(summary)
}

/// The configuration with a precision that the device has decided, if it was to.
fn decided(request: &ExperimentRequest<'_>) -> Result<RunConfig, RunError> {
    let config = request.config.clone();
    if config.precision != PrecisionKind::Auto {
        return Ok(config);
    }
    let (session, _) = device::open(&request.device)?;
    Ok(RunConfig { precision: precision::resolve(config.precision, &session), ..config })
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
/// what `summary.json` says.
///
/// # Errors
/// Whatever stops it.
pub fn untrained(
    request: &ExperimentRequest<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<RunSummary, RunError> {
    let ExperimentRequest { folder, .. } = *request;
    let config = &decided(request)?;
    let out = folder.path();
    let splits = open_data(config)?;
    can_be_evaluated(&splits)?;
    write_config(&out.join("config.toml"), config)?;
    let (session, _) = device::open(&request.device)?;
    let summary = RunSummary {
        random_init: Some(true),
        device: Some(session.device()),
        steps: Some(0),
        seconds: Some(0.0),
        interrupted: Some(false),
        ..summary_now(config, out)
    };
    drop(session);
    let measured = evaluate(config, &splits, &request.device, None, say)?;
    let summary = RunSummary { measured, ..summary };
    summary.write(out)?;
    Ok(summary)
}

/// The summary of a folder whose training is done: its checkpoint has taken every step and is the
/// one that the summary is about. A summary that is damaged is said and written anew: the
/// checkpoint tells how far the run is.
fn finished(
    config: &RunConfig,
    splits: &Splits,
    out: &Path,
    resumed: &Resumed,
    say: &mut dyn FnMut(&str),
) -> Result<Option<RunSummary>, RunError> {
    let stored = RunSummary::read(out).unwrap_or_else(|error| {
        say(&format!("warning: {error}; it is written anew"));
        None
    });
    let Some(summary) = stored.filter(|s| s.interrupted == Some(false)) else {
        return Ok(None);
    };
    // The folder of the data may change.
    let same =
        |stored: RunConfig| RunConfig { data_dir: config.data_dir.clone(), ..stored } == *config;
    if !read_config(&out.join("config.toml")).is_ok_and(same) {
        return Ok(None);
    }
    let total = schedule::total_steps(config, splits)?;
    let digest = Some(resumed.checkpoint.digest());
    let whole = resumed.step == total && summary.sha256 == digest;
    Ok(whole.then_some(summary))
}

/// What every summary says: which run it is of, and the time.
fn summary_now(config: &RunConfig, out: &Path) -> RunSummary {
    RunSummary {
        run: Some(text::path(out)),
        method: Some(config.method.name().into()),
        dataset: Some(config.dataset.name()),
        seed: Some(config.seed),
        finished: Some(timestamp_now()),
        ..RunSummary::default()
    }
}

fn summary_of(config: &RunConfig, out: &Path, outcome: &Outcome, interrupted: bool) -> RunSummary {
    RunSummary {
        device: Some(outcome.device.clone()),
        steps: Some(outcome.steps),
        resumed_at: Some(outcome.resumed_at),
        seconds: Some(tenth(outcome.seconds)),
        images_per_second: Some(tenth(outcome.images_per_second)),
        train: outcome.last.clone(),
        validation: outcome.validation.clone(),
        evaluation: outcome.evaluation.clone(),
        checkpoint: Some(text::path(&outcome.checkpoint)),
        sha256: Some(outcome.digest.clone()),
        interrupted: Some(interrupted),
        ..summary_now(config, out)
    }
}

/// Probe and kNN of a checkpoint, or of the network as it is initialised.
fn evaluate(
    config: &RunConfig,
    splits: &Splits,
    choice: &DeviceSpec,
    checkpoint: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> Result<Evaluation, RunError> {
    let trained = checkpoint.map(Trained::open).transpose()?;
    let started = Instant::now();
    let (mut session, _) = device::open(choice)?;
    precision::evaluate(&mut session, config.half());
    // A set that has fewer labelled images than the probe's batch is one batch.
    let batch = config.probe_batch().min(splits.labelled_train.len());
    let model = ModelConfig { batch, ..model_config(config, splits) };
    let Splits { labelled_train: train, test, .. } = splits;
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
    let (seed, epochs) = (config.seed, config.probe_epochs);
    let result = probe_view(&mut evaluator, seed, epochs, train, &test_features, say)?;
    Ok(Evaluation {
        probe: Some(ProbeScore {
            accuracy: Some(result.test),
            train_accuracy: Some(result.train),
            epochs: Some(epochs as u64),
        }),
        knn: Some(KnnScore::rows(&table)),
        evaluation_seconds: Some(tenth(started.elapsed().as_secs_f64())),
    })
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

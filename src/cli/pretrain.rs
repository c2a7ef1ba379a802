//! `aavae pretrain`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Failure, Outcome, print_json, usage};
use crate::data::View;
use crate::device::{self, Choice};
use crate::method::{Compare, Method};
use crate::model::Depth;
use crate::train::config::{DataKind, Preset, RunConfig};
use crate::train::evaluate::{Evaluator, knn_table};
use crate::train::probe::{ProbeConfig, probe};
use crate::train::run::{Trained, model_config, open_data, read_config};
use crate::train::{TrainError, pretrain};

/// Flags override the configuration file, which overrides the preset.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Named budget the other flags start from
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Configuration file, e.g. the `config.toml` of another run
    #[arg(long, value_name = "FILE.toml", conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// Data set
    #[arg(long, value_enum)]
    dataset: Option<DataKind>,
    /// Folder of the data set
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Fetch the official CIFAR-10 archive into --data-dir first
    #[arg(long)]
    download: bool,
    /// Method of the paper
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Encoder
    #[arg(long, value_enum)]
    encoder: Option<Depth>,
    /// Decoder (default: as deep as the encoder)
    #[arg(long, value_enum)]
    decoder: Option<Depth>,
    /// Channels of the first stage; 64 is the paper's network
    #[arg(long)]
    width: Option<usize>,
    /// Latent dimensions
    #[arg(long)]
    latent_dim: Option<usize>,
    /// Passes over the training images
    #[arg(long)]
    epochs: Option<usize>,
    /// Stop after so many steps
    #[arg(long)]
    max_steps: Option<u64>,
    /// Images per step
    #[arg(long)]
    batch_size: Option<usize>,
    /// Learning rate after the warm-up
    #[arg(long)]
    learning_rate: Option<f32>,
    /// Epochs of linear warm-up
    #[arg(long)]
    warmup_epochs: Option<usize>,
    /// Weight of the KL term (default: 1 for vae, 0 for aavae)
    #[arg(long, value_name = "B")]
    kl_coeff: Option<f32>,
    /// Logarithm of the likelihood's variance
    #[arg(long, allow_negative_numbers = true)]
    log_scale: Option<f32>,
    /// Train the log-scale
    #[arg(long)]
    learn_log_scale: bool,
    /// What a view's reconstruction is compared with
    #[arg(long, value_enum)]
    target: Option<Compare>,
    /// Use only the first N training images
    #[arg(long, value_name = "N")]
    limit_train: Option<usize>,
    /// Take images in file order, with no held-out split
    #[arg(long)]
    no_shuffle: bool,
    /// Start from these weights (safetensors; PyTorch's names and shapes)
    #[arg(long, value_name = "FILE")]
    init_from: Option<PathBuf>,
    /// Seed of everything
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between log records
    #[arg(long, value_name = "N")]
    log_every: Option<u64>,
    /// auto, cpu, wgpu or wgpu:NAME
    #[arg(long, default_value = "auto")]
    device: String,
    /// Run folder (default: runs/<method>-<dataset>-seed<seed>)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run in --out from its latest checkpoint
    #[arg(long)]
    resume: bool,
    /// Skip the probe and kNN at the end
    #[arg(long)]
    no_eval: bool,
    /// Epochs of the linear probe at the end
    #[arg(long, value_name = "N")]
    probe_epochs: Option<usize>,
}

impl Args {
    fn resolve(&self) -> Result<RunConfig, Failure> {
        let mut c = match (&self.config, self.preset) {
            (Some(path), _) => read_config(path)?,
            (None, Some(preset)) => RunConfig::preset(preset),
            (None, None) => RunConfig::default(),
        };
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(x) = self.$field.clone() { c.$field = x; })* };
        }
        macro_rules! set_some {
            ($($field:ident),*) => { $(if self.$field.is_some() { c.$field = self.$field.clone(); })* };
        }
        set!(
            dataset,
            method,
            encoder,
            width,
            latent_dim,
            epochs,
            batch_size,
            learning_rate,
            warmup_epochs,
            log_scale,
            target,
            seed,
            log_every,
            probe_epochs
        );
        set_some!(data_dir, max_steps, kl_coeff, limit_train, init_from);
        if let Some(decoder) = self.decoder.or(self.encoder) {
            c.decoder = decoder;
        }
        c.learn_log_scale |= self.learn_log_scale;
        c.shuffle &= !self.no_shuffle;
        if self.download && c.dataset != DataKind::Cifar10 {
            return Err(usage("--download fetches CIFAR-10; it needs --dataset cifar10", None));
        }
        if self.dataset == Some(DataKind::Shapes) && self.data_dir.is_some() {
            return Err(usage("--dataset shapes is embedded; --data-dir means nothing for it", None));
        }
        c.validate().map_err(|message| usage(message, None))?;
        Ok(c)
    }
}

pub(super) fn run(args: Args) -> Outcome {
    let mut config = args.resolve()?;
    let choice: Choice = args.device.parse().map_err(|e: device::DeviceError| Failure { usage: true, ..Failure::from(e) })?;
    let out = args.out.clone().unwrap_or_else(|| {
        let dataset = format!("{:?}", config.dataset).to_lowercase();
        PathBuf::from(format!("runs/{}-{dataset}-seed{}", config.method.name(), config.seed))
    });
    if args.resume {
        config = resumed(&out, config, &args)?;
    } else if out.join("checkpoints").exists() {
        let message = format!("{} already holds a run", out.display());
        return Err(TrainError::config(message, Some("continue it with --resume, or name another folder with --out")).into());
    }
    if args.download {
        let dir = config.data_dir.clone().unwrap_or_default();
        crate::data::download::download_cifar10(&dir, true)?;
    }
    std::fs::create_dir_all(&out).map_err(TrainError::io("create", &out))?;
    let interrupt = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupt);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .map_err(|e| TrainError::config(format!("cannot catch Ctrl-C: {e}"), None))?;

    let outcome = pretrain::pretrain(&pretrain::Request {
        config: &config,
        device: choice.clone(),
        out: &out,
        resume: args.resume,
        interrupt: &interrupt,
    })?;
    let mut summary = json!({
        "run": out,
        "method": config.method.name(),
        "dataset": format!("{:?}", config.dataset).to_lowercase(),
        "seed": config.seed,
        "device": outcome.device,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "images_per_second": round(outcome.images_per_second, 1),
        "train": outcome.last,
        "validation": outcome.validation,
        "checkpoint": outcome.checkpoint,
        "sha256": outcome.digest,
        "interrupted": outcome.interrupted,
    });
    if !args.no_eval && !outcome.interrupted {
        evaluate(&config, &choice, &outcome.checkpoint, &mut summary)?;
    }
    let path = out.join("summary.json");
    let text =
        serde_json::to_string_pretty(&summary).map_err(|e| TrainError::config(format!("the summary cannot be written: {e}"), None))?;
    std::fs::write(&path, text + "\n").map_err(TrainError::io("write", path))?;
    print_json(&summary);
    Ok(if outcome.interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// The configuration of the run that is resumed; flags may only prolong it.
fn resumed(out: &Path, asked: RunConfig, args: &Args) -> Result<RunConfig, Failure> {
    let path = out.join("config.toml");
    if !path.exists() {
        let message = format!("{} holds no run to resume", out.display());
        return Err(TrainError::config(message, Some("leave out --resume to start one")).into());
    }
    let stored = read_config(&path)?;
    let longer = RunConfig {
        epochs: args.epochs.unwrap_or(stored.epochs),
        max_steps: args.max_steps.or(if args.epochs.is_some() { None } else { stored.max_steps }),
        data_dir: args.data_dir.clone().or_else(|| stored.data_dir.clone()),
        probe_epochs: args.probe_epochs.unwrap_or(stored.probe_epochs),
        log_every: args.log_every.unwrap_or(stored.log_every),
        ..stored.clone()
    };
    let same_length = |c: &RunConfig| RunConfig { epochs: 1, max_steps: None, data_dir: None, probe_epochs: 0, log_every: 1, ..c.clone() };
    // With no flag that shapes the run, the stored configuration is meant as it is.
    let shaped = args.preset.is_some()
        || args.config.is_some()
        || args.method.is_some()
        || args.encoder.is_some()
        || args.width.is_some()
        || args.batch_size.is_some()
        || args.seed.is_some();
    if shaped && same_length(&asked) != same_length(&stored) {
        let message = format!("the flags describe another run than {}", path.display());
        return Err(TrainError::config(
            message,
            Some("--resume alone continues with the stored configuration; --epochs and --max-steps may prolong it"),
        )
        .into());
    }
    Ok(longer)
}

fn round(x: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (x * scale).round() / scale
}

/// Probe and kNN of the trained encoder.
fn evaluate(config: &RunConfig, choice: &Choice, checkpoint: &Path, summary: &mut Value) -> Result<(), Failure> {
    let splits = open_data(config)?;
    let trained = Trained::open(checkpoint)?;
    let started = std::time::Instant::now();
    let (session, _) = device::open(choice)?;
    let mut evaluator = Evaluator::new(session, model_config(config, &splits), Some(&trained), config.seed)?;
    eprintln!("evaluating: features of {} training and {} test images", splits.train.len(), splits.test.len());
    let train = evaluator.features(&splits.train, |_| ())?;
    let test = evaluator.features(&splits.test, |_| ())?;
    let classes = splits.train.dataset.classes().len();
    let table = knn_table(&train, &test, classes)?;
    for (k, temperature, accuracy) in &table {
        eprintln!("knn k={k} temperature={temperature}: {accuracy:.4}");
    }
    let result = probe_view(&mut evaluator, choice, config, config.probe_epochs, &splits.train, &test)?;
    summary["probe"] = json!({ "accuracy": result.test, "train_accuracy": result.train, "epochs": config.probe_epochs });
    summary["knn"] = table.iter().map(|(k, t, a)| json!({ "k": k, "temperature": t, "accuracy": a })).collect();
    summary["evaluation_seconds"] = json!(round(started.elapsed().as_secs_f64(), 1));
    Ok(())
}

/// Trains and tests a probe, reporting each epoch on stderr.
pub(super) fn probe_view(
    evaluator: &mut Evaluator,
    choice: &Choice,
    config: &RunConfig,
    epochs: usize,
    train: &View,
    test: &crate::train::knn::Features,
) -> Result<crate::train::probe::ProbeResult, Failure> {
    let (session, _) = device::open(choice)?;
    let probe_config = ProbeConfig { epochs, seed: config.seed };
    let every = epochs.div_ceil(10).max(1);
    let result = probe(evaluator, session, probe_config, train, test, |epoch, accuracy| {
        if epoch % every == 0 || epoch == epochs {
            eprintln!("probe epoch {epoch}/{epochs}: train accuracy {accuracy:.4}");
        }
    })?;
    eprintln!("probe: test accuracy {:.4}", result.test);
    Ok(result)
}

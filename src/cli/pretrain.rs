//! `aavae pretrain`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Failure, Outcome, choice, print_json, say, short, usage};
use crate::data::View;
use crate::device::{self, Choice};
use crate::method::{Compare, Method};
use crate::model::Depth;
use crate::train::config::{DataKind, Preset, RunConfig};
use crate::train::evaluate::{Evaluator, knn_table};
use crate::train::metrics::Record;
use crate::train::probe::{ProbeConfig, probe};
use crate::train::run::{Trained, model_config, open_data, read_config, write_whole};
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
    /// Epochs between evaluations on the held-out images: importance-sampled likelihood and kNN
    #[arg(long, value_name = "N")]
    eval_every: Option<usize>,
    /// Samples an image of the importance-sampled likelihood (default: 16 for vae and aavae; 0 leaves it out)
    #[arg(long, value_name = "K")]
    importance_samples: Option<usize>,
    /// Steps between comparisons of the latents of views and originals (default: 0, never)
    #[arg(long, value_name = "N")]
    view_metrics_every: Option<u64>,
    /// Train a linear classifier along on the features, which it does not move
    #[arg(long)]
    online_probe: bool,
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
    #[arg(long, conflicts_with = "probe_epochs")]
    no_eval: bool,
    /// Epochs of the linear probe at the end
    #[arg(long, value_name = "N")]
    probe_epochs: Option<usize>,
}

/// Why `--data-dir` is refused.
pub(super) const SHAPES_HAS_NO_FILES: &str = "--dataset shapes is embedded; --data-dir means nothing for it";

/// What a resumed run may change: how long it takes and how it reports, not what it computes.
const PROLONGS: [&str; 9] =
    ["epochs", "max_steps", "data_dir", "probe_epochs", "log_every", "eval_every", "importance_samples", "view_metrics_every", "keep"];

impl Args {
    /// The configuration that was asked for. `stored` is that of the run to resume, which the flags then start from.
    fn resolve(&self, stored: Option<&RunConfig>) -> Result<RunConfig, Failure> {
        let mut c = match (&self.config, self.preset, stored) {
            (Some(path), _, _) => read_config(path)?,
            (None, Some(preset), _) => RunConfig::preset(preset),
            (None, None, Some(stored)) => stored.clone(),
            (None, None, None) => RunConfig::default(),
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
            eval_every,
            view_metrics_every,
            probe_epochs
        );
        set_some!(data_dir, max_steps, kl_coeff, limit_train, init_from, importance_samples);
        if let Some(decoder) = self.decoder.or(self.encoder) {
            c.decoder = decoder;
        }
        c.learn_log_scale |= self.learn_log_scale;
        c.online_probe |= self.online_probe;
        c.shuffle &= !self.no_shuffle;
        if stored.is_some() && self.epochs.is_some() && self.max_steps.is_none() {
            c.max_steps = None; // so many epochs, wherever the run was stopped before
        }
        if self.download && c.dataset != DataKind::Cifar10 {
            return Err(usage("--download fetches CIFAR-10; it needs --dataset cifar10", None));
        }
        if c.dataset == DataKind::Shapes {
            if self.data_dir.is_some() {
                return Err(usage(SHAPES_HAS_NO_FILES, Some("--dataset cifar10 and --dataset folder read files")));
            }
            c.data_dir = None;
        }
        c.validate().map_err(|message| usage(message, None))?;
        Ok(c)
    }
}

pub(super) fn run(args: Args) -> Outcome {
    let choice = choice(&args.device)?;
    let (config, out) = if args.resume {
        let out = args.out.clone().map_or_else(|| args.resolve(None).map(|c| default_out(&c)), Ok)?;
        (resumed(&out, &args)?, out)
    } else {
        let config = args.resolve(None)?;
        let out = args.out.clone().unwrap_or_else(|| default_out(&config));
        if out.join("checkpoints").exists() {
            let message = format!("{} already holds a run", out.display());
            return Err(TrainError::config(message, Some("continue it with --resume, or name another folder with --out")).into());
        }
        (config, out)
    };
    if args.download {
        let dir = config.data_dir.clone().unwrap_or_default();
        crate::data::download::download_cifar10(&dir, true)?;
    }
    std::fs::create_dir_all(&out).map_err(TrainError::io("create", &out))?;
    let interrupt = Arc::new(AtomicBool::new(false));
    let saved = Arc::new(AtomicBool::new(false));
    let (flag, at_once) = (Arc::clone(&interrupt), Arc::clone(&saved));
    ctrlc::set_handler(move || {
        // While a step runs, the first one waits for it and saves. Evaluation has nothing to save.
        if flag.swap(true, Ordering::Relaxed) || at_once.load(Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
        say("stopping after this step; Ctrl-C again stops at once");
    })
    .map_err(|e| TrainError::config(format!("cannot catch Ctrl-C: {e}"), None))?;

    let request = pretrain::Request { config: &config, device: choice.clone(), out: &out, resume: args.resume, interrupt: &interrupt };
    let outcome = pretrain::pretrain(&request).inspect_err(|_| {
        // An empty folder is no run; one with anything in it stays.
        std::fs::remove_dir(&out).ok();
    })?;
    saved.store(true, Ordering::Relaxed);
    let interrupted = outcome.interrupted || interrupt.load(Ordering::Relaxed);
    let record = |r: &Option<Record>| r.as_ref().map(|r| serde_json::to_string(r).and_then(|text| serde_json::from_str::<Value>(&text)));
    let record = |r| record(r).transpose().map_err(|e| TrainError::config(format!("the summary cannot be written: {e}"), None));
    let mut summary = json!({
        "run": out,
        "method": config.method.name(),
        "dataset": format!("{:?}", config.dataset).to_lowercase(),
        "seed": config.seed,
        "device": outcome.device,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "images_per_second": round(outcome.images_per_second, 1),
        "train": record(&outcome.last)?,
        "validation": record(&outcome.validation)?,
        "evaluation": record(&outcome.evaluation)?,
        "checkpoint": outcome.checkpoint,
        "sha256": outcome.digest,
        "interrupted": interrupted,
    });
    let write = |summary: &Value| write_whole(&out.join("summary.json"), format!("{summary:#}\n").as_bytes());
    write(&summary)?;
    if !args.no_eval && !interrupted {
        evaluate(&config, &choice, &outcome.checkpoint, &mut summary)?;
        write(&summary)?;
    }
    print_json(&summary);
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn default_out(config: &RunConfig) -> PathBuf {
    let dataset = format!("{:?}", config.dataset).to_lowercase();
    PathBuf::from(format!("runs/{}-{dataset}-seed{}", config.method.name(), config.seed))
}

/// The configuration of the run that is resumed; what was typed may only prolong it.
fn resumed(out: &Path, args: &Args) -> Result<RunConfig, Failure> {
    let path = out.join("config.toml");
    if !path.exists() {
        if unborn(out) {
            return args.resolve(None); // killed before it had written anything
        }
        let message = format!("{} holds no run to resume", out.display());
        return Err(TrainError::config(message, Some("leave out --resume to start one")).into());
    }
    let stored = read_config(&path)?;
    let asked = args.resolve(Some(&stored))?;
    if let Some(d) = asked.differences(&stored).into_iter().find(|d| !PROLONGS.contains(&d.key.as_str())) {
        let message = format!("{} is {} here, but {} in {}", d.flag(), d.here, d.there, path.display());
        let hint = "a run is resumed as it was started; --epochs, --max-steps, --log-every and --probe-epochs may change";
        return Err(TrainError::config(message, Some(hint)).into());
    }
    Ok(asked)
}

/// Whether a folder holds nothing but what a run leaves that was killed before it wrote its configuration.
fn unborn(out: &Path) -> bool {
    let ours = |name: &std::ffi::OsStr| name == "images" || name == "config.toml.tmp";
    std::fs::read_dir(out).is_ok_and(|entries| entries.flatten().all(|entry| ours(&entry.file_name())))
}

/// kNN accuracies as JSON.
pub(super) fn knn_rows(table: &[(usize, f32, f32)]) -> Value {
    table.iter().map(|(k, t, a)| json!({ "k": k, "temperature": short(*t), "accuracy": short(*a) })).collect()
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
    say(&format!("evaluating: features of {} training and {} test images", splits.train.len(), splits.test.len()));
    let train = evaluator.features(&splits.train, |_| ())?;
    let test = evaluator.features(&splits.test, |_| ())?;
    let classes = splits.train.dataset.classes().len();
    let table = knn_table(&train, &test, classes)?;
    for (k, temperature, accuracy) in &table {
        say(&format!("knn k={k} temperature={temperature}: {accuracy:.4}"));
    }
    let result = probe_view(&mut evaluator, choice, config, config.probe_epochs, &splits.train, &test)?;
    summary["probe"] = json!({ "accuracy": result.test, "train_accuracy": result.train, "epochs": config.probe_epochs });
    summary["knn"] = knn_rows(&table);
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
            say(&format!("probe epoch {epoch}/{epochs}: train accuracy {accuracy:.4}"));
        }
    })?;
    say(&format!("probe: test accuracy {:.4}", result.test));
    Ok(result)
}

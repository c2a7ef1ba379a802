//! `aavae pretrain`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::signals::{exit_code, interrupt};
use super::{Failure, Outcome, choice, print_json, say, usage};
use crate::data::archive::{Archive, CIFAR10, STL10};
use crate::data::download::download;
use crate::method::{Compare, Method, Optimizer};
use crate::model::{Depth, Stem};
use crate::train::TrainError;
use crate::train::config::{DataKind, Difference, Preset, RunConfig, Schedule};
use crate::train::experiment::{self, Evaluate, Request};
use crate::train::run::read_config;

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
    /// Fetch the official archive of CIFAR-10 or STL-10 into --data-dir first
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
    /// First layers of the encoder (default: stl for --dataset stl10, otherwise cifar)
    #[arg(long, value_enum)]
    stem: Option<Stem>,
    /// Side of the images, which --dataset folder resizes to it
    #[arg(long)]
    image_size: Option<usize>,
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
    /// Images per batch
    #[arg(long)]
    batch_size: Option<usize>,
    /// Batches per step: their gradients are averaged, in the memory of one (BatchNorm normalises and counts each by itself)
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,
    /// Optimiser
    #[arg(long, value_enum)]
    optimizer: Option<Optimizer>,
    /// Weight decay of all but BatchNorm's parameters, biases and the log-scale; L2, with lamb decoupled
    #[arg(long, value_name = "W")]
    weight_decay: Option<f32>,
    /// Learning rate after the warm-up
    #[arg(long)]
    learning_rate: Option<f32>,
    /// Epochs of linear warm-up
    #[arg(long)]
    warmup_epochs: Option<usize>,
    /// Learning rate after the warm-up; cosine and linear fall to 0 at the end of the run
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
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
    /// Temperature of SimCLR's loss (default: 0.5)
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
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
    /// Epochs after which the weights are kept for good
    #[arg(long, value_name = "E,E,…", value_delimiter = ',')]
    milestones: Option<Vec<usize>>,
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
    /// Images per batch of the probe (default: those of --batch-size); its learning rate is proportional
    #[arg(long, value_name = "N")]
    probe_batch_size: Option<usize>,
}

/// Why `--data-dir` is refused.
pub(super) const SHAPES_HAS_NO_FILES: &str = "--dataset shapes is embedded; --data-dir means nothing for it";

/// What a resumed run may change: how long it takes and how it reports, not what it computes.
const PROLONGS: [&str; 10] = [
    "epochs",
    "max_steps",
    "data_dir",
    "probe_epochs",
    "probe_batch_size",
    "log_every",
    "eval_every",
    "importance_samples",
    "view_metrics_every",
    "keep",
];

/// Of these, what says how many steps a run has. Under a falling learning rate every step depends on it.
const LENGTHS: [&str; 2] = ["epochs", "max_steps"];

impl Args {
    /// Whether the flags make a configuration and name a device.
    pub(super) fn is_understood(&self) -> bool {
        choice(&self.device).is_ok() && self.resolve(None).is_ok()
    }

    /// The configuration that was asked for. `stored` is that of the run to resume, which the flags then start from.
    fn resolve(&self, stored: Option<&RunConfig>) -> Result<RunConfig, Failure> {
        let mut c = match (&self.config, self.preset, stored) {
            (Some(path), _, _) => read_config(path)?,
            (None, Some(preset), _) => RunConfig::preset(preset),
            (None, None, Some(stored)) => stored.clone(),
            (None, None, None) => RunConfig::default(),
        };
        if let Some(dataset) = self.dataset {
            c = c.on(dataset);
        }
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(x) = self.$field.clone() { c.$field = x; })* };
        }
        macro_rules! set_some {
            ($($field:ident),*) => { $(if self.$field.is_some() { c.$field = self.$field.clone(); })* };
        }
        set!(
            method,
            encoder,
            stem,
            image_size,
            width,
            latent_dim,
            epochs,
            batch_size,
            accumulate,
            optimizer,
            weight_decay,
            learning_rate,
            warmup_epochs,
            schedule,
            log_scale,
            target,
            seed,
            log_every,
            eval_every,
            view_metrics_every,
            probe_epochs,
            milestones
        );
        set_some!(data_dir, max_steps, kl_coeff, temperature, limit_train, init_from, importance_samples, probe_batch_size);
        if let Some(decoder) = self.decoder.or(self.encoder) {
            c.decoder = decoder;
        }
        c.learn_log_scale |= self.learn_log_scale;
        c.online_probe |= self.online_probe;
        c.shuffle &= !self.no_shuffle;
        if stored.is_some() && self.epochs.is_some() && self.max_steps.is_none() {
            c.max_steps = None; // so many epochs, wherever the run was stopped before
        }
        if self.download && archive(c.dataset).is_none() {
            return Err(usage("--download fetches CIFAR-10 or STL-10; it needs --dataset cifar10 or stl10", None));
        }
        if c.dataset == DataKind::Shapes {
            if self.data_dir.is_some() {
                return Err(usage(SHAPES_HAS_NO_FILES, Some("--dataset cifar10, stl10 and folder read files")));
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
    let interrupt = interrupt()?;
    if let Some(archive) = archive(config.dataset).filter(|_| args.download) {
        let dir = config.data_dir.clone().unwrap_or_default();
        download(&archive, &dir, true)?;
    }
    let evaluate = if args.no_eval { Evaluate::Nothing } else { Evaluate::End };
    let request = Request { config: &config, device: choice, out: &out, resume: args.resume, evaluate, interrupt: &interrupt };
    let summary = experiment::run(&request, &mut |line| say(line))?;
    print_json(&summary)?;
    Ok(interrupt.signal().map_or(ExitCode::SUCCESS, exit_code))
}

/// The official archive of a data set.
fn archive(dataset: DataKind) -> Option<Archive<'static>> {
    match dataset {
        DataKind::Cifar10 => Some(CIFAR10),
        DataKind::Stl10 => Some(STL10),
        DataKind::Shapes | DataKind::Folder => None,
    }
}

fn default_out(config: &RunConfig) -> PathBuf {
    PathBuf::from(format!("runs/{}-{}-seed{}", config.method.name(), config.dataset.name(), config.seed))
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
    let differences = asked.differences(&stored);
    let says = |d: &Difference| format!("{} is {} here, but {} in {}", d.flag(), d.here, d.there, path.display());
    if let Some(d) = differences.iter().find(|d| !PROLONGS.contains(&d.key.as_str())) {
        let message = says(d);
        let hint = "a run is resumed as it was started; --epochs, --max-steps, --log-every and --probe-epochs may change";
        return Err(TrainError::config(message, Some(hint)).into());
    }
    if let Some(d) = differences.iter().find(|d| asked.schedule != Schedule::Constant && LENGTHS.contains(&d.key.as_str())) {
        let message = format!("{}: the learning rate of a run with a schedule depends on its length", says(d));
        let hint = "resume it as it was started, or start another run from its weights with --init-from";
        return Err(TrainError::config(message, Some(hint)).into());
    }
    Ok(asked)
}

/// Whether a folder holds nothing but what a run leaves that was killed before it wrote its configuration.
fn unborn(out: &Path) -> bool {
    let ours = |name: &std::ffi::OsStr| name == "images" || name == "config.toml.tmp";
    std::fs::read_dir(out).is_ok_and(|entries| entries.flatten().all(|entry| ours(&entry.file_name())))
}

//! `aavae pretrain`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::signals::{exit_code, interrupt};
use super::{Failure, Outcome, choice, print_json, say, usage};
use crate::data::archive::{Archive, CIFAR10, STL10};
use crate::data::download::download;
use crate::method::{Compare, Method};
use crate::model::{Depth, Stem};
use crate::optim::Optimizer;
use crate::run::RunError;
use crate::run::config::{DataKind, Preset, RunConfig, Schedule};
use crate::run::folder::{Contents, RunFolder, refuse_inside_data};
use crate::run::resume::Resumed;
use crate::run::trained::read_config;
use crate::train::experiment::{self, Evaluate, Present, Request};

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
    /// Batches per step: their gradients are averaged, in the memory of one (BatchNorm normalises
    /// and counts each by itself)
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,
    /// Optimiser
    #[arg(long, value_enum)]
    optimizer: Option<Optimizer>,
    /// Weight decay of all but BatchNorm's parameters, biases and the log-scale; L2, with lamb
    /// decoupled
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
    /// Samples an image of the importance-sampled likelihood (default: 16 for vae and aavae; 0
    /// leaves it out)
    #[arg(long, value_name = "K")]
    importance_samples: Option<usize>,
    /// Steps between comparisons of the latents of views and originals (default: 0, never)
    #[arg(long, value_name = "N")]
    view_metrics_every: Option<u64>,
    /// Train a linear classifier along on the features, which it does not move
    #[arg(long)]
    online_probe: bool,
    /// auto, cpu, wgpu, wgpu:NAME or cuda
    #[arg(long, default_value = "auto")]
    device: String,
    /// Least minutes between checkpoints, saved at the end of an epoch (default: 1; 0: every epoch)
    #[arg(long, value_name = "MINUTES")]
    save_minutes: Option<f64>,
    /// Run folder (default: runs/<method>-<dataset>-seed<seed>)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run in --out from its latest checkpoint
    #[arg(long)]
    resume: bool,
    /// Resume on another device than the run was trained on: its bits differ from there on
    #[arg(long, requires = "resume")]
    allow_device_change: bool,
    /// Do not measure which kernels are the fastest on this device (at most 10 s at a start): take
    /// a table of defaults
    #[arg(long)]
    no_tune: bool,
    /// Remove the run in --out, and begin anew
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Skip the probe and kNN at the end
    #[arg(long, conflicts_with = "probe_epochs")]
    no_eval: bool,
    /// Epochs of the linear probe at the end
    #[arg(long, value_name = "N")]
    probe_epochs: Option<usize>,
    /// Images per batch of the probe (default: those of --batch-size); its learning rate is
    /// proportional
    #[arg(long, value_name = "N")]
    probe_batch_size: Option<usize>,
}

/// Why `--data-dir` is refused.
pub(super) const SHAPES_HAS_NO_FILES: &str =
    "--dataset shapes is embedded; --data-dir means nothing for it";

impl Args {
    /// Whether the flags make a configuration and name a device.
    pub(super) fn is_understood(&self) -> bool {
        choice(&self.device).is_ok() && self.resolve(None).is_ok()
    }

    /// The configuration that was asked for. `stored` is that of the run to resume, which the flags
    /// then start from.
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
            save_minutes,
            milestones
        );
        set_some!(
            data_dir,
            max_steps,
            kl_coeff,
            temperature,
            limit_train,
            init_from,
            importance_samples,
            probe_batch_size
        );
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
            return Err(usage(
                "--download fetches CIFAR-10 or STL-10; it needs --dataset cifar10 or stl10",
                None,
            ));
        }
        if c.dataset == DataKind::Shapes {
            if self.data_dir.is_some() {
                return Err(usage(
                    SHAPES_HAS_NO_FILES,
                    Some("--dataset cifar10, stl10 and folder read files"),
                ));
            }
            c.data_dir = None;
        }
        c.validate().map_err(|message| usage(message, None))?;
        Ok(c)
    }
}

/// What the lock of the run folder says of this process.
const PROCESS: &str = "aavae pretrain";

pub(super) fn run(args: Args) -> Outcome {
    let choice = choice(&args.device)?;
    // Nothing is read from a folder that another process is at work in, and none is made for flags
    // that are refused.
    let (config, folder) = match &args.out {
        Some(out) if args.resume => {
            let folder = RunFolder::claim(out, PROCESS)?;
            (resumed(&folder, &args)?, folder)
        }
        out => {
            let typed = args.resolve(None)?;
            let out = out.clone().unwrap_or_else(|| default_out(&typed));
            refuse_inside_data(&out, typed.dataset, typed.data_dir.as_deref())?;
            let folder = RunFolder::claim(&out, PROCESS)?;
            (if args.resume { resumed(&folder, &args)? } else { typed }, folder)
        }
    };
    let interrupt = interrupt()?;
    let present = match (args.resume, args.overwrite) {
        (true, _) => Present::Resume,
        (_, true) => Present::Overwrite,
        _ => Present::Refuse,
    };
    if present == Present::Refuse {
        folder.refuse_run()?; // before anything is downloaded
    }
    if let Some(archive) = archive(config.dataset).filter(|_| args.download) {
        let dir = config.data_dir.clone().unwrap_or_default();
        download(&archive, &dir, true)?;
    }
    let evaluate = if args.no_eval { Evaluate::Nothing } else { Evaluate::End };
    let request = Request {
        config: &config,
        device: choice,
        another_device: args.allow_device_change,
        tune: !args.no_tune,
        folder: &folder,
        present,
        evaluate,
        interrupt: &interrupt,
    };
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
    PathBuf::from(format!(
        "runs/{}-{}-seed{}",
        config.method.name(),
        config.dataset.name(),
        config.seed
    ))
}

/// The configuration of the run that is resumed, with what was typed. Whether it may change is for
/// the checkpoint to say.
fn resumed(folder: &RunFolder, args: &Args) -> Result<RunConfig, Failure> {
    let file = folder.path().join("config.toml");
    if file.exists() {
        return args.resolve(Some(&read_config(&file)?));
    }
    match folder.contents()? {
        // Killed before it had written its configuration, or anything.
        Contents::Nothing if folder.is_unborn() => args.resolve(None),
        Contents::Unsaved => args.resolve(None),
        Contents::Nothing => {
            let message = format!("{} holds no run to resume", folder.path().display());
            Err(RunError::config(message, Some("leave out --resume to start one")).into())
        }
        Contents::Saved | Contents::Stripped(_) => args.resolve(Some(&Resumed::settings(folder)?)),
    }
}

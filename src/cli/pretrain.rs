//! `aavae pretrain`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::flags::{Flags, Selection};
use super::signals::{exit_code, interrupt};
use super::{Failure, Outcome, choice, print_json, say, usage};
use crate::data::archive::{Archive, CIFAR10, STL10};
use crate::data::download::download;
use crate::disk::is_there;
use crate::run::RunError;
use crate::run::folder::{Contents, RunFolder, refuse_inside_data};
use crate::run::resume::Resumed;
use crate::run::settings::{DataKind, PrecisionKind, Preset, RunConfig, Setting};
use crate::run::trained::{read_config, read_named_config};
use crate::text;
use crate::train::experiment::{self, Evaluate, ExperimentRequest, Present};

/// Every setting of a run.
#[derive(Debug)]
pub(super) struct All;

impl Selection for All {
    fn takes(_: &Setting) -> bool {
        true
    }
    fn default(setting: &Setting) -> Option<String> {
        setting.default(&RunConfig::default())
    }
}

/// Flags override the configuration file, which overrides the preset.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Named budget the other flags start from
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Configuration file, e.g. the `config.toml` of another run
    #[arg(long, value_name = "FILE.toml", conflicts_with = "preset")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Flags<All>,
    /// Fetch the official archive of CIFAR-10 or STL-10 into --data-dir first
    #[arg(long)]
    download: bool,
    /// auto, cpu, wgpu, wgpu:NAME or cuda
    #[arg(long, default_value = "auto")]
    device: String,
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
            (Some(path), _, _) => read_named_config(path)?,
            (None, Some(preset), _) => RunConfig::preset(preset),
            (None, None, Some(stored)) => stored.clone(),
            (None, None, None) => RunConfig::default(),
        };
        let typed = &self.settings;
        if let Some(dataset) = typed.dataset {
            c = c.on(dataset);
        }
        typed.apply(&mut c);
        if let Some(decoder) = typed.decoder.or(typed.encoder) {
            c.decoder = decoder;
        }
        if let (Some(stored), PrecisionKind::Auto) = (stored, c.precision) {
            c.precision = stored.precision; // decided when the run began
        }
        if stored.is_some() && typed.epochs.is_some() && typed.max_steps.is_none() {
            c.max_steps = None; // so many epochs, wherever the run was stopped before
        }
        if self.download && archive(c.dataset).is_none() {
            return Err(usage(
                "--download fetches CIFAR-10 or STL-10; it needs --dataset cifar10 or stl10",
                None,
            ));
        }
        if c.dataset == DataKind::Shapes {
            if typed.data_dir.is_some() {
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
    let request = ExperimentRequest {
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
    print_json(&summary.to_json())?;
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
    if is_there(&file) {
        return args.resolve(Some(&read_config(&file)?));
    }
    match folder.contents()? {
        // Killed before it had written its configuration, or anything.
        Contents::Nothing if folder.is_unborn() => args.resolve(None),
        Contents::Unsaved => args.resolve(None),
        Contents::Nothing => {
            let message = format!("{} holds no run to resume", text::name(folder.path()));
            Err(RunError::config(message, Some("leave out --resume to start one")).into())
        }
        Contents::Saved | Contents::Stripped(_) => args.resolve(Some(&Resumed::settings(folder)?)),
    }
}

//! `aavae reproduce`: the paper's tables and figures.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;

use super::flags::{Flags, Selection};
use super::pretrain::SHAPES_HAS_NO_FILES;
use super::signals::{exit_code, interrupt};
use super::{Outcome, choice, print_json, print_text, say, usage};
use crate::reproduce::cells::Overrides;
use crate::reproduce::report::quoted;
use crate::reproduce::run::forecast;
use crate::reproduce::{
    Experiment, GridRequest, GridScale, Setup, forecast as forecasts, run as run_grid,
};
use crate::run::settings::{DataKind, RunConfig, Setting};
use crate::text;

/// The settings that are the same in all runs of a grid and not its scale's.
#[derive(Debug)]
pub(super) struct OfGrid;

impl Selection for OfGrid {
    fn takes(setting: &Setting) -> bool {
        ["dataset", "data_dir"].contains(&setting.key)
    }
    fn default(setting: &Setting) -> Option<String> {
        setting.default(&RunConfig::default())
    }
}

/// Everything is trained, measured, resumed and reported in one folder.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Table or figure
    #[arg(value_enum)]
    experiment: Experiment,
    /// Budget of every run
    #[arg(long, value_enum, default_value = "smoke")]
    scale: GridScale,
    #[command(flatten)]
    settings: Flags<OfGrid>,
    /// Seeds, from 0 (default: the scale's)
    #[arg(long, value_name = "N")]
    seeds: Option<usize>,
    /// Run only these cells; --dry-run names them
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// auto, cpu, wgpu, wgpu:NAME or cuda
    #[arg(long, default_value = "auto")]
    device: String,
    /// Resume runs on another device than they were trained on: their bits differ from there on
    #[arg(long)]
    allow_device_change: bool,
    /// Folder of the grid (default: reproduce/<experiment>-<scale>-<dataset>)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Leave the data set's images out of the report, so that it may be published and is small
    #[arg(long)]
    without_images: bool,
    /// Train nothing: print the grid with predicted hours and memory
    #[arg(long)]
    dry_run: bool,
    /// Print the --dry-run as JSON; without it stdout is JSON anyway
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    max_steps: Option<u64>,
    #[arg(long, hide = true)]
    limit_train: Option<usize>,
    #[arg(long, hide = true)]
    probe_epochs: Option<usize>,
    #[arg(long, hide = true)]
    importance_samples: Option<usize>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let device = choice(&args.device)?;
    let dataset = args.settings.dataset.unwrap_or(RunConfig::default().dataset);
    let data_dir = args.settings.data_dir.clone().flatten();
    match (dataset, &data_dir) {
        (DataKind::Shapes, Some(_)) => {
            return Err(usage(
                SHAPES_HAS_NO_FILES,
                Some("--dataset cifar10 and --dataset folder read files"),
            ));
        }
        (DataKind::Shapes, None) | (_, Some(_)) => {}
        (other, None) => {
            let hint = "--data-dir names the folder of its files; `aavae pretrain --help` says \
                which, and --download there fetches them";
            return Err(usage(format!("--dataset {} needs --data-dir", other.name()), Some(hint)));
        }
    }
    if args.seeds == Some(0) {
        return Err(usage("--seeds is 0; it must be positive", None));
    }
    let setup = Setup {
        experiment: args.experiment,
        scale: args.scale,
        dataset,
        data_dir,
        seeds: args.seeds.unwrap_or(args.scale.budget(args.experiment, dataset).seeds),
        overrides: Overrides {
            max_steps: args.max_steps,
            limit_train: args.limit_train,
            probe_epochs: args.probe_epochs,
            importance_samples: args.importance_samples,
        },
    };
    let (experiment, scale, dataset) = (args.experiment.name(), args.scale.name(), dataset.name());
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("reproduce/{experiment}-{scale}-{dataset}")));
    let typed: Vec<String> =
        std::env::args_os().skip(1).map(|word| quoted(&text::name(&word).to_string())).collect();
    let command = format!("aavae {}", typed.join(" "));
    let interrupt = if args.dry_run { Arc::default() } else { interrupt()? };
    let request = GridRequest {
        setup: &setup,
        only: &args.only,
        device,
        another_device: args.allow_device_change,
        out: &out,
        command: &command,
        without_images: args.without_images,
        interrupt: &interrupt,
    };
    if args.dry_run {
        let forecast = forecast(&request, &mut |line| say(line))?;
        if args.json {
            print_json(&json!(forecast))?;
        } else {
            print_text(&forecasts::text(&forecast))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let summary = run_grid(&request, &mut |line| say(line))?;
    let failed = &summary.failed;
    say(&format!(
        "{} of {} runs done, {} failed; report: {}",
        summary.done,
        summary.runs,
        failed.len(),
        text::name(&out.join("report.html"))
    ));
    for run in failed {
        say(&format!("failed: {}: {}", run.run, run.error));
    }
    print_json(&json!(summary))?;
    Ok(match interrupt.signal() {
        Some(signal) => exit_code(signal),
        None if !failed.is_empty() => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

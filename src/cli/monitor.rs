//! `aavae compare`, `watch`: run folders as people look at them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::{Outcome, print_json, print_text, say, signals, usage};
use crate::monitor::compare::Comparison;
use crate::monitor::plot::{self, Format};
use crate::monitor::run::RunView;
use crate::monitor::{dashboard, watch};
use crate::run::folder::refuse_output;
use crate::run::trained::write_whole;
use crate::text::{self, understands_escapes};
use crate::train::interrupt::Interrupt;

#[derive(Debug, clap::Args)]
pub(super) struct CompareArgs {
    /// Run folders
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Draw the curves to a file: .svg, .png, or .html with the tables too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn compare(args: &CompareArgs) -> Outcome {
    let kind = |path: &PathBuf| {
        let odd =
            || usage(format!("--out {} is no .svg, .png or .html file", text::name(&path)), None);
        Format::of(path).map(|kind| (path.clone(), kind)).ok_or_else(odd)
    };
    let file = args.out.as_ref().map(kind).transpose()?;
    if let Some(out) = &args.out {
        args.runs.iter().try_for_each(|run| refuse_output(out, run))?;
    }
    let comparison = Comparison::open(&args.runs)?;
    comparison.skipped.iter().for_each(|text| say(&format!("skipped: {text}")));
    comparison.damage.iter().for_each(|text| say(&format!("warning: {text}")));
    if let Some((path, kind)) = file {
        write_whole(&path, &plot::file(&comparison, kind)?)?;
    }
    if args.json {
        print_json(&comparison.json())?;
    } else {
        print_text(comparison.text().trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    /// Run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    every: f64,
    /// Print what there is and leave, as where stdout is no terminal
    #[arg(long)]
    once: bool,
}

pub(super) fn watch(args: &WatchArgs) -> Outcome {
    if !(0.01..=86_400.0).contains(&args.every) {
        return Err(usage(
            format!("--every {} is not between 0.01 and 86400 seconds", args.every),
            None,
        ));
    }
    let mut view = RunView::open(&args.run)?;
    let live = understands_escapes(&std::io::stdout()) && std::io::stdin().is_terminal();
    if !args.once && live {
        // A terminal in raw mode hands Ctrl-C to the dashboard as a key; this is for `kill`.
        let interrupt = Arc::new(Interrupt::default());
        let heard = Arc::clone(&interrupt);
        signals::listen(move |signal| {
            if heard.ask(signal) {
                ratatui::restore();
                signals::end(signal);
            }
        })?;
        let watching = interrupt.saving(); // the screen is given back
        let variable = |name: &str| std::env::var(name).ok();
        let no_pictures =
            watch::no_pictures(variable("COLORTERM").as_deref(), variable("NO_COLOR").as_deref());
        watch::follow(&mut view, Duration::from_secs_f64(args.every), no_pictures, &interrupt)?;
        drop(watching);
        if let Some(signal) = interrupt.signal() {
            return Ok(signals::exit_code(signal));
        }
    }
    // The screen is gone; what it showed last stays as text.
    print_text(dashboard::snapshot(&view).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

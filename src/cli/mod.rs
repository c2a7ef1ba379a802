//! The command line: what was typed (clap) becomes a validated configuration; data goes to stdout, everything for people to stderr.
//! Exit codes: 0 ok, 1 failed, 2 usage, 130 interrupted (a checkpoint is saved).

mod evaluate;
mod inspect;
mod interop;
mod monitor;
mod pretrain;
mod reproduce;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::device::{Choice, DeviceError};
use crate::train::TrainError;
use crate::train::experiment::Interrupt;

/// Train augmentation-augmented variational autoencoders on any GPU, or none.
#[derive(Debug, Parser)]
#[command(name = "aavae", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum Command {
    /// Pretrain an encoder, then probe it
    Pretrain(pretrain::Args),
    /// Train a linear classifier on the frozen encoder
    Probe(evaluate::ProbeArgs),
    /// Classify by nearest neighbours of the features
    Knn(evaluate::KnnArgs),
    /// Write features and labels to a safetensors file
    Embed(evaluate::EmbedArgs),
    /// Draw originals, views and reconstructions
    Reconstruct(evaluate::ReconstructArgs),
    /// Write weights for other programs: torchvision's ResNet, a folder to publish
    Export(interop::ExportArgs),
    /// Make a run folder from a checkpoint of the reference implementation
    Import(interop::ImportArgs),
    /// Tell runs apart: a table, the settings that differ, overlaid curves
    Compare(monitor::CompareArgs),
    /// Follow a run in the terminal
    Watch(monitor::WatchArgs),
    /// Reproduce a table or a figure of the paper
    Reproduce(reproduce::Args),
    /// List adapters, limits, features, and what `auto` takes
    Devices(inspect::DevicesArgs),
    /// Print the plan of a training step: kernels, shapes, FLOPs, bytes, memory
    Plan(inspect::PlanArgs),
    /// Run every kernel of this build on a device against the reference
    Check(inspect::CheckArgs),
    /// Time kernels and training steps
    Bench(inspect::BenchArgs),
    /// Choose the fastest right kernel for each product of a training step
    Tune(inspect::TuneArgs),
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    // `--width -1` is a bad value of --width, not an unknown flag.
    let command = Cli::command().mut_subcommands(|c| c.allow_negative_numbers(true));
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are data; a usage error is exit code 2.
            let code = if e.use_stderr() { 2 } else { 0 };
            return if e.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let result = match cli.command {
        Command::Pretrain(args) => pretrain::run(args),
        Command::Probe(args) => evaluate::probe(&args),
        Command::Knn(args) => evaluate::knn(&args),
        Command::Embed(args) => evaluate::embed(&args),
        Command::Reconstruct(args) => evaluate::reconstruct(&args),
        Command::Export(args) => interop::export(&args),
        Command::Import(args) => interop::import(&args),
        Command::Compare(args) => monitor::compare(&args),
        Command::Watch(args) => monitor::watch(&args),
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Devices(args) => inspect::devices(&args),
        Command::Plan(args) => inspect::plan(&args),
        Command::Check(args) => inspect::check(&args),
        Command::Bench(args) => inspect::bench(&args),
        Command::Tune(args) => inspect::tune(&args),
    };
    match result {
        Ok(code) => code,
        Err(Failure { error, usage }) => {
            say(&format!("error: {error}"));
            if let Some(hint) = error.hint() {
                say(&format!("\nhint: {hint}"));
            }
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
struct Failure {
    error: TrainError,
    /// The flags contradict each other: exit code 2.
    usage: bool,
}

impl<E: Into<TrainError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), usage: false }
    }
}

type Outcome = Result<ExitCode, Failure>;

fn usage(message: impl Into<String>, hint: Option<&str>) -> Failure {
    Failure { error: TrainError::config(message, hint), usage: true }
}

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Listens to Ctrl-C. While a step runs, the first one waits for it and saves.
fn interrupt() -> Result<Arc<Interrupt>, Failure> {
    let interrupt = Arc::new(Interrupt::default());
    let heard = Arc::clone(&interrupt);
    ctrlc::set_handler(move || {
        if heard.ask() {
            std::process::exit(INTERRUPTED.into());
        }
        say("stopping after this step; Ctrl-C again stops at once");
    })
    .map_err(|e| TrainError::config(format!("cannot catch Ctrl-C: {e}"), None))?;
    Ok(interrupt)
}

/// Parses `--device`.
fn choice(text: &str) -> Result<Choice, Failure> {
    text.parse().map_err(|e: DeviceError| Failure { usage: true, ..Failure::from(e) })
}

/// Prints a line for people on stderr. Where `eprintln!` would panic (a closed pipe), the work goes on.
fn say(text: &str) {
    use std::io::Write;
    // Nobody is listening.
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Prints one line of JSON on stdout. A closed pipe is not an error.
fn print_json(value: &serde_json::Value) {
    use std::io::Write;
    // Whoever closed the pipe has read enough.
    writeln!(std::io::stdout(), "{value}").ok();
}

/// Prints text on stdout. A closed pipe is not an error.
fn print_text(text: &str) {
    use std::io::Write;
    // Whoever closed the pipe has read enough.
    writeln!(std::io::stdout(), "{text}").ok();
}

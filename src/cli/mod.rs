//! The command line: what was typed (clap) becomes a validated configuration; data goes to stdout,
//! everything for people to stderr. Exit codes: 0 ok, 1 failed, 2 usage, 130 and 143 ended by
//! Ctrl-C and `kill` (what a run has done is saved).

mod bench;
mod evaluate;
mod flags;
mod inspect;
mod interop;
mod monitor;
mod output;
mod pretrain;
mod reproduce;
mod signals;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::device::{DeviceError, DeviceSpec};
use crate::disk;
use crate::run::RunError;
use crate::text::understands_escapes;
use output::{arrived, print_json, print_text, say};

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
    Bench(bench::BenchArgs),
    /// Choose the fastest right kernel for each product of a training step
    Tune(bench::TuneArgs),
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    signals::limits_are_errors();
    // `--width -1` is a bad value of --width, not an unknown flag.
    let command = Cli::command().mut_subcommands(|c| c.allow_negative_numbers(true));
    let plain = !understands_escapes(&std::io::stdout());
    let command = if plain { command.color(clap::ColorChoice::Never) } else { command };
    let parsed = command.try_get_matches().and_then(|matches| {
        let paths = refuse_tildes(&matches);
        Cli::from_arg_matches(&matches).map(|cli| (cli, paths))
    });
    let result = match parsed {
        Ok((cli, paths)) => paths.and_then(|()| run(cli.command)),
        Err(e) if e.use_stderr() => {
            say(e.render().to_string().trim_end());
            return ExitCode::from(2);
        }
        // Help and version are data.
        Err(e) => arrived(e.print()).map(|()| ExitCode::SUCCESS),
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

/// Refuses every path that was typed with a `~` which the shell did not replace, of whatever
/// argument of whatever command.
fn refuse_tildes(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((_, typed)) = matches.subcommand() else { return Ok(()) };
    for argument in typed.ids() {
        // An argument of another type has no paths.
        let paths = typed.try_get_many::<PathBuf>(argument.as_str()).ok().flatten();
        for path in paths.into_iter().flatten() {
            disk::refuse_tilde(path).map_err(RunError::from)?;
        }
    }
    Ok(())
}

/// Whether a command line is one of this program: its flags are parsed and, of `pretrain`, become a
/// configuration. Nothing is done. For tests of whatever people may type.
#[doc(hidden)]
pub fn understands(line: impl IntoIterator<Item = OsString>) -> bool {
    let command = Cli::command().mut_subcommands(|c| c.allow_negative_numbers(true));
    let matches = command.try_get_matches_from(line);
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)).map(|cli| cli.command) {
        Ok(Command::Pretrain(args)) => args.is_understood(),
        parsed => parsed.is_ok(),
    }
}

fn run(command: Command) -> Outcome {
    // Looking at run folders takes one thread.
    if !matches!(command, Command::Compare(_) | Command::Watch(_)) {
        start_threads()?;
    }
    match command {
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
        Command::Bench(args) => bench::bench(&args),
        Command::Tune(args) => bench::tune(&args),
    }
}

/// Starts the threads that work is shared among. Left to itself, rayon starts them at the first use
/// and panics if it cannot.
fn start_threads() -> Result<(), Failure> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(|e| {
        let hint = "the limit on processes and threads (`ulimit -u`) is too low; \
            RAYON_NUM_THREADS=1 in the environment takes fewer";
        RunError::config(format!("cannot start the worker threads: {e}"), Some(hint)).into()
    })
}

/// Why a command failed.
#[derive(Debug)]
struct Failure {
    error: RunError,
    /// The flags contradict each other: exit code 2.
    usage: bool,
}

impl<E: Into<RunError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), usage: false }
    }
}

type Outcome = Result<ExitCode, Failure>;

fn usage(message: impl Into<String>, hint: Option<&str>) -> Failure {
    Failure { error: RunError::config(message, hint), usage: true }
}

/// Parses the value of `--device`.
fn choice(text: &str) -> Result<DeviceSpec, Failure> {
    text.parse().map_err(|e: DeviceError| Failure { usage: true, ..Failure::from(e) })
}

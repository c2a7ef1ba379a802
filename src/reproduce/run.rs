//! Carrying a grid out: one run after another, seed by seed, so that every cell has its first
//! result as early as possible.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::cells::Weights;
use super::folder::{self, CellRun, CellState};
use super::forecast::{self, Cost, Forecast, Speed};
use super::results::{CellRow, Results};
use super::{Cell, Setup, cells, report, views};
use crate::data::Splits;
use crate::device::{self, DeviceSpec};
use crate::disk::is_there;
use crate::run::RunError;
use crate::run::folder::RunFolder;
use crate::run::settings::RunConfig;
use crate::run::trained::open_data;
use crate::text;
use crate::train::experiment::{self, Evaluate, ExperimentRequest, Present};
use crate::train::interrupt::Interrupt;
use crate::train::schedule;

/// What a grid is asked to do.
#[derive(Debug)]
pub struct GridRequest<'a> {
    /// What it is made from.
    pub setup: &'a Setup,
    /// Names of the cells to run; all if empty.
    pub only: &'a [String],
    /// Device that every run is trained on.
    pub device: DeviceSpec,
    /// Resume runs on another device than they were trained on.
    pub another_device: bool,
    /// Folder of the grid.
    pub out: &'a Path,
    /// The command as it was typed, for the report.
    pub command: &'a str,
    /// Leaves images of the data set out of the report.
    pub without_images: bool,
    /// Ctrl-C and `kill`: stops the run at hand and the grid.
    pub interrupt: &'a Interrupt,
}

/// A grid, ready to run.
struct Grid {
    cells: Vec<Cell>,
    /// The images of every run; only their order depends on the seed.
    splits: Splits,
    milestones: Vec<(usize, u64)>,
}

impl Grid {
    fn new(setup: &Setup) -> Result<Self, RunError> {
        let all = RunConfig {
            dataset: setup.dataset,
            data_dir: setup.data_dir.clone(),
            ..RunConfig::default()
        };
        let available = open_data(&all)?.train.len();
        let cells = cells(setup, available);
        let config = cells[0].config(0);
        let splits = open_data(&config)?;
        Ok(Self { milestones: schedule::milestones(&config, &splits)?, splits, cells })
    }

    fn selected(&self, only: &[String]) -> Result<Vec<&Cell>, RunError> {
        let unknown = only.iter().find(|name| self.cells.iter().all(|cell| cell.name != **name));
        if let Some(name) = unknown {
            let names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
            return Err(RunError::config(
                format!("no cell is called `{name}`"),
                Some(&format!("the cells are {}", names.join(", "))),
            ));
        }
        Ok(self.cells.iter().filter(|cell| only.is_empty() || only.contains(&cell.name)).collect())
    }
}

/// Trains nothing: what the grid would cost. `say` takes lines about runs that failed before.
///
/// # Errors
/// If data or device fail.
pub fn forecast(
    request: &GridRequest<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<Forecast, RunError> {
    let grid = Grid::new(request.setup)?;
    folder::verify(request.out, request.setup, &grid.cells, &grid.splits, request.command)?;
    let state =
        |run: &CellRun<'_>| run.state(request.setup.experiment, request.out, &grid.milestones);
    let selected = grid.selected(request.only)?;
    for (seed, cell) in (0..request.setup.seeds as u64)
        .flat_map(|seed| selected.iter().map(move |cell| (seed, *cell)))
    {
        if let CellState::Failed(error) = state(&CellRun { cell, seed }) {
            say(&format!("{} will be tried again: {error}", cell.folder(seed)));
        }
    }
    forecast::forecast(request.setup, &selected, &grid.splits, &request.device, state)
}

/// Runs what is not done, writes the report, and returns the summary. `say` takes lines for people.
///
/// # Errors
/// If the grid cannot start, or the report cannot be written. A run that fails is in the summary
/// and stops nothing.
pub fn run(request: &GridRequest<'_>, say: &mut dyn FnMut(&str)) -> Result<GridSummary, RunError> {
    let GridRequest { setup, out, interrupt, .. } = *request;
    let grid = Grid::new(setup)?;
    let selected = grid.selected(request.only)?;
    let (session, why) = device::open(&request.device)?;
    say(&format!("device: {} ({why})", session.device()));
    let costs: Vec<f64> = selected
        .iter()
        .map(|cell| Cost::new(cell, &grid.splits, &session).map_or(0.0, |c| c.flops()))
        .collect();
    drop(session);
    let (identity, _lock) = folder::claim(out, setup, &grid.cells, &grid.splits, request.command)?;

    let runs: Vec<(CellRun<'_>, f64)> = (0..setup.seeds as u64)
        .flat_map(|seed| {
            selected.iter().zip(&costs).map(move |(cell, cost)| (CellRun { cell, seed }, *cost))
        })
        .collect();
    let state = |run: &CellRun<'_>| run.state(setup.experiment, out, &grid.milestones);
    let mut pace = Speed::default();
    let mut errors: Vec<FailedRun> = Vec::new();
    let show_images = !request.without_images;
    let results = || Results {
        show_images,
        ..Results::read(setup, &grid.cells, &grid.splits, &grid.milestones, out)
    };
    for (i, (run, cost)) in runs.iter().enumerate() {
        if interrupt.asked() {
            break;
        }
        let name = run.cell.folder(run.seed);
        match state(run) {
            CellState::Done(_) => {
                say(&format!("run {} of {}: {name} is done", i + 1, runs.len()));
                continue;
            }
            CellState::Failed(error) => say(&format!("{name} is tried again: {error}")),
            CellState::Open => {}
        }
        let left = runs[i..]
            .iter()
            .filter(|(run, _)| !matches!(state(run), CellState::Done(_)))
            .map(|(_, cost)| cost)
            .sum();
        let eta = pace.seconds(left).map_or(String::new(), |seconds| {
            format!(", about {:.0} min left for all", seconds / 60.0)
        });
        say(&format!("run {} of {}: {name}{eta}", i + 1, runs.len()));
        let fresh = !is_there(&run.path(out).join("config.toml"));
        let began = Instant::now();
        match attempt(request, run, say) {
            Ok(()) if fresh => pace.add(*cost, began.elapsed().as_secs_f64()),
            Ok(()) => {}
            Err(failed) => errors.push(failed),
        }
        // A report at any moment, also if an evaluation is cut short.
        if let Err(error) = report::write(&results(), &identity, out) {
            say(&format!("no report yet: {error}"));
        }
    }
    let results = results();
    let written = report::write(&results, &identity, out)?;
    for (run, error) in results.unread() {
        say(&format!("warning: the bits per dimension of {run} are left out: {error}"));
    }
    Ok(GridSummary {
        experiment: setup.experiment.name(),
        scale: setup.scale.name(),
        dataset: setup.dataset.name(),
        out: text::path(out),
        report: text::path(&written),
        runs: results.runs.len(),
        done: results.done().count(),
        failed: errors,
        cells: results.table(),
        interrupted: interrupt.asked(),
    })
}

/// What became of a grid, for the summary on stdout.
#[derive(Clone, Debug, Serialize)]
pub struct GridSummary {
    /// Name of the experiment.
    pub experiment: &'static str,
    /// Name of the scale.
    pub scale: &'static str,
    /// Name of the data set.
    pub dataset: String,
    /// Folder of the grid.
    pub out: String,
    /// Path of the report.
    pub report: String,
    /// Runs of the whole grid.
    pub runs: usize,
    /// Runs that are done.
    pub done: usize,
    /// Runs that were tried and failed.
    pub failed: Vec<FailedRun>,
    /// What was measured of each cell.
    pub cells: Vec<CellRow>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
}

/// A run that was tried and failed.
#[derive(Clone, Debug, Serialize)]
pub struct FailedRun {
    /// Name of its folder.
    pub run: String,
    /// What stopped it.
    pub error: String,
}

/// Carries a run out. Why it failed is said, and kept in its folder.
fn attempt(
    request: &GridRequest<'_>,
    run: &CellRun<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<(), FailedRun> {
    let (out, name) = (request.out, run.cell.folder(run.seed));
    caught(|| run.again(out).and_then(|()| carry_out(request, run, say))).map_err(|error| {
        say(&format!("{name} failed: {error}"));
        // Where nothing can be written the report says less; the other runs go on.
        if let Err(also) = run.failed(out, &error) {
            say(&format!("{name}: {also}"));
        }
        FailedRun { run: name, error: error.to_string() }
    })
}

/// A bug in one run is that run's failure and not the end of the grid. Its message is printed as
/// any panic's.
fn caught(work: impl FnOnce() -> Result<(), RunError>) -> Result<(), RunError> {
    // What a run leaves half done is in its folder, where it may be half done at any time.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let message = format!("a bug stopped it: {}", text.unwrap_or("it does not say which"));
        Err(RunError::config(
            message,
            Some("the same command tries it again; the other runs go on"),
        ))
    })
}

/// Trains and measures one run, or what is left of it.
fn carry_out(
    request: &GridRequest<'_>,
    run: &CellRun<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<(), RunError> {
    let (config, path) = (run.cell.config(run.seed), run.path(request.out));
    let evaluate = if config.milestones.is_empty() { Evaluate::End } else { Evaluate::Milestones };
    let claimed = RunFolder::claim(&path, folder::PROCESS)?;
    let asked = ExperimentRequest {
        config: &config,
        device: request.device.clone(),
        another_device: request.another_device,
        tune: true,
        folder: &claimed,
        present: Present::Resume,
        evaluate,
        interrupt: request.interrupt,
    };
    if run.cell.weights == Weights::Initial {
        experiment::untrained(&asked, say)?;
        return Ok(());
    }
    let summary = experiment::run(&asked, say)?;
    if summary.interrupted == Some(false)
        && run.needs_views(request.setup.experiment)
        && !views::read(&path).is_ok_and(|found| found.is_some())
    {
        views::measure(&config, &request.device, &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure_of_its_run() {
        assert!(caught(|| Ok(())).is_ok());
        let error = caught(|| Err(RunError::config("a reason", None))).expect_err("an error");
        assert_eq!(error.to_string(), "a reason");
        let numbers = [1, 2];
        let error = caught(|| panic!("index {}", numbers.len())).expect_err("a panic");
        assert_eq!(error.to_string(), "a bug stopped it: index 2");
        let error = caught(|| std::panic::panic_any(3)).expect_err("a panic without a text");
        assert!(error.to_string().starts_with("a bug stopped it"), "{error}");
    }
}

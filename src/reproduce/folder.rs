//! The folder of a grid: which grid it is, and how far each of its runs is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cells::{Overrides, Setup, Weights};
use super::{Cell, Experiment, views};
use crate::data::Splits;
use crate::disk::{self, Lock, is_there};
use crate::run::RunError;
use crate::run::folder::refuse_inside_data;
use crate::run::settings::RunConfig;
use crate::run::summary::{Evaluation, RunSummary};
use crate::run::trained::{read_config, read_json, write_whole};
use crate::text;

/// Name of the file that says which grid a folder holds.
pub const FILE: &str = "grid.json";
/// What locks say of the process that runs a grid.
pub(super) const PROCESS: &str = "aavae reproduce";
/// Name of the file in a run folder that says why the run failed.
const FAILURE: &str = "failure.json";

/// What `grid.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the experiment.
    pub experiment: String,
    /// Name of the scale.
    pub scale: String,
    /// Name of the data set.
    pub dataset: String,
    /// Version of this program.
    pub version: String,
    /// Changes to the scale's budget.
    #[serde(default)]
    pub overrides: Overrides,
    /// [`Splits::fingerprint`] of its images.
    #[serde(default)]
    pub images: String,
    /// Seeds, from 0; may grow.
    pub seeds: usize,
    /// Names of the run folders, seed by seed.
    pub runs: Vec<String>,
    /// The command that was typed last.
    pub command: String,
}

/// What is read of the `failure.json` of a run that failed.
#[derive(Debug, Deserialize)]
struct Failure {
    /// What stopped it.
    error: String,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub enum CellState {
    /// Everything is measured.
    Done(Box<RunSummary>),
    /// It stopped with an error, or its summary cannot be read. It will be tried again.
    Failed(String),
    /// Not started, or not finished.
    Open,
}

/// A run of the grid.
#[derive(Clone, Copy, Debug)]
pub struct CellRun<'a> {
    /// The cell that it repeats.
    pub cell: &'a Cell,
    /// Its seed, from 0.
    pub seed: u64,
}

impl CellRun<'_> {
    /// Its run folder in the folder of the grid.
    pub fn path(&self, out: &Path) -> PathBuf {
        out.join(self.cell.folder(self.seed))
    }

    /// What is left to measure once the encoder is evaluated.
    pub fn needs_views(&self, experiment: Experiment) -> bool {
        experiment == Experiment::Fig5 && self.cell.weights == Weights::Trained
    }

    /// How far it is. `milestones` are those that it reaches.
    pub fn state(
        &self,
        experiment: Experiment,
        out: &Path,
        milestones: &[(usize, u64)],
    ) -> CellState {
        let path = self.path(out);
        let config = self.cell.config(self.seed);
        let whole = |measured: &Evaluation| measured.is_whole(config.probe_epochs);
        let summary = match RunSummary::read(&path) {
            Ok(summary) => summary,
            // Tried again, the run goes on from its checkpoint and writes another.
            Err(error) => return CellState::Failed(error.to_string()),
        };
        if let Some(summary) = summary.filter(|summary| whole(&summary.measured)) {
            let reached = |epoch| summary.milestone(epoch).is_some_and(whole);
            let views = match self.needs_views(experiment).then(|| views::read(&path)) {
                // Drawn again, they are written anew.
                Some(Err(error)) => return CellState::Failed(error.to_string()),
                Some(Ok(found)) => found.is_some(),
                None => true,
            };
            if views && milestones.iter().all(|(epoch, _)| reached(*epoch)) {
                return CellState::Done(summary.into());
            }
        }
        match read_json::<Failure>(&path.join(FAILURE)) {
            Ok(None) => CellState::Open,
            Ok(Some(failure)) => CellState::Failed(failure.error),
            Err(error) => CellState::Failed(error.to_string()),
        }
    }

    /// Notes why it failed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn failed(&self, out: &Path, error: &RunError) -> Result<(), RunError> {
        let path = self.path(out);
        disk::create_folder(&path)?;
        let failure = json!({ "error": error.to_string(), "hint": error.hint() });
        write_whole(&path.join(FAILURE), format!("{failure:#}\n").as_bytes())
    }

    /// Forgets an earlier failure: it is tried again.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub fn again(&self, out: &Path) -> Result<(), RunError> {
        let path = self.path(out).join(FAILURE);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(RunError::io("remove", path)(e))
            }
            _ => Ok(()),
        }
    }
}

impl Identity {
    fn new(setup: &Setup, cells: &[Cell], splits: &Splits, command: &str) -> Self {
        let seeds = 0..setup.seeds as u64;
        Self {
            experiment: setup.experiment.name().into(),
            scale: setup.scale.name().into(),
            dataset: setup.dataset.name(),
            version: env!("CARGO_PKG_VERSION").into(),
            overrides: setup.overrides,
            images: splits.fingerprint(),
            seeds: setup.seeds,
            runs: seeds.flat_map(|seed| cells.iter().map(move |cell| cell.folder(seed))).collect(),
            command: command.into(),
        }
    }

    fn name(&self) -> String {
        let changed = if self.overrides == Overrides::default() { "" } else { " (with changes)" };
        format!(
            "`{}` at scale `{}`{changed} on `{}` by version {}",
            self.experiment, self.scale, self.dataset, self.version
        )
    }
}

/// Makes a folder the folder of a grid, or checks that it is; writes nothing if it is another's. It
/// belongs to this process until the lock is dropped.
///
/// # Errors
/// Those of [`verify`], if another process has the folder, or if it cannot be written.
pub fn claim(
    out: &Path,
    setup: &Setup,
    cells: &[Cell],
    splits: &Splits,
    command: &str,
) -> Result<(Identity, Lock), RunError> {
    refuse_inside_data(out, setup.dataset, setup.data_dir.as_deref())?;
    let mine = verify(out, setup, cells, splits, command)?;
    disk::create_folder(out)?;
    let lock = Lock::take(out, PROCESS)?;
    disk::sweep(out, |_| true);
    let text = serde_json::to_string_pretty(&mine)
        .map_err(|e| RunError::config(format!("{FILE} cannot be written: {e}"), None))?;
    write_whole(&out.join(FILE), format!("{text}\n").as_bytes())?;
    Ok((mine, lock))
}

/// Checks that a folder is the folder of a grid, or may become it; writes nothing.
///
/// # Errors
/// If the folder holds another grid, or the same of other images, or files of something else, or a
/// run whose configuration is not its cell's.
pub fn verify(
    out: &Path,
    setup: &Setup,
    cells: &[Cell],
    splits: &Splits,
    command: &str,
) -> Result<Identity, RunError> {
    if is_there(out) && !out.is_dir() {
        return Err(RunError::config(
            format!("{} is no folder", text::name(&out)),
            Some("name a folder with --out"),
        ));
    }
    let mine = Identity::new(setup, cells, splits, command);
    match read(out)? {
        Some(there) => refuse_another(out, &there, &mine)?,
        None => refuse_foreign(out)?,
    }
    for seed in 0..setup.seeds as u64 {
        for cell in cells {
            check(&CellRun { cell, seed }, out)?;
        }
    }
    Ok(mine)
}

/// Refuses to carry a grid on in the folder of another one, or with fewer seeds.
fn refuse_another(out: &Path, there: &Identity, mine: &Identity) -> Result<(), RunError> {
    let out = text::name(out);
    let what = |grid: &Identity| {
        let names = [&grid.experiment, &grid.scale, &grid.dataset, &grid.version];
        (names.map(String::clone), grid.overrides)
    };
    if what(there) != what(mine) {
        let message = format!("{out} holds {}; this is {}", there.name(), mine.name());
        let hint = if there.version == mine.version {
            "name another folder with --out"
        } else {
            "finish it with that version, or name another folder with --out"
        };
        return Err(RunError::config(message, Some(hint)));
    }
    if !there.images.is_empty() && there.images != mine.images {
        let message = format!("{out} was begun on other images of `{}` than these", mine.dataset);
        let hint = "give --data-dir the same images, or name another folder with --out";
        return Err(RunError::config(message, Some(hint)));
    }
    let (seeds, asked) = (there.seeds, mine.seeds);
    if seeds > asked {
        let message = format!("{out} holds {seeds} seeds, more than the {asked} asked for");
        let hint = format!("--seeds {seeds} keeps them all");
        return Err(RunError::config(message, Some(&hint)));
    }
    Ok(())
}

/// Refuses to begin a grid among the files of something else.
fn refuse_foreign(out: &Path) -> Result<(), RunError> {
    // A process that was killed before it had written anything may have left these.
    let left = |name: &std::ffi::OsStr| {
        name == Lock::FILE || name.to_str().is_some_and(|name| disk::is_temporary(name, FILE))
    };
    if disk::names(out)?.iter().all(|name| left(name)) {
        return Ok(());
    }
    let message = format!("{} is not empty and holds no grid (no {FILE})", text::name(out));
    Err(RunError::config(message, Some("name another folder with --out")))
}

/// `grid.json` of a folder; `None` if there is none.
///
/// # Errors
/// If it is damaged.
pub fn read(out: &Path) -> Result<Option<Identity>, RunError> {
    read_json(&out.join(FILE)).map_err(|error| match error {
        RunError::Config { message, .. } => RunError::config(
            message,
            Some("name another folder with --out; the runs in this one are whole"),
        ),
        error => error,
    })
}

/// Checks that a run folder, where there is one, holds its cell's configuration. Where its data is
/// may change.
fn check(run: &CellRun<'_>, out: &Path) -> Result<(), RunError> {
    let path = run.path(out).join("config.toml");
    if !is_there(&path) {
        return Ok(());
    }
    let stored = read_config(&path)?;
    let wanted = RunConfig { data_dir: stored.data_dir.clone(), ..run.cell.config(run.seed) };
    match wanted.differences(&stored).first() {
        None => Ok(()),
        Some(d) => {
            let message = format!(
                "{} is {} here, but {} in {}",
                d.flag(),
                d.here,
                d.there,
                text::name(&path)
            );
            Err(RunError::config(
                message,
                Some(
                    "that run is of another grid: move it away, or name another folder with --out",
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::reproduce::{GridScale, cells};
    use crate::run::settings::DataKind;

    /// Files of a run that are damaged are named when it is tried again, and not taken for none.
    #[test]
    fn damaged_files_are_not_taken_for_none() {
        let setup = Setup {
            experiment: Experiment::Fig5,
            scale: GridScale::Smoke,
            dataset: DataKind::Shapes,
            data_dir: None,
            seeds: 1,
            overrides: Overrides::default(),
        };
        let cells = cells(&setup, 2000);
        let cell = cells.iter().find(|cell| cell.weights == Weights::Trained).expect("one");
        let dir = tempfile::tempdir().expect("a folder");
        let run = CellRun { cell, seed: 0 };
        let path = run.path(dir.path());
        fs::create_dir(&path).expect("a folder");
        let state = || run.state(Experiment::Fig5, dir.path(), &[]);
        let put = |name: &str, text: &str| fs::write(path.join(name), text).expect("a file");
        let failed = |parts: [&str; 2]| {
            let state = state();
            let CellState::Failed(error) = &state else { panic!("{state:?}") };
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        assert_eq!(state(), CellState::Open);
        put(FAILURE, "{\"error\": \"no room\"}");
        failed(["no room", ""]);
        put(FAILURE, "{\"error\": \"no");
        failed(["failure.json cannot be read", "EOF"]);
        fs::remove_file(path.join(FAILURE)).expect("removed");

        let epochs = cell.config(0).probe_epochs;
        let summary = json!({
            "run": "x", "method": "vae", "steps": 1, "interrupted": false, "knn": [],
            "probe": { "accuracy": 0.5, "epochs": epochs },
        });
        put("summary.json", &summary.to_string());
        assert_eq!(state(), CellState::Open, "its views are not measured");
        put("views.json", "[{");
        failed(["views.json cannot be read", "EOF"]);
        let of = |length: usize| {
            let matrix = vec!["0.5"; length].join(",");
            format!("[{{\"of\":\"h\",\"matrix\":[{matrix}],\"within\":1.0,\"across\":0.5}}]")
        };
        put("views.json", &of(9));
        failed(["views.json holds 9 similarities", "not 4096"]);
        put("views.json", &of(4096));
        assert!(matches!(state(), CellState::Done(_)), "{:?}", state());
    }

    /// A grid is not begun in a folder that cannot be read, nor among files of something else.
    #[test]
    fn a_grid_begins_in_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        refuse_foreign(&dir.path().join("none")).expect("nothing");
        fs::write(dir.path().join(Lock::FILE), "").expect("a file");
        refuse_foreign(dir.path()).expect("what a killed process left");
        let file = dir.path().join("thesis.txt");
        fs::write(&file, "").expect("a file");
        assert!(refuse_foreign(dir.path()).is_err_and(|e| e.to_string().contains("not empty")));
        assert!(refuse_foreign(&file).is_err_and(|e| e.to_string().contains("cannot read")));
    }
}

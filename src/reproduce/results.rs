//! What the runs of a grid measured, read back from their folders.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cells::Setup;
use super::folder::{CellRun, CellState};
use super::views;
use super::{Cell, Experiment};
use crate::data::Splits;
use crate::eval::embed::Similarity;
use crate::run::metrics::{self, MetricsError};
use crate::run::settings::RunConfig;
use crate::run::summary::{Evaluation, Milestone, RunSummary};

/// Mean and spread of a quantity over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat {
    /// Mean of the values.
    pub mean: f64,
    /// Standard deviation of the sample (n - 1); `None` for a single value.
    pub sd: Option<f64>,
    /// How many values there are.
    pub n: usize,
}

impl Stat {
    /// `None` if there is no value.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let sd =
            || (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
        (n > 0).then(|| Self { mean, sd: (n > 1).then(sd), n })
    }

    /// "38.90 ± 1.50", of values times `scale`; "1.2e18 ± 3.4e17" where they explode.
    pub fn text(&self, scale: f64, digits: usize) -> String {
        let number =
            |x: f64| if x.abs() < 1e6 { format!("{x:.digits$}") } else { format!("{x:.1e}") };
        let mean = number(self.mean * scale);
        self.sd.map_or(mean.clone(), |sd| format!("{mean} ± {}", number(sd * scale)))
    }

    /// Half of the 95 % confidence interval of the mean, by Student's t; `None` for a single value.
    pub fn margin(&self) -> Option<f64> {
        /// Two-sided 5 % points for 1, 2, ... degrees of freedom, rounded up; the last one for all
        /// further ones, on the safe side.
        const T: [f64; 9] = [12.707, 4.303, 3.183, 2.777, 2.571, 2.447, 2.365, 2.307, 2.263];
        self.sd.map(|sd| T[(self.n - 2).min(T.len() - 1)] * sd / (self.n as f64).sqrt())
    }
}

/// A quantity that every run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Linear probe, fraction of the test images.
    Probe,
    /// kNN with 20 neighbours at temperature .07.
    Knn20,
    /// kNN with 200 neighbours at temperature .1.
    Knn200,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Probe, Self::Knn20, Self::Knn200];

    /// Name in `results.csv`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Knn20 => "knn20",
            Self::Knn200 => "knn200",
        }
    }

    /// Its value in an evaluation; `None` if the training set is too small for so many neighbours.
    pub fn of(self, measured: &Evaluation) -> Option<f64> {
        let knn = |k, temperature| {
            measured.knn_accuracy(|row| row.k == Some(k) && row.temperature == Some(temperature))
        };
        match self {
            Self::Probe => measured.probe_accuracy(),
            Self::Knn20 => knn(20, 0.07),
            Self::Knn200 => knn(200, 0.1),
        }
    }
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// Name of its folder.
    pub name: String,
    /// Position of its cell.
    pub cell: usize,
    /// Seed of the run, from 0.
    pub seed: u64,
    /// Settings that the run has by its cell and seed.
    pub config: RunConfig,
    /// How far it is.
    pub state: CellState,
    /// Bits per dimension after each epoch; why there are none, where the records of a run that is
    /// done cannot be read.
    pub bits: Result<Vec<Bits>, String>,
    /// Similarities of views.
    pub similarities: Vec<Similarity>,
}

impl RunResult {
    /// The summary of a run that is done.
    pub fn summary(&self) -> Option<&RunSummary> {
        match &self.state {
            CellState::Done(summary) => Some(summary),
            _ => None,
        }
    }

    /// A quantity at each milestone: epoch and value.
    pub fn milestones(&self, measure: Measure) -> Vec<(f64, f64)> {
        let rows = self.summary().map_or(&[][..], |summary| &summary.milestones);
        let value = |row: &Milestone| Some((row.epoch as f64, measure.of(&row.measured)?));
        rows.iter().filter_map(value).collect()
    }

    /// A quantity at one milestone.
    pub fn milestone(&self, epoch: usize, measure: Measure) -> Option<f64> {
        self.milestones(measure).into_iter().find(|m| m.0 == epoch as f64).map(|m| m.1)
    }
}

/// Everything that a report says.
#[derive(Debug)]
pub struct Results {
    /// What the grid was made from.
    pub setup: Setup,
    /// Cells of the grid, in its order.
    pub cells: Vec<Cell>,
    /// Its runs, seed by seed.
    pub runs: Vec<RunResult>,
    /// The grid's folder.
    pub out: PathBuf,
    /// Images that each run trains on, that are held out, and that it is tested on.
    pub images: [usize; 3],
    /// Epochs at which the runs are measured before their end.
    pub milestones: Vec<usize>,
    /// Whether the report shows images of the data set.
    pub show_images: bool,
}

impl Results {
    /// Reads the folder of a grid. What cannot be read is not done.
    pub fn read(
        setup: &Setup,
        cells: &[Cell],
        splits: &Splits,
        milestones: &[(usize, u64)],
        out: &Path,
    ) -> Self {
        let one = |(seed, (cell, c)): (u64, (usize, &Cell))| {
            let run = CellRun { cell: c, seed };
            let (config, path) = (c.config(seed), run.path(out));
            let state = run.state(setup.experiment, out, milestones);
            let done = matches!(state, CellState::Done(_));
            let bits = if done && setup.experiment == Experiment::Fig2 {
                bits_by_epoch(&path).map_err(|error| error.to_string())
            } else {
                Ok(Vec::new())
            };
            let similarities = if done && run.needs_views(setup.experiment) {
                // They were whole just now, or the run would not be done.
                views::read(&path).ok().flatten().unwrap_or_default()
            } else {
                Vec::new()
            };
            RunResult { name: c.folder(seed), cell, seed, config, state, bits, similarities }
        };
        let all = (0..setup.seeds as u64)
            .flat_map(|seed| cells.iter().enumerate().map(move |cell| (seed, cell)));
        let images = [splits.train.len(), splits.val.len(), splits.test.len()];
        let runs = all.map(one).collect();
        let milestones = milestones.iter().map(|m| m.0).collect();
        Self {
            setup: setup.clone(),
            cells: cells.to_vec(),
            runs,
            out: out.into(),
            images,
            milestones,
            show_images: true,
        }
    }

    /// Runs that are done, with their summaries.
    pub fn done(&self) -> impl Iterator<Item = (&RunResult, &RunSummary)> {
        self.runs.iter().filter_map(|run| run.summary().map(|summary| (run, summary)))
    }

    /// Runs that failed, with their errors.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.runs.iter().filter_map(|run| match &run.state {
            CellState::Failed(error) => Some((run.name.as_str(), error.as_str())),
            _ => None,
        })
    }

    /// Runs that are done and whose bits per dimension cannot be read, with the reasons.
    pub fn unread(&self) -> impl Iterator<Item = (&str, &str)> {
        self.runs.iter().filter_map(|run| {
            run.bits.as_ref().err().map(|error| (run.name.as_str(), error.as_str()))
        })
    }

    /// The values of a quantity over the seeds of a cell that are done.
    pub fn values(
        &self,
        cell: usize,
        of: impl Fn(&RunResult, &RunSummary) -> Option<f64>,
    ) -> Vec<(u64, f64)> {
        self.done()
            .filter(|(run, _)| run.cell == cell)
            .filter_map(|(run, summary)| Some((run.seed, of(run, summary)?)))
            .collect()
    }

    /// Mean and spread of a measure of a cell.
    pub fn stat(&self, cell: usize, measure: Measure) -> Option<Stat> {
        let values: Vec<f64> =
            self.values(cell, |_, s| measure.of(&s.measured)).into_iter().map(|v| v.1).collect();
        Stat::of(&values)
    }

    /// Position of a cell.
    pub fn cell(&self, name: &str) -> Option<usize> {
        self.cells.iter().position(|cell| cell.name == name)
    }

    /// The aggregated measures of every cell, for the summary on stdout.
    pub fn table(&self) -> Vec<CellRow> {
        let row = |(i, cell): (usize, &Cell)| {
            let stat = |measure| self.stat(i, measure).map(|s| MeanSd { mean: s.mean, sd: s.sd });
            CellRow {
                cell: cell.name.clone(),
                n: self.values(i, |_, s| Measure::Probe.of(&s.measured)).len(),
                probe: stat(Measure::Probe),
                knn20: stat(Measure::Knn20),
                knn200: stat(Measure::Knn200),
            }
        };
        self.cells.iter().enumerate().map(row).collect()
    }
}

/// Mean and standard deviation of a quantity over the seeds of a cell.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MeanSd {
    /// Mean, a fraction of the test images.
    pub mean: f64,
    /// Standard deviation of the sample; `None` for a single value.
    pub sd: Option<f64>,
}

/// A cell in the summary on stdout.
#[derive(Clone, Debug, Serialize)]
pub struct CellRow {
    /// Name of the cell.
    pub cell: String,
    /// Runs of it that are done.
    pub n: usize,
    /// The linear probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<MeanSd>,
    /// kNN with 20 neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn20: Option<MeanSd>,
    /// kNN with 200 neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn200: Option<MeanSd>,
}

/// Bits per dimension after an epoch (`train::measure`): of the batches that were trained on and of
/// the held-out images by the evidence lower bound, and of the held-out images by importance
/// sampling where that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bits {
    /// Epochs trained, from 1.
    pub epoch: f64,
    /// Training batches, bound.
    pub train: f64,
    /// Held-out images, bound.
    pub val: f64,
    /// Held-out images, importance-sampled.
    pub sampled: Option<f64>,
}

/// Bits per dimension at the end of each epoch, from the records of `metrics.jsonl`.
///
/// # Errors
/// If a line is no record: the means of the epochs around it would be others.
fn bits_by_epoch(path: &Path) -> Result<Vec<Bits>, MetricsError> {
    let mut records = metrics::read(path.join("metrics.jsonl"))?;
    // As a run writes them, whatever became of the file since.
    records.sort_by_key(|record| record.step);
    let value = |split: &str, step: u64, key: &str| {
        let record = records.iter().find(|record| record.split == split && record.step == step)?;
        record.get(key).map(f64::from).filter(|x| x.is_finite())
    };
    // A training record is the mean of the steps since the one before.
    let mut ends: Vec<u64> =
        records.iter().filter(|record| record.split == "train").map(|record| record.step).collect();
    ends.dedup();
    let train = |after: u64, until: u64| {
        let parts: Option<Vec<(f64, f64)>> = ends
            .iter()
            .enumerate()
            .filter(|(_, end)| after < **end && **end <= until)
            .map(|(i, end)| {
                Some((
                    (end - if i == 0 { 0 } else { ends[i - 1] }) as f64,
                    value("train", *end, "bits_per_dim_elbo")?,
                ))
            })
            .collect();
        let parts = parts.filter(|parts| !parts.is_empty())?;
        Some(
            parts.iter().map(|(steps, bits)| steps * bits).sum::<f64>()
                / parts.iter().map(|part| part.0).sum::<f64>(),
        )
    };
    let mut held_out: Vec<&metrics::MetricsRecord> =
        records.iter().filter(|record| record.split == "val").collect();
    held_out.dedup_by_key(|record| record.step);
    let bits = |(i, r): (usize, &&metrics::MetricsRecord)| {
        let begin = if i == 0 { 0 } else { held_out[i - 1].step };
        let sampled = value("eval", r.step, "bits_per_dim");
        Some(Bits {
            epoch: r.epoch as f64 + 1.0,
            train: train(begin, r.step)?,
            val: value("val", r.step, "bits_per_dim_elbo")?,
            sampled,
        })
    };
    Ok(held_out.iter().enumerate().filter_map(bits).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statistics_of_seeds() {
        let s = Stat::of(&[0.3, 0.4, 0.5]).expect("three values");
        assert!(
            (s.mean - 0.4).abs() < 1e-12
                && (s.sd.expect("a spread") - 0.1).abs() < 1e-12
                && s.n == 3
        );
        assert_eq!(s.text(100.0, 2), "40.00 ± 10.00");
        // Student's t for two degrees of freedom.
        assert!((s.margin().expect("an interval") - 4.303 * 0.1 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(Stat::of(&[0.25]).expect("one value").text(100.0, 1), "25.0");
        assert_eq!(Stat::of(&[4e18, 6e18]).expect("two values").text(1.0, 3), "5.0e18 ± 1.4e18");
        assert_eq!(Stat::of(&[]), None);
    }

    /// A record every two steps, three steps an epoch: the record at an epoch's end covers what is
    /// left of it.
    #[test]
    fn bits_are_means_of_epochs() {
        let dir = tempfile::tempdir().expect("a folder");
        let line = |step: u64, epoch: u64, split: &str, key: &str, bits: f64| {
            let head = format!("\"step\":{step},\"epoch\":{epoch},\"split\":\"{split}\"");
            format!("{{{head},\"loss\":1.0,\"{key}\":{bits}}}\n")
        };
        let elbo = "bits_per_dim_elbo";
        let lines = [
            line(2, 0, "train", elbo, 8.0),
            line(3, 0, "train", elbo, 5.0),
            line(3, 0, "val", elbo, 6.0),
            line(4, 1, "train", elbo, 4.0),
            line(6, 1, "train", elbo, 1.0),
            line(6, 1, "val", elbo, 3.0),
            line(6, 1, "eval", "bits_per_dim", 2.5),
        ];
        let want = [
            Bits { epoch: 1.0, train: 7.0, val: 6.0, sampled: None },
            Bits { epoch: 2.0, train: 2.0, val: 3.0, sampled: Some(2.5) },
        ];
        // The order of the lines does not count, nor does a line that is there twice.
        let mut swapped = lines.clone();
        swapped.reverse();
        let twice = [&swapped[..], &lines[..]].concat();
        for lines in [&lines[..], &swapped, &twice] {
            std::fs::write(dir.path().join("metrics.jsonl"), lines.concat()).expect("a file");
            assert_eq!(bits_by_epoch(dir.path()).expect("records"), want);
        }
        std::fs::write(dir.path().join("metrics.jsonl"), lines.concat() + "{}\n").expect("a file");
        let error = bits_by_epoch(dir.path()).expect_err("no record").to_string();
        assert!(error.contains("metrics.jsonl`, line 8: not a metrics record"), "{error}");
    }

    #[test]
    fn measures_are_found() {
        let summary = json!({ "probe": { "accuracy": 0.5 }, "knn": [
            { "k": 20, "temperature": 0.07, "accuracy": 0.3 },
            { "k": 20, "temperature": 0.1, "accuracy": 0.2 },
            { "k": 200, "temperature": 0.1, "accuracy": 0.1 } ] });
        let measured = |value| RunSummary::of_json(value).expect("a summary").measured;
        let summary = measured(summary);
        assert_eq!(Measure::ALL.map(|m| m.of(&summary)), [Some(0.5), Some(0.3), Some(0.1)]);
        assert_eq!(Measure::Knn200.of(&measured(json!({ "knn": [] }))), None);
    }
}

//! Scales: named budgets. All cells of an experiment share one, so that they stay comparable with
//! each other.

use serde::{Deserialize, Serialize};

use super::Experiment;
use crate::model::Depth;
use crate::run::settings::DataKind;

/// How much is spent on an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum GridScale {
    /// Minutes on two cores: shows that everything works, not what the paper found.
    Smoke,
    /// Under an hour on two cores.
    Ci,
    /// A night (9 hours) on a laptop GPU that sustains 3 TFLOP/s.
    Laptop,
    /// The paper's networks, images and epochs.
    Paper,
}

/// What a run of an experiment may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Encoder, and decoder unless it is varied.
    pub depth: Depth,
    /// Channels of the first stage.
    pub width: usize,
    /// Training images; `None` is all.
    pub images: Option<usize>,
    /// Epochs of pretraining.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Learning rate at that batch size.
    pub learning_rate: f32,
    /// Epochs of warm-up at that batch size.
    pub warmup: usize,
    /// Epochs of the linear probe.
    pub probe_epochs: usize,
    /// Seeds, unless others are asked for.
    pub seeds: usize,
}

impl GridScale {
    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Ci => "ci",
            Self::Laptop => "laptop",
            Self::Paper => "paper",
        }
    }

    /// The budget of every run of an experiment on a data set.
    pub fn budget(self, experiment: Experiment, dataset: DataKind) -> Budget {
        let seeds = |table1: usize, sweep: usize, one: usize| match experiment {
            Experiment::Table1 => table1,
            Experiment::Fig2 | Experiment::Fig3 => sweep,
            Experiment::Fig4 | Experiment::Fig5 | Experiment::Duration => one,
        };
        // One long run in place of many: a multiple of 8, for the fractions at which it is
        // measured.
        let epochs = |short: usize, long: usize| {
            if experiment == Experiment::Duration { long } else { short }
        };
        let stl = dataset == DataKind::Stl10;
        match self {
            Self::Smoke => Budget {
                depth: Depth::Resnet18,
                width: 8,
                images: Some(2000),
                epochs: epochs(4, 8),
                // Small, so that even figure 4's largest has enough steps for BatchNorm's running
                // statistics.
                batch: 32,
                learning_rate: 1e-3,
                warmup: 1,
                probe_epochs: 4,
                seeds: seeds(2, 1, 1),
            },
            Self::Ci => Budget {
                depth: Depth::Resnet18,
                width: 16,
                images: Some(10_000),
                epochs: epochs(7, 32),
                batch: 128,
                learning_rate: 1e-3,
                warmup: 1,
                probe_epochs: 6,
                seeds: seeds(3, 2, 1),
            },
            Self::Laptop => Budget {
                depth: Depth::Resnet18,
                width: 32,
                images: None,
                epochs: epochs(60, 240),
                batch: 256,
                learning_rate: 5e-4,
                warmup: 4,
                probe_epochs: 30,
                seeds: seeds(3, 3, 1),
            },
            Self::Paper => Budget {
                depth: Depth::Resnet50,
                width: 64,
                images: None,
                epochs: 3200,
                batch: if stl { 512 } else { 256 },
                learning_rate: if stl { 5e-4 } else { 2.5e-4 },
                warmup: 10,
                probe_epochs: 90,
                seeds: seeds(3, 3, 3),
            },
        }
    }
}

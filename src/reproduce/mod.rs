//! The paper's experiments: each is a grid of runs, a folder, and a report.
//!
//! ```text
//! experiment x scale -> cells x seeds -> OUT/
//!     <cell>-s<seed>/                              ordinary run folders (`train::experiment`)
//!     grid.json                                    which grid this is
//!     report.html, report.md, results.csv, plots/  what came out
//! ```
//!
//! A run is done when its `summary.json` holds every measurement of its cell; a grid that is
//! started again skips what is done, resumes what is not, and writes the report anew from what is
//! on disk. A run that fails is reported and does not stop the others.

pub mod cells;
pub mod findings;
pub mod folder;
pub mod forecast;
pub mod paper;
pub mod report;
pub mod results;
pub mod run;
pub mod scale;
pub mod views;

use serde::{Deserialize, Serialize};

pub use cells::{Cell, Setup, cells};
pub use run::{GridRequest, run};
pub use scale::{Budget, GridScale};

/// A table or a figure of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Experiment {
    /// Methods: linear probe and kNN of each.
    Table1,
    /// Likelihood and accuracy over epochs, with a learned and with fixed widths of the likelihood.
    Fig2,
    /// Weight of the KL term.
    Fig3,
    /// Batch size, latent size, decoder, width of the likelihood.
    Fig4,
    /// Cosine similarity of views within and across images.
    Fig5,
    /// Accuracy at fixed fractions of one long run (section 4.1), of AAVAE and of AAAE, which has
    /// no noise.
    Duration,
}

impl Experiment {
    /// All of them, in the paper's order.
    pub const ALL: [Self; 6] =
        [Self::Table1, Self::Fig2, Self::Fig3, Self::Fig4, Self::Fig5, Self::Duration];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Table1 => "table1",
            Self::Fig2 => "fig2",
            Self::Fig3 => "fig3",
            Self::Fig4 => "fig4",
            Self::Fig5 => "fig5",
            Self::Duration => "duration",
        }
    }

    /// Name in the paper, and what it is about.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Table1 => "Table 1: methods",
            Self::Fig2 => "Figure 2: density and representation",
            Self::Fig3 => "Figure 3: weight of the KL term",
            Self::Fig4 => "Figure 4: hyperparameters",
            Self::Fig5 => "Figure 5: similarity of views",
            Self::Duration => "Section 4.1: duration of pretraining",
        }
    }

    /// What the paper says.
    pub const fn claim(self) -> &'static str {
        match self {
            Self::Table1 => {
                "AAVAE is far above VAE, AE and AAAE: augmentation alone hurts, noise alone gains \
                 little, both together win."
            }
            Self::Fig2 => {
                "The accuracy of the representation does not fall while the likelihood overfits, \
                 whatever its width."
            }
            Self::Fig3 => {
                "A KL term with a weight far below 1 changes nothing; from 1 on the representation \
                 deteriorates."
            }
            Self::Fig4 => {
                "The accuracy hardly depends on batch size, latent size, decoder or the width of \
                 the likelihood."
            }
            Self::Fig5 => {
                "All representations of the VAE are aligned; AAVAE's are aligned within an image \
                 and apart between images."
            }
            Self::Duration => "The longer the pretraining, the better the representation.",
        }
    }
}

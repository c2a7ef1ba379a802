//! The cells of an experiment: what each trains, in which folder, and how it is called.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Budget, Experiment, GridScale};
use crate::method::{Compare, Method};
use crate::model::Depth;
use crate::rng::{Philox, Stream};
use crate::run::settings::{DataKind, RunConfig};

/// What a grid is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// Table or figure of the paper.
    pub experiment: Experiment,
    /// Budget of every run.
    pub scale: GridScale,
    /// Images that all runs train on.
    pub dataset: DataKind,
    /// Folder of the data set's files, where it has any.
    pub data_dir: Option<PathBuf>,
    /// Seeds, from 0.
    pub seeds: usize,
    /// Changes to the scale's budget, for tests.
    pub overrides: Overrides,
}

/// Changes to a scale's budget. A grid with any is another grid than the one without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// Steps of every run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Training images to use at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// Epochs of the probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_epochs: Option<usize>,
    /// Samples an image of the likelihood at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_samples: Option<usize>,
}

/// Which weights a cell measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those that it trains.
    Trained,
    /// Those that it starts from.
    Initial,
}

/// What a cell changes of its experiment's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Varies {
    /// Nothing: the cell that the others are compared with.
    Base,
    /// Method, and what belongs to it.
    Method,
    /// Weight of the KL term.
    Beta,
    /// Batch size, and with it learning rate and warm-up.
    Batch,
    /// The number of latent dimensions.
    Latent,
    /// Depth of the decoder.
    Decoder,
    /// Width of the likelihood.
    LogScale,
}

/// A row of an experiment: one configuration, trained once for each seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Name of its folders, `<name>-s<seed>`, and for `--only`.
    pub name: String,
    /// Name in tables.
    pub label: String,
    /// Name on the axis of a plot.
    pub tick: String,
    /// What it changes.
    pub varies: Varies,
    /// Weights that are measured.
    pub weights: Weights,
    config: RunConfig,
}

impl Cell {
    fn new(
        name: impl Into<String>,
        label: impl Into<String>,
        tick: impl Into<String>,
        varies: Varies,
        config: RunConfig,
    ) -> Self {
        let (name, label, tick) = (name.into(), label.into(), tick.into());
        Self { name, label, tick, varies, weights: Weights::Trained, config }
    }

    /// The configuration of a run.
    pub fn config(&self, seed: u64) -> RunConfig {
        RunConfig { seed, ..self.config.clone() }
    }

    /// The run folder of a seed.
    pub fn folder(&self, seed: u64) -> String {
        format!("{}-s{seed}", self.name)
    }
}

/// A width of the likelihood as the paper's figures 2 b and 4 d draw it: uniform in [-5, 2).
/// `-5 + 7 u` with `u` the first uniform of [`Stream::Study`] at (0, 0, index), seed 0 whatever the
/// runs' seeds are.
fn drawn_log_scale(index: u32) -> f32 {
    -5.0 + 7.0 * Philox::new(0, Stream::Study).uniforms(0, 0, index)[0]
}

impl Setup {
    /// What every run of the grid may use.
    pub fn budget(&self) -> Budget {
        let budget = self.scale.budget(self.experiment, self.dataset);
        Budget {
            images: self.overrides.limit_train.or(budget.images),
            probe_epochs: self.overrides.probe_epochs.unwrap_or(budget.probe_epochs),
            seeds: self.seeds,
            ..budget
        }
    }

    /// The configuration that the cells vary: AAVAE. `available` is the number of training images
    /// of the data set.
    fn base(&self, available: usize) -> RunConfig {
        let b = self.budget();
        RunConfig {
            data_dir: self.data_dir.clone(),
            encoder: b.depth,
            decoder: b.depth,
            width: b.width,
            epochs: b.epochs,
            max_steps: self.overrides.max_steps,
            batch_size: b.batch,
            learning_rate: b.learning_rate,
            warmup_epochs: b.warmup,
            limit_train: b.images.filter(|limit| *limit < available),
            probe_epochs: b.probe_epochs,
            importance_samples: self.overrides.importance_samples,
            log_every: if matches!(self.scale, GridScale::Smoke | GridScale::Ci) { 20 } else { 50 },
            keep: 1,
            ..RunConfig::default().on(self.dataset)
        }
    }
}

/// The cells of an experiment, in the order of its report. `available` is the number of training
/// images of the data set.
pub fn cells(setup: &Setup, available: usize) -> Vec<Cell> {
    let base = setup.base(available);
    match setup.experiment {
        Experiment::Table1 => table1(&base),
        Experiment::Fig2 => fig2(&base),
        Experiment::Fig3 => fig3(&base),
        Experiment::Fig4 => fig4(&base),
        Experiment::Fig5 => [("vae", "VAE", Method::Vae), ("aavae", "AAVAE", Method::Aavae)]
            .map(|(name, label, method)| {
                Cell::new(name, label, label, Varies::Method, RunConfig { method, ..base.clone() })
            })
            .into(),
        Experiment::Duration => duration(&base),
    }
}

fn table1(base: &RunConfig) -> Vec<Cell> {
    let with = |method| RunConfig { method, ..base.clone() };
    let cell = |name: &str, label: &str, tick: &str, config| {
        Cell::new(name, label, tick, Varies::Method, config)
    };
    vec![
        cell("ae", "AE", "AE", with(Method::Ae)),
        cell("vae", "VAE", "VAE", with(Method::Vae)),
        cell(
            "vae-noise",
            "VAE without the KL term (β = 0)",
            "VAE, β = 0",
            RunConfig { kl_coeff: Some(0.0), ..with(Method::Vae) },
        ),
        cell("aaae", "AAAE, target: original", "AAAE", with(Method::Aaae)),
        cell(
            "aaae-view",
            "AAAE, target: view",
            "AAAE, view",
            RunConfig { target: Compare::View, ..with(Method::Aaae) },
        ),
        cell("aavae", "AAVAE", "AAVAE", with(Method::Aavae)),
        cell("simclr", "SimCLR", "SimCLR", with(Method::Simclr)),
        Cell {
            weights: Weights::Initial,
            ..cell("random", "untrained encoder", "untrained", with(Method::Aavae))
        },
    ]
}

/// Widths of the likelihood that figure 2 b draws.
const FIG2_DRAWS: u32 = 3;

fn fig2(base: &RunConfig) -> Vec<Cell> {
    // Every epoch where there are few, an eighth of them otherwise.
    let every = base.epochs.div_ceil(8);
    let milestones: Vec<usize> =
        (1..=base.epochs).filter(|epoch| epoch % every == 0 || *epoch == base.epochs).collect();
    let base = RunConfig { milestones, eval_every: every, ..base.clone() };
    let learned = RunConfig { learn_log_scale: true, ..base.clone() };
    let fixed = (0..FIG2_DRAWS).map(|index| {
        let log_scale = drawn_log_scale(index);
        let config = RunConfig { log_scale, ..base.clone() };
        Cell::new(
            format!("fixed-{index}"),
            format!("(b) log-scale fixed at {log_scale:.2}"),
            "",
            Varies::LogScale,
            config,
        )
    });
    [Cell::new("learned", "(a) learned log-scale", "", Varies::LogScale, learned)]
        .into_iter()
        .chain(fixed)
        .collect()
}

fn fig3(base: &RunConfig) -> Vec<Cell> {
    let cell = |(name, beta): (&str, f32)| {
        let config = RunConfig { kl_coeff: Some(beta), ..base.clone() };
        Cell::new(
            format!("beta-{name}"),
            format!("β = {beta}"),
            beta.to_string(),
            Varies::Beta,
            config,
        )
    };
    [("0", 0.0), ("0.001", 0.001), ("0.01", 0.01), ("0.1", 0.1), ("1", 1.0), ("10", 10.0)]
        .map(cell)
        .into()
}

/// AAVAE, and AAAE with the same target: their difference is what the noise buys at each length.
fn duration(base: &RunConfig) -> Vec<Cell> {
    let base = RunConfig {
        milestones: [8, 4, 2, 1].map(|part| base.epochs / part).into(),
        ..base.clone()
    };
    let aaae = RunConfig { method: Method::Aaae, ..base.clone() };
    vec![
        Cell::new("aavae", "AAVAE", "AAVAE", Varies::Base, base),
        Cell::new("aaae", "AAAE, target: original", "AAAE", Varies::Method, aaae),
    ]
}

/// Widths of the likelihood that figure 4 d draws.
const FIG4_DRAWS: u32 = 4;

fn fig4(base: &RunConfig) -> Vec<Cell> {
    let mut cells = vec![Cell::new("base", "base", "base", Varies::Base, base.clone())];
    // The paper's 128, 512 and 1024 beside 256: learning rate and warm-up follow linearly (Goyal et
    // al., 2017), in whole epochs.
    for (times, of) in [(1, 2), (2, 1), (4, 1)] {
        let batch_size = base.batch_size * times / of;
        let config = RunConfig {
            batch_size,
            learning_rate: base.learning_rate * times as f32 / of as f32,
            warmup_epochs: (base.warmup_epochs * times).div_ceil(of),
            // What measures the encoder stays the same.
            probe_batch_size: Some(base.batch_size),
            ..base.clone()
        };
        cells.push(Cell::new(
            format!("batch-{batch_size}"),
            format!("batch size {batch_size}"),
            "",
            Varies::Batch,
            config,
        ));
    }
    for latent_dim in [64, 256, 512] {
        let config = RunConfig { latent_dim, ..base.clone() };
        cells.push(Cell::new(
            format!("latent-{latent_dim}"),
            format!("latent size {latent_dim}"),
            "",
            Varies::Latent,
            config,
        ));
    }
    for (decoder, name) in [(Depth::Resnet18, 18), (Depth::Resnet34, 34), (Depth::Resnet50, 50)] {
        if decoder != base.decoder {
            let config = RunConfig { decoder, ..base.clone() };
            cells.push(Cell::new(
                format!("decoder-{name}"),
                format!("decoder ResNet-{name}"),
                "",
                Varies::Decoder,
                config,
            ));
        }
    }
    for index in 0..FIG4_DRAWS {
        let log_scale = drawn_log_scale(index);
        let config = RunConfig { log_scale, ..base.clone() };
        cells.push(Cell::new(
            format!("log-scale-{index}"),
            format!("log-scale {log_scale:.3}"),
            "",
            Varies::LogScale,
            config,
        ));
    }
    cells
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn setups() -> Vec<Setup> {
        let scales = [GridScale::Smoke, GridScale::Ci, GridScale::Laptop, GridScale::Paper];
        let all = Experiment::ALL
            .into_iter()
            .flat_map(|experiment| scales.map(|scale| (experiment, scale)));
        let setup = |(experiment, scale)| Setup {
            experiment,
            scale,
            dataset: DataKind::Cifar10,
            data_dir: Some("data".into()),
            seeds: 2,
            overrides: Overrides::default(),
        };
        all.map(setup).collect()
    }

    #[test]
    fn cells_differ_in_what_they_vary_and_nothing_else() {
        for setup in setups() {
            let cells = cells(&setup, 45_000);
            let folders: BTreeSet<_> =
                cells.iter().flat_map(|c| [0, 1].map(|seed| c.folder(seed))).collect();
            assert_eq!(folders.len(), cells.len() * 2, "{setup:?}");
            for (i, cell) in cells.iter().enumerate() {
                cell.config(0).validate().unwrap_or_else(|e| panic!("{}: {e}", cell.name));
                assert!(
                    cells[..i]
                        .iter()
                        .all(|other| other.weights != cell.weights
                            || other.config(0) != cell.config(0)),
                    "{}",
                    cell.name
                );
                let differ: Vec<String> = cell
                    .config(0)
                    .differences(&cells[0].config(0))
                    .into_iter()
                    .map(|d| d.key)
                    .collect();
                let may: &[&str] = match cell.varies {
                    Varies::Base => &[],
                    Varies::Method => &["method", "kl_coeff", "target"],
                    Varies::Beta => &["kl_coeff"],
                    Varies::Batch => {
                        &["batch_size", "learning_rate", "warmup_epochs", "probe_batch_size"]
                    }
                    Varies::Latent => &["latent_dim"],
                    Varies::Decoder => &["decoder"],
                    Varies::LogScale => &["log_scale", "learn_log_scale"],
                };
                assert!(
                    differ.iter().all(|key| may.contains(&key.as_str())),
                    "{}: {differ:?}",
                    cell.name
                );
                let seeds: Vec<String> = cell
                    .config(1)
                    .differences(&cell.config(0))
                    .into_iter()
                    .map(|d| d.key)
                    .collect();
                assert_eq!(seeds, ["seed"], "{}", cell.name);
            }
        }
    }

    #[test]
    fn every_run_of_an_experiment_sees_as_many_images() {
        for setup in setups() {
            let budget = setup.budget();
            for cell in cells(&setup, 45_000) {
                let c = cell.config(0);
                assert_eq!(
                    (c.epochs, c.limit_train, c.width, c.encoder, c.probe_epochs, c.max_steps),
                    (
                        budget.epochs,
                        budget.images,
                        budget.width,
                        budget.depth,
                        budget.probe_epochs,
                        None
                    ),
                    "{}",
                    cell.name
                );
                assert_eq!(c.probe_batch(), budget.batch, "{}", cell.name);
                assert_eq!(
                    c.milestones.last().copied().unwrap_or(c.epochs),
                    c.epochs,
                    "{}",
                    cell.name
                );
                assert!(
                    (c.learning_rate / budget.learning_rate
                        - c.batch_size as f32 / budget.batch as f32)
                        .abs()
                        < 1e-6,
                    "{}",
                    cell.name
                );
            }
        }
        // A set that is smaller than the budget is used whole.
        assert!(cells(&setups()[0], 500).iter().all(|cell| cell.config(0).limit_train.is_none()));
    }

    #[test]
    fn the_paper_scale_is_the_papers() {
        use crate::run::settings::Preset;
        let of = |experiment| {
            setups()
                .into_iter()
                .find(|s| s.experiment == experiment && s.scale == GridScale::Paper)
                .expect("a setup")
        };
        for (preset, available) in [(Preset::PaperCifar10, 45_000), (Preset::PaperStl10, 95_000)] {
            let preset = RunConfig::preset(preset);
            let setup = Setup { dataset: preset.dataset, ..of(Experiment::Table1) };
            let aavae = cells(&setup, available)
                .into_iter()
                .find(|c| c.name == "aavae")
                .expect("a cell")
                .config(0);
            let differ: Vec<String> =
                aavae.differences(&preset).into_iter().map(|d| d.key).collect();
            assert_eq!(differ, ["data_dir", "keep"], "{:?}", preset.dataset);
        }
        let duration = &cells(&of(Experiment::Duration), 45_000)[0];
        assert_eq!(duration.config(0).milestones, [400, 800, 1600, 3200]);
        let batches: Vec<_> = cells(&of(Experiment::Fig4), 45_000)
            .into_iter()
            .filter(|c| c.varies == Varies::Batch)
            .map(|c| (c.config(0).batch_size, c.config(0).learning_rate, c.config(0).warmup_epochs))
            .collect();
        assert_eq!(batches, [(128, 1.25e-4, 5), (512, 5e-4, 20), (1024, 1e-3, 40)]);
    }

    #[test]
    fn drawn_widths_are_uniform() {
        let draws: Vec<f32> = (0..4000).map(drawn_log_scale).collect();
        assert!(draws.iter().all(|x| (-5.0..2.0).contains(x)));
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        assert!((mean + 1.5).abs() < 0.1, "{mean}");
    }
}

//! A run's configuration: presets, the file, the flags, in that order; validated before anything is
//! opened.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::method::{Compare, Method, ModelConfig, Objective, Parameter, Protocol};
use crate::model::{Depth, NetConfig, Stem};
use crate::optim::{Optimizer, Update};

/// Named budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The embedded data set, minutes on two cores.
    Quick,
    /// CIFAR-10 at a scale for CI runners: ResNet-18 of width 16 on 10,000 images.
    Ci,
    /// The paper's CIFAR-10 run.
    PaperCifar10,
    /// The paper's STL-10 run.
    PaperStl10,
}

/// Data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Procedural, embedded.
    Shapes,
    /// Official binary files.
    Cifar10,
    /// `<split>/<class>/<image>`.
    Folder,
    /// Official binary files: pretraining on the images without labels, evaluation on those with.
    Stl10,
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays (the paper).
    Constant,
    /// Half a cosine down to 0 at the end of the run.
    Cosine,
    /// A straight line down to 0 at the end of the run.
    Linear,
}

/// SimCLR's temperature where none is given: that of its authors' command for CIFAR-10.
const TEMPERATURE: f32 = 0.5;

impl DataKind {
    /// Name on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Everything that determines a run, as stored in `config.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Data set.
    pub dataset: DataKind,
    /// Its folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Method.
    pub method: Method,
    /// Encoder.
    pub encoder: Depth,
    /// Decoder.
    pub decoder: Depth,
    /// Stem of the encoder.
    pub stem: Stem,
    /// Channels of the first stage.
    pub width: usize,
    /// Latent dimensions.
    pub latent_dim: usize,
    /// Side of the images.
    pub image_size: usize,
    /// Epochs.
    pub epochs: usize,
    /// Steps, if fewer than the epochs give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Images per batch.
    pub batch_size: usize,
    /// Batches per step; their gradients are averaged.
    pub accumulate: usize,
    /// Optimiser.
    pub optimizer: Optimizer,
    /// Its weight decay.
    pub weight_decay: f32,
    /// Learning rate after the warm-up.
    pub learning_rate: f32,
    /// Epochs of linear warm-up from 0.
    pub warmup_epochs: usize,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Weight of the KL term; the method's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_coeff: Option<f32>,
    /// Logarithm of the likelihood's variance.
    pub log_scale: f32,
    /// Train it.
    pub learn_log_scale: bool,
    /// Target of the reconstruction.
    pub target: Compare,
    /// Temperature of SimCLR's loss; 0.5 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Use only so many training images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// Permute the images; otherwise file order and no held-out split.
    pub shuffle: bool,
    /// Start from these weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Seed of everything.
    pub seed: u64,
    /// Steps between log records.
    pub log_every: u64,
    /// Epochs between evaluations: importance-sampled likelihood and kNN of the held-out images. 0:
    /// the likelihood alone, at the end.
    pub eval_every: usize,
    /// Samples an image of the importance-sampled likelihood, 0 for none;
    /// [`Self::importance_samples`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_samples: Option<usize>,
    /// Steps between comparisons of the latents of views and originals; 0 for none.
    pub view_metrics_every: u64,
    /// Train a linear classifier along on the features, which it does not move.
    pub online_probe: bool,
    /// Epochs of the linear probe after pretraining.
    pub probe_epochs: usize,
    /// Images per batch of the probe; [`Self::batch_size`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_batch_size: Option<usize>,
    /// Checkpoints kept besides the last.
    pub keep: usize,
    /// Least minutes between checkpoints, which are saved at the end of an epoch; 0 saves after
    /// every epoch. The end of the run, an interruption and milestones are always saved.
    pub save_minutes: f64,
    /// Epochs after which the weights are kept for good, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<usize>,
}

/// A field in which two configurations differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Key in `config.toml`.
    pub key: String,
    /// Value in the one, "unset" if it has none.
    pub here: String,
    /// Value in the other.
    pub there: String,
}

impl Difference {
    /// How the field is set on the command line, or in the file where no flag sets it.
    pub fn flag(&self) -> String {
        flag(&self.key)
    }
}

/// Why a resumed run may not change a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// It says what is computed.
    Always,
    /// The learning rate of every step follows from the length of the run.
    BySchedule,
}

/// How a key of `config.toml` is set on the command line, or the key where no flag sets it.
pub fn flag(key: &str) -> String {
    match key {
        "shuffle" => "--no-shuffle".into(),
        "keep" => key.into(),
        key => format!("--{}", key.replace('_', "-")),
    }
}

/// Refuses a sum over batches that is not the gradient of the large batch: a contrastive loss
/// compares the images of a batch.
///
/// # Errors
/// Why, with the numbers.
pub fn can_accumulate(method: Method, batch: usize, batches: usize) -> Result<(), String> {
    if batches > 1 && !method.definition().per_image {
        let all = batch.saturating_mul(batches);
        return Err(format!(
            "--accumulate {batches} with --method {} would find the negatives of a view among {batch} images, not among the \
             {all} of the step: raise --batch-size instead",
            method.name()
        ));
    }
    Ok(())
}

impl Default for RunConfig {
    /// The paper's CIFAR-10 optimisation (section 4) with ResNet-18.
    fn default() -> Self {
        Self {
            dataset: DataKind::Shapes,
            data_dir: None,
            method: Method::Aavae,
            encoder: Depth::Resnet18,
            decoder: Depth::Resnet18,
            stem: Stem::Cifar,
            width: 64,
            latent_dim: 128,
            image_size: 32,
            epochs: 400,
            max_steps: None,
            batch_size: 256,
            accumulate: 1,
            optimizer: Optimizer::Adam,
            weight_decay: 0.0,
            learning_rate: 2.5e-4,
            warmup_epochs: 10,
            schedule: Schedule::Constant,
            kl_coeff: None,
            log_scale: 0.0,
            learn_log_scale: false,
            target: Compare::Original,
            temperature: None,
            limit_train: None,
            shuffle: true,
            init_from: None,
            seed: 0,
            log_every: 50,
            eval_every: 0,
            importance_samples: None,
            view_metrics_every: 0,
            online_probe: false,
            probe_epochs: 90,
            probe_batch_size: None,
            keep: 3,
            save_minutes: 1.0,
            milestones: Vec::new(),
        }
    }
}

impl RunConfig {
    /// The budget of a preset.
    pub fn preset(preset: Preset) -> Self {
        let base = Self::default();
        match preset {
            Preset::Quick => Self {
                width: 8,
                epochs: 20,
                batch_size: 128,
                learning_rate: 1e-3,
                warmup_epochs: 1,
                log_every: 20,
                probe_epochs: 10,
                ..base
            },
            Preset::Ci => Self {
                dataset: DataKind::Cifar10,
                width: 16,
                epochs: 25,
                batch_size: 128,
                learning_rate: 1e-3,
                warmup_epochs: 1,
                limit_train: Some(10_000),
                log_every: 20,
                probe_epochs: 30,
                ..base
            },
            Preset::PaperCifar10 => Self {
                dataset: DataKind::Cifar10,
                encoder: Depth::Resnet50,
                decoder: Depth::Resnet50,
                epochs: 3200,
                ..base
            },
            Preset::PaperStl10 => Self {
                encoder: Depth::Resnet50,
                decoder: Depth::Resnet50,
                epochs: 3200,
                batch_size: 512,
                learning_rate: 5e-4,
                ..base
            }
            .on(DataKind::Stl10),
        }
    }

    /// The same on another data set. STL-10 comes and goes with its size and the stem made for it.
    #[must_use]
    pub fn on(mut self, dataset: DataKind) -> Self {
        let stl = |dataset| dataset == DataKind::Stl10;
        if stl(dataset) != stl(self.dataset) {
            (self.stem, self.image_size) =
                if stl(dataset) { (Stem::Stl, 96) } else { (Stem::Cifar, 32) };
        }
        Self { dataset, ..self }
    }

    /// Networks and objective; the data's statistics are given, its classes are not.
    pub fn model(&self, mean: [f32; 3], std: [f32; 3]) -> ModelConfig {
        ModelConfig {
            net: self.net(),
            objective: self.objective(),
            mean,
            std,
            batch: self.batch_size,
            online_probe: None,
        }
    }

    /// Samples an image of the importance-sampled likelihood: 16 where latents are sampled, as in
    /// the authors' code.
    pub fn importance_samples(&self) -> usize {
        if self.method.samples() { self.importance_samples.unwrap_or(16) } else { 0 }
    }

    /// How its data set is evaluated.
    pub fn protocol(&self) -> Protocol {
        if self.dataset == DataKind::Stl10 { Protocol::ResizedCrop } else { Protocol::PadCrop }
    }

    /// The optimiser.
    pub fn update(&self) -> Update {
        Update { optimizer: self.optimizer, weight_decay: self.weight_decay, ..Update::default() }
    }

    /// Images per batch of the probe; its learning rate is proportional to them.
    pub fn probe_batch(&self) -> usize {
        self.probe_batch_size.unwrap_or(self.batch_size)
    }

    /// Least time between two checkpoints.
    pub fn save_interval(&self) -> Duration {
        Duration::try_from_secs_f64(self.save_minutes * 60.0).unwrap_or(Duration::MAX)
    }

    /// Images that an update is made from.
    pub fn images_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }

    /// Steps of the whole run.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        (self.epochs as u64).saturating_mul(steps_per_epoch).min(self.max_steps.unwrap_or(u64::MAX))
    }

    /// The networks.
    pub fn net(&self) -> NetConfig {
        NetConfig {
            encoder: self.encoder,
            decoder: self.decoder,
            width: self.width,
            latent: self.latent_dim,
            stem: self.stem,
            image: self.image_size,
        }
    }

    /// The objective.
    pub fn objective(&self) -> Objective {
        Objective {
            method: self.method,
            kl_coeff: self.kl_coeff.unwrap_or(self.method.default_kl_coeff()),
            log_scale: self.log_scale,
            learn_log_scale: self.learn_log_scale,
            target: self.target,
            temperature: self.temperature.unwrap_or(TEMPERATURE),
        }
    }

    /// What a resumed run may change: how long it takes, where its images lie and how it reports,
    /// not what it computes.
    pub const MAY_CHANGE: [&str; 11] = [
        "epochs",
        "max_steps",
        "data_dir",
        "probe_epochs",
        "probe_batch_size",
        "log_every",
        "eval_every",
        "importance_samples",
        "view_metrics_every",
        "keep",
        "save_minutes",
    ];

    /// Of these, what says how many steps a run has. Under a falling learning rate every step
    /// depends on it.
    const LENGTHS: [&str; 2] = ["epochs", "max_steps"];

    /// The first of these changes to a run that this configuration may not make when it resumes the
    /// run, and why not.
    pub fn refuses<'a>(&self, changes: &'a [Difference]) -> Option<(&'a Difference, Fixed)> {
        let fixed = changes
            .iter()
            .find(|d| !Self::MAY_CHANGE.contains(&d.key.as_str()))
            .map(|d| (d, Fixed::Always));
        let lengths = || {
            changes.iter().find(|d| {
                self.schedule != Schedule::Constant && Self::LENGTHS.contains(&d.key.as_str())
            })
        };
        fixed.or_else(|| lengths().map(|d| (d, Fixed::BySchedule)))
    }

    /// Fields that differ: the flag that sets it (or the key, where only the file does), its value
    /// here, its value in `other`.
    ///
    /// # Panics
    /// If a configuration is no table: it always is one.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        // By way of text: f32 0.1 stays 0.1, and a seed beyond i64 stays what it is.
        let table = |c: &Self| -> serde_json::Map<String, serde_json::Value> {
            serde_json::to_string(c)
                .and_then(|text| serde_json::from_str(&text))
                .expect("a configuration is a table")
        };
        let (here, there) = (table(self), table(other));
        let mut keys: Vec<_> = here.keys().chain(there.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let text = |value: Option<&serde_json::Value>| {
            value.map_or_else(|| "unset".to_owned(), ToString::to_string)
        };
        let differ = keys.into_iter().filter(|key| here.get(*key) != there.get(*key));
        differ
            .map(|key| Difference {
                key: key.clone(),
                here: text(here.get(key)),
                there: text(there.get(key)),
            })
            .collect()
    }

    /// Checks what can be checked before data is read.
    ///
    /// # Errors
    /// What is wrong, with the numbers.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("--batch-size", self.batch_size),
            ("--accumulate", self.accumulate),
            ("--epochs", self.epochs),
            ("--log-every", usize::try_from(self.log_every).unwrap_or(usize::MAX)),
            ("--limit-train", self.limit_train.unwrap_or(1)),
            ("--probe-epochs", self.probe_epochs),
            ("--max-steps", self.max_steps.map_or(1, |s| usize::try_from(s).unwrap_or(usize::MAX))),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(format!("{name} is 0; it must be positive"));
            }
        }
        self.validate_network()?;
        for (flag, batch) in
            [("--batch-size", self.batch_size), ("--probe-batch-size", self.probe_batch())]
        {
            if batch < 2 {
                return Err(format!(
                    "{flag} {batch} leaves BatchNorm nothing to average; use 2 or more"
                ));
            }
        }
        for (flag, path) in [("--data-dir", &self.data_dir), ("--init-from", &self.init_from)] {
            if let Some(path) = path.as_ref().filter(|path| path.to_str().is_none()) {
                let path = crate::text::name(path);
                return Err(format!(
                    "{flag} `{path}` is not UTF-8, as all of config.toml must be; a link to it may \
                     be"
                ));
            }
        }
        if self.milestones.first() == Some(&0) || !self.milestones.is_sorted_by(|a, b| a < b) {
            return Err(format!(
                "--milestones {:?} are not epochs from 1 in ascending order",
                self.milestones
            ));
        }
        if let Some(late) = self.milestones.iter().find(|epoch| **epoch > self.epochs) {
            return Err(format!("--milestones {late} is after the last of {} epochs", self.epochs));
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err(format!("--learning-rate {} is not a positive number", self.learning_rate));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err(format!(
                "--weight-decay {} is not a number of at least 0",
                self.weight_decay
            ));
        }
        if !(self.save_minutes.is_finite() && self.save_minutes >= 0.0) {
            return Err(format!(
                "--save-minutes {} is not a number of at least 0",
                self.save_minutes
            ));
        }
        if !self.log_scale.is_finite()
            || self.kl_coeff.is_some_and(|k| !(k.is_finite() && k >= 0.0))
        {
            return Err("--log-scale must be finite and --kl-coeff finite and not negative".into());
        }
        self.validate_method()?;
        if self.eval_every > 0 && !self.shuffle {
            return Err(
                "--eval-every needs held-out images, of which --no-shuffle leaves none".into()
            );
        }
        if self.dataset != DataKind::Shapes && self.data_dir.is_none() {
            return Err(format!("--dataset {} needs --data-dir", self.dataset.name()));
        }
        Ok(())
    }

    /// Refuses settings that mean nothing for the method, or something else than they say.
    fn validate_method(&self) -> Result<(), String> {
        let (method, name) = (self.method, self.method.name());
        let parameters = [
            ("--kl-coeff", self.kl_coeff.is_some(), Parameter::KlCoeff),
            ("--log-scale", self.log_scale != 0.0, Parameter::LogScale),
            ("--learn-log-scale", self.learn_log_scale, Parameter::LogScale),
            ("--target view", self.target == Compare::View, Parameter::Target),
            ("--temperature", self.temperature.is_some(), Parameter::Temperature),
        ];
        let unread = |(_, set, parameter): &&(_, bool, _)| *set && !method.reads(*parameter);
        if let Some((flag, ..)) = parameters.iter().find(unread) {
            let loss = self.objective().loss();
            return Err(format!(
                "{flag} means nothing for --method {name}, which minimises {loss}"
            ));
        }
        let samples = self.importance_samples.unwrap_or(0);
        let properties = [
            ("--importance-samples", samples > 0, method.samples(), "has no likelihood"),
            (
                "--view-metrics-every",
                self.view_metrics_every > 0,
                method.views() == 1,
                "encodes no original",
            ),
            (
                "--decoder",
                self.decoder != self.encoder,
                method.reconstructs(),
                "reconstructs nothing",
            ),
        ];
        if let Some((flag, .., why)) = properties.iter().find(|(_, set, has, _)| *set && !has) {
            return Err(format!("{flag} means nothing for --method {name}, which {why}"));
        }
        if let Some(temperature) = self.temperature
            && !(0.001..=100.0).contains(&temperature)
        {
            return Err(format!("--temperature {temperature} is not between 0.001 and 100"));
        }
        can_accumulate(method, self.batch_size, self.accumulate)
    }

    /// The part of [`RunConfig::validate`] that a network and its plan depend on.
    ///
    /// # Errors
    /// What is wrong, by the name of its flag.
    pub fn validate_network(&self) -> Result<(), String> {
        // Far beyond any use, and low enough that no product of extents overflows.
        let bounded = [
            ("--batch-size", self.batch_size, 1 << 20),
            ("--accumulate", self.accumulate, 1 << 20),
            ("--probe-batch-size", self.probe_batch(), 1 << 20),
            ("--width", self.width, 1 << 12),
            ("--latent-dim", self.latent_dim, 1 << 16),
            ("--image-size", self.image_size, 1 << 12),
            ("--importance-samples", self.importance_samples.unwrap_or(1).max(1), 1 << 16),
        ];
        for (name, value, most) in bounded {
            if value == 0 {
                return Err(format!("{name} is 0; it must be positive"));
            }
            if value > most {
                return Err(format!(
                    "{name} {value} is more than {most}, the largest that can be planned"
                ));
            }
        }
        self.net().validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stl10_comes_and_goes_with_its_size_and_stem() {
        let small = RunConfig {
            dataset: DataKind::Folder,
            stem: Stem::Imagenet,
            image_size: 64,
            ..RunConfig::default()
        };
        assert_eq!(
            small.clone().on(DataKind::Cifar10),
            RunConfig { dataset: DataKind::Cifar10, ..small.clone() }
        );
        let stl = small.on(DataKind::Stl10);
        assert_eq!(
            (stl.dataset, stl.stem, stl.image_size, stl.protocol()),
            (DataKind::Stl10, Stem::Stl, 96, Protocol::ResizedCrop)
        );
        let own = RunConfig { stem: Stem::Imagenet, ..stl };
        assert_eq!(own.clone().on(DataKind::Stl10), own);
        let back = own.on(DataKind::Shapes);
        assert_eq!(
            (back.stem, back.image_size, back.protocol()),
            (Stem::Cifar, 32, Protocol::PadCrop)
        );
    }

    /// Every setting that may change is a setting.
    #[test]
    fn what_may_change_exists() {
        let toml = toml::to_string(&RunConfig {
            data_dir: Some("x".into()),
            max_steps: Some(1),
            importance_samples: Some(1),
            probe_batch_size: Some(1),
            ..RunConfig::default()
        });
        let toml = toml.expect("a table");
        for key in RunConfig::MAY_CHANGE {
            assert!(
                toml.lines().any(|line| line.starts_with(&format!("{key} = "))),
                "{key}: {toml}"
            );
        }
    }

    /// The paper, section 4.
    #[test]
    fn the_paper_s_stl10_run() {
        let c = RunConfig::preset(Preset::PaperStl10);
        assert_eq!(
            (c.dataset, c.stem, c.image_size, c.encoder, c.decoder),
            (DataKind::Stl10, Stem::Stl, 96, Depth::Resnet50, Depth::Resnet50)
        );
        assert_eq!(
            (c.width, c.latent_dim, c.batch_size, c.learning_rate, c.warmup_epochs, c.epochs),
            (64, 128, 512, 5e-4, 10, 3200)
        );
    }
}

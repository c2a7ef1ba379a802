//! The settings of a run: one list, from which everything that is said of a setting follows.
//!
//! An entry of [`settings!`](self) is the setting's meaning (its help), name, type, default, flag,
//! what a resumed run may do with it, and its range. From the list follow [`RunConfig`] with its
//! default, its TOML and the ranges that [`RunConfig::validate`] checks, the flags of the command
//! line (`cli::flags`), [`SETTINGS`] as data, what a resumed run may change, and the README's
//! table. What several settings must satisfy together stands in `rules.rs`; the presets stand below
//! the list.
//!
//! The order of the entries is that of `config.toml`, whose text checkpoints carry.

mod derived;
mod difference;
mod range;
mod rules;

use std::path::PathBuf;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::method::{Compare, Method};
use crate::model::{Depth, Stem};
use crate::optim::Optimizer;
use crate::tensor::Half;
pub use difference::Difference;
use range::Bounds::{AtLeastZero, Batch, Between, Count, Epochs, Extent, Finite, Positive, Text};
pub use range::{Bounds, MOST_IMAGES, Ranged};

/// How a setting is given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// By a flag of the setting's name, followed by what usage texts call by this name.
    Value(&'static str),
    /// By a flag of the setting's name alone, which turns it on.
    On,
    /// By `--no-` and the setting's name, which turns it off; this is that flag's help.
    Off(&'static str),
    /// Not at all: it is set in a file.
    InFile,
}
use Flag::{InFile, Off, On, Value};

/// What a resumed run may do with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Keep it: it says what is computed.
    Fixed,
    /// Change it where the learning rate stays the same after the warm-up: it says how many steps
    /// there are, and under a falling learning rate every step depends on that.
    Length,
    /// Change it: it says where files lie, how often something is written, or what is measured
    /// without changing a bit of the training.
    Free,
}
use Resume::{Fixed, Free, Length};

/// What the list says of a setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Heading under which it stands in help texts.
    pub section: &'static str,
    /// Key in `config.toml`, and name of its field in [`RunConfig`].
    pub key: &'static str,
    /// What it means, in lines as they stand in the source.
    help: &'static [&'static str],
    /// How it is given on the command line.
    pub flag: Flag,
    /// What a resumed run may do with it.
    pub resume: Resume,
    /// Which values make sense; `None` if all that its type has do.
    pub range: Option<Bounds>,
    /// What is taken where it is not given, in words; `None` if [`RunConfig::default`] says it all.
    pub unset: Option<&'static str>,
}

impl Setting {
    /// What it means, as one sentence without a full stop.
    pub fn help(&self) -> String {
        self.help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// How it is set on the command line: its flag, or the key where only a file sets it.
    pub fn flag_name(&self) -> String {
        let dashed = self.key.replace('_', "-");
        match self.flag {
            Value(_) | On => format!("--{dashed}"),
            Off(_) => format!("--no-{dashed}"),
            InFile => self.key.into(),
        }
    }

    /// What is taken where it is not given and `base` is what the flags start from, as it would be
    /// written; `None` where nothing is.
    pub fn default(&self, base: &RunConfig) -> Option<String> {
        if let (Some(words), true) = (self.unset, base.is_default(self.key)) {
            return Some(words.into());
        }
        let value = base.table().remove(self.key)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }
}

/// The setting of a key.
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Whether a value is written: an option that is unset and a list that is empty are not.
macro_rules! is_written {
    ($value:expr, Option) => {
        $value.is_some()
    };
    ($value:expr, Vec) => {
        !$value.is_empty()
    };
    ($value:expr, $type:ident) => {
        true
    };
}

/// Expands the list of settings to the configuration of a run and the list as data.
macro_rules! config {
    ($($section:literal { $(
        $(#[doc = $help:literal])+
        $key:ident: $type:ident $(<$of:ident>)? = $default:expr $(=> $unset:literal)?,
        $flag:expr, $resume:expr $(, $range:expr)?;
    )+ })+) => {
        /// Everything that determines a run, as stored in `config.toml`, where a key that is
        /// missing has its default and one that is no setting is an error.
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RunConfig { $($( $(#[doc = $help])+ pub $key: $type $(<$of>)?, )+)+ }

        /// Every setting, in the order of `config.toml`.
        pub const SETTINGS: &[Setting] = &[$($( Setting {
            section: $section,
            key: stringify!($key),
            help: &[$($help),+],
            flag: $flag,
            resume: $resume,
            range: [$(Some($range),)? None][0],
            unset: [$(Some($unset),)? None][0],
        } ),+),+];

        impl Default for RunConfig {
            /// The paper's CIFAR-10 optimisation (section 4), with ResNet-18 on embedded images.
            fn default() -> Self {
                Self { $($( $key: $default, )+)+ }
            }
        }

        impl Serialize for RunConfig {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                $($( if is_written!(self.$key, $type) {
                    map.serialize_entry(stringify!($key), &self.$key)?;
                } )+)+
                map.end()
            }
        }

        impl RunConfig {
            /// Whether a setting has the value that it has where nothing is given.
            fn is_default(&self, key: &str) -> bool {
                let default = Self::default();
                match key {
                    $($( stringify!($key) => self.$key == default.$key, )+)+
                    _ => false,
                }
            }

            /// Checks every setting that has a range of its own against what `wanted` makes of it.
            fn check_ranges(&self, wanted: fn(Bounds) -> Option<Bounds>) -> Result<(), String> {
                $($($( if let Some(range) = wanted($range) {
                    self.$key.check(range).map_err(|says| complaint(stringify!($key), says))?;
                } )?)+)+
                Ok(())
            }
        }
    };
}

/// The list of settings, handed to the macro `with`.
macro_rules! settings {
    ($with:ident) => { $with! {
        "Data set" {
            /// Images to train on
            dataset: DataKind = DataKind::Shapes, Value("DATASET"), Fixed;
            /// Folder of the data set's files
            data_dir: Option<PathBuf> = None, Value("DIR"), Free, Text;
        }
        "Method and networks" {
            /// Method of the paper, or SimCLR
            method: Method = Method::Aavae, Value("METHOD"), Fixed;
            /// Depth of the encoder
            encoder: Depth = Depth::Resnet18, Value("ENCODER"), Fixed;
            /// Depth of the decoder
            decoder: Depth = Depth::Resnet18 => "as deep as the encoder", Value("DECODER"), Fixed;
            /// First layers of the encoder
            stem: Stem = Stem::Cifar => "stl for --dataset stl10, otherwise cifar",
            Value("STEM"), Fixed;
            /// Channels of the first stage, a multiple of 8; 64 is the paper's network
            width: usize = 64, Value("WIDTH"), Fixed, Extent { least: 1, most: 1 << 12 };
            /// Latent dimensions, a multiple of 4; of SimCLR those of the projection
            latent_dim: usize = 128, Value("LATENT_DIM"), Fixed, Extent { least: 1, most: 1 << 16 };
            /// Side of the images in pixels, to which --dataset folder resizes them
            image_size: usize = 32 => "96 for --dataset stl10, otherwise 32",
            Value("IMAGE_SIZE"), Fixed, Extent { least: 1, most: 1 << 12 };
        }
        "Training" {
            /// Passes over the training images
            epochs: usize = 400, Value("EPOCHS"), Length, Count;
            /// Stop after so many steps, if the epochs have more
            max_steps: Option<u64> = None, Value("MAX_STEPS"), Length, Count;
            /// Images per batch
            batch_size: usize = 256, Value("BATCH_SIZE"), Fixed, Batch;
            /// Batches per step: their gradients are averaged, in the memory of one (BatchNorm
            /// normalises and counts each by itself)
            accumulate: usize = 1, Value("N"), Fixed, Extent { least: 1, most: MOST_IMAGES };
            /// Optimiser; the linear classifier of --online-probe has the same
            optimizer: Optimizer = Optimizer::Adam, Value("OPTIMIZER"), Fixed;
            /// Weight decay of all but BatchNorm's parameters, biases and the log-scale; L2, with
            /// lamb decoupled
            weight_decay: f32 = 0.0, Value("W"), Fixed, AtLeastZero;
            /// Learning rate after the warm-up
            learning_rate: f32 = 2.5e-4, Value("LEARNING_RATE"), Fixed, Positive;
            /// Epochs in which the learning rate rises from 0 in a straight line
            warmup_epochs: usize = 10, Value("WARMUP_EPOCHS"), Fixed;
            /// What the learning rate does after the warm-up; under cosine and linear it falls to 0
            /// at the end of the run
            schedule: Schedule = Schedule::Constant, Value("SCHEDULE"), Fixed;
            /// What passes between layers is stored as this; with f16 the loss is scaled, bf16 is
            /// for cpu and cuda. Weights and sums are f32 always; auto is f16 on a device with
            /// matrix units for it
            precision: PrecisionKind = PrecisionKind::F32, Value("PRECISION"), Fixed;
        }
        "Objective" {
            /// Weight of the KL term
            kl_coeff: Option<f32> = None => "1 for vae, 0 for aavae",
            Value("B"), Fixed, AtLeastZero;
            /// Logarithm of the likelihood's variance
            log_scale: f32 = 0.0, Value("LOG_SCALE"), Fixed, Finite;
            /// Train the log-scale, from --log-scale on
            learn_log_scale: bool = false, On, Fixed;
            /// What a view's reconstruction is compared with
            target: Compare = Compare::Original, Value("TARGET"), Fixed;
            /// Temperature of SimCLR's loss
            temperature: Option<f32> = None => "0.5", Value("T"), Fixed, Between(0.001, 100.0);
        }
        "Data set" {
            /// Use only the first N training images
            limit_train: Option<usize> = None => "all", Value("N"), Fixed, Count;
            /// Take images in a new random order in every epoch, and hold a part out
            shuffle: bool = true, Off("Take images in file order, with no held-out split"), Fixed;
        }
        "Training" {
            /// Start from these weights (safetensors; PyTorch's names and shapes)
            init_from: Option<PathBuf> = None, Value("FILE"), Fixed, Text;
            /// Seed of everything
            seed: u64 = 0, Value("SEED"), Fixed;
        }
        "Measuring" {
            /// Steps between log records
            log_every: u64 = 50, Value("N"), Free, Count;
            /// Epochs between evaluations on the held-out images: importance-sampled likelihood and
            /// kNN; 0 measures the likelihood alone, at the end
            eval_every: usize = 0, Value("N"), Free;
            /// Samples an image of the importance-sampled likelihood; 0 leaves it out
            importance_samples: Option<usize> = None => "16 for vae and aavae",
            Value("K"), Free, Extent { least: 0, most: 1 << 16 };
            /// Steps between comparisons of the latents of views and originals; 0 makes none
            view_metrics_every: u64 = 0, Value("N"), Free;
            /// Train a linear classifier along on the features, which it does not move
            online_probe: bool = false, On, Fixed;
            /// Epochs of the linear probe at the end
            probe_epochs: usize = 90, Value("N"), Free, Count;
            /// Images per batch of the probe, to which its learning rate is proportional
            probe_batch_size: Option<usize> = None => "those of --batch-size",
            Value("N"), Free, Batch;
        }
        "Saving" {
            /// Checkpoints that are kept besides the last
            keep: usize = 3, InFile, Free;
            /// Least minutes between checkpoints, which are saved at the end of an epoch; 0 saves
            /// after every one. The end of the run, an interruption and milestones are always saved
            save_minutes: f64 = 1.0, Value("MINUTES"), Free, AtLeastZero;
            /// Epochs after which the weights are kept for good, in ascending order
            milestones: Vec<usize> = Vec::new(), Value("E,E,…"), Fixed, Epochs;
        }
    } };
}
#[cfg(feature = "cli")]
pub(crate) use settings;

settings!(config);

/// Names a setting in front of what is wrong with its value.
fn complaint(key: &str, says: String) -> String {
    let name = setting(key).map_or_else(|| key.into(), Setting::flag_name);
    format!("{name} {says}")
}

/// Data sets that there are readers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Drawn by a program; needs no files.
    Shapes,
    /// Official binary files.
    Cifar10,
    /// Image files in folders: `<split>/<class>/<image>`.
    Folder,
    /// Official binary files: pretraining on the images without labels, evaluation on those with.
    Stl10,
}

impl DataKind {
    /// Name on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays (the paper).
    Constant,
    /// Half a cosine down to 0 at the end of the run.
    Cosine,
    /// A straight line down to 0 at the end of the run.
    Linear,
}

/// How what passes between layers is stored, maps and their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum PrecisionKind {
    /// As it is computed.
    F32,
    /// Mixed precision: in half the bytes, for gradients of a scaled loss.
    F16,
    /// Mixed precision with the range of f32, so that nothing is scaled, and fewer digits.
    Bf16,
    /// F16 on a device with matrix units for it, else f32. A run is recorded with what it was.
    Auto,
}

impl PrecisionKind {
    /// The 16-bit float of mixed precision.
    pub const fn half(self) -> Option<Half> {
        match self {
            Self::F32 | Self::Auto => None,
            Self::F16 => Some(Half::F16),
            Self::Bf16 => Some(Half::Bf16),
        }
    }
}

/// Expands the table of presets: what each changes of the default on its data set.
macro_rules! presets {
    ($(
        $(#[doc = $help:literal])+
        $name:ident on $dataset:ident { $($key:ident: $value:expr),+ }
    )+) => {
        /// Named budgets that flags start from.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
        #[serde(rename_all = "kebab-case")]
        pub enum Preset { $( $(#[doc = $help])+ $name ),+ }

        impl Preset {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What it is for, in one sentence.
            pub fn help(self) -> String {
                let lines: &[&str] = match self { $( Self::$name => &[$($help),+] ),+ };
                lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
            }
        }

        impl RunConfig {
            /// The settings of a preset.
            pub fn preset(preset: Preset) -> Self {
                match preset {
                    $( Preset::$name => Self {
                        $($key: $value,)+
                        ..Self::default().on(DataKind::$dataset)
                    } ),+
                }
            }
        }
    };
}

presets! {
    /// The embedded data set, minutes on two cores.
    Quick on Shapes {
        width: 8, epochs: 20, batch_size: 128, learning_rate: 1e-3, warmup_epochs: 1,
        log_every: 20, probe_epochs: 10
    }
    /// CIFAR-10 at a scale for CI runners: ResNet-18 of width 16 on 10,000 images.
    Ci on Cifar10 {
        width: 16, epochs: 25, batch_size: 128, learning_rate: 1e-3, warmup_epochs: 1,
        limit_train: Some(10_000), log_every: 20, probe_epochs: 30
    }
    /// The paper's CIFAR-10 run.
    PaperCifar10 on Cifar10 {
        encoder: Depth::Resnet50, decoder: Depth::Resnet50, epochs: 3200
    }
    /// The paper's STL-10 run.
    PaperStl10 on Stl10 {
        encoder: Depth::Resnet50, decoder: Depth::Resnet50, epochs: 3200, batch_size: 512,
        learning_rate: 5e-4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every setting that can be unset, set.
    fn whole() -> RunConfig {
        RunConfig {
            data_dir: Some("data".into()),
            max_steps: Some(1),
            kl_coeff: Some(0.5),
            temperature: Some(0.5),
            limit_train: Some(100),
            init_from: Some("file".into()),
            importance_samples: Some(1),
            probe_batch_size: Some(8),
            milestones: vec![1, 2],
            ..RunConfig::default()
        }
    }

    /// The file has every key in the order of the list, and reads as what was written.
    #[test]
    fn the_file_follows_the_list() {
        let text = toml::to_string(&whole()).expect("a table");
        let keys: Vec<_> = text.lines().filter_map(|line| line.split(" = ").next()).collect();
        assert_eq!(keys, SETTINGS.iter().map(|setting| setting.key).collect::<Vec<_>>());
        assert_eq!(toml::from_str::<RunConfig>(&text), Ok(whole()));
        let unset = toml::to_string(&RunConfig::default()).expect("a table");
        assert_eq!(unset.lines().count(), SETTINGS.len() - 9, "what is unset is not written");
        assert!(toml::from_str::<RunConfig>("widht = 8").is_err_and(|e| {
            e.message().contains("unknown field `widht`") && e.message().contains("`width`")
        }));
    }

    /// A range is one of values of its setting's type: nothing panics, and what is out of it is
    /// named by its flag.
    #[test]
    fn ranges_fit_their_settings() {
        assert_eq!(whole().check_ranges(Some), Ok(()));
        let wrong = RunConfig { save_minutes: -1.0, ..whole() };
        let says = "--save-minutes -1 is not a number of at least 0".to_owned();
        assert_eq!(wrong.check_ranges(Some), Err(says));
        assert_eq!(wrong.check_ranges(Bounds::planned), Ok(()), "no plan depends on it");
        let single = RunConfig { batch_size: 1, ..whole() };
        assert!(single.check_ranges(Some).is_err() && single.validate_network().is_ok());
        let most = RunConfig { batch_size: MOST_IMAGES, ..whole() };
        let more = RunConfig { batch_size: MOST_IMAGES + 1, ..whole() };
        assert!(most.check_ranges(Some).is_ok() && more.check_ranges(Some).is_err());
        for milestones in [[2, 1], [1, 1], [0, 1]].map(Vec::from) {
            let disordered = RunConfig { milestones, ..whole() }.check_ranges(Some);
            assert!(disordered.is_err_and(|says| says.contains("ascending")));
        }
        let nothing = RunConfig { batch_size: 0, ..whole() };
        assert!(nothing.validate_network().is_err_and(|says| says.contains("--batch-size")));
    }

    /// What may change is what says how long a run is, where its files lie and what it reports.
    #[test]
    fn a_resumed_run_computes_the_same() {
        let flags: Vec<_> = RunConfig::may_change().collect();
        let want = "--data-dir --epochs --max-steps --log-every --eval-every --importance-samples \
            --view-metrics-every --probe-epochs --probe-batch-size keep --save-minutes";
        assert_eq!(flags.join(" "), want);
        let longer = RunConfig { epochs: 500, log_every: 1, ..whole() };
        let changes = longer.differences(&whole());
        assert_eq!(longer.refuses(&changes), None);
        let falling = RunConfig { schedule: Schedule::Cosine, ..longer.clone() };
        let refused = falling.refuses(&changes).map(|(change, rule)| (change.flag(), rule));
        assert_eq!(refused, Some(("--epochs".into(), Resume::Length)));
        let other = RunConfig { seed: 1, ..falling };
        let changes = other.differences(&whole());
        let refused = other.refuses(&changes).map(|(change, rule)| (change.flag(), rule));
        assert_eq!(refused, Some(("--schedule".into(), Resume::Fixed)), "what is always refused");
    }

    #[test]
    fn defaults_are_said() {
        let says = |key: &str, base: &RunConfig| setting(key).expect("a setting").default(base);
        let base = RunConfig::default();
        assert_eq!(says("learning_rate", &base), Some("0.00025".into()));
        assert_eq!(says("method", &base), Some("aavae".into()));
        assert_eq!(says("kl_coeff", &base), Some("1 for vae, 0 for aavae".into()));
        assert_eq!(says("max_steps", &base), None);
        let stl = base.on(DataKind::Stl10);
        assert_eq!(says("image_size", &stl), Some("96".into()), "no words for what is set");
        assert_eq!(setting("accumulate").expect("a setting").help().matches("  ").count(), 0);
    }
}

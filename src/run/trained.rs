//! What a model was trained with: its configuration, as text and file, the data set that this
//! names, and its weights.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::RunError;
use super::checkpoint::{Checkpoint, CheckpointError};
use super::settings::{DataKind, RunConfig};
use crate::data::{self, DataOptions, Files, Kind, Splits, open_regular, read_regular};
use crate::disk::{self, is_there};
use crate::method::ModelConfig;
use crate::text;

/// Opens the data set of a configuration.
///
/// # Errors
/// If it is missing or damaged.
pub fn open_data(config: &RunConfig) -> Result<Splits, RunError> {
    open_data_in(config, Files::Disk)
}

/// Opens the data set of a configuration, of files wherever they are.
///
/// # Errors
/// If it is missing or damaged.
pub fn open_data_in(config: &RunConfig, files: Files) -> Result<Splits, RunError> {
    config.data_dir.as_deref().map_or(Ok(()), disk::refuse_tilde)?;
    let options = DataOptions {
        files,
        dir: config.data_dir.clone(),
        image_size: Some(config.image_size),
        seed: config.seed,
        limit_train: config.limit_train,
        shuffle: config.shuffle,
        ..DataOptions::new(kind(config.dataset))
    };
    Ok(data::open(&options)?)
}

fn kind(dataset: DataKind) -> Kind {
    match dataset {
        DataKind::Shapes => Kind::Shapes,
        DataKind::Cifar10 => Kind::Cifar10,
        DataKind::Folder => Kind::Folder,
        DataKind::Stl10 => Kind::Stl10,
    }
}

/// Mean and standard deviation that a configuration's images are normalised with; no file is read.
pub fn normalisation(config: &RunConfig) -> ([f32; 3], [f32; 3]) {
    kind(config.dataset).mean_std(config.image_size)
}

/// The model of a configuration on a data set.
pub fn model_config(config: &RunConfig, splits: &Splits) -> ModelConfig {
    let (mean, std) = splits.train.dataset.mean_std();
    let classes = splits.train.dataset.classes().len();
    ModelConfig { online_probe: config.online_probe.then_some(classes), ..config.model(mean, std) }
}

/// Reads `config.toml`, or the `training` part of an exported `config.json`.
///
/// # Errors
/// If it is missing, not TOML (JSON), or names an unknown key.
pub fn read_config(path: &Path) -> Result<RunConfig, RunError> {
    config_of(path, open_regular(path).map_err(RunError::io("read", path))?)
}

/// [`read_config`] of what somebody names, which may also be a pipe from another program.
///
/// # Errors
/// As [`read_config`].
pub fn read_named_config(path: &Path) -> Result<RunConfig, RunError> {
    config_of(path, File::open(path).map_err(RunError::io("read", path))?)
}

fn config_of(path: &Path, file: File) -> Result<RunConfig, RunError> {
    /// Far more than any configuration has, and soon read: a device never ends.
    const MOST: u64 = 1 << 20;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(RunError::io("read", path))?;
    if text.len() as u64 == MOST {
        return Err(RunError::config(
            format!("{} is longer than any configuration", crate::text::name(path)),
            None,
        ));
    }
    if path.extension().is_none_or(|extension| extension != "json") {
        return parse_config(path, &text);
    }
    let wrong =
        |e: &dyn std::fmt::Display| RunError::config(format!("{}: {e}", text::name(&path)), None);
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
    let training = value.get("training").ok_or_else(|| {
        wrong(&"it has no `training`, as `aavae export --format folder` writes it")
    })?;
    RunConfig::deserialize(training).map_err(|e| wrong(&e))
}

/// What a file of JSON says; `None` if there is none.
///
/// # Errors
/// If it cannot be read, or is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RunError> {
    if !is_there(path) {
        return Ok(None);
    }
    let bytes = read_regular(path).map_err(RunError::io("read", path))?;
    let damaged = |e: serde_json::Error| {
        RunError::config(format!("{} cannot be read: {e}", text::name(&path)), None)
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// A configuration from the text of `path`, or of its metadata.
pub(super) fn parse_config(path: &Path, text: &str) -> Result<RunConfig, RunError> {
    toml::from_str(text).map_err(|e| {
        let number =
            e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count());
        let line = text.lines().nth(number).unwrap_or_default();
        let message = format!(
            "{}, line {} (`{line}`): {}",
            text::name(&path),
            number + 1,
            e.message().replace('\n', " ")
        );
        RunError::config(
            message,
            Some(
                "`aavae pretrain --help` names the settings; keys are those names with underscores",
            ),
        )
    })
}

/// Writes a file that is whole or what it was before, whatever happens meanwhile.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    Ok(disk::write(path, bytes)?)
}

/// Writes a configuration to a `config.toml`, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write_config(path: &Path, config: &RunConfig) -> Result<(), RunError> {
    write_whole(path, config_text(config)?.as_bytes())
}

/// A configuration as TOML.
///
/// # Errors
/// If it cannot be said in TOML: a path that is no text.
pub fn config_text(config: &RunConfig) -> Result<String, RunError> {
    toml::to_string(config)
        .map_err(|e| RunError::config(format!("the configuration cannot be written: {e}"), None))
}

/// Refuses a stored configuration that no network can have.
fn plannable(path: &Path, config: &RunConfig) -> Result<(), RunError> {
    let hint = "it was changed or damaged after the run; the original values are in the metadata \
        of the checkpoints";
    config.validate_network().map_err(|message| {
        RunError::config(format!("{}: {message}", text::name(&path)), Some(hint))
    })
}

/// A trained model: a run folder, or a checkpoint file inside one.
#[derive(Debug)]
pub struct Trained {
    /// The configuration it was trained with.
    pub config: RunConfig,
    /// Its tensors, with those of the optimiser where the file has them.
    pub checkpoint: Checkpoint,
    /// Where the weights came from.
    pub path: PathBuf,
    /// Why newer checkpoints were passed over.
    pub skipped: Vec<CheckpointError>,
}

impl Trained {
    /// Opens a run folder (its latest checkpoint) or a checkpoint (the configuration in its
    /// metadata).
    ///
    /// # Errors
    /// If there is no whole checkpoint, or no configuration.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        disk::refuse_tilde(path)?;
        if !disk::is_there(path) {
            let hint = "`aavae pretrain --out DIR` makes run folders";
            return Err(RunError::config(
                format!("no run folder or checkpoint at {}", text::name(&path)),
                Some(hint),
            ));
        }
        if path.is_dir() {
            if !disk::is_there(&path.join("config.toml")) {
                let hint = if disk::is_there(&path.join("grid.json")) {
                    "it is a grid of `reproduce`: name one of the run folders in it"
                } else {
                    "`aavae pretrain --out DIR` makes run folders"
                };
                return Err(RunError::config(
                    format!("{} is no run folder: it has no config.toml", text::name(&path)),
                    Some(hint),
                ));
            }
            let config = read_config(&path.join("config.toml"))?;
            plannable(&path.join("config.toml"), &config)?;
            let latest = super::store::Store::of_run(path).latest();
            let Some((file, checkpoint)) = latest.found else {
                if let Some(error) = latest.skipped.into_iter().next() {
                    return Err(error.into());
                }
                return Err(RunError::config(
                    format!("{} has no whole checkpoint", text::name(&path)),
                    Some("`pretrain --resume` continues an interrupted run"),
                ));
            };
            return Ok(Self { config, checkpoint, path: file, skipped: latest.skipped });
        }
        Self::of_checkpoint(path, Checkpoint::load(path)?)
    }

    /// A checkpoint that was read from `path`, with the configuration in its metadata.
    ///
    /// # Errors
    /// If it has no configuration, or a damaged one.
    pub fn of_checkpoint(path: &Path, checkpoint: Checkpoint) -> Result<Self, RunError> {
        let Some(text) = checkpoint.meta.get("config") else {
            let message = format!(
                "{} does not say how it was trained (no `config` in its metadata)",
                text::name(&path)
            );
            let hint = "`aavae import` makes a run folder of such weights, `pretrain --init-from` \
                trains them further";
            return Err(RunError::config(message, Some(hint)));
        };
        let config = parse_config(path, text)?;
        plannable(path, &config)?;
        Ok(Self { config, checkpoint, path: path.into(), skipped: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a configuration says of its images without reading one: the numbers of CIFAR-10's
    /// recipes, of 255 as they are published; ImageNet's for folders of images of another side.
    #[test]
    fn images_are_normalised_by_the_numbers_of_their_data_set() {
        let of = |dataset, image_size| {
            let config = RunConfig { dataset, image_size, ..RunConfig::default() };
            let (mean, std) = normalisation(&config);
            [mean, std].map(|x| x.map(|x| (255.0 * x * 10.0).round() / 10.0))
        };
        let cifar10 = [[125.3, 123.0, 113.9], [63.0, 62.1, 66.7]];
        let imagenet = [[123.7, 116.3, 103.5], [58.4, 57.1, 57.4]];
        assert_eq!(of(DataKind::Cifar10, 32), cifar10);
        assert_eq!(of(DataKind::Folder, 32), cifar10);
        assert_eq!(of(DataKind::Folder, 64), imagenet);
        let config = RunConfig { dataset: DataKind::Shapes, ..RunConfig::default() };
        let splits = open_data(&config).expect("they are drawn");
        assert_eq!(normalisation(&config), splits.train.dataset.mean_std());
    }
}

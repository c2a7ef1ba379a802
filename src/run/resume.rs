//! What a run is resumed from, and whether what is asked for is that run.
//!
//! A checkpoint carries what its run is: the settings, a fingerprint of the images and labels, the
//! device, the version. `config.toml` and the data lie where people edit them; where these, or the
//! flags, say something else in what a run may not change, nothing is resumed.

use std::path::{Path, PathBuf};

use super::RunError;
use super::checkpoint::Checkpoint;
use super::folder::RunFolder;
use super::settings::{Difference, Resume, RunConfig};
use super::trained::{parse_config, read_config};
use crate::disk::is_there;
use crate::ops::Choices;
use crate::text::name;

/// Scalars of the batches since the last record that was due, by step.
pub type Window = Vec<(u32, Vec<f32>)>;

/// The newest checkpoint of a run.
#[derive(Debug)]
pub struct Resumed {
    /// Path of the checkpoint's file.
    pub path: PathBuf,
    /// Steps that had been taken when it was saved.
    pub step: u64,
    /// Its tensors and metadata.
    pub checkpoint: Checkpoint,
    /// Why newer ones were passed over.
    pub warnings: Vec<String>,
}

impl Resumed {
    /// Loads the newest checkpoint that is whole and checks that `asked` is the configuration of
    /// its run.
    ///
    /// # Errors
    /// If none is whole, if it is no run's or another version's, or if `asked` changes what may not
    /// change.
    pub fn load(folder: &RunFolder, asked: &RunConfig) -> Result<Self, RunError> {
        let resumed = Self::newest(folder)?;
        resumed.same_version()?;
        resumed.same_settings(folder, asked)?;
        Ok(resumed)
    }

    /// The settings of a run whose `config.toml` is gone.
    ///
    /// # Errors
    /// If no checkpoint is whole, or it is no run's.
    pub fn settings(folder: &RunFolder) -> Result<RunConfig, RunError> {
        folder.resumes()?;
        let resumed = Self::newest(folder)?;
        parse_config(&resumed.path, resumed.says("config")?)
    }

    fn newest(folder: &RunFolder) -> Result<Self, RunError> {
        let latest = folder.store().latest();
        let Some((path, checkpoint)) = latest.found else {
            let why = latest.skipped.first().map_or_else(String::new, |error| format!(": {error}"));
            let message = format!("no checkpoint of {} is whole{why}", name(folder.path()));
            return Err(RunError::config(
                message,
                Some("bring one back from a backup, or start another run with another --out"),
            ));
        };
        let warnings = latest
            .skipped
            .iter()
            .map(|error| format!("warning: skipped a checkpoint: {error}"))
            .collect();
        let step = checkpoint.step().ok_or_else(|| {
            RunError::config(
                format!("{} does not say its step; it is no checkpoint of a run", name(&path)),
                None,
            )
        })?;
        Ok(Self { path, step, checkpoint, warnings })
    }

    /// What a resumed run says of itself, by the name of its metadata.
    fn says(&self, key: &str) -> Result<&str, RunError> {
        self.checkpoint.meta.get(key).map(String::as_str).ok_or_else(|| {
            RunError::config(
                format!("{} does not say its {key}; it cannot be resumed", name(&self.path)),
                Some(ANOTHER),
            )
        })
    }

    fn same_version(&self) -> Result<(), RunError> {
        let (there, here) = (self.says("version")?, env!("CARGO_PKG_VERSION"));
        if there == here {
            return Ok(());
        }
        let message = format!(
            "{} is of version {there}, this is {here}: the bits could differ",
            name(&self.path)
        );
        Err(RunError::config(
            message,
            Some(
                "resume it with that version, or start another run from its weights with \
                 --init-from",
            ),
        ))
    }

    fn same_settings(&self, folder: &RunFolder, asked: &RunConfig) -> Result<(), RunError> {
        let saved = parse_config(&self.path, self.says("config")?)?;
        refuse_changes(folder, asked, &saved, &self.path)
    }

    /// Checks that the images and labels are those of the run.
    ///
    /// # Errors
    /// If they are not.
    pub fn same_data(&self, fingerprint: &str, config: &RunConfig) -> Result<(), RunError> {
        if self.says("data")? == fingerprint {
            return Ok(());
        }
        let message = format!(
            "the images or labels of `{}` are not those that {} was trained on",
            config.dataset.name(),
            name(&self.path)
        );
        Err(RunError::config(
            message,
            Some(
                "give --data-dir the same data, or start another run from its weights with \
                 --init-from",
            ),
        ))
    }

    /// Checks that the device is that of the run, unless another one is allowed.
    ///
    /// # Errors
    /// If it is not.
    pub fn same_device(&self, device: &str, another: bool) -> Result<(), RunError> {
        let there = self.says("device")?;
        if another || there == device {
            return Ok(());
        }
        let message = format!(
            "{} was trained on `{there}`, this is `{device}`: the bits would differ",
            name(&self.path)
        );
        Err(RunError::config(
            message,
            Some("name its device with --device, or go on all the same with --allow-device-change"),
        ))
    }

    /// Checks that the run has not gone beyond the steps that are asked for.
    ///
    /// # Errors
    /// If it has.
    pub fn fits(&self, total: u64) -> Result<(), RunError> {
        if self.step <= total {
            return Ok(());
        }
        let message = format!(
            "{} has taken {} steps already, more than the {total} asked for",
            name(&self.path),
            self.step
        );
        Err(RunError::config(message, Some("raise --epochs or --max-steps to continue")))
    }

    /// Which kernels the run was trained with; none for the table of defaults.
    pub fn kernels(&self) -> Choices {
        self.checkpoint.meta.get("kernels").map(|text| Choices::from_json(text)).unwrap_or_default()
    }

    /// Whether it was stopped before all was measured and drawn that is due after its step.
    pub fn owes(&self) -> bool {
        self.checkpoint.meta.contains_key(OWES)
    }

    /// Scalars of the steps before it that no record holds yet, `scalars` a batch.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn window(&self, scalars: usize) -> Result<Window, RunError> {
        let Some(text) = self.checkpoint.meta.get("window") else { return Ok(Window::new()) };
        let window = serde_json::from_str(text).ok();
        let window = window
            .filter(|w: &Vec<(u32, Vec<u32>)>| w.iter().all(|(_, bits)| bits.len() == scalars));
        let window = window.ok_or_else(|| {
            RunError::config(
                format!("`{}`: the metadata `window` cannot be read", name(&self.path)),
                None,
            )
        })?;
        Ok(window
            .into_iter()
            .map(|(step, bits)| (step, bits.into_iter().map(f32::from_bits).collect()))
            .collect())
    }
}

/// Checks that `asked` is the configuration of a run that was killed before its first checkpoint,
/// which begins again.
///
/// # Errors
/// If it changes what may not change.
pub fn same_beginning(folder: &RunFolder, asked: &RunConfig) -> Result<(), RunError> {
    let file = folder.path().join("config.toml");
    if !is_there(&file) {
        return Ok(()); // It was killed even before its file was written.
    }
    refuse_changes(folder, asked, &read_config(&file)?, &file)
}

/// Refuses to resume a run with other settings than those that `path` says it has.
fn refuse_changes(
    folder: &RunFolder,
    asked: &RunConfig,
    saved: &RunConfig,
    path: &Path,
) -> Result<(), RunError> {
    let changes = asked.differences(saved);
    let Some((change, rule)) = asked.refuses(&changes) else { return Ok(()) };
    // The message names the place where the value was changed: the file, or the command line.
    let file = folder.path().join("config.toml");
    let edited = read_config(&file).is_ok_and(|stored| stored.differences(saved).contains(change));
    let Difference { key, here, there } = change;
    let (path, why) = (name(path), rule.refuses(asked.schedule).unwrap_or_default());
    let message = if edited {
        format!("{key} is {here} in {}, but {there} in {path}: {why}", name(&file))
    } else {
        format!("{} is {here} here, but {there} in {path}: {why}", change.flag())
    };
    let hint = match rule {
        Resume::Length => {
            "resume it as it was started, or start another run from its weights with --init-from"
                .into()
        }
        Resume::Fixed | Resume::Free => {
            let flags: Vec<_> = RunConfig::may_change().collect();
            format!("a run is resumed as it was started; what may change is {}", flags.join(", "))
        }
    };
    Err(RunError::config(message, Some(&hint)))
}

/// The text of [`Resumed::window`].
pub fn window_text(window: &Window) -> String {
    let bits: Vec<(u32, Vec<u32>)> =
        window.iter().map(|(s, v)| (*s, v.iter().map(|x| x.to_bits()).collect())).collect();
    serde_json::to_string(&bits).expect("numbers")
}

/// Name of the metadata of a checkpoint after whose step not all was measured that is due.
pub const OWES: &str = "owes";
const ANOTHER: &str = "start another run from its weights with --init-from";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Library, Variant};
    use crate::run::trained::write_config;

    /// What was killed before its first checkpoint begins again as it was asked for, and as
    /// nothing else; longer is no other run.
    #[test]
    fn a_run_that_has_hardly_begun_stays_what_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::claim(&dir.path().join("run"), "pretrain").expect("a folder");
        let asked = RunConfig::default();
        let other = RunConfig { seed: 1, ..asked.clone() };
        assert!(same_beginning(&folder, &other).is_ok(), "there is nothing yet to differ from");
        write_config(&folder.path().join("config.toml"), &asked).expect("written");
        assert!(same_beginning(&folder, &asked).is_ok());
        assert!(same_beginning(&folder, &RunConfig { epochs: 900, ..asked }).is_ok());
        let error = same_beginning(&folder, &other).expect_err("another seed").to_string();
        assert!(error.contains("--seed is 1 here, but 0 in "), "{error}");
    }

    /// Others would sum in another order: a resumed run takes the kernels that its checkpoint says.
    #[test]
    fn a_run_goes_on_with_its_kernels() {
        let mut chosen = Choices::default();
        let (of, name) = (Library::Convolutions, "a product");
        chosen.set(name.into(), Variant::Library { of, rank: 3 });
        // As checkpoints said it while there was one library.
        assert_eq!(Choices::from_json(r#"{"a product":{"library":{"rank":3}}}"#), chosen);
        chosen.set(name.into(), Variant::Library { of: Library::Matrices, rank: 3 });
        let kernels = |says: &[(&str, String)]| {
            let meta = says.iter().map(|(key, text)| (key.to_string(), text.clone())).collect();
            let checkpoint = Checkpoint { tensors: [].into(), meta };
            Resumed { path: "last".into(), step: 1, checkpoint, warnings: vec![] }.kernels()
        };
        assert_eq!(kernels(&[("kernels", chosen.to_json())]), chosen);
        assert_eq!(kernels(&[]), Choices::default());
    }
}

//! The checkpoints of a run, and which of them to resume from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, CheckpointError};
use crate::disk::{self, DiskError};

/// File name of the newest checkpoint in a [`Store`].
pub const LAST: &str = "last.safetensors";

/// Name of the folder of checkpoints in a run folder.
pub const CHECKPOINTS: &str = "checkpoints";

/// File name that says that no checkpoint has been saved yet. Without it and without a checkpoint
/// somebody removed them.
const UNSAVED: &str = "unsaved";

/// The checkpoints of a run: `step-N.safetensors`; `last.safetensors`, another name of the newest;
/// `epoch-N.safetensors`, the weights at a milestone, which are kept for good.
///
/// Where the file system has no links `last` is a copy. Either way a checkpoint is written once,
/// and what damages the newest leaves the ones before it.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What [`Store::save`] has written.
#[derive(Debug)]
pub struct Saved {
    /// SHA-256 of its tensors, as [`Checkpoint::digest`].
    pub digest: String,
    /// The file: [`LAST`], or that of the step if `last` could not be replaced.
    pub path: PathBuf,
    /// Why `last` could not be replaced: another program holds it. It is an older checkpoint then.
    pub held: Option<DiskError>,
}

/// What [`Store::latest`] found.
#[derive(Debug, Default)]
pub struct Latest {
    /// The newest checkpoint that could be loaded, and its file.
    pub found: Option<(PathBuf, Checkpoint)>,
    /// Why newer files were passed over.
    pub skipped: Vec<CheckpointError>,
}

impl Store {
    /// The checkpoints in `dir`. Touches nothing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Those of a run folder.
    pub fn of_run(folder: &Path) -> Self {
        Self::new(folder.join(CHECKPOINTS))
    }

    /// The file of a step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step}.safetensors"))
    }

    /// The newest checkpoint.
    pub fn last(&self) -> PathBuf {
        self.dir.join(LAST)
    }

    /// The weights after so many epochs.
    pub fn milestone(&self, epoch: usize) -> PathBuf {
        self.dir.join(format!("epoch-{epoch}.safetensors"))
    }

    /// Whether a file name is one of those above.
    pub fn owns(name: &str) -> bool {
        let number = |prefix: &str| {
            name.strip_prefix(prefix)?.strip_suffix(".safetensors")?.parse::<u64>().ok()
        };
        name == LAST || name == UNSAVED || number("step-").is_some() || number("epoch-").is_some()
    }

    /// Whether a file is the note that nothing has been saved yet.
    pub fn is_note(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name == UNSAVED)
    }

    /// Makes the folder and notes in it that nothing has been saved yet.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(&self) -> Result<(), DiskError> {
        disk::create_folder(&self.dir)?;
        disk::write(
            &self.dir.join(UNSAVED),
            b"The run has begun and no checkpoint of it is whole yet.\n",
        )
    }

    /// Whether the run has begun and nothing has been saved yet.
    pub fn is_unsaved(&self) -> bool {
        disk::is_there(&self.dir.join(UNSAVED))
    }

    /// Writes the weights at a milestone. Before [`Store::save`] of the same step: whatever is
    /// resumed from that has the milestone.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; nothing has changed then.
    pub fn save_milestone(
        &self,
        epoch: usize,
        weights: &Checkpoint,
    ) -> Result<(), CheckpointError> {
        disk::create_folder(&self.dir)?;
        weights.save(self.milestone(epoch)).map(drop)
    }

    /// Writes `step-N`, makes it `last`, and removes all but the `keep` newest (at least one) of
    /// the files up to this step. A file that another program holds open stays, to be replaced or
    /// removed by a later call.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The files of earlier steps are then still there, and `last` is
    /// whole.
    pub fn save(
        &self,
        step: u64,
        checkpoint: &Checkpoint,
        keep: usize,
    ) -> Result<Saved, CheckpointError> {
        disk::create_folder(&self.dir)?;
        let path = self.path(step);
        let digest = checkpoint.save(&path)?;
        let held = unless_busy(disk::link(&path, &self.last()))?;
        let newest = if held.is_some() { path } else { self.last() };
        let saved = Saved { digest, path: newest, held };
        // Files of later steps are damaged, or `latest` would have found them; training will write
        // them again.
        let old = self
            .steps()?
            .into_iter()
            .filter(|s| *s <= step)
            .skip(keep.max(1))
            .map(|s| self.path(s));
        for path in old.chain([self.dir.join(UNSAVED)]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => drop(unless_busy(removed.map_err(DiskError::of("remove", &path)))?),
            }
        }
        disk::sync_folder(&self.dir)?;
        Ok(saved)
    }

    /// Loads the newest checkpoint that is whole: the highest step, whichever file has it.
    pub fn latest(&self) -> Latest {
        let mut latest = Latest::default();
        let steps = match self.steps() {
            Ok(steps) => steps,
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return latest,
            Err(error) => {
                latest.skipped.push(error.into());
                return latest;
            }
        };
        match Checkpoint::load(self.last()) {
            Ok(checkpoint) => latest.found = Some((self.last(), checkpoint)),
            Err(CheckpointError::Missing { .. }) if steps.is_empty() => {}
            Err(error) => latest.skipped.push(error),
        }
        // A foreign checkpoint does not say its step, and has no others beside it.
        let known = latest.found.as_ref().map(|(_, last)| last.step().unwrap_or(u64::MAX));
        for path in steps
            .into_iter()
            .filter(|step| known.is_none_or(|known| *step > known))
            .map(|step| self.path(step))
        {
            match Checkpoint::load(&path) {
                Ok(checkpoint) => {
                    latest.found = Some((path, checkpoint));
                    break;
                }
                Err(error) => latest.skipped.push(error),
            }
        }
        latest
    }

    /// Whether there is any checkpoint, whole or not.
    ///
    /// # Errors
    /// If there is something, but no folder that can be read.
    pub fn holds_any(&self) -> Result<bool, DiskError> {
        match self.steps() {
            Ok(steps) => Ok(!steps.is_empty() || disk::is_there(&self.last())),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Steps that have a file, highest first.
    fn steps(&self) -> Result<Vec<u64>, DiskError> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(DiskError::of("read", &self.dir))? {
            let name = entry.map_err(DiskError::of("read", &self.dir))?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
            steps.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        steps.sort_unstable_by_key(|step| std::cmp::Reverse(*step));
        Ok(steps)
    }
}

/// What was done, or why it has to wait: another program holds the file.
///
/// # Errors
/// Every other one.
fn unless_busy(done: Result<(), DiskError>) -> Result<Option<DiskError>, DiskError> {
    match done {
        Ok(()) => Ok(None),
        Err(error) if error.is_busy() => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a file that another program holds is left for later: a full disk is not.
    #[test]
    fn what_is_busy_waits_and_nothing_else_does() {
        let failed = |kind: io::ErrorKind| Err(DiskError::of("replace", "last")(kind.into()));
        assert!(matches!(unless_busy(Ok(())), Ok(None)));
        let busy = unless_busy(failed(io::ErrorKind::ResourceBusy));
        assert!(matches!(&busy, Ok(Some(error)) if error.is_busy()), "{busy:?}");
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied] {
            assert!(unless_busy(failed(kind)).is_err_and(|error| error.source.kind() == kind));
        }
        // By the disk: folders in the places of files, which are not busy.
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::new(dir.path());
        let save = |step| store.save(step, &Checkpoint::default(), 1).map(|saved| saved.path);
        fs::create_dir(store.path(1)).expect("a folder");
        assert!(save(2).is_err_and(|error| error.to_string().contains("step-1")));
        fs::remove_dir(store.path(1)).expect("a folder");
        assert_eq!(save(3).expect("saved"), store.last());
        assert!(!store.path(2).exists() && store.path(3).exists());
        fs::remove_file(store.last()).expect("a file");
        fs::create_dir(store.last()).expect("a folder");
        assert!(save(4).is_err_and(|error| error.to_string().contains("last")));
    }
}

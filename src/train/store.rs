//! The checkpoints of a run, and which of them to resume from.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::checkpoint::{Checkpoint, CheckpointError, replace, sync_folder};

/// File name of the newest checkpoint in a [`Store`].
pub const LAST: &str = "last.safetensors";

/// The checkpoints of a run: `step-N.safetensors`, and `last.safetensors`, a copy of the newest; `epoch-N.safetensors`, the weights
/// at a milestone, which are kept for good.
///
/// A copy, not a link: what damages one file does not damage the other.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
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

    /// Writes the weights at a milestone. Before [`Store::save`] of the same step: whatever is resumed from that has the milestone.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; nothing has changed then.
    pub fn save_milestone(&self, epoch: usize, weights: &Checkpoint) -> Result<(), CheckpointError> {
        fs::create_dir_all(&self.dir).map_err(CheckpointError::io("create", &self.dir))?;
        weights.save(self.milestone(epoch))
    }

    /// Writes `step-N`, then `last`; then removes all but the `keep` newest (at least one) of the files up to this step,
    /// and temporary files that an earlier run left.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The files of earlier steps are then still there, and `last` is whole.
    pub fn save(&self, step: u64, checkpoint: &Checkpoint, keep: usize) -> Result<(), CheckpointError> {
        fs::create_dir_all(&self.dir).map_err(CheckpointError::io("create", &self.dir))?;
        let path = self.path(step);
        checkpoint.save(&path)?;
        replace(&self.last(), |temporary, mut file| {
            let mut source = File::open(&path).map_err(CheckpointError::io("open", &path))?;
            io::copy(&mut source, &mut file).map(drop).map_err(CheckpointError::io("write", temporary))
        })?;
        let (steps, leftovers) = self.list()?;
        // Steps beyond this one are of a future that a damaged `last` made us leave; training will write them again.
        let old = steps.into_iter().filter(|s| *s <= step).skip(keep.max(1)).map(|s| self.path(s));
        for path in old.chain(leftovers) {
            fs::remove_file(&path).map_err(CheckpointError::io("remove", &path))?;
        }
        sync_folder(&self.dir)
    }

    /// Loads the newest checkpoint that is whole: `last`, or else the highest step.
    pub fn latest(&self) -> Latest {
        let mut latest = Latest::default();
        let steps = match self.list() {
            Ok((steps, _)) => steps,
            Err(CheckpointError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return latest,
            Err(error) => {
                latest.skipped.push(error);
                return latest;
            }
        };
        let nothing = steps.is_empty();
        for path in [self.last()].into_iter().chain(steps.into_iter().map(|step| self.path(step))) {
            match Checkpoint::load(&path) {
                Ok(checkpoint) => {
                    latest.found = Some((path, checkpoint));
                    break;
                }
                Err(CheckpointError::Missing { .. }) if nothing => {}
                Err(error) => latest.skipped.push(error),
            }
        }
        latest
    }

    /// Steps that have a file, highest first, and temporary files.
    fn list(&self) -> Result<(Vec<u64>, Vec<PathBuf>), CheckpointError> {
        let (mut steps, mut leftovers) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir).map_err(CheckpointError::io("read", &self.dir))? {
            let name = entry.map_err(CheckpointError::io("read", &self.dir))?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(".safetensors.tmp") {
                leftovers.push(self.dir.join(name));
            } else if let Some(step) = name.strip_prefix("step-").and_then(|n| n.strip_suffix(".safetensors")?.parse().ok()) {
                steps.push(step);
            }
        }
        steps.sort_unstable_by_key(|step| std::cmp::Reverse(*step));
        Ok((steps, leftovers))
    }
}

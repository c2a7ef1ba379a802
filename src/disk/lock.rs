//! Folders that belong to one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::DiskError;

/// What stands in the way of a [`Lock`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// A living process holds it.
    #[error("another process works in `{}`: \
        {}", crate::text::name(folder), holder.as_deref().unwrap_or("it does not say which"))]
    Held {
        /// Path of the folder.
        folder: PathBuf,
        /// Its number and name, where it can be read.
        holder: Option<String>,
    },
    /// The file of the lock cannot be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Makes a folder belong to this process until it is dropped, or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Name of the file that is locked. It says which process locked it; without a lock it means
    /// nothing.
    pub const FILE: &str = ".lock";

    /// Locks a folder, which must be there. `name` is what the process calls itself.
    ///
    /// # Errors
    /// [`LockError::Held`], or if the file cannot be written.
    pub fn take(folder: &Path, name: &str) -> Result<Self, LockError> {
        let path = folder.join(Self::FILE);
        loop {
            let Some(mut file) = Self::open(&path).map_err(DiskError::of("create", &path))? else {
                continue;
            };
            match file.try_lock() {
                Ok(()) if !same_file(&file, &path) => continue, // whoever held it took it away
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        folder: folder.into(),
                        holder: holder(&mut file),
                    });
                }
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            let text = format!("{} {name}\n", std::process::id());
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(text.as_bytes()))
                .map_err(DiskError::of("write", &path))?;
            return Ok(Self { file, path });
        }
    }

    /// A new file, or the one that is there; what a link points to is not touched. `None` if the
    /// one that was there is gone.
    fn open(path: &Path) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(Some),
        }
        let found = match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(io::Error::other("something else has this name"));
            }
            Ok(_) => options.open(path).map(Some),
            Err(error) => Err(error),
        };
        found.or_else(
            |error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) },
        )
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is unlocked, so that nobody's is removed. One that stays is free.
        drop(fs::remove_file(&self.path));
        drop(self.file.unlock());
    }
}

/// Whether a file is still the one that its name stands for.
#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |data: fs::Metadata| (data.dev(), data.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(file), Ok(path)) => place(file) == place(path),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_file: &File, path: &Path) -> bool {
    super::is_there(path)
}

/// Who wrote a lock's file: "process 4711 (aavae pretrain)". It is text from a file: only plain
/// characters are taken.
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.take(200).read_to_string(&mut text).ok()?;
    let (process, name) = text.trim_end().split_once(' ')?;
    let process: u32 = process.parse().ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-');
    name.chars().all(plain).then(|| format!("process {process} ({name})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = folder();
        let lock = Lock::take(dir.path(), "aavae pretrain").expect("a free folder");
        let error = Lock::take(dir.path(), "aavae pretrain").expect_err("a held one").to_string();
        assert!(
            error.contains(&format!("process {} (aavae pretrain)", std::process::id())),
            "{error}"
        );
        drop(lock);
        assert!(crate::disk::names(dir.path()).expect("read").is_empty(), "a lock leaves nothing");
        // What a killed process left is free, whatever it says.
        fs::write(dir.path().join(Lock::FILE), "1 \u{1b}[31m").expect("a file");
        let lock = Lock::take(dir.path(), "x").expect("a free folder");
        fs::write(dir.path().join(Lock::FILE), "1 \u{1b}[31m").expect("a file");
        let error = Lock::take(dir.path(), "x").expect_err("a held one").to_string();
        assert!(error.contains("it does not say which") && !error.contains('\u{1b}'), "{error}");
        drop(lock);
        Lock::take(dir.path(), "x").expect("free again");
    }

    /// Whoever gets the lock is alone, also while others take it and give it back.
    #[test]
    fn a_lock_that_comes_and_goes() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let dir = folder();
        let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Ok(lock) = Lock::take(dir.path(), "test") {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
                            taken.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 10);
    }
}

//! Files that are whole or absent, folders that belong to one process, and errors that name what
//! could not be done.
//!
//! Every file that a command writes at once goes through [`replace`]: it is filled beside its place
//! as `<name>.<16 hexadecimal digits>.tmp`, synced, renamed, and the folder synced. A process
//! killed at any instant leaves the previous file. Temporary files are new files with random names,
//! so no link is followed, and their writer holds a lock on them: one that nobody has locked was
//! left by a killed process, and the next write to the same place removes it.
//!
//! Locks are advisory and end with their process. Where a file system has none, the work goes on
//! without.

mod lock;

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

pub use lock::{Lock, LockError};

use crate::text;

/// The operating system refused an operation on a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`: {source}", crate::text::name(path))]
pub struct DiskError {
    /// What was tried, as a verb: "write", "replace".
    pub action: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// The operating system's answer.
    pub source: io::Error,
}

impl DiskError {
    /// Names what was tried, and on what, when an operation fails.
    pub fn of(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source }
    }

    /// Whether there is no room: on the disk, within a quota, or within the longest file allowed.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// Whether the file would be longer than this process, or the file system, allows.
    pub fn is_too_long(&self) -> bool {
        self.source.kind() == io::ErrorKind::FileTooLarge
    }

    /// Whether something else holds the file, so that it cannot be replaced for now.
    pub fn is_busy(&self) -> bool {
        is_busy(&self.source)
    }

    /// What the user can do about it, as one sentence without a full stop.
    pub fn hint(&self) -> Option<String> {
        if let Some((user, rest)) = unexpanded(&self.path) {
            let rest = text::name(rest);
            return Some(match user {
                "" => format!("write `$HOME/{rest}`, or leave out the quotes or the `=`"),
                user => format!(
                    "write the whole path of that home folder, or `./~{user}/{rest}` for a folder \
                     here"
                ),
            });
        }
        Some(if self.is_too_long() {
            "raise the limit on the length of files (`ulimit -f`), or name a place on another disk"
                .into()
        } else if self.is_full() {
            "free some space, or name a place on another disk".into()
        } else {
            return None;
        })
    }
}

fn is_busy(error: &io::Error) -> bool {
    // Windows: access denied, sharing violation, lock violation. Unix: a mount point.
    let held = cfg!(windows) && matches!(error.raw_os_error(), Some(5 | 32 | 33));
    held || error.kind() == io::ErrorKind::ResourceBusy
}

/// Whether anything lies at a path. What cannot be looked at does: opening it says why.
pub fn is_there(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    let nothing = |error: io::Error| matches!(error.kind(), NotFound | NotADirectory);
    !fs::symlink_metadata(path).is_err_and(nothing)
}

/// Names of what lies in a folder; none where there is no folder.
///
/// # Errors
/// If the folder is there and cannot be read.
pub fn names(folder: &Path) -> Result<Vec<OsString>, DiskError> {
    if !is_there(folder) {
        return Ok(vec![]);
    }
    let all = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect());
    all.map_err(DiskError::of("read", folder))
}

/// The user, if one is named, and what follows, of a path that begins with a `~` which the shell
/// was to replace by a home folder. Of users there are only plain names, and what lies here under
/// such a name is what is meant.
fn unexpanded(path: &Path) -> Option<(&str, &Path)> {
    let mut parts = path.components();
    let Some(Component::Normal(first)) = parts.next() else { return None };
    let user = first.to_str()?.strip_prefix('~')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let named = user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && user.chars().all(plain)
        && !is_there(first.as_ref());
    (user.is_empty() || named).then_some((user, parts.as_path()))
}

/// Refuses a place that begins with `~` or `~user`: a folder of that name is not what anyone means.
///
/// # Errors
/// If it does.
pub fn refuse_tilde(path: &Path) -> Result<(), DiskError> {
    let Some((user, _)) = unexpanded(path) else { return Ok(()) };
    let message = format!("the shell did not expand `~{user}`");
    Err(DiskError::of("use", path)(io::Error::other(message)))
}

/// Refuses to put a file where there is something else: a rename would take a device, or one that a
/// link leads to, away from everyone.
fn refuse_other(path: &Path) -> Result<(), DiskError> {
    let what = match fs::metadata(path) {
        Ok(found) if found.is_dir() => "it is a folder",
        Ok(found) if !found.is_file() => "it is a device or a pipe, not a file",
        _ => return Ok(()),
    };
    Err(DiskError::of("replace", path)(io::Error::other(what)))
}

/// Makes a folder and those it lies in.
///
/// # Errors
/// If that is not possible.
pub fn create_folder(path: &Path) -> Result<(), DiskError> {
    refuse_tilde(path)?;
    fs::create_dir_all(path).map_err(DiskError::of("create", path))
}

/// Writes a file that is whole or what it was before, whatever happens meanwhile.
///
/// # Errors
/// As [`replace`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    replace(path, |file| file.write_all(bytes))
}

/// Fills a file beside its place with `fill`, syncs it, and renames it to `path`.
///
/// # Errors
/// If that is not possible; `path` is then what it was, and nothing else is left behind.
pub fn replace(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), DiskError> {
    refuse_tilde(path)?;
    refuse_other(path)?;
    let name = path.file_name();
    sweep(folder_of(path), |target| name.is_some_and(|name| name == target));
    let (temporary, mut file) = temporary_file(path)?;
    let done = fill(&mut file)
        .map_err(DiskError::of("write", path))
        .and_then(|()| file.sync_all().map_err(DiskError::of("sync", path)))
        .and_then(|()| rename(&temporary, path));
    drop(file);
    if done.is_err() {
        // Its space may be what is missing; the error to report is the first one.
        drop(fs::remove_file(&temporary));
        return done;
    }
    sync_folder(folder_of(path))
}

/// Makes `path` another name of the file `from`, or a copy where there are no links.
///
/// # Errors
/// If neither is possible; `path` is then what it was.
pub fn link(from: &Path, path: &Path) -> Result<(), DiskError> {
    refuse_other(path)?;
    let temporary = temporary_name(path);
    if fs::hard_link(from, &temporary).is_ok() {
        let renamed = rename(&temporary, path);
        // It is still there on failure, and where `path` was this very file.
        drop(fs::remove_file(&temporary));
        renamed?;
        return sync_folder(folder_of(path));
    }
    let mut source = File::open(from).map_err(DiskError::of("open", from))?;
    replace(path, |file| io::copy(&mut source, file).map(drop))
}

/// Makes renames and removals in a folder last beyond a power cut.
///
/// # Errors
/// If the operating system refuses.
pub fn sync_folder(folder: &Path) -> Result<(), DiskError> {
    // Elsewhere a folder cannot be opened like a file.
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(DiskError::of("sync", folder))?;
    }
    Ok(())
}

/// Removes the temporary files in a folder that killed processes left of files that `ours` names.
/// One that cannot be removed stays, as do those of a folder that cannot be read.
pub fn sweep(folder: &Path, ours: impl Fn(&str) -> bool) {
    for name in names(folder).unwrap_or_default() {
        let left = name.to_str().and_then(target).is_some_and(&ours);
        let path = folder.join(name);
        // A link is none of ours, and opening it would follow it.
        if left && fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            // The lock is held until the file is gone: a writer that has just made it, and not yet
            // locked it, finds that and makes another.
            if let Ok(file) = File::open(&path)
                && file.try_lock().is_ok()
            {
                drop(fs::remove_file(&path));
            }
        }
    }
}

/// Whether a name is that of a temporary file that was to become `name`.
pub fn is_temporary(temporary: &str, name: &str) -> bool {
    target(temporary) == Some(name)
}

/// The name of the file that a temporary file was to become.
fn target(name: &str) -> Option<&str> {
    let (target, random) = name.strip_suffix(".tmp")?.rsplit_once('.')?;
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (random.len() == 16 && random.bytes().all(hexadecimal)).then_some(target)
}

fn temporary_name(path: &Path) -> PathBuf {
    let random = RandomState::new().build_hasher().finish();
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(format!(".{random:016x}.tmp"));
    path.with_file_name(name)
}

/// A new file, locked, to become `path`.
fn temporary_file(path: &Path) -> Result<(PathBuf, File), DiskError> {
    loop {
        let temporary = temporary_name(path);
        let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made.map_err(DiskError::of("create", path))?,
        };
        // Another process may have swept it away before it was locked.
        let ours = !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if ours && is_there(&temporary) {
            return Ok((temporary, file));
        }
    }
}

/// Renames, and waits a little for another program that has the old file open.
fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    patiently(|| fs::rename(from, to)).map_err(DiskError::of("replace", to))
}

/// Tries again for about a second while something else holds the file.
fn patiently(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for milliseconds in [10, 40, 160, 640] {
        match attempt() {
            Err(error) if is_busy(&error) => {
                std::thread::sleep(Duration::from_millis(milliseconds))
            }
            done => return done,
        }
    }
    attempt()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> = entries
            .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn only_a_file_makes_way_for_one() {
        let dir = folder();
        let [file, socket, alias] = ["a", "b", "c"].map(|name| dir.path().join(name));
        write(&file, b"new").expect("written");
        #[cfg(unix)] // elsewhere sockets have no names in folders
        let _listens = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        #[cfg(unix)]
        std::os::unix::fs::symlink(&socket, &alias).expect("a link");
        let before = names(dir.path());
        for path in [&socket, &alias, &dir.path().to_owned()].into_iter().filter(|p| p.exists()) {
            let errors = [write(path, b"new"), link(&file, path)].map(|done| done.expect_err("no"));
            assert!(errors.iter().all(|e| e.to_string().contains("it is a ")), "{errors:?}");
        }
        assert_eq!(names(dir.path()), before);
    }

    #[test]
    fn a_file_is_the_old_or_the_new_one() {
        let dir = folder();
        let path = dir.path().join("file");
        write(&path, b"old").expect("written");
        let error = replace(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let error = error.expect_err("a full disk");
        assert_eq!((error.action, &error.path), ("write", &path), "not its stand-in");
        assert!(
            error.is_full() && error.hint().is_some_and(|hint| hint.contains("free some space"))
        );
        assert_eq!(
            (names(dir.path()), fs::read(&path).expect("bytes")),
            (vec!["file".into()], b"old".to_vec())
        );
        write(&path, b"new").expect("written");
        assert_eq!(
            (names(dir.path()), fs::read(&path).expect("bytes")),
            (vec!["file".into()], b"new".to_vec())
        );
    }

    /// Of a file's stand-ins, those that no process holds go; whatever else looks like one stays.
    #[test]
    fn what_killed_processes_left_is_swept() {
        let dir = folder();
        let put = |name: &str| fs::write(dir.path().join(name), "half").expect("a file");
        let stay = [
            "b.0123456789abcdef.tmp",
            "a.tmp",
            "a.0123456789abcde.tmp",
            "a.0123456789ABCDEF.tmp",
            "a.x.tmp",
        ];
        stay.iter().for_each(|name| put(name));
        for name in ["a.0123456789abcdef.tmp", "a.ffffffffffffffff.tmp", "a.00000000000000ff.tmp"] {
            put(name);
        }
        let held = File::open(dir.path().join("a.00000000000000ff.tmp")).expect("a file");
        held.lock().expect("a lock");
        write(&dir.path().join("a"), b"whole").expect("written");
        let mut expected = [&stay[..], &["a", "a.00000000000000ff.tmp"]].concat();
        expected.sort_unstable();
        assert_eq!(names(dir.path()), expected);
        drop(held);
        sweep(dir.path(), |name| name == "a");
        assert!(!names(dir.path()).contains(&"a.00000000000000ff.tmp".to_owned()));
    }

    /// Two processes that write one file at once: one of the two is the file, and neither fails.
    #[test]
    fn writers_do_not_sweep_each_other() {
        let dir = folder();
        let path = dir.path().join("file");
        std::thread::scope(|scope| {
            for byte in [b'a', b'b', b'c', b'd'] {
                let path = &path;
                scope.spawn(move || {
                    (0..50).for_each(|_| write(path, &[byte; 1000]).expect("written"))
                });
            }
        });
        let bytes = fs::read(&path).expect("bytes");
        assert!(bytes.len() == 1000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[cfg(unix)] // elsewhere a link is a privilege
    #[test]
    fn links_are_not_followed() {
        let dir = folder();
        let [victim, link] = ["victim", "link"].map(|name| dir.path().join(name));
        fs::write(&victim, "mine").expect("a file");
        std::os::unix::fs::symlink(&victim, &link).expect("a link");
        write(&link, b"new").expect("written");
        assert_eq!(fs::read(&victim).expect("bytes"), b"mine");
        assert_eq!(fs::read(&link).expect("bytes"), b"new");
        std::os::unix::fs::symlink(&victim, dir.path().join(Lock::FILE)).expect("a link");
        let error = Lock::take(dir.path(), "test").expect_err("a link is no lock");
        assert!(error.to_string().contains("something else has this name"), "{error}");
        // Even one that looks as if a killed process had left it.
        let left = dir.path().join("link.0123456789abcdef.tmp");
        std::os::unix::fs::symlink(&victim, &left).expect("a link");
        write(&link, b"newer").expect("written");
        assert!(fs::symlink_metadata(&left).is_ok());
        assert_eq!(fs::read(&victim).expect("bytes"), b"mine");
    }

    #[test]
    fn a_link_is_the_same_file_and_survives_its_source() {
        let dir = folder();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, "content").expect("a file");
        fs::write(&to, "before").expect("a file");
        link(&from, &to).expect("linked");
        link(&from, &to)
            .expect("linked again: a rename between two names of one file does nothing");
        assert_eq!(names(dir.path()), ["from", "to"]);
        write(&from, b"other").expect("written");
        assert_eq!(fs::read(&to).expect("bytes"), b"content");
        // A folder cannot be replaced by a file.
        fs::remove_file(&to).expect("gone");
        fs::create_dir(&to).expect("a folder");
        let error = link(&from, &to).expect_err("a folder is in the way");
        assert_eq!(
            (error.action, names(dir.path())),
            ("replace", vec!["from".into(), "to".into()])
        );
    }

    #[test]
    fn what_is_held_is_waited_for() {
        let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
        let mut attempts = 0;
        let mut third = || {
            attempts += 1;
            if attempts < 3 { Err(busy()) } else { Ok(()) }
        };
        patiently(&mut third).expect("the third attempt");
        assert_eq!(attempts, 3);
        assert!(patiently(|| Err(busy())).is_err_and(|error| is_busy(&error)));
        let mut attempts = 0;
        let denied = patiently(|| {
            attempts += 1;
            Err(io::ErrorKind::NotFound.into())
        });
        assert!(denied.is_err() && attempts == 1, "what is not held is an error at once");
    }

    /// What cannot be looked at is there: a link that leads nowhere, or to itself.
    #[test]
    fn nothing_else_is_not_there() {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").expect("a file");
        assert!(is_there(dir.path()) && is_there(&at("file")));
        assert!(!is_there(&at("none")) && !is_there(&at("file/below")));
        assert_eq!(super::names(dir.path()).expect("read"), ["file"]);
        assert!(super::names(&at("none")).expect("nothing").is_empty());
        let error = super::names(&at("file")).expect_err("no folder").to_string();
        assert!(error.contains("cannot read") && error.contains("file"), "{error}");
        #[cfg(unix)]
        for (name, to) in [("dangling", "none"), ("loop", "loop")] {
            std::os::unix::fs::symlink(to, at(name)).expect("a link");
            assert!(is_there(&at(name)), "{name}");
            assert!(super::names(&at(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_tilde_is_no_folder() {
        for path in ["~/x", "~", "~/a/b"].map(Path::new) {
            let error = create_folder(path).expect_err("an unexpanded tilde");
            assert!(error.hint().is_some_and(|hint| hint.contains("$HOME")), "{error}");
            assert!(write(path, b"x").is_err());
        }
        for path in ["~bob/x", "~bob", "~a-b.c_9/x"].map(Path::new) {
            let error = create_folder(path).expect_err("an unexpanded user");
            let hint = error.hint().unwrap_or_default();
            let named = error.to_string().contains("the shell did not expand `~");
            assert!(named && hint.contains("`./~"), "{error}; {hint}");
        }
        for path in ["~$draft", "~9", "~a b", "~~", "./~bob"].map(Path::new) {
            refuse_tilde(path).expect("no user has that name");
        }
        refuse_tilde(Path::new("./~/x")).expect("a folder of that name, if anyone means it");
        refuse_tilde(Path::new("a~/x~")).expect("an ordinary name");
    }
}

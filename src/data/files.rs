//! Files as data sets take them: regular ones, and none vanishes because it cannot be looked at.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, File, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::DataError;
use super::error::FOLLOW;

/// What lies at a path, links followed; `None` if nothing does.
///
/// # Errors
/// [`DataError::Io`] if a link leads nowhere, or the path cannot be looked at.
pub(super) fn look(path: &Path) -> Result<Option<Metadata>, DataError> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            if fs::symlink_metadata(path).is_ok() {
                return Err(DataError::io(FOLLOW, path)(error));
            }
            Ok(None)
        }
        Err(error) => Err(DataError::io("read", path)(error)),
    }
}

/// Whether a folder lies at a path.
///
/// # Errors
/// As [`look`].
pub(super) fn is_folder(path: &Path) -> Result<bool, DataError> {
    Ok(look(path)?.is_some_and(|found| found.is_dir()))
}

/// Whether anything lies at a path. What cannot be looked at does: opening it says why.
pub(crate) fn is_there(path: &Path) -> bool {
    !matches!(look(path), Ok(None))
}

/// Opens a regular file, or a link to one. A folder, a device or a pipe is an error: reading it
/// could wait or go on forever.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is none of these; those of the system.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a pipe waits until somebody writes to it.
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("it is {}, not a file", describe(kind)),
        ));
    }
    File::open(path)
}

/// [`open_regular`] for files of data.
///
/// # Errors
/// [`DataError::Io`].
pub(super) fn open(path: &Path) -> Result<File, DataError> {
    open_regular(path).map_err(DataError::io("read", path))
}

/// Visible entries of a folder by name, bytewise, with what they are; links are followed.
///
/// # Errors
/// [`DataError::Io`] if the folder cannot be listed, or one of its entries not be looked at.
pub(super) fn list(dir: &Path) -> Result<Vec<(OsString, FileType)>, DataError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let entry = entry.map_err(DataError::io("list", dir))?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            found.push((name, kind(&entry)?));
        }
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn kind(entry: &DirEntry) -> Result<FileType, DataError> {
    let path = entry.path();
    let kind = entry.file_type().map_err(DataError::io("read", &path))?;
    if !kind.is_symlink() {
        return Ok(kind); // listing has told it; a million files are not asked one by one
    }
    match look(&path)? {
        Some(found) => Ok(found.file_type()),
        None => Err(DataError::io("read", &path)(ErrorKind::NotFound.into())),
    }
}

/// What something is, with its article.
fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    "something else"
}

/// Entries that were not read, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    kinds: Vec<Kind>,
}

/// Entries of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    one: String,
    many: String,
    count: usize,
    /// The first of them, as a path from the folder that the count is about.
    first: OsString,
}

impl Unread {
    /// Counts an entry.
    pub(super) fn add(&mut self, name: &OsStr, kind: FileType) {
        let [one, many] = if kind.is_file() {
            match Path::new(name).extension().map(OsStr::to_ascii_lowercase) {
                Some(extension) => ["file", "files"]
                    .map(|what| format!(".{} {what}", crate::text::name(&extension))),
                None => ["file", "files"].map(|what| format!("{what} without an extension")),
            }
        } else {
            let what = describe(kind).trim_start_matches("a ");
            [what.to_owned(), format!("{what}s")]
        };
        self.count(Kind { one, many, count: 1, first: name.to_owned() });
    }

    /// Counts what another counted in `folder`.
    pub(super) fn merge(&mut self, other: Self, folder: &Path) {
        for kind in other.kinds {
            self.count(Kind { first: folder.join(&kind.first).into_os_string(), ..kind });
        }
    }

    fn count(&mut self, kind: Kind) {
        match self.kinds.iter_mut().find(|known| known.one == kind.one) {
            Some(known) => known.count += kind.count,
            None => self.kinds.push(kind),
        }
    }

    /// "3 folders (first ant/old), 1 .gif file (ant/a.gif)", the most first; `None` if all was
    /// read.
    pub(super) fn text(&self) -> Option<String> {
        /// Kinds that are named one by one.
        const NAMED: usize = 8;
        let mut kinds: Vec<&Kind> = self.kinds.iter().collect();
        kinds.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.one.cmp(&b.one)));
        let (named, more) = kinds.split_at(kinds.len().min(NAMED));
        let part = |kind: &&Kind| match kind.count {
            1 => format!("1 {} ({})", kind.one, crate::text::name(&kind.first)),
            count => format!("{count} {} (first {})", kind.many, crate::text::name(&kind.first)),
        };
        let mut parts: Vec<String> = named.iter().map(part).collect();
        if !more.is_empty() {
            parts.push(format!(
                "{} of other kinds",
                more.iter().map(|kind| kind.count).sum::<usize>()
            ));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

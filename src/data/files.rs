//! Files as data sets take them: regular ones, and none vanishes because it cannot be looked at.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, File, FileType};
use std::io::{self, Cursor, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DataError;
use super::error::FOLLOW;

/// Where the files of a data set are.
#[derive(Clone, Debug, Default)]
pub enum Files {
    /// In folders of this machine.
    #[default]
    Disk,
    /// In memory, as a page has those that it was given.
    Memory(Arc<FileTree>),
}

/// Files in memory, by paths whose folders follow from them.
#[derive(Default)]
pub struct FileTree {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl std::fmt::Debug for FileTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} files", self.files.len())
    }
}

impl FileTree {
    /// Adds a file, or replaces the one that is there.
    pub fn add(&mut self, path: impl Into<PathBuf>, bytes: Vec<u8>) {
        self.files.insert(path.into(), bytes);
    }

    /// Whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The folder that holds all files. Of a tree of images it is the one above `train`, also where
    /// that is the only folder in it.
    pub fn root(&self) -> PathBuf {
        let mut root = PathBuf::new();
        loop {
            match &self.list(&root)[..] {
                [(name, Kind::Folder)] if name != "train" => root.push(name),
                _ => return root,
            }
        }
    }

    fn look(&self, path: &Path) -> Option<Found> {
        // What is in a folder follows its path.
        let (first, bytes) = self.files.range(path.to_owned()..).next()?;
        if first == path {
            return Some(Found { kind: Kind::File, length: bytes.len() as u64 });
        }
        first.starts_with(path).then_some(Found { kind: Kind::Folder, length: 0 })
    }

    fn list(&self, dir: &Path) -> Vec<(OsString, Kind)> {
        let mut found: Vec<(OsString, Kind)> = Vec::new();
        let inside = self.files.range(dir.to_owned()..).map(|(path, _)| path.strip_prefix(dir));
        for path in inside.map_while(Result::ok) {
            let mut names = path.iter();
            let Some(name) = names.next().filter(|name| visible(name)) else { continue };
            if found.last().is_none_or(|(last, _)| last != name) {
                let kind = if names.next().is_some() { Kind::Folder } else { Kind::File };
                found.push((name.to_owned(), kind));
            }
        }
        found
    }
}

/// What something in a folder is, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// Neither; what it is, with its article.
    Other(&'static str),
}

impl Kind {
    fn describe(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::Other(what) => what,
        }
    }
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        if kind.is_file() {
            return Self::File;
        }
        if kind.is_dir() {
            return Self::Folder;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            if kind.is_char_device() || kind.is_block_device() {
                return Self::Other("a device");
            }
            if kind.is_fifo() {
                return Self::Other("a pipe");
            }
            if kind.is_socket() {
                return Self::Other("a socket");
            }
        }
        Self::Other("something else")
    }
}

/// What lies at a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// Bytes of a file.
    pub(super) length: u64,
}

/// An open file.
pub(super) trait Opened: Read + Seek {}

impl<T: Read + Seek> Opened for T {}

impl Files {
    /// What lies at a path, links followed; `None` if nothing does.
    ///
    /// # Errors
    /// [`DataError::Io`] if a link leads nowhere, or the path cannot be looked at.
    pub(super) fn look(&self, path: &Path) -> Result<Option<Found>, DataError> {
        if let Self::Memory(memory) = self {
            return Ok(memory.look(path));
        }
        match fs::metadata(path) {
            Ok(found) => Ok(Some(Found { kind: found.file_type().into(), length: found.len() })),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
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
    /// As [`Files::look`].
    pub(super) fn is_folder(&self, path: &Path) -> Result<bool, DataError> {
        Ok(self.look(path)?.is_some_and(|found| found.kind == Kind::Folder))
    }

    /// Whether anything lies at a path. What cannot be looked at does: opening it says why.
    pub(super) fn is_there(&self, path: &Path) -> bool {
        !matches!(self.look(path), Ok(None))
    }

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// [`DataError::Io`] if nothing is there or it cannot be looked at.
    pub(super) fn length(&self, path: &Path) -> Result<u64, DataError> {
        let found = self.look(path)?;
        let missing = || DataError::io("read", path)(ErrorKind::NotFound.into());
        found.map(|found| found.length).ok_or_else(missing)
    }

    /// [`open_regular`] for files of data.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(super) fn open(&self, path: &Path) -> Result<Box<dyn Opened + '_>, DataError> {
        match self {
            Self::Disk => Ok(Box::new(open(path)?)),
            Self::Memory(memory) => match memory.files.get(path) {
                Some(bytes) => Ok(Box::new(Cursor::new(&bytes[..]))),
                None => Err(DataError::io("read", path)(ErrorKind::NotFound.into())),
            },
        }
    }

    /// Visible entries of a folder by name, bytewise, with what they are; links are followed.
    ///
    /// # Errors
    /// [`DataError::Io`] if the folder cannot be listed, or one of its entries not be looked at.
    pub(super) fn list(&self, dir: &Path) -> Result<Vec<(OsString, Kind)>, DataError> {
        if let Self::Memory(memory) = self {
            return Ok(memory.list(dir));
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
            let entry = entry.map_err(DataError::io("list", dir))?;
            let name = entry.file_name();
            if visible(&name) {
                found.push((name, self.kind(&entry)?));
            }
        }
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn kind(&self, entry: &DirEntry) -> Result<Kind, DataError> {
        let path = entry.path();
        let kind = entry.file_type().map_err(DataError::io("read", &path))?;
        if !kind.is_symlink() {
            return Ok(kind.into()); // listing has told it; a million files are not asked one by one
        }
        match self.look(&path)? {
            Some(found) => Ok(found.kind),
            None => Err(DataError::io("read", &path)(ErrorKind::NotFound.into())),
        }
    }
}

fn visible(name: &OsStr) -> bool {
    !name.as_encoded_bytes().starts_with(b".")
}

/// Opens a regular file, or a link to one. A folder, a device or a pipe is an error: reading it
/// could wait or go on forever.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is none of these; those of the system.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a pipe waits until somebody writes to it.
    let kind = Kind::from(fs::metadata(path)?.file_type());
    if kind != Kind::File {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("it is {}, not a file", kind.describe()),
        ));
    }
    File::open(path)
}

/// The content of a file, which must be one.
///
/// # Errors
/// As [`open_regular`].
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// [`open_regular`] for files of data on disk.
///
/// # Errors
/// [`DataError::Io`].
pub(super) fn open(path: &Path) -> Result<File, DataError> {
    open_regular(path).map_err(DataError::io("read", path))
}

/// Entries that were not read, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    kinds: Vec<Count>,
}

/// Entries of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    one: String,
    many: String,
    count: usize,
    /// The first of them, as a path from the folder that the count is about.
    first: OsString,
}

impl Unread {
    /// Counts an entry.
    pub(super) fn add(&mut self, name: &OsStr, kind: Kind) {
        let [one, many] = if kind == Kind::File {
            match Path::new(name).extension().map(OsStr::to_ascii_lowercase) {
                Some(extension) => ["file", "files"]
                    .map(|what| format!(".{} {what}", crate::text::name(&extension))),
                None => ["file", "files"].map(|what| format!("{what} without an extension")),
            }
        } else {
            let what = kind.describe().trim_start_matches("a ");
            [what.to_owned(), format!("{what}s")]
        };
        self.count(Count { one, many, count: 1, first: name.to_owned() });
    }

    /// Counts what another counted in `folder`.
    pub(super) fn merge(&mut self, other: Self, folder: &Path) {
        for kind in other.kinds {
            self.count(Count { first: folder.join(&kind.first).into_os_string(), ..kind });
        }
    }

    fn count(&mut self, kind: Count) {
        match self.kinds.iter_mut().find(|known| known.one == kind.one) {
            Some(known) => known.count += kind.count,
            None => self.kinds.push(kind),
        }
    }

    /// What is said of a folder with these; nothing if all was read.
    pub(super) fn note(&self, dir: &Path) -> Vec<String> {
        let line =
            |text| format!("`{}` holds entries that are not read: {text}", crate::text::name(dir));
        self.text().map(line).into_iter().collect()
    }

    /// "3 folders (first ant/old), 1 .gif file (ant/a.gif)", the most first; `None` if all was
    /// read.
    pub(super) fn text(&self) -> Option<String> {
        /// Kinds that are named one by one.
        const NAMED: usize = 8;
        let mut kinds: Vec<&Count> = self.kinds.iter().collect();
        kinds.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.one.cmp(&b.one)));
        let (named, more) = kinds.split_at(kinds.len().min(NAMED));
        let part = |kind: &&Count| match kind.count {
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

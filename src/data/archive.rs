//! Official archives of binary files: what they hold, what proves a download, where their files lie
//! on disk.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use md5::Md5;
use sha2::{Digest, Sha256};

use super::DataError;
use super::files::{self, Files, Unread};
use crate::text::name;

/// The archives that can be downloaded.
pub const ALL: [Archive<'static>; 2] = [CIFAR10, STL10];

/// CIFAR-10's binary version, 162 MiB.
pub const CIFAR10: Archive<'static> = Archive {
    title: "CIFAR-10",
    dataset: "cifar10",
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    checksum: Checksum::Sha256("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    folder: "cifar-10-batches-bin",
    // 10,000 records of a label and an image each.
    files: &[
        ("data_batch_1.bin", 10_000 * 3_073),
        ("data_batch_2.bin", 10_000 * 3_073),
        ("data_batch_3.bin", 10_000 * 3_073),
        ("data_batch_4.bin", 10_000 * 3_073),
        ("data_batch_5.bin", 10_000 * 3_073),
        ("test_batch.bin", 10_000 * 3_073),
    ],
    texts: &["batches.meta.txt", "readme.html"],
};

/// STL-10's binary version, 2.5 GiB. Its address and digest are those in torchvision, which has no
/// digest but MD5.
pub const STL10: Archive<'static> = Archive {
    title: "STL-10",
    dataset: "stl10",
    url: "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    checksum: Checksum::Md5("91f7769df0f17e558f3565bffb0c7dfb"),
    folder: "stl10_binary",
    files: &[
        ("train_X.bin", 5_000 * 27_648),
        ("train_y.bin", 5_000),
        ("test_X.bin", 8_000 * 27_648),
        ("test_y.bin", 8_000),
        ("unlabeled_X.bin", 100_000 * 27_648),
    ],
    texts: &["class_names.txt", "fold_indices.txt"],
};

/// An official archive (`.tar.gz`) of binary files.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    /// Name of the data set, for people.
    pub title: &'a str,
    /// Name of the data set, for `--dataset`.
    pub dataset: &'a str,
    /// Where it is; its last part names the file on disk.
    pub url: &'a str,
    /// What proves a download.
    pub checksum: Checksum<'a>,
    /// The folder inside it.
    pub folder: &'a str,
    /// The data files, all needed, and their lengths in bytes.
    pub files: &'a [(&'static str, u64)],
    /// Files beside the data that are unpacked where there are any.
    pub texts: &'a [&'static str],
}

impl Archive<'_> {
    /// The folder that holds any of the data files: `dir`, or the archive's own folder in it.
    pub(super) fn locate(&self, files: &Files, dir: &Path) -> Option<PathBuf> {
        let holds =
            |dir: &PathBuf| self.files.iter().any(|(name, _)| files.is_there(&dir.join(name)));
        [dir.to_owned(), dir.join(self.folder)].into_iter().find(holds)
    }

    /// The folder that holds all of the data files, of whatever length.
    ///
    /// # Errors
    /// [`DataError::Missing`] names the file that is not there.
    pub(super) fn find(&self, files: &Files, dir: &Path) -> Result<PathBuf, DataError> {
        let Some(found) = self.locate(files, dir) else {
            if !files.is_folder(dir)? {
                let hint = Some(format!(
                    "name the folder that holds the {} binary files, or `--download` them to it",
                    self.title
                ));
                if files.look(dir)?.is_some() {
                    return Err(DataError::NoFolderThere { path: dir.to_owned(), hint });
                }
                return Err(DataError::Missing { what: "data folder", path: dir.to_owned(), hint });
            }
            let inner = name(&dir.join(self.folder)).to_string();
            let hint = mistaken(files, dir).unwrap_or_else(|| {
                format!("expected it there or in `{inner}`; the archive is {}", self.url)
            });
            return Err(DataError::Missing {
                what: "data file",
                path: dir.join(self.files[0].0),
                hint: Some(hint),
            });
        };
        match self.files.iter().find(|(name, _)| !files.is_there(&found.join(name))) {
            None => Ok(found),
            Some((name, _)) => {
                let names: Vec<_> = self.files.iter().map(|(name, _)| *name).collect();
                let hint = Some(format!("{} needs all of {}", self.title, names.join(", ")));
                Err(DataError::Missing { what: "data file", path: found.join(name), hint })
            }
        }
    }

    /// What is said of the entries that lie beside its data files and are not read.
    ///
    /// # Errors
    /// As [`Archive::find`] and [`Files::list`].
    pub(super) fn notes(&self, files: &Files, dir: &Path) -> Result<Vec<String>, DataError> {
        let folder = &self.find(files, dir)?;
        let known = |name: &OsStr| {
            let own = self.files.iter().map(|(name, _)| *name).chain(self.texts.iter().copied());
            own.chain([self.file_name()]).any(|own| name == own)
        };
        let mut unread = Unread::default();
        for (name, kind) in files.list(folder)? {
            if !known(&name) {
                unread.add(&name, kind);
            }
        }
        Ok(unread.note(folder))
    }

    /// Name of the archive's file.
    pub(super) fn file_name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(self.dataset)
    }
}

/// A digest in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum<'a> {
    /// A SHA-256, as hexadecimal digits.
    Sha256(&'a str),
    /// MD5: enough against damage, and no second file with a given digest is known; where nothing
    /// better is published.
    Md5(&'a str),
}

impl<'a> Checksum<'a> {
    /// Name of the algorithm, for people.
    pub fn algorithm(self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Md5(_) => "MD5",
        }
    }

    /// The expected digits.
    pub fn digits(self) -> &'a str {
        let (Self::Sha256(digits) | Self::Md5(digits)) = self;
        digits
    }

    /// Length of a file and its digest by the same algorithm, in lower-case digits.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of(self, path: &Path) -> Result<(u64, String), DataError> {
        match self {
            Self::Sha256(_) => digest::<Sha256>(path),
            Self::Md5(_) => digest::<Md5>(path),
        }
    }

    /// Whether a digest of [`Checksum::of`] is the expected one.
    pub fn matches(self, found: &str) -> bool {
        found.eq_ignore_ascii_case(self.digits())
    }
}

fn digest<D: Digest>(path: &Path) -> Result<(u64, String), DataError> {
    let mut file = files::open(path)?;
    let mut hash = D::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer).map_err(DataError::io("read", path))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        length += n as u64;
    }
    Ok((length, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// What a folder that lacks the files asked for seems to hold, as a hint.
pub(super) fn mistaken(files: &Files, dir: &Path) -> Option<String> {
    let there = |name: &str| files.is_there(&dir.join(name));
    if let Some(archive) = ALL.iter().find(|archive| archive.locate(files, dir).is_some()) {
        return Some(format!(
            "these are {} binary files; use `--dataset {}`",
            archive.title, archive.dataset
        ));
    }
    if let Some(archive) = ALL.iter().find(|archive| there(archive.file_name())) {
        return Some(format!(
            "`{}` lies there, still packed: `--dataset {} --download` unpacks it, without fetching \
             it again if it is whole",
            archive.file_name(),
            archive.dataset
        ));
    }
    if let Some(found) = ["cifar-10-batches-py", "data_batch_1", "cifar-10-python.tar.gz"]
        .into_iter()
        .find(|name| there(name))
    {
        return Some(format!(
            "`{found}` is of CIFAR-10's Python version; `--dataset cifar10` reads the binary \
             version: `--download` fetches it"
        ));
    }
    let cifar100 = [
        "cifar-100-binary",
        "cifar-100-python",
        "cifar-100-binary.tar.gz",
        "cifar-100-python.tar.gz",
        "fine_label_names.txt",
        "meta",
    ];
    if let Some(found) = cifar100.into_iter().find(|name| there(name)) {
        return Some(format!(
            "`{found}` is of CIFAR-100, which is not read as it is; `--dataset folder` reads its \
             images as files, <split>/<class>/{}",
            super::IMAGE_FILES
        ));
    }
    files
        .is_folder(&dir.join("train"))
        .unwrap_or(false)
        .then(|| "this looks like a tree of image files; use `--dataset folder`".into())
}

/// The class names in a file of one name a line; the official ones where there is no such file.
pub(super) fn class_names(
    files: &Files,
    path: &Path,
    official: &[&str],
) -> Result<Vec<OsString>, DataError> {
    /// More than any list of ten names.
    const MAX_BYTES: u64 = 1 << 20;
    if !files.is_there(path) {
        return Ok(official.iter().map(|&name| name.into()).collect());
    }
    let mut text = String::new();
    files
        .open(path)?
        .take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(DataError::io("read", path))?;
    let names: Vec<OsString> =
        text.lines().map(str::trim).filter(|s| !s.is_empty()).map(OsString::from).collect();
    if names.len() != official.len() {
        return Err(DataError::ClassNames {
            path: path.to_owned(),
            expected: official.len(),
            found: names.len(),
        });
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests of "abc" that RFC 1321 and FIPS 180-4 give.
    #[test]
    fn digests_are_the_published_ones() {
        let md5 = Checksum::Md5("900150983CD24FB0D6963F7D28E17F72");
        let sha =
            Checksum::Sha256("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").expect("written");
        for checksum in [md5, sha] {
            let (length, found) = checksum.of(&path).expect("a readable file");
            assert!(
                length == 3 && checksum.matches(&found) && found == found.to_ascii_lowercase(),
                "{checksum:?}: {found}"
            );
            assert!(!checksum.matches(&found[1..]));
        }
    }
}

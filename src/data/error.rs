//! What can go wrong with data.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::Kind;
use crate::text::name;

/// What [`DataError::Io`] tried with a link that leads nowhere.
pub(super) const FOLLOW: &str = "follow the link";

/// What can go wrong with data. The message names the file and the numbers; [`DataError::hint`]
/// says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused an operation on a file or folder.
    #[error("cannot {action} `{}`: {source}", name(path))]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file or folder that the data set needs does not exist.
    #[error("{what} not found: `{}`", name(path))]
    Missing {
        /// What it would have been.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Something else lies where the folder of a data set should be.
    #[error("`{}` is not a folder", name(path))]
    NoFolderThere {
        /// Where it was looked for.
        path: PathBuf,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A CIFAR-10 file has the wrong length.
    #[error("`{}` has {found} bytes, expected {expected} ({records} records of {} \
        bytes)", name(path), expected / (*records as u64).max(1))]
    FileSize {
        /// The file of the wrong length.
        path: PathBuf,
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        found: u64,
        /// Records it should have.
        records: usize,
    },
    /// A file of STL-10 images ends within an image, or holds none.
    #[error(
        "`{}` has {found} bytes, expected a multiple of {image} (one image); the official file has \
         {official}",
        name(path)
    )]
    PartialImages {
        /// The file of the wrong length.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes of an image.
        image: usize,
        /// Bytes of the official file.
        official: u64,
    },
    /// A file of STL-10 labels belongs to other images.
    #[error("`{}` has {labels} labels, expected one for each of the {images} images", name(path))]
    LabelCount {
        /// The file of labels.
        path: PathBuf,
        /// Images they are for.
        images: usize,
        /// Labels that were found.
        labels: usize,
    },
    /// A record of a binary file carries a label that is no class.
    #[error("`{}`: record {record} has label {label}, expected {first} to {last}", name(path))]
    Label {
        /// The file that has it.
        path: PathBuf,
        /// Zero-based record in that file.
        record: usize,
        /// The label found.
        label: u8,
        /// The lowest label.
        first: u8,
        /// The highest label.
        last: u8,
    },
    /// The list of class names has the wrong length.
    #[error("`{}` names {found} classes, expected {expected}", name(path))]
    ClassNames {
        /// The file that lists them.
        path: PathBuf,
        /// Names that there should be.
        expected: usize,
        /// Names that were found.
        found: usize,
    },
    /// A split folder has no class folders.
    #[error("`{}` has no class folders", name(path))]
    NoClasses {
        /// The split folder.
        path: PathBuf,
    },
    /// A class folder has no images.
    #[error("`{}` has no images ({entries})", name(path))]
    EmptyClass {
        /// The class folder.
        path: PathBuf,
        /// What it holds instead, in words.
        entries: String,
    },
    /// Two splits do not have the same classes.
    #[error(
        "`{}` has {left_count} classes and `{}` has {right_count}; class `{}` is only in `{}`",
        name(left),
        name(right),
        name(class),
        name(only_in)
    )]
    ClassMismatch {
        /// One split folder, usually `train`.
        left: PathBuf,
        /// The other one.
        right: PathBuf,
        /// Classes in `left`.
        left_count: usize,
        /// Classes in `right`.
        right_count: usize,
        /// First class, by name, that only one of them has.
        class: OsString,
        /// The one that has it.
        only_in: PathBuf,
    },
    /// An image file cannot be decoded.
    #[error("cannot decode `{}`: {source}", name(path))]
    Decode {
        /// The image's file.
        path: PathBuf,
        /// The decoder's answer.
        source: Box<image::ImageError>,
    },
    /// The data set has no images of the size asked for.
    #[error("image size {found} does not fit data set `{dataset}`, expected {expected}")]
    ImageSize {
        /// Name of the data set.
        dataset: &'static str,
        /// The sizes it has.
        expected: &'static str,
        /// The size asked for.
        found: usize,
    },
    /// A data set that reads files was opened without a folder.
    #[error("data set `{dataset}` needs a folder")]
    NoFolder {
        /// Name of the data set.
        dataset: &'static str,
    },
    /// No data set has this name.
    #[error("unknown data set `{found}`, expected one of {}", Kind::NAMES.join(", "))]
    UnknownKind {
        /// The name asked for.
        found: String,
    },
    /// One batch is larger than the whole set, so an epoch would have no steps.
    #[error("batch size {batch} is larger than the set of {available} images")]
    BatchTooLarge {
        /// Images in a batch.
        batch: usize,
        /// Images in the set.
        available: usize,
    },
    /// A batch of no images.
    #[error("batch size is 0, expected at least 1")]
    BatchZero,
    /// More images are asked for than there are.
    #[error("{what} {asked} is more than the {available} images available")]
    TooFew {
        /// The option or split that asks for them.
        what: &'static str,
        /// Images asked for.
        asked: usize,
        /// Images that there are.
        available: usize,
    },
    /// The server did not answer with the file.
    #[error("{url} answered with HTTP status {status}, expected 200 or 206")]
    HttpStatus {
        /// What was asked for.
        url: String,
        /// The status code.
        status: u16,
    },
    /// The server could not be reached.
    #[error("cannot fetch {url}: {source}")]
    Connect {
        /// What was asked for.
        url: String,
        /// Why it could not be reached.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection ended before the file did.
    #[error("download of {url} stopped after {received} bytes, expected {}: \
        {reason}", known(*expected))]
    Interrupted {
        /// What was asked for.
        url: String,
        /// Bytes on disk, including those of earlier tries.
        received: u64,
        /// Length of the file, where the server said.
        expected: Option<u64>,
        /// What ended it.
        reason: String,
    },
    /// A downloaded file is not the one expected.
    #[error("`{}` ({bytes} bytes) has {algorithm} {found}, expected {expected}", name(path))]
    Checksum {
        /// The download, moved aside under this name.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
        /// Name of the digest.
        algorithm: &'static str,
        /// Expected digest, hexadecimal.
        expected: String,
        /// Digest of the download, hexadecimal.
        found: String,
    },
    /// A downloaded archive is damaged or holds the wrong files.
    #[error("cannot unpack `{}`: {reason}", name(path))]
    Archive {
        /// The archive that is damaged.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process is downloading to the same place.
    #[error("`{}` is being written by another process", name(path))]
    Busy {
        /// The partial file.
        path: PathBuf,
    },
    /// The operating system refused a thread.
    #[error("cannot start the thread `{name}`: {source}")]
    Thread {
        /// Name of the thread.
        name: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Whoever waited for images was asked to end.
    #[error("reading images was stopped")]
    Stopped,
}

fn known(length: Option<u64>) -> String {
    length.map_or_else(|| "an unknown number".to_owned(), |n| n.to_string())
}

impl DataError {
    /// What the user can do about it, as one sentence without a full stop.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { hint, .. } | Self::NoFolderThere { hint, .. } => return hint.clone(),
            Self::Io { action: FOLLOW, .. } => "the link leads nowhere: mend or remove it".into(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                "only regular files and links to them are read".into()
            }
            Self::Io { .. } | Self::ClassNames { .. } | Self::Stopped => return None,
            Self::Thread { .. } => "the limit on processes and threads (`ulimit -u`) may be too \
                low"
            .into(),
            Self::FileSize { .. }
            | Self::PartialImages { .. }
            | Self::LabelCount { .. }
            | Self::Label { .. } => {
                "the file is damaged or is not an official binary file; download it again".into()
            }
            Self::NoClasses { .. } | Self::EmptyClass { .. } => {
                let images = super::IMAGE_FILES;
                format!(
                    "the layout is <DIR>/<split>/<class>/{images} with the splits train, test \
                    and (optional) val"
                )
            }
            Self::ClassMismatch { .. } => "every split needs the same class folders".into(),
            Self::Decode { path, .. } => format!("replace or remove `{}`", name(path)),
            Self::ImageSize { dataset: "stl10", .. } => {
                "`pretrain --dataset stl10` sets the size; a network keeps the size it was trained \
                 with"
                    .into()
            }
            Self::ImageSize { .. } => "`--dataset folder` resizes images to any side".into(),
            Self::NoFolder { dataset } => {
                format!(
                    "name the folder of `{dataset}` with `--data-dir`, or use `--dataset \
                    shapes`, which needs no files"
                )
            }
            Self::UnknownKind { .. } => "`--dataset shapes` needs no files".into(),
            Self::BatchTooLarge { available: 0, .. } => "the set is empty".into(),
            Self::BatchTooLarge { available, .. } => format!(
                "`--batch-size {available}` is the \
                largest that fits"
            ),
            Self::BatchZero => "`--batch-size 1` is the smallest".into(),
            Self::TooFew { available, .. } => format!("{available} is the most that fits"),
            Self::HttpStatus { .. } | Self::Connect { .. } => {
                "check the network (HTTPS_PROXY is respected), or place the files by hand".into()
            }
            Self::Interrupted { received, .. } => {
                format!("run the same command again: it continues after byte {received}")
            }
            Self::Checksum { .. } | Self::Archive { .. } => {
                "run the same command again to download afresh; if it happens twice, the server's \
                 file has changed"
                    .into()
            }
            Self::Busy { .. } => "wait for the other download to end".into(),
        })
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

//! STL-10 in its official binary layout.
//!
//! `unlabeled_X.bin` holds 100,000 images to pretrain on, `train_X.bin` 5,000 and `test_X.bin`
//! 8,000 images whose labels, 1 to 10, are the bytes of `train_y.bin` and `test_y.bin`. An image is
//! 27,648 bytes: 96x96 red, then green, then blue, each column by column:
//!
//! ```text
//! pixel (y, x) of channel c = byte[c 96^2 + 96 x + y]
//! ```
//!
//! The files of images (3.1 GB) are mapped into memory and turned to HWC image by image, when a
//! batch needs them. Files of fewer images than the official ones are taken as they are.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;

use super::archive::{STL10, class_names};
use super::{DataError, Dataset, Files, files};

/// Side of an image in pixels.
pub const SIZE: usize = 96;
/// Bytes of an image.
pub const IMAGE_BYTES: usize = 3 * PLANE;
/// Name of the folder inside the official archive.
pub const FOLDER: &str = STL10.folder;
/// The optional list of class names.
pub const META_FILE: &str = STL10.texts[0];

/// Mean of the pixels in [0, 1], per channel.
pub const MEAN: [f32; 3] = [0.43, 0.42, 0.39];
/// Standard deviation of the pixels in [0, 1], per channel.
pub const STD: [f32; 3] = [0.27, 0.26, 0.27];

const PLANE: usize = SIZE * SIZE;
const _: () = assert!(STL10.files[1].1 * IMAGE_BYTES as u64 == STL10.files[0].1);
const CLASSES: [&str; 10] =
    ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];

/// One of the three sets; images stay in their file.
pub struct Stl10 {
    classes: Vec<OsString>,
    labels: Option<Vec<u8>>, // from 0
    images: Mmap,            // [N, 3, 96 columns, 96 rows]
}

/// What is in a folder of STL-10.
pub struct Sets {
    /// Images to pretrain on, without labels.
    pub unlabelled: Stl10,
    /// Images to train classifiers on.
    pub train: Stl10,
    /// Images to test classifiers on.
    pub test: Stl10,
}

impl Stl10 {
    /// Opens the sets in `dir` or in `dir/stl10_binary`.
    ///
    /// # Errors
    /// [`DataError::Missing`] names the file that is not there, [`DataError::PartialImages`] a file
    /// that holds no whole number of images, [`DataError::LabelCount`] images and labels that
    /// differ in number, [`DataError::Label`] a label that is not 1 to 10.
    pub fn open(dir: &Path) -> Result<Sets, DataError> {
        let dir = STL10.find(&Files::Disk, dir)?;
        let classes = class_names(&Files::Disk, &dir.join(META_FILE), &CLASSES)?;
        let labelled = |part: &str| {
            let (images, labels) =
                (dir.join(format!("{part}_X.bin")), dir.join(format!("{part}_y.bin")));
            let images = map(&images)?;
            Ok(Self {
                classes: classes.clone(),
                labels: Some(read_labels(&labels, images.len() / IMAGE_BYTES)?),
                images,
            })
        };
        let unlabelled = map(&dir.join("unlabeled_X.bin"))?;
        Ok(Sets {
            unlabelled: Self {
                classes: vec![OsString::from("unlabelled")],
                labels: None,
                images: unlabelled,
            },
            train: labelled("train")?,
            test: labelled("test")?,
        })
    }
}

impl Dataset for Stl10 {
    fn name(&self) -> &str {
        "stl10"
    }

    fn len(&self) -> usize {
        self.images.len() / IMAGE_BYTES
    }

    fn image_size(&self) -> usize {
        SIZE
    }

    /// Of the images without labels: one class, "unlabelled".
    fn classes(&self) -> &[OsString] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.labels.as_ref().map_or(0, |labels| labels[index].into())
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        let planes = &self.images[index * IMAGE_BYTES..][..IMAGE_BYTES];
        for (i, rgb) in out.chunks_exact_mut(3).enumerate() {
            let at = i % SIZE * SIZE + i / SIZE;
            rgb.copy_from_slice(&[planes[at], planes[PLANE + at], planes[2 * PLANE + at]]);
        }
        Ok(())
    }

    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        (MEAN, STD)
    }
}

/// Maps a file of images.
#[allow(unsafe_code, reason = "a mapped file is a slice as long as nobody shortens the file")]
fn map(path: &Path) -> Result<Mmap, DataError> {
    let file = files::open(path)?;
    let found = file.metadata().map_err(DataError::io("read", path))?.len();
    if found == 0 || !found.is_multiple_of(IMAGE_BYTES as u64) {
        let official = STL10
            .files
            .iter()
            .find(|(name, _)| path.ends_with(name))
            .map_or(0, |(_, length)| *length);
        return Err(DataError::PartialImages {
            path: path.to_owned(),
            found,
            image: IMAGE_BYTES,
            official,
        });
    }
    // SAFETY: nothing is written through the map, and the downloader puts new files in the place of
    // old ones and never writes to one that can be open here. A user who shortens a file under a
    // running program ends it.
    unsafe { Mmap::map(&file) }.map_err(DataError::io("map", path))
}

/// The labels of `images` images, from 0.
fn read_labels(path: &Path, images: usize) -> Result<Vec<u8>, DataError> {
    let mut labels = Vec::new();
    files::open(path)?.read_to_end(&mut labels).map_err(DataError::io("read", path))?;
    if labels.len() != images {
        return Err(DataError::LabelCount { path: path.to_owned(), images, labels: labels.len() });
    }
    let last = CLASSES.len() as u8;
    if let Some((record, &label)) =
        labels.iter().enumerate().find(|(_, label)| !(1..=last).contains(*label))
    {
        return Err(DataError::Label { path: path.to_owned(), record, label, first: 1, last });
    }
    labels.iter_mut().for_each(|label| *label -= 1);
    Ok(labels)
}

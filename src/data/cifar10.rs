//! CIFAR-10 in its official binary layout.
//!
//! A file holds 10,000 records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024
//! blue bytes, row by row. `data_batch_1.bin` to `data_batch_5.bin` are the training set in this
//! order, `test_batch.bin` is the test set. Images are turned to HWC on opening and kept in memory
//! (150 MiB).

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::archive::{CIFAR10, class_names};
use super::{DataError, Dataset, Files};

/// Bytes of a record: the label and a planar 32x32 RGB image.
pub const RECORD_BYTES: usize = 1 + IMAGE_BYTES;
/// Records of each official file.
pub const FILE_RECORDS: usize = 10_000;
/// Name of the folder inside the official archive.
pub const FOLDER: &str = CIFAR10.folder;
/// The training files, in order.
pub const TRAIN_FILES: [&str; 5] = [
    CIFAR10.files[0].0,
    CIFAR10.files[1].0,
    CIFAR10.files[2].0,
    CIFAR10.files[3].0,
    CIFAR10.files[4].0,
];
/// The test file.
pub const TEST_FILE: &str = CIFAR10.files[5].0;
/// The optional list of class names.
pub const META_FILE: &str = CIFAR10.texts[0];

/// Mean of the training pixels in [0, 1], per channel.
pub const MEAN: [f32; 3] = [125.3 / 255.0, 123.0 / 255.0, 113.9 / 255.0];
/// Standard deviation of the training pixels in [0, 1], per channel.
pub const STD: [f32; 3] = [63.0 / 255.0, 62.1 / 255.0, 66.7 / 255.0];

const SIZE: usize = 32;
const PLANE: usize = SIZE * SIZE;
const IMAGE_BYTES: usize = 3 * PLANE;
const _: () = assert!(CIFAR10.files[0].1 == (FILE_RECORDS * RECORD_BYTES) as u64);
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// One of the two sets, in memory.
pub struct Cifar10 {
    classes: Vec<OsString>,
    labels: Vec<u8>,
    pixels: Vec<u8>, // [N, 32, 32, 3]
}

impl Cifar10 {
    /// Opens the training and the test set in `dir` or in `dir/cifar-10-batches-bin`.
    ///
    /// # Errors
    /// [`DataError::Missing`] names the file that is not there, [`DataError::FileSize`] a file that
    /// is not exactly 10,000 records long, [`DataError::Label`] a record whose label is above 9.
    pub fn open(dir: &Path) -> Result<(Self, Self), DataError> {
        Self::open_in(&Files::Disk, dir)
    }

    /// [`Cifar10::open`] of files wherever they are.
    ///
    /// # Errors
    /// As [`Cifar10::open`].
    pub fn open_in(files: &Files, dir: &Path) -> Result<(Self, Self), DataError> {
        let dir = CIFAR10.find(files, dir)?;
        let classes = class_names(files, &dir.join(META_FILE), &CLASSES)?;
        let train: Vec<PathBuf> = TRAIN_FILES.iter().map(|name| dir.join(name)).collect();
        let test = [dir.join(TEST_FILE)];
        // Sizes first: a truncated last file is reported before 150 MiB are read.
        for path in train.iter().chain(&test) {
            check_size(files, path, FILE_RECORDS)?;
        }
        Ok((
            Self::read_all(files, &train, FILE_RECORDS, classes.clone())?,
            Self::read_all(files, &test, FILE_RECORDS, classes)?,
        ))
    }

    /// Reads files of `records` records each. [`Cifar10::open`] is this with 10,000; tests write
    /// smaller files.
    ///
    /// # Errors
    /// As [`Cifar10::open`].
    ///
    /// # Panics
    /// If there are not ten class names.
    pub fn from_files(
        paths: &[PathBuf],
        records: usize,
        classes: Vec<OsString>,
    ) -> Result<Self, DataError> {
        Self::read_all(&Files::Disk, paths, records, classes)
    }

    fn read_all(
        files: &Files,
        paths: &[PathBuf],
        records: usize,
        classes: Vec<OsString>,
    ) -> Result<Self, DataError> {
        assert_eq!(classes.len(), CLASSES.len(), "CIFAR-10 has ten classes");
        let mut labels = Vec::with_capacity(paths.len() * records);
        let mut pixels = vec![0; paths.len() * records * IMAGE_BYTES];
        let mut images = pixels.chunks_exact_mut(IMAGE_BYTES);
        for path in paths {
            check_size(files, path, records)?;
            let mut bytes = Vec::with_capacity(records * RECORD_BYTES);
            files.open(path)?.read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
            if bytes.len() != records * RECORD_BYTES {
                return Err(wrong_size(path, records, bytes.len() as u64));
            }
            // Files first in `zip`: it must not take an image when the file is at its end.
            for (record, image) in bytes.chunks_exact(RECORD_BYTES).zip(&mut images) {
                let (label, planes) = (record[0], &record[1..]);
                if usize::from(label) >= CLASSES.len() {
                    let record = labels.len() % records;
                    return Err(DataError::Label {
                        path: path.clone(),
                        record,
                        label,
                        first: 0,
                        last: CLASSES.len() as u8 - 1,
                    });
                }
                labels.push(label);
                for (i, rgb) in image.chunks_exact_mut(3).enumerate() {
                    rgb.copy_from_slice(&[planes[i], planes[PLANE + i], planes[2 * PLANE + i]]);
                }
            }
        }
        Ok(Self { classes, labels, pixels })
    }

    /// The official class names, in label order.
    pub fn class_names() -> Vec<OsString> {
        CLASSES.map(OsString::from).to_vec()
    }
}

impl Dataset for Cifar10 {
    fn name(&self) -> &str {
        "cifar10"
    }

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn image_size(&self) -> usize {
        SIZE
    }

    fn classes(&self) -> &[OsString] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index].into()
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        out.copy_from_slice(&self.pixels[index * IMAGE_BYTES..][..IMAGE_BYTES]);
        Ok(())
    }

    fn identify(&self, index: usize, sink: &mut dyn FnMut(&[u8])) {
        sink(&crc32c::crc32c(&self.pixels[index * IMAGE_BYTES..][..IMAGE_BYTES]).to_le_bytes());
    }

    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        (MEAN, STD)
    }
}

fn check_size(files: &Files, path: &Path, records: usize) -> Result<(), DataError> {
    let found = files.length(path)?;
    if found == (records * RECORD_BYTES) as u64 {
        Ok(())
    } else {
        Err(wrong_size(path, records, found))
    }
}

fn wrong_size(path: &Path, records: usize, found: u64) -> DataError {
    DataError::FileSize {
        path: path.to_owned(),
        expected: (records * RECORD_BYTES) as u64,
        found,
        records,
    }
}

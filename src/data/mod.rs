//! Data sets: where images come from, how they are split, and how batches reach the trainer.
//!
//! - [`cifar10`] and [`stl10`] read the official binary files, [`folder`] any
//!   `<split>/<class>/<image>` tree, [`shapes`] draws its own images from a seed; [`archive`] knows
//!   the official archives, [`download`] fetches them.
//! - [`split`] turns a seed into the train / validation split and into the order of every epoch.
//! - [`loader`] prefetches batches on a thread; batch `k` is a pure function of `(seed, k)`.
//!
//! [`open`] ties these together.
//!
//! # Shapes
//! One image is HWC, three bytes a pixel (R, G, B), square. A batch packs a pixel into one `u32`:
//! `R | G << 8 | B << 16`.

pub mod archive;
pub mod cifar10;
#[cfg(feature = "native")]
pub mod download;
mod error;
mod files;
pub mod folder;
pub mod jpeg;
pub mod loader;
pub mod shapes;
pub mod split;
pub mod stl10;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use cifar10::Cifar10;
pub use error::DataError;
pub use files::{FileTree, Files};
pub(crate) use files::{open_regular, read_regular};
pub use folder::Folder;
pub use loader::{Batch, Loader};
pub use shapes::Shapes;
pub use split::{Order, Subset};
pub use stl10::Stl10;

/// The names of image files.
pub const IMAGE_FILES: &str = "*.{jpg,jpeg,jfif,png,webp,bmp,tif,tiff}";

/// Square RGB8 images with labels, random access. Images are HWC, three bytes a pixel.
pub trait Dataset: Send + Sync {
    /// Short name, one of [`Kind::NAMES`].
    fn name(&self) -> &str;
    /// Number of images.
    fn len(&self) -> usize;
    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Side of an image in pixels.
    fn image_size(&self) -> usize;
    /// Class names, strings of bytes as names of folders are; a label indexes this list.
    fn classes(&self) -> &[OsString];
    /// Label of one image, below `classes().len()`.
    ///
    /// # Panics
    /// If `index >= len()`.
    fn label(&self, index: usize) -> u32;
    /// The file that an image is read from, below the folder of the data set; `None` where an image
    /// has no file of its own.
    ///
    /// # Panics
    /// If `index >= len()`.
    fn file(&self, index: usize) -> Option<PathBuf> {
        assert!(index < self.len(), "image {index} of {}", self.len());
        None
    }
    /// Writes one image to `out`, which holds `image_size() * image_size() * 3` bytes.
    ///
    /// # Errors
    /// If the image is decoded lazily and its file cannot be read or decoded.
    ///
    /// # Panics
    /// If `index >= len()` or `out` has another length.
    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError>;
    /// Hands to `sink` what tells an image from another one in its place, as far as that is cheap:
    /// of an image in memory a checksum, of an image in a file of its own the file's name and
    /// length. Otherwise nothing.
    ///
    /// # Panics
    /// If `index >= len()`.
    fn identify(&self, index: usize, sink: &mut dyn FnMut(&[u8])) {
        let _ = (index, sink);
    }
    /// Per-channel mean and standard deviation of the pixels, scaled to [0, 1], for normalisation.
    fn mean_std(&self) -> ([f32; 3], [f32; 3]);
}

/// The data sets by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Official CIFAR-10 binary files.
    Cifar10,
    /// A tree of image files.
    Folder,
    /// Images drawn from a seed.
    Shapes,
    /// Official STL-10 binary files.
    Stl10,
}

impl Kind {
    /// All names, as [`Kind::from_str`] takes them.
    pub const NAMES: [&'static str; 4] = ["cifar10", "folder", "shapes", "stl10"];

    /// The name of this data set.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// What images of this side are normalised with ([`Dataset::mean_std`]); no file is read.
    pub fn mean_std(self, image_size: usize) -> ([f32; 3], [f32; 3]) {
        match self {
            Self::Cifar10 => (cifar10::MEAN, cifar10::STD),
            // Of small images CIFAR-10's, of others ImageNet's.
            Self::Folder if image_size == 32 => (cifar10::MEAN, cifar10::STD),
            Self::Folder => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Self::Shapes => (shapes::MEAN, shapes::STD),
            Self::Stl10 => (stl10::MEAN, stl10::STD),
        }
    }
}

impl FromStr for Kind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        [Self::Cifar10, Self::Folder, Self::Shapes, Self::Stl10]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| DataError::UnknownKind { found: name.to_owned() })
    }
}

/// The data sets that a run reads: `val` only where it is a set of its own and not split off
/// `train`.
#[derive(Clone)]
pub struct Datasets {
    /// Training images, before the validation split.
    pub train: Arc<dyn Dataset>,
    /// Validation images, where the data set brings them along.
    pub val: Option<Arc<dyn Dataset>>,
    /// Test images, with the classes of `labelled`.
    pub test: Arc<dyn Dataset>,
    /// Training images of classifiers, where `train` has no labels.
    pub labelled: Option<Arc<dyn Dataset>>,
    /// What people should know: files that were not read.
    pub notes: Vec<String>,
}

/// What [`open`] needs to know. Start from [`DataOptions::new`].
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Which data set.
    pub kind: Kind,
    /// Where its files are; STL-10's are read from disk always.
    pub files: Files,
    /// Its folder; unused by `shapes`.
    pub dir: Option<PathBuf>,
    /// Side in pixels; `None` is 32 (`stl10`: 96), and only `folder` takes another.
    pub image_size: Option<usize>,
    /// Seed of the split and of the order.
    pub seed: u64,
    /// Seed of the drawn images. Kept apart from `seed`, so that runs with different seeds share
    /// one data set.
    pub shapes_seed: u64,
    /// Training and test images that `shapes` draws.
    pub shapes_len: (usize, usize),
    /// Images held out of the training set; `None` is a twentieth of STL-10's unlabelled images and
    /// a tenth otherwise.
    pub n_val: Option<usize>,
    /// Keep only the first so many training images; of images with labels that are a set of their
    /// own, at most so many.
    pub limit_train: Option<usize>,
    /// Whether the training images are permuted before the split; see [`split::split`].
    pub shuffle: bool,
    /// Most bytes of decoded images that `folder` keeps in memory, per split.
    pub cache_bytes: usize,
}

impl DataOptions {
    /// The defaults for one data set: seed 0, no folder, no limit.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            files: Files::Disk,
            dir: None,
            image_size: None,
            seed: 0,
            shapes_seed: 0,
            shapes_len: (shapes::TRAIN_LEN, shapes::TEST_LEN),
            n_val: None,
            limit_train: None,
            shuffle: true,
            cache_bytes: folder::CACHE_BYTES,
        }
    }
}

/// The subsets of a data set that a run works on.
#[derive(Clone)]
pub struct Splits {
    /// Images to train on.
    pub train: Subset,
    /// Images held out, empty if none were.
    pub val: Subset,
    /// Images to train classifiers on: `train`, unless its images have no labels.
    pub labelled_train: Subset,
    /// Images held out of those: `val`, unless its images have no labels.
    pub labelled_val: Subset,
    /// Test images, all of them in file order, with the classes of `labelled_train`.
    pub test: Subset,
    /// What people should know, a line each: files that were not read.
    pub notes: Vec<String>,
}

impl Splits {
    /// Tells data sets apart: SHA-256, as hexadecimal digits, of the classes, of the place, the
    /// label and the identity ([`Dataset::identify`]) of every image of every subset, and of the
    /// pixels of some. An image that cannot be read counts as empty. Where the data lies does not
    /// count.
    ///
    /// What it does not see: pixels that change within a file that keeps its name and length, and
    /// within STL-10's files of gigabytes, unless the image is one of those read.
    pub fn fingerprint(&self) -> String {
        /// Images of each subset whose pixels count, spread over it.
        const IMAGES: usize = 32;
        let mut hash = Sha256::new();
        let subsets =
            [&self.train, &self.val, &self.labelled_train, &self.labelled_val, &self.test];
        for (i, subset) in subsets.into_iter().enumerate() {
            let set = &subset.dataset;
            // Where the images have labels the subsets of those are the first two again.
            if subsets[..i].iter().any(|other| Arc::ptr_eq(&other.indices, &subset.indices)) {
                continue;
            }
            hash.update((set.classes().len() as u64).to_le_bytes());
            for class in set.classes() {
                hash.update((class.len() as u64).to_le_bytes());
                hash.update(class.as_encoded_bytes());
            }
            hash.update((subset.len() as u64).to_le_bytes());
            for &index in subset.indices.iter() {
                hash.update(index.to_le_bytes());
                hash.update(set.label(index as usize).to_le_bytes());
                set.identify(index as usize, &mut |bytes| hash.update(bytes));
            }
            let mut image = vec![0; set.image_size().pow(2) * 3];
            for place in 0..IMAGES.min(subset.len()) {
                let index =
                    subset.indices[place * subset.len() / IMAGES.min(subset.len())] as usize;
                if set.read(index, &mut image).is_err() {
                    image.fill(0);
                }
                hash.update(&image);
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Opens a data set and splits it.
///
/// # Errors
/// If the files are missing or damaged, or the options ask for more images than there are.
pub fn open(options: &DataOptions) -> Result<Splits, DataError> {
    let source = open_datasets(options)?;
    let n = source.train.len();
    let n_val = match (&source.val, options.n_val) {
        (Some(_), _) => 0,
        (None, Some(n_val)) => n_val,
        // 5,000 of STL-10's 100,000.
        (None, None) if source.labelled.is_some() => n / 20,
        // 5,000 of CIFAR-10's 50,000.
        (None, None) => n / 10,
    };
    let part = |dataset: &Arc<dyn Dataset>, indices: Vec<u32>| Subset {
        dataset: dataset.clone(),
        indices: indices.into(),
    };
    let indices = split::split(n, n_val, options.seed, options.limit_train, options.shuffle)?;
    let val = source.val.map_or_else(|| part(&source.train, indices.val), Subset::full);
    let train = part(&source.train, indices.train);
    let (labelled_train, labelled_val) = match &source.labelled {
        None => (train.clone(), val.clone()),
        Some(set) => {
            // 500 of STL-10's 5,000. A limit above what is left is one for the many images without
            // labels.
            let mut indices =
                split::split(set.len(), set.len() / 10, options.seed, None, options.shuffle)?;
            indices.train.truncate(options.limit_train.unwrap_or(usize::MAX));
            (part(set, indices.train), part(set, indices.val))
        }
    };
    Ok(Splits {
        train,
        val,
        labelled_train,
        labelled_val,
        test: Subset::full(source.test),
        notes: source.notes,
    })
}

/// Opens a data set without splitting it.
///
/// # Errors
/// If the files are missing or damaged, or the data set does not come at the size asked for.
pub fn open_datasets(options: &DataOptions) -> Result<Datasets, DataError> {
    let dataset = options.kind.name();
    let dir = options.dir.as_deref().ok_or(DataError::NoFolder { dataset });
    let (native, expected) =
        if options.kind == Kind::Stl10 { (stl10::SIZE, "96") } else { (32, "32") };
    let size = options.image_size.unwrap_or(native);
    if options.kind != Kind::Folder && size != native {
        return Err(DataError::ImageSize { dataset, expected, found: size });
    }
    match options.kind {
        Kind::Cifar10 => {
            let dir = dir?;
            let (train, test) = Cifar10::open_in(&options.files, dir)?;
            Ok(Datasets {
                train: Arc::new(train),
                val: None,
                test: Arc::new(test),
                labelled: None,
                notes: archive::CIFAR10.notes(&options.files, dir)?,
            })
        }
        Kind::Folder => Folder::open_datasets_in(&options.files, dir?, size, options.cache_bytes),
        Kind::Shapes => {
            let (train, test) = options.shapes_len;
            Ok(Datasets {
                train: Arc::new(Shapes::new(options.shapes_seed, shapes::Part::Train, train)),
                val: None,
                test: Arc::new(Shapes::new(options.shapes_seed, shapes::Part::Test, test)),
                labelled: None,
                notes: vec![],
            })
        }
        Kind::Stl10 => {
            let dir = dir?;
            let sets = Stl10::open(dir)?;
            let (train, labelled) = (Arc::new(sets.unlabelled), Arc::new(sets.train));
            Ok(Datasets {
                train,
                val: None,
                test: Arc::new(sets.test),
                labelled: Some(labelled),
                notes: archive::STL10.notes(&Files::Disk, dir)?,
            })
        }
    }
}

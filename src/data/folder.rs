//! A tree of image files: `<DIR>/<split>/<class>/*.{jpg,jpeg,png}` with the splits `train`, `test` and, optionally, `val`.
//!
//! Classes and the files in them are sorted by name (bytewise), so labels and indices are the same everywhere. Names that
//! start with a dot and files of other kinds are skipped. With `val` but no `test` (ImageNet's layout), `val` is the test
//! set. Opening reads folders only; images are decoded when first read and stay in memory up to a byte limit.
//!
//! An image is scaled so that its short side fits (triangle filter, antialiased), then its centre is cut out. Alpha is
//! ignored, 16-bit images are rounded to 8 bits, grey becomes RGB, EXIF orientation is not applied.

use std::ffi::OsStr;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use image::imageops::{self, FilterType};
use image::{ImageReader, RgbImage};

use super::archive::mistaken;
use super::{DataError, Dataset, Kind, Source};

/// Default limit of the cache of decoded images, per split: 2 GiB.
pub const CACHE_BYTES: usize = 2 << 30;

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// One split of a tree of image files.
pub struct Folder {
    dir: PathBuf,
    classes: Vec<String>,
    class_dirs: Vec<PathBuf>,
    files: Vec<(u32, PathBuf)>, // (label, file name in the class folder)
    size: usize,
    cache: Vec<OnceLock<Box<[u8]>>>,
    // Images are never evicted: an epoch reads each once, and under that pattern least-recently-used never hits.
    cache_images: usize,
    cached: AtomicUsize,
}

impl Folder {
    /// Lists the classes and files of one split folder. Images will be `size` x `size`, at most `cache_bytes` of them kept.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::NoClasses`], [`DataError::EmptyClass`], or [`DataError::Io`].
    pub fn open(dir: &Path, size: usize, cache_bytes: usize) -> Result<Self, DataError> {
        if size == 0 {
            return Err(DataError::ImageSize { dataset: "folder", expected: "1 or more", found: size });
        }
        if !dir.is_dir() {
            return Err(DataError::Missing { what: "data folder", path: dir.to_owned(), hint: Some(layout(dir)) });
        }
        let class_dirs: Vec<PathBuf> = entries(dir)?.into_iter().filter(|path| path.is_dir()).collect();
        if class_dirs.is_empty() {
            return Err(DataError::NoClasses { path: dir.to_owned() });
        }
        let mut files = Vec::new();
        for (label, class_dir) in class_dirs.iter().enumerate() {
            let all = entries(class_dir)?;
            let entries = all.len();
            let first = files.len();
            let images = all.into_iter().filter(|path| is_image(path));
            files.extend(images.map(|path| (label as u32, PathBuf::from(path.file_name().unwrap_or_default()))));
            if files.len() == first {
                return Err(DataError::EmptyClass { path: class_dir.clone(), entries });
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            classes: class_dirs.iter().map(|path| name(path)).collect(),
            class_dirs,
            cache: files.iter().map(|_| OnceLock::new()).collect(),
            files,
            size,
            cache_images: cache_bytes / (size * size * 3),
            cached: AtomicUsize::new(0),
        })
    }

    /// Opens `train`, `test` and, where present, `val` below `dir`, all with the classes of `train`.
    ///
    /// # Errors
    /// As [`Folder::open`], and [`DataError::ClassMismatch`].
    pub fn open_source(dir: &Path, size: usize, cache_bytes: usize) -> Result<Source, DataError> {
        let open = |split: &str| Self::open(&dir.join(split), size, cache_bytes);
        if !dir.is_dir() {
            return Err(DataError::Missing { what: "data folder", path: dir.to_owned(), hint: Some(layout(&dir.join("<split>"))) });
        }
        let train = dir.join("train");
        if !train.is_dir()
            && let Some(hint) = mistaken(dir)
        {
            return Err(DataError::Missing { what: "data folder", path: train, hint: Some(hint) });
        }
        let train = open("train")?;
        let val = if dir.join("val").is_dir() { Some(open("val")?) } else { None };
        let (val, test) = match val {
            Some(val) if !dir.join("test").exists() => (None, val),
            val => (val, open("test")?),
        };
        for other in val.iter().chain([&test]) {
            train.check_classes(other)?;
        }
        Ok(Source { train: Arc::new(train), val: val.map(|val| Arc::new(val) as _), test: Arc::new(test), labelled: None })
    }

    /// The file of an image.
    ///
    /// # Panics
    /// If `index >= len()`.
    pub fn path(&self, index: usize) -> PathBuf {
        let (label, file) = &self.files[index];
        self.class_dirs[*label as usize].join(file)
    }

    fn check_classes(&self, other: &Self) -> Result<(), DataError> {
        let missing = |from: &Self, to: &Self| {
            from.classes.iter().find(|class| !to.classes.contains(class)).map(|class| (class.clone(), from.dir.clone()))
        };
        match missing(self, other).or_else(|| missing(other, self)) {
            None => Ok(()),
            Some((class, only_in)) => Err(DataError::ClassMismatch {
                left: self.dir.clone(),
                right: other.dir.clone(),
                left_count: self.classes.len(),
                right_count: other.classes.len(),
                class,
                only_in,
            }),
        }
    }

    fn decode(&self, index: usize) -> Result<RgbImage, DataError> {
        let path = self.path(index);
        let file = fs::File::open(&path).map_err(DataError::io("read", &path))?;
        // The content decides the format: image collections are full of PNGs named .jpg.
        let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(DataError::io("read", &path))?;
        match reader.decode() {
            Ok(image) => Ok(fit(image.into_rgb8(), self.size as u32)),
            Err(source) => Err(DataError::Decode { path, source: Box::new(source) }),
        }
    }
}

impl Dataset for Folder {
    fn name(&self) -> &str {
        "folder"
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn image_size(&self) -> usize {
        self.size
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.files[index].0
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        if let Some(pixels) = self.cache[index].get() {
            out.copy_from_slice(pixels);
            return Ok(());
        }
        let image = self.decode(index)?;
        out.copy_from_slice(image.as_raw());
        if self.cached.fetch_add(1, Ordering::Relaxed) < self.cache_images {
            // A second reader of the same image may have been faster; its pixels are the same.
            self.cache[index].get_or_init(|| image.into_raw().into_boxed_slice());
        } else {
            self.cached.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// CIFAR's statistics at 32 pixels, ImageNet's at any other size.
    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        Kind::Folder.mean_std(self.size)
    }
}

/// Scales the short side to `size` and cuts out the centre.
fn fit(mut image: RgbImage, size: u32) -> RgbImage {
    let (mut w, mut h) = image.dimensions();
    if (w, h) == (size, size) {
        return image;
    }
    let short = w.min(h).max(1);
    // A strip of 1 x 65,535 pixels would be scaled to gigabytes before the cut: drop what the cut drops anyway.
    let long = short.saturating_mul(8);
    if w > long || h > long {
        let (cut_w, cut_h) = (w.min(long), h.min(long));
        image = imageops::crop_imm(&image, (w - cut_w) / 2, (h - cut_h) / 2, cut_w, cut_h).to_image();
        (w, h) = (cut_w, cut_h);
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(size) + u64::from(short) / 2) / u64::from(short);
    let (new_w, new_h) = (scaled(w).max(size.into()) as u32, scaled(h).max(size.into()) as u32);
    let image = imageops::resize(&image, new_w, new_h, FilterType::Triangle);
    imageops::crop_imm(&image, (new_w - size) / 2, (new_h - size) / 2, size, size).to_image()
}

/// Visible entries of a folder, sorted by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let path = entry.map_err(DataError::io("list", dir))?.path();
        if !name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn layout(split_dir: &Path) -> String {
    format!("images belong in `{}`", split_dir.join("<class>").join("*.{jpg,jpeg,png}").display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A horizontal ramp keeps its slope, whatever the size and orientation.
    #[test]
    fn fit_scales_and_cuts_the_centre() {
        for (w, h) in [(64, 64), (128, 64), (64, 128), (65, 40), (31, 200), (2000, 3), (1, 1)] {
            let ramp = RgbImage::from_fn(w, h, |x, _| image::Rgb([(x * 255 / w.max(2)) as u8, 7, 200]));
            let out = fit(ramp, 32);
            assert_eq!(out.dimensions(), (32, 32), "{w}x{h}");
            assert!(out.pixels().all(|p| p[1] == 7 && p[2] == 200), "{w}x{h}");
            assert!((0..31).all(|x| out.get_pixel(x, 5)[0] <= out.get_pixel(x + 1, 5)[0]), "{w}x{h}");
            let middle = (f32::from(out.get_pixel(15, 9)[0]) + f32::from(out.get_pixel(16, 9)[0])) / 2.0;
            assert!(w == 1 || (middle - 127.0).abs() < 6.0 + 255.0 / w as f32, "{w}x{h}: {middle}");
        }
    }

    #[test]
    fn fit_keeps_an_image_of_the_right_size() {
        let image = RgbImage::from_fn(5, 5, |x, y| image::Rgb([x as u8, y as u8, 3]));
        assert_eq!(fit(image.clone(), 5), image);
    }
}

//! A tree of image files, `<DIR>/<split>/<class>/<image>`, with the splits `train`, `test` and,
//! optionally, `val`.
//!
//! Images are JPEG, PNG, WebP, BMP and TIFF, by the extensions in [`IMAGE_FILES`] in any case.
//! Classes and the files in them are sorted by name (bytewise), so labels and indices are the same
//! everywhere. Names that start with a dot are skipped; what else is not read (files of other
//! kinds, folders in classes, devices) is counted in [`Datasets::notes`]. With `val` but no `test`
//! (ImageNet's layout), `val` is the test set. Opening reads folders only; images are decoded when
//! first read and stay in memory up to a byte limit.
//!
//! An image is scaled so that its short side fits (triangle filter, antialiased), then its centre
//! is cut out. Alpha is ignored, 16-bit images are rounded to 8 bits, grey becomes RGB, EXIF
//! orientation is not applied. Of several pictures in a file (animations, pages) the first one
//! counts. A file that ends before its image does is refused.
//!
//! Whether bytes within a file were overwritten is for the format to tell. PNG has checksums. What
//! a JPEG can tell is told ([`jpeg`]). Of WebP and compressed TIFF what the decoder stumbles over
//! is refused, and damage may pass; BMP and TIFF without compression have nothing to tell it by.

use std::ffi::{OsStr, OsString};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use image::error::{DecodingError, ImageFormatHint};
use image::imageops::{self, FilterType};
use image::{ImageError, ImageFormat, ImageReader, RgbImage};

use super::archive::mistaken;
use super::files::{self, Unread};
use super::{DataError, Dataset, Datasets, Files, IMAGE_FILES, Kind, jpeg};

/// Default limit of the cache of decoded images, per split: 2 GiB.
pub const CACHE_BYTES: usize = 2 << 30;

/// Longest JPEG that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// One split of a tree of image files.
pub struct Folder {
    place: Files,
    dir: PathBuf,
    classes: Vec<OsString>,
    files: Vec<(u32, OsString)>, // (label, file name in the class folder)
    unread: Unread,
    size: usize,
    cache: Vec<OnceLock<Box<[u8]>>>,
    // Images are never evicted: an epoch reads each once, and under that pattern
    // least-recently-used never hits.
    cache_images: usize,
    cached: AtomicUsize,
    // Images that were found to be whole: those that do not fit the cache are decoded every epoch.
    whole: Vec<AtomicBool>,
}

impl Folder {
    /// Lists the classes and files of one split folder. Images will be `size` x `size`, at most
    /// `cache_bytes` of them kept.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::NoClasses`], [`DataError::EmptyClass`], or
    /// [`DataError::Io`], also if an entry cannot be looked at.
    pub fn open(dir: &Path, size: usize, cache_bytes: usize) -> Result<Self, DataError> {
        Self::open_in(&Files::Disk, dir, size, cache_bytes)
    }

    /// [`Folder::open`] of files wherever they are.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn open_in(
        place: &Files,
        dir: &Path,
        size: usize,
        cache_bytes: usize,
    ) -> Result<Self, DataError> {
        if size == 0 {
            return Err(DataError::ImageSize {
                dataset: "folder",
                expected: "1 or more",
                found: size,
            });
        }
        if !place.is_folder(dir)? {
            return Err(DataError::Missing {
                what: "data folder",
                path: dir.to_owned(),
                hint: Some(layout(dir)),
            });
        }
        let (mut classes, mut images, mut unread) = (Vec::new(), Vec::new(), Unread::default());
        for (name, kind) in place.list(dir)? {
            if kind != files::Kind::Folder {
                unread.add(&name, kind);
                continue;
            }
            let label = classes.len() as u32;
            let (first, class_dir) = (images.len(), dir.join(&name));
            let mut others = Unread::default();
            for (file, kind) in place.list(&class_dir)? {
                if kind == files::Kind::File && is_image(&file) {
                    images.push((label, file));
                } else {
                    others.add(&file, kind);
                }
            }
            if images.len() == first {
                let entries = others.text().unwrap_or_else(|| "it is empty".into());
                return Err(DataError::EmptyClass { path: class_dir, entries });
            }
            unread.merge(others, Path::new(&name));
            classes.push(name);
        }
        if classes.is_empty() {
            return Err(DataError::NoClasses { path: dir.to_owned() });
        }
        Ok(Self {
            place: place.clone(),
            dir: dir.to_owned(),
            classes,
            cache: images.iter().map(|_| OnceLock::new()).collect(),
            unread,
            size,
            cache_images: cache_bytes / (size * size * 3),
            cached: AtomicUsize::new(0),
            whole: images.iter().map(|_| AtomicBool::new(false)).collect(),
            files: images,
        })
    }

    /// Opens `train`, `test` and, where present, `val` below `dir`, all with the classes of
    /// `train`.
    ///
    /// # Errors
    /// As [`Folder::open`], and [`DataError::ClassMismatch`].
    pub fn open_datasets(
        dir: &Path,
        size: usize,
        cache_bytes: usize,
    ) -> Result<Datasets, DataError> {
        Self::open_datasets_in(&Files::Disk, dir, size, cache_bytes)
    }

    /// [`Folder::open_datasets`] of files wherever they are.
    ///
    /// # Errors
    /// As [`Folder::open_datasets`].
    pub fn open_datasets_in(
        place: &Files,
        dir: &Path,
        size: usize,
        cache_bytes: usize,
    ) -> Result<Datasets, DataError> {
        let open = |split: &str| Self::open_in(place, &dir.join(split), size, cache_bytes);
        if !place.is_folder(dir)? {
            let hint = Some(layout(&dir.join("<split>")));
            return Err(DataError::Missing { what: "data folder", path: dir.to_owned(), hint });
        }
        let train = dir.join("train");
        if !place.is_folder(&train)?
            && let Some(hint) = mistaken(place, dir)
        {
            return Err(DataError::Missing { what: "data folder", path: train, hint: Some(hint) });
        }
        let train = open("train")?;
        let val = if place.is_folder(&dir.join("val"))? { Some(open("val")?) } else { None };
        let (val, test) = match val {
            Some(val) if place.look(&dir.join("test"))?.is_none() => (None, val),
            val => (val, open("test")?),
        };
        for other in val.iter().chain([&test]) {
            train.check_classes(other)?;
        }
        let mut unread = Unread::default();
        for (name, kind) in place.list(dir)? {
            if !(kind == files::Kind::Folder
                && ["train", "val", "test"].iter().any(|split| name == *split))
            {
                unread.add(&name, kind);
            }
        }
        for split in [&train, &test].into_iter().chain(&val) {
            unread
                .merge(split.unread.clone(), Path::new(split.dir.file_name().unwrap_or_default()));
        }
        Ok(Datasets {
            train: Arc::new(train),
            val: val.map(|val| Arc::new(val) as _),
            test: Arc::new(test),
            labelled: None,
            notes: unread.note(dir),
        })
    }

    /// The file of an image.
    ///
    /// # Panics
    /// If `index >= len()`.
    pub fn path(&self, index: usize) -> PathBuf {
        let (label, file) = &self.files[index];
        self.dir.join(&self.classes[*label as usize]).join(file)
    }

    fn check_classes(&self, other: &Self) -> Result<(), DataError> {
        // Both are sorted.
        let missing = |from: &Self, to: &Self| {
            let class =
                from.classes.iter().find(|class| to.classes.binary_search(class).is_err())?;
            Some((class.clone(), from.dir.clone()))
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
        let io = || DataError::io("read", &path);
        let file = self.place.open(&path)?;
        // The content decides the format: image collections are full of PNGs named .jpg.
        let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(io())?;
        let image = if reader.format() == Some(ImageFormat::Jpeg) {
            let mut bytes = Vec::new();
            reader.into_inner().take(MAX_FILE).read_to_end(&mut bytes).map_err(io())?;
            let known = self.whole[index].load(Ordering::Relaxed);
            let decode = if known { jpeg::decode_again } else { jpeg::decode };
            decode(&bytes).map_err(|why| {
                ImageError::Decoding(DecodingError::new(
                    ImageFormatHint::Exact(ImageFormat::Jpeg),
                    why,
                ))
            })
        } else {
            reader.decode().map(image::DynamicImage::into_rgb8)
        };
        match image {
            Ok(image) => {
                self.whole[index].store(true, Ordering::Relaxed);
                Ok(fit(image, self.size as u32))
            }
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

    fn classes(&self) -> &[OsString] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.files[index].0
    }

    fn file(&self, index: usize) -> Option<PathBuf> {
        let (label, file) = &self.files[index];
        let split = Path::new(self.dir.file_name().unwrap_or_default());
        Some(split.join(&self.classes[*label as usize]).join(file))
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

    fn identify(&self, index: usize, sink: &mut dyn FnMut(&[u8])) {
        let (_, file) = &self.files[index];
        // Of a file that is gone only the name is left; reading it will say so.
        let length = self.place.length(&self.path(index)).unwrap_or(u64::MAX);
        sink(file.as_encoded_bytes());
        sink(&[0]);
        sink(&length.to_le_bytes());
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
    // A strip of 1 x 65,535 pixels would be scaled to gigabytes before the cut: drop what the cut
    // drops anyway.
    let long = short.saturating_mul(8);
    if w > long || h > long {
        let (cut_w, cut_h) = (w.min(long), h.min(long));
        image =
            imageops::crop_imm(&image, (w - cut_w) / 2, (h - cut_h) / 2, cut_w, cut_h).to_image();
        (w, h) = (cut_w, cut_h);
    }
    let scaled =
        |side: u32| (u64::from(side) * u64::from(size) + u64::from(short) / 2) / u64::from(short);
    let (new_w, new_h) = (scaled(w).max(size.into()) as u32, scaled(h).max(size.into()) as u32);
    let image = imageops::resize(&image, new_w, new_h, FilterType::Triangle);
    imageops::crop_imm(&image, (new_w - size) / 2, (new_h - size) / 2, size, size).to_image()
}

fn is_image(name: &OsStr) -> bool {
    let extension =
        Path::new(name).extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    let known = IMAGE_FILES.trim_matches(|c| "*.{}".contains(c));
    extension.is_some_and(|extension| known.split(',').any(|known| known == extension))
}

fn layout(split_dir: &Path) -> String {
    format!(
        "images belong in `{}`",
        crate::text::name(&split_dir.join("<class>").join(IMAGE_FILES))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A horizontal ramp keeps its slope, whatever the size and orientation.
    #[test]
    fn fit_scales_and_cuts_the_centre() {
        for (w, h) in [(64, 64), (128, 64), (64, 128), (65, 40), (31, 200), (2000, 3), (1, 1)] {
            let ramp =
                RgbImage::from_fn(w, h, |x, _| image::Rgb([(x * 255 / w.max(2)) as u8, 7, 200]));
            let out = fit(ramp, 32);
            assert_eq!(out.dimensions(), (32, 32), "{w}x{h}");
            assert!(out.pixels().all(|p| p[1] == 7 && p[2] == 200), "{w}x{h}");
            assert!(
                (0..31).all(|x| out.get_pixel(x, 5)[0] <= out.get_pixel(x + 1, 5)[0]),
                "{w}x{h}"
            );
            let middle =
                (f32::from(out.get_pixel(15, 9)[0]) + f32::from(out.get_pixel(16, 9)[0])) / 2.0;
            assert!(w == 1 || (middle - 127.0).abs() < 6.0 + 255.0 / w as f32, "{w}x{h}: {middle}");
        }
    }

    #[test]
    fn fit_keeps_an_image_of_the_right_size() {
        let image = RgbImage::from_fn(5, 5, |x, y| image::Rgb([x as u8, y as u8, 3]));
        assert_eq!(fit(image.clone(), 5), image);
    }
}

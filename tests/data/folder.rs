//! Trees of image files: which are read, which are refused, and what is said of the others.

use std::ffi::OsString;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use aavae::data::folder::Folder;
use aavae::data::jpeg;
use aavae::data::{self, DataError, DataOptions, Dataset, Kind, cifar10};
use image::{ImageFormat, Rgb, RgbImage};

use crate::{assert_says, image_of, open_error, temp};

/// A 2-class tree; every image is one colour, `(split, class, number)`.
fn tree(dir: &Path, splits: &[&str], per_class: u8) {
    for (s, split) in splits.iter().enumerate() {
        for (c, class) in ["ant", "bee"].iter().enumerate() {
            let class_dir = dir.join(split).join(class);
            fs::create_dir_all(&class_dir).unwrap();
            for n in 0..per_class {
                let colour = image::Rgb([s as u8 * 50, c as u8 * 100, n]);
                let size = if n % 2 == 0 { (8, 8) } else { (20, 13) };
                let name = ["png", "PNG"][usize::from(n) % 2];
                let path = class_dir.join(format!("{n:03}.{name}"));
                image::RgbImage::from_pixel(size.0, size.1, colour)
                    .save_with_format(path, image::ImageFormat::Png)
                    .unwrap();
            }
        }
    }
}

#[test]
fn folder_sorts_labels_and_caches() {
    let dir = temp();
    tree(dir.path(), &["train", "test"], 5);
    fs::write(dir.path().join("train/ant/.hidden.png"), "no image").unwrap();
    fs::write(dir.path().join("train/ant/notes.txt"), "no image").unwrap();
    fs::write(dir.path().join("train/readme.txt"), "no class").unwrap();
    // Room for 3 of 10 images: reads through and beside the cache agree.
    let set = Folder::open(&dir.path().join("train"), 8, 3 * 8 * 8 * 3 + 1).unwrap();
    assert_eq!((set.len(), set.classes()), (10, &["ant", "bee"].map(OsString::from)[..]));
    for _ in 0..2 {
        for i in 0..10 {
            assert_eq!(set.label(i), i as u32 / 5);
            assert_eq!(image_of(&set, i), [0, i as u8 / 5 * 100, i as u8 % 5].repeat(64));
        }
    }
    // Cached images survive their file, others do not.
    fs::remove_dir_all(dir.path().join("train")).unwrap();
    let mut out = [0; 192];
    assert_eq!((0..10).filter(|&i| set.read(i, &mut out).is_ok()).count(), 3);
}

#[test]
fn folder_splits() {
    let dir = temp();
    tree(dir.path(), &["train", "test"], 10);
    let mut options =
        DataOptions { dir: Some(dir.path().to_owned()), ..DataOptions::new(Kind::Folder) };
    let splits = data::open(&options).unwrap();
    assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (18, 2, 20));
    assert_eq!(splits.train.dataset.mean_std(), (cifar10::MEAN, cifar10::STD));

    tree(dir.path(), &["val"], 3);
    options.image_size = Some(16);
    let splits = data::open(&options).unwrap();
    assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (20, 6, 20));
    assert_eq!(splits.train.dataset.mean_std().0, [0.485, 0.456, 0.406]);

    fs::remove_dir_all(dir.path().join("test")).unwrap();
    let splits = data::open(&options).unwrap();
    assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (18, 2, 6));
}

#[test]
fn folder_errors_name_the_place() {
    let dir = temp();
    fs::create_dir_all(dir.path().join("train")).unwrap();
    assert_says(&open_error(Kind::Folder, dir.path()), &["train", "no class folders", "<class>"]);
    tree(dir.path(), &["train"], 2);
    assert_says(&open_error(Kind::Folder, dir.path()), &["test", "not found", "<class>"]);

    tree(dir.path(), &["test"], 2);
    fs::create_dir_all(dir.path().join("test/cow")).unwrap();
    fs::write(dir.path().join("test/cow/a.gif"), "x").unwrap();
    assert_says(
        &open_error(Kind::Folder, dir.path()),
        &["cow", "no images", "1 .gif file (a.gif)"],
    );
    fs::copy(dir.path().join("test/ant/000.png"), dir.path().join("test/cow/a.png")).unwrap();
    assert_says(
        &open_error(Kind::Folder, dir.path()),
        &["2 classes", "has 3", "`cow` is only in", "test"],
    );

    let bad = dir.path().join("train/bee/001.PNG");
    fs::write(&bad, "this is no image").unwrap();
    let set = Folder::open(&dir.path().join("train"), 8, 0).unwrap();
    let error = set.read(3, &mut [0; 192]).unwrap_err();
    assert!(matches!(error, DataError::Decode { .. }));
    assert_says(&error, &["cannot decode", "001.PNG", "replace or remove"]);
    fs::remove_file(&bad).unwrap();
    fs::create_dir(&bad).unwrap();
    assert_says(&set.read(3, &mut [0; 192]).unwrap_err(), &["001.PNG"]);
    fs::remove_dir(&bad).unwrap();
    let error = set.read(3, &mut [0; 192]).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }));
    assert_says(&error, &["cannot read", "001.PNG"]);
}

// ---- Formats ----

/// A picture without flat parts, so that a missing part shows.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 6) as u8, (y * 10) as u8, (x * y) as u8]))
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, format).expect("an encoder");
    file.into_inner()
}

/// A tree of one class and one image a split, whose training image has a name and bytes.
fn one_file(dir: &Path, name: &str, bytes: &[u8]) -> Folder {
    fs::remove_dir_all(dir.join("train")).ok();
    fs::create_dir_all(dir.join("train/ant")).expect("a folder");
    fs::write(dir.join("train/ant").join(name), bytes).expect("a file");
    Folder::open(&dir.join("train"), 24, 0).expect("a class with an image")
}

#[test]
fn every_format_is_read_by_its_content() {
    let dir = temp();
    let image = picture(24, 24);
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("a.webp", ImageFormat::WebP),
        ("a.BMP", ImageFormat::Bmp),
        ("a.tif", ImageFormat::Tiff),
        ("a.TiFF", ImageFormat::Tiff),
        ("a.jpg", ImageFormat::Png), // as collections have it
    ] {
        let set = one_file(dir.path(), name, &encoded(&image, format));
        assert_eq!(image_of(&set, 0), *image.as_raw(), "{name}");
        assert_eq!(set.file(0).expect("a file"), Path::new("train/ant").join(name));
    }
    for name in ["a.jpg", "a.jpeg", "a.jfif"] {
        let set = one_file(dir.path(), name, &encoded(&image, ImageFormat::Jpeg));
        let apart: u32 = image_of(&set, 0)
            .iter()
            .zip(image.as_raw())
            .map(|(a, b)| u32::from(a.abs_diff(*b)))
            .sum();
        assert!(apart < 20 * 24 * 24 * 3, "{name}: {apart}");
    }
}

/// A file that was cut is refused, in whatever format and wherever, unless all of the picture was
/// before the cut.
#[test]
fn cut_images_are_refused() {
    let dir = temp();
    let progressive = include_bytes!("progressive.jpg");
    assert!(progressive.windows(2).any(|w| w == [0xff, 0xc2]), "a progressive start of frame");
    let image = picture(40, 24);
    let files = [
        ("baseline.jpg", encoded(&image, ImageFormat::Jpeg)),
        ("progressive.jpg", progressive.to_vec()),
        ("a.png", encoded(&image, ImageFormat::Png)),
        ("a.webp", encoded(&image, ImageFormat::WebP)),
        ("a.bmp", encoded(&image, ImageFormat::Bmp)),
        ("a.tif", encoded(&image, ImageFormat::Tiff)),
    ];
    for (name, bytes) in files {
        let whole = image_of(&one_file(dir.path(), name, &bytes), 0);
        let mut refused = 0;
        let cuts = (1..20)
            .map(|part| bytes.len() * part / 20)
            .chain(bytes.len().saturating_sub(20)..bytes.len());
        for cut in cuts {
            let set = one_file(dir.path(), name, &bytes[..cut]);
            let mut pixels = vec![0; 24 * 24 * 3];
            match set.read(0, &mut pixels) {
                Ok(()) => assert!(
                    pixels == whole,
                    "{name}: cut at {cut} of {} it is another picture",
                    bytes.len()
                ),
                Err(error) => {
                    assert!(matches!(error, DataError::Decode { .. }), "{error:?}");
                    assert_says(&error, &[name, "replace or remove"]);
                    refused += 1;
                }
            }
        }
        assert!(refused >= 18, "{name}: only {refused} cuts are refused");
    }
}

/// A file that was cut and then ended, as programs do that mend one, is no whole picture either.
#[test]
fn jpegs_that_were_cut_and_ended_are_refused() {
    for (file, what) in [
        (encoded(&picture(40, 24), ImageFormat::Jpeg), "baseline"),
        (include_bytes!("progressive.jpg").to_vec(), "progressive"),
    ] {
        let whole = jpeg::decode(&file).expect("a whole file");
        let last = file.windows(2).rposition(|w| w == [0xff, 0xda]).expect("a scan");
        let scan = last + 2 + usize::from(file[last + 3]);
        assert!(file.len() - scan > 30, "{what}: a scan to cut");
        let mut refused = 0;
        for cut in scan..file.len() - 2 {
            if file[cut - 1] == 0xff {
                continue; // it would make another marker
            }
            match jpeg::decode(&[&file[..cut], b"\xff\xd9"].concat()) {
                Ok(image) => assert!(image == whole, "{what}: cut at {cut} of {}", file.len()),
                Err(_) => refused += 1,
            }
        }
        assert!(refused * 10 > (file.len() - scan) * 8, "{what}: {refused} are refused");
    }
}

/// Bytes that were overwritten with zeros, as a disk or a broken copy leaves them. A PNG tells by
/// its checksums, and a JPEG by the number of blocks that its data makes.
#[test]
fn images_with_zeros_in_the_middle_are_refused() {
    let image = RgbImage::from_fn(120, 90, |x, y| {
        let noise = ((x * 31) ^ (y * 57) ^ (x * y)) % 23;
        Rgb([(x * 2 + noise) as u8, (y * 2 + noise) as u8, (x + y + 2 * noise) as u8])
    });
    let jpeg_of = |quality: u8| {
        let mut file = Cursor::new(Vec::new());
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, quality)
            .encode_image(&image)
            .expect("an encoder");
        file.into_inner()
    };
    let dir = temp();
    for (name, bytes, least) in [
        ("a.png", encoded(&image, ImageFormat::Png), 40),
        ("low.jpg", jpeg_of(60), 34),
        ("high.jpg", jpeg_of(97), 38),
    ] {
        let whole = one_file(dir.path(), name, &bytes);
        whole.read(0, &mut [0; 24 * 24 * 3]).expect("a whole file");
        let first = if name == "a.png" { 60 } else { 700 };
        let mut refused = 0;
        for place in 0..40 {
            let mut damaged = bytes.clone();
            let at = first + (bytes.len() - first - 100) * place / 40;
            damaged[at..at + 64].fill(0);
            let set = one_file(dir.path(), name, &damaged);
            refused += usize::from(set.read(0, &mut [0; 24 * 24 * 3]).is_err());
        }
        assert!(refused >= least, "{name}: only {refused} of 40 are refused");
    }
}

/// Data that no block needs is damage; what fills a scan up is not, nor is little.
#[test]
fn jpegs_with_data_left_over_are_refused() {
    let file = encoded(&picture(40, 24), ImageFormat::Jpeg);
    let whole = jpeg::decode(&file).expect("a whole file");
    let with = |extra: &[u8]| {
        let bytes = [&file[..file.len() - 2], extra, &file[file.len() - 2..]].concat();
        assert_eq!(jpeg::decode_again(&bytes), Ok(whole.clone()), "the decoder sees nothing");
        jpeg::decode(&bytes)
    };
    for extra in [&b"more data of it"[..], &[0x55; 8], &[0x55; 900]] {
        let error = with(extra).expect_err("data that is left over");
        assert!(error.contains("at least 8 bytes of its data are left over"), "{error}");
    }
    for extra in [&[0; 300][..], b"few", &[0xff; 40]] {
        assert_eq!(with(extra), Ok(whole.clone()));
    }
    // Pictures of all sizes and contents need their last bytes.
    for side in 1..40 {
        for quality in [10, 75, 100] {
            for texture in [0, 7, 255] {
                let image = RgbImage::from_fn(side, 41 - side, |x, y| {
                    Rgb([x * x + 3 * y, x * y * y, (7 * x) ^ y].map(|c| (c % (texture + 1)) as u8))
                });
                let mut file = Cursor::new(Vec::new());
                image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, quality)
                    .encode_image(&image)
                    .expect("an encoder");
                jpeg::decode(file.get_ref()).expect("a whole file");
            }
        }
    }
}

/// What cameras and programs put around a picture does not make it a broken one.
#[test]
fn whole_jpegs_are_read_whatever_is_around() {
    for file in
        [encoded(&picture(40, 24), ImageFormat::Jpeg), include_bytes!("progressive.jpg").to_vec()]
    {
        let whole = jpeg::decode(&file).expect("a whole file");
        assert_eq!(whole.dimensions(), (40, 24));
        // A preview of its own in a segment, which has an end of image too.
        let preview = encoded(&picture(8, 8), ImageFormat::Jpeg);
        let length = u16::try_from(preview.len() + 2).expect("a small preview").to_be_bytes();
        let with_preview = [&file[..2], &[0xff, 0xe1], &length, &preview, &file[2..]].concat();
        for around in [
            [&file[..], b"garbage \xff\xd8\xff at the end"].concat(),
            [&file[..], &file[..file.len() / 2]].concat(), // a second picture, cut
            with_preview.clone(),
            [&file[..2], &[0xff; 9], &file[2..]].concat(), // fill bytes before a marker
            [&file[..2], b"stray bytes", &file[2..]].concat(),
        ] {
            assert!(jpeg::decode(&around) == Ok(whole.clone()), "another picture, or an error");
        }
        // The preview's end is not the picture's.
        let error =
            jpeg::decode(&with_preview[..with_preview.len() - 40]).expect_err("a cut picture");
        assert!(error.contains("no end-of-image marker"), "{error}");
        // Within a scan nothing may be damaged.
        let scan = file.windows(2).position(|w| w == [0xff, 0xda]).expect("a scan") + 20;
        let mut damaged = file.clone();
        damaged[scan..scan + 12].fill(0xff);
        assert!(jpeg::decode(&damaged) != Ok(whole), "damage must not pass unseen");
    }
    let grey = image::GrayImage::from_fn(9, 7, |x, y| image::Luma([(x * 20 + y) as u8]));
    let mut file = Cursor::new(Vec::new());
    grey.write_to(&mut file, ImageFormat::Jpeg).expect("an encoder");
    let colours = jpeg::decode(file.get_ref()).expect("a grey picture");
    assert!(
        colours
            .pixels()
            .zip(grey.pixels())
            .all(|(rgb, grey)| rgb.0.iter().all(|c| c.abs_diff(grey[0]) < 8))
    );
}

// ---- What is not read ----

#[test]
fn what_is_not_read_is_counted() {
    let dir = temp();
    tree(dir.path(), &["train", "test", "val"], 2);
    let open = || Folder::open_datasets(dir.path(), 8, 0).expect("a tree").notes;
    assert_eq!(open(), Vec::<String>::new());
    let place = |name: &str| dir.path().join(name);
    fs::create_dir_all(place("train/ant/old/older")).expect("a folder");
    fs::copy(place("train/ant/000.png"), place("train/ant/old/000.png")).expect("a file");
    for name in ["train/ant/a.GIF", "test/bee/b.gif", "val/list", "train/.DS_Store", "readme.txt"] {
        fs::write(place(name), "x").expect("a file");
    }
    let notes = open();
    assert_eq!(notes.len(), 1);
    let counted = [
        "2 .gif files (first train/ant/a.GIF)",
        "1 .txt file (readme.txt)",
        "1 file without an extension (val/list)",
    ];
    for part in counted.iter().chain(&["1 folder (train/ant/old)"]) {
        assert!(notes[0].contains(part), "no `{part}`: {}", notes[0]);
    }
    assert!(!notes[0].contains("DS_Store"), "{}", notes[0]);
    let options = DataOptions { dir: Some(dir.path().into()), ..DataOptions::new(Kind::Folder) };
    assert_eq!(data::open(&options).expect("splits").notes, notes);
}

/// On Unix: elsewhere a link is a privilege, and devices have no names in folders.
#[cfg(unix)]
#[test]
fn only_files_are_opened_and_no_entry_vanishes() {
    use std::os::unix::fs::symlink;
    let dir = temp();
    tree(dir.path(), &["train", "test"], 2);
    let ant = dir.path().join("train/ant");
    // A link to a file is one.
    symlink("000.png", ant.join("link.png")).expect("a link");
    assert_eq!(Folder::open(&dir.path().join("train"), 8, 0).expect("a tree").len(), 5);
    // Reading these would wait, or go on, forever.
    symlink("/dev/zero", ant.join("z.jpg")).expect("a link");
    let made =
        std::process::Command::new("mkfifo").arg(ant.join("pipe.png")).status().expect("mkfifo");
    assert!(made.success());
    let source = Folder::open_datasets(dir.path(), 8, 0).expect("a tree");
    assert_eq!(source.train.len(), 5);
    for part in ["1 device (train/ant/z.jpg)", "1 pipe (train/ant/pipe.png)"] {
        assert!(source.notes[0].contains(part), "no `{part}`: {}", source.notes[0]);
    }
    // Nor are they opened where they stand in the place of a file that was listed.
    let set = Folder::open(&dir.path().join("train"), 8, 0).expect("a tree");
    fs::remove_file(ant.join("000.png")).expect("removed");
    fs::rename(ant.join("pipe.png"), ant.join("000.png")).expect("renamed");
    assert_says(
        &set.read(0, &mut [0; 192]).expect_err("a pipe"),
        &["000.png", "a pipe, not a file", "only regular files"],
    );
    // A link to nothing is no "no".
    for place in ["train/bee/lost.png", "train/lost", "val", "lost"] {
        let path = dir.path().join(place);
        symlink("nowhere", &path).expect("a link");
        assert_says(
            &open_error(Kind::Folder, dir.path()),
            &["cannot follow the link", place, "the link leads nowhere"],
        );
        fs::remove_file(path).expect("removed");
    }
    symlink("nowhere", dir.path().join("data_batch_1.bin")).expect("a link");
    assert_says(&open_error(Kind::Cifar10, dir.path()), &["data_batch_2.bin"]);
}

/// Names that differ in bytes are different, also where no text shows the difference. On Linux:
/// macOS and Windows allow no name that is not text.
#[cfg(target_os = "linux")]
#[test]
fn names_are_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = temp();
    let (one, two) = (OsStr::from_bytes(b"caf\xe9"), OsStr::from_bytes(b"caf\xe8"));
    let image = encoded(&picture(8, 8), ImageFormat::Png);
    for split in ["train", "test"] {
        for class in [one, two] {
            let class = dir.path().join(split).join(class);
            fs::create_dir_all(&class).expect("a folder");
            fs::write(class.join(OsStr::from_bytes(b"\xff.png")), &image).expect("a file");
        }
    }
    let source = Folder::open_datasets(dir.path(), 8, 0).expect("two classes");
    assert_eq!(source.train.classes(), [two, one]);
    assert_eq!(
        source.train.file(0).expect("a file"),
        Path::new("train").join(two).join(OsStr::from_bytes(b"\xff.png"))
    );
    fs::rename(
        dir.path().join("test").join(one),
        dir.path().join("test").join(OsStr::from_bytes(b"caf\xea")),
    )
    .expect("renamed");
    assert_says(&open_error(Kind::Folder, dir.path()), &[r"`caf\xe9` is only in", "train"]);
    fs::remove_dir_all(dir.path().join("test").join(OsStr::from_bytes(b"caf\xea")))
        .expect("removed");
    assert_says(
        &open_error(Kind::Folder, dir.path()),
        &[r"has 2 classes", "has 1", r"`caf\xe9` is only in"],
    );
}

// ---- What lies there instead ----

#[test]
fn other_versions_and_archives_are_recognised() {
    for (name, says) in [
        ("cifar-10-binary.tar.gz", "--dataset cifar10 --download"),
        ("stl10_binary.tar.gz", "--dataset stl10 --download"),
        ("cifar-10-python.tar.gz", "Python version"),
        ("data_batch_1", "Python version"),
        ("cifar-10-batches-py", "Python version"),
        ("cifar-100-binary.tar.gz", "CIFAR-100"),
        ("cifar-100-python", "CIFAR-100"),
        ("fine_label_names.txt", "CIFAR-100"),
    ] {
        let dir = temp();
        fs::write(dir.path().join(name), "x").expect("a file");
        for kind in [Kind::Cifar10, Kind::Stl10, Kind::Folder] {
            assert_says(&open_error(kind, dir.path()), &[&format!("`{name}`"), says]);
        }
        assert_says(&open_error(Kind::Cifar10, &dir.path().join(name)), &[name, "is not a folder"]);
    }
}

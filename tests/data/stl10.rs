//! STL-10 files.

use super::*;

/// Row `y`, column `x`, channel `c` of image `r`.
fn stl_byte(r: usize, y: usize, x: usize, c: usize) -> u8 {
    (r * 31 + y * 3 + x * 7 + c * 50) as u8
}

/// `n` images, each channel column by column.
fn stl_images(path: &Path, n: usize) {
    let column = |r, c, x| (0..96).map(move |y| stl_byte(r, y, x, c));
    let plane = |r, c| (0..96).flat_map(move |x| column(r, c, x));
    let bytes: Vec<u8> = (0..n).flat_map(|r| (0..3).flat_map(move |c| plane(r, c))).collect();
    fs::write(path, bytes).expect("written");
}

fn stl_labels(path: &Path, n: usize) {
    fs::write(path, (0..n).map(|r| (r * 7 % 10 + 1) as u8).collect::<Vec<_>>()).expect("written");
}

/// The five files with so many images.
pub(super) fn stl_folder(dir: &Path, unlabelled: usize, train: usize, test: usize) {
    stl_images(&dir.join("unlabeled_X.bin"), unlabelled);
    for (part, n) in [("train", train), ("test", test)] {
        stl_images(&dir.join(format!("{part}_X.bin")), n);
        stl_labels(&dir.join(format!("{part}_y.bin")), n);
    }
}

#[test]
fn stl_turns_columns_into_pixels() {
    let dir = temp();
    let inner = dir.path().join(stl10::FOLDER);
    fs::create_dir(&inner).unwrap();
    stl_folder(&inner, 4, 3, 2);
    let sets = Stl10::open(dir.path()).unwrap();
    assert_eq!([&sets.unlabelled, &sets.train, &sets.test].map(|set| set.len()), [4, 3, 2]);
    for set in [&sets.unlabelled, &sets.train, &sets.test] {
        assert_eq!((set.image_size(), set.mean_std()), (96, (stl10::MEAN, stl10::STD)));
        for r in 0..set.len() {
            let image = image_of(set, r);
            for (i, byte) in image.into_iter().enumerate() {
                let (y, x, c) = (i / 288, i / 3 % 96, i % 3);
                assert_eq!(
                    byte,
                    stl_byte(r, y, x, c),
                    "image {r}, row {y}, column {x}, channel {c}"
                );
            }
        }
    }
    // 1 to 10 in the file, from 0 here.
    assert_eq!((0..3).map(|i| sets.train.label(i)).collect::<Vec<_>>(), [0, 7, 4]);
    assert_eq!((&sets.train.classes()[2], sets.test.classes().len()), (&"car".into(), 10));
    // Without labels: one class.
    assert_eq!((sets.unlabelled.classes().len(), sets.unlabelled.label(3)), (1, 0));
    fs::write(inner.join(stl10::META_FILE), "a b\nc\nd\ne\nf\ng\nh\ni\nj\nk\n").unwrap();
    assert_eq!(Stl10::open(&inner).unwrap().test.classes()[0], "a b");
    let notes = || {
        let options = DataOptions {
            dir: Some(inner.clone()),
            n_val: Some(1),
            ..DataOptions::new(Kind::Stl10)
        };
        data::open(&options).expect("splits").notes
    };
    assert_eq!(notes(), Vec::<String>::new());
    fs::write(inner.join("extra_X.bin"), "x").expect("written");
    assert!(notes()[0].contains("1 .bin file (extra_X.bin)"), "{:?}", notes());
    fs::write(inner.join(stl10::META_FILE), "a\n").unwrap();
    assert_says(&open_error(Kind::Stl10, &inner), &["class_names.txt", "1 classes", "expected 10"]);
}

#[test]
fn stl_pretrains_without_labels_and_classifies_with() {
    let dir = temp();
    stl_folder(dir.path(), 64, 40, 20);
    let mut options =
        DataOptions { dir: Some(dir.path().to_owned()), seed: 3, ..DataOptions::new(Kind::Stl10) };
    let lengths = |options: &DataOptions| {
        let s = data::open(options).unwrap();
        [&s.train, &s.val, &s.labelled_train, &s.labelled_val, &s.test].map(Subset::len)
    };
    // A twentieth and a tenth are held out: 5,000 of 100,000, 500 of 5,000.
    assert_eq!(lengths(&options), [61, 3, 36, 4, 20]);
    let splits = data::open(&options).unwrap();
    let (many, few) = (split(64, 3, 3, None, true).unwrap(), split(40, 4, 3, None, true).unwrap());
    assert_eq!(
        (&splits.train.indices[..], &splits.val.indices[..]),
        (&many.train[..], &many.val[..])
    );
    assert_eq!(
        (&splits.labelled_train.indices[..], &splits.labelled_val.indices[..]),
        (&few.train[..], &few.val[..])
    );
    assert_eq!([&splits.train, &splits.val].map(|subset| subset.dataset.classes().len()), [1, 1]);
    assert_eq!(
        [&splits.labelled_train, &splits.labelled_val, &splits.test]
            .map(|subset| subset.dataset.classes().len()),
        [10; 3]
    );
    // More images than have labels are no mistake, more than there are is one.
    for (limit, want) in [(10, [10, 3, 10, 4, 20]), (50, [50, 3, 36, 4, 20])] {
        options.limit_train = Some(limit);
        assert_eq!(lengths(&options), want);
    }
    options.limit_train = Some(62);
    assert_says(&data::open(&options).err().unwrap(), &["--limit-train 62", "61"]);
    options = DataOptions { limit_train: None, shuffle: false, ..options };
    assert_eq!(lengths(&options), [64, 0, 40, 0, 20]);
    options.image_size = Some(32);
    assert_says(&data::open(&options).err().unwrap(), &["32", "stl10", "expected 96"]);
    // Elsewhere images have labels.
    let shapes =
        data::open(&DataOptions { shapes_len: (30, 10), ..DataOptions::new(Kind::Shapes) })
            .unwrap();
    assert_eq!(shapes.labelled_train.indices, shapes.train.indices);
    assert_eq!(shapes.labelled_val.indices, shapes.val.indices);
    assert!(Arc::ptr_eq(&shapes.labelled_train.dataset, &shapes.train.dataset));
}

#[test]
fn stl_errors_name_the_file_and_the_numbers() {
    let dir = temp();
    let path = |name: &str| dir.path().join(name);
    let fails = |parts: &[&str]| assert_says(&open_error(Kind::Stl10, dir.path()), parts);
    for (name, official) in [
        ("unlabeled_X.bin", "2764800000"),
        ("train_X.bin", "138240000"),
        ("test_X.bin", "221184000"),
    ] {
        stl_folder(dir.path(), 3, 2, 2);
        for length in [0, 27_647, 27_649] {
            File::options().write(true).open(path(name)).unwrap().set_len(length).unwrap();
            fails(&[
                name,
                &format!("has {length} bytes"),
                "multiple of 27648",
                official,
                "download it again",
            ]);
        }
    }
    for part in ["train", "test"] {
        let (images, labels) = (format!("{part}_X.bin"), format!("{part}_y.bin"));
        for n in [0, 1, 3] {
            stl_folder(dir.path(), 3, 2, 2);
            stl_labels(&path(&labels), n);
            fails(&[&labels, &format!("{n} labels"), "2 images", "download it again"]);
        }
        for label in [0, 11, 255] {
            fs::write(path(&labels), [10, label]).unwrap();
            fails(&[&labels, "record 1", &format!("label {label}"), "1 to 10"]);
        }
        for name in [images, labels] {
            stl_folder(dir.path(), 3, 2, 2);
            fs::remove_file(path(&name)).unwrap();
            fails(&[
                &name,
                "not found",
                "train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin",
            ]);
        }
    }
}

/// Files of the official lengths, almost all of it holes: opened and read here and there, 3.1 GB do
/// not become memory. On Linux, which says how much memory a process has.
#[cfg(target_os = "linux")]
#[test]
fn stl_is_mapped_and_not_loaded() {
    use std::os::unix::fs::FileExt;
    let resident = || -> u64 {
        let text = fs::read_to_string("/proc/self/statm").expect("Linux");
        text.split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .map(|pages: u64| pages * 4096)
            .expect("a number")
    };
    let dir = temp();
    for (name, length) in aavae::data::archive::STL10.files {
        File::create(dir.path().join(name)).unwrap().set_len(*length).unwrap();
    }
    stl_labels(&dir.path().join("train_y.bin"), 5_000);
    stl_labels(&dir.path().join("test_y.bin"), 8_000);
    let last = File::options().write(true).open(dir.path().join("unlabeled_X.bin")).unwrap();
    // Row 2, column 1 of green of the last image.
    last.write_all_at(&[77], 99_999 * 27_648 + 9_216 + 96 + 2).unwrap();
    let before = resident();
    let options = DataOptions { dir: Some(dir.path().to_owned()), ..DataOptions::new(Kind::Stl10) };
    let splits = data::open(&options).unwrap();
    let lengths =
        [&splits.train, &splits.val, &splits.labelled_train, &splits.labelled_val, &splits.test]
            .map(Subset::len);
    assert_eq!(lengths, [95_000, 5_000, 4_500, 500, 8_000]);
    for index in (0..99_999).step_by(9_999) {
        assert!(image_of(&*splits.train.dataset, index).iter().all(|&byte| byte == 0), "{index}");
    }
    let image = image_of(&*splits.train.dataset, 99_999);
    let lit: Vec<_> = image.iter().enumerate().filter(|(_, byte)| **byte != 0).collect();
    assert_eq!(lit, [((2 * 96 + 1) * 3 + 1, &77)]);
    // Other tests of this file run meanwhile; none holds a tenth of this.
    let grown = resident().saturating_sub(before);
    assert!(grown < 1 << 30, "{grown} bytes more are resident");
}

//! Files in memory, as a page has them, are read as those on disk.

use std::sync::Arc;

use aavae::data::cifar10::{FILE_RECORDS, RECORD_BYTES, TEST_FILE, TRAIN_FILES};
use aavae::data::{self, DataError, DataOptions, FileTree, Files, Kind, Splits};

use super::{assert_says, image_of, temp};

fn open(memory: FileTree, kind: Kind) -> Result<Splits, DataError> {
    let dir = Some(memory.root());
    data::open(&DataOptions {
        dir,
        files: Files::Memory(Arc::new(memory)),
        image_size: Some(32),
        ..DataOptions::new(kind)
    })
}

fn png(level: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(40, 33, image::Rgb([level, 7, 9]));
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("a PNG");
    bytes.into_inner()
}

/// `train` and `test` of two classes, below `above`.
fn tree(above: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![(format!("{above}.DS_Store"), vec![1])];
    for (split, count) in [("train", 12), ("test", 2)] {
        for (class, base) in [("ant", 10), ("ant-lion", 90)] {
            for i in 0..count {
                files.push((format!("{above}{split}/{class}/{i:02}.png"), png(base + i)));
            }
        }
    }
    files.push((format!("{above}train/ant/notes.txt"), b"x".to_vec()));
    files
}

#[test]
fn a_tree_in_memory_is_that_on_disk() {
    let dir = temp();
    for (path, bytes) in tree("") {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }
    let options = DataOptions {
        dir: Some(dir.path().to_owned()),
        image_size: Some(32),
        ..DataOptions::new(Kind::Folder)
    };
    let on_disk = data::open(&options).expect("a tree");
    for above in ["", "mine/", "a/b/"] {
        let mut memory = FileTree::default();
        tree(above).into_iter().rev().for_each(|(path, bytes)| memory.add(path, bytes));
        let here = open(memory, Kind::Folder).expect("a tree");
        assert_eq!(here.fingerprint(), on_disk.fingerprint(), "below `{above}`");
        let first = here.train.indices[0] as usize;
        let set = |splits: &Splits| image_of(&*splits.train.dataset, first);
        assert_eq!(set(&here), set(&on_disk));
        assert_eq!(here.notes.len(), 1);
        assert!(here.notes[0].contains("1 .txt file (train/ant/notes.txt)"), "{:?}", here.notes);
    }
}

#[test]
fn errors_name_the_file_in_memory() {
    let mut memory = FileTree::default();
    tree("mine/").into_iter().for_each(|(path, bytes)| memory.add(path, bytes));
    memory.add("mine/train/ant/03.png", b"not an image".to_vec());
    let splits = open(memory, Kind::Folder).expect("images are read later");
    let mut out = vec![0; 32 * 32 * 3];
    assert_says(&splits.train.dataset.read(3, &mut out).unwrap_err(), &["mine/train/ant/03.png"]);

    let mut memory = FileTree::default();
    memory.add("mine/train/ant/03.png", png(1));
    let error = open(memory, Kind::Folder).err().expect("no test images");
    assert_says(&error, &["mine/test", "not found"]);

    let cifar = |length: usize, missing: &str| {
        let mut memory = FileTree::default();
        for name in TRAIN_FILES.into_iter().chain([TEST_FILE]).filter(|name| *name != missing) {
            memory.add(name, vec![0; length]);
        }
        open(memory, Kind::Cifar10)
    };
    let error = cifar(3_073, "").err().expect("too short");
    assert_says(&error, &["data_batch_1.bin", "3073 bytes", "expected 30730000"]);
    let error = cifar(3_073, "data_batch_3.bin").err().expect("one is missing");
    assert_says(&error, &["data_batch_3.bin", "not found"]);
    let whole = cifar(FILE_RECORDS * RECORD_BYTES, "").expect("six files");
    assert_eq!((whole.train.len(), whole.val.len(), whole.test.len()), (45_000, 5_000, 10_000));
}

//! Data: damaged files give the documented error, orders and drawings are the same everywhere,
//! batches resume exactly.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aavae::data::cifar10::{self, Cifar10, FILE_RECORDS, RECORD_BYTES};
use aavae::data::shapes::{Part, Shapes};
use aavae::data::split::{permutation, split};
use aavae::data::stl10::{self, Stl10};
use aavae::data::{self, Batch, DataError, DataOptions, Dataset, Kind, Loader, Order, Subset};
use aavae::rng::Stream;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

#[path = "data/memory.rs"]
mod files_in_memory;
#[path = "data/folder.rs"]
mod folder_files;
#[path = "data/stl10.rs"]
mod stl10_files;

fn temp() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn image_of(dataset: &dyn Dataset, index: usize) -> Vec<u8> {
    let mut out = vec![0; dataset.image_size() * dataset.image_size() * 3];
    dataset.read(index, &mut out).expect("a readable image");
    out
}

fn open_error(kind: Kind, dir: &Path) -> DataError {
    let options = DataOptions { dir: Some(dir.to_owned()), ..DataOptions::new(kind) };
    data::open(&options).err().expect("an error")
}

#[track_caller]
fn assert_says(error: &DataError, parts: &[&str]) {
    let text = format!("{error} | {}", error.hint().unwrap_or_default());
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in `{text}`");
    }
}

// ---- CIFAR-10 ----

/// A file of `records`, whose byte `i` after the label of record `r` is a known function of both.
fn cifar_file(path: &Path, records: usize) {
    let mut bytes = Vec::new();
    for r in 0..records {
        bytes.push((r * 7 % 10) as u8);
        bytes.extend((0..3072).map(|i| cifar_byte(r, i)));
    }
    fs::write(path, bytes).expect("written");
}

fn cifar_byte(record: usize, i: usize) -> u8 {
    (record * 31 + i * 3 + i / 1024 * 50) as u8
}

/// All six files at their full length, sparse: zeros are label 0 and a black image.
fn sparse_cifar(dir: &Path) {
    for name in cifar10::TRAIN_FILES.iter().chain([&cifar10::TEST_FILE]) {
        let file = File::create(dir.join(name)).expect("created");
        file.set_len((FILE_RECORDS * RECORD_BYTES) as u64).expect("resized");
    }
}

#[test]
fn a_fingerprint_tells_images_apart() {
    let of = |len, seed, limit_train| {
        let options =
            DataOptions { shapes_len: len, seed, limit_train, ..DataOptions::new(Kind::Shapes) };
        data::open(&options).expect("shapes").fingerprint()
    };
    let first = of((300, 40), 0, None);
    assert!(first.len() == 64 && first == of((300, 40), 0, None));
    // As many images of the same classes, in another split.
    let split = of((300, 40), 1, None);
    let others =
        [split, of((301, 40), 0, None), of((300, 41), 0, None), of((300, 40), 0, Some(20))];
    assert!(others.iter().all(|other| *other != first), "{first} {others:?}");
}

/// One label or one image of many thousands is another data set, wherever it is; another folder is
/// not.
#[test]
fn a_fingerprint_sees_every_label_and_image() {
    let dir = temp();
    sparse_cifar(dir.path());
    let of = |dir: &Path| {
        let options = DataOptions { dir: Some(dir.to_owned()), ..DataOptions::new(Kind::Cifar10) };
        data::open(&options).expect("CIFAR-10").fingerprint()
    };
    let first = of(dir.path());
    // A label, and the first and the last byte of an image.
    let last = RECORD_BYTES - 1;
    for (file, record, at) in
        [("data_batch_5.bin", 9999, 0), ("data_batch_1.bin", 1234, 1), ("test_batch.bin", 77, last)]
    {
        let path = dir.path().join(file);
        let change = |value: u8| {
            let mut file = File::options().write(true).open(&path).expect("a file");
            file.seek(SeekFrom::Start((record * RECORD_BYTES + at) as u64)).expect("a place in it");
            file.write_all(&[value]).expect("written");
        };
        change(1);
        assert_ne!(of(dir.path()), first, "byte {at} of record {record} in {file}");
        change(0);
    }
    assert_eq!(of(dir.path()), first);
}

#[test]
fn a_fingerprint_of_a_folder_sees_names_and_lengths() {
    let dir = temp();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let image =
        |path: &Path, side: u32| image::RgbImage::new(side, side).save(path).expect("a PNG");
    for root in [&here, &there] {
        for (split, count) in [("train", 300), ("test", 10)] {
            for class in ["a", "b"] {
                let folder = root.join(split).join(class);
                fs::create_dir_all(&folder).expect("a folder");
                (0..count).for_each(|i| image(&folder.join(format!("{i:03}.png")), 4));
            }
        }
    }
    let of = |dir: &Path| {
        let options = DataOptions { dir: Some(dir.to_owned()), ..DataOptions::new(Kind::Folder) };
        data::open(&options).expect("a folder").fingerprint()
    };
    let first = of(&here);
    assert_eq!(of(&there), first, "where it lies does not count");
    let (train, test) = (there.join("train"), there.join("test"));
    image(&train.join("a/123.png"), 40);
    assert_ne!(of(&there), first, "a longer file");
    image(&train.join("a/123.png"), 4);
    fs::rename(test.join("b/009.png"), test.join("b/010.png")).expect("renamed");
    assert_ne!(of(&there), first, "another name");
    fs::rename(test.join("b/010.png"), test.join("b/009.png")).expect("renamed");
    image(&train.join("b/300.png"), 4);
    assert_ne!(of(&there), first, "one more");
    fs::remove_file(train.join("b/300.png")).expect("removed");
    fs::rename(train.join("a"), train.join("c")).expect("renamed");
    fs::rename(test.join("a"), test.join("c")).expect("renamed");
    assert_ne!(of(&there), first, "another class, and so other labels");
    fs::rename(train.join("c"), train.join("a")).expect("renamed");
    fs::rename(test.join("c"), test.join("a")).expect("renamed");
    assert_eq!(of(&there), first);
}

#[test]
fn cifar_turns_planes_into_pixels() {
    let dir = temp();
    let paths: Vec<PathBuf> = ["a.bin", "b.bin"].iter().map(|name| dir.path().join(name)).collect();
    paths.iter().for_each(|path| cifar_file(path, 3));
    let set = Cifar10::from_files(&paths, 3, Cifar10::class_names()).unwrap();
    assert_eq!((set.len(), set.image_size(), set.classes().len()), (6, 32, 10));
    assert_eq!((0..6).map(|i| set.label(i)).collect::<Vec<_>>(), [0, 7, 4, 0, 7, 4]);
    for index in [0, 2, 5] {
        let image = image_of(&set, index);
        for (y, x, c) in [(0, 0, 0), (0, 1, 2), (31, 31, 1), (17, 3, 2)] {
            assert_eq!(image[(y * 32 + x) * 3 + c], cifar_byte(index % 3, c * 1024 + y * 32 + x));
        }
    }
}

#[test]
fn cifar_opens_either_folder_and_reads_names() {
    let dir = temp();
    let inner = dir.path().join(cifar10::FOLDER);
    fs::create_dir(&inner).unwrap();
    sparse_cifar(&inner);
    let names = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n";
    fs::write(inner.join(cifar10::META_FILE), names).unwrap();
    let (train, test) = Cifar10::open(dir.path()).unwrap();
    assert_eq!((train.len(), test.len()), (50_000, 10_000));
    assert_eq!(train.classes()[9], "j");

    // What is not read is said, as of a tree of images.
    let notes = || {
        let options =
            DataOptions { dir: Some(dir.path().into()), ..DataOptions::new(Kind::Cifar10) };
        data::open(&options).expect("splits").notes
    };
    fs::write(inner.join("readme.html"), "x").unwrap();
    fs::write(inner.join("cifar-10-binary.tar.gz"), "x").unwrap();
    assert_eq!(notes(), Vec::<String>::new(), "what the archive brings is no news");
    fs::write(inner.join("data_batch_6.bin"), "x").unwrap();
    fs::create_dir(inner.join("more")).unwrap();
    let said = notes();
    for part in ["not read", "1 .bin file (data_batch_6.bin)", "1 folder (more)"] {
        assert!(said.len() == 1 && said[0].contains(part), "no `{part}`: {said:?}");
    }

    fs::write(inner.join(cifar10::META_FILE), "a\nb\n").unwrap();
    assert_says(
        &open_error(Kind::Cifar10, &inner),
        &["batches.meta.txt", "2 classes", "expected 10"],
    );
    fs::remove_file(inner.join(cifar10::META_FILE)).unwrap();

    for length in [30_729_999, 30_730_001, 30_730_000 - 3073, 0] {
        File::options()
            .write(true)
            .open(inner.join("data_batch_4.bin"))
            .unwrap()
            .set_len(length)
            .unwrap();
        let error = open_error(Kind::Cifar10, dir.path());
        assert!(matches!(error, DataError::FileSize { .. }), "{error:?}");
        assert_says(
            &error,
            &["data_batch_4.bin", &format!("has {length} bytes"), "expected 30730000"],
        );
    }
    fs::remove_file(inner.join("data_batch_4.bin")).unwrap();
    assert_says(&open_error(Kind::Cifar10, dir.path()), &["not found", "data_batch_4.bin"]);
}

#[test]
fn cifar_names_the_corrupt_label() {
    let dir = temp();
    let paths: Vec<PathBuf> = ["a.bin", "b.bin"].iter().map(|name| dir.path().join(name)).collect();
    paths.iter().for_each(|path| cifar_file(path, 5));
    let mut bytes = fs::read(&paths[1]).unwrap();
    bytes[3 * RECORD_BYTES] = 10;
    fs::write(&paths[1], bytes).unwrap();
    let error = Cifar10::from_files(&paths, 5, Cifar10::class_names()).err().unwrap();
    assert_says(&error, &["b.bin", "record 3", "label 10", "0 to 9"]);
}

#[test]
fn missing_and_mistaken_folders_have_hints() {
    let dir = temp();
    let nowhere = dir.path().join("nowhere");
    for kind in [Kind::Cifar10, Kind::Folder, Kind::Stl10] {
        let error = open_error(kind, &nowhere);
        assert!(matches!(error, DataError::Missing { .. }), "{error:?}");
        assert_says(&error, &["nowhere"]);
        assert_says(
            &data::open(&DataOptions::new(kind)).err().unwrap(),
            &[kind.name(), "needs a folder"],
        );
    }
    fs::create_dir_all(dir.path().join("train/cat")).unwrap();
    assert_says(&open_error(Kind::Cifar10, dir.path()), &["--dataset folder"]);
    assert_says(&open_error(Kind::Stl10, dir.path()), &["--dataset folder"]);
    let other = temp();
    sparse_cifar(other.path());
    assert_says(&open_error(Kind::Folder, other.path()), &["--dataset cifar10"]);
    assert_says(
        &open_error(Kind::Stl10, other.path()),
        &["train_X.bin", "not found", "--dataset cifar10"],
    );
    let third = temp();
    stl10_files::stl_folder(third.path(), 1, 1, 1);
    for kind in [Kind::Folder, Kind::Cifar10] {
        assert_says(&open_error(kind, third.path()), &["not found", "--dataset stl10"]);
    }
    assert_says(
        &"stl11".parse::<Kind>().unwrap_err(),
        &["stl11", "cifar10, folder, shapes, stl10"],
    );
    let options = DataOptions { image_size: Some(64), ..DataOptions::new(Kind::Shapes) };
    assert_says(&data::open(&options).err().unwrap(), &["64", "shapes", "expected 32"]);
}

// ---- Order ----

/// The numbers come from the Python lines in `src/data/split.rs`, run by Python.
#[test]
fn orders_replay() {
    assert_eq!(permutation(12, 0, Stream::Split, 0), [7, 11, 0, 9, 6, 2, 1, 8, 5, 3, 4, 10]);
    assert_eq!(
        permutation(12, 0x1234_5678_90ab, Stream::Order, 0),
        [8, 7, 9, 11, 10, 6, 0, 3, 5, 1, 2, 4]
    );
    assert_eq!(
        permutation(12, 0x1234_5678_90ab, Stream::Order, 7),
        [4, 6, 11, 5, 10, 9, 0, 8, 3, 7, 1, 2]
    );
    let indices = split(50_000, 5_000, 42, None, true).unwrap();
    assert_eq!(indices.train[..4], [40828, 38207, 46187, 34056]);
    assert_eq!(indices.val[4_996..], [46310, 19638, 25119, 42141]);
    let order = Order::new(45_000, 256, 42, true).unwrap();
    assert_eq!(order.steps_per_epoch(), 175);
    let (epoch, first) = order.locate(3 * 175 + 174);
    let positions = &order.epoch(epoch)[first..first + 4];
    assert_eq!(
        positions.iter().map(|&p| indices.train[p as usize]).collect::<Vec<_>>(),
        [40008, 41300, 36734, 32211]
    );
}

// ---- Shapes ----

#[test]
fn shapes_are_the_same_everywhere() {
    let set = Shapes::new(7, Part::Train, 40);
    let all: Vec<u8> = (0..40).flat_map(|i| image_of(&set, i)).collect();
    assert_eq!(hex(&all), "dbfd4b89518dfb1fa192212efd0120913cd01abff4f1fbd817b3318f023fc7a8");
    assert_eq!(
        hex(&image_of(&Shapes::new(0, Part::Test, 20), 19)),
        "e5abeca91e4fbac3615b380d05ade1d86e6031f7740dede517045e63e4d3c9e8"
    );
}

#[test]
fn shapes_statistics_are_those_declared() {
    let set = Shapes::new(0, Part::Train, 10_000);
    let (mut sum, mut square) = ([0_u64; 3], [0_u64; 3]);
    for i in 0..set.len() {
        for (j, byte) in image_of(&set, i).into_iter().enumerate() {
            sum[j % 3] += u64::from(byte);
            square[j % 3] += u64::from(byte) * u64::from(byte);
        }
    }
    let n = (set.len() * 1024) as f64;
    let (mean, std) = set.mean_std();
    for c in 0..3 {
        let m = sum[c] as f64 / n / 255.0;
        let s = (square[c] as f64 / n / 255.0 / 255.0 - m * m).sqrt();
        assert!(
            (m - f64::from(mean[c])).abs() < 0.002 && (s - f64::from(std[c])).abs() < 0.002,
            "{c}: {m} {s}"
        );
    }
}

/// Pixels alone must not give the class away, or nothing would be left to learn.
#[test]
fn shapes_are_hard_for_nearest_neighbours() {
    let (train, test) = (Shapes::new(0, Part::Train, 2_000), Shapes::new(0, Part::Test, 400));
    let train_images: Vec<Vec<u8>> = (0..train.len()).map(|i| image_of(&train, i)).collect();
    let mut right = 0;
    for t in 0..test.len() {
        let image = image_of(&test, t);
        let apart = |other: &Vec<u8>| -> i64 {
            other
                .iter()
                .zip(&image)
                .map(|(a, b)| (i32::from(*a) - i32::from(*b)).pow(2))
                .map(i64::from)
                .sum()
        };
        let mut near: Vec<(i64, u32)> =
            train_images.iter().enumerate().map(|(i, x)| (apart(x), train.label(i))).collect();
        near.select_nth_unstable(5);
        let mut votes = [0; 10];
        near[..5].iter().for_each(|(_, label)| votes[*label as usize] += 1);
        let best = (0..10).max_by_key(|&c| (votes[c as usize], 10 - c)).expect("ten classes");
        right += usize::from(best == test.label(t));
    }
    let accuracy = right as f64 / test.len() as f64;
    println!("raw-pixel 5-NN: {accuracy}");
    assert!((0.10..0.40).contains(&accuracy), "raw-pixel 5-NN accuracy {accuracy}");
}

// ---- Loader ----

fn shapes_subset(n: usize) -> Subset {
    Subset::full(Arc::new(Shapes::new(1, Part::Train, n)))
}

fn batches(loader: Loader) -> Vec<Batch> {
    loader.map(|batch| batch.expect("a batch")).collect()
}

#[test]
fn loader_resumes_exactly_and_packs() {
    let mut subset = shapes_subset(23);
    subset.indices = subset.indices.iter().copied().filter(|i| i % 7 != 0).collect(); // 19 images
    let order = Order::new(subset.len(), 4, 11, true).unwrap();
    let straight = batches(Loader::new(&subset, order, 0..13).unwrap());
    assert_eq!(straight.len(), 13);
    for start in [1, 3, 4, 9, 12] {
        assert_eq!(
            batches(Loader::new(&subset, order, start..13).unwrap()),
            straight[start as usize..]
        );
    }
    for (k, batch) in straight.iter().enumerate() {
        assert_eq!((batch.step, batch.epoch, batch.valid), (k as u64, k as u32 / 4, 4));
        for (row, &index) in batch.indices.iter().enumerate() {
            assert_eq!(batch.labels[row], subset.dataset.label(index as usize));
            let image = image_of(&*subset.dataset, index as usize);
            let packed = &batch.pixels[row * 1024..][..1024];
            assert!(
                packed
                    .iter()
                    .zip(image.chunks(3))
                    .all(|(w, rgb)| w.to_le_bytes() == [rgb[0], rgb[1], rgb[2], 0])
            );
        }
    }
    // An epoch uses 16 of the 19 images, each at most once.
    let mut used: Vec<u32> = straight[..4].iter().flat_map(|batch| batch.indices.clone()).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 16);
    assert!(used.iter().all(|i| i % 7 != 0));
    // Without shuffling: file order, every epoch.
    let plain = batches(Loader::new(&subset, Order::new(19, 4, 11, false).unwrap(), 3..5).unwrap());
    assert_eq!(
        (&plain[0].indices[..], &plain[1].indices[..]),
        (&subset.indices[12..16], &subset.indices[..4])
    );
}

#[test]
fn parts_of_a_step_are_its_batch() {
    let subset = shapes_subset(50);
    let order = Order::new(50, 12, 7, true).unwrap();
    let whole = batches(Loader::new(&subset, order, 2..9).unwrap());
    let parts = batches(Loader::in_parts(&subset, order, 3, 2..9).unwrap());
    assert_eq!(parts.len(), 3 * whole.len());
    for (batch, parts) in whole.iter().zip(parts.chunks(3)) {
        assert!(parts.iter().all(|p| (p.step, p.epoch, p.valid) == (batch.step, batch.epoch, 4)));
        assert_eq!(parts.iter().flat_map(|p| p.pixels.clone()).collect::<Vec<_>>(), batch.pixels);
        assert_eq!(parts.iter().flat_map(|p| p.indices.clone()).collect::<Vec<_>>(), batch.indices);
        assert_eq!(parts.iter().flat_map(|p| p.labels.clone()).collect::<Vec<_>>(), batch.labels);
    }
}

#[test]
fn evaluation_pads_the_last_batch() {
    let subset = shapes_subset(10);
    let all = batches(Loader::eval_batches(&subset, 4).unwrap());
    assert_eq!(
        all.iter().map(|b| (b.valid, b.labels.len(), b.pixels.len())).collect::<Vec<_>>(),
        [(4, 4, 4096), (4, 4, 4096), (2, 4, 4096)]
    );
    assert_eq!(all[2].indices, [8, 9, 9, 9]);
    assert_eq!(all[2].pixels[3 * 1024..], all[2].pixels[1024..2048]);
    assert_eq!(batches(Loader::eval_batches(&shapes_subset(0), 4).unwrap()), []);
    assert!(matches!(Loader::eval_batches(&subset, 0), Err(DataError::BatchZero)));
}

/// Ten black images; what reading one does is up to the test.
struct Black {
    classes: Vec<OsString>,
    read: Box<dyn Fn(usize) -> Result<(), DataError> + Send + Sync>,
}

fn black(read: impl Fn(usize) -> Result<(), DataError> + Send + Sync + 'static) -> Subset {
    Subset::full(Arc::new(Black { classes: vec!["only".into()], read: Box::new(read) }))
}

impl Dataset for Black {
    fn name(&self) -> &str {
        "black"
    }
    fn len(&self) -> usize {
        10
    }
    fn image_size(&self) -> usize {
        1
    }
    fn classes(&self) -> &[OsString] {
        &self.classes
    }
    fn label(&self, _: usize) -> u32 {
        0
    }
    fn read(&self, index: usize, _: &mut [u8]) -> Result<(), DataError> {
        (self.read)(index)
    }
    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        ([0.0; 3], [1.0; 3])
    }
}

/// Images of which one fails or panics, and how many were read.
fn faulty(bad: usize, panics: bool) -> (Subset, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = reads.clone();
    let subset = black(move |index| {
        count.fetch_add(1, Ordering::SeqCst);
        assert!(!(panics && index == bad), "a bug");
        if index == bad { Err(DataError::BatchZero) } else { Ok(()) }
    });
    (subset, reads)
}

#[test]
fn loader_hands_errors_over_and_ends() {
    let (subset, _) = faulty(5, false);
    let mut loader =
        Loader::new(&subset, Order::new(10, 2, 0, false).unwrap(), 0..u64::MAX).unwrap();
    assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
    assert!(loader.next().unwrap().is_err());
    assert!(loader.next().is_none() && loader.next().is_none());

    let (subset, _) = faulty(5, true);
    let mut loader =
        Loader::new(&subset, Order::new(10, 2, 0, false).unwrap(), 0..u64::MAX).unwrap();
    assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loader.next()));
    assert!(ended.is_err(), "a panic in a data set is a panic of the loader");
}

#[test]
fn loader_stays_a_few_batches_ahead_and_stops_on_drop() {
    let (subset, reads) = faulty(99, false);
    let mut loader =
        Loader::new(&subset, Order::new(10, 1, 0, false).unwrap(), 0..u64::MAX).unwrap();
    assert!(loader.next().unwrap().is_ok());
    thread::sleep(Duration::from_millis(50));
    assert!(reads.load(Ordering::SeqCst) <= 4, "one taken, two waiting, one in the thread's hands");
    drop(loader); // returns only once the thread is joined
    let after = reads.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(reads.load(Ordering::SeqCst), after);
    assert_eq!(Arc::strong_count(&subset.dataset), 1);
}

/// Whoever waits for a batch that never comes hears of the end all the same, and is not held up by
/// the thread that hangs in the file.
#[test]
fn waiting_for_a_disk_that_does_not_answer_ends() {
    let [stop, let_go, ended] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    // A disk that stops answering: the reads of the last five wait until they are let go.
    let released = let_go.clone();
    let subset = black(move |index| {
        while index >= 5 && !released.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let asked = stop.clone();
    let mut batches =
        Loader::eval_batches(&subset, 1).unwrap().until(move || asked.load(Ordering::SeqCst));
    for step in 0..5 {
        assert_eq!(batches.next().expect("a batch").expect("an image").step, step);
    }
    // If nobody hears, the disk answers after all, so that this fails instead of hanging.
    let (asks, answers, over) = (stop.clone(), let_go.clone(), ended.clone());
    let clock = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        asks.store(true, Ordering::SeqCst);
        for _ in 0..1000 {
            if over.load(Ordering::SeqCst) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        answers.store(true, Ordering::SeqCst);
    });
    let began = Instant::now();
    assert!(batches.next().is_none(), "the end was asked for");
    let heard = began.elapsed();
    drop(batches);
    let left = began.elapsed();
    ended.store(true, Ordering::SeqCst);
    clock.join().expect("no panic");
    let answered = let_go.swap(true, Ordering::SeqCst);
    assert!(!answered, "the wait ended with the disk's answer, after {left:?}");
    assert!(heard >= Duration::from_millis(300), "it did not wait: {heard:?}");
}

#[test]
fn batches_until_nothing_are_all_batches() {
    let subset = shapes_subset(10);
    let all = |stop: fn() -> bool| -> Vec<Batch> {
        let batches = Loader::eval_batches(&subset, 4).unwrap().until(stop);
        batches.map(|batch| batch.expect("a batch")).collect()
    };
    assert_eq!(all(|| false), batches(Loader::eval_batches(&subset, 4).unwrap()));
    assert_eq!(all(|| true), [], "what is ready is not taken either");
    let whole = |stop: fn() -> bool| -> Result<Vec<Batch>, DataError> {
        Loader::eval_batches(&subset, 4).unwrap().unless(stop).collect()
    };
    assert_eq!(whole(|| false).unwrap(), all(|| false));
    assert!(matches!(whole(|| true), Err(DataError::Stopped)));
    let (subset, _) = faulty(5, false);
    let mut batches = Loader::eval_batches(&subset, 5).unwrap().until(|| false);
    assert!(batches.next().unwrap().is_ok() && batches.next().unwrap().is_err());
    assert!(batches.next().is_none());
}

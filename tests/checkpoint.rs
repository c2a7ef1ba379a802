//! Checkpoints: what is saved comes back, damage is found wherever it is, and a run killed at any
//! moment resumes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aavae::run::checkpoint::{Checkpoint, CheckpointError, NamedTensor, TensorData};
use aavae::run::store::{LAST, Store};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

fn temp() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Differs from step to step, has odd sizes, a scalar, an empty tensor, and values that arithmetic
/// would lose.
fn sample(step: u64) -> Checkpoint {
    let weights = (0..105).map(|i| (i as f32 - 50.0) * 0.37 + step as f32);
    let odd = vec![f32::from_bits(0x7fc0_1234), -0.0, f32::MIN_POSITIVE / 8.0, f32::NEG_INFINITY];
    let tensors = [
        ("encoder.conv1.weight", NamedTensor::f32(&[7, 5, 3, 1], weights.collect())),
        ("encoder.bn1.num_batches_tracked", NamedTensor::i64(&[], vec![step as i64])),
        ("a.empty", NamedTensor::f32(&[0, 3], vec![])),
        ("log_scale", NamedTensor::f32(&[4], odd)),
    ];
    let meta = [
        ("step", step.to_string()),
        ("config", "a = \"é\"\n".to_owned()),
        ("method", "aavae".to_owned()),
    ];
    Checkpoint {
        tensors: tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(),
        meta: meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// Equality in bits, as NaN is not equal to itself.
fn assert_same(left: &Checkpoint, right: &Checkpoint) {
    assert_eq!(left.digest(), right.digest());
    assert_eq!(left.meta, right.meta);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

fn write_foreign(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("bytes")).expect("a file");
}

fn load_error(path: &Path) -> String {
    Checkpoint::load(path).expect_err("a bad file").to_string()
}

#[test]
fn comes_back_as_it_was_in_the_same_bytes() {
    let dir = temp();
    let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    sample(3).save(&a).expect("saved");
    let loaded = Checkpoint::load(&a).expect("loaded");
    assert_same(&loaded, &sample(3));
    loaded.save(&b).expect("saved again");
    let bytes = fs::read(&a).expect("bytes");
    assert_eq!(bytes, fs::read(&b).expect("bytes"));
    assert_eq!(bytes, sample(3).to_bytes(), "a file in memory is the file");
    let memory = Checkpoint::from_bytes(Path::new("memory"), &bytes).expect("read from memory");
    assert_same(&memory, &sample(3));
    let cut = Checkpoint::from_bytes(Path::new("memory"), &bytes[..bytes.len() - 1]);
    assert!(cut.is_err_and(|error| error.to_string().contains("`memory`")));
    // Fixed for good: other processes, platforms and versions have to write the same.
    assert_eq!(sample(3).digest(), DIGEST);
    assert_eq!(names(dir.path()), ["a.safetensors", "b.safetensors"]);

    // Others can read it: shapes as in PyTorch, data aligned.
    let foreign = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(foreign.tensor("encoder.conv1.weight").expect("a tensor").shape(), [7, 5, 3, 1]);
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    assert_eq!(start % 8, 0);

    let empty = Checkpoint::default();
    empty.save(&a).expect("saved");
    assert_eq!(Checkpoint::load(&a).expect("loaded"), empty);
}

const DIGEST: &str = "1c23a3b6463eda68a14698d48f43023cca319dbca14cacb2da13c8cef662be5a";

#[test]
fn digest_covers_names_types_shapes_and_data_only() {
    let digest = sample(1).digest();
    let changed = |change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = sample(1);
        change(&mut checkpoint);
        checkpoint.digest()
    };
    assert_eq!(digest, changed(&|c| c.meta.clear()));
    assert_ne!(digest, changed(&|c| drop(c.tensors.remove("a.empty"))));
    assert_ne!(
        digest,
        changed(&|c| c.tensors.get_mut("a.empty").expect("a tensor").shape = vec![3, 0])
    );
    assert_ne!(
        digest,
        changed(&|c| c.tensors.get_mut("log_scale").expect("a tensor").shape = vec![2, 2])
    );
    assert_ne!(
        digest,
        changed(&|c| c.tensors.get_mut("a.empty").expect("a tensor").data = TensorData::I64(vec![]))
    );
    assert_ne!(
        digest,
        changed(&|c| {
            let tensor = c.tensors.remove("log_scale").expect("a tensor");
            c.tensors.insert("log_scalf".to_owned(), tensor);
        })
    );
}

#[test]
fn every_truncation_and_extension_is_found() {
    let dir = temp();
    let path = dir.path().join("c.safetensors");
    sample(1).save(&path).expect("saved");
    let bytes = fs::read(&path).expect("bytes");
    for part in 0..7 {
        let length = bytes.len() * part / 7;
        fs::write(&path, &bytes[..length]).expect("a truncated file");
        let error = load_error(&path);
        assert!(
            error.contains(&format!("{length} bytes")) && error.contains("c.safetensors"),
            "{error}"
        );
        assert_eq!(error.contains("is truncated"), part > 0, "{error}");
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).expect("a truncated file");
        load_error(&path);
    }
    fs::write(&path, [&bytes[..], b"x"].concat()).expect("a long file");
    assert!(load_error(&path).contains("is too long"));
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = temp();
    let path = dir.path().join("c.safetensors");
    sample(1).save(&path).expect("saved");
    let mut bytes = fs::read(&path).expect("bytes");
    let mut digests = 0;
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).expect("a damaged file");
        match Checkpoint::load(&path) {
            Ok(_) => panic!("bit {} of byte {} flipped and nobody noticed", bit % 8, bit / 8),
            Err(CheckpointError::Digest { expected, found, .. }) => {
                assert_ne!(expected, found);
                digests += 1;
            }
            Err(_) => {}
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(
        digests > 8 * 4 * 105,
        "flips in the data are told by the digest, but only {digests} were"
    );
}

#[test]
fn what_is_no_checkpoint_is_told_apart() {
    let dir = temp();
    let path = dir.path().join("x.safetensors");
    assert!(matches!(Checkpoint::load(&path), Err(CheckpointError::Missing { .. })));
    assert!(matches!(
        Checkpoint::load(dir.path()),
        Err(CheckpointError::Io { .. } | CheckpointError::NotSafetensors { .. })
    ));
    // The head of a ZIP archive whose first entry is named as torch.save names it.
    let mut head = [0; 30];
    head[..4].copy_from_slice(b"PK\x03\x04");
    head[26] = 16; // bytes of the name
    fs::write(&path, [&head[..], b"archive/data.pkl"].concat()).expect("a file");
    let error = Checkpoint::load(&path).expect_err("a zip file");
    assert!(error.to_string().contains("is in PyTorch's own format"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("save_file")));
    fs::write(&path, b"GIF89a, of all things").expect("a file");
    assert!(load_error(&path).contains("is not a safetensors file"));
    fs::write(&path, b"\x08\0\0\0\0\0\0\0not json").expect("a file");
    assert!(load_error(&path).contains("header: "));

    let mut newer = sample(1);
    newer.save(&path).expect("saved");
    let text = fs::read(&path).expect("bytes");
    let at =
        text.windows(22).position(|w| w == b"\"format_version\":\"1\",\"").expect("the version")
            + 18;
    let mut text = text;
    text[at] = b'2';
    fs::write(&path, text).expect("a newer file");
    assert!(load_error(&path).ends_with("has format version 2; this program reads up to 1"));
    // The reserved keys are ours: what the caller says there does not count.
    newer.meta.insert("format_version".to_owned(), "9".to_owned());
    newer.save(&path).expect("saved");
    assert_same(&Checkpoint::load(&path).expect("loaded"), &sample(1));
}

#[test]
fn pytorch_files_load_and_half_types_convert() {
    let dir = temp();
    let path = dir.path().join("foreign.safetensors");
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    write_foreign(
        &path,
        &[
            (
                "f64",
                Dtype::F64,
                vec![2],
                [0.1f64, -1e300].iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
            ("f16", Dtype::F16, vec![256, 256], halves.clone()),
            ("bf16", Dtype::BF16, vec![65536], halves),
            ("i64", Dtype::I64, vec![], 7i64.to_le_bytes().to_vec()),
        ],
    );
    let loaded = Checkpoint::load(&path).expect("loaded");
    assert_eq!(loaded.tensors["f64"].data, TensorData::F32(vec![0.1, f32::NEG_INFINITY]));
    assert_eq!(loaded.tensors["i64"], NamedTensor::i64(&[], vec![7]));
    assert_eq!(loaded.meta, BTreeMap::new());
    for (name, exponent_bits, fraction_bits) in [("f16", 5, 10), ("bf16", 8, 7)] {
        let TensorData::F32(data) = &loaded.tensors[name].data else { panic!("{name} is not f32") };
        let bias = (1 << (exponent_bits - 1)) - 1;
        for (bits, got) in data.iter().enumerate() {
            let exponent = (bits >> fraction_bits) as i32 & ((1 << exponent_bits) - 1);
            let fraction =
                (bits & ((1 << fraction_bits) - 1)) as f64 / f64::from(1 << fraction_bits);
            let size = match exponent {
                0 => fraction * 2f64.powi(1 - bias),
                e if e == 2 * bias + 1 => {
                    if fraction == 0.0 {
                        f64::INFINITY
                    } else {
                        f64::NAN
                    }
                }
                e => (1.0 + fraction) * 2f64.powi(e - bias),
            };
            let want = if bits >> 15 == 1 { -size } else { size };
            assert!(
                f64::from(*got) == want || got.is_nan() && want.is_nan(),
                "{name} {bits:#x}: {got}, expected {want}"
            );
            assert!(
                got.is_nan() || got.is_sign_negative() == (bits >> 15 == 1),
                "{name} {bits:#x}: the sign of {got}"
            );
        }
    }

    write_foreign(&path, &[("mask", Dtype::BOOL, vec![3], vec![0, 1, 0])]);
    let error = load_error(&path);
    assert!(error.contains("tensor `mask` has elements of type BOOL"), "{error}");
}

/// Either file is a checkpoint, and an old one that cannot be removed is an error.
#[test]
fn what_a_store_holds_and_cannot_remove() {
    let dir = temp();
    let store = Store::new(dir.path().join("checkpoints"));
    assert!(!store.holds_any().expect("no folder yet"));
    store.save(1, &sample(1), 1).expect("saved");
    fs::remove_file(store.path(1)).expect("the step's file");
    assert!(store.holds_any().expect("a folder"), "`last` alone");
    store.save(2, &sample(2), 1).expect("saved");
    fs::remove_file(store.last()).expect("the last file");
    assert!(store.holds_any().expect("a folder"), "a step's file alone");

    fs::create_dir(store.path(1)).expect("a folder in a file's place");
    let error = store.save(3, &sample(3), 1).map(|_| ()).expect_err("a folder stays");
    assert!(error.to_string().contains("step-1.safetensors"), "{error}");
}

#[test]
fn store_keeps_the_newest_and_last() {
    let dir = temp();
    let store = Store::new(dir.path().join("run/checkpoints"));
    assert!(store.latest().found.is_none() && store.latest().skipped.is_empty());
    for step in [5, 10, 15, 100] {
        store.save(step, &sample(step), 2).expect("saved");
    }
    assert_eq!(
        names(&dir.path().join("run/checkpoints")),
        ["last.safetensors", "step-100.safetensors", "step-15.safetensors"]
    );
    let latest = store.latest();
    let (path, checkpoint) = latest.found.expect("a checkpoint");
    assert!(path.ends_with(LAST) && latest.skipped.is_empty());
    assert_same(&checkpoint, &sample(100));
    // At least one is kept, and it is written once: `last` is another name of it.
    let saved = store.save(101, &sample(101), 0).expect("saved");
    assert_eq!((saved.digest, saved.path), (sample(101).digest(), path));
    assert!(saved.held.is_none());
    assert_eq!(
        names(&dir.path().join("run/checkpoints")),
        ["last.safetensors", "step-101.safetensors"]
    );
    // Windows does not say so without its own calls.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |path: &Path| fs::metadata(path).expect("a file").ino();
        assert_eq!(place(&store.last()), place(&store.path(101)));
    }
    // What happens to one file by way of a rename does not happen to the other.
    fs::remove_file(store.path(101)).expect("removed");
    fs::write(store.path(101), b"damaged").expect("damage");
    assert_same(&store.latest().found.expect("a checkpoint").1, &sample(101));
}

/// `last` stays what it was while another program holds it open; the run goes on from the newer
/// file.
#[test]
fn the_highest_step_is_the_newest() {
    let dir = temp();
    let store = Store::new(dir.path());
    store.save(1, &sample(1), 3).expect("saved");
    sample(2).save(store.path(2)).expect("saved");
    let latest = store.latest();
    assert!(latest.skipped.is_empty());
    let (path, checkpoint) = latest.found.expect("a checkpoint");
    assert_eq!(path, store.path(2));
    assert_same(&checkpoint, &sample(2));
    fs::write(store.path(2), "half").expect("damage");
    let latest = store.latest();
    assert_same(&latest.found.expect("a checkpoint").1, &sample(1));
    let [CheckpointError::NotSafetensors { path, .. }] = &latest.skipped[..] else {
        panic!("{:?}", latest.skipped)
    };
    assert_eq!(*path, store.path(2));
    // Weights from elsewhere say no step, and are the newest.
    let mut foreign = sample(1);
    foreign.meta.clear();
    foreign.save(store.last()).expect("saved");
    assert_same(&store.latest().found.expect("a checkpoint").1, &foreign);
}

/// Whether a run without a checkpoint was killed before the first, or lost them.
#[test]
fn a_store_knows_whether_anything_was_saved() {
    let dir = temp();
    let store = Store::new(dir.path().join("checkpoints"));
    assert!(!store.is_unsaved() && !store.holds_any().expect("nothing there"));
    store.begin().expect("begun");
    assert!(store.is_unsaved() && !store.holds_any().expect("nothing there"));
    store.save(1, &sample(1), 1).expect("saved");
    assert!(!store.is_unsaved() && store.holds_any().expect("a folder"));
    assert_eq!(names(&dir.path().join("checkpoints")), ["last.safetensors", "step-1.safetensors"]);
    for name in names(&dir.path().join("checkpoints")) {
        assert!(Store::owns(&name), "{name}");
    }
    for name in
        ["step-.safetensors", "step-1.safetensors.tmp", "best.safetensors", "epoch-x.safetensors"]
    {
        assert!(!Store::owns(name), "{name}");
    }
}

#[test]
fn a_damaged_last_falls_back_and_says_so() {
    let dir = temp();
    let store = Store::new(dir.path());
    for step in [9, 10, 11] {
        store.save(step, &sample(step), 3).expect("saved");
    }
    // Damage within the newest file has both its names.
    let last = dir.path().join(LAST);
    let bytes = fs::read(&last).expect("bytes");
    fs::write(&last, &bytes[..bytes.len() / 2]).expect("a truncated file");
    let latest = store.latest();
    let (path, checkpoint) = latest.found.expect("a checkpoint");
    assert_eq!(path, store.path(10));
    assert_same(&checkpoint, &sample(10));
    let [CheckpointError::Length { path, .. }, CheckpointError::Length { path: linked, .. }] =
        &latest.skipped[..]
    else {
        panic!("{:?}", latest.skipped)
    };
    assert_eq!((path, linked), (&last, &store.path(11)));

    fs::remove_file(&last).expect("removed");
    let mut flipped = bytes;
    *flipped.last_mut().expect("a byte") ^= 1;
    fs::write(store.path(11), flipped).expect("a damaged file");
    let latest = store.latest();
    assert_same(&latest.found.expect("a checkpoint").1, &sample(10));
    assert!(matches!(
        &latest.skipped[..],
        [CheckpointError::Missing { .. }, CheckpointError::Digest { .. }]
    ));
    // Going on from step 10 does not take the file of step 10 for old because of step 11.
    store.save(10, &sample(10), 1).expect("saved");
    assert_eq!(
        names(dir.path()),
        ["last.safetensors", "step-10.safetensors", "step-11.safetensors"]
    );
}

/// Every state that a kill can leave: before, within and after each of the two files, before the
/// clean-up.
#[test]
fn killed_at_any_moment_resumes() {
    let whole = temp();
    let store = Store::new(whole.path());
    store.save(2, &sample(2), 1).expect("saved");
    let new = fs::read(store.path(2)).expect("bytes");
    for moment in 0..10 {
        let dir = temp();
        let store = Store::new(dir.path());
        store.save(1, &sample(1), 1).expect("saved");
        let partial = |name: &str, eighth: usize| {
            fs::write(dir.path().join(name), &new[..new.len() * eighth / 8])
                .expect("a partial file");
        };
        if moment < 9 {
            partial("step-2.safetensors.0123456789abcdef.tmp", moment);
        } else {
            partial("step-2.safetensors", 8);
            fs::hard_link(store.path(2), dir.path().join("last.safetensors.0123456789abcdef.tmp"))
                .expect("a link");
        }
        let latest = store.latest();
        assert_same(
            &latest.found.expect("a checkpoint").1,
            &sample(if moment < 9 { 1 } else { 2 }),
        );
        assert!(latest.skipped.is_empty());
        store.save(2, &sample(2), 1).expect("saved again");
        let left = names(dir.path());
        let expected =
            ["last.safetensors", "last.safetensors.0123456789abcdef.tmp", "step-2.safetensors"];
        assert_eq!(
            left,
            if moment < 9 { vec![expected[0], expected[2]] } else { expected.to_vec() },
            "moment {moment}"
        );
        aavae::disk::sweep(dir.path(), Store::owns);
        assert_eq!(
            names(dir.path()),
            ["last.safetensors", "step-2.safetensors"],
            "moment {moment}"
        );
        assert_eq!(fs::read(dir.path().join(LAST)).expect("bytes"), new);
    }
}

/// A checkpoint that cannot be written leaves the one before it, and no half of its own.
#[test]
fn an_obstacle_leaves_the_previous_checkpoint() {
    for obstacle in ["step-2.safetensors", "last.safetensors"] {
        let dir = temp();
        let store = Store::new(dir.path());
        store.save(1, &sample(1), 1).expect("saved");
        let path = dir.path().join(obstacle);
        drop(fs::remove_file(&path));
        fs::create_dir(&path).expect("a folder is in the way");
        let error = store.save(2, &sample(2), 1).expect_err("an obstacle").to_string();
        assert!(error.contains("cannot replace") && error.contains(obstacle), "{error}");
        let newest = if obstacle.starts_with("last") { 2 } else { 1 };
        assert_same(&store.latest().found.expect("a checkpoint").1, &sample(newest));
        assert!(
            names(dir.path()).iter().all(|name| !name.ends_with(".tmp")),
            "{:?}",
            names(dir.path())
        );
        fs::remove_dir(&path).expect("the obstacle goes");
        store.save(2, &sample(2), 1).expect("saved");
        assert_eq!(names(dir.path()), ["last.safetensors", "step-2.safetensors"]);
    }
}

#[test]
fn an_unwritable_place_is_named() {
    let dir = temp();
    let file = dir.path().join("file");
    fs::write(&file, "").expect("a file");
    let error = Store::new(file.join("checkpoints"))
        .save(1, &sample(1), 1)
        .expect_err("a file is no folder")
        .to_string();
    assert!(error.contains("cannot create") && error.contains("checkpoints"), "{error}");

    // A folder where the file should go: written, but not to be renamed.
    let path: PathBuf = dir.path().join("taken.safetensors");
    fs::create_dir(&path).expect("a folder");
    let error = sample(1).save(&path).expect_err("a folder is in the way").to_string();
    assert!(error.contains("cannot replace") && error.contains("taken.safetensors"), "{error}");
    assert_eq!(names(dir.path()), ["file", "taken.safetensors"]);
}

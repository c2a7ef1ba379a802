//! STL-10 from its files to a probe.

use std::fs::{self, File};
use std::path::Path;

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{Ran, folder, png, sh};

const IMAGE: u64 = 27_648;

/// So many images: stripes whose direction and colour tell ten classes apart, each channel column
/// by column. Image `i` is of class `i % 10`.
fn images(path: &Path, n: usize) {
    let byte = |i: usize, c: usize, x: usize, y: usize| {
        let class = i % 10;
        let stripe = if class < 5 { x } else { y } / 8 % 2 * 90;
        (stripe + (class % 5 * 3 + c * 7 + i) % 16 * 8) as u8
    };
    let pixels = |i, c| (0..96).flat_map(move |x| (0..96).map(move |y| byte(i, c, x, y)));
    fs::write(
        path,
        (0..n).flat_map(|i| (0..3).flat_map(move |c| pixels(i, c))).collect::<Vec<u8>>(),
    )
    .expect("a file");
}

fn files(dir: &Path, unlabelled: usize, train: usize, test: usize) {
    fs::create_dir_all(dir).expect("a folder");
    images(&dir.join("unlabeled_X.bin"), unlabelled);
    for (part, n) in [("train", train), ("test", test)] {
        images(&dir.join(format!("{part}_X.bin")), n);
        fs::write(
            dir.join(format!("{part}_y.bin")),
            (0..n).map(|i| (i % 10 + 1) as u8).collect::<Vec<_>>(),
        )
        .expect("a file");
    }
}

fn pretrain(data: &Path, out: &Path, more: &str) -> Ran {
    let flags = "--device cpu --dataset stl10 --width 8 --batch-size 4";
    sh(&format!("pretrain {flags} --data-dir {} --out {} {more}", data.display(), out.display()))
}

#[test]
fn from_files_to_a_probe() {
    let dir = folder();
    let (data, out, file) =
        (dir.path().join("data"), dir.path().join("run"), dir.path().join("file"));
    files(&data.join("stl10_binary"), 64, 40, 20);
    let summary = pretrain(&data, &out, "--max-steps 2 --probe-epochs 1").ok().json();
    assert_eq!((&summary["dataset"], &summary["steps"]), (&"stl10".into(), &2.into()));
    assert!(summary["validation"]["loss"].as_f64().is_some_and(f64::is_finite), "{summary}");
    assert!(summary["probe"]["accuracy"].is_number(), "{summary}");
    // k = 200 does not fit the 36 images that are left of 40.
    assert_eq!(summary["knn"].as_array().map(Vec::len), Some(2), "{summary}");
    let config = fs::read_to_string(out.join("config.toml")).expect("a file");
    for line in ["dataset = \"stl10\"", "stem = \"stl\"", "image_size = 96"] {
        assert!(config.lines().any(|l| l == line), "no `{line}` in {config}");
    }
    assert_eq!(
        png(&out.join("images/reconstruction-000002.png")),
        (4 * 192 + 3 * 2, 3 * 192 + 2 * 2)
    );

    let eval = |line: &str| {
        sh(&format!("{line} --device cpu --json --out {}", file.display())).ok().json()
    };
    let run = out.display();
    let probe = eval(&format!("probe {run} --epochs 2"));
    assert_eq!((&probe["train_images"], &probe["test_images"]), (&36.into(), &20.into()));
    assert_eq!(eval(&format!("probe {run} --epochs 1 --split val"))["test_images"], 4);
    let knn = eval(&format!("knn {run} --limit-train 30"));
    assert_eq!((&knn["train_images"], &knn["test_images"]), (&30.into(), &20.into()));
    // The labelled files, in their order.
    for (split, n) in [("train", 40), ("test", 20)] {
        assert_eq!(eval(&format!("embed {run} --split {split}"))["images"], n);
        let TensorData::I64(labels) =
            &Checkpoint::load(&file).expect("a file").tensors["labels"].data
        else {
            panic!("labels are i64")
        };
        assert_eq!(*labels, (0..n).map(|i| i % 10).collect::<Vec<i64>>());
    }
    // What was pretrained on: 61 images, of which the command takes all.
    assert_eq!(eval(&format!("reconstruct {run} --split train --count 99"))["images"], 61);
    // The network is made for 96 pixels.
    sh(&format!("knn {run} --device cpu --dataset shapes"))
        .fails(1, &["image size 96", "`shapes`", "expected 32"]);
    let line = format!("pretrain --resume --out {run} --device cpu --max-steps 3 --no-eval");
    assert_eq!(sh(&line).ok().json()["steps"], 3);
    sh(&format!("{line} --stem imagenet")).fails(1, &["--stem is", "imagenet", "stl"]);
}

#[test]
fn damaged_files() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    let fails = |says: &[&str]| {
        let ran = pretrain(&data, &out, "--max-steps 1 --no-eval").fails(1, says);
        assert!(!out.exists(), "a run that could not start leaves nothing");
        ran
    };
    fails(&["data folder not found", "data"]).hints("--download");
    fs::create_dir(&data).expect("a folder");
    fails(&["train_X.bin", "not found"]).hints("stl10_binary.tar.gz");
    files(&data, 8, 8, 8);
    fs::remove_file(data.join("train_y.bin")).expect("gone");
    fails(&["train_y.bin", "not found"]).hints("train_y.bin");
    fs::write(data.join("train_y.bin"), [1; 7]).expect("a file");
    fails(&["train_y.bin", "7 labels", "8 images"]).hints("download");
    fs::write(data.join("train_y.bin"), [1, 2, 3, 4, 0, 6, 7, 8]).expect("a file");
    fails(&["train_y.bin", "record 4", "label 0", "1 to 10"]).hints("damaged");
    files(&data, 8, 8, 8);
    File::options()
        .write(true)
        .open(data.join("unlabeled_X.bin"))
        .expect("a file")
        .set_len(8 * IMAGE - 1)
        .expect("shorter");
    fails(&["unlabeled_X.bin", "221183 bytes", "27648"]).hints("download");
    // At 32 pixels there are no such images.
    files(&data, 8, 8, 8);
    sh(&format!(
        "pretrain --device cpu --dataset stl10 --image-size 32 --batch-size 4 --data-dir {} --out \
         {}",
        data.display(),
        out.display()
    ))
    .fails(1, &["image size 32", "`stl10`", "expected 96"]);
}

/// Files of the official lengths, 3.1 GB of holes: `--download` has nothing to fetch, and a step
/// starts at once. On Unix: Windows has no holes unless it is asked for them.
#[cfg(unix)]
#[test]
fn whole_files_need_no_download() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    fs::create_dir(&data).expect("a folder");
    for (name, length) in aavae::data::archive::STL10.files {
        let path = data.join(name);
        File::create(&path).expect("a file").set_len(*length).expect("a hole");
        if name.ends_with("_y.bin") {
            fs::write(&path, vec![1; *length as usize]).expect("a file");
        }
    }
    let ran = pretrain(&data, &out, "--max-steps 1 --no-shuffle --no-eval --download").ok();
    assert!(ran.stderr.contains("100000 training images"), "{ran:?}");
    assert_eq!(ran.json()["steps"], 1);
}

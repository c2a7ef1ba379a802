//! Data sets that are missing, damaged or too small.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use crate::support::{Ran, folder, image_folder, sh};

const RECORD: u64 = 3073;
const FILE: u64 = 10_000 * RECORD;

/// The six files, black images of class 0: holes that take no space.
fn cifar10(dir: &Path) {
    fs::create_dir_all(dir).expect("a folder");
    for name in (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]) {
        File::create(dir.join(name)).expect("a file").set_len(FILE).expect("a hole");
    }
}

fn poke(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("a file");
    file.seek(SeekFrom::Start(at)).expect("a place");
    file.write_all(bytes).expect("a write");
}

fn pretrain(kind: &str, data: &Path, out: &Path, more: &str) -> Ran {
    let flags = "--device cpu --width 8 --batch-size 8 --max-steps 2 --no-eval";
    sh(&format!(
        "pretrain {flags} --dataset {kind} --data-dir {} --out {} {more}",
        data.display(),
        out.display()
    ))
}

#[test]
fn cifar10_files() {
    let dir = folder();
    let (data, out) = (dir.path().join("cifar"), dir.path().join("run"));
    let fails = |says: &[&str]| {
        let ran = pretrain("cifar10", &data, &out, "--limit-train 64").fails(1, says);
        assert!(!out.exists(), "a run that could not start leaves nothing");
        ran
    };
    fails(&["data folder not found", "cifar"]).hints("download");
    fs::create_dir(&data).expect("a folder");
    fails(&["data_batch_1.bin", "not found"]).hints("cifar-10-binary.tar.gz");
    cifar10(&data);
    fs::remove_file(data.join("data_batch_4.bin")).expect("gone");
    fails(&["data_batch_4.bin", "not found"]);
    for (bytes, name) in
        [(FILE - 1, "data_batch_4.bin"), (FILE + 1, "data_batch_4.bin"), (0, "test_batch.bin")]
    {
        cifar10(&data);
        File::create(data.join(name)).expect("a file").set_len(bytes).expect("a hole");
        fails(&[name, &format!("{bytes} bytes"), &FILE.to_string()]).hints("download");
    }
    cifar10(&data);
    poke(&data.join("data_batch_1.bin"), 77 * RECORD, &[10]);
    fails(&["data_batch_1.bin", "record 77", "label 10", "0 to 9"]).hints("damaged");
    cifar10(&data);
    fs::write(data.join("batches.meta.txt"), "cat\ndog\n").expect("a file");
    fails(&["batches.meta.txt", "2 classes", "10"]);
    // A folder of images it is not, a file it is not either.
    pretrain("folder", &data, &out, "")
        .fails(1, &["train", "not found"])
        .hints("--dataset cifar10");
    pretrain("cifar10", &data.join("test_batch.bin/below"), &out, "")
        .fails(1, &["test_batch.bin/below"]);
    // Whole files train, and `--download` has nothing to fetch.
    fs::remove_file(data.join("batches.meta.txt")).expect("gone");
    for i in 0..64 {
        poke(&data.join("data_batch_1.bin"), i * RECORD, &[(i % 10) as u8]);
    }
    let summary =
        pretrain("cifar10", &data, &out, "--limit-train 64 --no-shuffle --download").ok().json();
    assert_eq!((&summary["dataset"], &summary["steps"]), (&"cifar10".into(), &2.into()));
}

#[test]
fn image_folders() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    let fails = |says: &[&str]| pretrain("folder", &data, &out, "").fails(1, says);
    fails(&["data folder not found"]);
    fs::create_dir_all(data.join("train")).expect("a folder");
    fails(&["train", "no class folders"]).hints("<split>/<class>");
    image_folder(&data, 2, 12, 4);
    fs::create_dir(data.join("train/empty")).expect("a folder");
    fs::write(data.join("train/empty/notes.txt"), "no image").expect("a file");
    fails(&["empty", "no images", "1 .txt file (notes.txt)"]).hints("<split>/<class>");
    fs::remove_dir_all(data.join("train/empty")).expect("gone");
    fs::create_dir(data.join("test/class2")).expect("a folder");
    fs::copy(data.join("test/class1/000.png"), data.join("test/class2/000.png")).expect("a file");
    fails(&["class2", "2 classes", "3"]).hints("same class folders");
    fs::remove_dir_all(data.join("test/class2")).expect("gone");
    pretrain("folder", &data, &out, "--batch-size 30").fails(2, &["--batch-size"]); // given twice
    let flags = format!("--dataset folder --data-dir {} --out {}", data.display(), out.display());
    let too_large =
        sh(&format!("pretrain --device cpu --width 8 --batch-size 30 --max-steps 2 {flags}"));
    too_large.fails(1, &["batch size 30", "22 images"]).hints("--batch-size 22");
    pretrain("folder", &data, &out, "--limit-train 23").fails(1, &["--limit-train 23", "22"]);
    assert!(!out.exists(), "a run that could not start leaves nothing");
    // A file that is no image is found when it is its turn; the run is whole up to there.
    for image in fs::read_dir(data.join("train/class1")).expect("a folder") {
        fs::write(image.expect("an entry").path(), "no image").expect("a file");
    }
    fails(&["cannot decode", "class1", ".png"]).hints("replace or remove");
    pretrain("cifar10", &data, &out, "--resume").fails(1, &["--dataset"]);
    pretrain("cifar10", &data, &dir.path().join("other"), "")
        .fails(1, &["data_batch_1.bin"])
        .hints("--dataset folder");
}

#[test]
fn images_without_labels_to_tell_apart() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    image_folder(&data, 1, 30, 4);
    for flag in ["--online-probe", "--eval-every 1"] {
        let says = format!(
            "{} needs images of 2 classes, the training images of `folder` have 1",
            flag.trim_end_matches(" 1")
        );
        pretrain("folder", &data, &out, flag).fails(1, &[&says]).hints("aavae probe");
        assert!(!out.exists());
    }
}

#[test]
fn embedded_images() {
    let dir = folder();
    let pretrain = |flags: &str| {
        sh(&format!(
            "pretrain --device cpu --width 8 --no-eval --out {}/run {flags}",
            dir.path().display()
        ))
    };
    pretrain("--limit-train 10 --batch-size 16")
        .fails(1, &["batch size 16", "10 images"])
        .hints("--batch-size 10");
    pretrain("--limit-train 16 --batch-size 16 --eval-every 1")
        .fails(1, &["--eval-every needs 20 training", "there are 16 and 1000"]);
    pretrain("--limit-train 100000000").fails(1, &["--limit-train 100000000"]);
}

#[test]
fn a_download_without_a_network() {
    let dir = folder();
    for (dataset, archive) in
        [("cifar10", "cifar-10-binary.tar.gz"), ("stl10", "stl10_binary.tar.gz")]
    {
        let mut command = crate::support::command(&[
            "pretrain",
            "--dataset",
            dataset,
            "--download",
            "--device",
            "cpu",
            "--data-dir",
        ]);
        // Port 9 of this machine: nothing listens there.
        for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
            command.env(proxy, "http://127.0.0.1:9");
        }
        let out = command
            .arg(dir.path().join("data"))
            .arg("--out")
            .arg(dir.path().join("run"))
            .output()
            .expect("the binary starts");
        let ran =
            Ran::new("pretrain --download".into(), out).fails(1, &["cannot fetch http", archive]);
        ran.hints("network");
        assert!(!dir.path().join("run").exists());
    }
}

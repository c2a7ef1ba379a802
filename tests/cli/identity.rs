//! A run is resumed as what its checkpoints say it is, whatever became of the files around them.

use std::fs;
use std::path::Path;

use aavae::run::checkpoint::Checkpoint;
use aavae::run::settings::RunConfig;

use crate::support::{
    Ran, TINY, copy, digest, folder, image_folder, metrics, pretrain, sh, trained,
};

fn resume(out: &Path, more: &str) -> Ran {
    sh(&format!("pretrain --device cpu --no-eval --resume --out {} {more}", out.display()))
}

/// Changes the metadata of every checkpoint of a run.
fn rewrite(out: &Path, change: impl Fn(&mut Checkpoint)) {
    for file in fs::read_dir(out.join("checkpoints")).expect("a folder") {
        let path = file.expect("a file").path();
        let mut checkpoint = Checkpoint::load(&path).expect("a checkpoint");
        change(&mut checkpoint);
        checkpoint.save(&path).expect("written");
    }
}

fn edit(out: &Path, from: &str, to: &str) {
    let path = out.join("config.toml");
    let text = fs::read_to_string(&path).expect("a file");
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).expect("a file");
}

#[test]
fn edited_settings_are_found() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    let original = fs::read(out.join("config.toml")).expect("a file");
    for (from, to, key, here, there) in [
        ("learning_rate = 0.00025", "learning_rate = 0.5", "learning_rate", "0.5", "0.00025"),
        ("seed = 0", "seed = 7", "seed", "7", "0"),
        ("batch_size = 16", "batch_size = 32", "batch_size", "32", "16"),
        ("shuffle = true", "shuffle = false", "shuffle", "false", "true"),
        ("limit_train = 64", "limit_train = 32", "limit_train", "32", "64"),
        // A key that is gone has today's default.
        ("width = 8\n", "", "width", "64", "8"),
        (
            "dataset = \"shapes\"",
            "dataset = \"folder\"\ndata_dir = \"x\"",
            "dataset",
            "\"folder\"",
            "\"shapes\"",
        ),
    ] {
        edit(&out, from, to);
        let says = format!("error: {key} is {here} in ");
        let ran = resume(&out, "--max-steps 9")
            .fails(1, &[&says, "config.toml", &format!("but {there} in "), "last.safetensors"]);
        // The hint names all that may change.
        for flag in RunConfig::may_change() {
            assert!(ran.stderr.contains(&flag), "no {flag}: {ran:?}");
        }
        fs::write(out.join("config.toml"), &original).expect("a file");
    }
    assert_eq!(metrics(&out), metrics(trained()), "a refusal changes nothing");
    // What may change may be edited.
    edit(&out, "log_every = 2", "log_every = 1");
    edit(&out, "max_steps = 5", "max_steps = 9");
    let resumed = resume(&out, "").ok().json();
    let straight = pretrain(&dir.path().join("straight"), "--max-steps 9");
    assert_eq!((&resumed["steps"], digest(&resumed)), (&9.into(), digest(&straight)));
}

#[test]
fn a_lost_configuration_is_that_of_the_checkpoint() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    let before = fs::read_to_string(out.join("config.toml")).expect("a file");
    fs::remove_file(out.join("config.toml")).expect("gone");
    resume(&out, "--width 16")
        .fails(1, &["error: --width is 16 here, but 8 in ", "last.safetensors"]);
    resume(&out, "").ok();
    assert_eq!(fs::read_to_string(out.join("config.toml")).expect("a file"), before);
}

#[test]
fn other_images_and_labels_are_found() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    image_folder(&data, 2, 20, 4);
    let flags = format!(
        "--dataset folder --data-dir {} --width 8 --batch-size 8 --importance-samples 0",
        data.display()
    );
    sh(&format!("pretrain --device cpu --no-eval {flags} --max-steps 3 --out {}", out.display()))
        .ok();
    let before = fs::read(out.join("metrics.jsonl")).expect("a file");
    let refused = |what: &str| {
        let ran = resume(&out, "--max-steps 6")
            .fails(1, &["the images or labels of `folder` are not those that", "last.safetensors"]);
        ran.hints("--data-dir");
        assert_eq!(fs::read(out.join("metrics.jsonl")).expect("a file"), before, "{what}");
    };
    let (class0, class1) = (data.join("train/class0"), data.join("train/class1"));
    fs::copy(class0.join("000.png"), class0.join("new.png")).expect("a copy");
    refused("an image was added");
    fs::remove_file(class0.join("new.png")).expect("removed");
    fs::rename(class0.join("019.png"), dir.path().join("aside.png")).expect("moved");
    refused("an image is gone");
    fs::rename(dir.path().join("aside.png"), class1.join("020.png")).expect("moved");
    refused("an image has another label");
    fs::rename(class1.join("020.png"), class0.join("019.png")).expect("moved back");
    // The same data in another place is the same data.
    fs::rename(&data, dir.path().join("moved")).expect("moved");
    let moved = dir.path().join("moved");
    resume(&out, &format!("--max-steps 6 --data-dir {}", moved.display())).ok();
}

#[test]
fn another_device_is_asked_for() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    rewrite(&out, |checkpoint| {
        assert_eq!(checkpoint.meta["device"], "cpu");
        checkpoint.meta.insert("device".into(), "wgpu:Old (Vulkan, 1.2)".into());
    });
    let says = ["was trained on `wgpu:Old (Vulkan, 1.2)`, this is `cpu`", "the bits would differ"];
    resume(&out, "--max-steps 7").fails(1, &says).hints("--allow-device-change");
    resume(&out, "--max-steps 7 --allow-device-change").ok();
    // From there on it is a run of this device.
    resume(&out, "--max-steps 8").ok();
    sh(&format!("pretrain {TINY} --allow-device-change --out {}/x", dir.path().display()))
        .fails(2, &["required arguments"]);
}

#[test]
fn what_a_checkpoint_does_not_say_is_no_run() {
    let dir = folder();
    for (key, says) in [
        ("step", "does not say its step"),
        ("version", "does not say its version"),
        ("config", "does not say its config"),
        ("data", "does not say its data"),
        ("device", "does not say its device"),
    ] {
        let out = dir.path().join(key);
        copy(trained(), &out);
        rewrite(&out, |checkpoint| drop(checkpoint.meta.remove(key).expect("it says so")));
        resume(&out, "--max-steps 9").fails(1, &[says, "last.safetensors"]);
    }
}

/// The folder of a run of version 0.1.0: without the device and the fingerprint, and without the
/// settings that came later.
#[test]
fn runs_of_the_first_version_are_read_and_not_resumed() {
    let dir = folder();
    let out = dir.path().join("old");
    copy(trained(), &out);
    edit(&out, "save_minutes = 0.0\n", "");
    let config = fs::read_to_string(out.join("config.toml")).expect("a file");
    rewrite(&out, |checkpoint| {
        checkpoint.meta.insert("version".into(), "0.1.0".into());
        checkpoint.meta.insert("config".into(), config.clone());
        drop(checkpoint.meta.remove("data"));
        drop(checkpoint.meta.remove("device"));
    });
    let here = env!("CARGO_PKG_VERSION");
    assert_ne!(here, "0.1.0");
    let says = ["is of version 0.1.0, this is ", here, "the bits could differ"];
    resume(&out, "--max-steps 9").fails(1, &says).hints("--init-from");
    let out = out.display();
    assert!(sh(&format!("watch --once {out}")).ok().stdout.contains("aavae"));
    let table = sh(&format!("compare {out} {}", trained().display())).ok();
    assert!(table.stdout.contains("old"), "{table:?}");
    sh(&format!("probe {out} --device cpu --epochs 1 --json")).ok().json();
    sh(&format!("knn {out}/checkpoints/step-5.safetensors --device cpu --limit-train 64")).ok();
}

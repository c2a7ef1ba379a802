//! Folders of images as people have them, and what is said of them; what features and weights are
//! of.

use std::fs;
use std::path::Path;

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{Ran, TINY, folder, image_folder, pretrain, run, sh, trained};

fn train(data: &Path, out: &Path, more: &str) -> Ran {
    let flags = "--device cpu --width 8 --batch-size 8 --max-steps 1 --no-eval --dataset folder";
    sh(&format!("pretrain {flags} --data-dir {} --out {} {more}", data.display(), out.display()))
}

#[test]
fn a_jpeg_that_was_cut_is_named() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    image_folder(&data, 2, 4, 4);
    let picture = image::RgbImage::from_fn(64, 64, |x, y| {
        image::Rgb([x as u8 * 4, y as u8 * 4, (x * y) as u8])
    });
    let path = data.join("train/class0/photo.jpg");
    picture.save(&path).expect("a JPEG");
    let whole = fs::read(&path).expect("a file");
    train(&data, &out, "--no-shuffle").ok();
    for part in [5, 50, 95] {
        fs::write(&path, &whole[..whole.len() * part / 100]).expect("a file");
        let again = dir.path().join(format!("run{part}"));
        train(&data, &again, "--no-shuffle")
            .fails(1, &["cannot decode", "photo.jpg"])
            .hints("replace or remove");
    }
}

#[test]
fn what_is_not_read_is_said_once() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    image_folder(&data, 2, 4, 4);
    fs::create_dir_all(data.join("train/class0/deeper")).expect("a folder");
    fs::write(data.join("train/class1/x.gif"), "GIF").expect("a file");
    for ran in [train(&data, &out, "").ok(), sh(&format!("knn {} --device cpu", out.display()))] {
        let lines: Vec<&str> =
            ran.stderr.lines().filter(|line| line.contains("not read")).collect();
        assert_eq!(lines.len(), 1, "{ran:?}");
        for part in ["note: ", "1 folder (train/class0/deeper)", "1 .gif file (train/class1/x.gif)"]
        {
            assert!(lines[0].contains(part), "no `{part}`: {ran:?}");
        }
    }
    assert!(fs::read_to_string(out.join("train.log")).expect("a log").contains("1 .gif file"));
}

/// On Unix: elsewhere a link is a privilege, and devices have no names in folders.
#[cfg(unix)]
#[test]
fn entries_that_cannot_be_read_are_errors() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    image_folder(&data, 2, 4, 4);
    let link = data.join("train/class0/lost.png");
    std::os::unix::fs::symlink("/nowhere/at/all.png", &link).expect("a link");
    train(&data, &out, "").fails(1, &["cannot follow the link", "lost.png"]).hints("leads nowhere");
    assert!(!out.exists());
    fs::remove_file(&link).expect("removed");
    // A device is no image, however it is called: this would read forever.
    std::os::unix::fs::symlink("/dev/zero", data.join("train/class0/z.jpg")).expect("a link");
    assert!(train(&data, &out, "").ok().stderr.contains("1 device (train/class0/z.jpg)"));
}

/// Class names and files go with the features, in bytes that Python gets back. On Linux: macOS and
/// Windows allow no name that is not text.
#[cfg(target_os = "linux")]
#[test]
fn features_say_what_they_are_of() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = folder();
    let (data, out, file) =
        (dir.path().join("data"), dir.path().join("run"), dir.path().join("f.safetensors"));
    image_folder(&data, 2, 12, 3);
    for split in ["train", "test"] {
        let odd = data.join(split).join(OsStr::from_bytes(b"na\xefve \"x\""));
        fs::rename(data.join(split).join("class1"), odd).expect("renamed");
    }
    train(&data, &out, "").ok();
    sh(&format!("embed {} --device cpu --out {}", out.display(), file.display())).ok();
    let meta = Checkpoint::load(&file).expect("a file").meta;
    assert_eq!(meta["classes"], r#"["class0","na\udcefve \"x\""]"#);
    let files = ["class0", r#"na\udcefve \"x\""#]
        .map(|class| (0..3).map(move |i| format!(r#""test/{class}/{i:03}.png""#)));
    assert_eq!(
        meta["files"],
        format!("[{}]", files.into_iter().flatten().collect::<Vec<_>>().join(","))
    );
    let script = "import json, os, struct, sys
raw = open(sys.argv[1], 'rb').read()
meta = json.loads(raw[8:8 + struct.unpack('<Q', raw[:8])[0]])['__metadata__']
assert os.fsencode(json.loads(meta['classes'])[1]) == b'na\\xefve \"x\"'
for name in json.loads(meta['files']):
    assert open(os.path.join(sys.argv[2], name), 'rb').read(4) == b'\\x89PNG'
";
    let python =
        std::process::Command::new("python3").arg("-c").arg(script).arg(&file).arg(&data).output();
    match python {
        Ok(ran) => assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr)),
        Err(error) => assert!(std::env::var_os("REQUIRE_PYTHON").is_none(), "{error}"),
    }
    // Images without files have classes.
    sh(&format!("embed {} --device cpu --out {}", trained().display(), file.display())).ok();
    let meta = Checkpoint::load(&file).expect("a file").meta;
    assert!(meta["classes"].starts_with("[\"") && !meta.contains_key("files"), "{meta:?}");
}

/// On Linux: macOS and Windows allow no such name.
#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_no_text_is_named() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = folder();
    let data = dir.path().join(OsStr::from_bytes(b"da\xffta"));
    image_folder(&data, 2, 8, 4);
    let out = dir.path().join("run");
    let line = format!(
        "pretrain --device cpu --width 8 --batch-size 8 --dataset folder --out {}",
        out.display()
    );
    let mut command = crate::support::command(&line.split(' ').collect::<Vec<_>>());
    let ran =
        Ran::new(line, command.arg("--data-dir").arg(&data).output().expect("the binary starts"));
    ran.fails(2, &[r"--data-dir", r"da\xffta", "not UTF-8"]);
    assert!(!out.exists());
}

/// Writes the weights of [`trained`] as another program does: bare, or behind a wrapper's prefix.
fn write_weights(path: &Path, prefix: &str) {
    let own =
        Checkpoint::load(trained().join("checkpoints/last.safetensors")).expect("a checkpoint");
    let named = own.tensors.iter().filter(|(name, _)| !name.starts_with("optim."));
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = named
        .filter_map(|(name, tensor)| match &tensor.data {
            TensorData::F32(x) => {
                let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                Some((format!("{prefix}{name}"), tensor.shape.clone(), bytes))
            }
            TensorData::I64(_) => None,
        })
        .collect();
    assert!(tensors.len() > 100);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.expect("a view"))
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}

fn knn_of_weights(path: &Path) -> Ran {
    sh(&format!("knn {} --device cpu --dataset shapes --limit-train 64 --json", path.display()))
}

#[test]
fn prefixes_of_wrappers_are_taken_off() {
    let dir = folder();
    let expected = sh(&format!("knn {} --device cpu --json", trained().display())).ok().json();
    for (name, prefix) in [
        ("bare", ""),
        ("parallel", "module."),
        ("compiled", "_orig_mod."),
        ("lightning", "model."),
        ("both", "module._orig_mod."),
    ] {
        let path = dir.path().join(format!("{name}.safetensors"));
        write_weights(&path, prefix);
        let ran = knn_of_weights(&path).ok();
        assert_eq!(ran.json()["knn"], expected["knn"], "{name}: {ran:?}");
        assert!(
            ran.stderr.contains("do not say of which network") && ran.stderr.contains("k = 200"),
            "{ran:?}"
        );
        assert_eq!(
            ran.stderr.contains(&format!("began with `{prefix}`")),
            !prefix.is_empty(),
            "{ran:?}"
        );
        let out = dir.path().join(name);
        let log = sh(&format!(
            "pretrain {TINY} --max-steps 1 --no-eval --out {} --init-from {}",
            out.display(),
            path.display()
        ))
        .ok();
        assert_eq!(
            log.stderr.contains(&format!("began with `{prefix}`")),
            !prefix.is_empty(),
            "{log:?}"
        );
    }
}

#[test]
fn an_unknown_prefix_is_named() {
    let dir = folder();
    let (other, out) = (dir.path().join("other.safetensors"), dir.path().join("run"));
    write_weights(&other, "backbone.");
    knn_of_weights(&other).fails(1, &["other.safetensors", "begin with `backbone.`"]);
    sh(&format!("pretrain {TINY} --out {} --init-from {}", out.display(), other.display()))
        .fails(1, &["begin with `backbone.`"]);
    sh(&format!("import {} --out {}", other.display(), out.display()))
        .fails(1, &["begin with `backbone.`"]);
}

/// With the lines of Python that convert such a file.
#[test]
fn pytorch_s_own_format_is_refused() {
    let dir = folder();
    let out = dir.path().join("run");
    for (name, bytes) in [
        (
            "a.pth",
            &b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0a\0\0\0a/data.pkl"[..],
        ),
        ("old.ckpt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("a file");
        for line in [
            format!("knn {}", path.display()),
            format!("import {} --out {}", path.display(), out.display()),
        ] {
            let ran = sh(&line).fails(1, &[name, "PyTorch's own format"]);
            for part in
                ["import torch, safetensors.torch", "torch.load(", "safetensors.torch.save_file("]
            {
                assert!(ran.stderr.contains(part), "no `{part}`: {ran:?}");
            }
        }
        sh(&format!("pretrain {TINY} --out {} --init-from {}", out.display(), path.display()))
            .fails(1, &["PyTorch's own format"]);
    }
}

/// Formats of other programs, and what downloads leave, are called what they are.
#[test]
fn other_formats_are_not_called_pytorch_s() {
    let dir = folder();
    let out = dir.path().join("run");
    for (name, bytes, says, hint) in [
        (
            "w.npz",
            &b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0a.npy"[..],
            "an archive of NumPy arrays",
            "two lines of Python",
        ),
        ("w.h5", b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file", "the program that wrote it"),
        (
            "w.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS",
            "git lfs pull",
        ),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("a file");
        let (path, out) = (path.display(), out.display());
        for line in [format!("knn {path}"), format!("import {path} --out {out}")] {
            let ran = sh(&line).fails(1, &[name, says]).hints(hint);
            assert!(!ran.stderr.contains("PyTorch"), "{ran:?}");
        }
        sh(&format!("pretrain {TINY} --max-steps 1 --out {out} --init-from {path}"))
            .fails(1, &[says]);
    }
}

/// A set that could be trained on but not be probed is refused before the training.
#[test]
fn one_labelled_image_is_too_few() {
    let dir = folder();
    let files = [("unlabeled", 40), ("train", 1), ("test", 3)];
    for (part, images) in files {
        fs::write(dir.path().join(format!("{part}_X.bin")), vec![7; images * 27_648])
            .expect("a file");
        fs::write(dir.path().join(format!("{part}_y.bin")), vec![1; images]).expect("a file");
    }
    let out = dir.path().join("run");
    let flags = "--device cpu --width 8 --batch-size 4 --max-steps 1 --dataset stl10 \
        --importance-samples 0";
    let line =
        format!("pretrain {flags} --data-dir {} --out {}", dir.path().display(), out.display());
    sh(&line)
        .fails(1, &["the probe needs 2 labelled training images, there are 1"])
        .hints("--no-eval");
    assert!(!out.exists());
    sh(&format!("{line} --no-eval")).ok();
    sh(&format!("probe {} --device cpu --epochs 1", out.display())).fails(1, &["1 images"]);
}

#[test]
fn strangers_among_runs_are_skipped() {
    let dir = folder();
    let stray = dir.path().join("notes.txt");
    fs::write(&stray, "x").expect("a file");
    fs::create_dir(dir.path().join("empty")).expect("a folder");
    let (run_dir, stray, empty) =
        (trained().display().to_string(), stray.display().to_string(), dir.path().join("empty"));
    let ran = run(&["compare", &stray, &run_dir, &empty.display().to_string(), "--json"]).ok();
    assert_eq!(ran.json()["runs"].as_array().map(Vec::len), Some(1));
    for name in ["notes.txt", "empty"] {
        assert!(
            ran.stderr.lines().any(|l| l.starts_with("skipped: ") && l.contains(name)),
            "{name}: {ran:?}"
        );
    }
    run(&["compare", &stray]).fails(1, &["notes.txt is no run folder"]);
    let missing = dir.path().join("none").display().to_string();
    run(&["compare", &run_dir, &missing]).fails(1, &["none does not exist"]);
    pretrain(&dir.path().join("more"), "--max-steps 1");
    fs::write(dir.path().join("more/config.toml"), "width = ").expect("a file");
    run(&["compare", &run_dir, &dir.path().join("more").display().to_string()])
        .fails(1, &["config.toml"]);
}

//! Wrong flags, devices, checkpoints and folders; losses that are no number.

use std::fs;
use std::path::Path;
use std::process::Command;

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{
    Ran, TINY, command, copy, digest, folder, leftovers, metrics, pretrain, sh, trained,
};

#[test]
fn no_sizes() {
    let dir = folder();
    let out = dir.path().join("run");
    let flags = [
        "--width",
        "--latent-dim",
        "--epochs",
        "--max-steps",
        "--batch-size",
        "--log-every",
        "--limit-train",
        "--probe-epochs",
        "--accumulate",
    ];
    for flag in flags {
        let name = flag.trim_start_matches("--").split('-').next().expect("a word");
        let line =
            |value: &str| format!("pretrain --device cpu --out {} {flag} {value}", out.display());
        sh(&line("0")).fails(2, &[name, "0"]);
        sh(&line("-1")).fails(2, &[flag, "-1"]);
        sh(&line("1.5")).fails(2, &[flag, "1.5"]);
        sh(&line("99999999999999999999")).fails(2, &[flag, "99999999999999999999"]);
    }
    assert!(!out.exists());
}

#[test]
fn values_out_of_range() {
    let dir = folder();
    let out = dir.path().join("run");
    for (flags, says) in [
        ("--width 12", "width 12 is not a positive multiple of 8"),
        ("--width 1000000000", "--width 1000000000 is more than 4096"),
        ("--image-size 33", "image size 33 is not a positive multiple of 8"),
        (
            "--stem stl --image-size 40",
            "image size 40 is not a positive multiple of 16, which the stl stem needs",
        ),
        ("--latent-dim 6", "latent dimension 6 is not a positive multiple of 4"),
        ("--latent-dim 18446744073709551612", "--latent-dim 18446744073709551612 is more than"),
        ("--batch-size 1", "--batch-size 1 leaves"),
        ("--probe-batch-size 1", "--probe-batch-size 1 leaves"),
        ("--importance-samples 65537", "--importance-samples 65537 is more than"),
        ("--batch-size 1000000000000", "--batch-size 1000000000000 is more than"),
        ("--learning-rate 0", "--learning-rate 0 "),
        ("--learning-rate -1", "--learning-rate -1 "),
        ("--learning-rate nan", "--learning-rate NaN "),
        ("--learning-rate fast", "'fast' for '--learning-rate"),
        ("--accumulate 10000000", "--accumulate 10000000 is more than"),
        ("--weight-decay -1", "--weight-decay -1 "),
        ("--weight-decay nan", "--weight-decay NaN "),
        ("--optimizer rmsprop", "'rmsprop'"),
        ("--schedule step", "'step'"),
        ("--log-scale inf", "--log-scale inf is not a finite number"),
        ("--kl-coeff -1", "--kl-coeff -1 is not a number of at least 0"),
        ("--warmup-epochs -1", "'-1' for '--warmup-epochs"),
        ("--seed -1", "'-1' for '--seed"),
        ("--method simclr --temperature 0", "--temperature 0 is not between"),
        ("--method simclr --temperature 100.5", "--temperature 100.5 is not between"),
        ("--method simclr --temperature nan", "--temperature NaN is not between"),
    ] {
        sh(&format!("pretrain --device cpu --out {} {flags}", out.display())).fails(2, &[says]);
    }
    assert!(!out.exists());
}

#[test]
fn sizes_of_other_commands() {
    let run = trained().display();
    for (line, says) in [
        (format!("probe {run} --epochs 0"), "--epochs is 0"),
        (format!("probe {run} --batch-size 0"), "--batch-size is 0"),
        (format!("knn {run} --limit-train 0"), "--limit-train is 0"),
        (format!("reconstruct {run} --count 0"), "--count is 0"),
        ("bench --steps 0".into(), "--steps is 0"),
        ("plan --accumulate 0".into(), "--accumulate is 0"),
        (
            "plan --method simclr --batch-size 8 --accumulate 4".into(),
            "among 8 images, not among the 32",
        ),
        ("plan --image-size 33".into(), "image size 33 is not a positive multiple of 8"),
        (
            "plan --stem imagenet --image-size 40".into(),
            "image size 40 is not a positive multiple of 16",
        ),
        ("plan --image-size 80000000".into(), "--image-size 80000000 is more than"),
    ] {
        sh(&format!("{line} --device cpu")).fails(2, &[says]);
    }
}

/// Sizes that the number of images forbids.
#[test]
fn more_than_there_are_images() {
    let dir = folder();
    let (run, out) = (trained().display(), dir.path().join("run"));
    sh(&format!("knn {run} --device cpu --limit-train 10"))
        .fails(1, &["at least 20 training images", "10"])
        .hints("--limit-train");
    sh(&format!("probe {run} --device cpu --limit-train 10"))
        .fails(1, &["batch size 16", "10 images"])
        .hints("--batch-size 10");
    sh(&format!(
        "pretrain {TINY} --out {} --epochs 18446744073709551615 --warmup-epochs \
        18446744073709551615",
        out.display()
    ))
    .fails(1, &["steps are more than 2147483648"])
    .hints("--max-steps");
    let line = format!("pretrain {TINY} --out {} --accumulate 5", out.display());
    sh(&line)
        .fails(1, &["--accumulate 5 of --batch-size 16 takes 80 images", "there are 64"])
        .hints("`--accumulate 4`");
}

#[test]
fn contradictions() {
    let dir = folder();
    let out = dir.path().join("run");
    for (flags, says) in [
        ("--preset quick --config x.toml", "'--preset"),
        ("--no-eval --probe-epochs 3", "'--no-eval'"),
        ("--download", "--download"),
        ("--download --dataset folder --data-dir x", "--download"),
        ("--data-dir x", "--data-dir"),
        ("--dataset shapes --data-dir x", "--data-dir"),
        ("--dataset cifar10", "--dataset cifar10 needs --data-dir"),
        ("--dataset cifar10 --download", "--dataset cifar10 needs --data-dir"),
        ("--dataset folder", "--dataset folder needs --data-dir"),
        ("--dataset stl10", "--dataset stl10 needs --data-dir"),
        ("--preset paper-stl10", "--dataset stl10 needs --data-dir"),
        ("--preset ci", "--dataset cifar10 needs --data-dir"),
        ("--method ae --kl-coeff 1", "--kl-coeff"),
        ("--method aaae --kl-coeff 0", "--kl-coeff"),
        ("--method ae --log-scale 1", "--log-scale"),
        ("--method aaae --learn-log-scale", "--learn-log-scale"),
        ("--method ae --target view", "--target view"),
        ("--method vae --target view", "--target view"),
        ("--temperature 0.1", "--temperature means nothing for --method aavae"),
        ("--method simclr --kl-coeff 1", "--kl-coeff"),
        (
            "--method simclr --view-metrics-every 1",
            "--view-metrics-every means nothing for --method simclr",
        ),
        ("--method simclr --log-scale 1", "--log-scale"),
        ("--method simclr --learn-log-scale", "--learn-log-scale"),
        ("--method simclr --target view", "--target"),
        ("--method simclr --decoder resnet50", "--decoder"),
        (
            "--method ae --importance-samples 4",
            "--importance-samples means nothing for --method ae",
        ),
        (
            "--method simclr --accumulate 2 --batch-size 16",
            "the negatives of a view among 16 images, not among the 32",
        ),
        ("--eval-every 1 --no-shuffle", "--eval-every needs held-out images"),
        ("--method gan", "'gan'"),
        ("--dataset imagenet", "'imagenet'"),
        ("--encoder resnet152", "'resnet152'"),
        ("--preset huge", "'huge'"),
        ("--colour red", "'--colour'"),
        ("--seed 1 --seed 2", "'--seed"),
    ] {
        sh(&format!("pretrain --device cpu --out {} {flags}", out.display())).fails(2, &[says]);
    }
    assert!(!out.exists());
    let run = trained().display();
    sh(&format!("knn {run} --device cpu --data-dir x")).fails(2, &["--data-dir"]);
    sh(&format!("knn {run} --device cpu --dataset cifar10"))
        .fails(2, &["--dataset cifar10 needs --data-dir"]);
    sh(&format!("knn {run} --device cpu --split half")).fails(2, &["'half'"]);
    sh("plan --device cpu --json --kernel x").fails(2, &["'--kernel"]);
    sh("knn").fails(2, &["required"]);
    sh("train").fails(2, &["'train'"]);
}

#[test]
fn configuration_files() {
    let dir = folder();
    let file = dir.path().join("c.toml");
    let pretrain = || {
        sh(&format!(
            "pretrain --device cpu --config {} --out {}/run",
            file.display(),
            dir.path().display()
        ))
    };
    pretrain().fails(1, &["c.toml", "No such file"]);
    if cfg!(unix) {
        sh(&format!("pretrain --device cpu --config /dev/zero --out {}/run", dir.path().display()))
            .fails(1, &["/dev/zero is longer than"]);
        sh("knn /dev/zero --device cpu").fails(1, &["/dev/zero", "it is a device, not a file"]);
    }
    for (text, code, says) in [
        ("width = \"wide\"", 1, "width"),
        ("colour = 3", 1, "colour"),
        ("seed = 1\nwidth = ", 1, "c.toml, line 2"),
        ("width = 9", 2, "width 9"),
        ("method = \"ae\"\nkl_coeff = 1.0", 2, "--kl-coeff"),
        ("keep = -1", 1, "c.toml"),
    ] {
        fs::write(&file, text).expect("a file");
        pretrain().fails(code, &[says]);
    }
}

#[test]
fn devices() {
    let dir = folder();
    let out = dir.path().join("run");
    for device in ["tpu", "", "wgpu:", "CPU"] {
        let args = ["pretrain", "--out", out.to_str().expect("text"), "--device", device];
        crate::support::run(&args)
            .fails(2, &[&format!("unknown device `{device}`")])
            .hints("aavae devices");
    }
    for line in
        ["bench --device wgpu:nosuch", "plan --device wgpu:nosuch", "check --device wgpu:nosuch"]
    {
        sh(line).fails(1, &["nosuch"]).hints("aavae devices");
    }
    sh(&format!("pretrain {TINY} --device wgpu:nosuch")).fails(2, &["--device"]); // given twice
    // A machine without any driver.
    let none = |args: &[&str]| {
        let mut command = command(args);
        let command = command
            .env("VK_DRIVER_FILES", "/nowhere.json")
            .env("VK_ICD_FILENAMES", "/nowhere.json");
        Ran::new(args.join(" "), command.output().expect("the binary starts"))
    };
    if cfg!(target_os = "linux") {
        none(&["plan", "--device", "wgpu"]).fails(1, &["adapter"]).hints("aavae devices");
        let devices = none(&["devices", "--json"]).ok().json();
        assert_eq!(
            (&devices["auto"], devices["adapters"].as_array().map(Vec::len)),
            (&"cpu".into(), Some(0)),
            "{devices}"
        );
    }
}

/// The batch size of a hint fits, one more does not: on the processor, and on an adapter if there
/// is one.
#[test]
fn a_tensor_beyond_a_limit() {
    let adapters = sh("devices --json").ok().json();
    let adapter = adapters["adapters"][0]["name"]
        .as_str()
        .map(|name| name.split(' ').next().expect("a word").to_owned());
    let devices = ["cpu".to_owned()].into_iter().chain(adapter.map(|name| format!("wgpu:{name}")));
    for device in devices {
        let plan = |batch: &str, width: usize| {
            sh(&format!("plan --json --device {device} --width {width} --batch-size {batch}"))
        };
        let ran = plan("1000000", 16).fails(1, &["bytes"]);
        let hint = ran
            .stderr
            .lines()
            .find_map(|l| l.strip_prefix("hint: `--batch-size "))
            .expect("a hint");
        let fits: usize = hint.split('`').next().and_then(|n| n.parse().ok()).expect("a number");
        plan(&fits.to_string(), 16).ok();
        plan(&(fits + 1).to_string(), 16)
            .fails(1, &["bytes"])
            .hints(&format!("--batch-size {fits}`"));
        plan("16", 4096).fails(1, &["bytes"]).hints("--width");
        sh(&format!("bench --device {device} --batch-size 1000000"))
            .fails(1, &["bytes"])
            .hints("--batch-size");
        let dir = folder();
        let line = format!(
            "pretrain --device {device} --width 4096 --batch-size 16 --limit-train 64 --out {}/run",
            dir.path().display()
        );
        sh(&line).fails(1, &["bytes"]).hints("--width");
    }
}

#[test]
fn checkpoints() {
    let dir = folder();
    let good = fs::read(trained().join("checkpoints/last.safetensors")).expect("a checkpoint");
    let file = dir.path().join("c.safetensors");
    let fails = |bytes: &[u8], says: &[&str]| {
        fs::write(&file, bytes).expect("a file");
        sh(&format!(
            "reconstruct {} --device cpu --out {}/g.png",
            file.display(),
            dir.path().display()
        ))
        .fails(1, says)
    };
    sh(&format!("knn {} --device cpu", file.display())).fails(1, &["c.safetensors"]);
    fails(&[], &["c.safetensors", "0 bytes", "not a safetensors file"]);
    fails(b"GIF89a, if anything", &["c.safetensors", "not a safetensors file"]);
    for cut in [9, good.len() / 2, good.len() - 1] {
        fails(&good[..cut], &["c.safetensors", "truncated", &format!("{cut} bytes")]);
    }
    fails(&[&good[..], &[0]].concat(), &["c.safetensors", "too long"]);
    // One bit anywhere: in the length, the header, its metadata, the tensors.
    let header = 8 + u64::from_le_bytes(good[..8].try_into().expect("8 bytes")) as usize;
    let places = [
        0,
        3,
        8,
        40,
        300,
        1000,
        2500,
        header / 2,
        header - 1,
        header,
        header + 12_345,
        good.len() / 2,
        good.len() - 1,
    ];
    for (i, place) in places.into_iter().enumerate() {
        let mut bytes = good.clone();
        bytes[place] ^= 1 << (i % 8);
        fails(&bytes, &["c.safetensors"]);
    }
    let key = b"\"format_version\":\"";
    let version = good.windows(key.len()).position(|w| w == key).expect("a version") + key.len();
    let mut newer = good.clone();
    newer[version] = b'2';
    fails(&newer, &["c.safetensors", "format version 2"]).hints("newer");
    assert!(!dir.path().join("g.png").exists());

    // Of another architecture.
    fs::write(&file, &good).expect("a file");
    let out = dir.path().join("run");
    for (flags, says) in [
        ("--width 16", "shape [8, 3, 3, 3]"),
        ("--decoder resnet34", "no tensor `decoder."),
        ("--latent-dim 64", "[64"),
    ] {
        let flags = format!(
            "--device cpu --limit-train 64 --batch-size 16 {}",
            if flags.contains("width") { flags.into() } else { format!("--width 8 {flags}") }
        );
        let ran =
            sh(&format!("pretrain {flags} --init-from {} --out {}", file.display(), out.display()));
        ran.fails(1, &["c.safetensors", says]).hints("--width");
    }
    sh(&format!(
        "pretrain {TINY} --init-from {}/none --out {}",
        dir.path().display(),
        out.display()
    ))
    .fails(1, &["no checkpoint", "none"]);
    copy(trained(), &out.with_file_name("edited"));
    let config = out.with_file_name("edited").join("config.toml");
    let text = fs::read_to_string(&config).expect("a file");
    fs::write(&config, text.replace("width = 8", "width = 16")).expect("a file");
    let edited = config.parent().expect("a folder").display();
    sh(&format!("knn {edited} --device cpu")).fails(1, &["last.safetensors", "shape [8, 3, 3, 3]"]);
    sh(&format!("pretrain --no-eval --max-steps 9 --resume --device cpu --out {edited}"))
        .fails(1, &["width is 16 in ", "config.toml, but 8 in ", "last.safetensors"])
        .hints("--epochs");
}

#[test]
fn damaged_runs() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    let resume = || {
        sh(&format!(
            "pretrain --device cpu --no-eval --resume --max-steps 6 --out {}",
            out.display()
        ))
    };
    // The newest is damaged: the one before it counts, with a word about it.
    fs::write(out.join("checkpoints/last.safetensors"), "half").expect("a file");
    let knn = sh(&format!("knn {} --device cpu", out.display())).ok();
    assert!(
        knn.stderr.contains("warning: skipped a checkpoint") && knn.stderr.contains("step-5"),
        "{knn:?}"
    );
    // None is whole: nothing is started over what is there.
    for name in ["step-4", "step-5"] {
        fs::write(out.join(format!("checkpoints/{name}.safetensors")), "half").expect("a file");
    }
    let before = metrics(&out);
    resume().fails(1, &["no checkpoint", "is whole"]);
    sh(&format!("knn {} --device cpu", out.display())).fails(1, &["not a safetensors file"]);
    assert_eq!(metrics(&out), before);
    fs::write(out.join("config.toml"), "width = ").expect("a file");
    resume().fails(1, &["config.toml"]);
    // What holds no run.
    sh(&format!("knn {} --device cpu", dir.path().display())).fails(1, &["no config.toml"]);
    sh(&format!("knn {}/none --device cpu", dir.path().display()))
        .fails(1, &["no run folder or checkpoint at", "none"]);
    sh(&format!("pretrain --resume --out {}/none", dir.path().display()))
        .fails(1, &["holds no run to resume"])
        .hints("--resume");
    sh(&format!("pretrain --resume --out {}", dir.path().display()))
        .fails(1, &["holds no run to resume"]);
    sh(&format!("pretrain {TINY} --out {}", out.display()))
        .fails(1, &["already holds a run"])
        .hints("--resume");
}

#[test]
fn folders_that_cannot_be_written() {
    let dir = folder();
    let file = dir.path().join("file");
    fs::write(&file, "in the way").expect("a file");
    for out in [file.clone(), file.join("below")] {
        sh(&format!("pretrain {TINY} --no-eval --out {}", out.display()))
            .fails(1, &["cannot create", out.to_str().expect("text")]);
    }
    let run = trained().display();
    for out in [file.join("below"), dir.path().join("none/x")] {
        let folder = out.parent().expect("a folder");
        for command in ["embed", "reconstruct", "knn"] {
            let said = format!("{} cannot be written: ", out.display());
            let why = format!("{} is no folder", folder.display());
            sh(&format!("{command} {run} --device cpu --out {}", out.display()))
                .fails(1, &[&said, &why])
                .hints(if folder.exists() { "name another" } else { "make the folder first" });
        }
    }
    assert_eq!(fs::read_to_string(&file).expect("a file"), "in the way");
}

/// A disk that fills up within a checkpoint: one error, the checkpoint before it whole, and room
/// again makes the run what it would have been. On Unix, which can be told how long files may get.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let want = digest(&pretrain(&straight, "--max-steps 10"));
    let more = |out: &Path, flags: &str| {
        format!("pretrain {TINY} --no-eval --max-steps 10 --out {} {flags}", out.display())
    };
    let shell = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).env("NODEVICE_SELECT", "1");
        Ran::new(script.into(), shell.output().expect("a shell"))
    };
    let binary = env!("CARGO_BIN_EXE_aavae");

    // A limit on the length of a file.
    let out = dir.path().join("limited");
    pretrain(&out, "--max-steps 5");
    let before = Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint");
    shell(&format!("ulimit -f 4000; exec {binary} {}", more(&out, "--resume")))
        .fails(1, &["cannot write", "step-8"])
        .hints("`ulimit -f`")
        .hints("continue with `--resume`");
    assert_eq!(
        Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint"),
        before
    );
    assert_eq!(leftovers(&out), Vec::<String>::new(), "what did not fit is taken away");
    assert_eq!(digest(&sh(&more(&out, "--resume")).ok().json()), want);
    assert_eq!(metrics(&out), metrics(&straight));

    // A small file system, where this user may mount one: room for one checkpoint of 3.3 MB, not
    // for two.
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=6m tmpfs {0} || exit 77; {binary} {1} >&2; echo code $?; mount -o \
         remount,size=64m {0}; {binary} {2}",
        disk.display(),
        more(&disk.join("run"), ""),
        more(&disk.join("run"), "--resume")
    );
    let mut unshare = Command::new("unshare");
    let ran = unshare
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env("NODEVICE_SELECT", "1")
        .output();
    match ran {
        Ok(ran) if ran.status.success() => {
            let ran = Ran::new(script, ran);
            let (code, summary) = ran.stdout.split_once('\n').expect("two lines");
            assert_eq!(code, "code 1", "{ran:?}");
            let error = ran
                .stderr
                .lines()
                .find(|l| l.starts_with("error:"))
                .unwrap_or_else(|| panic!("no error: {ran:?}"));
            assert!(error.contains("step-8") && error.contains("No space left"), "{ran:?}");
            assert!(
                ran.stderr.contains("hint: free some space") && !ran.stderr.contains("panicked"),
                "{ran:?}"
            );
            assert_eq!(digest(&serde_json::from_str(summary).expect("JSON")), want);
        }
        // Mounting is a privilege that a user may lack.
        Ok(ran) => assert!(
            matches!(ran.status.code(), Some(1 | 77)),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        ),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

#[test]
fn losses_that_are_no_number() {
    let dir = folder();
    let line = |out: &Path, flags: &str| {
        let tiny = "--device cpu --width 8 --limit-train 16 --batch-size 16 --no-eval \
            --learning-rate 1e30 --save-minutes 0";
        format!("pretrain {tiny} --out {} {flags}", out.display())
    };
    // One step an epoch; the first has learning rate 0. The second ruins the weights, which the
    // held-out images show at once.
    let out = dir.path().join("validated");
    sh(&line(&out, ""))
        .fails(1, &["the validation loss is", "at step 2", "`encoder."])
        .hints("--learning-rate");
    let last = Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint");
    assert_eq!(last.meta["step"], "1");
    sh(&format!("reconstruct {} --device cpu --out {}/g.png", out.display(), dir.path().display()))
        .ok();
    // Without held-out images the third step shows it.
    let out = dir.path().join("unvalidated");
    sh(&line(&out, "--no-shuffle")).fails(1, &["the training loss is", "at step 3", "`encoder."]);
    let first = Checkpoint::load(out.join("checkpoints/step-1.safetensors")).expect("a checkpoint");
    assert_eq!(first.meta["step"], "1");
    // The same within the batches of an accumulated step.
    let parts = dir.path().join("accumulated");
    let flags = "--no-shuffle --accumulate 2";
    sh(&line(&parts, flags).replace("--batch-size 16", "--batch-size 8"))
        .fails(1, &["the training loss is", "at step 3", "`encoder."]);
    // It is as the step that the metrics would have called 3: the last whole record is of step 2.
    assert_eq!(metrics(&out).last().expect("a record")["step"], 2);
    // The way out that the hint names.
    let from = out.join("checkpoints/step-1.safetensors");
    pretrain(&dir.path().join("again"), &format!("--max-steps 2 --init-from {}", from.display()));
}

/// Weights at which the loss is finite while the gradient of one of them overflows: the run stops
/// in that very step, although its loss is a number, and says whose gradient it is.
#[test]
fn gradients_that_are_no_number() {
    let dir = folder();
    let tiny = "--method ae --width 8 --batch-size 16 --limit-train 32 --no-eval --no-shuffle \
        --device cpu";
    let start = dir.path().join("start");
    sh(&format!("pretrain {tiny} --max-steps 1 --out {}", start.display())).ok();
    let mut file =
        Checkpoint::load(start.join("checkpoints/last.safetensors")).expect("a checkpoint");
    file.tensors.retain(|name, _| !name.starts_with("optim."));
    // What conv2 reads is large and what comes back to it larger, what it makes of it is not.
    for (name, factor) in
        [("linear_projection2.weight", 1e10), ("conv2.weight", 1e-10), ("final_conv.weight", 1e18)]
    {
        let tensor =
            file.tensors.get_mut(&format!("decoder.{name}")).expect("a tensor of the decoder");
        let TensorData::F32(values) = &mut tensor.data else { panic!("{name} holds integers") };
        values.iter_mut().for_each(|x| *x *= factor);
    }
    let weights = dir.path().join("weights.safetensors");
    file.save(&weights).expect("a file");
    for (name, flags) in [("plain", ""), ("accumulated", "--batch-size 8 --accumulate 2")] {
        let out = dir.path().join(name);
        let line = format!(
            "pretrain {tiny} --epochs 3 --log-every 100 --init-from {} --out {} {flags}",
            weights.display(),
            out.display()
        );
        let line = if flags.is_empty() { line } else { line.replacen("--batch-size 16", "", 1) };
        let says = [
            "the training gradient is not finite at step 1;",
            "`decoder.conv2.backward:conv2d_weight_grad`",
        ];
        sh(&line).fails(1, &says).hints("--learning-rate");
        let records = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
        assert_eq!(records, "", "{name}");
    }
    // The flag is no metric.
    let names = fs::read_to_string(start.join("metrics.jsonl")).expect("metrics");
    assert!(names.contains("loss") && !names.contains("finite"), "{names}");
}

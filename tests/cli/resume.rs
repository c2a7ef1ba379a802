//! A run that was stopped, however, ends where one that was not would have.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{
    Ran, TINY, copy, digest, folder, image_folder, leftovers, measured, metrics, pretrain, sh,
    spawn, trained, was_killed,
};

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(300), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stop_and_resume_equals_the_straight_run() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let want = digest(&pretrain(&straight, "--max-steps 11 --log-every 3"));
    // Within an epoch of 4 steps and between two records; at the end of an epoch; where a record is
    // due.
    for stop in [2, 4, 9] {
        let out = dir.path().join(format!("stop{stop}"));
        let stopped = pretrain(&out, &format!("--max-steps {stop} --log-every 3"));
        assert_eq!(stopped["steps"], stop);
        let resumed = sh(&format!(
            "pretrain --device cpu --no-eval --resume --max-steps 11 --out {}",
            out.display()
        ))
        .ok()
        .json();
        assert_eq!(digest(&resumed), want, "stopped at {stop}");
        assert_eq!(metrics(&out), metrics(&straight), "stopped at {stop}");
        assert_eq!(
            resumed["train"]["loss"],
            metrics(&straight)[metrics(&straight).len() - 2]["loss"]
        );
        // A longer run is the run from now on, and resuming a finished one changes nothing.
        let again =
            sh(&format!("pretrain --device cpu --no-eval --resume --out {}", out.display()))
                .ok()
                .json();
        assert_eq!(
            (digest(&again), &again["train"]["loss"]),
            (want.clone(), &resumed["train"]["loss"])
        );
        assert_eq!(metrics(&out), metrics(&straight), "resumed at the end");
        let config =
            |out: &Path| fs::read_to_string(out.join("config.toml")).expect("a configuration");
        assert_eq!(config(&out), config(&straight));
    }
}

/// What another version computes may be other bits.
#[test]
fn a_run_of_another_version_is_not_continued() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    for file in fs::read_dir(out.join("checkpoints")).expect("a folder") {
        let path = file.expect("a file").path();
        let mut checkpoint = Checkpoint::load(&path).expect("a checkpoint");
        checkpoint.meta.insert("version".into(), "0.0.9".into());
        checkpoint.save(&path).expect("written");
    }
    let before = fs::read(out.join("checkpoints/last.safetensors")).expect("a file");
    let line =
        format!("pretrain --device cpu --no-eval --resume --max-steps 9 --out {}", out.display());
    sh(&line).fails(1, &["is of version 0.0.9, this is "]).hints("--init-from");
    assert_eq!(fs::read(out.join("checkpoints/last.safetensors")).expect("a file"), before);
    // To look at it is no risk.
    sh(&format!("knn {} --device cpu --limit-train 64", out.display())).ok();
}

/// An accumulated step is whole or not taken; its optimiser keeps one moment, and BatchNorm counts
/// its batches.
#[test]
fn an_accumulated_run_resumes() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let run = |out: &Path, more: &str| {
        let flags = "--device cpu --width 8 --limit-train 64 --batch-size 8 --accumulate 2 \
            --weight-decay 1e-4 --log-every 2 --no-eval";
        sh(&format!("pretrain {flags} --out {} {more}", out.display())).ok().json()
    };
    let want = digest(&run(&straight, "--max-steps 6 --optimizer lars"));
    // Between two records, and at the end of an epoch of 4 steps.
    for stop in [3, 4] {
        let out = dir.path().join(format!("stop{stop}"));
        assert_eq!(run(&out, &format!("--max-steps {stop} --optimizer lars"))["steps"], stop);
        let resumed = sh(&format!(
            "pretrain --device cpu --no-eval --resume --max-steps 6 --out {}",
            out.display()
        ))
        .ok()
        .json();
        assert_eq!(digest(&resumed), want, "stopped at {stop}");
        assert_eq!(metrics(&out), metrics(&straight), "stopped at {stop}");
    }
    let tensors = Checkpoint::load(straight.join("checkpoints/last.safetensors"))
        .expect("a checkpoint")
        .tensors;
    assert!(
        tensors.keys().any(|k| k.starts_with("optim.m."))
            && !tensors.keys().any(|k| k.starts_with("optim.v."))
    );
    assert_eq!(tensors["encoder.bn1.num_batches_tracked"].data, TensorData::I64(vec![12]));
    assert_ne!(
        want,
        digest(&run(&dir.path().join("adam"), "--max-steps 6")),
        "the optimiser does not count"
    );
}

/// Where the rate depends on the run's length, a longer run is another run.
#[test]
fn a_schedule_ends_with_its_run() {
    let dir = folder();
    let out = dir.path().join("run");
    let flags = "--max-steps 6 --log-every 1 --warmup-epochs 0 --schedule cosine";
    let want = digest(&pretrain(&out, flags));
    let rates: Vec<_> = metrics(&out).iter().filter_map(|r| r["lr"].as_f64()).collect();
    assert!(
        rates[0] == 2.5e-4 && rates.is_sorted_by(|a, b| a > b) && rates[5] < 0.1 * rates[0],
        "{rates:?}"
    );
    let before = fs::read(out.join("config.toml")).expect("a file");
    for (longer, says) in [
        ("--max-steps 7", "--max-steps is 7 here"),
        ("--epochs 3", "--epochs is 3 here"),
        ("--epochs 400", "--max-steps is unset here"),
    ] {
        sh(&format!("pretrain --device cpu --no-eval --resume --out {} {longer}", out.display()))
            .fails(1, &[says, "depends on its length"])
            .hints("--init-from");
    }
    assert_eq!(
        fs::read(out.join("config.toml")).expect("a file"),
        before,
        "a refusal changes nothing"
    );
    // The kill that took the last checkpoint.
    for name in ["last", "step-6"] {
        fs::remove_file(out.join(format!("checkpoints/{name}.safetensors"))).expect("gone");
    }
    assert_eq!(
        digest(
            &sh(&format!("pretrain --device cpu --no-eval --resume --out {}", out.display()))
                .ok()
                .json()
        ),
        want
    );
}

#[test]
fn measurements_resume_as_well() {
    let dir = folder();
    let data = dir.path().join("data");
    image_folder(&data, 2, 40, 4);
    let flags = "--online-probe --importance-samples 2 --eval-every 2 --view-metrics-every 3";
    let run = |out: &Path, steps: u32| {
        digest(&measured(&data, out, &format!("{flags} --max-steps {steps}")))
    };
    let straight = dir.path().join("straight");
    let want = run(&straight, 11);
    let splits: Vec<_> = metrics(&straight)
        .iter()
        .map(|r| format!("{} {}", r["step"], r["split"].as_str().expect("a split")))
        .collect();
    let due = [
        "3 view", "3 train", "4 train", "4 val", "6 view", "6 train", "8 train", "8 val", "8 eval",
    ];
    assert_eq!(
        splits,
        [&due[..], &["9 view", "9 train", "11 train", "11 val", "11 eval"]].concat()
    );
    // After an epoch that is not evaluated; with a view; after one that is.
    for stop in [4, 6, 8] {
        let out = dir.path().join(format!("stop{stop}"));
        run(&out, stop);
        assert_eq!(metrics(&out).last().expect("records")["split"], "eval", "the end is evaluated");
        let resumed = sh(&format!(
            "pretrain --device cpu --no-eval --resume --max-steps 11 --out {}",
            out.display()
        ))
        .ok()
        .json();
        assert_eq!(digest(&resumed), want, "stopped at {stop}");
        assert_eq!(metrics(&out), metrics(&straight), "stopped at {stop}");
        assert_eq!(
            resumed["evaluation"]["log_px"],
            metrics(&straight).last().expect("records")["log_px"]
        );
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_resume_continues() {
    let dir = folder();
    let out = dir.path().join("run");
    let line = format!("pretrain {TINY} --no-eval --out {}", out.display());
    let child = spawn(&line);
    wait_for(&out.join("checkpoints/last.safetensors"));
    std::thread::sleep(Duration::from_millis(70));
    crate::support::signal(&child, "INT");
    let ran = Ran::new(line, child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let summary = ran.json();
    assert_eq!(summary["interrupted"], true);
    assert!(
        ran.stderr.contains("`--resume` continues") && !ran.stderr.contains("error:"),
        "{ran:?}"
    );
    let end = summary["steps"].as_u64().expect("steps") + 3;
    let resumed = sh(&format!(
        "pretrain --device cpu --no-eval --resume --max-steps {end} --out {}",
        out.display()
    ))
    .ok()
    .json();
    let straight = dir.path().join("straight");
    assert_eq!(digest(&resumed), digest(&pretrain(&straight, &format!("--max-steps {end}"))));
    assert_eq!(metrics(&out), metrics(&straight));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_evaluation_at_once() {
    let dir = folder();
    let out = dir.path().join("run");
    let line =
        format!("pretrain {TINY} --max-steps 1 --probe-epochs 100000 --out {}", out.display());
    let child = spawn(&line);
    wait_for(&out.join("summary.json"));
    crate::support::signal(&child, "INT");
    let ran = Ran::new(line, child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("summary.json")).expect("a file")).expect("JSON");
    assert!(summary["sha256"].is_string() && summary["probe"].is_null(), "{summary}");
}

#[test]
fn a_killed_run_resumes() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let want = digest(&pretrain(&straight, "--max-steps 41 --log-every 3"));
    let out = dir.path().join("run");
    let mut killed = 0;
    for (attempt, delay) in [0, 250, 600].into_iter().enumerate() {
        let resume = if attempt == 0 { "" } else { "--resume" };
        let mut child = spawn(&format!(
            "pretrain {TINY} --no-eval --max-steps 41 --log-every 3 --out {} {resume}",
            out.display()
        ));
        wait_for(&out);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().ok();
        killed += u32::from(was_killed(child.wait().expect("it ends")));
    }
    assert!(killed > 0, "no run lived long enough to be killed");
    let line = format!(
        "pretrain {TINY} --no-eval --max-steps 41 --log-every 3 --out {} --resume",
        out.display()
    );
    assert_eq!(digest(&sh(&line).ok().json()), want);
    assert_eq!(metrics(&out), metrics(&straight));
    assert_eq!(leftovers(&out), Vec::<String>::new());
}

/// What a kill leaves at each place where it could strike, made by hand.
#[test]
fn resume_after_a_kill_at_an_awkward_moment() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let want = digest(&pretrain(&straight, "--max-steps 9"));
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("before the configuration", |out| {
            fs::remove_dir_all(out).expect("gone");
            fs::create_dir_all(out.join("checkpoints")).expect("a folder");
            fs::write(out.join("checkpoints/unsaved"), "").expect("a file");
            fs::write(out.join("metrics.jsonl"), "").expect("a file");
            fs::write(out.join("config.toml.0123456789abcdef.tmp"), "dataset = \"sha")
                .expect("a file");
            fs::write(out.join(".lock"), "4194305 aavae pretrain\n").expect("a file");
        }),
        ("within the first checkpoint", |out| {
            fs::remove_dir_all(out.join("checkpoints")).expect("gone");
            fs::create_dir(out.join("checkpoints")).expect("a folder");
            fs::write(out.join("checkpoints/unsaved"), "").expect("a file");
            fs::write(out.join("checkpoints/step-4.safetensors.0123456789abcdef.tmp"), "half")
                .expect("a file");
        }),
        ("between step-N and last", |out| {
            fs::remove_file(out.join("checkpoints/last.safetensors")).expect("gone");
            fs::hard_link(
                out.join("checkpoints/step-5.safetensors"),
                out.join("checkpoints/last.safetensors.0123456789abcdef.tmp"),
            )
            .expect("a link");
        }),
        ("with a torn line and a damaged last", |out| {
            let path = out.join("metrics.jsonl");
            let text = fs::read_to_string(&path).expect("metrics");
            fs::write(&path, text + "{\"step\":6,\"epo").expect("a file");
            fs::write(out.join("checkpoints/last.safetensors"), "half").expect("a file");
        }),
    ];
    for (i, (name, damage)) in damages.into_iter().enumerate() {
        let out = dir.path().join(format!("run{i}"));
        pretrain(&out, "--max-steps 5");
        damage(&out);
        let resumed = pretrain(&out, "--max-steps 9 --resume");
        assert_eq!(digest(&resumed), want, "{name}");
        assert_eq!(metrics(&out), metrics(&straight), "{name}");
        assert_eq!(leftovers(&out), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_resumed_run_is_the_run_that_was_started() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    let before = fs::read(out.join("config.toml")).expect("a file");
    let resume = |flags: &str| {
        sh(&format!("pretrain --device cpu --no-eval --resume --out {} {flags}", out.display()))
    };
    for (flags, flag, here, there) in [
        ("--width 16", "--width", "16", "8"),
        ("--batch-size 32", "--batch-size", "32", "16"),
        ("--method vae", "--method", "\"vae\"", "\"aavae\""),
        ("--encoder resnet34 --decoder resnet18", "--encoder", "\"resnet34\"", "\"resnet18\""),
        ("--decoder resnet50", "--decoder", "\"resnet50\"", "\"resnet18\""),
        ("--latent-dim 64", "--latent-dim", "64", "128"),
        ("--learning-rate 0.5", "--learning-rate", "0.5", "0.00025"),
        ("--accumulate 2", "--accumulate", "2", "1"),
        ("--optimizer lars", "--optimizer", "\"lars\"", "\"adam\""),
        ("--weight-decay 0.5", "--weight-decay", "0.5", "0.0"),
        ("--schedule cosine", "--schedule", "\"cosine\"", "\"constant\""),
        ("--warmup-epochs 3", "--warmup-epochs", "3", "10"),
        ("--kl-coeff 1", "--kl-coeff", "1.0", "unset"),
        ("--log-scale 1", "--log-scale", "1.0", "0.0"),
        ("--learn-log-scale", "--learn-log-scale", "true", "false"),
        ("--target view", "--target", "\"view\"", "\"original\""),
        ("--limit-train 32", "--limit-train", "32", "64"),
        ("--no-shuffle", "--no-shuffle", "false", "true"),
        ("--online-probe", "--online-probe", "true", "false"),
        ("--init-from x.safetensors", "--init-from", "\"x.safetensors\"", "unset"),
        ("--seed 1", "--seed", "1", "0"),
        ("--dataset folder --data-dir x", "--dataset", "\"folder\"", "\"shapes\""),
        ("--preset quick", "--batch-size", "128", "16"),
    ] {
        let says = [
            format!("error: {flag} is {here} here, but {there} in "),
            out.join("checkpoints/last.safetensors").display().to_string(),
        ];
        resume(flags).fails(1, &[&says[0], &says[1]]).hints("--max-steps");
    }
    resume("--max-steps 4").fails(1, &["5 steps already", "the 4 asked for"]).hints("--max-steps");
    assert_eq!(
        fs::read(out.join("config.toml")).expect("a file"),
        before,
        "a refusal changes nothing"
    );
    // The same flags again, and those that only prolong or report, are fine.
    let resumed = resume("--width 8 --seed 0 --batch-size 16 --log-every 1 --epochs 2").ok().json();
    assert_eq!(resumed["steps"], 8);
}

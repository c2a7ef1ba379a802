//! Mixed precision: a scaled loss, what a run records of it, and what it refuses.

use std::fs;
use std::path::Path;

use aavae::run::checkpoint::{Checkpoint, TensorData};

use crate::support::{Ran, copy, digest, folder, metrics, pretrain, sh};

fn resume(out: &Path, flags: &str) -> Ran {
    sh(&format!("pretrain --device cpu --no-eval --resume --out {} {flags}", out.display()))
}

/// Sets, or takes away, the state of the scale in the checkpoints of a run.
fn set_scale(out: &Path, state: Option<[f32; 3]>) {
    for file in fs::read_dir(out.join("checkpoints")).expect("a folder") {
        let path = file.expect("a file").path();
        let mut checkpoint = Checkpoint::load(&path).expect("a checkpoint");
        match state {
            Some(state) => {
                let tensor = checkpoint.tensors.get_mut("optim.loss_scale").expect("a scale");
                tensor.data = TensorData::F32(state.to_vec());
            }
            None => assert!(checkpoint.tensors.remove("optim.loss_scale").is_some()),
        }
        checkpoint.save(&path).expect("written");
    }
}

fn config(out: &Path) -> String {
    fs::read_to_string(out.join("config.toml")).expect("a configuration")
}

#[test]
fn a_stopped_run_in_mixed_precision_ends_as_the_straight_one() {
    let dir = folder();
    for (name, flags) in [("plain", ""), ("accumulated", "--accumulate 2 --optimizer lamb")] {
        let flags = format!("--log-every 2 --online-probe --precision f16 {flags}");
        let path = |what: &str| dir.path().join(format!("{name}-{what}"));
        let want = digest(&pretrain(&path("straight"), &format!("--max-steps 5 {flags}")));
        let stopped = path("stopped");
        pretrain(&stopped, &format!("--max-steps 3 {flags}"));
        let resumed = resume(&stopped, "--max-steps 5 --precision auto").ok().json();
        assert_eq!(digest(&resumed), want, "{name}");
        assert_eq!(metrics(&stopped), metrics(&path("straight")), "{name}");
        assert!(config(&stopped).contains("precision = \"f16\""), "{name}");
        let last = &resumed["train"];
        assert!(last["loss_scale"] == 65_536.0 && last["skipped"] == 0.0, "{name}: {last}");
        let full = flags.replace("f16", "f32");
        let other = pretrain(&path("f32"), &format!("--max-steps 5 {full}"));
        assert!(digest(&other) != want && other["train"]["loss_scale"].is_null(), "{name}");
        let says = ["--precision is \"f32\" here, but \"f16\""];
        resume(&stopped, "--max-steps 6 --precision f32").fails(1, &says);
        let says = ["--precision is \"f16\" here, but \"f32\""];
        resume(&path("f32"), "--max-steps 6 --precision f16").fails(1, &says);
    }
    let run = dir.path().join("plain-stopped");
    let probe = sh(&format!("probe {} --device cpu --epochs 1 --json", run.display())).ok().json();
    assert!((0.0..=1.0).contains(&probe["accuracy"].as_f64().expect("an accuracy")), "{probe}");
    // Weights of such a run, and of any other, begin with a fresh scale.
    let from = run.join("checkpoints/last.safetensors");
    for precision in ["f16", "f32"] {
        let out = dir.path().join(format!("from-{precision}"));
        let flags = format!("--max-steps 1 --precision {precision} --init-from {}", from.display());
        pretrain(&out, &flags);
    }
}

/// A scale that is too large is halved until the gradients fit, and one that no training makes is
/// refused.
#[test]
fn a_scale_is_resumed_and_adapts() {
    let dir = folder();
    let out = dir.path().join("run");
    pretrain(&out, "--max-steps 2 --log-every 1 --precision f16");
    let start = dir.path().join("start");
    copy(&out, &start);
    set_scale(&out, Some([16_777_216.0, 7.0, 2.0]));
    let adapted = resume(&out, "--max-steps 12").ok().json();
    let (scale, skipped) = (&adapted["train"]["loss_scale"], &adapted["train"]["skipped"]);
    let halved = skipped.as_f64().expect("a count") - 2.0;
    assert!(halved > 0.0 && halved < 10.0, "{adapted}");
    assert_eq!(scale.as_f64(), Some(16_777_216.0 / halved.exp2()), "{adapted}");
    let all = metrics(&out);
    let train = all.iter().filter(|record| record["split"] == "train");
    let counts: Vec<f64> = train.filter_map(|record| record["skipped"].as_f64()).collect();
    assert!(counts.is_sorted() && counts[1] == 0.0 && counts[2] == 3.0, "{counts:?}");
    for (state, says) in [
        (Some([3.0, 0.0, 0.0]), "a power of two"),
        (Some([33_554_432.0, 0.0, 0.0]), "from 1 to 2^24"),
        (Some([1.0, 0.5, 0.0]), "are counted"),
        (None, "has no tensor `optim.loss_scale`"),
    ] {
        let out = dir.path().join("damaged");
        fs::remove_dir_all(&out).ok();
        copy(&start, &out);
        set_scale(&out, state);
        resume(&out, "--max-steps 3").fails(1, &["optim.loss_scale", says]);
    }
}

/// The gradient of a likelihood with a tiny variance is beyond f16 with any scale: sixteen steps
/// are skipped, and the next stops the run.
#[test]
fn a_run_that_only_skips_stops() {
    let dir = folder();
    let out = dir.path().join("run");
    let line = format!(
        "pretrain --device cpu --width 8 --limit-train 64 --batch-size 16 --no-eval \
         --importance-samples 0 --method vae --log-scale -18 --epochs 10 --log-every 100 \
         --precision f16 --out {}",
        out.display()
    );
    let says = ["gradient is not finite with any scale of the loss, down to 1, at step 17;"];
    sh(&line).fails(1, &says).hints("--precision f32");
    sh(&format!("{} --max-steps 18 --overwrite", line.replace("f16", "f32"))).ok();
}

#[test]
fn commands_take_a_precision() {
    let flags = "--device cpu --width 8 --batch-size 4";
    let bench = |precision: &str| {
        let line = format!("bench --step --steps 1 --json {flags} --precision {precision}");
        sh(&line).ok().json()
    };
    for precision in ["f16", "bf16", "f32"] {
        assert_eq!(bench(precision)["precision"], precision);
    }
    // A processor multiplies no cooperative matrices.
    assert_eq!(bench("auto")["precision"], "f32");
    let bytes = |precision: &str| {
        let line = format!("plan --json {flags} --precision {precision}");
        sh(&line).ok().json()["pretrain"]["plans"]["train"].as_f64().expect("bytes")
    };
    let whole = bytes("f32");
    for half in ["f16", "bf16"] {
        assert!(bytes(half) < 0.7 * whole, "{half}: {} and {whole}", bytes(half));
    }
    let dir = folder();
    let [auto, f32] = ["auto", "f32"].map(|precision| {
        let out = dir.path().join(precision);
        let run = pretrain(&out, &format!("--max-steps 1 --precision {precision}"));
        assert!(config(&out).contains("precision = \"f32\""), "{precision}");
        digest(&run)
    });
    assert_eq!(auto, f32);
}

/// bf16 has the range of f32: nothing scales its loss, neither in the plan nor in the checkpoint.
#[test]
fn a_stopped_run_in_bf16_ends_as_the_straight_one() {
    let dir = folder();
    let path = |what: &str| dir.path().join(what);
    let flags = "--log-every 2 --online-probe --precision bf16";
    let want = digest(&pretrain(&path("straight"), &format!("--max-steps 5 {flags}")));
    let stopped = path("stopped");
    pretrain(&stopped, &format!("--max-steps 3 {flags}"));
    let resumed = resume(&stopped, "--max-steps 5 --precision auto").ok().json();
    assert_eq!(digest(&resumed), want);
    assert_eq!(metrics(&stopped), metrics(&path("straight")));
    assert!(config(&stopped).contains("precision = \"bf16\""));
    let last = &resumed["train"];
    assert!(last["loss_scale"].is_null() && last["skipped"].is_null(), "{last}");
    let kept = Checkpoint::load(stopped.join("checkpoints/last.safetensors")).expect("one");
    assert!(!kept.tensors.contains_key("optim.loss_scale"));
    let floats = |t: &TensorData| matches!(t, TensorData::F32(_));
    assert!(kept.tensors.values().any(|t| floats(&t.data)), "weights are f32");
    for other in ["f16", "f32"] {
        let full = flags.replace("bf16", other);
        assert_ne!(digest(&pretrain(&path(other), &format!("--max-steps 5 {full}"))), want);
        let says = format!("--precision is \"{other}\" here, but \"bf16\"");
        let again = format!("--max-steps 6 --precision {other}");
        resume(&stopped, &again).fails(1, &[&says]);
        let says = format!("--precision is \"bf16\" here, but \"{other}\"");
        resume(&path(other), "--max-steps 6 --precision bf16").fails(1, &[&says]);
    }
    let probe = format!("probe {} --device cpu --epochs 1 --json", stopped.display());
    let probe = sh(&probe).ok().json();
    assert!((0.0..=1.0).contains(&probe["accuracy"].as_f64().expect("an accuracy")), "{probe}");
}

/// WGSL has no bf16: one error, before anything is made.
#[test]
fn a_gpu_by_wgpu_refuses_bf16() {
    let dir = folder();
    let Some(adapter) = aavae::device::wgpu::adapters().into_iter().next() else {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no adapter");
        return;
    };
    let out = dir.path().join("run");
    let commands = [
        "plan --width 8".to_owned(),
        "bench --width 8 --steps 1".to_owned(),
        "tune --width 8".to_owned(),
        format!("pretrain --width 8 --limit-train 64 --no-eval --out {}", out.display()),
    ];
    for line in commands {
        let line = format!("{line} --device wgpu:0 --precision bf16 --batch-size 4");
        let says = ["wgpu:", "cannot store bf16, as --precision bf16 asks"];
        sh(&line).fails(1, &says).hints("--device cuda or cpu: WGSL has no bf16");
    }
    assert!(!out.exists(), "{} is left by a device of {}", out.display(), adapter.name);
}

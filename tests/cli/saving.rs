//! When checkpoints are saved, and that a run loses nothing by their being rare.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{
    Ran, TINY, digest, folder, leftovers, metrics, pretrain, sh, spawn, was_killed,
};

/// More than any test takes.
const NEVER: &str = "--save-minutes 1000";

/// Names of the checkpoints of a run.
fn checkpoints(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join("checkpoints")).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names.iter().map(|name| name.trim_end_matches(".safetensors").to_owned()).collect()
}

/// [`TINY`] without its checkpoint after every epoch.
fn rarely(out: &Path, more: &str) -> String {
    let tiny = TINY.replace("--save-minutes 0", NEVER);
    format!("pretrain {tiny} --no-eval --out {} {more}", out.display())
}

/// Waits until a run has logged a step from `step` on.
#[track_caller]
fn wait_for_step(out: &Path, step: u64) {
    let start = Instant::now();
    loop {
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let last = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        if last.is_some_and(|record| record["step"].as_u64() >= Some(step)) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(300), "step {step} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_epoch_or_only_the_end() {
    let dir = folder();
    let (often, rare) = (dir.path().join("often"), dir.path().join("rare"));
    let flags = "--max-steps 13 --log-every 3";
    let want = digest(&pretrain(&often, flags));
    // Of the last three, as many as are kept.
    assert_eq!(checkpoints(&often), ["last", "step-12", "step-13", "step-8"]);
    assert_eq!(digest(&sh(&rarely(&rare, flags)).ok().json()), want, "saving moves no weight");
    assert_eq!(checkpoints(&rare), ["last", "step-13"]);
    assert_eq!(metrics(&rare), metrics(&often));
    // What must be kept is, whatever the clock says.
    let marked = dir.path().join("marked");
    assert_eq!(
        digest(&sh(&rarely(&marked, &format!("{flags} --milestones 1,3"))).ok().json()),
        want
    );
    assert_eq!(
        checkpoints(&marked),
        ["epoch-1", "epoch-3", "last", "step-12", "step-13", "step-4"]
    );
    let config = fs::read_to_string(rare.join("config.toml")).expect("a configuration");
    assert!(config.lines().any(|line| line == "save_minutes = 1000.0"), "{config}");
    // How often a run is saved may change.
    sh(&format!(
        "pretrain --device cpu --no-eval --resume --max-steps 18 --save-minutes 0.0001 --out {}",
        rare.display()
    ))
    .ok();
    assert!(checkpoints(&rare).contains(&"step-16".to_owned()), "{:?}", checkpoints(&rare));
    for (minutes, says) in [
        ("-1", "--save-minutes -1"),
        ("nan", "--save-minutes NaN"),
        ("inf", "--save-minutes inf"),
        ("x", "'x'"),
    ] {
        sh(&format!(
            "pretrain --device cpu --save-minutes {minutes} --out {}/no",
            dir.path().display()
        ))
        .fails(2, &[says]);
    }
}

/// A run whose last checkpoint is long ago, or that has none yet, is killed.
#[test]
fn a_kill_between_rare_checkpoints() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let flags = "--max-steps 41 --log-every 3";
    let want = digest(&pretrain(&straight, flags));
    let out = dir.path().join("run");
    let kill = |line: &str, step: u64| {
        let mut child = spawn(line);
        wait_for_step(&out, step);
        child.kill().expect("it runs");
        assert!(was_killed(child.wait().expect("it ends")), "killed in time");
    };
    kill(&rarely(&out, flags), 9);
    assert_eq!(checkpoints(&out), ["unsaved"], "before the first");
    assert!(!metrics(&out).is_empty());
    // It begins again and stops at a checkpoint; then it is killed far behind that.
    sh(&rarely(&out, "--max-steps 5 --log-every 3 --resume")).ok();
    assert_eq!(checkpoints(&out), ["last", "step-5"]);
    kill(&rarely(&out, &format!("{flags} --resume")), 14);
    assert_eq!(checkpoints(&out), ["last", "step-5"]);
    let ahead = metrics(&out).last().expect("records")["step"].as_u64();
    assert!(ahead >= Some(14), "records are ahead of the checkpoint");
    let ran = sh(&rarely(&out, &format!("{flags} --resume"))).ok();
    assert!(ran.stderr.contains("resumed at step 5 of 41"), "{ran:?}");
    assert_eq!(digest(&ran.json()), want);
    assert_eq!(metrics(&out), metrics(&straight));
    assert_eq!(leftovers(&out), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_whatever_the_clock_says() {
    let dir = folder();
    let out = dir.path().join("run");
    let line = rarely(&out, "--log-every 1");
    let child = spawn(&line);
    wait_for_step(&out, 6);
    crate::support::signal(&child, "INT");
    let ran = Ran::new(line, child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let steps = ran.json()["steps"].as_u64().expect("steps");
    assert_eq!(checkpoints(&out), ["last".to_owned(), format!("step-{steps}")]);
    let said = format!("saved at step {steps} of");
    assert!(ran.stderr.contains(&said), "{ran:?}");
}

/// Something holds `last.safetensors`, as Windows has it of a program that reads it, and Linux of a
/// file that is mounted: the run says so and goes on, and is resumed from the newer file.
#[cfg(target_os = "linux")]
#[test]
fn a_last_that_cannot_be_replaced() {
    let dir = folder();
    let straight = dir.path().join("straight");
    let want = digest(&pretrain(&straight, "--max-steps 11"));
    let out = dir.path().join("run");
    pretrain(&out, "--max-steps 5");
    let last = out.join("checkpoints/last.safetensors");
    let more = format!("pretrain {TINY} --no-eval --resume --max-steps 9 --out {}", out.display());
    let script = format!(
        "mount --bind {0} {0} || exit 77; exec {1} {more}",
        last.display(),
        env!("CARGO_BIN_EXE_aavae")
    );
    let mut unshare = std::process::Command::new("unshare");
    let ran = unshare
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env("NODEVICE_SELECT", "1")
        .output();
    let ran = match ran {
        Ok(ran) if !matches!(ran.status.code(), Some(1 | 77)) => Ran::new(script, ran).ok(),
        // Mounting is a privilege that a user may lack.
        Ok(ran) => {
            return assert!(!String::from_utf8_lossy(&ran.stderr).contains("error:"), "{ran:?}");
        }
        Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    };
    let warned = |step: u64| {
        let newest = format!("step-{step}.safetensors, and the next one tries again");
        ran.stderr.lines().any(|l| {
            l.starts_with("warning: cannot replace")
                && l.contains("last.safetensors")
                && l.contains(&newest)
        })
    };
    assert!(warned(8) && warned(9), "{ran:?}");
    assert!(
        ran.json()["checkpoint"].as_str().is_some_and(|path| path.ends_with("step-9.safetensors")),
        "{ran:?}"
    );
    let resumed = sh(&format!(
        "pretrain --device cpu --no-eval --resume --max-steps 11 --out {}",
        out.display()
    ))
    .ok();
    assert!(resumed.stderr.contains("resumed at step 9 of 11"), "{resumed:?}");
    assert_eq!(digest(&resumed.json()), want);
    assert_eq!(leftovers(&out), Vec::<String>::new());
}

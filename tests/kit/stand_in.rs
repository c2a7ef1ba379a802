//! The rules of a measurement, on a shell script that stands in for the program.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::{
    STAGES, check, cut, folder, is_small, named, names, random, root, running, script, shown,
    signal, stages, table, text, wait_for,
};

/// A folder like a packed one, of the stand-in.
pub(super) fn stand_in() -> tempfile::TempDir {
    let dir = folder();
    for folder in ["bin", "tests/golden", "tmp"] {
        fs::create_dir_all(dir.path().join(folder)).expect("a folder");
    }
    fs::copy(root().join("tests/kit/stand-in"), dir.path().join("bin/aavae")).expect("a copy");
    dir
}

/// A measurement of the stand-in, with a Python that stands in too.
pub(super) fn measure_stand_in(dir: &Path, more: &[&str]) -> Command {
    let (out, pack) = (dir.join("out"), dir.display().to_string());
    let out = out.display().to_string();
    let arguments = [&[&out, "--pack", &pack], more].concat();
    let mut command = script(&root().join("scripts/measure-gpu"), &arguments, &dir.join("tmp"));
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", root().join("tests/kit").display()));
    command
}

/// Every way a stage can end is recorded as what it is, and the next one runs.
pub(super) fn every_end_is_recorded() -> Result<(), Failed> {
    let dir = stand_in();
    let ran = measure_stand_in(dir.path(), &[]).output()?;
    check(ran.status.success(), || shown(&ran))?;
    let out = dir.path().join("out");
    let stages = stages(&out)?;
    check(names(&stages) == STAGES, || format!("{:?}\n{}", names(&stages), shown(&ran)))?;
    is_small(&out)?;
    let left = fs::read_dir(dir.path().join("tmp"))?.count();
    check(left == 0, || "the temporary folder is left".into())?;

    let rcs: Vec<_> = stages
        .iter()
        .filter(|s| s["rc"] != 0)
        .map(|s| (s["stage"].clone(), s["rc"].clone()))
        .collect();
    let failed = json!([
        ["check_conv2d", 1],
        ["torch_f16", 1],
        ["tune_sweep", 139],
        ["tune_sweep_f16", 139],
        ["step_bf16", null],
        ["check_bf16", null],
        ["tune_library", null],
        ["check_library", null],
        ["step_library", null],
        ["resnet50_batch256", 1],
        ["digests", 1],
        ["digests_f16", 1],
        ["probe", 1]
    ]);
    check(json!(rcs) == failed, || format!("{rcs:?}"))?;
    let is = |stage: &str, key: &str, want: Value| -> Result<(), Failed> {
        let found = named(&stages, stage)?.pointer(key).cloned();
        check(found.as_ref() == Some(&want), || format!("{stage}{key} is {found:?}, not {want}"))
    };
    is("machine", "/result/devices/adapters/0/name", json!("A \"good\" | GPU"))?;
    is("check_conv2d", "/result/failures/0", json!("a | b \\ é"))?;
    is("check_batch_norm", "/output", json!("not JSON: \"quoted\" \\ \t \n{\"cut\": off}x"))?;
    is("step_warm", "/result/step/median_ms", json!(2.5))?;
    is(
        "step_warm",
        "/command",
        json!("aavae bench --step --width 64 --batch-size 256 --device wgpu --json --steps 50"),
    )?;
    is("tune_sweep", "/output", json!("{\"candidates\":[{\"kernel\":1}"))?;
    is("bench_op", "/output", json!("x".repeat(2000)))?;
    is("digests", "/result", json!({ "same": false, "straight": "aa", "resumed": "bb" }))?;
    is("check_rest", "/result/passed", json!(3))?;

    let table = table(&out)?;
    check(table == text(&out.join("table.md")), || table.clone())?;
    for line in [
        "| machine | ok | ",
        "A \\\"good\\\" \\| GPU; D 1; ",
        "| 7 passed, 1 failed |",
        "| 2.50 ms, 3200 images/s, ready after 0.5 s |",
        "| 1.50 ms, 6401 images/s (aavae: 0.50x) |",
        "RuntimeError: no f16 here |",
        "| error: too much memory |",
        "| 400 steps, 10 images/s, sha256 aa |",
        "| same weights: false |",
        "\n27 stages ok, 8 failed, 5 skipped\n",
    ] {
        check(table.contains(line), || format!("the table lacks `{line}`: {table}"))?;
    }
    Ok(())
}

/// A stage that hangs is ended at its limit, and what no longer fits is skipped and recorded.
pub(super) fn hanging_stage_is_ended() -> Result<(), Failed> {
    let dir = stand_in();
    let began = Instant::now();
    let ran = measure_stand_in(dir.path(), &["--minutes", "0.3"]).env("HANG", "1").output()?;
    let seconds = began.elapsed().as_secs();
    check(ran.status.success() && (10..25).contains(&seconds), || {
        format!("{seconds} s: {}", shown(&ran))
    })?;
    let stages = stages(&dir.path().join("out"))?;
    check(named(&stages, "check_conv2d")?["rc"] == 124, || shown(&ran))?;
    for stage in ["check_batch_norm", "step_cold", "train", "train_long", "check_rest"] {
        let why = named(&stages, stage)?["skipped"].as_str().unwrap_or("").to_owned();
        check(why.contains("s are left") || why.contains("too little time"), || {
            format!("{stage}: {why}")
        })?;
    }
    let table = table(&dir.path().join("out"))?;
    check(table.contains("| check_conv2d | out of time |"), || table.clone())
}

/// `SIGTERM` ends the stage that runs, which is recorded, and the measurement.
pub(super) fn told_to_stop() -> Result<(), Failed> {
    let dir = stand_in();
    let mut child = measure_stand_in(dir.path(), &[]).env("HANG", "1").spawn()?;
    wait_for(|| running(&dir.path().join("out")).is_some_and(|r| r.0 == "check_conv2d"))?;
    signal("TERM", &child.id().to_string())?;
    let began = Instant::now();
    let status = child.wait()?;
    check(status.code() == Some(1) && began.elapsed().as_secs() < 20, || format!("{status}"))?;
    let stages = stages(&dir.path().join("out"))?;
    let rc = &named(&stages, "check_conv2d")?["rc"];
    check(rc != 0 && rc.is_number(), || format!("{rc}"))?;
    let last = stages.last().ok_or("no stages")?;
    check(last["stage"] == "rest" && last["skipped"] == "stopped by SIGTERM", || {
        format!("{stages:?}")
    })?;
    table(&dir.path().join("out")).map(drop)
}

/// NVIDIA's driver is found without a loader, with its manifest elsewhere, and without one.
pub(super) fn driver_is_found() -> Result<(), Failed> {
    const MANIFEST: &str = "usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json";
    let ways = [
        (MANIFEST, "libGLX_nvidia", MANIFEST),
        ("usr/local/nvidia/lib64/libGLX_nvidia.so.0", "libGLX_nvidia.so.0", "manifest of"),
        ("usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.0", "libEGL_nvidia.so.0", "manifest of"),
        ("usr/lib64/other.so", "libGLX_nvidia.so.0", "no GPU is found"),
    ];
    for (file, needs, said) in ways {
        let dir = stand_in();
        let path = dir.path().join("root").join(file);
        fs::create_dir_all(path.parent().ok_or("a folder")?)?;
        fs::write(&path, "{\"ICD\":{\"library_path\":\"libGLX_nvidia.so.0\"}}")?;
        let mut command = measure_stand_in(dir.path(), &[]);
        let ran = command.env("SYSROOT", dir.path().join("root")).env("NEEDS", needs).output()?;
        check(ran.status.success(), || shown(&ran))?;
        let stages = stages(&dir.path().join("out"))?;
        let machine = &named(&stages, "machine")?["result"];
        let vulkan = machine["vulkan"].as_str().unwrap_or("");
        check(vulkan.contains(said), || format!("{file}: {machine}"))?;
        let found = machine["devices"]["adapters"][0]["software"] == false;
        let icd = named(&stages, "step_warm")?["result"]["icd"].as_str().unwrap_or("").to_owned();
        let used = icd.ends_with(".json");
        check(found == used && found != said.starts_with("no"), || {
            format!("{file}: {machine}, {icd}")
        })?;
    }
    Ok(())
}

/// What is asked wrongly is refused before anything is made.
pub(super) fn wrong_use_is_refused() -> Result<(), Failed> {
    let dir = stand_in();
    let held = dir.path().join("held");
    fs::create_dir(&held)?;
    fs::write(held.join("stages.jsonl"), "{}\n")?;
    let held = held.display().to_string();
    let new = dir.path().join("new").display().to_string();
    let pack = dir.path().display().to_string();
    let cases: [(i32, &str, &[&str]); 11] = [
        (2, "usage: scripts/measure-gpu OUT", &[]),
        (2, "usage: ", &[&new, "--hours", "1"]),
        (2, "usage: ", &[&new, "--minutes", "-1"]),
        (2, "usage: ", &[&new, "--size", "large"]),
        (1, "holds a measurement", &[&held, "--pack", &pack]),
        (1, "no bin/aavae", &[&new, "--pack", &held]),
        (1, "has no test_batch.bin", &[&new, "--pack", &pack, "--data", &held]),
        (1, "has no stages.jsonl", &["--table", &pack]),
        (2, "usage: ", &[&new, "--earlier", &held]),
        (1, "there are no images", &[&new, "--pack", &pack, "--paper"]),
        (1, "has no stages.jsonl", &[&new, "--pack", &pack, "--paper", "--earlier", &pack]),
    ];
    for (code, says, arguments) in cases {
        let ran = script(&root().join("scripts/measure-gpu"), arguments, dir.path()).output()?;
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        check(ran.status.code() == Some(code) && stderr.contains(says), || {
            format!("{arguments:?}: {}", shown(&ran))
        })?;
        check(!Path::new(&new).exists() && ran.stdout.is_empty(), || {
            format!("{arguments:?}: {}", shown(&ran))
        })?;
    }
    check(text(&dir.path().join("held/stages.jsonl")) == "{}\n", || {
        "the old measurement is gone".into()
    })
}

/// Killed at random moments, a measurement has lost at most the stage that ran.
pub(super) fn cut_loses_nothing() -> Result<(), Failed> {
    let slow = |dir: &Path| {
        let mut command = measure_stand_in(dir, &[]);
        command.env("SLEEP", "0.02");
        command
    };
    let dir = stand_in();
    let began = Instant::now();
    let ran = slow(dir.path()).output()?;
    check(ran.status.success(), || shown(&ran))?;
    let whole = began.elapsed();
    let mut counts = Vec::new();
    for _ in 0..8 {
        let dir = stand_in();
        let after = whole.mul_f64(random());
        let stages = cut(slow(dir.path()), &dir.path().join("out"), after)?;
        let names = names(&stages);
        check(names == STAGES[..names.len()], || format!("after {after:?}: {names:?}"))?;
        counts.push(names.len());
    }
    // Moments that all miss would prove nothing: all 8 after the last stage has probability 1e-6.
    check(counts.iter().any(|n| *n < STAGES.len()), || {
        format!("{counts:?} stages within {whole:?}")
    })
}

//! `aavae reproduce`: grids that are whole, interrupted, failing, or another's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::support::{Ran, folder, sh, spawn, was_killed};

/// A grid of runs that take a second each; the likelihood of 1,000 held-out images would be more
/// than half of it.
const TINY: &str = "--device cpu --scale smoke --limit-train 256 --max-steps 4 --probe-epochs 1 \
    --importance-samples 0";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .expect("JSON")
}

/// `scripts/check-report`: an account of its own of what a report must be.
#[track_caller]
fn report_is_whole(out: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check-report");
    match Command::new("python3").arg(script).arg(out).arg("--allow-unfinished").output() {
        Ok(ran) => assert!(
            ran.status.success(),
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        ),
        Err(e) => assert!(
            std::env::var_os("REQUIRE_PYTHON").is_none(),
            "REQUIRE_PYTHON is set, but python3 does not start: {e}"
        ),
    }
}

/// What the runs of a grid measured, without the clock's part.
fn measured(out: &Path) -> BTreeMap<String, String> {
    let grid = read(&out.join("grid.json"));
    let runs =
        grid["runs"].as_array().expect("runs").iter().map(|run| run.as_str().expect("a name"));
    let one = |run: &str| {
        let path = out.join(run).join("summary.json");
        let s = path.exists().then(|| read(&path))?;
        Some((
            run.to_owned(),
            format!(
                "{} {} {} {} {}",
                s["sha256"], s["probe"], s["knn"], s["train"]["loss"], s["steps"]
            ),
        ))
    };
    runs.filter_map(one).collect()
}

#[test]
fn a_grid_is_run_reported_and_not_run_again() {
    let dir = folder();
    let out = dir.path().join("grid");
    let line =
        format!("reproduce table1 {TINY} --seeds 2 --only aavae random --out {}", out.display());
    let ran = sh(&line).ok();
    let summary = ran.json();
    assert_eq!((&summary["runs"], &summary["done"]), (&16.into(), &4.into()), "{summary}");
    let cell = |name: &str| {
        summary["cells"]
            .as_array()
            .expect("cells")
            .iter()
            .find(|c| c["cell"] == name)
            .expect("a cell")
            .clone()
    };
    assert_eq!(
        (&cell("aavae")["n"], &cell("random")["n"], &cell("vae")["n"]),
        (&2.into(), &2.into(), &0.into())
    );
    let of = |seed: u32| {
        read(&out.join(format!("aavae-s{seed}/summary.json")))["probe"]["accuracy"]
            .as_f64()
            .expect("an accuracy")
    };
    let mean = cell("aavae")["probe"]["mean"].as_f64().expect("a mean");
    assert!((mean - (of(0) + of(1)) / 2.0).abs() < 1e-12, "{summary}");
    let sd = cell("aavae")["probe"]["sd"].as_f64().expect("a deviation");
    assert!((sd - (of(0) - of(1)).abs() / 2f64.sqrt()).abs() < 1e-12, "{summary}");
    assert!(ran.stderr.contains("run 3 of 4: aavae-s1, about "), "{ran:?}");
    report_is_whole(&out);
    let page = fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(
        page.contains(&line.replace("reproduce", "aavae reproduce"))
            && page.contains("4 of 16 runs are done"),
        "the page"
    );

    // A run of the grid is the run that `pretrain` makes of its configuration.
    let alone = dir.path().join("alone");
    let config = out.join("aavae-s1/config.toml");
    let single = sh(&format!(
        "pretrain --device cpu --config {} --out {}",
        config.display(),
        alone.display()
    ))
    .ok()
    .json();
    let in_grid = read(&out.join("aavae-s1/summary.json"));
    assert_eq!((&single["sha256"], &single["probe"]), (&in_grid["sha256"], &in_grid["probe"]));

    let before = (
        measured(&out),
        fs::metadata(out.join("aavae-s0/summary.json"))
            .expect("a file")
            .modified()
            .expect("a time"),
    );
    let again = sh(&line).ok();
    assert!(
        again.stderr.contains("aavae-s0 is done") && !again.stderr.contains("evaluating"),
        "{again:?}"
    );
    let after = (
        measured(&out),
        fs::metadata(out.join("aavae-s0/summary.json"))
            .expect("a file")
            .modified()
            .expect("a time"),
    );
    assert_eq!(before, after);
    what_is_lost_is_measured_again(&line, &out);
}

/// An evaluation that is missing is made, and so is a summary that is damaged, which is said; the
/// training is not repeated.
fn what_is_lost_is_measured_again(line: &str, out: &Path) {
    let before = measured(out);
    let path = out.join("aavae-s0/summary.json");
    let mut damaged = read(&path);
    damaged["probe"] = Value::Null;
    fs::write(&path, damaged.to_string()).expect("a file");
    let again = sh(line).ok();
    assert!(again.stderr.contains("evaluating") && !again.stderr.contains("step 4/4"), "{again:?}");
    assert_eq!(measured(out), before);
    fs::write(&path, "{\"run\": \"x\", \"pro").expect("a file");
    let says = "aavae-s0/summary.json is damaged: EOF";
    let planned = sh(&format!("{line} --dry-run")).ok();
    assert!(planned.stderr.contains(says), "{planned:?}");
    let again = sh(line).ok();
    assert!(
        again.stderr.contains(says) && again.stderr.contains("it is written anew"),
        "{again:?}"
    );
    assert!(again.stderr.contains("evaluating") && !again.stderr.contains("step 4/4"), "{again:?}");
    assert_eq!(measured(out), before);
}

#[test]
fn a_run_that_fails_stops_nothing_and_is_tried_again() {
    let dir = folder();
    let out = dir.path().join("grid");
    let line =
        |cells: &str| format!("reproduce fig4 {TINY} --only {cells} --out {}", out.display());
    sh(&line("latent-256")).ok();
    // Something is where the checkpoints should be.
    fs::create_dir(out.join("base-s0")).expect("a folder");
    fs::write(out.join("base-s0/checkpoints"), "in the way").expect("a file");
    fs::write(out.join("latent-512-s0"), "a file where a folder should be").expect("a file");
    let ran = sh(&line("base latent-64 latent-512"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    let summary = ran.json();
    assert_eq!(summary["done"], 2, "{summary}");
    let failed = summary["failed"].as_array().expect("failures");
    let error = failed[0]["error"].as_str().expect("an error");
    assert!(
        failed.len() == 2 && failed[0]["run"] == "base-s0" && error.contains("checkpoints"),
        "{summary}"
    );
    assert_eq!(failed[1]["run"], "latent-512-s0", "{summary}");
    assert!(ran.stderr.contains(&format!("failed: base-s0: {error}")), "{ran:?}");
    report_is_whole(&out);
    for file in ["report.html", "report.md"] {
        let text = fs::read_to_string(out.join(file)).expect("a report");
        assert!(
            text.contains("failed: ") && text.contains("2 of 13 runs are done, 2 failed"),
            "{file}"
        );
    }
    let csv = fs::read_to_string(out.join("results.csv")).expect("a table");
    assert!(csv.lines().any(|l| l == "fig4,smoke,shapes,base,0,failed,,,"), "{csv}");

    fs::remove_file(out.join("base-s0/checkpoints")).expect("the obstacle goes");
    fs::remove_file(out.join("latent-512-s0")).expect("the other too");
    let summary = sh(&line("base latent-64")).ok().json();
    assert_eq!((&summary["done"], &summary["failed"]), (&3.into(), &json!([])), "{summary}");
}

#[test]
fn milestones_are_kept_and_probed() {
    let dir = folder();
    let out = dir.path().join("grid");
    // Eight steps an epoch: the milestones of 8 epochs at 1, 2, 4 and 8.
    let line = format!(
        "reproduce duration --only aavae --device cpu --limit-train 256 --probe-epochs 1 \
         --importance-samples 0 --out {}",
        out.display()
    );
    sh(&line).ok();
    report_is_whole(&out);
    let summary = read(&out.join("aavae-s0/summary.json"));
    let rows = summary["milestones"].as_array().expect("milestones");
    assert_eq!(
        rows.iter().map(|r| format!("{} {}", r["epoch"], r["step"])).collect::<Vec<_>>(),
        ["1 8", "2 16", "4 32", "8 64"]
    );
    assert_eq!(
        (&rows[3]["probe"], &rows[3]["knn"]),
        (&summary["probe"], &summary["knn"]),
        "the last milestone is the end"
    );
    assert_ne!(rows[0]["knn"], rows[3]["knn"]);
    for epoch in [1, 2, 4, 8] {
        let path = out.join(format!("aavae-s0/checkpoints/epoch-{epoch}.safetensors"));
        let checkpoint = aavae::run::checkpoint::Checkpoint::load(&path).expect("a checkpoint");
        assert_eq!(checkpoint.meta["step"], (8 * epoch).to_string());
        assert!(checkpoint.tensors.keys().all(|name| !name.starts_with("optim.")));
    }
    // They are checkpoints like any other.
    let first = out.join("aavae-s0/checkpoints/epoch-1.safetensors");
    let probe =
        sh(&format!("probe {} --device cpu --epochs 1 --json", first.display())).ok().json();
    assert_eq!(probe["accuracy"], rows[0]["probe"]["accuracy"]);
}

#[test]
fn views_and_likelihoods_are_measured() {
    let dir = folder();
    let views = dir.path().join("fig5");
    sh(&format!("reproduce fig5 {TINY} --out {}", views.display())).ok();
    report_is_whole(&views);
    let found = read(&views.join("aavae-s0/views.json"));
    let names: Vec<_> = found
        .as_array()
        .expect("similarities")
        .iter()
        .map(|s| s["of"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["h", "mu", "z"]);
    let matrix: Vec<f64> = found[0]["matrix"]
        .as_array()
        .expect("a matrix")
        .iter()
        .map(|x| x.as_f64().expect("a number"))
        .collect();
    assert!(
        (0..64).all(|i| (matrix[i * 65] - 1.0).abs() < 1e-6)
            && matrix.iter().all(|x| x.abs() < 1.0 + 1e-6)
    );
    // Features that follow a ReLU have no negative cosine.
    assert!(matrix.iter().all(|x| *x >= 0.0));

    let bits = dir.path().join("fig2");
    sh(&format!(
        "reproduce fig2 {} --only learned --out {}",
        TINY.replace("--max-steps 4", "--max-steps 16").replace("--importance-samples 0", ""),
        bits.display()
    ))
    .ok();
    report_is_whole(&bits);
    let csv = fs::read_to_string(bits.join("results.csv")).expect("a table");
    let rows = |metric: &str| {
        csv.lines().filter(|l| l.contains(&format!(",{metric},")) && l.contains(",done,")).count()
    };
    let counts =
        ["train_bits_per_dim_elbo", "val_bits_per_dim_elbo", "val_bits_per_dim", "probe"].map(rows);
    assert_eq!(counts, [2, 2, 2, 3], "{csv}");
}

/// Somewhere in `[0.1, 0.7)`, another each time: a kill must be harmless wherever it strikes.
fn somewhere(salt: u32) -> f64 {
    let nanos =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").subsec_nanos();
    0.1 + 0.6
        * f64::from(
            nanos.wrapping_mul(2_654_435_769).wrapping_add(salt.wrapping_mul(0x9E37_79B9)) >> 8,
        )
        / f64::from(1 << 24)
}

#[test]
fn a_grid_that_is_killed_twice_ends_as_if_it_were_not() {
    let dir = folder();
    let flags = TINY.replace("--max-steps 4", "--max-steps 12");
    let line = |out: &Path| {
        format!("reproduce fig4 {flags} --only base latent-64 --out {}", out.display())
    };
    let straight = dir.path().join("straight");
    let began = Instant::now();
    sh(&line(&straight)).ok();
    let mut whole = began.elapsed();
    let out = dir.path().join("killed");
    let mut moments = Vec::new();
    for salt in [1, 2] {
        let moment = loop {
            let moment = whole.mul_f64(somewhere(salt));
            let mut child = spawn(&line(&out));
            std::thread::sleep(moment);
            child.kill().ok();
            if was_killed(child.wait().expect("it ends")) {
                break moment;
            }
            // The machine is less busy than before: the grid was done by then. Once more, sooner.
            fs::remove_dir_all(&out).expect("a folder");
            whole = moment;
        };
        moments.push(moment);
    }
    let ran = sh(&line(&out)).ok();
    assert_eq!(ran.json()["done"], 2, "killed after {moments:?}: {ran:?}");
    assert_eq!(measured(&out), measured(&straight), "killed after {moments:?}");
    report_is_whole(&out);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_grid() {
    let dir = folder();
    let out = dir.path().join("grid");
    // When the signal is heard the first run may have ended, on a busy machine; the grid has not.
    let line = format!("reproduce fig3 {TINY} --only beta-0 beta-10 --out {}", out.display());
    let child = spawn(&line);
    let start = Instant::now();
    while fs::read(out.join("beta-0-s0/metrics.jsonl")).unwrap_or_default().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(120), "no record appears");
        std::thread::sleep(Duration::from_millis(5));
    }
    crate::support::signal(&child, "INT");
    let ran = Ran::new(line.clone(), child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert_eq!(sh(&line).ok().json()["done"], 2);
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let dir = folder();
    let out = dir.path().join("grid");
    fs::create_dir_all(out.join("beta-0-s0")).expect("a folder");
    let grid = |experiment: &str, version: &str, seeds: u32| {
        let value = json!({ "experiment": experiment, "scale": "smoke", "dataset": "shapes",
            "version": version, "seeds": seeds,
            "runs": [], "command": "" });
        let text = value.to_string();
        fs::write(out.join("grid.json"), &text).expect("a file");
        text
    };
    let line = format!("reproduce fig3 --device cpu --out {}", out.display());
    let ours = env!("CARGO_PKG_VERSION");
    let cases: [(&str, &str, u32, &[&str], &str); 3] = [
        (
            "fig4",
            ours,
            1,
            &["holds `fig4` at scale `smoke`", "this is `fig3` at scale `smoke`"],
            "--out",
        ),
        ("fig3", "0.0.9", 1, &["by version 0.0.9", &format!("by version {ours}")], "that version"),
        ("fig3", ours, 4, &["holds 4 seeds", "the 1 asked for"], "--seeds 4"),
    ];
    for (experiment, version, seeds, says, hint) in cases {
        let text = grid(experiment, version, seeds);
        sh(&line).fails(1, says).hints(hint);
        assert_eq!(
            fs::read_to_string(out.join("grid.json")).expect("a file"),
            text,
            "a refusal changes nothing"
        );
    }
    grid("fig3", ours, 1);
    sh(&format!("{line} --scale ci"))
        .fails(1, &["at scale `smoke`", "at scale `ci`"])
        .hints("--out");
    sh(&format!("{line} --max-steps 3"))
        .fails(1, &["at scale `smoke` on", "at scale `smoke` (with changes) on"])
        .hints("--out");
    let text = grid("fig3", ours, 1);
    fs::write(out.join("grid.json"), text.replace("\"seeds\"", "\"images\": \"00\", \"seeds\""))
        .expect("a file");
    for dry in ["", " --dry-run"] {
        sh(&format!("{line}{dry}"))
            .fails(1, &["was begun on other images of `shapes`"])
            .hints("--data-dir");
    }
    fs::write(out.join("grid.json"), "{ half").expect("a file");
    sh(&line).fails(1, &["grid.json cannot be read"]).hints("--out");

    // A run of another budget under one of our names.
    grid("fig3", ours, 1);
    let config = "width = 16\nkl_coeff = 0.0\n";
    fs::write(out.join("beta-0-s0/config.toml"), config).expect("a file");
    sh(&line)
        .fails(1, &["error: --batch-size is 32 here, but 256 in ", "beta-0-s0/config.toml"])
        .hints("another grid");
    assert_eq!(fs::read_to_string(out.join("beta-0-s0/config.toml")).expect("a file"), config);
    assert!(!out.join("report.html").exists());

    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).expect("a folder");
    fs::write(foreign.join("thesis.txt"), "mine").expect("a file");
    let file = foreign.join("thesis.txt").display().to_string();
    sh(&format!("reproduce fig3 --device cpu --out {file}"))
        .fails(1, &["thesis.txt is no folder"])
        .hints("--out");
    sh(&format!("reproduce fig3 --device cpu --out {}", foreign.display()))
        .fails(1, &["is not empty and holds no grid"])
        .hints("--out");
    assert_eq!(fs::read_dir(&foreign).expect("a folder").count(), 1);
}

#[test]
fn a_grid_that_cannot_be_asked_for() {
    let dir = folder();
    let out = dir.path().join("grid");
    let line = |more: &str| format!("reproduce table1 --device cpu --out {} {more}", out.display());
    sh(&line("--only aavae nonsense"))
        .fails(1, &["no cell is called `nonsense`"])
        .hints("aaae-view");
    sh(&line("--seeds 0")).fails(2, &["--seeds is 0"]);
    sh(&line("--data-dir x")).fails(2, &["--data-dir means nothing"]);
    sh(&line("--dataset cifar10")).fails(2, &["--dataset cifar10 needs --data-dir"]);
    sh(&line("--dataset cifar10 --data-dir nowhere")).fails(1, &["nowhere"]);
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn a_dry_run_tells_the_cost_and_trains_nothing() {
    let dir = folder();
    let out = dir.path().join("grid");
    let line = format!(
        "reproduce fig4 --device cpu --scale smoke --seeds 2 --dry-run --out {}",
        out.display()
    );
    let value = sh(&format!("{line} --json")).ok().json();
    let cells = value["cells"].as_array().expect("cells");
    let number = |v: &Value| v.as_f64().expect("a number");
    let hours: f64 = cells.iter().map(|c| number(&c["hours"]) * 2.0).sum();
    assert!((number(&value["hours"]) / hours - 1.0).abs() < 1e-9 && hours > 0.0, "{value}");
    let of = |name: &str| {
        cells.iter().find(|c| c["cell"] == name).unwrap_or_else(|| panic!("no {name}: {value}"))
    };
    assert!(
        number(&of("decoder-50")["train_gflop"]) > 1.1 * number(&of("base")["train_gflop"]),
        "a deeper decoder costs more"
    );
    // Four times the batch in a quarter of the steps: the same images.
    assert_eq!(number(&of("batch-128")["steps"]), (2000 / 128 * 4) as f64);
    assert!(
        number(&of("batch-128")["peak_bytes"]) > 2.0 * number(&of("base")["peak_bytes"]),
        "{value}"
    );
    let text = sh(&line).ok().stdout;
    assert!(
        text.contains("hours in all")
            && cells.iter().all(|c| text.contains(c["cell"].as_str().expect("a name"))),
        "{text}"
    );
    assert!(!out.exists());
}

//! `compare` and `watch`: runs that are whole, interrupted, running, damaged, or no runs.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::support::{Ran, copy, folder, png, pretrain, sh, trained};

/// Three runs, made once: [`trained`], a VAE, and one that may still be training, since it has no
/// summary.
fn three_runs() -> &'static [PathBuf; 3] {
    static RUNS: OnceLock<(tempfile::TempDir, [PathBuf; 3])> = OnceLock::new();
    let (_, runs) = RUNS.get_or_init(|| {
        let dir = folder();
        let [vae, stopped] = ["vae", "stopped"].map(|name| dir.path().join(name));
        pretrain(&vae, "--method vae --max-steps 2 --learning-rate 0.002");
        copy(trained(), &stopped);
        fs::remove_file(stopped.join("summary.json")).expect("removed");
        (dir, [trained().to_owned(), vae, stopped])
    });
    runs
}

/// `compare` of all three, with more flags.
fn compare_three(flags: &str) -> Ran {
    let [run, vae, stopped] = three_runs().each_ref().map(|path| path.display());
    sh(&format!("compare {run} {vae} {stopped} {flags}")).ok()
}

#[test]
fn runs_are_compared() {
    let [_, vae, _] = three_runs();
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(vae.join("summary.json")).expect("a summary"))
            .expect("JSON");
    let json = compare_three("--json").json();
    let column = |key: &str| {
        json["runs"]
            .as_array()
            .expect("runs")
            .iter()
            .map(|row| row[key].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(column("state"), ["trained", "trained", "training"]);
    assert_eq!(column("method"), ["aavae", "vae", "aavae"]);
    assert_eq!(column("steps"), [5, 2, 5]);
    assert_eq!(column("loss")[1], summary["train"]["loss"]);
    assert_eq!(column("validation_loss")[1], summary["validation"]["loss"]);
    assert_eq!(column("images_per_second")[1], summary["images_per_second"]);
    assert!(
        column("probe").iter().all(serde_json::Value::is_null),
        "nothing was evaluated: {json}"
    );
    let differ: Vec<_> = json["differ"]
        .as_array()
        .expect("settings")
        .iter()
        .map(|d| (d["key"].as_str(), &d["values"]))
        .collect();
    let want = [
        ("learning_rate", serde_json::json!([0.00025, 0.002, 0.00025])),
        ("log_every", serde_json::json!([2, 50, 2])),
        ("max_steps", serde_json::json!([5, 2, 5])),
        ("method", serde_json::json!(["aavae", "vae", "aavae"])),
    ];
    assert_eq!(differ, want.iter().map(|(key, values)| (Some(*key), values)).collect::<Vec<_>>());
}

#[test]
fn curves_are_drawn_as_text() {
    let text = compare_three("").stdout;
    for part in ["differ in", "learning_rate", "aavae: loss", "aavae: held-out loss", "vae: loss"] {
        assert!(text.contains(part), "no `{part}`:\n{text}");
    }
    // The two AAVAE runs lie on each other, and the later is on top; the VAE has charts of its own.
    let chart = |title: &str| {
        text.split("\n\n")
            .find(|part| part.contains(&format!(" {title} ")))
            .unwrap_or_else(|| panic!("no {title}:\n{text}"))
    };
    assert!(chart("aavae: loss").contains("ccc") && !chart("aavae: loss").contains('b'), "{text}");
    assert!(chart("vae: loss").contains('b'), "{text}");
    let one = sh(&format!("compare {}", trained().display())).ok().stdout;
    assert!(!one.contains("differ in") && one.contains("aaa"), "{one}");
}

#[test]
fn curves_are_drawn_as_files() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let drawn = |file: &str| {
        compare_three(&format!("--out {}", at(file)));
        fs::read_to_string(at(file)).unwrap_or_default()
    };
    let svg = drawn("curves.svg");
    let drawn_as = ["<polyline", "<circle"].map(|mark| svg.matches(mark).count());
    assert_eq!(
        drawn_as,
        [4, 2],
        "training and held-out loss of two runs, and of one that has a single point of each: {svg}"
    );
    for part in
        ["aavae: loss", "vae: held-out loss (b vae)", ">a run<", ">c stopped<", "class=\"line s2\""]
    {
        assert!(svg.contains(part), "no `{part}`: {svg}");
    }
    drawn("curves.png");
    let (width, height) = png(dir.path().join("curves.png").as_path());
    assert!(width > 1000 && height > 1000, "four panels: {width} x {height}");
    let page = drawn("page.html");
    for part in ["<table>", "learning_rate", "0.002", "<polyline", "</html>"] {
        assert!(page.contains(part), "no `{part}`: {page}");
    }
}

#[test]
fn what_is_no_run_is_not_compared() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let run = trained().display();
    for file in ["curves.gif", "curves"] {
        sh(&format!("compare {run} --out {}", at(file))).fails(2, &[file, ".svg, .png or .html"]);
    }
    sh(&format!("compare {}", dir.path().display()))
        .fails(1, &["is no run folder: it has no config.toml"])
        .hints("--out");
    sh(&format!("compare {run} {}", at("none"))).fails(1, &["none does not exist"]);
    fs::write(at("config.toml"), "width = \"wide\"").expect("a file");
    sh(&format!("compare {}", dir.path().display())).fails(1, &["config.toml", "width"]);
    sh("compare").fails(2, &["required"]);
}

#[test]
fn a_run_is_watched() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let run = trained().display();
    // Off a terminal one snapshot is printed, asked for or not.
    for line in
        [format!("watch {run} --once"), format!("watch {run}"), format!("watch {run} --every 0.5")]
    {
        let text = sh(&line).ok().stdout;
        for part in [
            "aavae on shapes, resnet18 of width 8, batch 16, seed 0",
            "trained: step 5/5, epoch 1",
            "held out  loss ",
            " loss ",
            "reconstruction-000005.png",
        ] {
            assert!(text.contains(part), "no `{part}`:\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    // Killed while it wrote a line, after another was damaged.
    copy(trained(), &dir.path().join("run"));
    fs::remove_file(at("run/summary.json")).expect("removed");
    let whole = fs::read_to_string(at("run/metrics.jsonl")).expect("metrics");
    let first = whole.find('\n').expect("a line") + 1;
    fs::write(
        at("run/metrics.jsonl"),
        format!("{}nonsense\n{}", &whole[..first], &whole[first..whole.len() - 20]),
    )
    .expect("a file");
    let text = sh(&format!("watch {} --once", at("run"))).ok().stdout;
    assert!(
        text.contains("training: step 5/5")
            && text.contains("last record 0:0")
            && text.contains("1 lines of metrics.jsonl are no records"),
        "{text}"
    );
    assert!(sh(&format!("compare {}", at("run"))).ok().stdout.contains("training"));
    // A summary that is damaged is neither none nor half of one.
    let whole = fs::read_to_string(trained().join("summary.json")).expect("a summary");
    for (text, why) in [
        (whole[..whole.len() / 2].to_owned(), "EOF"),
        (whole.replace("\"method\"", "\"mehtod\""), "it has no `method`"),
        (whole.replace("\"steps\": 5", "\"steps\": \"5\""), "`steps` is not of its type"),
    ] {
        fs::write(at("run/summary.json"), text).expect("a file");
        let damage = format!("run/summary.json is damaged: {why}");
        let seen = sh(&format!("watch {} --once", at("run"))).ok();
        assert!(seen.stdout.contains("unclear: step 5/5"), "{seen:?}");
        assert!(seen.stdout.contains(&damage), "{seen:?}");
        let compared = sh(&format!("compare {} --json", at("run"))).ok();
        assert!(compared.stderr.contains(&damage), "{compared:?}");
        assert_eq!(compared.json()["runs"][0]["state"], "unclear");
        sh(&format!("export {} --format folder --out {}", at("run"), at("out")))
            .fails(1, &[&damage])
            .hints("pretrain --resume");
    }
    fs::remove_file(at("run/summary.json")).expect("removed");
    // Nothing is written yet.
    fs::remove_file(at("run/metrics.jsonl")).expect("removed");
    fs::remove_file(at("run/train.log")).expect("removed");
    assert!(sh(&format!("watch {} --once", at("run"))).ok().stdout.contains("starting: step 0"));

    sh(&format!("watch {}", dir.path().display())).fails(1, &["is no run folder"]);
    sh(&format!("watch {}", at("none"))).fails(1, &["none does not exist"]);
    for every in ["0", "-1", "nan", "1e9"] {
        sh(&format!("watch {run} --every {every}")).fails(2, &["--every"]);
    }
}

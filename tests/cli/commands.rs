//! What every command does when nothing is wrong.

use std::fs;

use aavae::run::checkpoint::Checkpoint;

use crate::support::{
    TINY, digest, folder, image_folder, measured, metrics, png, run, sh, trained,
};

#[test]
fn help_and_version_are_data() {
    assert_eq!(run(&["--version"]).ok().stdout, format!("aavae {}\n", env!("CARGO_PKG_VERSION")));
    let commands = [
        "pretrain",
        "probe",
        "knn",
        "embed",
        "reconstruct",
        "export",
        "import",
        "compare",
        "watch",
        "reproduce",
        "devices",
        "plan",
        "check",
        "bench",
    ];
    let help = run(&["--help"]).ok().stdout;
    for name in commands {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(name)),
            "--help does not name {name}"
        );
        let help = run(&[name, "--help"]).ok();
        assert!(
            help.stdout.contains(&format!("Usage: aavae {name}")) && help.stderr.is_empty(),
            "{help:?}"
        );
    }
    let usage = run(&[]);
    assert_eq!(
        (usage.code, usage.stdout.as_str()),
        (Some(2), ""),
        "no command is a mistake: {usage:?}"
    );
}

#[test]
fn a_run_folder_has_everything() {
    let dir = folder();
    let out = dir.path().join("run");
    let flags =
        TINY.replace("--importance-samples 0", "--max-steps 6 --log-every 2 --probe-epochs 1");
    let ran = sh(&format!("pretrain {flags} --out {}", out.display())).ok();
    let summary = ran.json();
    let from_file: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("summary.json")).expect("a summary"))
            .expect("JSON");
    assert_eq!(summary, from_file);
    assert_eq!((&summary["steps"], &summary["interrupted"]), (&6.into(), &false.into()));
    let accuracy = summary["probe"]["accuracy"].as_f64().expect("an accuracy");
    assert!((0.0..=1.0).contains(&accuracy), "{summary}");
    // Of k = 20 and 200 only the first fits 64 images; the temperatures are those of the paper, not
    // their f32 neighbours.
    let knn = summary["knn"].as_array().expect("kNN");
    assert_eq!(
        knn.iter().map(|row| format!("{} {}", row["k"], row["temperature"])).collect::<Vec<_>>(),
        ["20 0.07", "20 0.1"]
    );

    let steps: Vec<_> = metrics(&out)
        .iter()
        .map(|r| format!("{} {}", r["step"], r["split"].as_str().expect("a split")))
        .collect();
    assert_eq!(steps, ["2 train", "4 train", "4 val", "6 train", "6 val", "6 eval"]);
    let mut records = metrics(&out);
    let last = records.pop().expect("records");
    let keys: Vec<_> = last.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["step", "epoch", "split", "log_px", "bits_per_dim", "elbo", "bits_per_dim_elbo"]
    );
    assert_eq!(summary["evaluation"], last);
    // The same images as validation's, with sixteen samples instead of one and the divergence
    // sampled: the same bound, and a better one.
    let number = |record: &serde_json::Value, key: &str| {
        record[key].as_f64().unwrap_or_else(|| panic!("no {key}: {record}"))
    };
    assert!(
        (number(&last, "elbo") - number(&summary["validation"], "elbo")).abs() < 0.5,
        "{summary}"
    );
    assert!(number(&last, "log_px") > number(&last, "elbo") + 0.5, "{summary}");
    // Standard normals around standardised bytes: log2(63 sqrt(2 pi e)) = 8.02 bits.
    let (sampled, bound) = (number(&last, "bits_per_dim"), number(&last, "bits_per_dim_elbo"));
    assert!(7.8 < sampled && sampled < bound && bound < 8.2, "{summary}");
    for record in records {
        for key in ["epoch", "loss", "log_pxz", "kl", "elbo", "bits_per_dim_elbo"] {
            assert!(record[key].is_number(), "{record}");
        }
        assert_eq!(record["lr"].is_number(), record["split"] == "train", "{record}");
    }
    let checkpoint =
        Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint");
    assert_eq!(checkpoint.digest(), digest(&summary));
    assert_eq!(
        checkpoint,
        Checkpoint::load(out.join("checkpoints/step-6.safetensors")).expect("a checkpoint")
    );
    // Three rows (original, view, reconstruction) of 16 images of 32 pixels, doubled, with gaps of
    // 2.
    assert_eq!(
        png(&out.join("images/reconstruction-000006.png")),
        (16 * 64 + 15 * 2, 3 * 64 + 2 * 2)
    );
    let names: Vec<_> = fs::read_dir(&out)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    assert_eq!(
        names.iter().filter(|n| n.starts_with("events.out.tfevents.")).count(),
        1,
        "{names:?}"
    );
    assert_eq!(names.len(), 7, "nothing else: {names:?}");

    // Off a terminal: plain lines, the same in the log.
    assert!(ran.stderr.lines().any(|l| l.starts_with("step 6/6 epoch 1 loss ")), "{ran:?}");
    assert!(!ran.stderr.contains(['\r', '\u{1b}']), "{ran:?}");
    let log = fs::read_to_string(out.join("train.log")).expect("a log");
    assert!(log.lines().all(|l| l.contains("Z ")) && log.contains("step 6/6"), "{log}");
}

/// Measuring moves no weight, and a classifier that is trained along none but its own.
#[test]
fn measurements_only_look() {
    let dir = folder();
    let data = dir.path().join("data");
    image_folder(&data, 2, 40, 4);
    let run = |name: &str, flags: &str| {
        let out = dir.path().join(name);
        let summary = measured(&data, &out, &format!("{flags} --max-steps 5"));
        (
            Checkpoint::load(out.join("checkpoints/last.safetensors")).expect("a checkpoint"),
            metrics(&out),
            summary,
        )
    };
    let (plain, ..) = run("plain", "--importance-samples 0");
    for (name, flags) in [("measured", ""), ("probed", "--online-probe")] {
        let all = format!("--eval-every 1 --view-metrics-every 2 {flags}");
        let (mut checkpoint, records, summary) = run(name, &all);
        let count = checkpoint.tensors.len();
        checkpoint.tensors.retain(|tensor, _| !tensor.contains("online_probe."));
        // Weight and bias, each with two moments.
        assert_eq!(
            (checkpoint.digest(), count - plain.tensors.len()),
            (plain.digest(), if flags.is_empty() { 0 } else { 6 }),
            "{name}"
        );
        let number = |r: &serde_json::Value, key: &str| {
            r[key].as_f64().unwrap_or_else(|| panic!("no {key}: {r}"))
        };
        for r in records.iter().filter(|r| r["split"] == "train" || r["split"] == "val") {
            assert!(
                (number(r, "log_pxz") - number(r, "kl") - number(r, "elbo")).abs() < 1e-2,
                "{r}"
            );
            assert_eq!(
                r["online_accuracy"].as_f64().is_some_and(|x| (0.0..=1.0).contains(&x)),
                !flags.is_empty(),
                "{r}"
            );
            assert_eq!(
                r["online_loss"].as_f64().is_some_and(|x| x > 0.0),
                !flags.is_empty(),
                "{r}"
            );
        }
        let views: Vec<_> = records.iter().filter(|r| r["split"] == "view").collect();
        assert_eq!(views.iter().map(|r| number(r, "step")).collect::<Vec<_>>(), [2.0, 4.0]);
        assert!(
            views.iter().all(|r| number(r, "cosine").abs() <= 1.0 && number(r, "kl") > 0.0),
            "{views:?}"
        );
        let evals: Vec<_> = records.iter().filter(|r| r["split"] == "eval").collect();
        assert_eq!(evals.iter().map(|r| number(r, "step")).collect::<Vec<_>>(), [4.0, 5.0]);
        assert_eq!(summary["evaluation"], *evals[1]);
        // Of k = 20 and 200 only the first fits 32 images.
        let knn =
            sh(&format!("knn {} --device cpu --split val --json", dir.path().join(name).display()))
                .ok()
                .json();
        assert_eq!(
            (&evals[1]["knn20"], &evals[1]["knn200"]),
            (&knn["knn"][0]["accuracy"], &serde_json::Value::Null),
            "{knn}"
        );
    }
    // It starts anew on given weights, which have none.
    let weights = format!(
        "--online-probe --init-from {}/plain/checkpoints/last.safetensors",
        dir.path().display()
    );
    assert!(run("given", &weights).0.tensors.contains_key("online_probe.weight"));
    let (_, records, summary) =
        run("deterministic", "--method aaae --eval-every 1 --view-metrics-every 2");
    assert!(
        summary["evaluation"]["log_px"].is_null() && summary["evaluation"]["knn20"].is_number(),
        "{summary}"
    );
    assert!(records[0]["cosine"].is_number() && records[0]["kl"].is_null(), "{records:?}");
}

#[test]
fn evaluation_speaks_json() {
    let run_folder = trained().display();
    let probe = sh(&format!("probe {run_folder} --device cpu --epochs 2 --json")).ok().json();
    assert!((0.0..=1.0).contains(&probe["accuracy"].as_f64().expect("an accuracy")), "{probe}");
    assert_eq!((&probe["epochs"], &probe["train_images"]), (&2.into(), &64.into()));
    let dir = folder();
    let file = dir.path().join("knn.json");
    // A checkpoint alone is enough: its metadata says how it was trained.
    let knn = sh(&format!(
        "knn {run_folder}/checkpoints/step-5.safetensors --device cpu --limit-train 300 --json \
         --out {}",
        file.display()
    ));
    let knn = knn.ok().json();
    assert_eq!(knn["knn"].as_array().map(Vec::len), Some(4), "{knn}");
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&fs::read(file).expect("a file"))
            .expect("JSON"),
        knn
    );
    let random = sh(&format!("knn {run_folder} --device cpu --random-init")).ok();
    assert!(
        random.stdout.starts_with("k  20  temperature 0.07  accuracy 0.")
            && random.stdout.lines().count() == 2,
        "{random:?}"
    );
}

#[test]
fn reconstructions_are_pictures() {
    let dir = folder();
    let file = dir.path().join("grid.png");
    for (flags, size) in [
        ("--count 5", (5 * 64 + 4 * 2, 3 * 64 + 2 * 2)),
        ("--count 1 --split val", (64, 3 * 64 + 2 * 2)),
    ] {
        let line = format!(
            "reconstruct {} --device cpu {flags} --json --out {}",
            trained().display(),
            file.display()
        );
        let value = sh(&line).ok().json();
        assert_eq!(png(&file), size);
        assert_eq!((&value["width"], &value["height"]), (&size.0.into(), &size.1.into()));
    }
}

#[test]
fn devices_are_described() {
    let devices = sh("devices --json").ok().json();
    assert!(
        devices["auto"].is_string() && devices["why"].is_string() && devices["adapters"].is_array(),
        "{devices}"
    );
    let text = sh("devices").ok();
    assert!(text.stdout.contains("cpu: ") && text.stdout.contains("auto takes "), "{text:?}");
}

#[test]
fn a_plan_is_described() {
    let plan = sh("plan --device cpu --width 8 --batch-size 4 --json").ok().json();
    let steps = plan["steps"].as_array().expect("steps");
    assert!(
        steps.len() > 100
            && steps.iter().all(|s| s["kernels"].as_array().is_some_and(|k| !k.is_empty())),
        "{}",
        plan["summary"]
    );
    assert!(
        plan["summary"]["peak_bytes"].as_u64() < plan["summary"]["peak_bytes_unaliased"].as_u64(),
        "{}",
        plan["summary"]
    );
    let text = sh("plan --device cpu --width 8 --batch-size 4").ok();
    assert!(text.stdout.contains("peak memory"), "{text:?}");
    let kernel = steps[0]["kernels"][0]["file"].as_str().expect("a file").to_owned();
    let wgsl = sh(&format!("plan --device cpu --width 8 --batch-size 4 --kernel {kernel}")).ok();
    assert!(wgsl.stdout.contains("@compute"), "{wgsl:?}");
    sh("plan --device cpu --kernel nonsense").fails(1, &["`nonsense`"]).hints("aavae plan");
}

/// A step of several batches has a plan for each and one for the update.
#[test]
fn the_plans_of_a_run_are_described() {
    let plan = sh("plan --device cpu --width 8 --batch-size 4 --json").ok().json();
    let two =
        sh("plan --device cpu --width 8 --batch-size 4 --accumulate 3 --optimizer lamb --json")
            .ok()
            .json();
    let names = |steps: &serde_json::Value| {
        steps.as_array().expect("steps").iter().map(|s| s["op"].clone()).collect::<Vec<_>>()
    };
    let update = names(&two["update"]["steps"]);
    assert!(
        update.contains(&"lamb".into()) && update.last() == Some(&"record".into()),
        "{update:?}"
    );
    let steps = names(&two["steps"]);
    assert_eq!(steps.iter().filter(|op| **op == "accumulate").count(), 2, "{steps:?}");
    assert!(!steps.contains(&"adam".into()) && steps.last() == Some(&"record".into()), "{steps:?}");
    // The whole run: more than both, since it validates and draws, and its parts are its sum.
    let run = &two["pretrain"];
    let parts: u64 = run["plans"]
        .as_object()
        .expect("plans")
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    let whole = run["bytes"].as_u64().expect("bytes");
    assert_eq!(
        whole,
        parts + run["state"].as_u64().expect("bytes") + run["device"].as_u64().expect("bytes")
    );
    let kinds: Vec<_> = run["plans"].as_object().expect("plans").keys().cloned().collect();
    assert_eq!(kinds, ["figures", "importance", "train", "update", "validation"]);
    assert!(whole > two["peak_bytes"].as_u64().expect("bytes"), "{run}");
    // The gradient's sum counts, and what both plans use only once.
    let bytes = |value: &serde_json::Value| value["summary"]["peak_bytes"].as_u64().expect("bytes");
    let peak = two["peak_bytes"].as_u64().expect("bytes");
    assert!(
        bytes(&plan) < peak && bytes(&two) < peak && peak < bytes(&two) + bytes(&two["update"]),
        "{peak}"
    );
    let text = sh("plan --device cpu --width 8 --batch-size 4 --accumulate 3").ok();
    assert!(text.stdout.contains("plan train") && text.stdout.contains("plan update"), "{text:?}");
    let lines: Vec<_> = text.stdout.trim_end().lines().rev().take(2).collect();
    assert!(lines[1].starts_with("3 x train, then update: peak memory "), "{text:?}");
    assert!(
        lines[0].starts_with("pretrain holds at most ") && lines[0].contains("validation "),
        "{text:?}"
    );
}

#[test]
fn kernels_are_checked() {
    let check = sh("check --device cpu --only relu --json").ok().json();
    assert!(check["passed"].as_u64() > Some(0) && check["failed"] == 0, "{check}");
    assert!(sh("check --device cpu --only relu/").ok().stdout.contains(" passed, 0 failed on cpu"));
    let half = sh("check --device cpu --only relu/ --only f16 --json").ok().json();
    assert!(half["passed"].as_u64() < check["passed"].as_u64() && half["passed"] != 0, "{half}");
    sh("check --device cpu --only nonsense").fails(2, &["`nonsense`"]);
}

#[test]
fn a_step_and_its_ops_are_timed() {
    let bench =
        sh("bench --device cpu --width 8 --batch-size 4 --steps 2 --step --op --check --json")
            .ok()
            .json();
    assert!(bench["step"]["images_per_second"].as_f64() > Some(0.0), "{bench}");
    assert_eq!(bench["step"]["allocated_bytes"], bench["step"]["planned_bytes"]);
    assert!(
        bench["ops"]
            .as_array()
            .is_some_and(|rows| rows.len() > 20 && rows.iter().all(|r| r["gflops"].is_number())),
        "{bench}"
    );
    let text = sh("bench --device cpu --width 8 --batch-size 4 --steps 2").ok();
    assert!(text.stdout.contains("images/s"), "{text:?}");
}

/// A likelihood of K samples has K samples, also where a batch has fewer images.
#[test]
fn samples_are_as_many_as_asked_for() {
    let dir = folder();
    let data = dir.path().join("data");
    image_folder(&data, 2, 40, 4);
    let log_px = |name: &str, more: &str| {
        let summary = measured(&data, &dir.path().join(name), &format!("--max-steps 2 {more}"));
        summary["evaluation"]["log_px"]
            .as_f64()
            .unwrap_or_else(|| panic!("no likelihood: {summary}"))
    };
    // The batch is 8.
    let default = log_px("default", "");
    assert_eq!(default, log_px("sixteen", "--importance-samples 16"));
    let [few, many] = [("few", 8), ("many", 40)]
        .map(|(name, k)| log_px(name, &format!("--importance-samples {k}")));
    // More samples bound it from below more tightly, and the noise of the first ones is the same.
    assert!(few < default && default < many, "{few} {default} {many}");
}

/// Adapters are looked at in every environment without a word from the driver.
#[test]
fn drivers_keep_quiet() {
    for runtime_dir in [None, Some("relative"), Some("/nowhere")] {
        let mut command = crate::support::command(&["devices"]);
        command.env_remove("NODEVICE_SELECT").env_remove("XDG_RUNTIME_DIR");
        if let Some(dir) = runtime_dir {
            command.env("XDG_RUNTIME_DIR", dir);
        }
        let out = command.output().expect("the binary starts");
        assert!(
            out.status.success() && out.stderr.is_empty(),
            "{runtime_dir:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

//! Whose a run folder is, what counts as a run, and what is never overwritten.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::support::{
    TINY, command, copy, digest, folder, image_folder, leftovers, metrics, pretrain, run, sh,
    spawn, trained, was_killed,
};

fn wait_for(path: &Path) {
    let start = Instant::now();
    while fs::read(path).unwrap_or_default().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(300), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill(mut child: Child) {
    child.kill().expect("it runs");
    assert!(was_killed(child.wait().expect("it ends")), "killed in time");
}

/// Every file below a folder with its contents.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            if path.is_dir() {
                found.insert(format!("{name}/"), Vec::new());
                folders.push(path);
            } else {
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

#[test]
fn a_run_folder_belongs_to_one_process() {
    let dir = folder();
    let out = dir.path().join("run");
    let long = format!("pretrain {TINY} --no-eval --epochs 10000 --out {}", out.display());
    let child = spawn(&long);
    wait_for(&out.join("metrics.jsonl"));
    let holder = format!("process {} (aavae pretrain)", child.id());
    for more in ["", "--resume", "--overwrite", "--resume --seed 16"] {
        let says = ["another process works in", out.to_str().expect("text"), &holder];
        sh(&format!("{long} {more}")).fails(1, &says).hints("wait until it has ended");
    }
    // To look at it is no work.
    sh(&format!("watch --once {}", out.display())).ok();
    kill(child);
    assert_eq!(
        fs::read_to_string(out.join(".lock")).expect("a file"),
        format!("{}\n", holder[8..].replace(['(', ')'], ""))
    );
    // A killed process holds nothing.
    let steps = metrics(&out).last().expect("records")["step"].as_u64().expect("a step") + 2;
    sh(&format!(
        "pretrain {TINY} --no-eval --resume --max-steps {steps} --out {} --epochs 10000",
        out.display()
    ))
    .ok();
    assert_eq!(leftovers(&out), Vec::<String>::new());
}

#[test]
fn a_grid_belongs_to_one_process() {
    let dir = folder();
    let out = dir.path().join("grid");
    let line = format!(
        "reproduce fig3 --device cpu --limit-train 256 --max-steps 5000 --only beta-0 --out {}",
        out.display()
    );
    let child = spawn(&line);
    wait_for(&out.join("beta-0-s0/metrics.jsonl"));
    let holder = format!("process {} (aavae reproduce)", child.id());
    sh(&line)
        .fails(1, &["another process works in", "grid", &holder])
        .hints("wait until it has ended");
    // Its runs are its own too.
    let inner = format!(
        "pretrain --device cpu --no-eval --resume --out {}",
        out.join("beta-0-s0").display()
    );
    sh(&inner).fails(1, &["another process works in", "beta-0-s0", &holder]);
    // To look at it is no work.
    sh(&format!("{line} --dry-run")).ok();
    kill(child);
    assert!(out.join(".lock").exists());
}

/// Any file of a run makes a folder one; nothing in it is touched unasked.
#[test]
fn what_is_there_stays() {
    let dir = folder();
    let event = "events.out.tfevents.1700000000.aavae";
    for name in [
        "config.toml",
        "metrics.jsonl",
        "train.log",
        "summary.json",
        event,
        "checkpoints/",
        "images/",
    ] {
        let out = dir.path().join("run");
        let path = out.join(name);
        match name.strip_suffix('/') {
            Some(folder) => fs::create_dir_all(out.join(folder)).expect("a folder"),
            None => {
                fs::create_dir_all(&out).expect("a folder");
                fs::write(&path, "somebody's\n").expect("a file");
            }
        }
        let before = contents(&out);
        let line = |more: &str| {
            sh(&format!("pretrain {TINY} --no-eval --max-steps 1 --out {} {more}", out.display()))
        };
        line("")
            .fails(1, &["already holds a run: ", name.trim_end_matches('/')])
            .hints("--overwrite");
        if name == "config.toml" {
            line("--resume").fails(1, &["config.toml, line 1"]);
        } else {
            line("--resume")
                .fails(1, &["holds a run without checkpoints", name.trim_end_matches('/')])
                .hints("--overwrite");
        }
        // What has the name of a run's file and is none is not removed either.
        if name.contains('.') && name != event {
            line("--overwrite")
                .fails(1, &[name, "is no file of a run; nothing was removed"])
                .hints("move it away");
        }
        assert_eq!(contents(&out), before, "{name}");
        fs::remove_dir_all(&out).expect("gone");
    }
}

#[test]
fn overwriting_removes_a_run_and_nothing_else() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    let theirs = [
        "thesis.txt",
        "checkpoints/best.safetensors",
        "images/holiday.png",
        "events.out.tfevents.1.other",
    ];
    for name in theirs {
        fs::write(out.join(name), "mine").expect("a file");
    }
    let before = contents(&out);
    let line = format!("pretrain {TINY} --no-eval --out {} --overwrite", out.display());
    // A mistake that is found before the first step removes nothing.
    for more in
        ["--dataset folder --data-dir nowhere", "--init-from nothing", "--max-steps 1 --resume"]
    {
        assert_ne!(sh(&format!("{line} {more}")).code, Some(0), "{more}");
        assert_eq!(contents(&out), before, "{more}");
    }
    let summary = sh(&format!("{line} --max-steps 2 --seed 3")).ok().json();
    assert_eq!(
        digest(&summary),
        digest(&pretrain(&dir.path().join("new"), "--max-steps 2 --seed 3"))
    );
    assert_eq!(metrics(&out), metrics(&dir.path().join("new")));
    let (after, new) = (contents(&out), contents(&dir.path().join("new")));
    let names = |files: &BTreeMap<String, Vec<u8>>| {
        let named = files
            .keys()
            .filter(|name| !theirs.contains(&name.as_str()) && !name.starts_with("events."));
        named.cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&after), names(&new), "the folder of a new run");
    assert!(theirs.iter().all(|name| after[*name] == b"mine"), "{:?}", after.keys());
    // The curves of the old run are gone; an empty file is left for a TensorBoard that reads on
    // from it.
    let events: Vec<usize> = after
        .iter()
        .filter(|(name, _)| name.starts_with("events.") && name.ends_with(".aavae"))
        .map(|(_, bytes)| bytes.len())
        .collect();
    assert!(events.len() == 2 && events[0] == 0 && events[1] > 0, "{events:?}");
    let log = String::from_utf8_lossy(&after["train.log"]).into_owned();
    assert!(!log.contains("step 5/5"), "{log}");
}

#[test]
fn a_run_without_its_checkpoints_is_not_begun_again() {
    let dir = folder();
    let out = dir.path().join("run");
    copy(trained(), &out);
    fs::remove_dir_all(out.join("checkpoints")).expect("gone");
    let before = contents(&out);
    let line = |more: &str| {
        sh(&format!("pretrain {TINY} --no-eval --max-steps 9 --out {} {more}", out.display()))
    };
    line("--resume")
        .fails(1, &["holds a run without checkpoints", "metrics.jsonl"])
        .hints("bring `checkpoints/` back");
    line("").fails(1, &["already holds a run", "config.toml"]);
    assert_eq!(contents(&out), before);
    // An empty folder of checkpoints is as good as none.
    fs::create_dir(out.join("checkpoints")).expect("a folder");
    line("--resume").fails(1, &["holds a run without checkpoints"]);
    assert_eq!(metrics(&out).len(), metrics(trained()).len());
    line("--overwrite").ok();
    assert_eq!(leftovers(&out), Vec::<String>::new());
}

#[test]
fn outputs_stay_out_of_the_data() {
    let dir = folder();
    let data = dir.path().join("data");
    image_folder(&data, 2, 20, 4);
    let before = contents(&data);
    let flags = format!("--device cpu --dataset folder --data-dir {}", data.display());
    for inside in ["train", "train/class0", "test/run", "train/../test/x/y"] {
        let out = data.join(inside);
        let line = format!(
            "pretrain {flags} --width 8 --batch-size 8 --max-steps 1 --no-eval --out {}",
            out.display()
        );
        sh(&line).fails(1, &["lies in", "classes of the data set"]).hints("outside the data");
        sh(&format!("reproduce fig3 {flags} --out {}", out.display()))
            .fails(1, &["lies in", "classes of the data set"]);
        assert_eq!(contents(&data), before, "{inside}");
    }
    // By way of a link as well, where everybody may make one.
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(data.join("train"), &link).expect("a link");
        let line = format!(
            "pretrain {flags} --width 8 --batch-size 8 --max-steps 1 --no-eval --out {}/run",
            link.display()
        );
        sh(&line).fails(1, &["lies in", "classes of the data set"]);
        assert_eq!(contents(&data), before);
    }
    let beside = data.join("runs/a");
    sh(&format!(
        "pretrain {flags} --width 8 --batch-size 8 --max-steps 1 --no-eval --out {}",
        beside.display()
    ))
    .ok();
}

/// Nor do the files that evaluations write take the place of what they read, or of a run's own.
#[test]
fn evaluations_overwrite_neither_a_run_nor_images() {
    let dir = folder();
    let (run, data) = (dir.path().join("run"), dir.path().join("data"));
    copy(trained(), &run);
    image_folder(&data, 2, 4, 2);
    let before = contents(dir.path());
    let (run, data) = (run.display(), data.display());
    let images = format!("--dataset folder --data-dir {data} --out {data}/test");
    let bare = format!("{run}/checkpoints/last.safetensors");
    for (line, says) in [
        (format!("probe {run} --epochs 1 --out {run}/config.toml"), "is a file of the run in"),
        (format!("knn {run} --out {run}/summary.json"), "is a file of the run in"),
        (format!("embed {run} --out {run}/checkpoints/last.safetensors"), "is a file of the run"),
        (format!("embed {bare} --out {bare}"), "is what is read"),
        (format!("embed {run} {images}/new.safetensors"), "lies in"),
        (format!("reconstruct {run} {images}/0.png"), "lies in"),
        (format!("reconstruct {run} --out {run}/none/new.png"), "none is no folder"),
    ] {
        sh(&format!("{line} --device cpu")).fails(1, &[says]).hints("--out");
    }
    let other = trained().display();
    sh(&format!("compare {run} {other} --out {run}/images/augmentation.png"))
        .fails(1, &["is a file of the run in"]);
    assert!(contents(dir.path()) == before, "something was written");
}

#[test]
fn a_tilde_that_the_shell_left() {
    let dir = folder();
    let model = trained().to_str().expect("text").to_owned();
    let lines: [&[&str]; 18] = [
        &["pretrain", "--device", "cpu", "--config", "~/other.toml"],
        &["pretrain", "--device", "cpu", "--init-from", "~/weights.safetensors"],
        &["pretrain", "--device", "cpu", "--resume", "--out", "~/run"],
        &["knn", "~/weights.safetensors", "--device", "cpu"],
        &["embed", "~/run", "--device", "cpu", "--out", "x.safetensors"],
        &["reconstruct", "~/run", "--device", "cpu"],
        &["export", "~/run", "--format", "folder", "--out", "published"],
        &["import", "~/weights.safetensors", "--out", "run"],
        &["compare", &model, "~/run"],
        &["watch", "~/run"],
        &["pretrain", "--device", "cpu", "--out", "~/run"],
        &["reproduce", "fig3", "--device", "cpu", "--out=~/grid"],
        &["reconstruct", &model, "--device", "cpu", "--out", "~/x.png"],
        &["compare", &model, "--out", "~/x.html"],
        &["export", &model, "--format", "folder", "--out", "~/published"],
        &["probe", "~/run", "--device", "cpu"],
        &["knn", &model, "--dataset", "folder", "--data-dir", "~/images", "--device", "cpu"],
        &[
            "pretrain",
            "--dataset",
            "cifar10",
            "--data-dir",
            "~/data",
            "--download",
            "--device",
            "cpu",
            "--out",
            "run",
        ],
    ];
    for line in lines {
        let mut command = command(line);
        let output = command.current_dir(dir.path()).output().expect("the binary starts");
        crate::support::Ran::new(line.join(" "), output)
            .fails(1, &["cannot use `~/", "the shell did not expand `~`"])
            .hints("$HOME/");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "{line:?}");
    }
    // Nor is one that stands in a file.
    fs::write(dir.path().join("own.toml"), "init_from = \"~/weights.safetensors\"\n")
        .expect("a file");
    let config = ["pretrain", "--device", "cpu", "--config", "own.toml", "--out", "run"];
    let output = command(&config).current_dir(dir.path()).output().expect("the binary starts");
    crate::support::Ran::new(config.join(" "), output)
        .fails(1, &["cannot use `~/weights.safetensors`"])
        .hints("$HOME/");
}

/// What was made for a run that does not begin goes; what the user had made stays.
#[test]
fn a_run_that_does_not_begin_leaves_no_folder() {
    let dir = folder();
    let (own, new) = (dir.path().join("own"), dir.path().join("a/b/c"));
    fs::create_dir(&own).expect("a folder");
    for out in [&own, &new] {
        let at = out.to_str().expect("text");
        let data = [
            "pretrain",
            "--device",
            "cpu",
            "--dataset",
            "folder",
            "--data-dir",
            "nowhere",
            "--out",
            at,
        ];
        run(&data).fails(1, &["nowhere"]);
        sh(&format!("pretrain {TINY} --init-from nothing --out {at}"))
            .fails(1, &["no checkpoint at `nothing`"]);
    }
    let resume = ["pretrain", "--device", "cpu", "--resume", "--out", new.to_str().expect("text")];
    run(&resume).fails(1, &["holds no run to resume"]);
    assert_eq!(contents(dir.path()).into_keys().collect::<Vec<_>>(), ["own/"]);
}

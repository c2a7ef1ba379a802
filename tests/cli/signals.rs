//! Signals: wherever the program waits, the first one ends it within seconds, or lets it save; a
//! second one ends it at once.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Ran, TINY, command, folder, sh, signal, spawn, trained};

/// How it ended, which must be within so many seconds.
#[track_caller]
fn ends_within(mut child: Child, seconds: u64) -> Ran {
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > Duration::from_secs(seconds) {
            child.kill().expect("a child");
            panic!("it still runs after {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ran::new("…".into(), child.wait_with_output().expect("it ended"))
}

#[track_caller]
fn wait_until(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a log holds a text.
fn says(log: &Path, text: &str) -> bool {
    fs::read_to_string(log).is_ok_and(|log| log.contains(text))
}

/// Sixteen large pictures, of which a batch takes many seconds to decode.
fn slow_images(dir: &Path) {
    for split in ["train", "test"] {
        for class in ["a", "b"] {
            fs::create_dir_all(dir.join(split).join(class)).expect("a folder");
        }
    }
    let first = dir.join("train/a/0.png");
    image::GrayImage::new(7000, 7000).save(&first).expect("a PNG");
    for i in 1..16 {
        fs::hard_link(&first, dir.join(format!("train/{}/{i}.png", ["a", "b"][i % 2])))
            .expect("a link");
    }
    for class in ["a", "b"] {
        fs::hard_link(&first, dir.join(format!("test/{class}/0.png"))).expect("a link");
    }
}

#[test]
fn waiting_for_images_ends() {
    let dir = folder();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    slow_images(&data);
    let flags =
        "--device cpu --width 8 --batch-size 14 --no-eval --importance-samples 0 --dataset folder";
    let line = format!("pretrain {flags} --data-dir {} --out {}", data.display(), out.display());
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let child = spawn(&line);
        // The images are identified before the first step, which takes seconds: nothing is to be
        // saved yet.
        wait_until("a folder", || out.exists());
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, name);
        let ran = ends_within(child, 6);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(
            ran.stdout.is_empty() && !ran.stderr.contains("panicked"),
            "nothing was trained: {ran:?}"
        );
        assert!(!out.join("checkpoints/last.safetensors").exists(), "{ran:?}");
        fs::remove_dir_all(&out).expect("removed");
    }
}

/// Measuring that would take minutes is left to the resumed run, whose records and pictures are
/// those of a run that nothing disturbed.
#[test]
fn measuring_ends() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let line = |out: &str, samples: u32, more: &str| {
        let flags = "--device cpu --width 8 --batch-size 8 --limit-train 64 --no-eval \
            --eval-every 1 --seed 3";
        let out = at(out);
        format!("pretrain {flags} --importance-samples {samples} --out {} {more}", out.display())
    };
    let child = spawn(&line("run", 2048, ""));
    let metrics = at("run/metrics.jsonl");
    // Likelihoods of so many samples are what follows validation.
    wait_until("validation", || says(&metrics, "\"val\""));
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, "TERM");
    let ran = ends_within(child, 10);
    let told = ran.json();
    assert_eq!((ran.code, &told["interrupted"]), (Some(143), &true.into()), "{ran:?}");
    assert_eq!((&told["steps"], &told["evaluation"]), (&8.into(), &().into()), "{ran:?}");
    let records = |metrics: &Path| -> Vec<String> {
        let text = fs::read_to_string(metrics).expect("metrics");
        let records = text.lines().map(|line| serde_json::from_str(line).expect("a record"));
        let timeless = |mut record: serde_json::Value| {
            record["images_per_second"] = 0.into();
            record.to_string()
        };
        records.map(timeless).collect()
    };
    let of_eval = |record: &String| record.contains("\"eval\"");
    assert!(!records(&metrics).iter().any(of_eval), "nothing was evaluated: {ran:?}");
    sh(&line("run", 2, "--resume --max-steps 20")).ok();
    sh(&line("straight", 2, "--max-steps 20")).ok();
    let (here, there) = (records(&metrics), records(&at("straight/metrics.jsonl")));
    assert_eq!(here.iter().filter(|record| of_eval(record)).count(), 3, "{here:?}");
    assert_eq!(here, there);
    let pictures = |run: &str| {
        let all = fs::read_dir(at(run).join("images")).expect("pictures");
        let mut all: Vec<_> = all
            .map(|one| one.expect("a picture").path())
            .map(|path| (path.file_name().map(ToOwned::to_owned), fs::read(path).expect("bytes")))
            .collect();
        all.sort();
        all
    };
    assert!(pictures("run") == pictures("straight"), "the pictures differ");
}

/// A server that takes connections and never answers.
#[test]
fn waiting_for_a_server_ends() {
    let dir = folder();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let proxy = format!("http://{}", listener.local_addr().expect("an address"));
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let line =
            ["pretrain", "--dataset", "cifar10", "--download", "--device", "cpu", "--data-dir"];
        let mut command = command(&line);
        for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
            command.env(variable, &proxy);
        }
        let child = command.arg(dir.path()).spawn().expect("the binary starts");
        let (mut stream, _) = listener.accept().expect("a client");
        assert!(stream.read(&mut [0; 16]).expect("a request") > 0);
        signal(&child, name);
        assert_eq!(ends_within(child, 3).code, Some(code));
    }
}

/// While kernels are compiled nothing is there to save.
#[test]
fn compiling_ends() {
    let adapters = crate::support::sh("devices --json").ok().json();
    let Some(adapter) = adapters["adapters"][0]["name"].as_str() else {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no adapter");
        return;
    };
    let device = format!("wgpu:{}", adapter.split(' ').next().expect("a word"));
    let dir = folder();
    let out = dir.path().join("run");
    let line = format!("pretrain {TINY} --no-eval --out {}", out.display())
        .replace("--device cpu", &format!("--device {device}"));
    let child = spawn(&line);
    std::thread::sleep(Duration::from_millis(1500));
    signal(&child, "TERM");
    assert_eq!(ends_within(child, 5).code, Some(143));
}

/// A step of many seconds: the first signal waits for it, the second one does not.
#[test]
fn a_second_signal_ends_a_step() {
    let dir = folder();
    let out = dir.path().join("run");
    let flags = "--device cpu --width 64 --batch-size 128 --limit-train 128 --no-eval \
        --importance-samples 0 --no-shuffle";
    let mut child = spawn(&format!("pretrain {flags} --out {}", out.display()));
    wait_until("a start", || says(&out.join("train.log"), "parameters"));
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().expect("a child").is_none(), "the first signal waits for the step");
    signal(&child, "TERM");
    let ran = ends_within(child, 2);
    assert_eq!(ran.code, Some(143), "{ran:?}");
    assert!(
        ran.stderr.contains("stopping after this step") && !out.join("summary.json").exists(),
        "{ran:?}"
    );
}

/// What whoever starts a program tells it to ignore stays ignored: `nohup`, a background job of a
/// script.
#[test]
fn ignored_signals_stay_ignored() {
    let dir = folder();
    for (name, other) in [("INT", 143), ("HUP", 143)] {
        let out = dir.path().join(name);
        let script = format!(
            "trap '' {name}; exec {} pretrain {TINY} --no-eval --out {}",
            env!("CARGO_BIN_EXE_aavae"),
            out.display()
        );
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("NODEVICE_SELECT", "1");
        let mut child = shell.spawn().expect("a shell");
        wait_until("a checkpoint", || out.join("checkpoints/last.safetensors").exists());
        let before = fs::metadata(out.join("metrics.jsonl")).expect("metrics").len();
        signal(&child, name);
        wait_until("another epoch", || {
            fs::metadata(out.join("metrics.jsonl")).expect("metrics").len() > before + 400
        });
        assert!(child.try_wait().expect("a child").is_none(), "{name} was to be ignored");
        signal(&child, "TERM");
        let ran = ends_within(child, 10);
        assert_eq!((ran.code, &ran.json()["interrupted"]), (Some(other), &true.into()), "{ran:?}");
    }
}

/// On Linux: elsewhere `script`, which makes the terminal, has other flags.
#[cfg(target_os = "linux")]
#[test]
fn a_dashboard_ends() {
    let run = folder();
    crate::support::copy(trained(), run.path());
    fs::remove_file(run.path().join("summary.json")).expect("removed"); // it may still be training
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let line = format!(
            "exec {} watch {} --every 3600",
            env!("CARGO_BIN_EXE_aavae"),
            run.path().display()
        );
        let pid = run.path().join(format!("pid-{name}"));
        let script = format!("script -qec 'echo $$ > {}; {line}' /dev/null", pid.display());
        let mut shell = Command::new("sh");
        // A terminal that nobody types at: the input stays open.
        shell
            .args(["-c", &script])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = shell.spawn().expect("a shell");
        wait_until("a start", || says(&pid, "\n"));
        std::thread::sleep(Duration::from_millis(700));
        let id = fs::read_to_string(&pid).expect("a number");
        assert!(
            Command::new("kill")
                .args([format!("-{name}"), id.trim().into()])
                .status()
                .expect("kill")
                .success()
        );
        let ran = ends_within(child, 5);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.stdout.contains("\u{1b}[?1049l"), "the screen is given back: {ran:?}");
    }
}

/// A limit on the length of files is an error of that file, and no advice is given that does not
/// fit.
#[test]
fn a_limit_on_files_is_an_error() {
    let dir = folder();
    let binary = env!("CARGO_BIN_EXE_aavae");
    let out = dir.path().join("f.safetensors");
    let script = format!(
        "ulimit -f 1; exec {binary} embed {} --device cpu --out {}",
        trained().display(),
        out.display()
    );
    let mut shell = Command::new("sh");
    let ran = shell.args(["-c", &script]).env("NODEVICE_SELECT", "1").output().expect("a shell");
    let ran = Ran::new(script, ran).fails(1, &["cannot write", "f.safetensors", "File too large"]);
    assert!(!ran.stderr.contains("--resume") && !out.exists(), "{ran:?}");
    ran.hints("`ulimit -f`");
}

/// A limit on threads is an error with a hint, where nobody is exempt from it. On Linux, which has
/// a program that sets it.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_threads_is_an_error() {
    let binary = env!("CARGO_BIN_EXE_aavae");
    // The superuser may start as many as it likes: it becomes someone else first.
    let limited = "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all \
        --inh-caps=-all prlimit --nproc=1";
    let own = "prlimit --nproc=1";
    let id = Command::new("id").arg("-u").output().expect("id");
    let prefix = if id.stdout == b"0\n" { limited } else { own };
    let copy = folder();
    let reachable = copy.path().join("aavae");
    fs::copy(binary, &reachable).expect("a copy");
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
    };
    open(copy.path());
    open(&reachable);
    let script = format!("exec {prefix} {} devices", reachable.display());
    let mut shell = Command::new("sh");
    let ran = shell.args(["-c", &script]).env("NODEVICE_SELECT", "1").output().expect("a shell");
    Ran::new(script, ran).fails(1, &["cannot start the worker threads"]).hints("ulimit -u");
}

//! The measurement of a GPU: `scripts/pack-gpu` and `scripts/measure-gpu`, from outside.
//!
//! Their rules (one whole line a stage, whatever the program does and whenever the machine goes)
//! are tried on `kit/stand-in`, a shell script that misbehaves in every way; then the real program
//! is packed and measured at `--size smoke` on `cpu` and on every adapter, and trains the paper's
//! two methods in several calls. The scripts are for
//! x86-64 Linux with bash, coreutils and binutils: elsewhere the trials show as *ignored*, which
//! `REQUIRE_KIT=1` turns into failures. Without an adapter that trial shows as *ignored*, unless
//! `REQUIRE_GPU` is set. The bench of the PyTorch twin shows as *ignored* where `python3` has no
//! PyTorch, unless `REQUIRE_TORCH` is set.

#[path = "kit/paper.rs"]
mod paper;
#[path = "kit/real.rs"]
mod real;
#[path = "kit/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// Every stage in its order, with a PyTorch that finds CUDA.
const STAGES: [&str; 40] = [
    "machine",
    "check_conv2d",
    "check_batch_norm",
    "step_cold",
    "step_warm",
    "step_check",
    "torch",
    "torch_f32",
    "torch_tf32",
    "torch_tf32_channels_last",
    "torch_bf16",
    "torch_f16",
    "torch_bf16_fused",
    "torch_bf16_fused_compiled",
    "step_again",
    "tune_sweep",
    "step_tuned",
    "tune_sweep_f16",
    "step_f16",
    "check_f16",
    "step_bf16",
    "check_bf16",
    "tune_library",
    "check_library",
    "step_library",
    "resnet50_batch256",
    "resnet50_batch48",
    "torch_resnet50_tf32",
    "bench_op",
    "train",
    "train_half",
    "train_resumed",
    "digests",
    "train_f16",
    "train_half_f16",
    "train_resumed_f16",
    "digests_f16",
    "train_long",
    "probe",
    "check_rest",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .into_owned()
}

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn shown(out: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\nstdout: {}\nstderr: {}", out.status, text(&out.stdout), text(&out.stderr))
}

/// A script of the repository or of a packed folder; its temporary folders are below `temporary`.
fn script(path: &Path, arguments: &[&str], temporary: &Path) -> Command {
    let mut command = Command::new("bash");
    command.arg(path).args(arguments).env("TMPDIR", temporary).env("NODEVICE_SELECT", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The lines of `stages.jsonl`, each of which must be whole.
fn stages(out: &Path) -> Result<Vec<Value>, Failed> {
    let text = text(&out.join("stages.jsonl"));
    check(text.is_empty() || text.ends_with('\n'), || format!("the last line is torn: {text}"))?;
    text.lines()
        .map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}").into()))
        .collect()
}

fn named<'a>(stages: &'a [Value], name: &str) -> Result<&'a Value, Failed> {
    stages.iter().find(|s| s["stage"] == name).ok_or_else(|| format!("no stage {name}").into())
}

fn names(stages: &[Value]) -> Vec<&str> {
    stages.iter().map(|s| s["stage"].as_str().unwrap_or("?")).collect()
}

/// What `--table` prints, with nothing but bash.
fn table(out: &Path) -> Result<String, Failed> {
    let bash = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"]
        .iter()
        .find(|p| Path::new(p).exists());
    let mut command = Command::new(bash.ok_or("bash is elsewhere")?);
    command
        .arg(root().join("scripts/measure-gpu"))
        .arg("--table")
        .arg(out)
        .env("PATH", "/nonexistent");
    let ran = command.output()?;
    check(ran.status.success() && ran.stderr.is_empty(), || shown(&ran))?;
    Ok(String::from_utf8(ran.stdout)?)
}

/// The limits on what a measurement leaves.
fn is_small(out: &Path) -> Result<(), Failed> {
    let files: Vec<_> = fs::read_dir(out)?.collect::<Result<_, _>>()?;
    check(files.len() <= 8, || format!("{} files", files.len()))?;
    for file in files {
        let size = file.metadata()?.len();
        check(size < 16 << 20, || format!("{}: {size} bytes", file.path().display()))?;
    }
    Ok(())
}

// ---------------------------------------------------------------- cuts

/// The stage that runs and its process.
fn running(out: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string(out.join("running")).ok()?;
    let (stage, process) = text.trim_end().split_once(' ')?;
    text.ends_with('\n').then(|| (stage.to_owned(), process.to_owned()))
}

fn signal(name: &str, process: &str) -> Result<(), Failed> {
    let line = format!("kill -{name} -- {process}");
    check(
        Command::new("bash").args(["-c", &line]).stderr(Stdio::null()).status()?.success(),
        || line,
    )
}

fn wait_for(ready: impl Fn() -> bool) -> Result<(), Failed> {
    let began = Instant::now();
    while !ready() {
        check(began.elapsed().as_secs() < 60, || "nothing happens".into())?;
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Starts a measurement and kills it with all it started a while after its beginning. What is left
/// must be whole, and its table must print.
fn cut(mut command: Command, out: &Path, after: Duration) -> Result<Vec<Value>, Failed> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn()?;
    wait_for(|| out.join("stages.jsonl").exists())?;
    sleep(after);
    signal("KILL", &format!("-{}", child.id()))?;
    child.wait()?;
    // A stage is a process group of its own. It may have ended by itself.
    let running = running(out);
    if let Some((_, process)) = &running {
        signal("KILL", &format!("-{process}")).ok();
    }
    let stages = stages(out)?;
    is_small(out)?;
    let table = table(out)?;
    let rows = table.lines().filter(|l| l.starts_with("| ")).count() - 1;
    check(rows == stages.len(), || format!("{rows} rows of {} stages: {table}", stages.len()))?;
    if let Some((stage, _)) =
        running.filter(|(stage, _)| Some(&stage.as_str()) != names(&stages).last())
    {
        check(table.contains(&format!("; cut during {stage}\n")), || table.clone())?;
    }
    Ok(stages)
}

/// A number in [0, 1) from the clock.
fn random() -> f64 {
    let nanos =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    f64::from(nanos % 1_000_003) / 1_000_003.0
}

// ---------------------------------------------------------------- the trials

/// Why the scripts cannot run here.
fn missing() -> Option<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some("not x86-64 Linux".into());
    }
    let has = |tool: &str| {
        Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    let lacks =
        ["bash", "timeout", "objdump", "strip", "ldconfig"].into_iter().find(|tool| !has(tool));
    lacks.map(|tool| format!("no {tool}"))
}

fn adapters() -> Vec<String> {
    let arguments = ["devices", "--json"];
    let ran = Command::new(env!("CARGO_BIN_EXE_aavae"))
        .args(arguments)
        .env("NODEVICE_SELECT", "1")
        .output()
        .expect("the binary starts");
    let found: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let list = found["adapters"].as_array().expect("a list of adapters");
    list.iter().map(|a| a["name"].as_str().expect("a name").to_owned()).collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let missing = missing();
    let skip = missing.is_some() && std::env::var_os("REQUIRE_KIT").is_none();
    let reason = missing.map_or(String::new(), |m| format!(" ({m})"));
    let trial = |name: &str, test: fn() -> Result<(), Failed>| {
        Trial::test(format!("{name}{reason}"), test).with_ignored_flag(skip)
    };
    let mut trials = vec![
        trial("every_end_is_recorded", stand_in::every_end_is_recorded),
        trial("hanging_stage_is_ended", stand_in::hanging_stage_is_ended),
        trial("told_to_stop", stand_in::told_to_stop),
        trial("driver_is_found", stand_in::driver_is_found),
        trial("wrong_use_is_refused", stand_in::wrong_use_is_refused),
        trial("cut_loses_nothing", stand_in::cut_loses_nothing),
        trial("paper/both_methods_are_reported", paper::both_methods_are_reported),
        trial("paper/told_to_stop", paper::told_to_stop),
        trial("paper/what_fits_is_packed", paper::what_fits_is_packed),
        trial("paper/a_later_call_goes_on", paper::a_later_call_goes_on),
        trial("pack_is_whole", real::pack_is_whole),
        trial("pack_refuses", real::pack_refuses),
        trial("measures/cpu", real::measures_cpu),
        trial("real_cut_loses_nothing", real::cut_loses_nothing),
    ];
    let adapters = adapters();
    for name in &adapters {
        let adapter = name.clone();
        let test = move || real::measures_adapter(&adapter);
        trials.push(Trial::test(format!("measures/{name}{reason}"), test).with_ignored_flag(skip));
    }
    if adapters.is_empty() {
        let none = || Err("no Vulkan, Metal or DX12 adapter".into());
        let require = std::env::var_os("REQUIRE_GPU").is_some();
        trials.push(Trial::test("measures/wgpu (no adapter)", none).with_ignored_flag(!require));
    }
    let torch = Command::new("python3")
        .args(["-c", "import torch"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    let name = if torch { "bench_of_twin" } else { "bench_of_twin (python3 has no PyTorch)" };
    let skip = !torch && std::env::var_os("REQUIRE_TORCH").is_none();
    trials.push(Trial::test(name, real::bench_of_twin).with_ignored_flag(skip));
    arguments.test_threads.get_or_insert(2); // on more, measurements disturb each other
    libtest_mimic::run(&arguments, trials).exit_code()
}

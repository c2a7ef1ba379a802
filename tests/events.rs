//! What TensorBoard shows of a run is what `metrics.jsonl` says, after any sequence of kills,
//! resumptions and restarts, and whatever the clock does meanwhile: `tests/events.py` reads the
//! event files with TensorBoard's own code.
//!
//! Where `python3` has no package `tensorboard` the trial shows as *ignored*;
//! `REQUIRE_TENSORBOARD=1` turns that into a failure.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

const FLAGS: &str = "pretrain --device cpu --width 8 --limit-train 64 --batch-size 16 \
                     --importance-samples 2 --log-every 3 --view-metrics-every 5 --no-eval";

fn script() -> String {
    format!("{}/tests/events.py", env!("CARGO_MANIFEST_DIR"))
}

fn aavae(out: &Path, more: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aavae"));
    command.args(FLAGS.split_whitespace()).args(more.split_whitespace()).arg("--out").arg(out);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("NODEVICE_SELECT", "1");
    command
}

/// A run, or a part of one, to its end.
fn train(out: &Path, more: &str) -> Result<(), Failed> {
    let output = aavae(out, more).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }
}

/// A run that is killed once it has logged a step from `step` on.
fn killed(out: &Path, more: &str, step: u64) -> Result<(), Failed> {
    let mut child = aavae(out, more).stderr(Stdio::null()).spawn()?;
    let start = Instant::now();
    let reached = || {
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let last = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        last.and_then(|record| record["step"].as_u64()) >= Some(step)
    };
    while !reached() {
        if start.elapsed() > Duration::from_secs(300) || child.try_wait()?.is_some() {
            child.kill().ok();
            return Err(format!("step {step} does not come").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    // Killed it has no code; on Windows, which has no signals, it has 1.
    match child.wait()?.code() {
        None => Ok(()),
        Some(1) if cfg!(windows) => Ok(()),
        Some(code) => Err(format!("it ended with {code} before it was killed").into()),
    }
}

/// A TensorBoard that is open all the while.
struct Live {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Live {
    fn open(run: &Path) -> Result<Self, Failed> {
        let mut command = Command::new("python3");
        command.arg(script()).arg(run).arg("--live").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (ask, answers) =
            (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, ask, answers: BufReader::new(answers) })
    }

    fn compare(&mut self, when: &str) -> Result<(), Failed> {
        writeln!(self.ask)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        if answer == "same\n" {
            Ok(())
        } else {
            Err(format!("{when}, open all the while: {answer}").into())
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A TensorBoard that is opened now.
fn compare(run: &Path, when: &str) -> Result<(), Failed> {
    let output = Command::new("python3").arg(script()).arg(run).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{when}: {said}").into()) }
}

/// The names of the event files that are not empty.
fn files(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.metadata().is_ok_and(|found| found.len() > 0));
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.contains("tfevents"));
    names.sort();
    names
}

fn curves_are_the_log() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let run = dir.path().join("run");
    fs::create_dir(&run)?;
    let mut live = Live::open(&run)?;
    killed(&run, "--save-minutes 0 --max-steps 100", 6)?;
    // It stops where no record is due but that of the view.
    train(&run, "--save-minutes 0 --resume --max-steps 10")?;
    compare(&run, "resumed after a kill")?;
    live.compare("resumed after a kill")?;

    // The clock is set back by a day: there is a file with a later name.
    let names = files(&run);
    let [name] = &names[..] else { return Err(format!("{names:?} instead of one file").into()) };
    let seconds: u64 = name.split('.').nth(3).and_then(|n| n.parse().ok()).ok_or("no number")?;
    let later = format!("events.out.tfevents.{}.aavae", seconds + 86_400);
    fs::copy(run.join(name), run.join(&later))?;
    live.compare("the same in a later file")?;
    // Killed far behind its last checkpoint.
    killed(&run, "--save-minutes 1000 --resume --max-steps 100", 17)?;
    train(&run, "--save-minutes 1000 --resume --max-steps 23")?;
    let names = files(&run);
    if names.len() != 1 || names[0] <= later {
        return Err(format!("{names:?} instead of one file after {later}").into());
    }
    compare(&run, "with a clock that was set back")?;
    live.compare("with a clock that was set back")?;
    // Prolonged, and resumed where there is nothing to do.
    train(&run, "--save-minutes 0 --resume --max-steps 30")?;
    train(&run, "--resume")?;
    compare(&run, "prolonged")?;
    live.compare("prolonged")?;

    train(&run, "--overwrite --seed 1 --max-steps 7")?;
    compare(&run, "restarted")?;
    live.compare("restarted")?;

    // What differs is seen.
    let log = run.join("metrics.jsonl");
    let text = fs::read_to_string(&log)?;
    let first: serde_json::Value = serde_json::from_str(text.lines().next().ok_or("no line")?)?;
    let loss = format!("\"loss\":{}", first["loss"]);
    for changed in [
        text.replacen(&loss, "\"loss\":0.5", 1),
        text.lines().skip(1).map(|l| format!("{l}\n")).collect(),
    ] {
        fs::write(&log, &changed)?;
        if changed == text || compare(&run, "").is_ok() {
            return Err(format!("a log that is another one passed: {changed}").into());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let found = Command::new("python3")
        .args(["-c", "import tensorboard"])
        .output()
        .is_ok_and(|o| o.status.success());
    let skip = !found && std::env::var_os("REQUIRE_TENSORBOARD").is_none();
    let trial = Trial::test("curves_are_the_log/tensorboard", move || {
        if !found {
            return Err(
                "REQUIRE_TENSORBOARD is set, but python3 has no package `tensorboard`: pip \
                install tensorboard"
                    .into(),
            );
        }
        curves_are_the_log()
    });
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(skip)]).exit_code()
}

//! Running the real binary and judging what it says.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// What a finished command left.
pub(crate) struct Ran {
    /// Exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    line: String,
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aavae"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("NODEVICE_SELECT", "1");
    command
}

pub(crate) fn run(args: &[&str]) -> Ran {
    Ran::new(args.join(" "), command(args).output().expect("the binary starts"))
}

/// A command line split at spaces.
pub(crate) fn sh(line: &str) -> Ran {
    run(&line.split_whitespace().collect::<Vec<_>>())
}

pub(crate) fn spawn(line: &str) -> Child {
    command(&line.split_whitespace().collect::<Vec<_>>()).spawn().expect("the binary starts")
}

/// Sends a signal to a process that still runs. What needs it is tested on Unix alone: Windows has
/// no signals, and its Ctrl-C goes to all that share a console, the tests among them.
#[cfg(unix)]
#[track_caller]
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status()
        .expect("kill");
    assert!(status.success(), "the process is gone already");
}

/// Whether a process was killed before its end: by a signal, and where there are none with code 1.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.code() == cfg!(not(unix)).then_some(1)
}

impl Ran {
    pub(crate) fn new(line: String, out: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program speaks UTF-8");
        Self { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr), line }
    }

    /// Succeeded, without a word of an error.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(
            !self.stderr.lines().any(|l| l.starts_with("error:"))
                && !self.stderr.contains("panicked"),
            "{self:?}"
        );
        self
    }

    /// Failed as promised: this exit code, nothing on stdout, one `error:` line that holds every
    /// text of `says`, at most one hint after it, no panic.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(
            !self.stderr.contains("panicked") && !self.stderr.contains("backtrace"),
            "{self:?}"
        );
        let errors: Vec<_> = self.stderr.lines().filter(|l| l.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{self:?}");
        for text in says {
            assert!(errors[0].contains(text), "the error does not say `{text}`: {self:?}");
        }
        assert!(self.stderr.lines().filter(|l| l.starts_with("hint:")).count() <= 1, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn hints(self, says: &str) -> Self {
        let hint = self
            .stderr
            .lines()
            .find(|l| l.starts_with("hint:"))
            .unwrap_or_else(|| panic!("no hint: {self:?}"));
        assert!(hint.contains(says), "the hint does not say `{says}`: {self:?}");
        self
    }

    /// Stdout as exactly one line of JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        assert!(
            self.stdout.ends_with('\n') && self.stdout.lines().count() == 1,
            "not one line: {self:?}"
        );
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl std::fmt::Debug for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "\n$ aavae {}\nexit code {:?}\nstdout: {}\nstderr: {}",
            self.line, self.code, self.stdout, self.stderr
        )
    }
}

/// Flags of a run that takes about a second: 4 steps an epoch, saved after every one.
pub(crate) const TINY: &str = "--device cpu --width 8 --limit-train 64 --batch-size 16 \
    --importance-samples 0 --save-minutes 0";
/// A new run on the [`image_folder`] `data` of 80 images, of which 8 are held out: 4 steps an
/// epoch, cheap evaluations. Returns the summary.
#[track_caller]
pub(crate) fn measured(data: &Path, out: &Path, more: &str) -> serde_json::Value {
    let flags = "--device cpu --width 8 --limit-train 32 --batch-size 8 --log-every 3 --no-eval \
        --dataset folder";
    sh(&format!("pretrain {flags} --data-dir {} --out {} {more}", data.display(), out.display()))
        .ok()
        .json()
}

/// A new run of `steps` steps in `out`, without evaluation; returns the summary.
#[track_caller]
pub(crate) fn pretrain(out: &Path, more: &str) -> serde_json::Value {
    sh(&format!("pretrain {TINY} --no-eval --out {} {more}", out.display())).ok().json()
}

/// The digest of a run's weights.
#[track_caller]
pub(crate) fn digest(summary: &serde_json::Value) -> String {
    let digest = summary["sha256"].as_str().expect("a digest").to_owned();
    assert_eq!(digest.len(), 64, "{digest}");
    digest
}

/// `metrics.jsonl` without what the clock decides.
#[track_caller]
pub(crate) fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let parse = |line: &str| {
        let mut record: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        record.as_object_mut().expect("an object").remove("images_per_second");
        record
    };
    text.lines().map(parse).collect()
}

/// A run of 5 steps, made once for all tests that only read one.
pub(crate) fn trained() -> &'static Path {
    static RUN: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
    let (_, path) = RUN.get_or_init(|| {
        let dir = folder();
        let path = dir.path().join("run");
        pretrain(&path, "--max-steps 5 --log-every 2");
        (dir, path)
    });
    path
}

/// What a run folder holds that a run leaves only when it is killed.
pub(crate) fn leftovers(out: &Path) -> Vec<String> {
    let folders = [out.to_owned(), out.join("checkpoints"), out.join("images")];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let names =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    names.filter(|name| name.ends_with(".tmp") || name == ".lock" || name == "unsaved").collect()
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Copies a run folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Width and height of a PNG that decodes.
#[track_caller]
pub(crate) fn png(path: &Path) -> (u32, u32) {
    let image = image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(path.extension().is_some_and(|e| e == "png"), "{}", path.display());
    (image.width(), image.height())
}

/// A tree of tiny PNGs: `classes` classes, `train` and `test` images each, of several sizes.
pub(crate) fn image_folder(dir: &Path, classes: u32, train: u32, test: u32) {
    for (split, n) in [("train", train), ("test", test)] {
        for class in 0..classes {
            let class_dir = dir.join(split).join(format!("class{class}"));
            std::fs::create_dir_all(&class_dir).expect("a folder");
            for i in 0..n {
                let (w, h) = (20 + i % 7 * 5, 17 + i % 5 * 11);
                let pixel = |x: u32, y: u32| {
                    image::Rgb([
                        (x * 9 + class * 80) as u8,
                        (y * 7 + i * 3) as u8,
                        (class * 60) as u8,
                    ])
                };
                image::RgbImage::from_fn(w, h, pixel)
                    .save(class_dir.join(format!("{i:03}.png")))
                    .expect("a PNG");
            }
        }
    }
}

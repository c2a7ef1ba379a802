//! Progress on stderr: a bar on a terminal, otherwise a line now and then; messages also go to
//! `train.log`.
//!
//! Rates count only what this process did: `start_step` is where a resumed run begins. They are
//! taken over the last few seconds, so that neither the start (shader compilation) nor a validation
//! pass spoils the time left for long.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};

use crate::device::OnCompile;
use crate::disk::DiskError;
use crate::text::{clean, understands_escapes};

/// Time between two lines where stderr is not a terminal.
const INTERVAL: Duration = Duration::from_secs(10);
/// Shortest stretch that a rate is taken over.
const WINDOW: Duration = Duration::from_secs(5);

/// Kernels that compile for less than this are not worth a line.
const COMPILING: Duration = Duration::from_secs(2);

/// Says how far compiling the kernels of a plan is, a line every two seconds.
pub fn on_compile() -> OnCompile {
    // The times at which the first kernel was done and at which the last line was written.
    let state: Mutex<Option<(Instant, Instant)>> = Mutex::new(None);
    Box::new(move |ready, of| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (began, said) = *state.get_or_insert((now, now));
        let last = ready == of;
        if now - said >= COMPILING || (last && now - began >= COMPILING) {
            let seconds = (now - began).as_secs();
            let line = format!("kernels: {ready} of {of} compiled after {seconds} s\n");
            // Nothing depends on whether anybody reads it.
            io::stderr().write_all(line.as_bytes()).ok();
            *state = Some((began, now));
        }
        if last {
            *state = None;
        }
    })
}

/// Shows how far training is.
pub struct TrainingProgress {
    meter: Meter,
    started: Instant,
    last_line: Option<Duration>,
    steps_per_epoch: Option<u64>,
    bar: Option<ProgressBar>,
    log: Option<File>,
}

impl TrainingProgress {
    /// Progress from `start_step` to `total_steps`; starts the clock.
    pub fn new(total_steps: u64, images_per_step: usize, start_step: u64) -> Self {
        let bar = understands_escapes(&io::stderr()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
                .expect("a valid template");
            ProgressBar::new(total_steps).with_style(style).with_position(start_step)
        });
        Self {
            meter: Meter::new(total_steps, images_per_step, start_step),
            started: Instant::now(),
            last_line: None,
            steps_per_epoch: None,
            bar,
            log: None,
        }
    }

    /// Shows the epoch too.
    pub fn with_epochs(mut self, steps_per_epoch: u64) -> Self {
        self.steps_per_epoch = Some(steps_per_epoch.max(1));
        self
    }

    /// Appends messages and the lines to a file, each with the time (UTC).
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn with_log(mut self, path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let open = OpenOptions::new().append(true).create(true).open(path);
        self.log = Some(open.map_err(DiskError::of("open", path))?);
        Ok(self)
    }

    /// Tells how many steps are done and the newest loss. Cheap enough for every step.
    pub fn update(&mut self, step: u64, loss: f32) {
        let now = self.started.elapsed();
        self.meter.update(now, step);
        // Both the bar and the lines show it now and then only, so do not format what nobody sees.
        let due = self.last_line.is_none_or(|last| now.saturating_sub(last) >= INTERVAL)
            || step >= self.meter.total;
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(self.meter.text(self.steps_per_epoch, step, loss));
        }
        if due {
            self.last_line = Some(now);
            let line = format!(
                "step {step}/{} {}",
                self.meter.total,
                self.meter.text(self.steps_per_epoch, step, loss)
            );
            if self.bar.is_none() {
                print(&line);
            }
            self.log_lines(&line);
        }
    }

    /// Shows a line of text above the bar and logs it.
    pub fn message(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print(text)),
            None => print(text),
        }
        self.log_lines(text);
    }

    /// Takes the bar away and says how long it took.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let now = self.started.elapsed();
        let steps = self.meter.step.saturating_sub(self.meter.start);
        self.message(&format!("{steps} steps in {}", clock(now.as_secs_f64())));
    }

    fn log_lines(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            let stamp = timestamp_now();
            let lines: String =
                clean(text).lines().map(|line| format!("{stamp} {line}\n")).collect();
            // A log that cannot be written (full disk) must not stop a run that still can save.
            drop(log.write_all(lines.as_bytes()));
        }
    }
}

/// A closed stderr must not stop a run, as `eprintln!` would.
fn print(text: &str) {
    drop(writeln!(io::stderr(), "{}", clean(text)));
}

/// Rates, from times since the start that the caller gives.
struct Meter {
    total: u64,
    images_per_step: usize,
    start: u64,
    step: u64,
    /// Where the rate is taken from, and where the next one will be.
    anchors: [(Duration, u64); 2],
    steps_per_second: Option<f64>,
}

impl Meter {
    fn new(total: u64, images_per_step: usize, start: u64) -> Self {
        let anchors = [(Duration::ZERO, start); 2];
        Self { total, images_per_step, start, step: start, anchors, steps_per_second: None }
    }

    fn update(&mut self, now: Duration, step: u64) {
        self.step = step;
        let (time, from) = self.anchors[0];
        let seconds = now.saturating_sub(time).as_secs_f64();
        if seconds > 0.0 && step > from {
            self.steps_per_second = Some((step - from) as f64 / seconds);
        }
        if now.saturating_sub(self.anchors[1].0) >= WINDOW {
            self.anchors = [self.anchors[1], (now, step)];
        }
    }

    fn text(&self, steps_per_epoch: Option<u64>, step: u64, loss: f32) -> String {
        // Steps count from 1, so the last one of an epoch still belongs to it.
        let epoch = steps_per_epoch
            .map_or(String::new(), |steps| format!("epoch {} ", step.saturating_sub(1) / steps));
        let rate = self.steps_per_second.map_or(String::new(), |rate| {
            let left = self.total.saturating_sub(step) as f64 / rate;
            format!(" {:.0} images/s {} left", rate * self.images_per_step as f64, clock(left))
        });
        format!("{epoch}loss {loss:.4}{rate}")
    }
}

/// What the end of a `train.log` says about the session that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// Steps that the run takes in all.
    pub total: Option<u64>,
    /// The session has taken its last step.
    pub ended: bool,
}

impl LogEnd {
    /// Reads the lines that [`TrainingProgress`] writes; `text` may begin within one.
    pub fn of(text: &str) -> Self {
        let lines = || text.lines().rev().filter_map(|line| Some(line.split_once("Z ")?.1));
        let total = |line: &str| {
            line.strip_prefix("step ")?.split_once('/')?.1.split(' ').next()?.parse().ok()
        };
        Self {
            total: lines().find_map(total),
            ended: lines().next().is_some_and(|line| line.contains(" steps in ")),
        }
    }
}

/// "1:02:03" or "2:03".
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64; // `as` saturates: no rate gives an infinite time.
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// The time as "2026-01-31T12:34:56Z".
pub fn timestamp_now() -> String {
    timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// "2026-01-31T12:34:56Z" from seconds since 1970 (Howard Hinnant's `civil_from_days`).
fn timestamp(unix: u64) -> String {
    let (days, seconds) = (unix / 86400 + 719_468, unix % 86400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_counts_only_its_own_steps() {
        let mut meter = Meter::new(1000, 64, 900);
        assert_eq!(meter.text(Some(100), 900, 1.0), "epoch 8 loss 1.0000");
        for second in 1..=20 {
            meter.update(Duration::from_secs(second), 900 + second);
        }
        assert_eq!(meter.text(Some(100), 920, 1.0), "epoch 9 loss 1.0000 64 images/s 1:20 left");
        // Four times as fast from here: the old rate is forgotten within two windows.
        for second in 1..=12 {
            meter.update(Duration::from_secs(20 + second), 920 + 4 * second);
        }
        assert_eq!(meter.text(None, 968, f32::NAN), "loss NaN 256 images/s 0:08 left");
    }

    #[test]
    fn lines_are_rare_and_logged() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("train.log");
        std::fs::write(&path, "from before\n").expect("a log");
        let mut progress =
            TrainingProgress::new(100, 8, 10).with_epochs(50).with_log(&path).expect("a log");
        for step in 11..=100 {
            progress.update(step, 2.0);
        }
        progress.message("two\nlines");
        let log = std::fs::read_to_string(&path).expect("the log");
        assert_eq!(LogEnd::of(&log), LogEnd { total: Some(100), ended: false });
        assert_eq!(LogEnd::of("from before"), LogEnd::default());
        progress.finish();
        let log = std::fs::read_to_string(&path).expect("the log");
        assert_eq!(LogEnd::of(&log[log.len() / 4..]), LogEnd { total: Some(100), ended: true });
        let texts: Vec<&str> = log
            .lines()
            .skip(1)
            .map(|line| line.split_once("Z ").expect("a time stamp").1)
            .collect();
        assert!(texts[0].starts_with("step 11/100 epoch 0 loss 2.0000"), "{log}");
        assert!(
            texts[1].starts_with("step 100/100 epoch 1 loss 2.0000")
                && texts[1].ends_with("0:00 left"),
            "{log}"
        );
        assert_eq!(texts[2..], ["two", "lines", "90 steps in 0:00"], "{log}");
        assert!(
            TrainingProgress::new(1, 1, 0)
                .with_log(dir.path())
                .is_err_and(|error| error.to_string().contains("cannot open"))
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(clock(3723.4), "1:02:03");
        assert_eq!(clock(f64::INFINITY).split(':').count(), 3);
    }
}

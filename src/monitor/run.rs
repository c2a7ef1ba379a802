//! A run folder as it is at the moment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::data::open_regular;
use crate::disk::{self, is_there};
use crate::run::RunError;
use crate::run::metrics::MetricsRecord;
use crate::run::settings::RunConfig;
use crate::run::summary::RunSummary;
use crate::run::trained::read_config;
use crate::text;
use crate::train::progress::LogEnd;

/// Bytes at the end of `train.log` that are looked at.
const LOG_END: u64 = 1 << 14;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It has written no record yet.
    Starting,
    /// Training, or killed: the age of the last record tells.
    Training,
    /// It was stopped by Ctrl-C or `kill`, and can be resumed.
    Interrupted,
    /// Trained; evaluation may follow.
    Trained,
    /// It is trained, and probe and kNN have been measured.
    Evaluated,
    /// Its weights were trained elsewhere and imported.
    Imported,
    /// Its `summary.json` is damaged, which alone says whether it ended, and with what.
    Unclear,
}

/// Longest line that may be a record; what is longer is read in such parts, and is none.
const LINE: u64 = 1 << 20;
/// Records that are kept. Of more, every other one of each split is dropped: a screen has fewer
/// columns.
const RECORDS: usize = 1 << 18;

/// `metrics.jsonl`, read as it grows.
#[derive(Debug, Default)]
struct Follow {
    /// Bytes that have been read: all the lines that end, and whole parts of one that is too long.
    at: u64,
    /// What ends there: while it stands where it stood, what is before it has not changed either.
    last: Vec<u8>,
    /// Within a line that is too long.
    within: bool,
    records: Vec<MetricsRecord>,
    damaged: usize,
}

impl Follow {
    /// Reads what was added; starts over where the file was cut or replaced (a resumed run). A
    /// missing file has no records.
    fn refresh(&mut self, path: &Path) -> io::Result<()> {
        let mut file = match open_regular(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *self = Self::default();
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let mut before = Vec::new();
        file.seek(SeekFrom::Start(self.at - self.last.len() as u64))?;
        file.by_ref().take(self.last.len() as u64).read_to_end(&mut before)?;
        if before != self.last {
            *self = Self::default();
            file.rewind()?;
        }
        let mut reader = BufReader::new(file);
        loop {
            let mut line = Vec::new();
            let read = reader.by_ref().take(LINE).read_until(b'\n', &mut line)? as u64;
            match line.split_last() {
                Some((b'\n', _)) if self.within => self.within = false,
                Some((b'\n', record)) => self.add(record),
                _ if read == LINE => {
                    self.damaged += usize::from(!self.within);
                    self.within = true;
                }
                // It is being written.
                _ => return Ok(()),
            }
            self.at += read;
            self.last = line;
        }
    }

    fn add(&mut self, line: &[u8]) {
        match MetricsRecord::parse(line) {
            Some(record) => self.records.push(record),
            None => self.damaged += 1,
        }
        if self.records.len() > RECORDS {
            // From the end, so that the newest of each split stays.
            let mut seen: BTreeMap<String, bool> = BTreeMap::new();
            self.records.reverse();
            self.records.retain(|record| {
                let kept = seen.entry(record.split.clone()).or_insert(false);
                *kept = !*kept;
                *kept
            });
            self.records.reverse();
        }
    }
}

/// A run folder as it was when it was last read.
#[derive(Debug)]
pub struct RunView {
    /// Path of the folder.
    pub dir: PathBuf,
    /// What its `config.toml` says.
    pub config: RunConfig,
    /// `summary.json`, if it is about the records: not of an earlier session that this one
    /// continues.
    pub summary: Option<RunSummary>,
    /// What is wrong with `summary.json`, and which file that is.
    pub damage: Option<String>,
    /// Steps of the whole run, where `train.log` says.
    pub total: Option<u64>,
    /// The newest reconstruction in `images/`.
    pub picture: Option<PathBuf>,
    /// Since the last record was written.
    pub age: Option<Duration>,
    metrics: Follow,
}

impl RunView {
    /// Reads a run folder.
    ///
    /// # Errors
    /// If it is none, or cannot be read.
    pub fn open(dir: &Path) -> Result<Self, RunError> {
        let path = dir.join("config.toml");
        if !is_there(&path) {
            let message = if is_there(dir) {
                "is no run folder: it has no config.toml"
            } else {
                "does not exist"
            };
            let hint = if is_there(&dir.join("grid.json")) {
                format!(
                    "it is a grid of `reproduce`: name run folders in it, such as {}",
                    text::name(&dir.join("*-s0"))
                )
            } else {
                "`aavae pretrain --out DIR` makes run folders".into()
            };
            return Err(RunError::config(format!("{} {message}", text::name(&dir)), Some(&hint)));
        }
        let config = read_config(&path)?;
        let mut view = Self {
            dir: dir.into(),
            config,
            summary: None,
            damage: None,
            total: None,
            picture: None,
            age: None,
            metrics: Follow::default(),
        };
        view.refresh()?;
        Ok(view)
    }

    /// Reads what has changed.
    ///
    /// # Errors
    /// If a file is there and cannot be read.
    pub fn refresh(&mut self) -> Result<(), RunError> {
        let path = self.dir.join("metrics.jsonl");
        self.metrics.refresh(&path).map_err(RunError::io("read", &path))?;
        self.age = fs::metadata(&path)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        let path = self.dir.join("train.log");
        let end = end_of(&path, LOG_END).map_err(RunError::io("read", &path))?;
        let log = end.map(|text| LogEnd::of(&text));
        self.total = log.and_then(|log| log.total);
        let (summary, damage) = match RunSummary::read(&self.dir) {
            Ok(summary) => (summary, None),
            Err(error) => (None, Some(error.to_string())),
        };
        self.damage = damage;
        let steps = self.last("train").map(|record| record.step);
        let ended = log.is_none_or(|log| log.ended);
        self.summary =
            summary.filter(|summary| ended && (steps.is_none() || summary.steps == steps));
        self.picture = newest_picture(&self.dir.join("images"))?;
        Ok(())
    }

    /// Records in the order of the file.
    pub fn records(&self) -> &[MetricsRecord] {
        &self.metrics.records
    }

    /// Lines of `metrics.jsonl` that are no records.
    pub fn damaged(&self) -> usize {
        self.metrics.damaged
    }

    /// The last record of a split.
    pub fn last(&self, split: &str) -> Option<&MetricsRecord> {
        self.records().iter().rev().find(|record| record.split == split)
    }

    /// A value over the steps of a split, where it is finite.
    pub fn curve(&self, split: &str, key: &str) -> Vec<(f64, f64)> {
        let of_split = self.records().iter().filter(|record| record.split == split);
        let point = |r: &MetricsRecord| {
            r.get(key).filter(|y| y.is_finite()).map(|y| (r.step as f64, f64::from(y)))
        };
        of_split.filter_map(point).collect()
    }

    /// How far it is.
    pub fn state(&self) -> RunState {
        match &self.summary {
            Some(summary) if summary.imported_from.is_some() => RunState::Imported,
            Some(summary) if summary.interrupted == Some(true) => RunState::Interrupted,
            Some(summary) if summary.measured.probe.is_some() => RunState::Evaluated,
            Some(_) => RunState::Trained,
            None if self.damage.is_some() => RunState::Unclear,
            None if self.records().is_empty() => RunState::Starting,
            None => RunState::Training,
        }
    }

    /// Steps that its last training record counts.
    pub fn steps(&self) -> u64 {
        self.last("train").map_or(0, |record| record.step)
    }

    /// Images per second: over the whole session once it has ended, before that as last logged.
    pub fn images_per_second(&self) -> Option<f64> {
        let ended = self.summary.as_ref().and_then(|s| s.images_per_second);
        ended.or_else(|| Some(f64::from(self.last("train")?.get("images_per_second")?)))
    }

    /// Seconds until the last step.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.total?.checked_sub(self.steps())? as f64;
        Some(
            left * self.config.images_per_step() as f64
                / self.images_per_second().filter(|rate| *rate > 0.0)?,
        )
    }

    /// Test accuracy of the linear probe.
    pub fn probe(&self) -> Option<f64> {
        self.summary.as_ref()?.measured.probe_accuracy()
    }

    /// Test accuracy of kNN at the first temperature of the table.
    pub fn knn(&self, k: u64) -> Option<f64> {
        self.summary.as_ref()?.measured.knn_accuracy(|row| row.k == Some(k))
    }
}

/// The last bytes of a file as text; `None` if there is none.
fn end_of(path: &Path, bytes: u64) -> io::Result<Option<String>> {
    if !is_there(path) {
        return Ok(None);
    }
    let mut file = open_regular(path)?;
    let from = file.metadata()?.len().saturating_sub(bytes);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(Some(String::from_utf8_lossy(&end).into_owned()))
}

/// The reconstruction of the highest step.
fn newest_picture(images: &Path) -> Result<Option<PathBuf>, RunError> {
    let step = |name: &OsString| -> Option<u64> {
        name.to_str()?.strip_prefix("reconstruction-")?.strip_suffix(".png")?.parse().ok()
    };
    let names = disk::names(images)?.into_iter().filter(|name| step(name).is_some());
    Ok(names.max_by_key(step).map(|name| images.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, loss: f32) -> String {
        format!("{{\"step\":{step},\"epoch\":0,\"split\":\"train\",\"loss\":{loss}}}\n")
    }

    /// However the file is written between two looks, the records are those of a file read at once.
    #[test]
    fn a_growing_file_is_read_as_it_grows() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        let whole: String = (1..=20).map(|step| line(step, 0.5)).collect();
        let mut follow = Follow::default();
        follow.refresh(&path).expect("no file is no error");
        for cut in (0..whole.len()).step_by(17).chain([whole.len()]) {
            fs::write(&path, &whole[..cut]).expect("a file");
            follow.refresh(&path).expect("records");
            assert_eq!(
                follow.records.len(),
                whole[..cut].matches('\n').count(),
                "cut at byte {cut}"
            );
            assert_eq!(follow.at as usize, whole[..cut].rfind('\n').map_or(0, |end| end + 1));
        }
        assert_eq!((follow.records.last().map(|r| r.step), follow.damaged), (Some(20), 0));
    }

    /// Lines without an end, or without sense, cost no memory and hide no records.
    #[test]
    fn lines_that_are_too_long_are_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        let long = |bytes: u64| "x".repeat(bytes as usize);
        let mut follow = Follow::default();
        let mut text = [line(1, 0.5), long(LINE / 2)].concat();
        fs::write(&path, &text).expect("a file");
        follow.refresh(&path).expect("records");
        assert_eq!((follow.records.len(), follow.damaged), (1, 0), "it may become a record");
        text += &long(2 * LINE);
        fs::write(&path, &text).expect("a file");
        follow.refresh(&path).expect("records");
        assert_eq!((follow.records.len(), follow.damaged, follow.within), (1, 1, true));
        text += &[
            "\n".into(),
            line(2, 0.5),
            long(LINE),
            "\n".into(),
            line(3, 0.5),
            "\u{fffd}\n".into(),
            line(4, 0.5),
        ]
        .concat();
        fs::write(&path, &text).expect("a file");
        for mut follow in [follow, Follow::default()] {
            follow.refresh(&path).expect("records");
            let steps: Vec<u64> = follow.records.iter().map(|r| r.step).collect();
            assert_eq!(
                (&steps[..], follow.damaged, follow.at),
                (&[1, 2, 3, 4][..], 3, text.len() as u64)
            );
        }
    }

    #[test]
    fn of_very_many_records_some_are_kept() {
        let mut follow = Follow::default();
        for step in 0..RECORDS as u64 {
            follow.add(format!("{{\"step\":{step},\"epoch\":0,\"split\":\"train\"}}").as_bytes());
        }
        follow.add(b"{\"step\":3,\"epoch\":0,\"split\":\"val\"}");
        let newest =
            |split: &str| follow.records.iter().rfind(|r| r.split == split).map(|r| r.step);
        assert_eq!(follow.records.len(), RECORDS / 2 + 1);
        assert_eq!((newest("train"), newest("val")), (Some(RECORDS as u64 - 1), Some(3)));
        assert!(
            follow
                .records
                .windows(2)
                .all(|w| w[0].split != w[1].split || w[0].step + 2 == w[1].step)
        );
    }

    /// A resumed run cuts the file and writes other lines, perhaps past where it was read before.
    #[test]
    fn a_file_that_was_cut_is_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        let before: String = (1..=10).map(|step| line(step, 0.5)).collect();
        for resumed in [
            (1..=4).map(|s| line(s, 0.5)).collect::<String>(),
            (1..=30).map(|s| line(s, if s > 4 { 0.25 } else { 0.5 })).collect(),
        ] {
            let mut follow = Follow::default();
            fs::write(&path, &before).expect("a file");
            follow.refresh(&path).expect("records");
            fs::write(&path, &resumed).expect("a file");
            follow.refresh(&path).expect("records");
            let mut afresh = Follow::default();
            afresh.refresh(&path).expect("records");
            assert_eq!(follow.records, afresh.records);
        }
        fs::write(&path, format!("{}nonsense\n{}", line(1, 0.5), line(2, 0.5))).expect("a file");
        let mut follow = Follow::default();
        follow.refresh(&path).expect("records");
        assert_eq!((follow.records.len(), follow.damaged), (2, 1));
        fs::remove_file(&path).expect("removed");
        follow.refresh(&path).expect("no file is no error");
        assert!(follow.records.is_empty());
    }

    /// A summary of an earlier session is not that of the one that continues it.
    #[test]
    fn a_summary_must_be_about_the_records() {
        let dir = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
        let state = || RunView::open(dir.path()).expect("a run").state();
        assert!(RunView::open(dir.path()).is_err_and(|e| e.to_string().contains("no config.toml")));
        put("config.toml", "width = 8\nbatch_size = 16\n");
        assert_eq!(state(), RunState::Starting);
        put("metrics.jsonl", &line(4, 0.5));
        put("train.log", "2026-01-01T00:00:00Z step 4/12 epoch 0 loss 0.5\n");
        assert_eq!(state(), RunState::Training);
        let summary = |rest: &str| {
            put("summary.json", &format!("{{\"run\": \"x\", \"method\": \"ae\", {rest}"));
        };
        summary("\"steps\": 4, \"interrupted\": true}");
        assert_eq!(state(), RunState::Training, "resumed: the log has not ended");
        put(
            "train.log",
            "2026-01-01T00:00:00Z step 4/12 epoch 0 loss 0.5\n2026-01-01T00:00:09Z 4 steps in \
             0:09\n",
        );
        assert_eq!(state(), RunState::Interrupted);
        put("metrics.jsonl", &[line(4, 0.5), line(8, 0.5)].concat());
        assert_eq!(state(), RunState::Training, "resumed: it is further");
        summary("\"steps\": 8, \"interrupted\": false}");
        assert_eq!(state(), RunState::Trained);
        let probe = "\"probe\": {\"accuracy\": 0.5, \"epochs\": 4}";
        summary(&format!("\"steps\": 8, \"interrupted\": false, {probe}}}"));
        assert_eq!(state(), RunState::Evaluated);
        let view = RunView::open(dir.path()).expect("a run");
        assert_eq!((view.probe(), view.total, view.steps()), (Some(0.5), Some(12), 8));
        summary("\"steps\": 8, \"interr");
        assert_eq!(state(), RunState::Unclear, "half a summary is not none");
        let damage = RunView::open(dir.path()).expect("a run").damage;
        assert!(damage.is_some_and(|text| text.contains("summary.json is damaged: EOF")));
    }

    #[test]
    fn the_time_left_counts_images() {
        let dir = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
        put("config.toml", "batch_size = 16\n");
        put(
            "metrics.jsonl",
            "{\"step\":10,\"epoch\":0,\"split\":\"train\",\"loss\":1.0,\
             \"images_per_second\":32.0}\n",
        );
        assert_eq!(
            RunView::open(dir.path()).expect("a run").seconds_left(),
            None,
            "the log does not say how far it goes"
        );
        put("train.log", "2026-01-01T00:00:00Z step 10/110 epoch 0 loss 1.0\n");
        assert_eq!(RunView::open(dir.path()).expect("a run").seconds_left(), Some(50.0));
        put("config.toml", "batch_size = 16\naccumulate = 3\n");
        assert_eq!(RunView::open(dir.path()).expect("a run").seconds_left(), Some(150.0));
    }

    #[test]
    fn the_newest_picture_is_that_of_the_highest_step() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in [
            "reconstruction-000999.png",
            "reconstruction-1000000.png",
            "reconstruction-x.png",
            "augmentation.png",
        ] {
            fs::write(dir.path().join(name), "").expect("a file");
        }
        let newest = |dir: &Path| newest_picture(dir).map_err(|error| error.to_string());
        let found = dir.path().join("reconstruction-1000000.png");
        assert_eq!(newest(dir.path()), Ok(Some(found.clone())));
        assert_eq!(newest(&dir.path().join("none")), Ok(None));
        assert!(newest(&found).is_err_and(|said| said.contains("cannot read")));
    }

    /// A log that cannot be read is not one that is not there, of which nothing is known.
    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("config.toml"), "").expect("a file");
        let mut view = RunView::open(dir.path()).expect("a run without a log");
        for name in ["train.log", "images", "metrics.jsonl"] {
            let path = dir.path().join(name);
            match name {
                "images" => fs::write(&path, "").expect("a file"),
                _ => fs::create_dir(&path).expect("a folder"),
            }
            let error = view.refresh().expect_err(name).to_string();
            assert!(error.contains("cannot read") && error.contains(name), "{error}");
            match name {
                "images" => fs::remove_file(&path).expect("removed"),
                _ => fs::remove_dir(&path).expect("removed"),
            }
        }
        view.refresh().expect("as before");
    }
}

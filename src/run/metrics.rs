//! `metrics.jsonl`: one JSON object a line, flushed line by line.
//!
//! ```text
//! {"step":350,"epoch":2,"split":"train","loss":2413.5,"kl":31.25,"lr":0.00025}
//! ```
//!
//! Write the records of a step before its checkpoint, and sync the file between: then a run that
//! was killed and resumed from that checkpoint has the lines of a run that was not.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::data::read_regular;
use crate::disk::DiskError;

/// What one line of the file says of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsRecord {
    /// Steps that had been taken, from 1.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// "train", "val" or "test".
    pub split: String,
    /// Values in the order in which they are written. NaN and the infinities are written as `null`
    /// and read as NaN.
    pub values: Vec<(String, f32)>,
}

impl MetricsRecord {
    /// A record without values.
    pub fn new(step: u64, epoch: u64, split: &str) -> Self {
        Self { step, epoch, split: split.to_owned(), values: Vec::new() }
    }

    /// Adds a value.
    pub fn with(mut self, key: &str, value: f32) -> Self {
        self.values.push((key.to_owned(), value));
        self
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<f32> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// A record from a line without its end; `None` if it is no record.
    pub fn parse(line: &[u8]) -> Option<Self> {
        Self::of_json(&serde_json::from_slice(line).ok()?)
    }

    fn of_json(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let integer = |key| object.get(key).and_then(Value::as_u64);
        let mut record =
            Self::new(integer("step")?, integer("epoch")?, object.get("split")?.as_str()?);
        for (key, value) in
            object.iter().filter(|(key, _)| !matches!(key.as_str(), "step" | "epoch" | "split"))
        {
            let value = if value.is_null() { f64::NAN } else { value.as_f64()? };
            record.values.push((key.clone(), value as f32));
        }
        Some(record)
    }
}

impl Serialize for MetricsRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3 + self.values.len()))?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("epoch", &self.epoch)?;
        map.serialize_entry("split", &self.split)?;
        for (key, value) in &self.values {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for MetricsRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of_json(&Value::deserialize(deserializer)?)
            .ok_or_else(|| serde::de::Error::custom("not a metrics record"))
    }
}

/// What can go wrong with a metrics file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The operating system refused an operation.
    #[error(transparent)]
    Io(#[from] DiskError),
    /// A line is no record.
    #[error("`{}`, line {line}: not a metrics record", crate::text::name(path))]
    Line {
        /// Path of the file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl MetricsError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let named = DiskError::of(action, path);
        move |source| Self::Io(named(source))
    }
}

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Starts an empty file, replacing one that is there.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, MetricsError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(MetricsError::io("create", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Continues a file after `step`: cuts it before the first record of a later step or an
    /// unfinished last line. A file that is not there is created.
    ///
    /// # Errors
    /// [`MetricsError::Line`] if a line that stays is no record; the file is then untouched.
    /// [`MetricsError::Io`].
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<Self, MetricsError> {
        Self::resume_where(path, |record| record.step <= step)
    }

    /// Continues a file: cuts it before the first record that does not stay, or an unfinished last
    /// line.
    ///
    /// # Errors
    /// As [`MetricsLog::resume`].
    pub fn resume_where(
        path: impl AsRef<Path>,
        stays: impl Fn(&MetricsRecord) -> bool,
    ) -> Result<Self, MetricsError> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(MetricsError::io("open", path))?;
        let bytes = read_regular(path).map_err(MetricsError::io("read", path))?;
        let mut kept = 0;
        for (record, line) in whole_lines(&bytes).zip(1..) {
            match MetricsRecord::parse(record) {
                Some(record) if !stays(&record) => break,
                Some(_) => kept += record.len() as u64 + 1,
                None => return Err(MetricsError::Line { path: path.to_owned(), line }),
            }
        }
        file.set_len(kept).map_err(MetricsError::io("truncate", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Appends one line, in one write.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn write(&mut self, record: &MetricsRecord) -> Result<(), MetricsError> {
        let mut line = serde_json::to_vec(record).expect("a map with text keys");
        line.push(b'\n');
        self.file.write_all(&line).map_err(MetricsError::io("write", &self.path))
    }

    /// Another handle of the file, to sync it by, and its name.
    ///
    /// # Errors
    /// If the operating system refuses one.
    pub fn handle(&self) -> Result<(File, PathBuf), DiskError> {
        Ok((self.file.try_clone().map_err(DiskError::of("open", &self.path))?, self.path.clone()))
    }
}

/// Reads all records; an unfinished last line (a run that is being written, or was killed) is left
/// out.
///
/// # Errors
/// Any [`MetricsError`].
pub fn read(path: impl AsRef<Path>) -> Result<Vec<MetricsRecord>, MetricsError> {
    let path = path.as_ref();
    let bytes = read_regular(path).map_err(MetricsError::io("read", path))?;
    let parse = |(record, line)| {
        MetricsRecord::parse(record)
            .ok_or_else(|| MetricsError::Line { path: path.to_owned(), line })
    };
    whole_lines(&bytes).zip(1..).map(parse).collect()
}

/// Lines that end, without their end.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(step: u64) -> MetricsRecord {
        MetricsRecord::new(step, step / 10, "train")
            .with("loss", 0.1 * step as f32)
            .with("lr", 2.5e-4)
    }

    #[test]
    fn lines_are_short_ordered_json() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).expect("a log");
        let odd = MetricsRecord::new(1, 0, "val")
            .with("loss", 0.1)
            .with("kl", f32::NAN)
            .with("a \"b\"", f32::INFINITY);
        log.write(&odd).expect("a line");
        let text = fs::read_to_string(&path).expect("text");
        assert_eq!(
            text,
            "{\"step\":1,\"epoch\":0,\"split\":\"val\",\"loss\":0.1,\"kl\":null,\"a \
             \\\"b\\\"\":null}\n"
        );
        let back = &read(&path).expect("records")[0];
        assert_eq!(
            (back.get("loss"), back.get("kl").map(f32::is_nan), back.get("x")),
            (Some(0.1), Some(true), None)
        );
    }

    #[test]
    fn a_resumed_file_equals_a_straight_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let (straight, resumed) = (dir.path().join("straight"), dir.path().join("resumed"));
        let write = |log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>| {
            for step in steps {
                log.write(&record(step)).expect("a line");
            }
        };
        write(&mut MetricsLog::create(&straight).expect("a log"), 1..=30);
        let whole = fs::read(&straight).expect("bytes");
        // Killed after any byte, resumed from the newest checkpoint, which is taken every 5 steps.
        for cut in (0..whole.len()).step_by(37).chain([whole.len()]) {
            fs::write(&resumed, &whole[..cut]).expect("a torn file");
            let step = read(&resumed).expect("records").len() as u64 / 5 * 5;
            write(&mut MetricsLog::resume(&resumed, step).expect("a log"), step + 1..=30);
            assert_eq!(fs::read(&resumed).expect("bytes"), whole, "cut at byte {cut}");
        }
        assert_eq!(read(&straight).expect("records"), (1..=30).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_line_is_named_and_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1,\"epoch\":0,\"split\":\"train\"}\nnonsense\n")
            .expect("a file");
        for error in [
            read(&path).expect_err("nonsense"),
            MetricsLog::resume(&path, 5).expect_err("nonsense"),
        ] {
            assert!(error.to_string().ends_with("line 2: not a metrics record"), "{error}");
        }
        assert!(fs::read_to_string(&path).expect("text").ends_with("nonsense\n"));
        assert!(matches!(
            read(dir.path().join("none")),
            Err(MetricsError::Io(DiskError { action: "read", .. }))
        ));
    }
}

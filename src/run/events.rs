//! TensorBoard event files: `metrics.jsonl` and some pictures, as curves.
//!
//! ```text
//! Event:      1 wall_time f64 | 2 step i64 | 3 file_version text | 5 summary Summary
//!             7 session_log SessionLog
//! Summary:    1 value (repeated): 1 tag text | 2 simple_value f32 | 4 image Image
//! Image:      1 height | 2 width | 3 colorspace | 4 encoded bytes
//! SessionLog: 1 status (1 = START)
//! ```
//!
//! A run has one file, with the points of `metrics.jsonl` in their order. A run that is resumed
//! writes them anew: those of the records that stay, at the times at which they were measured, and
//! then goes on. Names rise and times never fall, whatever the clock does: TensorBoard reads files
//! in the order of their names. Each file begins by telling it to forget what it read before. Those
//! before it stay for an hour, empty: a TensorBoard that is open reads on from there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::metrics::MetricsRecord;
use super::tfrecord::{Field, Message, fields, records};
use crate::data::read_regular;
use crate::disk::{self, DiskError};

const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".aavae";

/// Whether a file name is that of an event file of ours.
pub fn owns(name: &str) -> bool {
    number(name).is_some() && name.ends_with(SUFFIX)
}

/// The event files of ours in a folder, in the order in which TensorBoard reads them.
///
/// # Errors
/// If the folder is there and cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let mut names = names(dir)?;
    names.retain(|name| owns(name));
    names.sort();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Longest time until a TensorBoard that is open looks for new files, and much longer than the
/// usual seconds.
const READS_ON: Duration = Duration::from_secs(3600);

/// Empties event files, and removes those that have been empty for long.
///
/// # Errors
/// If that is not possible.
pub fn retire(files: &[PathBuf]) -> Result<(), DiskError> {
    for path in files {
        let found = fs::metadata(path).map_err(DiskError::of("read", path))?;
        if found.len() > 0 {
            let emptied =
                OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
            emptied.map_err(DiskError::of("empty", path))?;
        } else if found
            .modified()
            .is_ok_and(|time| time.elapsed().is_ok_and(|since| since > READS_ON))
        {
            fs::remove_file(path).map_err(DiskError::of("remove", path))?;
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>, DiskError> {
    // A name that is no text is not one of TensorBoard's.
    Ok(disk::names(dir)?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// The number that a file's name begins with: usually seconds.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Seconds since 1970 that never fall, beginning after a given time.
#[derive(Clone, Copy, Debug)]
struct Clock {
    base: f64,
    started: Instant,
}

impl Clock {
    fn after(time: f64) -> Self {
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self { base: now.max(time), started: Instant::now() }
    }

    fn now(&self) -> f64 {
        self.base + self.started.elapsed().as_secs_f64()
    }
}

/// Writes the event file of a run.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
    clock: Clock,
}

impl EventWriter {
    /// The file of a run that begins.
    ///
    /// # Errors
    /// If the folder or file cannot be written.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self, DiskError> {
        Self::begin(dir.as_ref(), &[], Clock::after(0.0))
    }

    /// The file of a run that is resumed after `step`, with the records that stay. Those that are
    /// there are [`retire`]d.
    ///
    /// # Errors
    /// If the folder or file cannot be written.
    pub fn resume(
        dir: impl AsRef<Path>,
        kept: &[MetricsRecord],
        step: u64,
    ) -> Result<Self, DiskError> {
        let dir = dir.as_ref();
        let old = files(dir)?;
        let mut earlier = Earlier::default();
        for path in &old {
            earlier.read(&read_regular(path).map_err(DiskError::of("read", path))?);
        }
        let (events, last) = earlier.retell(kept, step);
        let writer = Self::begin(dir, &events, Clock::after(last))?;
        retire(&old)?;
        Ok(writer)
    }

    /// Starts a file whose name is above all others.
    fn begin(dir: &Path, events: &[u8], clock: Clock) -> Result<Self, DiskError> {
        disk::create_folder(dir)?;
        let highest = names(dir)?.iter().filter_map(|name| number(name)).max();
        let number =
            (clock.now() as u64).max(highest.map_or(0, |highest| highest.saturating_add(1)));
        let path = dir.join(format!("{PREFIX}{number:010}{SUFFIX}"));
        let start = clock.base.min(first_time(events).unwrap_or(clock.base));
        let head = [
            event(start, 0, |event| event.bytes(3, b"brain.Event:2")),
            event(start, 0, |event| event.message(7, |log| log.varint(1, 1))),
        ];
        disk::write(&path, &[&head.concat(), events].concat())?;
        let file =
            OpenOptions::new().append(true).open(&path).map_err(DiskError::of("open", &path))?;
        Ok(Self { file: BufWriter::new(file), path, clock })
    }

    /// Adds the points of a record, and hands them to the operating system, so that a TensorBoard
    /// that looks on sees them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn record(&mut self, record: &MetricsRecord) -> Result<(), DiskError> {
        let now = self.clock.now();
        let mut points = Vec::new();
        for (name, value) in &record.values {
            points.extend(scalar(now, record.step, &tag(record, name), *value));
        }
        self.write(&points)
    }

    /// Adds an RGB image, encoded as PNG, of `width` by `height` pixels.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn image(
        &mut self,
        step: u64,
        tag: &str,
        width: u32,
        height: u32,
        png: &[u8],
    ) -> Result<(), DiskError> {
        let bytes = event(self.clock.now(), step, |event| {
            event.message(5, |summary| {
                summary.message(1, |entry| {
                    entry.bytes(1, tag.as_bytes());
                    entry.message(4, |image| {
                        image.varint(1, height.into());
                        image.varint(2, width.into());
                        image.varint(3, 3); // RGB
                        image.bytes(4, png);
                    });
                });
            });
        });
        self.write(&bytes)
    }

    /// Another handle of the file, to sync it by, and its name.
    ///
    /// # Errors
    /// If the operating system refuses one.
    pub fn handle(&self) -> Result<(File, PathBuf), DiskError> {
        let file = self.file.get_ref().try_clone().map_err(DiskError::of("open", &self.path))?;
        Ok((file, self.path.clone()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let written: io::Result<()> = self.file.write_all(bytes).and_then(|()| self.file.flush());
        written.map_err(DiskError::of("write", &self.path))
    }
}

fn tag(record: &MetricsRecord, name: &str) -> String {
    format!("{}/{name}", record.split)
}

fn event(time: f64, step: u64, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut event = Message::default();
    event.f64(1, time);
    event.varint(2, step);
    fill(&mut event);
    event.record()
}

fn scalar(time: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    event(time, step, |event| {
        event.message(5, |summary| {
            summary.message(1, |entry| {
                entry.bytes(1, tag.as_bytes());
                entry.f32(2, value);
            });
        });
    })
}

/// What the event files of a run said before it was resumed.
#[derive(Debug, Default)]
struct Earlier {
    /// When a point was measured, by step and tag.
    times: HashMap<(u64, String), f64>,
    /// Pictures by step, with their time and the summary that holds them.
    images: BTreeMap<u64, (f64, Vec<u8>)>,
}

impl Earlier {
    fn read(&mut self, file: &[u8]) {
        for content in records(file) {
            let Some(parts) = fields(content) else { continue };
            let (mut time, mut step, mut summary) = (None, 0, None);
            for (number, value) in parts {
                match (number, value) {
                    (1, Field::Fixed(bytes)) => {
                        time = bytes.try_into().ok().map(f64::from_le_bytes)
                    }
                    (2, Field::Varint(value)) => step = value,
                    (5, Field::Bytes(bytes)) => summary = Some(bytes),
                    _ => {}
                }
            }
            if let (Some(time), Some(summary)) = (time.filter(|time| time.is_finite()), summary) {
                self.point(time, step, summary);
            }
        }
    }

    fn point(&mut self, time: f64, step: u64, summary: &[u8]) {
        for (_, value) in fields(summary).unwrap_or_default() {
            let Field::Bytes(entry) = value else { continue };
            let parts = fields(entry).unwrap_or_default();
            if parts.iter().any(|(number, _)| *number == 4) {
                self.images.insert(step, (time, summary.to_owned()));
            } else if let Some((_, Field::Bytes(tag))) = parts.first() {
                self.times.insert((step, String::from_utf8_lossy(tag).into_owned()), time);
            }
        }
    }

    /// The points of these records and the pictures up to a step, each at its time; the time of the
    /// last.
    fn retell(&self, kept: &[MetricsRecord], step: u64) -> (Vec<u8>, f64) {
        let mut images = self.images.range(..=step).peekable();
        let (mut events, mut now) = (Vec::new(), 0f64);
        let mut draw = |until: u64, events: &mut Vec<u8>, now: &mut f64| {
            while let Some((step, (time, summary))) = images.next_if(|(step, _)| **step < until) {
                *now = now.max(*time);
                events.extend(event(*now, *step, |event| event.bytes(5, summary)));
            }
        };
        for record in kept {
            draw(record.step, &mut events, &mut now);
            for (name, value) in &record.values {
                let tag = tag(record, name);
                let time = self.times.get(&(record.step, tag.clone()));
                now = time.map_or(now, |time| now.max(*time));
                events.extend(scalar(now, record.step, &tag, *value));
            }
        }
        draw(u64::MAX, &mut events, &mut now);
        (events, now)
    }
}

/// The time of the first event.
fn first_time(events: &[u8]) -> Option<f64> {
    let first = records(events).next().and_then(fields)?;
    match first.first()? {
        (1, Field::Fixed(bytes)) => (*bytes).try_into().ok().map(f64::from_le_bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time, step, and either a tag with its value, a tag of a picture, or nothing.
    type Point = (f64, u64, Option<(String, Option<f32>)>);

    fn points(path: &Path) -> Vec<Point> {
        let bytes = fs::read(path).expect("the file");
        let read: Vec<_> = records(&bytes).collect();
        assert_eq!(
            read.iter().map(|r| r.len() + 16).sum::<usize>(),
            bytes.len(),
            "every record is whole"
        );
        let mut found = Vec::new();
        for content in read {
            let parts = fields(content).expect("an event");
            let [
                (1, Field::Fixed(time)),
                (2, Field::Varint(step)),
                (number, Field::Bytes(payload)),
            ] = parts[..]
            else {
                panic!("{parts:?}")
            };
            let point = (number == 5).then(|| {
                let summary = fields(payload).expect("a summary");
                let [(1, Field::Bytes(entry))] = summary[..] else { panic!("{summary:?}") };
                let entry = fields(entry).expect("a value");
                let [(1, Field::Bytes(tag)), (_, value)] = entry[..] else { panic!("{entry:?}") };
                let value = match value {
                    Field::Fixed(bytes) => {
                        Some(f32::from_le_bytes(bytes.try_into().expect("four bytes")))
                    }
                    _ => None,
                };
                (String::from_utf8(tag.to_owned()).expect("text"), value)
            });
            found.push((f64::from_le_bytes(time.try_into().expect("eight bytes")), step, point));
        }
        found
    }

    fn shown(path: &Path) -> Vec<(u64, String, Option<f32>)> {
        points(path)
            .into_iter()
            .filter_map(|(_, step, point)| point.map(|(tag, value)| (step, tag, value)))
            .collect()
    }

    fn record(step: u64, split: &str, value: f32) -> MetricsRecord {
        MetricsRecord::new(step, 0, split).with("loss", value)
    }

    #[test]
    fn a_file_says_what_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = EventWriter::create(dir.path()).expect("a writer");
        writer
            .record(&MetricsRecord::new(300, 2, "train").with("loss", -1.5).with("lr", 0.1))
            .expect("points");
        writer.image(301, "images", 200, 3, &[7; 300]).expect("an image");
        let bytes = fs::read(&writer.path).expect("the file");
        let first = records(&bytes)
            .map(|content| fields(content).expect("an event")[2])
            .take(2)
            .collect::<Vec<_>>();
        // SessionLog.START, before which TensorBoard forgets what it read.
        assert_eq!(first, [(3, Field::Bytes(b"brain.Event:2")), (7, Field::Bytes(&[8, 1]))]);
        let expected =
            [(300, "train/loss", Some(-1.5)), (300, "train/lr", Some(0.1)), (301, "images", None)];
        assert_eq!(
            shown(&writer.path),
            expected.map(|(step, tag, value)| (step, tag.to_owned(), value))
        );
        let picture = records(&bytes).last().expect("an image");
        let image = [8, 3, 16, 200, 1, 24, 3, 34, 172, 2, 7, 7];
        assert!(picture.windows(image.len()).any(|w| w == image), "height, width, RGB, 300 bytes");
    }

    /// The file of a resumed run has the records that stay, at the times of their measurement, and
    /// nothing of those that do not.
    #[test]
    fn a_resumed_file_is_the_log_that_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let kept = [record(1, "train", 1.0), record(2, "train", 2.0), record(2, "val", 2.5)];
        let mut writer = EventWriter::create(dir.path()).expect("a writer");
        for record in &kept {
            writer.record(record).expect("points");
        }
        writer.image(2, "reconstruction", 1, 1, b"png").expect("an image");
        let first = writer.path.clone();
        let times: Vec<f64> = points(&first).iter().map(|point| point.0).collect();
        writer.record(&record(3, "train", 9.0)).expect("points");
        writer.image(3, "reconstruction", 1, 1, b"png").expect("an image");
        // Killed within a record.
        let bytes = fs::read(&first).expect("the file");
        fs::write(&first, &bytes[..bytes.len() - 5]).expect("a torn file");

        let mut resumed = EventWriter::resume(dir.path(), &kept, 2).expect("a writer");
        assert_eq!(
            files(dir.path()).expect("names"),
            [first.clone(), resumed.path.clone()],
            "a new one, after the first"
        );
        assert_eq!(
            fs::metadata(&first).expect("a file").len(),
            0,
            "which is there for a TensorBoard that reads on from it"
        );
        let told: Vec<f64> = points(&resumed.path).iter().map(|point| point.0).collect();
        assert_eq!(told[2..], times[2..], "the times of the points are kept");
        assert_eq!(told[..2], [times[2]; 2], "the head does not come after the first of them");
        resumed.record(&record(3, "train", 3.0)).expect("points");
        let steps: Vec<_> = shown(&resumed.path)
            .into_iter()
            .map(|(step, tag, value)| format!("{step} {tag} {value:?}"))
            .collect();
        let picture = "2 reconstruction None";
        assert_eq!(
            steps,
            [
                "1 train/loss Some(1.0)",
                "2 train/loss Some(2.0)",
                "2 val/loss Some(2.5)",
                picture,
                "3 train/loss Some(3.0)"
            ]
        );
        // Without the old files (a copy of the folder, perhaps) only the times are lost.
        fs::remove_file(&resumed.path).expect("gone");
        let again = EventWriter::resume(dir.path(), &kept, 2).expect("a writer");
        assert_eq!(shown(&again.path).len(), 3);
    }

    /// Empty files stay for an hour, and do not gather.
    #[test]
    fn an_old_file_goes_after_an_hour() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("events.out.tfevents.1700000000.aavae");
        let age = |minutes: u64| {
            let then = SystemTime::now() - Duration::from_secs(60 * minutes);
            let file = File::options().append(true).create(true).open(&path).expect("a file");
            file.set_modified(then).expect("an old file");
        };
        let retired = || retire(std::slice::from_ref(&path)).map(|()| path.exists());
        fs::write(&path, "points").expect("a file");
        age(120);
        assert!(retired().expect("emptied"), "it was not empty before");
        assert_eq!(fs::read(&path).expect("a file"), b"");
        age(59);
        assert!(retired().expect("left"));
        age(61);
        assert!(!retired().expect("removed"));
    }

    /// A clock that was set back makes neither names nor times fall.
    #[test]
    fn time_does_not_fall() {
        let dir = tempfile::tempdir().expect("a folder");
        let future = Clock { base: 4e9, started: Instant::now() };
        let mut writer = EventWriter::begin(dir.path(), &[], future).expect("a writer");
        writer.record(&record(1, "train", 1.0)).expect("points");
        let late = dir.path().join("events.out.tfevents.5000000000.host.1.0");
        fs::write(&late, "of another program").expect("a file");
        let mut resumed =
            EventWriter::resume(dir.path(), &[record(1, "train", 1.0)], 1).expect("a writer");
        resumed.record(&record(2, "train", 2.0)).expect("points");
        assert!(resumed.path > late && late.exists(), "{}", resumed.path.display());
        let times: Vec<f64> = points(&resumed.path).iter().map(|point| point.0).collect();
        assert!(times.is_sorted() && times[0] >= 4e9, "{times:?}");
        assert!(
            !owns("events.out.tfevents.5000000000.host.1.0")
                && owns("events.out.tfevents.1700000000.000.aavae")
        );
    }

    #[test]
    fn an_unwritable_folder_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("a file");
        let error = EventWriter::create(&file).expect_err("a file is no folder").to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }
}

//! TensorBoard event files.
//!
//! A file is a sequence of TFRecords, each an `Event` protocol buffer:
//!
//! ```text
//! record:  u64 length | u32 masked crc32c(length) | bytes | u32 masked crc32c(bytes)      little-endian
//! Event:   1 wall_time f64 | 2 step i64 | 3 file_version text | 5 summary Summary | 7 session_log SessionLog
//! Summary: 1 value (repeated): 1 tag text | 2 simple_value f32 | 4 image Image
//! Image:   1 height | 2 width | 3 colorspace | 4 encoded bytes
//! SessionLog: 1 status (1 = START)
//! ```
//!
//! Written by hand because the six fields do not pay for a protocol buffer library.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one event file. Nothing is read back: a resumed run adds a file, and TensorBoard joins them.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Starts a new file in `dir`, which is created.
    ///
    /// # Errors
    /// If the folder or file cannot be written; the message names it.
    pub fn create(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|error| named("create", dir, &error))?;
        let seconds = wall_time() as u64;
        // TensorBoard reads the files in the order of their names.
        let mut number = 0;
        let (file, path) = loop {
            let path = dir.join(format!("events.out.tfevents.{seconds:010}.{number:03}.aavae"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 999 => number += 1,
                Err(error) => return Err(named("create", &path, &error)),
            }
        };
        let mut writer = Self { file: BufWriter::new(file), path };
        writer.event(0, |event| event.bytes(3, b"brain.Event:2"))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Starts a new file that continues after `step`; tells TensorBoard to forget what an earlier file has beyond it.
    ///
    /// # Errors
    /// As [`EventWriter::create`].
    pub fn resume(dir: impl AsRef<Path>, step: u64) -> io::Result<Self> {
        let mut writer = Self::create(dir)?;
        writer.event(step + 1, |event| event.message(7, |log| log.varint(1, 1)))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a point to the curve `tag`.
    ///
    /// # Errors
    /// If the file cannot be written; the message names it.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> io::Result<()> {
        self.event(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |entry| {
                    entry.bytes(1, tag.as_bytes());
                    entry.fixed(2, 5, &value.to_le_bytes());
                });
            });
        })
    }

    /// Adds an RGB image, encoded as PNG, of `width` by `height` pixels.
    ///
    /// # Errors
    /// If the file cannot be written; the message names it.
    pub fn image(&mut self, step: u64, tag: &str, width: u32, height: u32, png: &[u8]) -> io::Result<()> {
        self.event(step, |event| {
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
        })
    }

    /// Hands everything to the operating system, so that a TensorBoard that looks on sees it.
    ///
    /// # Errors
    /// If the file cannot be written; the message names it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|error| named("write", &self.path, &error))
    }

    fn event(&mut self, step: u64, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut event = Message(Vec::new());
        event.fixed(1, 1, &wall_time().to_le_bytes());
        event.varint(2, step);
        fill(&mut event);
        let length = (event.0.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] = [&length, &masked_crc(&length).to_le_bytes(), &event.0, &masked_crc(&event.0).to_le_bytes()];
        parts.into_iter().try_for_each(|part| self.file.write_all(part)).map_err(|error| named("write", &self.path, &error))
    }
}

/// A protocol buffer under construction.
struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut value: u64) {
        while value >= 128 {
            self.0.push(value as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw(field << 3);
        self.raw(value);
    }

    /// `wire` is 1 for 8 bytes and 5 for 4.
    fn fixed(&mut self, field: u64, wire: u64, bytes: &[u8]) {
        self.raw(field << 3 | wire);
        self.0.extend(bytes);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.raw(field << 3 | 2);
        self.raw(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message(Vec::new());
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

/// TFRecord's checksum: a crc over bytes that hold crcs would be weak, so it is rotated and shifted.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn named(action: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {action} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Field<'a> {
        Varint(u64),
        Fixed(&'a [u8]),
        Bytes(&'a [u8]),
    }

    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(count);
        *bytes = tail;
        head
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(bytes, 1)[0];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        value
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Field::Varint(varint(&mut bytes)),
                1 => Field::Fixed(take(&mut bytes, 8)),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length))
                }
                5 => Field::Fixed(take(&mut bytes, 4)),
                wire => panic!("wire type {wire}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn events(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let head = take(&mut bytes, 8);
            assert_eq!(masked_crc(head).to_le_bytes(), take(&mut bytes, 4));
            let length = u64::from_le_bytes(head.try_into().expect("8 bytes")) as usize;
            let event = take(&mut bytes, length);
            assert_eq!(masked_crc(event).to_le_bytes(), take(&mut bytes, 4));
            events.push(event);
        }
        events
    }

    /// The fields after `wall_time` and the payload's inner message.
    fn payload(event: &[u8]) -> (u64, u64, Vec<(u64, Field<'_>)>) {
        let mut fields = fields(event).into_iter();
        assert!(matches!(fields.next(), Some((1, Field::Fixed(time))) if time.len() == 8));
        let Some((2, Field::Varint(step))) = fields.next() else { panic!("no step") };
        let Some((field, Field::Bytes(inner))) = fields.next() else { panic!("no payload") };
        assert_eq!(fields.next(), None);
        (step, field, if field == 3 { vec![(0, Field::Bytes(inner))] } else { super::tests::fields(inner) })
    }

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
        // The length field of every file that TensorFlow starts: 24 bytes, crc a3 7f 4b 22.
        assert_eq!(masked_crc(&24u64.to_le_bytes()).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn what_is_written_decodes() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = EventWriter::create(dir.path()).expect("a writer");
        writer.scalar(300, "train/loss", -1.5).expect("a scalar");
        writer.image(301, "images", 200, 3, &[7; 300]).expect("an image");
        writer.flush().expect("written");
        let resumed = EventWriter::resume(dir.path(), 300).expect("a second writer");
        assert!(resumed.path() > writer.path());

        let bytes = fs::read(writer.path()).expect("the file");
        let events_ = events(&bytes);
        assert_eq!(events_.len(), 3);
        assert_eq!(payload(events_[0]), (0, 3, vec![(0, Field::Bytes(b"brain.Event:2"))]));
        let (step, field, summary) = payload(events_[1]);
        let [(1, Field::Bytes(value))] = summary[..] else { panic!("{summary:?}") };
        assert_eq!((step, field), (300, 5));
        assert_eq!(fields(value), [(1, Field::Bytes(b"train/loss")), (2, Field::Fixed(&(-1.5f32).to_le_bytes()))]);
        let (step, field, summary) = payload(events_[2]);
        let [(1, Field::Bytes(value))] = summary[..] else { panic!("{summary:?}") };
        assert_eq!((step, field), (301, 5));
        let value = fields(value);
        let [(1, Field::Bytes(b"images")), (4, Field::Bytes(image))] = value[..] else { panic!("{value:?}") };
        let expected = [(1, Field::Varint(3)), (2, Field::Varint(200)), (3, Field::Varint(3)), (4, Field::Bytes(&[7; 300]))];
        assert_eq!(fields(image), expected);

        let bytes = fs::read(resumed.path()).expect("the file");
        assert_eq!(payload(events(&bytes)[1]), (301, 7, vec![(1, Field::Varint(1))]));
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

//! What event files are made of: TFRecords that hold protocol buffers.
//!
//! ```text
//! record:  u64 length | u32 masked crc32c(length) | bytes | u32 masked crc32c(bytes),
//!          all little-endian
//! message: fields, each a key (number << 3 | wire type) and a value
//! ```
//!
//! Written by hand because a handful of fields does not pay for a protocol buffer library.

/// A protocol buffer under construction.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut value: u64) {
        while value >= 128 {
            self.0.push(value as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(super) fn varint(&mut self, field: u64, value: u64) {
        self.raw(field << 3);
        self.raw(value);
    }

    pub(super) fn f64(&mut self, field: u64, value: f64) {
        self.raw(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn f32(&mut self, field: u64, value: f32) {
        self.raw(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.raw(field << 3 | 2);
        self.raw(bytes.len() as u64);
        self.0.extend(bytes);
    }

    pub(super) fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// The message as a record.
    pub(super) fn record(self) -> Vec<u8> {
        let length = (self.0.len() as u64).to_le_bytes();
        [&length[..], &masked_crc(&length), &self.0, &masked_crc(&self.0)].concat()
    }
}

/// A value of a protocol buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field<'a> {
    /// A whole number.
    Varint(u64),
    /// Four or eight bytes.
    Fixed(&'a [u8]),
    /// Text, bytes, or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers; `None` if it is damaged.
pub(super) fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)?),
            1 => Field::Fixed(take(&mut bytes, 8)?),
            2 => {
                let length = varint(&mut bytes)?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Fixed(take(&mut bytes, 4)?),
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    Some(fields)
}

/// The contents of the records in a file, up to the first that is cut short or damaged.
pub(super) fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = take(&mut bytes, 8)?;
        if take(&mut bytes, 4)? != masked_crc(length) {
            return None;
        }
        let content = take(&mut bytes, u64::from_le_bytes(length.try_into().ok()?))?;
        (take(&mut bytes, 4)? == masked_crc(content)).then_some(content)
    })
    .fuse()
}

fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// TFRecord's checksum: a crc over bytes that hold crcs would be weak, so it is rotated and
/// shifted.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
        // The length field of every file that TensorFlow starts: 24 bytes, crc a3 7f 4b 22.
        assert_eq!(masked_crc(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    fn sample() -> Vec<u8> {
        let mut message = Message::default();
        message.f64(1, 0.5);
        message.varint(2, 300);
        message.message(5, |inner| inner.f32(2, -1.5));
        message.bytes(3, b"text");
        message.record()
    }

    #[test]
    fn what_is_written_reads() {
        let bytes = sample();
        let content: Vec<_> = records(&bytes).collect();
        let [one] = content[..] else { panic!("{content:?}") };
        let inner = [0x15, 0, 0, 0xc0, 0xbf]; // field 2 of four bytes: -1.5
        let expected = [
            (1, Field::Fixed(&0.5f64.to_le_bytes())),
            (2, Field::Varint(300)),
            (5, Field::Bytes(&inner)),
            (3, Field::Bytes(b"text")),
        ];
        assert_eq!(fields(one).expect("a message"), expected);
        assert_eq!(
            fields(&inner).expect("a message"),
            [(2, Field::Fixed(&(-1.5f32).to_le_bytes()))]
        );
    }

    /// Whatever a file holds, reading it ends, and takes no record that is not whole.
    #[test]
    fn torn_and_damaged_records_end_a_file() {
        let bytes = [sample(), sample()].concat();
        let half = bytes.len() / 2;
        for cut in 0..bytes.len() {
            assert_eq!(records(&bytes[..cut]).count(), cut / half, "cut at byte {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(records(&bytes).count(), bit / 8 / half, "bit {bit} flipped");
        }
        assert_eq!(fields(&[0xff; 11]), None);
        assert_eq!(fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), None);
        assert_eq!(fields(&[0x0b]), None);
    }
}

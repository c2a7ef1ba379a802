//! The tensors of the flat parameter buffer, for updates that take a norm per tensor: tables for
//! the kernels, slices for the processor.

use std::ops::Range;

use super::{ShapeError, WORKGROUP};

/// Elements that one workgroup, or one task of the native versions, takes: 16 `vec4`s an
/// invocation.
pub(super) const CHUNK: usize = WORKGROUP as usize * 4 * 16;

/// A tensor of the flat buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First element; a multiple of 4.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Neither decayed nor given a rate of its own: BatchNorm's parameters, biases, the log-scale.
    pub plain: bool,
}

/// Part of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Its first element in the flat buffer.
    pub(super) first: usize,
    /// Element after the last.
    pub(super) end: usize,
    /// Index of its segment.
    pub(super) segment: usize,
}

/// Checks that segments lie in order, apart and within `len` elements.
pub(super) fn check(op: &'static str, segments: &[Segment], len: usize) -> Result<(), ShapeError> {
    let mut end = 0;
    for (i, s) in segments.iter().enumerate() {
        if s.len == 0 || s.offset < end || !s.offset.is_multiple_of(4) || s.offset + s.len > len {
            let message = format!(
                "segment {i} is {s:?}, expected elements from {end} on, at a multiple of 4, within \
                 {len}"
            );
            return Err(ShapeError::new(op, message));
        }
        end = s.offset + s.len;
    }
    if segments.is_empty() { Err(ShapeError::new(op, "no segments")) } else { Ok(()) }
}

/// The segments within these elements, counted from their first.
pub(super) fn part(segments: &[Segment], elements: &Range<usize>) -> Vec<Segment> {
    let within = segments.iter().filter(|s| elements.contains(&s.offset));
    within.map(|s| Segment { offset: s.offset - elements.start, ..*s }).collect()
}

/// The chunks of every segment, in order.
pub(super) fn chunks(segments: &[Segment]) -> Vec<Chunk> {
    let chunk = |s: &Segment, segment, first| Chunk {
        first,
        end: (first + CHUNK).min(s.offset + s.len),
        segment,
    };
    let of = |(i, s): (usize, &Segment)| {
        (s.offset..s.offset + s.len)
            .step_by(CHUNK)
            .map(|first| chunk(s, i, first))
            .collect::<Vec<_>>()
    };
    segments.iter().enumerate().flat_map(of).collect()
}

/// `(first vec4, end element, segment, plain)` of each chunk: the table that `lib/segments.wgsl`
/// reads.
pub(super) fn chunk_table(segments: &[Segment]) -> Vec<u32> {
    chunks(segments)
        .iter()
        .flat_map(|c| {
            [c.first / 4, c.end, c.segment, usize::from(segments[c.segment].plain)].map(word)
        })
        .collect()
}

/// `(first chunk, chunk after the last, plain, 0)` of each segment: the table that
/// `trust_ratio.wgsl` reads.
pub(super) fn segment_table(segments: &[Segment]) -> Vec<u32> {
    let mut first = 0;
    let row = |s: &Segment| {
        let end = first + s.len.div_ceil(CHUNK);
        [std::mem::replace(&mut first, end), end, usize::from(s.plain), 0].map(word)
    };
    segments.iter().flat_map(row).collect()
}

fn word(x: usize) -> u32 {
    u32::try_from(x).unwrap_or_else(|_| panic!("{x} exceeds u32; run::fit refuses such tensors"))
}

/// The part of `flat` that each chunk is.
pub(super) fn pieces<'a>(chunks: &[Chunk], flat: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let (mut rest, mut at) = (flat, 0);
    let piece = |c: &Chunk| {
        let (piece, tail) = std::mem::take(&mut rest)[c.first - at..].split_at_mut(c.end - c.first);
        (rest, at) = (tail, c.end);
        piece
    };
    chunks.iter().map(piece).collect()
}

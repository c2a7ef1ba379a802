//! Assigns values to whole buffers. Ranges of one arena would not do: WebGPU tracks usage per
//! buffer and dispatch, so a buffer cannot be read and written by one dispatch even at different
//! offsets.

use super::Buffer;

/// A value that needs a buffer from step `first` to step `last`, both inclusive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) bytes: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Greedy by size: the largest value first, into the first buffer whose tenants' lives it does not
/// touch. Returns the buffers and the buffer of each value. With `alias` false every value gets a
/// buffer of its own.
pub(super) fn assign(lives: &[Life], alias: bool) -> (Vec<Buffer>, Vec<usize>) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].bytes), lives[i].first, i));
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut tenants: Vec<Vec<usize>> = Vec::new();
    let mut place = vec![0; lives.len()];
    for i in order {
        let free = |t: &Vec<usize>| {
            t.iter().all(|&j| lives[j].last < lives[i].first || lives[i].last < lives[j].first)
        };
        let slot = tenants.iter().position(|t| alias && free(t)).unwrap_or_else(|| {
            buffers.push(Buffer { bytes: lives[i].bytes.max(16).next_multiple_of(16) });
            tenants.push(Vec::new());
            tenants.len() - 1
        });
        tenants[slot].push(i);
        place[i] = slot;
    }
    (buffers, place)
}

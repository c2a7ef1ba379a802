//! A step as a graph: which kernels wait for which.
//!
//! A plan is a list, and a list is a chain. Here a kernel waits for those alone that write what it
//! reads, or that read or write what it writes, so that others may run beside it: a weight gradient
//! beside the input gradient of the same layer, the branches of a block beside each other. Two
//! values that share memory are one place, so the plan's sharing of memory is kept.

use std::ops::Range;

use super::driver::Address;

/// What a kernel touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Bytes that it reads and does not write.
    pub(super) reads: Vec<Range<Address>>,
    /// Bytes that it writes, or reads and writes.
    pub(super) writes: Vec<Range<Address>>,
}

impl Touched {
    /// Whether the order of two kernels matters.
    fn meets(&self, other: &Self) -> bool {
        let overlap = |a: &[Range<Address>], b: &[Range<Address>]| {
            a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
        };
        overlap(&self.writes, &other.writes)
            || overlap(&self.writes, &other.reads)
            || overlap(&self.reads, &other.writes)
    }
}

/// For each kernel of a list the earlier ones that it waits for; those that these wait for
/// themselves are left out.
pub(super) fn dependencies(kernels: &[Touched]) -> Vec<Vec<usize>> {
    let words = kernels.len().div_ceil(64);
    // Everything that a kernel comes after, as bits.
    let mut before: Vec<Vec<u64>> = Vec::with_capacity(kernels.len());
    let mut all = Vec::with_capacity(kernels.len());
    for (i, kernel) in kernels.iter().enumerate() {
        let (mut known, mut waits) = (vec![0u64; words], Vec::new());
        for j in (0..i).rev() {
            if known[j / 64] >> (j % 64) & 1 == 0 && kernel.meets(&kernels[j]) {
                waits.push(j);
                known[j / 64] |= 1 << (j % 64);
                for (known, more) in known.iter_mut().zip(&before[j]) {
                    *known |= more;
                }
            }
        }
        before.push(known);
        all.push(waits);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(reads: &[Address], writes: &[Address]) -> Touched {
        let ranges = |at: &[Address]| at.iter().map(|at| 16 * at..16 * at + 16).collect();
        Touched { reads: ranges(reads), writes: ranges(writes) }
    }

    #[test]
    fn kernels_wait_for_what_they_meet_and_nothing_else() {
        let kernels = [
            kernel(&[0], &[1]), // y = f(x)
            kernel(&[1], &[2]), // reads it
            kernel(&[1], &[3]), // reads it too
            kernel(&[2, 3], &[4]),
            kernel(&[1, 4], &[5]), // after 0 through 3
            kernel(&[9], &[1]),    // takes its memory once all have read it
            kernel(&[9], &[8]),    // meets none
            kernel(&[], &[8]),     // writes the same
        ];
        let want: [&[usize]; 8] = [&[], &[0], &[0], &[2, 1], &[3], &[4], &[], &[6]];
        assert_eq!(dependencies(&kernels), want);
    }

    #[test]
    fn parts_of_a_buffer_are_apart() {
        let part = |range: Range<Address>| Touched { reads: vec![], writes: vec![range] };
        let kernels = [part(0..32), part(32..64), part(16..17), part(31..33)];
        let want: [&[usize]; 4] = [&[], &[], &[0], &[1, 0]];
        assert_eq!(dependencies(&kernels), want);
    }

    #[test]
    fn more_kernels_than_a_word_has_bits() {
        let mut kernels: Vec<Touched> = (0..200).map(|i| kernel(&[], &[i])).collect();
        kernels.push(kernel(&[3, 199], &[300]));
        kernels.push(kernel(&[3, 300], &[301]));
        let all = dependencies(&kernels);
        assert!(all[..200].iter().all(Vec::is_empty));
        assert_eq!((&all[200][..], &all[201][..]), (&[199, 3][..], &[200][..]));
    }
}

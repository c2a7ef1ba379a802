//! From a seed to the train / validation split and to the order of every epoch.
//!
//! Every draw is one word of Philox4x32-10, so that a few lines of Python can replay it:
//!
//! ```text
//! key(stream) = (seed & 0xffffffff, seed >> 32 ^ (stream * 0x9e3779b9 & 0xffffffff))
//! draw(stream, epoch, i) = philox4x32_10(key = key(stream), counter = (epoch, 0, i, 0))[0]
//!
//! def permutation(n, stream, epoch):         # Fisher-Yates from the end
//!     p = list(range(n))
//!     for i in range(n - 1, 0, -1):
//!         j = draw(stream, epoch, i) * (i + 1) >> 32
//!         p[i], p[j] = p[j], p[i]
//!     return p
//!
//! split:    p = permutation(n, SPLIT, 0); train = p[:n - n_val][:limit_train]; val = p[n - n_val:]
//! epoch e:  q = permutation(len(train), ORDER, e);
//!           batch b holds train[q[b * batch]] .. train[q[(b + 1) * batch - 1]]
//! ```
//!
//! with `SPLIT` = 3 and `ORDER` = 2 ([`Stream`]). `draw * (i + 1) >> 32` is biased by at most
//! `n / 2^32`, which no training run can see. A last partial batch is dropped.

use std::sync::Arc;

use super::{DataError, Dataset};
use crate::rng::{Philox, Stream};

/// Some images of a data set, in an order of their own.
#[derive(Clone)]
pub struct Subset {
    /// The whole data set.
    pub dataset: Arc<dyn Dataset>,
    /// Which of its images belong to the subset.
    pub indices: Arc<[u32]>,
}

impl Subset {
    /// All images of a data set in file order.
    pub fn full(dataset: Arc<dyn Dataset>) -> Self {
        let indices = iota(dataset.len()).into();
        Self { dataset, indices }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// Indices of the training and of the held-out images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indices {
    /// Images to train on.
    pub train: Vec<u32>,
    /// Images held out.
    pub val: Vec<u32>,
}

/// Splits `n` images: the seed permutes them, the last `n_val` are held out, and the first `limit`
/// of the others stay.
///
/// With `shuffle == false` the training images are the first `limit` in file order and none are
/// held out.
///
/// # Errors
/// [`DataError::TooFew`] if `n_val` leaves no image to train on, or `limit` is more than is left.
pub fn split(
    n: usize,
    n_val: usize,
    seed: u64,
    limit: Option<usize>,
    shuffle: bool,
) -> Result<Indices, DataError> {
    let n_val = if shuffle { n_val } else { 0 };
    if n_val > 0 && n_val >= n {
        let available = n.saturating_sub(1);
        return Err(DataError::TooFew { what: "the validation split of", asked: n_val, available });
    }
    let mut train = if shuffle { permutation(n, seed, Stream::Split, 0) } else { iota(n) };
    let val = train.split_off(n - n_val);
    if let Some(limit) = limit {
        if limit > train.len() {
            return Err(DataError::TooFew {
                what: "--limit-train",
                asked: limit,
                available: train.len(),
            });
        }
        train.truncate(limit);
    }
    Ok(Indices { train, val })
}

/// Which positions of a subset make up the batch of a step, for every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    seed: u64,
    len: usize,
    batch: usize,
    shuffle: bool,
}

impl Order {
    /// The order of `len` images in batches of `batch`; without `shuffle` every epoch is in the
    /// subset's own order.
    ///
    /// # Errors
    /// [`DataError::BatchTooLarge`] if not even one batch fits, [`DataError::BatchZero`].
    pub fn new(len: usize, batch: usize, seed: u64, shuffle: bool) -> Result<Self, DataError> {
        if batch == 0 {
            return Err(DataError::BatchZero);
        }
        if batch > len {
            return Err(DataError::BatchTooLarge { batch, available: len });
        }
        Ok(Self { seed, len, batch, shuffle })
    }

    /// Images in the subset that the order is for.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an order holds at least one batch, so it is never empty"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Images in a batch.
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// Whole batches in an epoch, at least 1.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.len / self.batch) as u64
    }

    /// Epoch of a step, and the place of its first image in that epoch's permutation.
    ///
    /// # Panics
    /// If the epoch is above `u32::MAX`.
    pub fn locate(&self, step: u64) -> (u32, usize) {
        let per_epoch = self.steps_per_epoch();
        let epoch = u32::try_from(step / per_epoch).expect("no run has 2^32 epochs");
        (epoch, (step % per_epoch) as usize * self.batch)
    }

    /// The positions of one epoch in the order they are used, `len` of them.
    pub fn epoch(&self, epoch: u32) -> Vec<u32> {
        if self.shuffle {
            permutation(self.len, self.seed, Stream::Order, epoch)
        } else {
            iota(self.len)
        }
    }
}

/// A permutation of `0..n`; see the module for the draws.
///
/// # Panics
/// If `n` is above `u32::MAX`.
pub fn permutation(n: usize, seed: u64, stream: Stream, epoch: u32) -> Vec<u32> {
    let rng = Philox::new(seed, stream);
    let mut p = iota(n);
    for i in (1..n).rev() {
        let draw = rng.words(epoch, 0, i as u32)[0];
        let j = (u64::from(draw) * (i as u64 + 1)) >> 32;
        p.swap(i, j as usize);
    }
    p
}

fn iota(n: usize) -> Vec<u32> {
    let n = u32::try_from(n).expect("a data set has fewer than 2^32 images");
    (0..n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_holds_every_index_once() {
        for n in [0, 1, 2, 7, 1000] {
            let mut p = permutation(n, 5, Stream::Order, 3);
            p.sort_unstable();
            assert_eq!(p, iota(n));
        }
    }

    #[test]
    fn permutation_reaches_every_place() {
        // Each of 5 items lands in each of 5 places about 400 times in 2,000 epochs; 5 sigma is 90.
        let mut hits = [[0_i32; 5]; 5];
        for epoch in 0..2000 {
            for (place, item) in permutation(5, 9, Stream::Order, epoch).into_iter().enumerate() {
                hits[place][item as usize] += 1;
            }
        }
        assert!(hits.iter().flatten().all(|&n| (n - 400).abs() < 90), "{hits:?}");
    }

    #[test]
    fn split_limits() {
        let all = split(100, 10, 1, None, true).unwrap();
        assert_eq!((all.train.len(), all.val.len()), (90, 10));
        let few = split(100, 10, 1, Some(7), true).unwrap();
        assert_eq!((&few.train[..], &few.val), (&all.train[..7], &all.val));
        let files = split(100, 10, 1, Some(7), false).unwrap();
        assert_eq!(files, Indices { train: iota(7), val: vec![] });
        assert!(matches!(
            split(100, 10, 1, Some(91), true),
            Err(DataError::TooFew { asked: 91, available: 90, .. })
        ));
        assert!(matches!(split(100, 100, 1, None, true), Err(DataError::TooFew { .. })));
    }

    #[test]
    fn order_drops_the_partial_batch() {
        let order = Order::new(10, 3, 0, true).unwrap();
        assert_eq!(order.steps_per_epoch(), 3);
        assert_eq!(order.locate(0), (0, 0));
        assert_eq!(order.locate(5), (1, 6));
        assert_ne!(order.epoch(0), order.epoch(1));
        let error = Order::new(10, 11, 0, true).unwrap_err();
        assert_eq!(error.to_string(), "batch size 11 is larger than the set of 10 images");
        assert_eq!(error.hint().as_deref(), Some("`--batch-size 10` is the largest that fits"));
    }
}

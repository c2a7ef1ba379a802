//! Weighted k-nearest-neighbour classification of features, as Instance Discrimination (Wu et al.,
//! 2018) does it.
//!
//! Features are scaled to unit length; a test row asks its `k` most similar training rows, and each
//! votes for its class with `exp(cosine / temperature)`. Of equally similar rows the one with the
//! lower index is nearer, of classes with equal votes the lower wins.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::features::Features;
use crate::run::RunError;

/// Neighbours and temperatures that are reported.
pub const KNN: [(usize, f32); 4] = [(20, 0.07), (20, 0.1), (200, 0.07), (200, 0.1)];

/// Why features cannot be classified.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KnnError {
    /// More neighbours than there are, or none.
    #[error("k = {k} neighbours of {rows} training images")]
    Neighbours {
        /// Neighbours asked for.
        k: usize,
        /// How many training rows there are.
        rows: usize,
    },
    /// The two sets come from different networks.
    #[error("training features have {train} values, test features {test}")]
    Dim {
        /// Length of a training row.
        train: usize,
        /// Length of a test row.
        test: usize,
    },
    /// There is nothing to classify.
    #[error("no test images")]
    Empty,
    /// A label is no class.
    #[error("{split} image {row} has label {label}, expected 0 to {}", classes - 1)]
    Label {
        /// "training" or "test".
        split: &'static str,
        /// Which row it is.
        row: usize,
        /// The label that it has.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A feature is NaN or infinite.
    #[error("the features of {split} image {row} are not finite")]
    NotFinite {
        /// "training" or "test".
        split: &'static str,
        /// Which row it is.
        row: usize,
    },
    /// A temperature is not above 0.
    #[error("temperature {temperature}, expected a number above 0")]
    Temperature {
        /// What was asked for.
        temperature: f32,
    },
}

/// Test rows of one task, and training rows that stay in the second-level cache meanwhile (192 KiB
/// at 512 values).
const TEST_BLOCK: usize = 128;
const TRAIN_BLOCK: usize = 96;
/// Rows per pass of the kernel: 4 x 3 running sums and their 7 operands, three of which can be read
/// from memory, fill the 16 registers of AVX2.
const TILE: (usize, usize) = (4, 3);
/// Rows are padded with zeros to a multiple of this many values, the longest vector (AVX-512).
const PAD: usize = 16;

/// kNN accuracies for every (k, temperature) of [`KNN`] that the training set is large enough for.
///
/// # Errors
/// If data or device fail.
pub fn knn_table(
    train: &Features,
    test: &Features,
    classes: usize,
) -> Result<Vec<(usize, f32, f32)>, RunError> {
    let ks: Vec<_> = KNN.into_iter().filter(|(k, _)| *k <= train.labels.len()).collect();
    let accuracies = knn(train, test, &ks, classes)?;
    Ok(ks.into_iter().zip(accuracies).map(|((k, t), a)| (k, t, a)).collect())
}

/// What [`knn_table`] leaves out with so many training images, as a sentence.
pub fn knn_left_out(images: usize) -> Option<String> {
    let mut large: Vec<usize> = KNN.into_iter().map(|(k, _)| k).filter(|k| *k > images).collect();
    large.dedup();
    let ks: Vec<String> = large.iter().map(ToString::to_string).collect();
    (!ks.is_empty()).then(|| {
        format!("no kNN with k = {}: there are {images} training images", ks.join(" and "))
    })
}

/// The accuracy, a fraction, for each pair of `k` and temperature.
///
/// # Errors
/// Any [`KnnError`].
///
/// # Panics
/// If the data of a set is not `dim` values a label, or `classes` is 0.
pub fn knn(
    train: &Features,
    test: &Features,
    ks: &[(usize, f32)],
    classes: usize,
) -> Result<Vec<f32>, KnnError> {
    assert!(classes > 0, "at least one class");
    for &(k, temperature) in ks {
        if k == 0 || k > train.len() {
            return Err(KnnError::Neighbours { k, rows: train.len() });
        }
        if temperature.is_nan() || temperature <= 0.0 {
            return Err(KnnError::Temperature { temperature });
        }
    }
    if test.is_empty() {
        return Err(KnnError::Empty);
    }
    if train.dim != test.dim {
        return Err(KnnError::Dim { train: train.dim, test: test.dim });
    }
    let most = ks.iter().map(|(k, _)| *k).max().unwrap_or(0);
    let train_rows = Unit::new(train, "training", classes)?;
    let test_rows = Unit::new(test, "test", classes)?;
    let arch = Arch::new();

    let blocks: Vec<usize> = (0..test.len()).step_by(TEST_BLOCK).collect();
    let count = |first: usize| {
        let rows = first..(first + TEST_BLOCK).min(test.len());
        let mut nearest: Vec<BinaryHeap<Neighbour>> =
            rows.clone().map(|_| BinaryHeap::with_capacity(most + 1)).collect();
        let mut similarity = vec![0.0; TEST_BLOCK.next_multiple_of(TILE.0) * TRAIN_BLOCK];
        for start in (0..train.len()).step_by(TRAIN_BLOCK) {
            let end = (start + TRAIN_BLOCK).min(train.len());
            let (left, right) = (
                test_rows.block(rows.start, rows.end, TILE.0),
                train_rows.block(start, end, TILE.1),
            );
            arch.dispatch(Dots { left, right, stride: train_rows.stride, out: &mut similarity });
            for (heap, row) in nearest.iter_mut().zip(similarity.chunks_exact(TRAIN_BLOCK)) {
                keep_nearest(heap, most, start, &row[..end - start]);
            }
        }
        let mut correct = vec![0u64; ks.len()];
        for (heap, row) in nearest.into_iter().zip(rows) {
            let neighbours = heap.into_sorted_vec();
            for (&(k, temperature), correct) in ks.iter().zip(&mut correct) {
                *correct += u64::from(
                    vote(&neighbours[..k], temperature, &train.labels, classes) == test.labels[row],
                );
            }
        }
        correct
    };
    let add =
        |left: Vec<u64>, right: Vec<u64>| left.iter().zip(&right).map(|(l, r)| l + r).collect();
    let correct = blocks.into_par_iter().map(count).reduce(|| vec![0; ks.len()], add);
    Ok(correct.into_iter().map(|correct| (correct as f64 / test.len() as f64) as f32).collect())
}

/// The `k` training rows nearest to one test row, the nearest first; fewer where there are fewer.
///
/// # Errors
/// [`KnnError::Dim`], [`KnnError::NotFinite`].
pub fn nearest(train: &Features, test: &Features, k: usize) -> Result<Vec<Neighbour>, KnnError> {
    if train.dim != test.dim {
        return Err(KnnError::Dim { train: train.dim, test: test.dim });
    }
    let any = u32::MAX as usize;
    let (rows, row) = (Unit::new(train, "training", any)?, Unit::new(test, "test", any)?);
    let row = row.block(0, 1, 1);
    let similarity = |other: &[f32]| row.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
    let mut heap = BinaryHeap::with_capacity(k + 1);
    for (i, other) in rows.data.chunks_exact(rows.stride).take(train.len()).enumerate() {
        keep_nearest(&mut heap, k, i, &[similarity(other)]);
    }
    Ok(heap.into_sorted_vec())
}

/// A training row as a test row sees it; the greatest is the farthest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Cosine of the two rows.
    pub similarity: f32,
    /// Which training row it is.
    pub row: usize,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Adds rows `start..` to the `most` nearest so far. Rows come in ascending order, so among equals
/// the first stay.
fn keep_nearest(heap: &mut BinaryHeap<Neighbour>, most: usize, start: usize, similarity: &[f32]) {
    let mut row = start;
    let mut rest = similarity;
    while heap.len() < most && !rest.is_empty() {
        heap.push(Neighbour { similarity: rest[0] + 0.0, row });
        (row, rest) = (row + 1, &rest[1..]);
    }
    let Some(mut farthest) = heap.peek().map(|n| n.similarity) else { return };
    for &similarity in rest {
        if similarity > farthest {
            heap.pop();
            heap.push(Neighbour { similarity: similarity + 0.0, row });
            farthest = heap.peek().map_or(farthest, |n| n.similarity);
        }
        row += 1;
    }
}

fn vote(neighbours: &[Neighbour], temperature: f32, labels: &[u32], classes: usize) -> u32 {
    let mut votes = vec![0.0f64; classes];
    let nearest = neighbours[0].similarity;
    for neighbour in neighbours {
        // Weights are relative to the nearest row's: a small temperature would overflow otherwise,
        // and the order of the votes is the same.
        votes[labels[neighbour.row] as usize] +=
            (f64::from(neighbour.similarity - nearest) / f64::from(temperature)).exp();
    }
    let mut best = 0;
    for (class, vote) in votes.iter().enumerate() {
        if *vote > votes[best] {
            best = class;
        }
    }
    best as u32
}

/// Rows of unit length, padded with zeros; a few rows of zeros at the end, so that tiles may reach
/// over it.
struct Unit {
    stride: usize,
    data: Vec<f32>,
}

impl Unit {
    fn new(features: &Features, split: &'static str, classes: usize) -> Result<Self, KnnError> {
        let (dim, rows) = (features.dim, features.len());
        assert!(
            features.data.len() == dim * rows,
            "{} values for {rows} rows of {dim}",
            features.data.len()
        );
        if let Some(row) = features.labels.iter().position(|label| *label as usize >= classes) {
            return Err(KnnError::Label { split, row, label: features.labels[row], classes });
        }
        let stride = dim.next_multiple_of(PAD).max(PAD);
        let mut data = vec![0.0; stride * (rows + TILE.0.max(TILE.1))];
        for (row, (unit, values)) in
            data.chunks_exact_mut(stride).zip(features.data.chunks_exact(dim.max(1))).enumerate()
        {
            let length = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            if !length.is_finite() {
                return Err(KnnError::NotFinite { split, row });
            }
            // A row of zeros has no direction. It stays zero, and so is equally near to all rows.
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            unit.iter_mut()
                .zip(values)
                .for_each(|(unit, value)| *unit = (f64::from(*value) * scale) as f32);
        }
        Ok(Self { stride, data })
    }

    /// Rows `start..end`, and as many more as fill the last tile.
    fn block(&self, start: usize, end: usize, tile: usize) -> &[f32] {
        &self.data[start * self.stride..][..(end - start).next_multiple_of(tile) * self.stride]
    }
}

/// All dot products of two blocks of rows: `out[l * TRAIN_BLOCK + r] = left[l] . right[r]`.
struct Dots<'a> {
    left: &'a [f32],
    right: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, right, stride, out } = self;
        for (l, left) in left.chunks_exact(TILE.0 * stride).enumerate() {
            let a: [&[S::f32s]; TILE.0] =
                std::array::from_fn(|i| S::as_simd_f32s(&left[i * stride..][..stride]).0);
            for (r, right) in right.chunks_exact(TILE.1 * stride).enumerate() {
                let b: [&[S::f32s]; TILE.1] =
                    std::array::from_fn(|j| S::as_simd_f32s(&right[j * stride..][..stride]).0);
                let mut sums = [[simd.splat_f32s(0.0); TILE.1]; TILE.0];
                // All slices have one length, so that the compiler need not check each access.
                let vectors = a[0].len();
                let (a, b) = (a.map(|row| &row[..vectors]), b.map(|row| &row[..vectors]));
                for v in 0..vectors {
                    for (sums, a) in sums.iter_mut().zip(&a) {
                        for (sum, b) in sums.iter_mut().zip(&b) {
                            *sum = simd.mul_add_e_f32s(a[v], b[v], *sum);
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    let out = &mut out[(l * TILE.0 + i) * TRAIN_BLOCK + r * TILE.1..][..TILE.1];
                    out.iter_mut()
                        .zip(sums)
                        .for_each(|(out, sum)| *out = simd.reduce_sum_f32s(*sum));
                }
            }
        }
    }
}

const _: () =
    assert!(TRAIN_BLOCK.is_multiple_of(TILE.1), "a block of training rows is whole tiles");

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters around one direction a class; the noise decides how hard it is.
    fn features(rows: usize, dim: usize, classes: u32, noise: f32, seed: u32) -> Features {
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let labels: Vec<u32> =
            (0..rows as u32).map(|row| row.wrapping_mul(2_654_435_761) % classes).collect();
        let data = labels.iter().flat_map(|label| {
            (0..dim)
                .map(|d| noise * draw() + ((d as u32 * 7 + label * 13) % 5) as f32 - 2.0)
                .collect::<Vec<_>>()
        });
        Features { dim, data: data.collect(), labels: labels.clone() }
    }

    fn naive(
        train: &Features,
        test: &Features,
        k: usize,
        temperature: f64,
        classes: usize,
    ) -> Vec<f64> {
        let unit = |f: &Features, row: usize| {
            let values: Vec<f64> =
                f.data[row * f.dim..][..f.dim].iter().map(|v| f64::from(*v)).collect();
            let length = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            values
                .into_iter()
                .map(|v| if length > 0.0 { v / length } else { 0.0 })
                .collect::<Vec<_>>()
        };
        let train_units: Vec<_> = (0..train.len()).map(|row| unit(train, row)).collect();
        let hit = |row| {
            let unit = unit(test, row);
            let dot = |other: &Vec<f64>| unit.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
            let mut near: Vec<(f64, usize)> = train_units.iter().map(dot).zip(0..).collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut votes = vec![0.0; classes];
            near[..k]
                .iter()
                .for_each(|(s, row)| votes[train.labels[*row] as usize] += (s / temperature).exp());
            let best = (0..classes)
                .rev()
                .max_by(|a, b| f64::total_cmp(&votes[*a], &votes[*b]))
                .expect("a class");
            f64::from(best as u32 == test.labels[row])
        };
        (0..test.len()).map(hit).collect()
    }

    /// The nearest of a row that is in the set itself is that row; the others follow by cosine.
    #[test]
    fn the_nearest_come_first() {
        let train = features(50, 17, 5, 3.0, 1);
        let row = Features { dim: 17, data: train.data[17 * 23..][..17].into(), labels: vec![0] };
        let near = nearest(&train, &row, 6).expect("neighbours");
        assert_eq!((near.len(), near[0].row), (6, 23));
        assert!((near[0].similarity - 1.0).abs() < 1e-6, "{near:?}");
        assert!(near.is_sorted_by(|a, b| a.similarity >= b.similarity), "{near:?}");
        assert_eq!(nearest(&train, &row, 80).expect("all").len(), 50, "there are no more");
        let other = Features { dim: 16, data: vec![0.0; 16], labels: vec![0] };
        assert_eq!(nearest(&train, &other, 1), Err(KnnError::Dim { train: 17, test: 16 }));
    }

    #[test]
    fn agrees_with_f64() {
        for (rows, tests, dim, noise) in
            [(1, 1, 1, 1.0), (95, 129, 17, 3.0), (97, 5, 64, 6.0), (500, 300, 40, 8.0)]
        {
            let train = features(rows, dim, 5, noise, 1);
            let test = features(tests, dim, 5, noise, 2);
            let ks = [(1, 0.07), (20.min(rows), 0.07), (rows, 0.1)];
            let got = knn(&train, &test, &ks, 5).expect("accuracies");
            for ((k, temperature), got) in ks.into_iter().zip(got) {
                let hits: f64 = naive(&train, &test, k, f64::from(temperature), 5).iter().sum();
                assert!(
                    (f64::from(got) - hits / tests as f64).abs() < 1e-6,
                    "{rows} {tests} {dim} k {k}: {got}, {hits} of {tests}"
                );
            }
        }
    }

    #[test]
    fn equals_go_to_the_lower_index() {
        // Every training row is the same direction (also at another length), so only the order
        // decides.
        let train = Features {
            dim: 2,
            data: vec![3.0, 4.0, 6.0, 8.0, 3.0, 4.0, 0.0, 0.0],
            labels: vec![2, 1, 1, 0],
        };
        let test = Features { dim: 2, data: vec![3.0, 4.0], labels: vec![2] };
        assert_eq!(knn(&train, &test, &[(1, 0.1), (2, 0.1), (3, 0.1)], 3), Ok(vec![1.0, 0.0, 0.0]));
        // A row without a direction has the same similarity to all; classes tie, the lowest wins.
        let test = Features { dim: 2, data: vec![0.0, 0.0], labels: vec![0] };
        assert_eq!(knn(&train, &test, &[(1, 0.1), (4, 0.1)], 3), Ok(vec![0.0, 0.0]));
    }

    #[test]
    fn mistakes_are_told_with_numbers() {
        let good = features(10, 4, 2, 1.0, 1);
        let told = |train: &Features, test: &Features, k, t| {
            knn(train, test, &[(k, t)], 2).expect_err("a mistake").to_string()
        };
        assert_eq!(told(&good, &good, 11, 0.1), "k = 11 neighbours of 10 training images");
        assert_eq!(told(&good, &good, 0, 0.1), "k = 0 neighbours of 10 training images");
        assert_eq!(told(&good, &good, 1, f32::NAN), "temperature NaN, expected a number above 0");
        assert_eq!(
            told(&good, &features(3, 5, 2, 1.0, 1), 1, 0.1),
            "training features have 4 values, test features 5"
        );
        assert_eq!(told(&good, &features(0, 4, 2, 1.0, 1), 1, 0.1), "no test images");
        let mut bad = good.clone();
        bad.data[9] = f32::INFINITY;
        assert_eq!(told(&good, &bad, 1, 0.1), "the features of test image 2 are not finite");
        bad.labels[3] = 2;
        assert_eq!(told(&bad, &good, 1, 0.1), "training image 3 has label 2, expected 0 to 1");
    }
}

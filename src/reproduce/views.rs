//! Figure 5: cosine similarity of what an encoder makes of several views of several images.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::{self, DeviceSpec};
use crate::eval::features::Evaluator;
use crate::eval::grid;
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::settings::RunConfig;
use crate::run::trained::{Trained, model_config, open_data, write_whole};

/// Images, the first of the test set.
pub const IMAGES: usize = 8;
/// Views of each.
pub const VIEWS: usize = 8;

/// Similarities of one kind of vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// `h` (features), `mu` or `z`.
    pub of: String,
    /// Cosine of every pair of views, `[IMAGES * VIEWS, IMAGES * VIEWS]`, the views of an image
    /// side by side.
    pub matrix: Vec<f64>,
    /// Mean over pairs of different views of one image.
    pub within: f64,
    /// Mean over pairs of views of different images.
    pub across: f64,
}

impl Similarity {
    /// From a vector for each view of each image, all of one length.
    ///
    /// # Panics
    /// If there are fewer than two images or two views.
    pub fn new(of: &str, vectors: &[Vec<Vec<f32>>]) -> Self {
        let views = vectors[0].len();
        assert!(vectors.len() > 1 && views > 1, "{} images of {views} views", vectors.len());
        let rows: Vec<&[f32]> = vectors.iter().flatten().map(Vec::as_slice).collect();
        let dot = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        // PyTorch's: a vector of zeros is similar to nothing.
        let norms: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt().max(1e-8)).collect();
        let n = rows.len();
        let matrix: Vec<f64> = (0..n * n)
            .map(|i| dot(rows[i / n], rows[i % n]) / (norms[i / n] * norms[i % n]))
            .collect();
        let mean = |same: bool| {
            let pairs =
                (0..n * n).filter(|i| i / n != i % n && (i / n / views == i % n / views) == same);
            let (sum, count) =
                pairs.fold((0.0, 0.0), |(sum, count), i| (sum + matrix[i], count + 1.0));
            sum / count
        };
        Self { of: of.to_owned(), within: mean(true), across: mean(false), matrix }
    }

    /// By how much views of one image are more alike than views of different ones.
    pub fn gap(&self) -> f64 {
        self.within - self.across
    }
}

/// File of an image's views in a run folder: the original and its views, three in a row.
pub fn picture(image: usize) -> String {
    format!("images/views-{image}.png")
}

/// Name of the file with the similarities in a run folder.
const FILE: &str = "views.json";

/// Measures the similarities of a run and writes them and the views into its folder.
///
/// # Errors
/// If data or device fail, or a file cannot be written.
pub fn measure(config: &RunConfig, choice: &DeviceSpec, out: &Path) -> Result<(), RunError> {
    let splits = open_data(config)?;
    let trained = Trained::open(out)?;
    let (session, _) = device::open(choice)?;
    let mut evaluator = Evaluator::new(
        session,
        model_config(config, &splits),
        config.protocol(),
        splits.labelled_train.dataset.classes().len(),
        Some(&trained),
        config.seed,
    )?;
    let step = StepUniforms::evaluation(config.seed, 0);
    let embedded = evaluator.embed_views(&splits.test, IMAGES, VIEWS, &step)?;
    for (i, (original, views)) in embedded.originals.iter().zip(&embedded.views).enumerate() {
        let all: Vec<&[u8]> = std::iter::once(original).chain(views).map(Vec::as_slice).collect();
        let rows: Vec<Vec<&[u8]>> = all.chunks(3).map(<[_]>::to_vec).collect();
        write_whole(&out.join(picture(i)), &grid::grid_png(&rows, config.image_size, 1))?;
    }
    let found: Vec<Similarity> =
        embedded.vectors.iter().map(|(name, vectors)| Similarity::new(name, vectors)).collect();
    let text = serde_json::to_string(&found)
        .map_err(|e| RunError::config(format!("the similarities cannot be written: {e}"), None))?;
    write_whole(&out.join(FILE), text.as_bytes())
}

/// The similarities of a run folder; `None` if there are none that are whole.
pub fn read(out: &Path) -> Option<Vec<Similarity>> {
    let bytes = std::fs::read(out.join(FILE)).ok()?;
    let whole =
        |found: &Vec<Similarity>| found.iter().all(|s| s.matrix.len() == (IMAGES * VIEWS).pow(2));
    serde_json::from_slice(&bytes).ok().filter(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_of_known_vectors() {
        // Two images of two views: one pair parallel, the other at 60 degrees; across, right angles
        // and their like.
        let (a, b) = (vec![2.0, 0.0, 0.0], vec![0.0, 1.0, 0.0]);
        let c = vec![0.0, 0.5, 0.75f32.sqrt()];
        let s = Similarity::new("z", &[vec![a.clone(), a], vec![b, c]]);
        assert!((s.within - 0.75).abs() < 1e-7 && s.across.abs() < 1e-12, "{s:?}");
        assert!((s.gap() - 0.75).abs() < 1e-7);
        assert!((0..4).all(|i| (s.matrix[i * 5] - 1.0).abs() < 1e-7), "{:?}", s.matrix);
        assert!(
            (s.matrix[2 * 4 + 3] - 0.5).abs() < 1e-7 && s.matrix[2 * 4 + 3] == s.matrix[3 * 4 + 2]
        );
        let zero = Similarity::new("z", &[vec![vec![0.0; 2]; 2], vec![vec![1.0; 2]; 2]]);
        assert!((zero.within - 0.5).abs() < 1e-12 && zero.across == 0.0, "{zero:?}");
    }
}

//! What a network makes of several augmented views of the same images.

use serde::{Deserialize, Serialize};

use super::features::Evaluator;
use super::grid;
use crate::data::{Loader, Subset};
use crate::device::{Data, PlanId, Session};
use crate::method::{self, ModelConfig};
use crate::ops::StepUniforms;
use crate::run::RunError;

/// Images, views of them, and what a network makes of the views.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Originals, HWC RGB.
    pub originals: Vec<Vec<u8>>,
    /// Views of each image, HWC RGB.
    pub views: Vec<Vec<Vec<u8>>>,
    /// By name (`h`, `mu`, `z`): a vector of each view of each image.
    pub vectors: Vec<(String, Vec<Vec<Vec<f32>>>)>,
}

/// Similarities of one kind of vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// `h` (features), `mu` or `z`.
    pub of: String,
    /// Cosine of every pair of views, `[rows, rows]`, the views of an image
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

impl Evaluator {
    /// What the network makes of several augmented views of the first images. View `v` has the
    /// draws of step `step + v`.
    ///
    /// # Errors
    /// If data or device fail, or there are fewer images.
    pub fn embed_views(
        &mut self,
        subset: &Subset,
        images: usize,
        views: usize,
        step: &StepUniforms,
    ) -> Result<Embedded, RunError> {
        let model = ModelConfig { batch: images, ..self.model };
        let graph = method::embedding(&model, &self.frozen.layout).graph;
        let plan = self.session.load(self.session.lower("views", &graph))?;
        embed_views(&mut self.session, plan, &model, subset, views, step)
    }
}

/// What the network makes of augmented views of the first images of a subset, by a
/// [`method::embedding`] plan of the model's batch, which is run `runs` times: each gives as many
/// views of an image as the method sees. Run `v` has the draws of step `step + v`.
///
/// # Errors
/// If data or device fail, or there are fewer images.
pub fn embed_views(
    session: &mut Session,
    plan: PlanId,
    model: &ModelConfig,
    subset: &Subset,
    runs: usize,
    step: &StepUniforms,
) -> Result<Embedded, RunError> {
    let images = model.batch;
    let first = Loader::eval_batches(subset, images)?
        .next()
        .transpose()?
        .filter(|batch| batch.valid == images);
    let Some(batch) = first else {
        return Err(RunError::config(
            format!("{images} images are needed, the set has {}", subset.len()),
            None,
        ));
    };
    let area = model.net.image.pow(2);
    let originals = batch.pixels.chunks(area).map(grid::unpack).collect();
    session.upload(plan, 0, Data::U32(&batch.pixels))?;
    let outputs = &session.plan(plan).outputs;
    let names: Vec<String> = outputs.iter().skip(1).map(|port| port.name.clone()).collect();
    let vectors = names.into_iter().map(|name| (name, vec![Vec::new(); images])).collect();
    let mut embedded = Embedded { originals, views: vec![Vec::new(); images], vectors };
    // All images' first views, then their second ones.
    let rows = images * model.objective.method.views();
    for run in 0..runs {
        session.run(plan, &StepUniforms { step: step.step + run as u32, ..*step })?;
        session.drain(plan)?;
        let pixels = grid::denormalise(&session.read(plan, 0)?, model.mean, model.std);
        for (row, image) in pixels.chunks(area * 3).enumerate() {
            embedded.views[row % images].push(image.to_vec());
        }
        for (i, (_, vectors)) in embedded.vectors.iter_mut().enumerate() {
            let data = session.read(plan, i + 1)?;
            for (row, vector) in data.chunks(data.len() / rows).enumerate() {
                vectors[row % images].push(vector.to_vec());
            }
        }
    }
    Ok(embedded)
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

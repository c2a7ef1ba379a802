//! Grids of what a model sees and makes of it.

use super::features::Evaluator;
use super::grid;
use crate::data::{Batch, Loader, Subset};
use crate::device::{Data, PlanId, Session};
use crate::method::{self, ModelConfig};
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::fit::{self, Fit};

/// Screen pixels per image pixel of a grid.
const SCALE: usize = 2;

/// A PNG and its size.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Evaluator {
    /// A grid of originals, views and reconstructions.
    ///
    /// # Errors
    /// If the method reconstructs nothing, or data or device fail.
    pub fn reconstruct(
        &mut self,
        subset: &Subset,
        count: usize,
        step: &StepUniforms,
    ) -> Result<Picture, RunError> {
        let method = self.model.objective.method;
        if !method.reconstructs() {
            let message = format!(
                "a {} model has no decoder, so there is nothing to reconstruct",
                method.name()
            );
            return Err(RunError::config(
                message,
                Some(
                    "`aavae probe`, `knn` and `embed` take every model; views are in \
                     images/augmentation.png",
                ),
            ));
        }
        let count = count.min(subset.len());
        let graph =
            |n| method::figures(&ModelConfig { batch: n, ..self.model }, &self.frozen.layout).graph;
        let fit = Fit { option: "--count", asked: count, least: 1 };
        let plan = fit::load(&mut self.session, "the reconstruction plan", fit, &graph)?;
        let batch = first(subset, count, &|| false)?;
        reconstruction_grid(&mut self.session, plan, &self.model, &batch, step)
    }
}

/// Runs a [`method::figures`] plan of a method that reconstructs on a batch of images and draws the
/// grid: one column per image, rows original, view (where the method augments), reconstruction.
///
/// # Errors
/// If data or device fail.
pub fn reconstruction_grid(
    session: &mut Session,
    plan: PlanId,
    model: &ModelConfig,
    batch: &Batch,
    step: &StepUniforms,
) -> Result<Picture, RunError> {
    session.upload(plan, 0, Data::U32(&batch.pixels))?;
    session.run(plan, step)?;
    session.drain(plan)?;
    let mut rows = Vec::new();
    for (o, name) in ["original", "view", "reconstruction"].into_iter().enumerate() {
        if name == "view" && !model.objective.method.augments() {
            continue;
        }
        rows.push(grid::denormalise(&session.read(plan, o)?, model.mean, model.std));
    }
    Ok(draw(&rows, model.net.image))
}

/// Views drawn per image of an augmentation grid.
const VIEWS: usize = 6;

/// Runs a [`method::figures`] plan for several steps and draws the augmentation: one column per
/// image, the original on top of views of it.
///
/// # Errors
/// If data or device fail.
pub fn augmentation_grid(
    session: &mut Session,
    plan: PlanId,
    model: &ModelConfig,
    batch: &Batch,
    step: &StepUniforms,
) -> Result<Picture, RunError> {
    let row = batch.indices.len() * model.net.image.pow(2) * 3;
    session.upload(plan, 0, Data::U32(&batch.pixels))?;
    let mut rows: Vec<Vec<u8>> = Vec::new();
    for i in 0..VIEWS / model.objective.method.views() {
        session.run(plan, &StepUniforms { step: step.step + i as u32, ..*step })?;
        session.drain(plan)?;
        for output in if i == 0 { 0..2 } else { 1..2 } {
            let images = grid::denormalise(&session.read(plan, output)?, model.mean, model.std);
            rows.extend(images.chunks(row).map(<[u8]>::to_vec));
        }
    }
    Ok(draw(&rows, model.net.image))
}

/// The first `count` images of a subset, and the last one again, if it has fewer; unless `stop`
/// says that nobody waits for them.
///
/// # Errors
/// If there is none, one cannot be read, or the wait is stopped.
pub fn first(subset: &Subset, count: usize, stop: &dyn Fn() -> bool) -> Result<Batch, RunError> {
    let batch = Loader::eval_batches(subset, count)?.unless(stop).next();
    Ok(batch.ok_or_else(|| RunError::config("there is no image to draw", None))??)
}

/// Draws rows of equally many images, HWC RGB, which lie one after another in each row.
fn draw(rows: &[Vec<u8>], side: usize) -> Picture {
    let rows: Vec<Vec<&[u8]>> =
        rows.iter().map(|row| row.chunks(side * side * 3).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let (width, height) = grid::grid_size(rows.len(), columns, side, SCALE);
    Picture { bytes: grid::grid_png(&rows, side, SCALE), width, height }
}

/// Reads images of a subset by their places, HWC RGB.
///
/// # Errors
/// If one cannot be read.
pub fn originals(subset: &Subset, places: &[usize]) -> Result<Vec<Vec<u8>>, RunError> {
    let bytes = subset.dataset.image_size().pow(2) * 3;
    let read = |place: &usize| {
        let mut image = vec![0; bytes];
        subset.dataset.read(subset.indices[*place] as usize, &mut image)?;
        Ok(image)
    };
    places.iter().map(read).collect()
}

/// Images of one side in a row, as they are.
///
/// # Panics
/// If there are none.
pub fn strip(images: &[Vec<u8>], side: usize) -> Picture {
    let row = images.iter().map(Vec::as_slice).collect();
    let (width, height) = grid::grid_size(1, images.len(), side, 1);
    Picture { bytes: grid::grid_png(&[row], side, 1), width, height }
}

/// What the decoder makes of the way from one image to another: `frames` latents on the straight
/// line between those of the two, ends included, HWC RGB. The plans are a [`method::encoding`] and
/// a [`method::decoding`] of `frames` images.
///
/// # Errors
/// If data or device fail.
///
/// # Panics
/// If there are fewer than two frames.
pub fn walk(
    session: &mut Session,
    (encoding, decoding): (PlanId, PlanId),
    model: &ModelConfig,
    ends: &Subset,
    frames: usize,
) -> Result<Vec<Vec<u8>>, RunError> {
    assert!(frames > 1 && ends.len() == 2, "{frames} frames between {} images", ends.len());
    let Some(batch) = Loader::eval_batches(ends, frames)?.next() else { return Ok(vec![]) };
    session.upload(encoding, 0, Data::U32(&batch?.pixels))?;
    session.run(encoding, &StepUniforms::default())?;
    session.drain(encoding)?;
    let latents = session.read(encoding, 0)?;
    let (from, to) = latents.split_at(latents.len() / frames);
    let line = (0..frames).flat_map(|frame| {
        let t = frame as f32 / (frames - 1) as f32;
        from.iter().zip(to).map(move |(a, b)| (1.0 - t) * a + t * b)
    });
    session.upload(decoding, 0, Data::F32(&line.collect::<Vec<_>>()))?;
    session.run(decoding, &StepUniforms::default())?;
    session.drain(decoding)?;
    let pixels = grid::denormalise(&session.read(decoding, 0)?, model.mean, model.std);
    Ok(pixels.chunks(model.net.image.pow(2) * 3).map(<[u8]>::to_vec).collect())
}

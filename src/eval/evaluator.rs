//! Running a trained encoder over a data set: features, kNN, reconstruction grids.

use super::grid;
use super::knn::{Features, knn};
use crate::data::{Loader, View};
use crate::device::{Data, PlanId, Session};
use crate::ir::Layout;
use crate::method::{self, ModelConfig, Protocol, Training};
use crate::nn::Params;
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::fit::{self, Fit};
use crate::run::state;
use crate::run::trained::Trained;

/// Neighbours and temperatures that are reported.
pub const KNN: [(usize, f32); 4] = [(20, 0.07), (20, 0.1), (200, 0.07), (200, 0.1)];

/// Screen pixels per image pixel of a grid.
const SCALE: usize = 2;

/// A PNG and its size.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The file.
    pub bytes: Vec<u8>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

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

/// A model loaded for evaluation.
pub struct Evaluator {
    /// Device.
    pub session: Session,
    /// Model; its batch is the evaluation's.
    pub model: ModelConfig,
    protocol: Protocol,
    layout: Layout,
    plans: [Option<PlanId>; 2],
}

impl std::fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Evaluator {
    /// Loads trained weights; with `None` the initial ones (a randomly initialised encoder).
    ///
    /// # Errors
    /// If the device fails or the checkpoint does not fit.
    pub fn new(
        mut session: Session,
        model: ModelConfig,
        protocol: Protocol,
        trained: Option<&Trained>,
        seed: u64,
    ) -> Result<Self, RunError> {
        let training = method::training(&model, Training::default());
        let layout = training.graph.layout;
        fit::check_state(&session, &layout)?;
        session.allocate(&layout);
        let params: Params = training.params;
        match trained {
            Some(t) => state::import(&mut session, &layout, &params, &t.checkpoint, &[])
                .map_err(|e| e.of_file(&t.path))?,
            None => state::initialise(&mut session, &layout, &params, seed)?,
        }
        Ok(Self { session, model, protocol, layout, plans: [None; 2] })
    }

    fn plan(&mut self, augment: bool) -> Result<PlanId, RunError> {
        if let Some(plan) = self.plans[usize::from(augment)] {
            return Ok(plan);
        }
        let protocol = self.protocol;
        let graph = |batch| {
            method::features(&ModelConfig { batch, ..self.model }, &self.layout, protocol, augment)
                .graph
        };
        let fit = Fit { option: "--batch-size", asked: self.model.batch, least: 1 };
        let plan = fit::load(&mut self.session, "the features plan", fit, &graph)?;
        self.plans[usize::from(augment)] = Some(plan);
        Ok(plan)
    }

    /// Features of one batch of pixels `[N, H, W]`; `augment` keys the crops that a probe trains
    /// on.
    ///
    /// # Errors
    /// If the device fails.
    pub fn features_of(
        &mut self,
        pixels: &[u32],
        augment: Option<&StepUniforms>,
    ) -> Result<Vec<f32>, RunError> {
        let plan = self.plan(augment.is_some())?;
        run_features(&mut self.session, plan, pixels, augment.unwrap_or(&StepUniforms::default()))
    }

    /// Features and labels of a whole view, in its order.
    ///
    /// # Errors
    /// If data or device fail.
    pub fn features(
        &mut self,
        view: &View,
        progress: impl FnMut(usize),
    ) -> Result<Features, RunError> {
        let plan = self.plan(false)?;
        features(&mut self.session, plan, &self.model, view, progress)
    }

    /// What the network makes of several augmented views of the first images. View `v` has the
    /// draws of step `step + v`.
    ///
    /// # Errors
    /// If data or device fail, or there are fewer images.
    pub fn embed_views(
        &mut self,
        view: &View,
        images: usize,
        views: usize,
        step: &StepUniforms,
    ) -> Result<Embedded, RunError> {
        let model = ModelConfig { batch: images, ..self.model };
        let graph = method::embedding(&model, &self.layout).graph;
        let plan = self.session.load(self.session.lower("views", &graph))?;
        let first = Loader::eval_batches(view, images)?
            .next()
            .transpose()?
            .filter(|batch| batch.valid == images);
        let Some(batch) = first else {
            return Err(RunError::config(
                format!("{images} images are needed, the set has {}", view.len()),
                None,
            ));
        };
        self.session.upload(plan, 0, Data::U32(&batch.pixels))?;
        let rgb = |pixel: &u32| [*pixel as u8, (pixel >> 8) as u8, (pixel >> 16) as u8];
        let originals = batch
            .pixels
            .chunks(model.net.image.pow(2))
            .map(|image| image.iter().flat_map(rgb).collect())
            .collect();
        let names: Vec<String> =
            self.session.plan(plan).outputs.iter().map(|port| port.name.clone()).collect();
        let mut embedded =
            Embedded { originals, views: vec![Vec::new(); images], vectors: Vec::new() };
        for v in 0..views {
            self.session.run(plan, &StepUniforms { step: step.step + v as u32, ..*step })?;
            self.session.drain(plan)?;
            let pixels = grid::denormalise(&self.session.read(plan, 0)?, model.mean, model.std);
            for (views, image) in
                embedded.views.iter_mut().zip(pixels.chunks(pixels.len() / images))
            {
                views.push(image.to_vec());
            }
            for (i, name) in names.iter().enumerate().skip(1) {
                let data = self.session.read(plan, i)?;
                if v == 0 {
                    embedded.vectors.push((name.clone(), vec![Vec::new(); images]));
                }
                for (rows, row) in
                    embedded.vectors[i - 1].1.iter_mut().zip(data.chunks(data.len() / images))
                {
                    rows.push(row.to_vec());
                }
            }
        }
        Ok(embedded)
    }

    /// A grid of originals, views and reconstructions.
    ///
    /// # Errors
    /// If the method reconstructs nothing, or data or device fail.
    pub fn reconstruct(
        &mut self,
        view: &View,
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
        let count = count.min(view.len());
        let graph =
            |n| method::figures(&ModelConfig { batch: n, ..self.model }, &self.layout).graph;
        let fit = Fit { option: "--count", asked: count, least: 1 };
        let plan = fit::load(&mut self.session, "the reconstruction plan", fit, &graph)?;
        reconstruction_grid(&mut self.session, plan, &self.model, view, count, step)
    }
}

/// Features and labels of a whole view, in its order, by a features plan of the model's batch.
///
/// # Errors
/// If data or device fail.
pub fn features(
    session: &mut Session,
    plan: PlanId,
    model: &ModelConfig,
    view: &View,
    mut progress: impl FnMut(usize),
) -> Result<Features, RunError> {
    let dim = model.net.features();
    let mut features = Features {
        dim,
        data: Vec::with_capacity(view.len() * dim),
        labels: Vec::with_capacity(view.len()),
    };
    for batch in Loader::eval_batches(view, model.batch)? {
        let batch = batch?;
        let data = run_features(session, plan, &batch.pixels, &StepUniforms::default())?;
        features.data.extend_from_slice(&data[..batch.valid * dim]);
        features.labels.extend_from_slice(&batch.labels[..batch.valid]);
        progress(features.labels.len());
    }
    Ok(features)
}

fn run_features(
    session: &mut Session,
    plan: PlanId,
    pixels: &[u32],
    step: &StepUniforms,
) -> Result<Vec<f32>, RunError> {
    session.upload(plan, 0, Data::U32(pixels))?;
    session.run(plan, step)?;
    session.drain(plan)?;
    Ok(session.read(plan, 0)?)
}

/// Runs a [`method::figures`] plan of a method that reconstructs on the first images of a view and
/// draws the grid: one column per image, rows original, view (where the method augments),
/// reconstruction.
///
/// # Errors
/// If data or device fail.
pub fn reconstruction_grid(
    session: &mut Session,
    plan: PlanId,
    model: &ModelConfig,
    view: &View,
    count: usize,
    step: &StepUniforms,
) -> Result<Picture, RunError> {
    let side = model.net.image;
    let Some(batch) = Loader::eval_batches(view, count)?.next() else {
        return Err(RunError::config("there is no image to reconstruct", None));
    };
    session.upload(plan, 0, Data::U32(&batch?.pixels))?;
    session.run(plan, step)?;
    session.drain(plan)?;
    let mut rows = Vec::new();
    for (o, name) in ["original", "view", "reconstruction"].into_iter().enumerate() {
        if name == "view" && !model.objective.method.augments() {
            continue;
        }
        let pixels = grid::denormalise(&session.read(plan, o)?, model.mean, model.std);
        rows.push(pixels.chunks(side * side * 3).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
    let (width, height) = grid::grid_size(rows.len(), count, side, SCALE);
    let rows: Vec<Vec<&[u8]>> =
        rows.iter().map(|row| row.iter().map(Vec::as_slice).collect()).collect();
    Ok(Picture { bytes: grid::grid_png(&rows, side, SCALE), width, height })
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
    view: &View,
    count: usize,
    step: &StepUniforms,
) -> Result<Picture, RunError> {
    let side = model.net.image;
    let Some(batch) = Loader::eval_batches(view, count)?.next() else {
        return Err(RunError::config("there is no image to augment", None));
    };
    session.upload(plan, 0, Data::U32(&batch?.pixels))?;
    let mut rows: Vec<Vec<u8>> = Vec::new();
    for i in 0..VIEWS / model.objective.method.views() {
        session.run(plan, &StepUniforms { step: step.step + i as u32, ..*step })?;
        session.drain(plan)?;
        for output in if i == 0 { 0..2 } else { 1..2 } {
            let images = grid::denormalise(&session.read(plan, output)?, model.mean, model.std);
            rows.extend(images.chunks(count * side * side * 3).map(<[u8]>::to_vec));
        }
    }
    let (width, height) = grid::grid_size(rows.len(), count, side, SCALE);
    let rows: Vec<Vec<&[u8]>> =
        rows.iter().map(|row| row.chunks(side * side * 3).collect()).collect();
    Ok(Picture { bytes: grid::grid_png(&rows, side, SCALE), width, height })
}

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

//! What a person asks of a model while it trains: its latents, neighbours, a probe. None of it
//! touches the training; plans are loaded when they are first needed.

use std::path::PathBuf;

use super::Trainer;
use crate::data::{Loader, Splits, Subset};
use crate::device::{DeviceError, PlanId, Session};
use crate::eval::embed::{Similarity, embed_views};
use crate::eval::features::{Evaluator, Features, features};
use crate::eval::knn::{Neighbour, nearest};
use crate::eval::pictures::{Picture, originals, strip, walk};
use crate::eval::probe::{ProbeConfig, ProbeResult, probe};
use crate::ir::Graph;
use crate::method::{self, ModelConfig};
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::checkpoint::Checkpoint;
use crate::run::fit::{self, Fit};
use crate::run::settings::RunConfig;
use crate::run::trained::{Trained, model_config};
use crate::train::plans::Sizes;

/// Plans and features that were needed once.
#[derive(Default)]
pub(super) struct Looks {
    embedding: Option<PlanId>,
    encoding: Option<PlanId>,
    decoding: Option<PlanId>,
    features: Option<PlanId>,
    /// Features of the first training images, after so many steps.
    reference: Option<(u64, Features)>,
}

impl Looks {
    /// Gives the plans back.
    pub(super) fn forget(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let Self { embedding, encoding, decoding, features, .. } = std::mem::take(self);
        let plans = [embedding, encoding, decoding, features];
        plans.into_iter().flatten().try_for_each(|plan| session.unload(plan))
    }
}

/// The first of the images that a run looks at ([`Trainer::shown`]), side by side, and how many:
/// they can be seen before any kernel is compiled.
///
/// # Errors
/// If one cannot be read.
pub fn gallery(
    config: &RunConfig,
    splits: &Splits,
    most: usize,
) -> Result<(Picture, usize), RunError> {
    let model = model_config(config, splits);
    let images = shown(splits, Sizes::new(config, model.batch, splits.val.len()));
    let places: Vec<usize> = (0..most.min(images.len())).collect();
    Ok((strip(&originals(images, &places)?, model.net.image), places.len()))
}

fn shown(splits: &Splits, sizes: Sizes) -> &Subset {
    let held_out = &splits.val;
    if held_out.len() >= sizes.figures { held_out } else { &splits.train }
}

impl Trainer<'_> {
    /// The images that are looked at: the held-out ones, where there are enough for a picture.
    pub fn shown(&self) -> &Subset {
        shown(self.splits, self.sizes)
    }

    /// One of the images that are looked at under so many alterations, itself first. Another `draw`
    /// gives other ones.
    ///
    /// # Errors
    /// If there is no such image, or data or device fail.
    pub fn views_of(&mut self, image: usize, draw: u32, views: usize) -> Result<Picture, RunError> {
        let (plan, model) = self.embedding()?;
        let subset = self.repeated(image, model.batch)?;
        let each = model.batch * model.objective.method.views();
        let runs = views.div_ceil(each);
        let first = draw.wrapping_mul(runs as u32);
        let step = StepUniforms::evaluation(self.config.seed, 0);
        let step = StepUniforms { step: step.step.wrapping_add(first), ..step };
        let embedded = embed_views(&mut self.session, plan, &model, &subset, runs, &step)?;
        let mut all = vec![embedded.originals[0].clone()];
        all.extend(embedded.views.into_iter().flatten().take(views));
        Ok(strip(&all, model.net.image))
    }

    /// How alike views of one image and of different images are to the network, by kind of vector
    /// (the paper's figure 5): of the images of a picture, so many runs of views of each.
    ///
    /// # Errors
    /// If data or device fail.
    pub fn similarities(&mut self, runs: usize) -> Result<Vec<Similarity>, RunError> {
        let (plan, model) = self.embedding()?;
        let (subset, seed) = (self.shown().clone(), self.config.seed);
        let step = StepUniforms::evaluation(seed, 0);
        let embedded = embed_views(&mut self.session, plan, &model, &subset, runs, &step)?;
        Ok(embedded.vectors.iter().map(|(name, of)| Similarity::new(name, of)).collect())
    }

    /// The training images nearest to one of those that are looked at, among the first `among`:
    /// their places in the training set, and a picture of them.
    ///
    /// # Errors
    /// If there is no such image, or data or device fail.
    pub fn neighbours(
        &mut self,
        image: usize,
        k: usize,
        among: usize,
        steps: u64,
    ) -> Result<(Vec<Neighbour>, Picture), RunError> {
        let query = self.repeated(image, 1)?;
        let (model, protocol) = (self.model, self.config.protocol());
        let layout = self.layout.clone();
        let graph =
            |batch| method::features(&ModelConfig { batch, ..model }, &layout, protocol).graph;
        let plan = once(&mut self.session, &mut self.looks.features, model.batch, &graph)?;
        let train = &self.splits.labelled_train;
        let first = train.indices[..among.min(train.len())].into();
        let reference = Subset { dataset: train.dataset.clone(), indices: first };
        let known = self
            .looks
            .reference
            .take()
            .filter(|(at, rows)| *at == steps && rows.len() == reference.len());
        let rows = match known {
            Some((_, rows)) => rows,
            None => {
                let batches = Loader::eval_batches(&reference, model.batch)?;
                features(&mut self.session, plan, &model, batches, |_| ())?
            }
        };
        let query = Loader::eval_batches(&query, model.batch)?;
        let row = features(&mut self.session, plan, &model, query, |_| ())?;
        let near = nearest(&rows, &row, k)?;
        self.looks.reference = Some((steps, rows));
        let places: Vec<usize> = near.iter().map(|near| near.row).collect();
        Ok((near, strip(&originals(&reference, &places)?, model.net.image)))
    }

    /// What the decoder makes of the way from one image to another, between the two; as many
    /// frames as a picture has images.
    ///
    /// # Errors
    /// If the method has no decoder, there is no such image, or data or device fail.
    pub fn walk(&mut self, from: usize, to: usize) -> Result<Picture, RunError> {
        if !self.model.objective.method.reconstructs() {
            let name = self.model.objective.method.name();
            return Err(RunError::config(format!("{name} has no decoder to walk with"), None));
        }
        let frames = self.sizes.figures;
        let model = ModelConfig { batch: frames, ..self.model };
        let layout = self.layout.clone();
        let encoding = |batch| method::encoding(&ModelConfig { batch, ..model }, &layout).graph;
        let decoding = |batch| method::decoding(&ModelConfig { batch, ..model }, &layout).graph;
        let plans = (
            once(&mut self.session, &mut self.looks.encoding, frames, &encoding)?,
            once(&mut self.session, &mut self.looks.decoding, frames, &decoding)?,
        );
        let [from, to] = [self.repeated(from, 1)?, self.repeated(to, 1)?];
        let ends = Subset {
            dataset: from.dataset.clone(),
            indices: [from.indices[0], to.indices[0]].into(),
        };
        let mut images = originals(&ends, &[0, 1])?;
        let between = walk(&mut self.session, plans, &model, &ends, frames)?;
        images.splice(1..1, between);
        Ok(strip(&images, model.net.image))
    }

    /// Trains a linear classifier on the features of the model as it is, and tests it on the
    /// held-out images. It has a session of its own, as its state is another.
    ///
    /// # Errors
    /// If the images have no classes, or data or device fail.
    pub fn probe(
        &mut self,
        session: Session,
        config: ProbeConfig,
        steps: u64,
        progress: impl FnMut(usize, f64),
    ) -> Result<ProbeResult, RunError> {
        let (train, test) = (&self.splits.labelled_train, &self.splits.labelled_val);
        let classes = train.dataset.classes().len();
        if classes < 2 || test.is_empty() {
            let message = "a probe needs images of two classes, and some that are held out";
            return Err(RunError::config(message, None));
        }
        let meta = self.meta(steps, "")?;
        let (layout, params) = self.tensors();
        let tensors = self.snapshot(steps)?.tensors(&layout, &params);
        let trained = Trained {
            config: self.config.clone(),
            checkpoint: Checkpoint { tensors, meta },
            path: PathBuf::from("the weights"),
            skipped: vec![],
        };
        let model = ModelConfig { online_probe: None, ..self.model };
        let protocol = self.config.protocol();
        let mut evaluator =
            Evaluator::new(session, model, protocol, classes, Some(&trained), config.seed)?;
        let test = evaluator.features(test, |_| ())?;
        probe(&mut evaluator, config, train, &test, progress)
    }

    /// The plan of latents of views, of as many images as a picture has.
    fn embedding(&mut self) -> Result<(PlanId, ModelConfig), RunError> {
        let model = ModelConfig { batch: self.sizes.figures, ..self.model };
        let layout = self.layout.clone();
        let graph = |batch| method::embedding(&ModelConfig { batch, ..model }, &layout).graph;
        let plan = once(&mut self.session, &mut self.looks.embedding, model.batch, &graph)?;
        Ok((plan, model))
    }

    /// One of the images that are looked at, so many times.
    fn repeated(&self, image: usize, count: usize) -> Result<Subset, RunError> {
        let shown = self.shown();
        let Some(index) = shown.indices.get(image) else {
            return Err(RunError::config(format!("image {image} of {}", shown.len()), None));
        };
        Ok(Subset { dataset: shown.dataset.clone(), indices: vec![*index; count].into() })
    }
}

/// A plan that is loaded when it is first needed.
fn once(
    session: &mut Session,
    plan: &mut Option<PlanId>,
    images: usize,
    graph: &dyn Fn(usize) -> Graph,
) -> Result<PlanId, RunError> {
    if let Some(plan) = plan {
        return Ok(*plan);
    }
    let fit = Fit { option: "--batch-size", asked: images, least: 1 };
    let loaded = fit::load(session, "what is asked for", fit, graph)?;
    Ok(*plan.insert(loaded))
}

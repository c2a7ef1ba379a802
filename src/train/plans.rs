//! What pretraining runs on a device, in one place: for the run itself, for the figure of its
//! memory, and for a forecast of its cost.

use super::compare;
use crate::device::{DeviceError, PlanId, Session};
use crate::ir::Graph;
use crate::ir::resident::{ImageSet, gather};
use crate::method::{self, ModelConfig, Training, Views};
use crate::nn::Params;
use crate::ops::Choices;
use crate::optim;
use crate::plan::{Plan, held_bytes};
use crate::run::RunError;
use crate::run::fit::{self, Fit};
use crate::run::settings::RunConfig;
use crate::tune;

/// Images of a figure.
const FIGURE: usize = 16;

/// One thing of each kind that a run needs: first graphs, then plans, then loaded plans.
#[derive(Clone, Debug)]
pub struct RunSet<T> {
    /// A step, or one of its batches.
    pub train: T,
    /// The update from several batches.
    pub update: Option<T>,
    /// The objective of held-out images.
    pub validation: Option<T>,
    /// Originals, views and reconstructions.
    pub figures: T,
    /// Samples of the likelihood.
    pub importance: Option<T>,
    /// A view and its original.
    pub views: Option<T>,
    /// Features for kNN.
    pub features: Option<T>,
}

impl<T> RunSet<T> {
    /// Each with its name, in the order in which they are loaded.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        let always = |name, t| (name, Some(t));
        let all = [
            always("train", &self.train),
            ("update", self.update.as_ref()),
            ("validation", self.validation.as_ref()),
            always("figures", &self.figures),
            ("importance", self.importance.as_ref()),
            ("views", self.views.as_ref()),
            ("features", self.features.as_ref()),
        ];
        all.into_iter().filter_map(|(name, t)| t.map(|t| (name, t)))
    }

    /// Makes another set, one by one in that order.
    ///
    /// # Errors
    /// The first that cannot be made.
    pub fn try_map<U, E>(
        self,
        mut f: impl FnMut(&'static str, T) -> Result<U, E>,
    ) -> Result<RunSet<U>, E> {
        Ok(RunSet {
            train: f("train", self.train)?,
            update: self.update.map(|t| f("update", t)).transpose()?,
            validation: self.validation.map(|t| f("validation", t)).transpose()?,
            figures: f("figures", self.figures)?,
            importance: self.importance.map(|t| f("importance", t)).transpose()?,
            views: self.views.map(|t| f("views", t)).transpose()?,
            features: self.features.map(|t| f("features", t)).transpose()?,
        })
    }
}

impl RunSet<Graph> {
    /// The graphs with the images of training on the device. Those of held-out images, which an
    /// epoch sees once, stay as they are.
    #[must_use]
    pub fn resident(self, set: &ImageSet) -> Self {
        let views = self.views.map(|graph| gather(graph, set));
        Self { train: gather(self.train, set), views, ..self }
    }
}

/// How many images the plans of a run take at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Images of a training batch.
    pub batch: usize,
    /// Images of a validation batch; fewer than 2 are not validated.
    pub validation: usize,
    /// Images of a figure.
    pub figures: usize,
    /// Samples of an image whose likelihood is estimated; 0 for none.
    pub samples: usize,
    /// Images of such a plan: with their samples about a batch.
    pub sampled: usize,
}

impl Sizes {
    /// Sizes of a run with a batch of `batch` and so many held-out images.
    pub fn new(config: &RunConfig, batch: usize, held_out: usize) -> Self {
        let validation = held_out.min(batch);
        let samples = if validation < 2 { 0 } else { config.importance_samples() };
        let sampled = (validation / samples.max(1)).max(1);
        Self { batch, validation, figures: batch.min(FIGURE), samples, sampled }
    }
}

/// The graphs of a run, and its parameters.
pub fn graphs(config: &RunConfig, model: &ModelConfig, sizes: Sizes) -> (RunSet<Graph>, Params) {
    let of = |batch| ModelConfig { batch, ..*model };
    let how = Training {
        rule: config.update(),
        accumulate: config.accumulate,
        scaled: config.scales_loss(),
        ..Training::default()
    };
    let training = method::training(&of(sizes.batch), how);
    let layout = training.graph.layout.clone();
    let validation = |n| method::validation(&of(n), &layout, Views::Drawn).graph;
    let sampled = of(sizes.sampled);
    let importance = || method::importance(&sampled, &layout, sizes.samples, Views::Drawn).graph;
    let set = RunSet {
        update: (how.accumulate > 1).then(|| optim::update(&layout, how.rule)),
        validation: (sizes.validation >= 2).then(|| validation(sizes.validation)),
        figures: method::figures(&of(sizes.figures), &layout).graph,
        importance: (sizes.samples > 0).then(importance),
        views: (config.view_metrics_every > 0)
            .then(|| method::views(&of(sizes.batch), &layout, Views::Drawn).graph),
        features: (config.eval_every > 0)
            .then(|| method::features(&of(sizes.batch), &layout, config.protocol()).graph),
        train: training.graph,
    };
    (set, training.params)
}

/// The plans of a run that fit together on a device.
///
/// # Errors
/// If a tensor exceeds a limit of the device, or all plans its memory; the hint names the largest
/// batch of which everything fits.
pub fn plan(
    session: &Session,
    config: &RunConfig,
    model: &ModelConfig,
    held_out: usize,
) -> Result<RunSet<Plan>, RunError> {
    let attempt =
        |batch| fitting(session, graphs(config, model, Sizes::new(config, batch, held_out)).0);
    Fit { option: "--batch-size", asked: model.batch, least: 2 }.largest(attempt)
}

/// The plans of graphs, if they fit together.
fn fitting(session: &Session, graphs: RunSet<Graph>) -> Result<RunSet<Plan>, String> {
    let plans = graphs.try_map(|name, graph| fit::fits(session, name, &graph))?;
    let all: Vec<Plan> = plans.iter().map(|(_, plan)| plan.clone()).collect();
    fit::check_memory(session, "pretraining", device_bytes(session, &all))?;
    Ok(plans)
}

/// Bytes of device memory that a session with these plans holds at the most: each flat buffer and
/// the images that stay once, what the device needs itself, and the largest read.
pub fn device_bytes(session: &Session, plans: &[Plan]) -> usize {
    let capabilities = session.capabilities();
    held_bytes(plans) + capabilities.overhead + capabilities.read_bytes.unwrap_or(0)
}

/// Loads the plans of a run on an empty session.
///
/// # Errors
/// Like [`plan`], also where the driver finds only now that there is no room; whatever else the
/// device says.
pub fn load(
    session: &mut Session,
    config: &RunConfig,
    model: &ModelConfig,
    held_out: usize,
) -> Result<RunSet<PlanId>, RunError> {
    let plans = plan(session, config, model, held_out)?;
    session.allocate(&plans.train.layout);
    match plans.try_map(|_, plan| session.load(plan)) {
        Ok(loaded) => Ok(loaded),
        Err(error @ DeviceError::OutOfMemory { .. }) => {
            // The session has learned how much memory there is: planning again says what fits.
            session.reset();
            Err(plan(session, config, model, held_out).err().unwrap_or(error.into()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Loads the plans of a run on an empty session, with room for the images of training; or why these
/// do not stay there, where plans that have them uploaded may fit.
///
/// # Errors
/// If the device fails.
pub fn load_resident(
    session: &mut Session,
    graphs: RunSet<Graph>,
    set: &ImageSet,
) -> Result<Result<RunSet<PlanId>, String>, DeviceError> {
    let plans = match fitting(session, graphs.resident(set)) {
        Ok(plans) => plans,
        Err(reason) => return Ok(Err(reason)),
    };
    session.allocate(&plans.train.layout);
    let kept = session.keep_images(&set.types());
    match kept.and_then(|()| plans.try_map(|_, plan| session.load_beside(plan))) {
        Ok(loaded) => Ok(Ok(loaded)),
        Err(error @ DeviceError::OutOfMemory { .. }) => {
            session.reset();
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Chooses kernels for a run on an empty session: measures what is not remembered, for as long as
/// the effort says, and compares a step with its ops where a library is among them. A software
/// adapter takes seconds to compile a candidate and keeps its table of defaults. Returns what there
/// is to say of it.
///
/// # Errors
/// If the device fails or has no room.
pub fn tune(
    session: &mut Session,
    config: &RunConfig,
    model: &ModelConfig,
    held_out: usize,
) -> Result<Vec<String>, RunError> {
    if session.target().software || !session.capabilities().dispatches {
        return Ok(vec![]);
    }
    plan(session, config, model, held_out)?;
    let (graphs, params) = graphs(config, model, Sizes::new(config, model.batch, held_out));
    let all: Vec<&Graph> = graphs.iter().map(|(_, graph)| graph).collect();
    let effort = tune::Effort::within(tune::BUDGET);
    let report = tune::tune(session, &all, &mut tune::Memory::of_user(), effort)?;
    let taken_back = compare::trust_library(session, &graphs.train, &params)?
        .map(|what| format!("warning: our kernels take the place of {what}"));
    Ok([Some(report.to_string()), taken_back].into_iter().flatten().collect())
}

/// Sets the kernels of a run that is resumed, on an empty session, after comparing each with the
/// trusted one, and a step with its ops where a library is among them. Returns what is refused:
/// products by name, which have the portable kernel, or what the library did.
///
/// # Errors
/// If the device fails or has no room.
pub fn trust(
    session: &mut Session,
    config: &RunConfig,
    model: &ModelConfig,
    held_out: usize,
    choices: &Choices,
) -> Result<Vec<String>, RunError> {
    if choices.is_empty() || !session.capabilities().dispatches {
        return Ok(vec![]);
    }
    plan(session, config, model, held_out)?;
    let (graphs, params) = graphs(config, model, Sizes::new(config, model.batch, held_out));
    let all: Vec<&Graph> = graphs.iter().map(|(_, graph)| graph).collect();
    let mut refused = tune::trust(session, &all, choices.clone())?;
    refused.extend(compare::trust_library(session, &graphs.train, &params)?);
    Ok(refused)
}

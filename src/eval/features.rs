//! A trained encoder on a device, frozen, and its features of a data set.

use crate::data::{Batch, DataError, Loader, Subset};
use crate::device::{Data, PlanId, Session};
use crate::method::{self, Frozen, ModelConfig, Protocol};
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::fit::{self, Fit};
use crate::run::state;
use crate::run::trained::Trained;

/// Rows of features and their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Length of a row.
    pub dim: usize,
    /// The rows, one after another.
    pub data: Vec<f32>,
    /// A label for each row.
    pub labels: Vec<u32>,
}

impl Features {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A model loaded for evaluation. Its networks are state that nothing trains; a probe trains the
/// linear classifier on its features.
pub struct Evaluator {
    /// The device, with the model.
    pub session: Session,
    /// The model; its batch is the evaluation's.
    pub model: ModelConfig,
    pub(super) protocol: Protocol,
    pub(super) classes: usize,
    pub(super) frozen: Frozen,
    features: Option<PlanId>,
}

impl std::fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Evaluator {
    /// Loads trained weights; with `None` the initial ones (a randomly initialised encoder).
    /// `classes` are those that a probe tells apart.
    ///
    /// # Errors
    /// If the device fails or the checkpoint does not fit.
    pub fn new(
        mut session: Session,
        model: ModelConfig,
        protocol: Protocol,
        classes: usize,
        trained: Option<&Trained>,
        seed: u64,
    ) -> Result<Self, RunError> {
        let frozen = method::frozen(&model, classes);
        fit::check_state(&session, &frozen.layout)?;
        session.allocate(&frozen.layout);
        let (layout, params) = (&frozen.layout, &frozen.model);
        match trained {
            Some(t) => state::import(&mut session, layout, params, &t.checkpoint, &[])
                .map_err(|e| e.of_file(&t.path))?,
            None => state::initialise(&mut session, layout, params, seed)?,
        }
        Ok(Self { session, model, protocol, classes, frozen, features: None })
    }

    /// Features and labels of a whole subset, in its order.
    ///
    /// # Errors
    /// If data or device fail.
    pub fn features(
        &mut self,
        subset: &Subset,
        progress: impl FnMut(usize),
    ) -> Result<Features, RunError> {
        let plan = match self.features {
            Some(plan) => plan,
            None => {
                let graph = |batch| {
                    let model = ModelConfig { batch, ..self.model };
                    method::features(&model, &self.frozen.layout, self.protocol).graph
                };
                let fit = Fit { option: "--batch-size", asked: self.model.batch, least: 1 };
                fit::load(&mut self.session, "the features plan", fit, &graph)?
            }
        };
        self.features = Some(plan);
        let batches = Loader::eval_batches(subset, self.model.batch)?;
        features(&mut self.session, plan, &self.model, batches, progress)
    }
}

/// Features and labels of whole `batches` of a subset, in its order, by a features plan of the
/// model's batch.
///
/// # Errors
/// If data or device fail.
pub fn features(
    session: &mut Session,
    plan: PlanId,
    model: &ModelConfig,
    batches: impl Iterator<Item = Result<Batch, DataError>>,
    mut progress: impl FnMut(usize),
) -> Result<Features, RunError> {
    let dim = model.net.features();
    let mut features = Features { dim, data: Vec::new(), labels: Vec::new() };
    for batch in batches {
        let batch = batch?;
        session.upload(plan, 0, Data::U32(&batch.pixels))?;
        session.run(plan, &StepUniforms::default())?;
        session.drain(plan)?;
        let data = session.read(plan, 0)?;
        features.data.extend_from_slice(&data[..batch.valid * dim]);
        features.labels.extend_from_slice(&batch.labels[..batch.valid]);
        progress(features.labels.len());
    }
    Ok(features)
}

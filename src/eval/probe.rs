//! The linear probe (the paper, section 4): one linear layer on the frozen encoder, SGD with
//! Nesterov momentum .9, learning rate `.1 * batch / 256` decayed to 0 by a cosine (per step), no
//! weight decay, crops of 4-pixel padding and flips.
//!
//! A step is one plan, from bytes to the update of the classifier ([`method::probe`]): the host
//! reads nothing but the scalars of many steps at once. The images stay on the device, where they
//! fit ([`resident`]).

use std::ops::Range;

use super::features::{Evaluator, Features};
use super::knn::KnnError;
use crate::data::{Batch, DataError, Loader, Order, Subset};
use crate::device::{Data, PlanId, Session};
use crate::ir::Group;
use crate::method::{self, ModelConfig};
use crate::ops::StepUniforms;
use crate::optim::half_cosine;
use crate::run::fit::{self, Fit};
use crate::run::{RunError, resident, state};

/// What the probe is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct ProbeConfig {
    /// Passes over the training images; the paper's are 90.
    pub epochs: usize,
    /// Seed of its weights, order and crops.
    pub seed: u64,
}

/// Accuracy of a probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeResult {
    /// Fraction of the test images, in [0, 1].
    pub test: f64,
    /// Fraction of the last epoch's training images.
    pub train: f64,
    /// Mean loss of the last epoch.
    pub loss: f64,
}

/// Learning rate of a step out of `total`.
pub fn learning_rate(batch: usize, step: u64, total: u64) -> f32 {
    let base = 0.1 * batch as f64 / 256.0;
    (base * half_cosine(step as f64 / total as f64)) as f32
}

/// Trains a probe on `train` and tests it on `test`.
///
/// # Errors
/// If data or device fail, or there is no room for its plans.
pub fn probe(
    evaluator: &mut Evaluator,
    config: ProbeConfig,
    train: &Subset,
    test: &Features,
    mut progress: impl FnMut(usize, f64),
) -> Result<ProbeResult, RunError> {
    let classes = train.dataset.classes().len();
    assert_eq!(classes, evaluator.classes, "the evaluator is for images of other classes");
    if let Some(at) = test.data.iter().position(|x| !x.is_finite()) {
        return Err(KnnError::NotFinite { split: "test", row: at / test.dim }.into());
    }
    let training = Training::new(evaluator, config, train)?;
    let mut epoch = Epoch::default();
    for batch in training.batches(&evaluator.session, 0..training.total)? {
        let batch = batch?;
        training.step(&mut evaluator.session, &batch)?;
        if (batch.step + 1).is_multiple_of(training.order.steps_per_epoch()) {
            epoch = training.end_epoch(&mut evaluator.session)?;
            progress(batch.epoch as usize + 1, epoch.accuracy());
        }
    }
    evaluator.session.unload(training.plan)?;
    evaluator.session.forget_images()?;
    let test = accuracy(evaluator, test)?;
    Ok(ProbeResult { test, train: epoch.accuracy(), loss: epoch.loss() })
}

/// A probe that is being trained.
struct Training<'a> {
    config: ProbeConfig,
    train: &'a Subset,
    order: Order,
    /// Steps in all.
    total: u64,
    plan: PlanId,
}

impl<'a> Training<'a> {
    /// Loads the plan of a step and sets the initial weights.
    fn new(
        evaluator: &mut Evaluator,
        config: ProbeConfig,
        train: &'a Subset,
    ) -> Result<Self, RunError> {
        let Evaluator { session, model, protocol, classes, frozen, .. } = evaluator;
        let order = Order::new(train.len(), model.batch, config.seed, true)?;
        let total = order.steps_per_epoch() * config.epochs as u64;
        let graph = |batch| {
            let model = ModelConfig { batch, ..*model };
            method::probe(&model, &frozen.layout, *protocol, *classes).graph
        };
        let fit = Fit { option: "--batch-size", asked: model.batch, least: 1 };
        let seen = total * order.batch_size() as u64;
        let plan = resident::load(session, "the probe's plan", fit, &graph, (train, seen))?;
        state::initialise(session, &frozen.layout, &frozen.classifier, config.seed)?;
        let momentum = vec![0.0; frozen.layout.size(Group::Moment1)];
        session.write_state(Group::Moment1, 0, &momentum)?;
        Ok(Self { config, train, order, total, plan })
    }

    fn uniforms(&self, step: u64) -> StepUniforms {
        let learning_rate = learning_rate(self.order.batch_size(), step, self.total);
        StepUniforms { learning_rate, ..StepUniforms::seeded(self.config.seed, step as u32) }
    }

    fn batches(&self, session: &Session, steps: Range<u64>) -> Result<Loader, DataError> {
        resident::batches(session, self.plan, self.train, (self.order, 1), steps)
    }

    /// Queues the step of a batch.
    fn step(&self, session: &mut Session, batch: &Batch) -> Result<(), RunError> {
        resident::feed(session, self.plan, batch)?;
        Ok(session.run(self.plan, &self.uniforms(batch.step))?)
    }

    /// Adds up the scalars of the steps since the last call, all that the host reads of them. Stops
    /// the probe if one is not finite.
    fn end_epoch(&self, session: &mut Session) -> Result<Epoch, RunError> {
        let batch = self.order.batch_size() as f64;
        let mut epoch = Epoch::default();
        for (step, values) in session.drain(self.plan)? {
            if values.iter().any(|x| !x.is_finite()) {
                return Err(self.failure(session, step, &values)?);
            }
            epoch.loss += f64::from(values[0]) * batch;
            epoch.correct += f64::from(values[1]);
            epoch.seen += batch;
        }
        Ok(epoch)
    }

    /// Runs a step again, op by op, for the first tensor that is not finite: since that step
    /// nothing has been updated.
    fn failure(
        &self,
        session: &mut Session,
        step: u32,
        values: &[f32],
    ) -> Result<RunError, RunError> {
        let what = RunError::what(&session.plan(self.plan).ring.scalars, values);
        let step = u64::from(step);
        if let Some(batch) = self.batches(session, step..step + 1)?.next() {
            resident::feed(session, self.plan, &batch?)?;
        }
        let tensor = session.first_non_finite(self.plan, &self.uniforms(step))?;
        Ok(RunError::NotFinite { split: "probe's", step: step + 1, what, tensor })
    }
}

/// Sums over the steps of an epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Epoch {
    loss: f64,
    correct: f64,
    /// Images that were seen.
    seen: f64,
}

impl Epoch {
    fn accuracy(&self) -> f64 {
        self.correct / self.seen.max(1.0)
    }

    fn loss(&self) -> f64 {
        self.loss / self.seen.max(1.0)
    }
}

/// Fraction of the test images that the trained classifier is right about. Of whole batches the
/// host reads how many rows are, of a last one that is padded the logits.
fn accuracy(evaluator: &mut Evaluator, test: &Features) -> Result<f64, RunError> {
    let Evaluator { session, model, classes, frozen, .. } = evaluator;
    let graph = |batch| {
        let model = ModelConfig { batch, ..*model };
        method::probe_test(&model, &frozen.layout, *classes).graph
    };
    let fit = Fit { option: "--batch-size", asked: model.batch, least: 1 };
    let plan = fit::load(session, "the probe's test plan", fit, &graph)?;
    let batch = model.batch;
    for (rows, labels) in test.data.chunks(batch * test.dim).zip(test.labels.chunks(batch)) {
        let (mut rows, mut labels) = (rows.to_vec(), labels.to_vec());
        rows.resize(batch * test.dim, 0.0);
        labels.resize(batch, 0);
        session.upload(plan, 0, Data::F32(&rows))?;
        session.upload(plan, 1, Data::U32(&labels))?;
        session.run(plan, &StepUniforms::default())?;
    }
    let (runs, whole) = (session.drain(plan)?, test.len() / batch);
    let mut hits: f64 = runs[..whole].iter().map(|(_, values)| f64::from(values[1])).sum();
    let last = &test.labels[whole * batch..];
    if !last.is_empty() {
        let logits = session.read(plan, 2)?;
        let right = |(row, label): &(&[f32], &u32)| argmax(&row[..*classes]) == **label as usize;
        hits += logits.chunks(logits.len() / batch).zip(last).filter(right).count() as f64;
    }
    Ok(hits / test.len() as f64)
}

fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

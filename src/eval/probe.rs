//! The linear probe (the paper, section 4): one linear layer on the frozen encoder, SGD with
//! Nesterov momentum .9, learning rate `.1 * batch / 256` decayed to 0 by a cosine (per step), no
//! weight decay, crops of 4-pixel padding and flips.

use std::f64::consts::PI;

use super::evaluator::Evaluator;
use super::knn::Features;
use crate::data::{Loader, Order, View};
use crate::device::{Data, Session};
use crate::ir::{Graph, Group, autodiff};
use crate::method;
use crate::nn::Builder;
use crate::ops::{Emit, Sgd, SoftmaxCrossEntropy, StepUniforms};
use crate::run::RunError;
use crate::tensor::{Shape, TensorType};

/// What the probe is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct ProbeConfig {
    /// Passes over the training images; the paper's 90.
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
    (base * 0.5 * (1.0 + (PI * step as f64 / total as f64).cos())) as f32
}

/// Trains a probe on `train` and tests it on `test`. `session` carries the linear layer; the
/// evaluator carries the encoder.
///
/// # Errors
/// If data or device fail.
pub fn probe(
    evaluator: &mut Evaluator,
    mut session: Session,
    config: ProbeConfig,
    train: &View,
    test: &Features,
    mut progress: impl FnMut(usize, f64),
) -> Result<ProbeResult, RunError> {
    let (batch, dim) = (evaluator.model.batch, evaluator.model.net.features());
    let classes = train.dataset.classes().len();
    let (training, layout) = classifier(batch, dim, classes, None);
    session.allocate(&layout);
    let plan = session.load(session.lower("probe", &training.graph))?;
    let (testing, _) = classifier(batch, dim, classes, Some(&layout));
    let test_plan = session.load(session.lower("probe test", &testing.graph))?;
    crate::run::state::initialise(&mut session, &layout, &training.params, config.seed)?;

    let order = Order::new(train.len(), batch, config.seed, true)?;
    let total = order.steps_per_epoch() * config.epochs as u64;
    let (mut correct, mut loss, mut seen) = (0.0, 0.0, 0.0);
    for item in Loader::new(train, order, 0..total)? {
        let item = item?;
        let step = StepUniforms {
            seed_lo: config.seed as u32,
            seed_hi: (config.seed >> 32) as u32,
            step: item.step as u32,
            learning_rate: learning_rate(batch, item.step, total),
            ..StepUniforms::default()
        };
        let features = evaluator.features_of(&item.pixels, Some(&step))?;
        session.upload(plan, 0, Data::F32(&features))?;
        session.upload(plan, 1, Data::U32(&item.labels))?;
        session.run(plan, &step)?;
        let end = (item.step + 1) % order.steps_per_epoch() == 0;
        if end {
            (correct, loss, seen) = (0.0, 0.0, 0.0);
            for (step, values) in session.drain(plan)? {
                if values.iter().any(|x| !x.is_finite()) {
                    let what = RunError::what(&session.plan(plan).ring.scalars, &values);
                    let (step, tensor) = (u64::from(step) + 1, "classifier".into());
                    return Err(RunError::NotFinite { split: "probe's", step, what, tensor });
                }
                loss += f64::from(values[0]) * batch as f64;
                correct += f64::from(values[1]);
                seen += batch as f64;
            }
            progress(item.epoch as usize + 1, correct / seen);
        }
    }
    // The last test batch is padded; only its valid rows count.
    let mut hits = 0.0;
    for (rows, labels) in test.data.chunks(batch * dim).zip(test.labels.chunks(batch)) {
        let valid = labels.len();
        let (mut rows, mut labels) = (rows.to_vec(), labels.to_vec());
        rows.resize(batch * dim, 0.0);
        labels.resize(batch, 0);
        session.upload(test_plan, 0, Data::F32(&rows))?;
        session.upload(test_plan, 1, Data::U32(&labels))?;
        session.run(test_plan, &StepUniforms::default())?;
        session.drain(test_plan)?;
        let logits = session.read(test_plan, 0)?;
        let wide = logits.len() / batch;
        hits += (0..valid)
            .filter(|&i| argmax(&logits[i * wide..i * wide + classes]) == labels[i] as usize)
            .count() as f64;
    }
    Ok(ProbeResult {
        test: hits / test.labels.len() as f64,
        train: correct / f64::max(seen, 1.0),
        loss: loss / f64::max(seen, 1.0),
    })
}

fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// The linear layer; with a layout, for testing (logits only).
fn classifier(
    batch: usize,
    dim: usize,
    classes: usize,
    layout: Option<&crate::ir::Layout>,
) -> (method::Model, crate::ir::Layout) {
    let mut b = Builder::new(
        layout.map_or_else(Graph::default, |l| Graph::with_layout(l.clone())),
        layout.is_none(),
    );
    let x = b.graph.input("features", TensorType::f32(Shape::rows(batch, dim)));
    let labels = b.graph.input("labels", TensorType::u32(Shape::rows(batch, 1)));
    let logits = b.linear("classifier", x, classes, true);
    b.graph.label("loss");
    if layout.is_some() {
        b.graph.output("logits", logits);
    }
    let out = b.graph.emit(SoftmaxCrossEntropy { classes }.into(), &[logits, labels]);
    b.graph.output("loss", out[0]);
    if layout.is_none() {
        b.graph.output("correct", out[1]);
        autodiff::backward(&mut b.graph, out[0]);
        let [param, grad, m] =
            [Group::Param, Group::Grad, Group::Moment1].map(|g| b.graph.whole(g));
        let guard = crate::optim::guard(&mut b.graph, Group::Grad, out[0]);
        b.graph.output(crate::optim::FINITE, guard);
        b.graph.label("optimizer");
        b.graph.emit(
            Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0, plain: vec![] }.into(),
            &[param, grad, m, guard],
        );
    }
    let layout = b.graph.layout.clone();
    (method::Model { graph: b.graph, params: b.params }, layout)
}

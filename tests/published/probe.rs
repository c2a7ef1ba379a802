//! The linear probe against PyTorch's SGD as its documentation states it, computed here in f64 on
//! the same features. Images of one colour look the same after every crop and flip, so that the
//! features of a step are those of the images.

use std::ffi::OsString;
use std::sync::Arc;

use crate::support::config;
use aavae::data::{DataError, Dataset, Order, Subset};
use aavae::device::{Host, Session};
use aavae::eval::features::Evaluator;
use aavae::eval::probe::{ProbeConfig, probe};
use aavae::ir::Group;
use aavae::method::{self, Method, Protocol};
use aavae::run::state;

const CLASSES: usize = 3;
const BATCH: usize = 8;
const EPOCHS: usize = 6;
const SEED: u64 = 5;

/// Images of one colour each; the classes overlap.
struct Colours {
    classes: Vec<OsString>,
}

impl Colours {
    fn subset() -> Subset {
        Subset::full(Arc::new(Self { classes: ["a", "b", "c"].map(OsString::from).to_vec() }))
    }
}

impl Dataset for Colours {
    fn name(&self) -> &str {
        "colours"
    }
    fn len(&self) -> usize {
        5 * BATCH
    }
    fn image_size(&self) -> usize {
        16
    }
    fn classes(&self) -> &[OsString] {
        &self.classes
    }
    fn label(&self, index: usize) -> u32 {
        (index * 7 % 5 % CLASSES) as u32
    }
    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        let colour = [0, 1, 2].map(|c| (index * [53, 91, 37][c] % 256) as u8);
        out.chunks_mut(3).for_each(|pixel| pixel.copy_from_slice(&colour));
        Ok(())
    }
    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        ([0.5; 3], [0.25; 3])
    }
}

/// What may be wrong with an optimiser.
#[derive(Clone, Copy)]
struct Sgd {
    momentum: f64,
    nesterov: bool,
    /// Rate at the first step.
    rate: f64,
    cosine: bool,
}

/// The paper's section 4 and SimCLR's linear evaluation: momentum .9 with Nesterov, `.1 B / 256`.
const PUBLISHED: Sgd =
    Sgd { momentum: 0.9, nesterov: true, rate: 0.1 * BATCH as f64 / 256.0, cosine: true };

/// Means over the last epoch of the loss and of the share of images told right, and the trained
/// `[W, b]`, of `CrossEntropyLoss` and `torch.optim.SGD`: `v = mu v + g` (`v = g` at first);
/// `w -= lr (g + mu v)` with Nesterov's momentum, else `w -= lr v`.
fn train(
    sgd: Sgd,
    (x, dim): (&[f32], usize),
    labels: &[u32],
    start: &[f64],
    order: &Order,
) -> ([f64; 2], Vec<f64>) {
    let (mut w, mut v) = (start.to_vec(), vec![0.0; start.len()]);
    let total = order.steps_per_epoch() * EPOCHS as u64;
    let mut losses = vec![];
    for step in 0..total {
        let (epoch, first) = order.locate(step);
        let images = &order.epoch(epoch)[first..first + BATCH];
        let (mut g, mut loss, mut hits) = (vec![0.0; w.len()], 0.0, 0.0);
        for &image in images {
            let (row, label) = (&x[image as usize * dim..][..dim], labels[image as usize] as usize);
            let logits = logits(&w, row);
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            loss += (sum.ln() - logits[label]) / BATCH as f64;
            hits += f64::from(logits.iter().all(|l| *l <= logits[label])) / BATCH as f64;
            for c in 0..CLASSES {
                let d = (logits[c].exp() / sum - f64::from(c == label)) / BATCH as f64;
                row.iter().enumerate().for_each(|(i, x)| g[c * dim + i] += d * f64::from(*x));
                g[CLASSES * dim + c] += d;
            }
        }
        losses.push([loss, hits]);
        let angle = std::f64::consts::PI * step as f64 / total as f64;
        let rate = if sgd.cosine { sgd.rate * (1.0 + angle.cos()) / 2.0 } else { sgd.rate };
        for ((w, v), g) in w.iter_mut().zip(&mut v).zip(g) {
            *v = sgd.momentum * *v + g;
            *w -= rate * if sgd.nesterov { g + sgd.momentum * *v } else { *v };
        }
    }
    let last = &losses[losses.len() - order.steps_per_epoch() as usize..];
    ([0, 1].map(|i| last.iter().map(|row| row[i]).sum::<f64>() / last.len() as f64), w)
}

fn logits(w: &[f64], row: &[f32]) -> [f64; CLASSES] {
    let dim = row.len();
    std::array::from_fn(|c| {
        let products = row.iter().zip(&w[c * dim..]).map(|(x, w)| f64::from(*x) * w);
        products.sum::<f64>() + w[CLASSES * dim + c]
    })
}

/// The classifier as the probe initialises it: `[W, b]`.
fn initial(config: &method::ModelConfig, dim: usize) -> Vec<f64> {
    let frozen = method::frozen(config, CLASSES);
    let mut session = Session::from(Host::<f32>::new());
    session.allocate(&frozen.layout);
    state::initialise(&mut session, &frozen.layout, &frozen.classifier, SEED).expect("weights");
    let mut read = |name: &str, len: usize| {
        let range = frozen.layout.get(name).expect("a part of the classifier").range;
        let all = session.read_state(Group::Param).expect("weights");
        all[range.offset..][..len].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
    };
    let weight = read("classifier.weight", CLASSES * dim);
    [weight, read("classifier.bias", CLASSES)].concat()
}

#[test]
fn a_probe_is_pytorchs_sgd() {
    let mut config = config(Method::Vae, 16, BATCH);
    let subset = Colours::subset();
    (config.mean, config.std) = subset.dataset.mean_std();
    let session = Session::from(Host::<f32>::new());
    let mut evaluator =
        Evaluator::new(session, config, Protocol::PadCrop, CLASSES, None, 1).expect("a model");
    let features = evaluator.features(&subset, |_| ()).expect("features");
    let asked = ProbeConfig { epochs: EPOCHS, seed: SEED };
    let mut said = vec![];
    let result = probe(&mut evaluator, asked, &subset, &features, |epoch, accuracy| {
        said.push((epoch, accuracy));
    });
    let result = result.expect("a probe");
    let epochs: Vec<usize> = said.iter().map(|row| row.0).collect();
    assert_eq!(epochs, (1..=EPOCHS).collect::<Vec<_>>(), "each epoch is said once");
    assert_eq!(said.last().map(|row| row.1), Some(result.train));

    let order = Order::new(subset.len(), BATCH, SEED, true).expect("an order");
    let start = initial(&config, features.dim);
    let x = (&features.data[..], features.dim);
    let run = |sgd| train(sgd, x, &features.labels, &start, &order);
    let ([loss, accuracy], trained) = run(PUBLISHED);
    assert!((result.train - accuracy).abs() < 1e-9, "{result:?}, by hand {accuracy}");
    assert!((result.loss / loss - 1.0).abs() < 1e-4, "{result:?}, by PyTorch's formula {loss}");
    let right = |(row, label): &(&[f32], &u32)| {
        let logits = logits(&trained, row);
        (0..CLASSES).all(|c| logits[c] <= logits[**label as usize])
    };
    let hits = x.0.chunks(x.1).zip(&features.labels).filter(right).count();
    assert_eq!(result.test, hits as f64 / subset.len() as f64, "{result:?}");

    // Each of these would be seen.
    for (name, wrong) in [
        ("no momentum", Sgd { momentum: 0.0, ..PUBLISHED }),
        ("no Nesterov", Sgd { nesterov: false, ..PUBLISHED }),
        ("no rate", Sgd { rate: 0.0, ..PUBLISHED }),
        ("no cosine", Sgd { cosine: false, ..PUBLISHED }),
    ] {
        let other = run(wrong).0[0];
        assert!((other / loss - 1.0).abs() > 1e-3, "{name}: {other} beside {loss}");
    }
}

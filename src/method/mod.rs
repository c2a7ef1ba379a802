//! The methods of the paper's Table 1: each file is one equation. This file assembles the graph of a step around them.

mod aaae;
mod aavae;
mod ae;
mod measure;
mod vae;

pub use measure::{importance, log_weights, views};

use serde::{Deserialize, Serialize};

use crate::ir::{Graph, Group, Layout, autodiff, fuse};
use crate::model::NetConfig;
use crate::nn::{Builder, FileLayout, Init, Params};
use crate::ops::{
    Adam, AugmentParams, ColorJitter, CropResize, Decode, Emit, GaussianBlur, Normalize, ProbeAugment, Recipe, Scale, SoftmaxCrossEntropy,
    ValueId,
};
use crate::tensor::{Shape, TensorType};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Autoencoder.
    Ae,
    /// Variational autoencoder.
    Vae,
    /// Augmentation-augmented autoencoder.
    Aaae,
    /// Augmentation-augmented variational autoencoder.
    Aavae,
}

impl Method {
    /// Whether the encoder sees an augmented view.
    pub const fn augments(self) -> bool {
        matches!(self, Self::Aaae | Self::Aavae)
    }
    /// Whether the latent is sampled.
    pub const fn samples(self) -> bool {
        matches!(self, Self::Vae | Self::Aavae)
    }
    /// Weight of the KL term where none is given: 1 for the VAE, 0 for AAVAE (its augmentation takes the KL's place).
    pub const fn default_kl_coeff(self) -> f32 {
        if matches!(self, Self::Vae) { 1.0 } else { 0.0 }
    }
    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ae => "ae",
            Self::Vae => "vae",
            Self::Aaae => "aaae",
            Self::Aavae => "aavae",
        }
    }
}

/// What a reconstruction is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// The original image (the paper's equations).
    Original,
    /// The augmented view (the authors' released autoencoder).
    View,
}

/// The objective's free parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Method.
    pub method: Method,
    /// Weight of the KL term.
    pub kl_coeff: f32,
    /// Logarithm of the likelihood's variance.
    pub log_scale: f32,
    /// Whether it is trained.
    pub learn_log_scale: bool,
    /// Target of the reconstruction.
    pub target: Compare,
}

/// Everything a graph is built from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Networks.
    pub net: NetConfig,
    /// Objective.
    pub objective: Objective,
    /// Mean of the pixels, in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of the pixels.
    pub std: [f32; 3],
    /// Images per step.
    pub batch: usize,
    /// Classes of the linear classifier that is trained along on the features, if one is.
    pub online_probe: Option<usize>,
}

/// Images as a method sees them: normalised, `[N, H, W, 4]`.
#[derive(Clone, Copy, Debug)]
struct Images {
    original: ValueId,
    view: ValueId,
    target: ValueId,
    /// Noise of the reparameterisation, where it is given rather than drawn.
    eps: Option<ValueId>,
}

/// What a method returns.
struct Outcome {
    loss: ValueId,
    reconstruction: ValueId,
    /// Features, posterior and latent.
    latent: Vec<(&'static str, ValueId)>,
    /// Scalars to log.
    metrics: Vec<(&'static str, ValueId)>,
}

/// A graph and the parameters it uses.
#[derive(Debug)]
pub struct Model {
    /// The step.
    pub graph: Graph,
    /// Its parameters.
    pub params: Params,
}

/// How a graph treats the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Drawn on the device, as in pretraining.
    Augmented,
    /// Uploaded: `original` and `view` normalised `[N, H, W, 4]`, `eps` `[N, samples, 1, latent]` (replays and parity tests).
    Given,
}

/// The images of a step, and noise for so many samples of each where it is given.
fn images(b: &mut Builder, config: &ModelConfig, view: View, samples: usize) -> Images {
    let side = config.net.image;
    let method = config.objective.method;
    let (original, view, eps) = match view {
        View::Given => {
            let ty = TensorType::f32(Shape::new(config.batch, side, side, 4));
            let original = b.graph.input("original", ty);
            let view = if method.augments() { b.graph.input("view", ty) } else { original };
            let noise = TensorType::f32(Shape::new(config.batch, samples, 1, config.net.latent));
            let eps = method.samples().then(|| b.graph.input("eps", noise));
            (original, view, eps)
        }
        View::Augmented => {
            let (pixels, original) = decoded(b, config);
            (original, if method.augments() { augment(b, config, pixels) } else { original }, None)
        }
    };
    let target = if config.objective.target == Compare::View { view } else { original };
    Images { original, view, target, eps }
}

/// The uploaded pixels, and the images that they are.
fn decoded(b: &mut Builder, config: &ModelConfig) -> (ValueId, ValueId) {
    let side = config.net.image;
    let pixels = b.graph.input("pixels", TensorType::u32(Shape::new(config.batch, side, side, 1)));
    b.graph.label("original");
    (pixels, b.graph.emit1(Decode { mean: config.mean, std: config.std }.into(), &[pixels]))
}

/// SimCLR's augmentation (the paper's section 4): crop, flip, jitter, grey, blur, normalise.
fn augment(b: &mut Builder, config: &ModelConfig, pixels: ValueId) -> ValueId {
    let side = config.net.image;
    let recipe = match config.net.stem {
        crate::model::Stem::Cifar => Recipe::cifar(),
        // SimCLR's kernel: a tenth of the height, made odd.
        _ => Recipe { blur_kernel: (side / 10) | 1, ..Recipe::stl() },
    };
    b.graph.label("augment");
    let params = b.graph.emit1(AugmentParams { recipe, n: config.batch, in_h: side, in_w: side }.into(), &[]);
    let x = b.graph.emit1(CropResize { out_h: side, out_w: side }.into(), &[pixels, params]);
    if recipe.blur_p == 0.0 {
        return b.graph.emit1(ColorJitter { normalize: Some((config.mean, config.std)) }.into(), &[x, params]);
    }
    let x = b.graph.emit1(ColorJitter { normalize: None }.into(), &[x, params]);
    let x = b.graph.emit1(GaussianBlur { kernel: recipe.blur_kernel }.into(), &[x, params]);
    b.graph.emit1(Normalize { mean: config.mean, std: config.std }.into(), &[x])
}

/// The width of the likelihood: a parameter where it is learned, otherwise a stored constant.
fn log_scale(b: &mut Builder, objective: &Objective) -> ValueId {
    let group = if objective.learn_log_scale { Group::Param } else { Group::Buffer };
    b.param("log_scale", Shape::SCALAR, group, Init::Constant(objective.log_scale), FileLayout::Vector { len: 1 })
}

fn outcome(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    match config.objective.method {
        Method::Ae => ae::objective(b, config, images),
        Method::Vae => vae::objective(b, config, images),
        Method::Aaae => aaae::objective(b, config, images),
        Method::Aavae => aavae::objective(b, config, images),
    }
}

/// The classifier that is trained along: `min -ln softmax(W h + b)[label]` in W and b alone, the features being constants. Its scalars.
fn online_probe(b: &mut Builder, config: &ModelConfig, outcome: &Outcome) -> Vec<(&'static str, ValueId)> {
    let Some(classes) = config.online_probe else { return vec![] };
    let features = outcome.latent.iter().find(|(name, _)| *name == "h").expect("every method names its features").1;
    let rows = b.graph.ty(features).shape.n;
    let labels = b.graph.input("labels", TensorType::u32(Shape::rows(rows, 1)));
    let logits = b.linear(ONLINE_PROBE, features, classes, true);
    b.graph.label("online_probe.loss");
    let out = b.graph.emit(SoftmaxCrossEntropy { classes }.into(), &[logits, labels]);
    let accuracy = b.graph.emit1(Scale { a: 1.0 / rows as f32 }.into(), &[out[1]]);
    if b.training {
        autodiff::backward_in(&mut b.graph, out[0], &|name| name.starts_with(ONLINE_PROBE));
    }
    vec![("online_loss", out[0]), ("online_accuracy", accuracy)]
}

/// Begins the names of the parameters of the classifier that is trained along; they are the last of the layout.
pub const ONLINE_PROBE: &str = "online_probe";

/// Options of the training graph that only tests and replays change.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Images.
    pub view: View,
    /// Move elementwise tails into convolutions.
    pub fuse: bool,
    /// Append the optimiser (without it the gradients stay readable).
    pub update: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self { view: View::Augmented, fuse: true, update: true }
    }
}

/// Forward, backward and update of one step. Outputs: the scalars `loss`, `log_pxz`, `kl`, … of the method and those of the online probe;
/// without the update also the features `h`, the posterior's `mu` and `logvar`, the latent `z`, and `reconstruction`.
pub fn training(config: &ModelConfig, options: Training) -> Model {
    let mut b = Builder::new(Graph::default(), true);
    let images = images(&mut b, config, options.view, 1);
    let outcome = outcome(&mut b, config, images);
    autodiff::backward(&mut b.graph, outcome.loss);
    let probe = online_probe(&mut b, config, &outcome);
    let mut g = b.graph;
    for (name, value) in outcome.metrics.iter().chain(&probe) {
        g.output(name, *value);
    }
    if !options.update {
        for (name, value) in outcome.latent.iter().chain(&[("reconstruction", outcome.reconstruction)]) {
            g.output(name, *value);
        }
    }
    if options.update {
        let [param, grad, m, v] = [Group::Param, Group::Grad, Group::Moment1, Group::Moment2].map(|group| g.whole(group));
        g.label("optimizer");
        // PyTorch's defaults, which the paper uses.
        g.emit(Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }.into(), &[param, grad, m, v, outcome.loss]);
    }
    if options.fuse {
        fuse::fuse(&mut g);
    }
    Model { graph: g, params: b.params }
}

/// The objective in evaluation mode (running statistics, no update). Outputs: the scalars of the method and of the online probe.
pub fn validation(config: &ModelConfig, layout: &Layout, view: View) -> Model {
    evaluation(layout, |b| {
        let images = images(b, config, view, 1);
        let outcome = outcome(b, config, images);
        let probe = online_probe(b, config, &outcome);
        for (name, value) in outcome.metrics.iter().chain(&probe) {
            b.graph.output(name, *value);
        }
    })
}

/// Originals, views and reconstructions `[N, H, W, 4]`, normalised, in evaluation mode.
pub fn reconstruction(config: &ModelConfig, layout: &Layout) -> Model {
    evaluation(layout, |b| {
        let images = images(b, config, View::Augmented, 1);
        let outcome = outcome(b, config, images);
        b.graph.output("original", images.original);
        b.graph.output("view", images.view);
        b.graph.output("reconstruction", outcome.reconstruction);
    })
}

/// Encoder features `[N, 1, 1, h]` in evaluation mode; `augment` applies the probe's crop and flip.
pub fn features(config: &ModelConfig, layout: &Layout, augment: bool) -> Model {
    evaluation(layout, |b| {
        let side = config.net.image;
        let pixels = b.graph.input("pixels", TensorType::u32(Shape::new(config.batch, side, side, 1)));
        b.graph.label("images");
        let (mean, std) = (config.mean, config.std);
        let x = if augment {
            b.graph.emit1(ProbeAugment { pad: 4, mean, std }.into(), &[pixels])
        } else {
            b.graph.emit1(Decode { mean, std }.into(), &[pixels])
        };
        let h = crate::model::resnet::encoder(b, &config.net, x);
        b.graph.output("features", h);
    })
}

fn evaluation(layout: &Layout, build: impl FnOnce(&mut Builder)) -> Model {
    let mut b = Builder::new(Graph::with_layout(layout.clone()), false);
    build(&mut b);
    assert_eq!(b.graph.layout, *layout, "evaluation uses the parameters of training");
    fuse::fuse(&mut b.graph);
    Model { graph: b.graph, params: b.params }
}

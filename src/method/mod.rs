//! The methods of the paper's Table 1 and SimCLR, with which it compares: each file is one
//! equation. This file assembles the graph of a step around them.

mod aaae;
mod aavae;
mod ae;
mod measure;
mod simclr;
mod update;
mod vae;

pub use measure::{importance, log_weights, views};
pub use update::{FINITE, Optimizer, Update, guard};

use serde::{Deserialize, Serialize};

use crate::ir::{Graph, Group, Layout, autodiff};
use crate::model::NetConfig;
use crate::nn::{Builder, FileLayout, Init, Params};
use crate::ops::{
    Accumulate, AugmentParams, ColorJitter, CropResize, Decode, Emit, GaussianBlur, Normalize,
    ProbeAugment, RandomNormal, Recipe, Reparameterize, ResizeCenter, Scale, SoftmaxCrossEntropy,
    ValueId,
};
use crate::rng::Stream;
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
    /// Contrastive learning of two views.
    Simclr,
}

impl Method {
    /// Whether the encoder sees an augmented view.
    pub const fn augments(self) -> bool {
        matches!(self, Self::Aaae | Self::Aavae | Self::Simclr)
    }
    /// Views of each image that the encoder sees, the original counted as one.
    pub const fn views(self) -> usize {
        if matches!(self, Self::Simclr) { 2 } else { 1 }
    }
    /// Whether there is a decoder, and so a reconstruction.
    pub const fn reconstructs(self) -> bool {
        !matches!(self, Self::Simclr)
    }
    /// Whether the latent is sampled.
    pub const fn samples(self) -> bool {
        matches!(self, Self::Vae | Self::Aavae)
    }
    /// Weight of the KL term where none is given: 1 for the VAE, 0 for AAVAE (its augmentation
    /// takes the KL's place).
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
            Self::Simclr => "simclr",
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
    /// Temperature of the contrastive loss.
    pub temperature: f32,
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
    /// All images' first views, then their second ones, as many as the method sees.
    view: ValueId,
    target: ValueId,
    /// Noise of the reparameterisation, where it is given rather than drawn.
    eps: Option<ValueId>,
}

/// What a method returns.
struct Outcome {
    loss: ValueId,
    reconstruction: Option<ValueId>,
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
    /// Uploaded, what the method reads of: `original` `[N, H, W, 4]` and `view`
    /// `[views * N, H, W, 4]`, normalised, `eps` `[N, samples, 1, latent]` (replays and parity
    /// tests).
    Given,
}

/// The images of a step, and noise for so many samples of each where it is given.
fn images(b: &mut Builder, config: &ModelConfig, view: View, samples: usize) -> Images {
    let side = config.net.image;
    let method = config.objective.method;
    let (original, view, eps) = match view {
        View::Given => {
            let mut input =
                |name, n| b.graph.input(name, TensorType::f32(Shape::new(n, side, side, 4)));
            let original = method.reconstructs().then(|| input("original", config.batch));
            let view = method.augments().then(|| input("view", config.batch * method.views()));
            // A method that reads only one of them gets it as both.
            let [original, view] = [original.or(view), view.or(original)]
                .map(|x| x.expect("every method sees images"));
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
    let views = config.objective.method.views();
    let params = b.graph.emit1(
        AugmentParams {
            recipe,
            n: config.batch,
            views,
            in_h: side,
            in_w: side,
            stream: Stream::Augment,
        }
        .into(),
        &[],
    );
    let x = b.graph.emit1(CropResize { out_h: side, out_w: side }.into(), &[pixels, params]);
    if recipe.blur_p == 0.0 {
        return b.graph.emit1(
            ColorJitter { normalize: Some((config.mean, config.std)) }.into(),
            &[x, params],
        );
    }
    let x = b.graph.emit1(ColorJitter { normalize: None }.into(), &[x, params]);
    let x = b.graph.emit1(GaussianBlur { kernel: recipe.blur_kernel }.into(), &[x, params]);
    b.graph.emit1(Normalize { mean: config.mean, std: config.std }.into(), &[x])
}

/// The width of the likelihood: a parameter where it is learned, otherwise a stored constant.
fn log_scale(b: &mut Builder, objective: &Objective) -> ValueId {
    let group = if objective.learn_log_scale { Group::Param } else { Group::Buffer };
    b.param(
        "log_scale",
        Shape::SCALAR,
        group,
        Init::Constant(objective.log_scale),
        FileLayout::Vector { len: 1 },
    )
}

fn outcome(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    match config.objective.method {
        Method::Ae => ae::objective(b, config, images),
        Method::Vae => vae::objective(b, config, images),
        Method::Aaae => aaae::objective(b, config, images),
        Method::Aavae => aavae::objective(b, config, images),
        Method::Simclr => simclr::objective(b, config, images),
    }
}

/// The classifier that is trained along: `min -ln softmax(W h + b)[label]` in W and b alone, the
/// features being constants. Its scalars.
fn online_probe(
    b: &mut Builder,
    config: &ModelConfig,
    outcome: &Outcome,
) -> Vec<(&'static str, ValueId)> {
    let Some(classes) = config.online_probe else { return vec![] };
    let features = outcome
        .latent
        .iter()
        .find(|(name, _)| *name == "h")
        .expect("every method names its features")
        .1;
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

/// Begins the names of the parameters of the classifier that is trained along; they are the last of
/// the layout.
pub const ONLINE_PROBE: &str = "online_probe";

/// Options of the training graph.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Images.
    pub view: View,
    /// Append the optimiser (without it the gradients stay readable).
    pub update: bool,
    /// The optimiser.
    pub rule: Update,
    /// Batches of an update. If it is more than 1, a graph adds its part to the mean gradient in
    /// place of the optimiser, and [`update()`] follows the last.
    pub accumulate: usize,
    /// BatchNorm with running statistics as constants: the mean gradient of several batches is then
    /// that of the large one.
    pub freeze_statistics: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            view: View::Augmented,
            update: true,
            rule: Update::default(),
            accumulate: 1,
            freeze_statistics: false,
        }
    }
}

/// Forward, backward and update of one step, or one batch of it. Outputs: the scalars `loss`,
/// `log_pxz`, `kl`, … of the method and those of the online probe; with the update then [`FINITE`],
/// without it the features `h`, the posterior's `mu` and `logvar`, the latent `z`, and the
/// `reconstruction`, where there is one.
pub fn training(config: &ModelConfig, options: Training) -> Model {
    let mut b = Builder::new(Graph::default(), !options.freeze_statistics);
    let images = images(&mut b, config, options.view, 1);
    let outcome = outcome(&mut b, config, images);
    autodiff::backward(&mut b.graph, outcome.loss);
    let probe = online_probe(&mut b, config, &outcome);
    let mut g = b.graph;
    for (name, value) in outcome.metrics.iter().chain(&probe) {
        g.output(name, *value);
    }
    if !options.update {
        for (name, value) in
            outcome.latent.into_iter().chain(outcome.reconstruction.map(|r| ("reconstruction", r)))
        {
            g.output(name, value);
        }
    }
    if options.accumulate > 1 {
        accumulate(&mut g, options.accumulate, outcome.loss);
    } else if options.update {
        options.rule.emit(&mut g, Group::Grad, outcome.loss);
    }
    Model { graph: g, params: b.params }
}

/// Adds this batch's part to the mean gradient and the mean loss of `batches`.
fn accumulate(g: &mut Graph, batches: usize, loss: ValueId) {
    let scale = 1.0 / batches as f32;
    let (sum, grad) = (update::gradient(g, Group::Accumulated), g.whole(Group::Grad));
    g.label("accumulate");
    g.emit(Accumulate { scale }.into(), &[sum, grad]);
    let mean = accumulated_loss(g);
    g.emit(Accumulate { scale }.into(), &[mean, loss]);
}

/// The mean loss of a step's batches. It is finite only if each of them is.
fn accumulated_loss(g: &mut Graph) -> ValueId {
    let range = g.layout.accumulated_loss();
    g.at("accumulated_loss", Shape::SCALAR, range)
}

/// The update from the gradient that several batches have accumulated ([`Training::accumulate`]).
/// Its output is [`FINITE`].
pub fn update(layout: &Layout, rule: Update) -> Graph {
    let mut g = Graph::with_layout(layout.clone());
    let loss = accumulated_loss(&mut g);
    rule.emit(&mut g, Group::Accumulated, loss);
    g
}

/// The objective in evaluation mode (running statistics, no update). Outputs: the scalars of the
/// method and of the online probe.
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

/// What is drawn of a method, normalised, in evaluation mode: `original` `[N, H, W, 4]`, `view`
/// `[views * N, H, W, 4]`, and `reconstruction` `[N, H, W, 4]`, where there is one.
pub fn figures(config: &ModelConfig, layout: &Layout) -> Model {
    evaluation(layout, |b| {
        let images = images(b, config, View::Augmented, 1);
        b.graph.output("original", images.original);
        b.graph.output("view", images.view);
        if let Some(reconstruction) = outcome(b, config, images).reconstruction {
            b.graph.output("reconstruction", reconstruction);
        }
    })
}

/// What images go through before a frozen encoder (the paper's section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A probe trains on crops of the image padded by 4 pixels, flipped at random, and is tested on
    /// the image itself.
    PadCrop,
    /// STL-10: a probe trains on random resized crops, flipped at random, and is tested on the
    /// centre of the image resized by 105 / 96.
    ResizedCrop,
}

/// Encoder features `[N, 1, 1, h]` in evaluation mode; `augment` asks for the images that a probe
/// trains on.
pub fn features(config: &ModelConfig, layout: &Layout, protocol: Protocol, augment: bool) -> Model {
    evaluation(layout, |b| {
        let side = config.net.image;
        let pixels =
            b.graph.input("pixels", TensorType::u32(Shape::new(config.batch, side, side, 1)));
        b.graph.label("images");
        let (mean, std) = (config.mean, config.std);
        let x = match (protocol, augment) {
            (Protocol::PadCrop, true) => {
                b.graph.emit1(ProbeAugment { pad: 4, mean, std }.into(), &[pixels])
            }
            (Protocol::PadCrop, false) => b.graph.emit1(Decode { mean, std }.into(), &[pixels]),
            (Protocol::ResizedCrop, true) => {
                let recipe = Recipe::crop_and_flip();
                let draws = AugmentParams {
                    recipe,
                    n: config.batch,
                    views: 1,
                    in_h: side,
                    in_w: side,
                    stream: Stream::Probe,
                };
                let params = b.graph.emit1(draws.into(), &[]);
                let x = b
                    .graph
                    .emit1(CropResize { out_h: side, out_w: side }.into(), &[pixels, params]);
                b.graph.emit1(Normalize { mean, std }.into(), &[x])
            }
            (Protocol::ResizedCrop, false) => {
                let full = side * 105 / 96;
                b.graph.emit1(
                    ResizeCenter {
                        full_h: full,
                        full_w: full,
                        out_h: side,
                        out_w: side,
                        mean,
                        std,
                    }
                    .into(),
                    &[pixels],
                )
            }
        };
        let h = crate::model::resnet::encoder(b, &config.net, x);
        b.graph.output("features", h);
    })
}

/// An augmented view of every image, whatever the method trains on, and what the network makes of
/// it in evaluation mode. Outputs: `view` `[N, H, W, 4]`, normalised; features `h`; for methods
/// that sample the posterior's mean `mu`; the latent `z`, `[N, 1, 1, latent]`.
pub fn embedding(config: &ModelConfig, layout: &Layout) -> Model {
    use crate::model::{projection, resnet};
    evaluation(layout, |b| {
        let side = config.net.image;
        let pixels =
            b.graph.input("pixels", TensorType::u32(Shape::new(config.batch, side, side, 1)));
        let view = augment(b, config, pixels);
        let h = resnet::encoder(b, &config.net, view);
        b.graph.output("view", view);
        b.graph.output("h", h);
        if !config.objective.method.samples() {
            let z = projection::deterministic(b, &config.net, h);
            b.graph.output("z", z);
            return;
        }
        let (mu, logvar) = projection::gaussian(b, &config.net, h);
        b.graph.label("latent");
        let shape = b.graph.ty(mu).shape;
        let eps = b.graph.emit1(RandomNormal { shape, first: 0 }.into(), &[]);
        let z = b.graph.emit1(Reparameterize.into(), &[mu, logvar, eps]);
        b.graph.output("mu", mu);
        b.graph.output("z", z);
    })
}

fn evaluation(layout: &Layout, build: impl FnOnce(&mut Builder)) -> Model {
    let mut b = Builder::new(Graph::with_layout(layout.clone()), false);
    build(&mut b);
    assert_eq!(b.graph.layout, *layout, "evaluation uses the parameters of training");
    Model { graph: b.graph, params: b.params }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Depth, Stem};
    use crate::ops::Op;

    /// The ops before the encoder.
    fn transforms(protocol: Protocol, augment: bool) -> Vec<Op> {
        let net = NetConfig {
            encoder: Depth::Resnet18,
            decoder: Depth::Resnet18,
            width: 8,
            latent: 16,
            stem: Stem::Stl,
            image: 96,
        };
        let objective = Objective {
            method: Method::Ae,
            kl_coeff: 0.0,
            log_scale: 0.0,
            learn_log_scale: false,
            target: Compare::Original,
            temperature: 0.5,
        };
        let config = ModelConfig {
            net,
            objective,
            mean: [0.5; 3],
            std: [0.25; 3],
            batch: 2,
            online_probe: None,
        };
        let layout = training(&config, Training::default()).graph.layout;
        let nodes = features(&config, &layout, protocol, augment).graph.nodes;
        nodes
            .into_iter()
            .map(|node| node.op)
            .take_while(|op| !matches!(op, Op::Conv2d(_)))
            .collect()
    }

    #[test]
    fn frozen_encoders_see_the_images_of_the_paper() {
        let names = |protocol, augment| {
            transforms(protocol, augment).iter().map(Op::name).collect::<Vec<_>>()
        };
        assert_eq!(names(Protocol::PadCrop, true), ["probe_augment"]);
        assert_eq!(names(Protocol::PadCrop, false), ["decode"]);
        assert_eq!(
            names(Protocol::ResizedCrop, true),
            ["augment_params", "crop_resize", "normalize"]
        );
        let [Op::ResizeCenter(op)] = &transforms(Protocol::ResizedCrop, false)[..] else {
            panic!("one op resizes and cuts")
        };
        assert_eq!([op.full_h, op.full_w, op.out_h, op.out_w], [105, 105, 96, 96]);
    }
}

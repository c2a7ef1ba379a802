//! The graphs of a model: its training step around the equation of a method, and what is computed
//! of it in evaluation mode. All of one model share the layout of its training step.

use super::images::{Images, Views, augment, decode, images, pixels};
use super::latent::{Noise, latent};
use super::{ModelConfig, Outcome};
use crate::ir::{Graph, Group, Layout, autodiff};
use crate::model::{decoder::decoder, resnet::encoder};
use crate::nn::{Builder, Params};
use crate::ops::{Emit, Scale, SoftmaxCrossEntropy, ValueId};
use crate::optim::{self, Update};
use crate::tensor::{Shape, TensorType};

/// A graph and the parameters it uses.
#[derive(Debug)]
pub struct Model {
    /// What is computed, in one step.
    pub graph: Graph,
    /// Parameters and buffers that it uses.
    pub params: Params,
}

/// The equation of the method as a graph.
fn outcome(b: &mut Builder, config: &ModelConfig, images: &Images) -> Outcome {
    (config.objective.method.definition().objective)(b, config, images)
}

/// The classifier that is trained along: `min -ln softmax(W h + b)[label]` in W and b alone, the
/// features being constants. Its scalars.
fn online_probe(
    b: &mut Builder,
    config: &ModelConfig,
    outcome: &Outcome,
) -> Vec<(&'static str, ValueId)> {
    let Some(classes) = config.online_probe else { return vec![] };
    let features = outcome.features;
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
    /// Where the views come from.
    pub views: Views,
    /// Append the optimiser (without it the gradients stay readable).
    pub update: bool,
    /// What turns the gradients into new weights.
    pub rule: Update,
    /// Batches of an update. If it is more than 1, a graph adds its part to the mean gradient in
    /// place of the optimiser, and [`optim::update`] follows the last.
    pub accumulate: usize,
    /// BatchNorm with running statistics as constants: the mean gradient of several batches is then
    /// that of the large one.
    pub freeze_statistics: bool,
    /// The loss is scaled, as what passes between layers is stored as f16
    /// ([`crate::ops::Target::half`]): gradients keep their digits. The range of bf16 needs no
    /// scale.
    pub scaled: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            views: Views::Drawn,
            update: true,
            rule: Update::default(),
            accumulate: 1,
            freeze_statistics: false,
            scaled: false,
        }
    }
}

/// Forward, backward and update of one step, or one batch of it. Outputs: the scalars `loss`,
/// `log_pxz`, `kl`, … of the method and those of the online probe; with the update then
/// [`optim::FINITE`], without it the features `h`, the posterior's `mu` and `logvar`, the latent
/// `z`, and the `reconstruction`, where there is one.
pub fn training(config: &ModelConfig, options: Training) -> Model {
    let layout = Layout { scaled: options.scaled, ..Layout::default() };
    let mut b = Builder::new(Graph::with_layout(layout), !options.freeze_statistics);
    let images = images(&mut b, config, options.views, 1);
    let outcome = outcome(&mut b, config, &images);
    let scale = options.scaled.then(|| b.graph.layout.loss_scale());
    autodiff::backward(&mut b.graph, outcome.loss);
    let probe = online_probe(&mut b, config, &outcome);
    let mut g = b.graph;
    assert!(
        scale.is_none_or(|scale| scale == g.layout.loss_scale()),
        "statistics that are registered behind the loss move its scale"
    );
    for (name, value) in outcome.metrics.iter().chain(&probe) {
        g.output(name, *value);
    }
    if !options.update {
        output_tensors(&mut g, &outcome);
    }
    if options.accumulate > 1 {
        optim::accumulate(&mut g, options.accumulate, outcome.loss);
    } else if options.update {
        options.rule.emit(&mut g, Group::Grad, outcome.loss);
    }
    Model { graph: g, params: b.params }
}

/// Marks what a network makes of the images to be read back.
fn output_tensors(g: &mut Graph, outcome: &Outcome) {
    g.output("h", outcome.features);
    if let Some((mu, logvar)) = outcome.latent.posterior {
        g.output("mu", mu);
        g.output("logvar", logvar);
    }
    g.output("z", outcome.latent.z);
    if let Some(reconstruction) = outcome.reconstruction {
        g.output("reconstruction", reconstruction);
    }
}

/// The objective in evaluation mode (running statistics, no update). Outputs: the scalars of the
/// method and of the online probe.
pub fn validation(config: &ModelConfig, layout: &Layout, views: Views) -> Model {
    evaluation(layout, |b| {
        let images = images(b, config, views, 1);
        let outcome = outcome(b, config, &images);
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
        let images = images(b, config, Views::Drawn, 1);
        b.graph.output("original", images.original);
        b.graph.output("view", images.view);
        if let Some(reconstruction) = outcome(b, config, &images).reconstruction {
            b.graph.output("reconstruction", reconstruction);
        }
    })
}

/// An augmented view of every image, whatever the method trains on, and what the network makes of
/// it in evaluation mode. Outputs: `view` `[N, H, W, 4]`, normalised; features `h`; for methods
/// that sample the posterior's mean `mu`; the latent `z`, `[N, 1, 1, latent]`.
pub fn embedding(config: &ModelConfig, layout: &Layout) -> Model {
    evaluation(layout, |b| {
        let pixels = pixels(b, config);
        let view = augment(b, config, pixels);
        let h = encoder(b, &config.net, view);
        b.graph.output("view", view);
        b.graph.output("h", h);
        let latent = latent(b, config, h, Noise::From(0));
        if let Some((mu, _)) = latent.posterior {
            b.graph.output("mu", mu);
        }
        b.graph.output("z", latent.z);
    })
}

/// Latents of the images themselves in evaluation mode. Output: `latent` `[N, 1, 1, latent]`, for
/// methods that sample the posterior's mean.
pub fn encoding(config: &ModelConfig, layout: &Layout) -> Model {
    evaluation(layout, |b| {
        let pixels = pixels(b, config);
        let x = decode(b, config, pixels);
        let h = encoder(b, &config.net, x);
        let latent = latent(b, config, h, Noise::From(0));
        b.graph.output("latent", latent.posterior.map_or(latent.z, |(mu, _)| mu));
    })
}

/// What the decoder makes of given latents in evaluation mode. Input: `latent` `[N, 1, 1, latent]`.
/// Output: `reconstruction` `[N, H, W, 4]`, normalised.
pub fn decoding(config: &ModelConfig, layout: &Layout) -> Model {
    evaluation(layout, |b| {
        let shape = Shape::rows(config.batch, config.net.latent);
        let z = b.graph.input("latent", TensorType::f32(shape));
        let x = decoder(b, &config.net, z);
        b.graph.output("reconstruction", x);
    })
}

/// A graph in evaluation mode over the parameters of a training step.
pub(super) fn evaluation(layout: &Layout, build: impl FnOnce(&mut Builder)) -> Model {
    let mut b = Builder::new(Graph::with_layout(layout.clone()), false);
    build(&mut b);
    assert_eq!(b.graph.layout, *layout, "evaluation uses the parameters of training");
    Model { graph: b.graph, params: b.params }
}

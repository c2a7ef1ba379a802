//! VAE: `min beta * KL(q(z|x) || N(0, I)) - E_q log p(x|z)` with `beta = 1`.

use super::images::Images;
use super::latent::{Noise, latent};
use super::{Definition, Head, ModelConfig, Objective, Outcome, Parameter};
use crate::ir::Group;
use crate::model::{decoder::decoder, resnet::encoder};
use crate::nn::{Builder, FileLayout, Init};
use crate::ops::{Emit, GaussianNll, KlNormal, Scale, ValueId, WeightedSum};
use crate::tensor::Shape;

pub(super) const METHOD: Definition = Definition {
    title: "a variational autoencoder (VAE)",
    arxiv: "2107.12329",
    equation: "beta KL(q(z|x) || N(0, I)) - E_q log p(x|z)",
    loss: |objective| format!("`{} KL - log p(x|z)`", objective.kl_coeff),
    views: 0,
    head: Head::Gaussian,
    decoder: true,
    per_image: true,
    parameters: &[Parameter::KlCoeff, Parameter::LogScale],
    kl_coeff: 1.0,
    objective: |b, config, images| {
        variational(b, config, images, images.original, images.original)
    },
};

/// `beta * KL(q(z|input)) - log p(target|z)`, one sample of z per image, mean over the batch.
pub(super) fn variational(
    b: &mut Builder,
    config: &ModelConfig,
    images: &Images,
    input: ValueId,
    target: ValueId,
) -> Outcome {
    let h = encoder(b, &config.net, input);
    let latent = latent(b, config, h, images.eps.map_or(Noise::From(0), Noise::Given));
    let (mu, logvar) = latent.posterior.expect("the head of a VAE is Gaussian");
    let reconstruction = decoder(b, &config.net, latent.z);
    let log_scale = log_scale(b, &config.objective);
    b.graph.label("loss");
    let log_pxz =
        b.graph.emit1(GaussianNll { channels: 3 }.into(), &[reconstruction, target, log_scale]);
    let kl = b.graph.emit1(KlNormal.into(), &[mu, logvar]);
    // Without weight the KL is logged, not differentiated: 0 times its gradient would still be a
    // NaN where it overflows.
    let loss = match config.objective.kl_coeff {
        0.0 => b.graph.emit1(Scale { a: -1.0 }.into(), &[log_pxz]),
        beta => b.graph.emit1(WeightedSum { a: beta, b: -1.0 }.into(), &[kl, log_pxz]),
    };
    let metrics = vec![("loss", loss), ("log_pxz", log_pxz), ("kl", kl)];
    Outcome { loss, metrics, features: h, latent, reconstruction: Some(reconstruction) }
}

/// The width of the likelihood: a parameter where it is learned, otherwise a stored constant.
pub(super) fn log_scale(b: &mut Builder, objective: &Objective) -> ValueId {
    let group = if objective.learn_log_scale { Group::Param } else { Group::Buffer };
    b.param(
        "log_scale",
        Shape::SCALAR,
        group,
        Init::Constant(objective.log_scale),
        FileLayout::Vector { len: 1 },
    )
}

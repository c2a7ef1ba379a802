//! SimCLR: `min - mean_i ln(exp(s_ij / T) / sum_{k != i} exp(s_ik / T))` over two views of each of
//! `N` images, with `j` the other view of `i`'s image and `s` the cosine similarities of
//! `P(E(x_i))` for the `2N` views `x_i`.
//!
//! The encoder and the projection run once, on both views: BatchNorm averages over all `2N`.

use super::images::Images;
use super::latent::{Noise, latent};
use super::{Definition, Head, ModelConfig, Outcome, Parameter};
use crate::model::resnet::encoder;
use crate::nn::{Builder, padded};
use crate::ops::{Conv2d, Emit, L2Normalize, NtXent};

pub(super) const METHOD: Definition = Definition {
    title: "SimCLR",
    arxiv: "2002.05709",
    equation: "- mean_i ln(exp(s_ij / T) / sum_{k != i} exp(s_ik / T))",
    loss: |objective| {
        format!("NT-Xent at temperature {} between two views", objective.temperature)
    },
    views: 2,
    head: Head::Deterministic,
    decoder: false,
    // It tells the images of a batch apart.
    per_image: false,
    parameters: &[Parameter::Temperature],
    kl_coeff: 0.0,
    objective,
};

fn objective(b: &mut Builder, config: &ModelConfig, images: &Images) -> Outcome {
    let h = encoder(b, &config.net, images.view);
    let latent = latent(b, config, h, Noise::From(0));
    b.graph.label("loss");
    let views = b.graph.ty(latent.z).shape.n;
    // A product has a multiple of 4 columns: rows of zeros fill it up, and NT-Xent leaves them out.
    let unit = b.graph.emit1(L2Normalize { rows: padded(views) }.into(), &[latent.z]);
    let similarities = b.graph.emit1(Conv2d::new(1, 0).into(), &[unit, unit]);
    let out = b
        .graph
        .emit(NtXent { views, temperature: config.objective.temperature }.into(), &[similarities]);
    let metrics = vec![("loss", out[0]), ("contrastive_accuracy", out[1])];
    Outcome { loss: out[0], metrics, features: h, latent, reconstruction: None }
}

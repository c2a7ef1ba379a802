//! AE: `min || D(P(E(x))) - x ||^2`, mean over pixels.

use super::latent::{Noise, latent};
use super::{Definition, Head, ModelConfig, Outcome};
use crate::model::{decoder::decoder, resnet::encoder};
use crate::nn::Builder;
use crate::ops::{Emit, Mse, ValueId};

pub(super) const METHOD: Definition = Definition {
    title: "an autoencoder (AE)",
    arxiv: "2107.12329",
    equation: "|| D(P(E(x))) - x ||^2",
    loss: |_| "the squared error of the reconstruction".into(),
    views: 0,
    head: Head::Deterministic,
    decoder: true,
    per_image: true,
    parameters: &[],
    kl_coeff: 0.0,
    objective: |b, config, images| autoencoder(b, config, images.original, images.original),
};

/// Reconstructs `target` from the latent of `input`.
pub(super) fn autoencoder(
    b: &mut Builder,
    config: &ModelConfig,
    input: ValueId,
    target: ValueId,
) -> Outcome {
    let h = encoder(b, &config.net, input);
    let latent = latent(b, config, h, Noise::From(0));
    let reconstruction = decoder(b, &config.net, latent.z);
    b.graph.label("loss");
    let loss = b.graph.emit1(Mse { channels: 3 }.into(), &[reconstruction, target]);
    let metrics = vec![("loss", loss)];
    Outcome { loss, metrics, features: h, latent, reconstruction: Some(reconstruction) }
}

//! AE: `min || D(P(E(x))) - x ||^2`, mean over pixels.

use super::{Images, ModelConfig, Outcome};
use crate::nn::Builder;
use crate::ops::ValueId;

pub(super) fn objective(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    autoencoder(b, config, images.original, images.original)
}

/// Reconstructs `target` from the deterministic latent of `input`.
pub(super) fn autoencoder(
    b: &mut Builder,
    config: &ModelConfig,
    input: ValueId,
    target: ValueId,
) -> Outcome {
    use crate::model::{decoder::decoder, projection::deterministic, resnet::encoder};
    use crate::ops::{Emit, Mse};
    let h = encoder(b, &config.net, input);
    let z = deterministic(b, &config.net, h);
    let reconstruction = decoder(b, &config.net, z);
    b.graph.label("loss");
    let loss = b.graph.emit1(Mse { channels: 3 }.into(), &[reconstruction, target]);
    Outcome {
        loss,
        reconstruction: Some(reconstruction),
        latent: vec![("h", h), ("z", z)],
        metrics: vec![("loss", loss)],
    }
}

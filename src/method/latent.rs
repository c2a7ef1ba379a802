//! What the head of a method makes of features.

use super::{Head, ModelConfig};
use crate::model::projection;
use crate::nn::Builder;
use crate::ops::{Emit, RandomNormal, Reparameterize, ValueId};

/// Where the noise of a sampled latent comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Noise {
    /// A value of the graph.
    Given(ValueId),
    /// Draws: the elements from here on of the image's sequence ([`RandomNormal`]).
    From(usize),
}

/// The latent of some features.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latent {
    /// The latent itself, `[N, 1, 1, latent]`.
    pub(super) z: ValueId,
    /// Mean and log variance of the Gaussian that it is drawn from, if it is.
    pub(super) posterior: Option<(ValueId, ValueId)>,
}

/// The latent of features `h`, by the head of the method. Without sampling the noise is not used.
pub(super) fn latent(b: &mut Builder, config: &ModelConfig, h: ValueId, noise: Noise) -> Latent {
    match config.objective.method.definition().head {
        Head::Deterministic => {
            Latent { z: projection::deterministic(b, &config.net, h), posterior: None }
        }
        Head::Gaussian => {
            let (mu, logvar) = projection::gaussian(b, &config.net, h);
            b.graph.label("latent");
            let shape = b.graph.ty(mu).shape;
            let eps = match noise {
                Noise::Given(eps) => eps,
                Noise::From(first) => b.graph.emit1(RandomNormal { shape, first }.into(), &[]),
            };
            let z = b.graph.emit1(Reparameterize.into(), &[mu, logvar, eps]);
            Latent { z, posterior: Some((mu, logvar)) }
        }
    }
}

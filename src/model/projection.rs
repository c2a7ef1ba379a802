//! From features to the latent: `Linear, BatchNorm1d, ReLU`, then linear heads without bias.

use super::NetConfig;
use crate::nn::Builder;
use crate::ops::ValueId;

/// The approximate posterior `N(mu, exp(logvar))`: both `[N, 1, 1, latent]`.
pub fn gaussian(b: &mut Builder, config: &NetConfig, features: ValueId) -> (ValueId, ValueId) {
    let x = b.linear("projection.first_layer.0", features, config.features(), true);
    let x = b.batch_norm("projection.first_layer.1", x, None, true);
    (
        b.linear("projection.mu", x, config.latent, false),
        b.linear("projection.logvar", x, config.latent, false),
    )
}

/// A deterministic latent (AE, AAAE; SimCLR's projection head).
pub fn deterministic(b: &mut Builder, config: &NetConfig, features: ValueId) -> ValueId {
    let x = b.linear("projection.projection_head.0", features, config.features(), true);
    let x = b.batch_norm("projection.projection_head.1", x, None, true);
    b.linear("projection.projection_head.3", x, config.latent, false)
}

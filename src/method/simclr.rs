//! SimCLR: `min - mean_i ln(exp(s_ij / T) / sum_{k != i} exp(s_ik / T))` over two views of each of
//! `N` images, with `j` the other view of `i`'s image and `s` the cosine similarities of
//! `P(E(x_i))` for the `2N` views `x_i`.
//!
//! The encoder and the projection run once, on both views: BatchNorm averages over all `2N`.

use super::{Images, ModelConfig, Outcome};
use crate::nn::{Builder, padded};

pub(super) fn objective(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    use crate::model::{projection::deterministic, resnet::encoder};
    use crate::ops::{Conv2d, Emit, L2Normalize, NtXent};
    let h = encoder(b, &config.net, images.view);
    let z = deterministic(b, &config.net, h);
    b.graph.label("loss");
    let views = b.graph.ty(z).shape.n;
    // A product has a multiple of 4 columns: rows of zeros fill it up, and NT-Xent leaves them out.
    let unit = b.graph.emit1(L2Normalize { rows: padded(views) }.into(), &[z]);
    let similarities = b.graph.emit1(Conv2d::new(1, 0).into(), &[unit, unit]);
    let out = b
        .graph
        .emit(NtXent { views, temperature: config.objective.temperature }.into(), &[similarities]);
    let metrics = vec![("loss", out[0]), ("contrastive_accuracy", out[1])];
    Outcome { loss: out[0], reconstruction: None, latent: vec![("h", h), ("z", z)], metrics }
}

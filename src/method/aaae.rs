//! AAAE: `min || D(P(E(x+))) - x ||^2` with `x+` an augmented view of `x`. (The authors' released
//! code compares with `x+` itself: `--target view`.)

use super::{Images, ModelConfig, Outcome, ae};
use crate::nn::Builder;

pub(super) fn objective(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    ae::autoencoder(b, config, images.view, images.target)
}

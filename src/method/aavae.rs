//! AAVAE: `min - E_q(z|x+) log p(x|z)` with `x+` an augmented view of `x`: augmentation in place of
//! the KL term (`beta = 0`).

use super::{Images, ModelConfig, Outcome, vae};
use crate::nn::Builder;

pub(super) fn objective(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    vae::variational(b, config, images, images.view, images.target)
}

//! AAVAE: `min - E_q(z|x+) log p(x|z)` with `x+` an augmented view of `x`: augmentation in place of
//! the KL term (`beta = 0`).

use super::{Definition, Parameter, vae};

pub(super) const METHOD: Definition = Definition {
    title: "an augmentation-augmented variational autoencoder (AAVAE)",
    equation: "- E_q(z|x+) log p(x|z)",
    loss: |objective| {
        format!("`{} KL - log p(x|z)`, z encoded from an augmented view of x", objective.kl_coeff)
    },
    views: 1,
    parameters: &[Parameter::KlCoeff, Parameter::LogScale, Parameter::Target],
    kl_coeff: 0.0,
    objective: |b, config, images| {
        vae::variational(b, config, images, images.view, images.target)
    },
    ..vae::METHOD
};

//! AAAE: `min || D(P(E(x+))) - x ||^2` with `x+` an augmented view of `x`. (The authors' released
//! code compares with `x+` itself: `--target view`.)

use super::{Definition, Parameter, ae};

pub(super) const METHOD: Definition = Definition {
    title: "an augmentation-augmented autoencoder (AAAE)",
    equation: "|| D(P(E(x+))) - x ||^2",
    loss: |_| "the squared error of the reconstruction from an augmented view".into(),
    views: 1,
    parameters: &[Parameter::Target],
    objective: |b, config, images| ae::autoencoder(b, config, images.view, images.target),
    ..ae::METHOD
};

//! Measuring a trained encoder, frozen: features, the linear probe, kNN, pictures.

pub mod embed;
pub mod features;
pub mod grid;
pub mod knn;
pub mod pictures;
pub mod probe;

use crate::ir::Graph;
use crate::method::{self, ModelConfig, Protocol};

/// The graphs of an evaluation, by name: features, a step of the probe, and its test. Each is
/// loaded when it is first needed, all on one session.
pub fn graphs(
    model: &ModelConfig,
    protocol: Protocol,
    classes: usize,
) -> [(&'static str, Graph); 3] {
    let layout = method::frozen(model, classes).layout;
    [
        ("features", method::features(model, &layout, protocol).graph),
        ("probe", method::probe(model, &layout, protocol, classes).graph),
        ("probe test", method::probe_test(model, &layout, classes).graph),
    ]
}

impl From<knn::KnnError> for crate::run::RunError {
    fn from(error: knn::KnnError) -> Self {
        Self::Features(error.to_string())
    }
}

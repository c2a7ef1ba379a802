//! The encoder as torchvision's `ResNet` has it: the names without `encoder.`, nothing else, so
//! that `strict=True` is satisfied by a network whose `fc` is `Identity`. The CIFAR stem is a 3x3
//! `conv1` without `maxpool`, the STL stem lacks `maxpool` only.

use std::collections::BTreeMap;

use crate::ir::Graph;
use crate::model::resnet;
use crate::nn::Builder;
use crate::run::RunError;
use crate::run::checkpoint::Checkpoint;
use crate::run::state;
use crate::run::trained::{Trained, normalisation};
use crate::tensor::{Shape, TensorType};

/// Width of torchvision's first stage, which is no parameter there.
pub const WIDTH: usize = 64;

/// The encoder's state dict. The metadata says which network it is and what its images are
/// normalised with.
///
/// # Errors
/// If torchvision has no network of this width, or the checkpoint lacks a tensor.
pub fn state_dict(trained: &Trained) -> Result<Checkpoint, RunError> {
    let config = &trained.config;
    if config.width != WIDTH {
        let message = format!(
            "torchvision's ResNets have width {WIDTH}, this encoder has width {}",
            config.width
        );
        return Err(RunError::config(
            message,
            Some("`--format folder` writes networks of every width"),
        ));
    }
    let mut encoder = Builder::new(Graph::default(), false);
    let image = encoder
        .graph
        .input("image", TensorType::f32(Shape::new(1, config.image_size, config.image_size, 4)));
    resnet::encoder(&mut encoder, &config.net(), image);
    let tensors = state::select(&trained.checkpoint, &encoder.params)
        .map_err(|e| e.of_file(&trained.path))?;
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (name.trim_start_matches("encoder.").to_owned(), tensor))
        .collect();
    let (mean, std) = normalisation(config);
    let meta = [
        ("architecture", format!("{:?}", config.encoder).to_lowercase()),
        ("stem", format!("{:?}", config.stem).to_lowercase()),
        ("mean", format!("{mean:?}")),
        ("std", format!("{std:?}")),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let meta: BTreeMap<_, _> =
        meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(Checkpoint { tensors, meta })
}

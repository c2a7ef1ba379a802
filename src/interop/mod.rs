//! Weights that come from and go to other programs: [`torchvision`]'s ResNets, a [`folder`] to publish, the authors' checkpoints
//! ([`import`]). Files are safetensors with PyTorch's names and shapes.

mod card;
pub mod folder;
pub mod import;
pub mod torchvision;

//! The paper's networks: ResNet encoder, projection, mirrored decoder. Parameter names are those of
//! the authors' checkpoints.

pub mod decoder;
pub mod projection;
pub mod resnet;

use serde::{Deserialize, Serialize};

/// Depth of a ResNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// BasicBlock, [2, 2, 2, 2].
    Resnet18,
    /// BasicBlock, [3, 4, 6, 3].
    Resnet34,
    /// Bottleneck, [3, 4, 6, 3].
    Resnet50,
}

impl Depth {
    /// Channels of a block's output over its planes.
    pub const fn expansion(self) -> usize {
        match self {
            Self::Resnet18 | Self::Resnet34 => 1,
            Self::Resnet50 => 4,
        }
    }
    /// Blocks of the encoder's stages.
    pub const fn encoder_blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
        }
    }
    /// Blocks of the decoder's stages.
    pub const fn decoder_blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 6, 4, 3],
        }
    }
}

/// First layers of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 3x3 stride 1, no pooling.
    Cifar,
    /// 7x7 stride 2, no pooling.
    Stl,
    /// 7x7 stride 2 and 3x3/2 max pooling.
    Imagenet,
}

/// Sizes of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Depth of the encoder.
    pub encoder: Depth,
    /// Depth of the decoder.
    pub decoder: Depth,
    /// Channels of the first stage; 64 is the paper's.
    pub width: usize,
    /// Dimensions of the latent.
    pub latent: usize,
    /// First layers of the encoder.
    pub stem: Stem,
    /// Side of the images.
    pub image: usize,
}

impl NetConfig {
    /// Features of the encoder: 512 (or 2048) at width 64.
    pub const fn features(&self) -> usize {
        self.width * 8 * self.encoder.expansion()
    }
    /// What the sizes must satisfy.
    ///
    /// # Errors
    /// A sentence with the numbers.
    pub fn validate(&self) -> Result<(), String> {
        let multiple = if self.stem == Stem::Cifar { 8 } else { 16 };
        if self.width == 0 || !self.width.is_multiple_of(8) {
            return Err(format!("width {} is not a positive multiple of 8", self.width));
        }
        if self.latent == 0 || !self.latent.is_multiple_of(4) {
            return Err(format!(
                "latent dimension {} is not a positive multiple of 4",
                self.latent
            ));
        }
        if self.image == 0 || !self.image.is_multiple_of(multiple) {
            return Err(format!(
                "image size {} is not a positive multiple of {multiple}, which the {:?} stem needs",
                self.image, self.stem
            )
            .to_lowercase());
        }
        Ok(())
    }
}

//! Mirrored ResNet decoder: `[N, 1, 1, latent]` to `[N, H, W, 4]` images. Biases, no BatchNorm.
//!
//! The shortcut of a block is `upsample -> 1x1` in the authors' network. A 1x1 convolution commutes
//! with nearest upsampling (each output pixel is the same function of the same input pixel), so
//! here it runs before: up to 4 times fewer products. A 3x3 convolution of twice the side is one
//! with 2x2 windows of the image itself ([`crate::ops::PhaseWeights`]).

use super::{Depth, NetConfig, Stem};
use crate::nn::{Builder, Conv, Init, padded};
use crate::ops::{Emit, ValueId};
use crate::tensor::Shape;

/// Side of the map that the second linear layer forms.
const SEED: usize = 4;

fn conv(inputs: usize, outputs: usize, kernel: usize) -> Conv {
    Conv {
        inputs,
        outputs,
        kernel,
        stride: 1,
        pad: kernel / 2,
        bias: true,
        init: Init::pytorch_uniform(inputs * kernel * kernel),
    }
}

/// Reconstruction of a batch of latents.
pub fn decoder(b: &mut Builder, config: &NetConfig, z: ValueId) -> ValueId {
    let expansion = config.decoder.expansion();
    let h = config.width * 8 * expansion;
    let x = b.linear("decoder.linear_projection1", z, h, true);
    let x = b.relu("decoder.linear_projection1", x);
    let x = b.linear_image("decoder.linear_projection2", x, h / (SEED * SEED), SEED);
    let x = b.relu("decoder.linear_projection2", x);
    let n = b.graph.ty(x).shape.n;
    let x = b.reshape("decoder.view", x, Shape::new(n, SEED, SEED, h / (SEED * SEED)));
    let x = b.conv("decoder.conv1", x, conv(h / (SEED * SEED), h, 1));
    let mut x = b.relu("decoder.conv1", x);

    let first = if config.stem == Stem::Cifar { config.image / 8 } else { config.image / 16 };
    let mut channels = h;
    for (stage, blocks) in config.decoder.decoder_blocks().into_iter().enumerate() {
        let planes = (config.width * 4) >> stage;
        for block in 0..blocks {
            let side = if block > 0 { None } else { Some(first << stage) };
            let name = format!("decoder.layer{}.{block}", stage + 1);
            x = residual(b, &name, x, config.decoder, channels, planes, side);
            channels = planes * expansion;
        }
    }
    let x = b.conv("decoder.conv2", x, conv(channels, config.width, 3));
    let x = b.relu("decoder.conv2", x);
    let last = Conv { outputs: 3, ..conv(padded(config.width), 3, 3) };
    b.upsample_conv("decoder.final_conv", "decoder.upsample", x, config.image, last)
}

fn residual(
    b: &mut Builder,
    name: &str,
    x: ValueId,
    depth: Depth,
    inputs: usize,
    planes: usize,
    side: Option<usize>,
) -> ValueId {
    let outputs = planes * depth.expansion();
    let part = |part: &str| format!("{name}.{part}");
    let upsample_conv = |b: &mut Builder, layer: &str, x: ValueId, inputs: usize| {
        let (layer, c) = (part(layer), conv(inputs, planes, 3));
        match side {
            Some(side) => b.upsample_conv(&layer, &part("upsample"), x, side, c),
            None => b.conv(&layer, x, c),
        }
    };
    let y = match depth {
        Depth::Resnet18 | Depth::Resnet34 => {
            let y = upsample_conv(b, "conv1", x, inputs);
            let y = b.relu(&part("conv1"), y);
            b.conv(&part("conv2"), y, conv(planes, planes, 3))
        }
        Depth::Resnet50 => {
            let y = b.conv(&part("conv1"), x, conv(inputs, planes, 1));
            let y = b.relu(&part("conv1"), y);
            let y = upsample_conv(b, "conv2", y, planes);
            let y = b.relu(&part("conv2"), y);
            b.conv(&part("conv3"), y, conv(planes, outputs, 1))
        }
    };
    let shortcut = if side.is_some() || inputs != outputs {
        // Named by its place after the upsampling module, 1, or alone, 0.
        let layer = part(&format!("upsample.{}", usize::from(side.is_some())));
        let s = b.conv(&layer, x, conv(inputs, outputs, 1));
        match side {
            Some(side) => b.upsample(&part("shortcut"), s, side),
            None => s,
        }
    } else {
        x
    };
    let y = b.add(name, y, shortcut);
    b.relu(name, y)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ir::Graph;
    use crate::tensor::TensorType;

    #[test]
    fn stages_double_up_to_the_image() {
        for depth in [Depth::Resnet18, Depth::Resnet34, Depth::Resnet50] {
            let cases = [
                (Stem::Stl, 96, &[4, 6, 12, 24, 48, 96][..]),
                (Stem::Imagenet, 64, &[4, 8, 16, 32, 64]),
                (Stem::Cifar, 32, &[4, 8, 16, 32]),
            ];
            for (stem, image, want) in cases {
                let config =
                    NetConfig { encoder: depth, decoder: depth, width: 8, latent: 16, stem, image };
                let mut b = Builder::new(Graph::default(), true);
                let z = b.graph.input("z", TensorType::f32(Shape::rows(2, 16)));
                let y = decoder(&mut b, &config, z);
                assert_eq!(b.graph.ty(y), TensorType::f32(Shape::new(2, image, image, 4)));
                let sides: BTreeSet<usize> = b
                    .graph
                    .values
                    .iter()
                    .filter(|v| v.ty.shape.n == 2)
                    .map(|v| v.ty.shape.h)
                    .collect();
                let maps: Vec<usize> = sides.into_iter().filter(|side| *side > 1).collect();
                assert_eq!(maps, want, "{stem:?} {depth:?}");
            }
        }
    }
}

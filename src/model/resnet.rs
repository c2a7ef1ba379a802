//! ResNet encoder: `[N, H, W, 4]` images to `[N, 1, 1, h]` features. BatchNorm after every
//! convolution, no biases.

use super::{Depth, NetConfig, Stem};
use crate::nn::{Builder, Conv, Init};
use crate::ops::ValueId;

fn conv(inputs: usize, outputs: usize, kernel: usize, stride: usize) -> Conv {
    Conv {
        inputs,
        outputs,
        kernel,
        stride,
        pad: kernel / 2,
        bias: false,
        init: Init::kaiming_fan_out(outputs, kernel),
    }
}

/// Features of a batch of normalised images.
pub fn encoder(b: &mut Builder, config: &NetConfig, image: ValueId) -> ValueId {
    let (kernel, stride) = if config.stem == Stem::Cifar { (3, 1) } else { (7, 2) };
    let mut x = b.conv("encoder.conv1", image, conv(3, config.width, kernel, stride));
    x = b.batch_norm("encoder.bn1", x, None, true);
    if config.stem == Stem::Imagenet {
        x = b.max_pool("encoder.maxpool", x);
    }
    let mut channels = config.width;
    for (stage, blocks) in config.encoder.encoder_blocks().into_iter().enumerate() {
        let planes = config.width << stage;
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("encoder.layer{}.{block}", stage + 1);
            x = residual(b, &name, x, config.encoder, channels, planes, stride);
            channels = planes * config.encoder.expansion();
        }
    }
    b.global_avg_pool("encoder.avgpool", x)
}

fn residual(
    b: &mut Builder,
    name: &str,
    x: ValueId,
    depth: Depth,
    inputs: usize,
    planes: usize,
    stride: usize,
) -> ValueId {
    let outputs = planes * depth.expansion();
    let layers = match depth {
        Depth::Resnet18 | Depth::Resnet34 => {
            vec![conv(inputs, planes, 3, stride), conv(planes, planes, 3, 1)]
        }
        Depth::Resnet50 => vec![
            conv(inputs, planes, 1, 1),
            conv(planes, planes, 3, stride),
            conv(planes, outputs, 1, 1),
        ],
    };
    let last = layers.len();
    let mut y = x;
    for (i, layer) in layers.iter().enumerate().take(last - 1) {
        y = b.conv(&format!("{name}.conv{}", i + 1), y, *layer);
        y = b.batch_norm(&format!("{name}.bn{}", i + 1), y, None, true);
    }
    y = b.conv(&format!("{name}.conv{last}"), y, layers[last - 1]);
    let shortcut = if stride != 1 || inputs != outputs {
        let s = b.conv(&format!("{name}.downsample.0"), x, conv(inputs, outputs, 1, stride));
        b.batch_norm(&format!("{name}.downsample.1"), s, None, false)
    } else {
        x
    };
    b.batch_norm(&format!("{name}.bn{last}"), y, Some(shortcut), true)
}

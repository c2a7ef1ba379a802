//! What the methods see: uploaded bytes as normalised images, and augmented views of them.

use super::{Compare, ModelConfig};
use crate::model::Stem;
use crate::nn::Builder;
use crate::ops::{
    AugmentParams, ColorJitter, CropResize, Decode, Emit, GaussianBlur, Normalize, Recipe, ValueId,
};
use crate::rng::Stream;
use crate::tensor::{Shape, TensorType};

/// Where a graph has its views from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Views {
    /// They are drawn on the device from uploaded bytes, as in pretraining.
    Drawn,
    /// What the method reads is uploaded: `original` `[N, H, W, 4]` and `view`
    /// `[views * N, H, W, 4]`, normalised, `eps` `[N, samples, 1, latent]` (replays and parity
    /// tests).
    Given,
}

/// Images as a method sees them: normalised, `[N, H, W, 4]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Images {
    pub(super) original: ValueId,
    /// All images' first views, then their second ones, as many as the method sees.
    pub(super) view: ValueId,
    /// What a reconstruction is compared with.
    pub(super) target: ValueId,
    /// Noise of the reparameterisation, where it is given rather than drawn.
    pub(super) eps: Option<ValueId>,
}

/// The images of a step, and noise for so many samples of each where it is given.
pub(super) fn images(
    b: &mut Builder,
    config: &ModelConfig,
    views: Views,
    samples: usize,
) -> Images {
    let side = config.net.image;
    let method = config.objective.method;
    let (original, view, eps) = match views {
        Views::Given => {
            let mut input =
                |name, n| b.graph.input(name, TensorType::f32(Shape::new(n, side, side, 4)));
            let of_views = method.augments() && config.objective.target == Compare::View;
            let reads = method.reconstructs() && !of_views;
            let original = reads.then(|| input("original", config.batch));
            let view = method.augments().then(|| input("view", config.batch * method.views()));
            // A method that reads only one of them gets it as both.
            let [original, view] = [original.or(view), view.or(original)]
                .map(|x| x.expect("every method sees images"));
            let noise = TensorType::f32(Shape::new(config.batch, samples, 1, config.net.latent));
            let eps = method.samples().then(|| b.graph.input("eps", noise));
            (original, view, eps)
        }
        Views::Drawn => {
            let pixels = pixels(b, config);
            let original = decode(b, config, pixels);
            (original, if method.augments() { augment(b, config, pixels) } else { original }, None)
        }
    };
    let target = if config.objective.target == Compare::View { view } else { original };
    Images { original, view, target, eps }
}

/// The uploaded images: a word a pixel, `[N, H, W, 1]`.
pub(super) fn pixels(b: &mut Builder, config: &ModelConfig) -> ValueId {
    let side = config.net.image;
    b.graph.input("pixels", TensorType::u32(Shape::new(config.batch, side, side, 1)))
}

/// The images that uploaded pixels are.
pub(super) fn decode(b: &mut Builder, config: &ModelConfig, pixels: ValueId) -> ValueId {
    b.graph.label("original");
    b.graph.emit1(Decode { mean: config.mean, std: config.std }.into(), &[pixels])
}

/// SimCLR's augmentation (the paper's section 4): crop, flip, jitter, grey, blur, normalise.
pub(super) fn augment(b: &mut Builder, config: &ModelConfig, pixels: ValueId) -> ValueId {
    let side = config.net.image;
    let recipe = match config.net.stem {
        Stem::Cifar => Recipe::cifar(),
        // As in SimCLR, the kernel of the blur is a tenth of the height, made odd.
        _ => Recipe { blur_kernel: (side / 10) | 1, ..Recipe::stl() },
    };
    b.graph.label("augment");
    let draws = AugmentParams {
        recipe,
        n: config.batch,
        views: config.objective.method.views(),
        in_h: side,
        in_w: side,
        stream: Stream::Augment,
    };
    let params = b.graph.emit1(draws.into(), &[]);
    let x = b.graph.emit1(CropResize { out_h: side, out_w: side }.into(), &[pixels, params]);
    let normalize = (config.mean, config.std);
    if recipe.blur_p == 0.0 {
        let jitter = ColorJitter { normalize: Some(normalize) };
        return b.graph.emit1(jitter.into(), &[x, params]);
    }
    let x = b.graph.emit1(ColorJitter { normalize: None }.into(), &[x, params]);
    let x = b.graph.emit1(GaussianBlur { kernel: recipe.blur_kernel }.into(), &[x, params]);
    b.graph.emit1(Normalize { mean: config.mean, std: config.std }.into(), &[x])
}

//! What is measured of a trained model besides its objective: importance weights, and how alike a
//! view and its original are.

use super::ModelConfig;
use super::graphs::{Model, evaluation};
use super::images::{Views, augment, decode, images, pixels};
use super::latent::{Latent, Noise, latent};
use super::vae::log_scale;
use crate::ir::Layout;
use crate::model::{decoder::decoder, projection, resnet::encoder};
use crate::nn::Builder;
use crate::ops::{
    CosineSimilarity, Emit, GaussianLogProb, KlGaussians, LatentLogRatio, RandomNormal,
    Reparameterize, Reshape, Scale, SumRows, UpsampleNearest, ValueId, WeightedSum,
};
use crate::tensor::{Shape, TensorType};

/// `log_weights` `[N, K, 1, 1]` of K = `samples` latents of each image, in evaluation mode:
/// `ln p(x|z) + ln p(z) - ln q(z|input)`, x and input being what the objective compares with and
/// encodes. Noise of sample k: elements `k * latent ..` of the image's sequence ([`RandomNormal`]).
pub fn importance(config: &ModelConfig, layout: &Layout, samples: usize, views: Views) -> Model {
    evaluation(layout, |b| {
        let images = images(b, config, views, samples);
        let h = encoder(b, &config.net, images.view);
        let posterior = projection::gaussian(b, &config.net, h);
        let log_scale = log_scale(b, &config.objective);
        let decode = |b: &mut Builder, z| decoder(b, &config.net, z);
        let weights =
            log_weights(b, posterior, samples, images.eps, (images.target, log_scale), decode);
        b.graph.output("log_weights", weights);
    })
}

/// `ln p(t|z) + ln p(z) - ln q(z)`, `[N, K, 1, 1]`, of K samples of each posterior (mu, logvar)
/// `[N, 1, 1, L]`. Noise `eps` `[N, K, 1, L]` is drawn where it is not given; the likelihood is
/// (target, log_scale); `decode` maps latents `[N*K, 1, 1, L]` to images.
pub fn log_weights(
    b: &mut Builder,
    posterior: (ValueId, ValueId),
    samples: usize,
    eps: Option<ValueId>,
    likelihood: (ValueId, ValueId),
    decode: impl FnOnce(&mut Builder, ValueId) -> ValueId,
) -> ValueId {
    let Shape { n, c: latent, .. } = b.graph.ty(posterior.0).shape;
    b.graph.label("samples");
    let repeat = UpsampleNearest { h: samples, w: 1 };
    let [mu, logvar] =
        [posterior.0, posterior.1].map(|x| b.graph.emit1(repeat.clone().into(), &[x]));
    let eps = eps.unwrap_or_else(|| {
        b.graph.emit1(RandomNormal::new(Shape::new(n, samples, 1, latent)).into(), &[])
    });
    let z = b.graph.emit1(Reparameterize.into(), &[mu, logvar, eps]);
    let z = b.graph.emit1(Reshape { shape: Shape::rows(n * samples, latent) }.into(), &[z]);
    let reconstructions = decode(b, z);
    b.graph.label("log_weights");
    let log_pxz = b.graph.emit1(
        GaussianLogProb { channels: 3 }.into(),
        &[reconstructions, likelihood.0, likelihood.1],
    );
    let ratio = b.graph.emit1(LatentLogRatio.into(), &[mu, logvar, eps]);
    b.graph.emit1(WeightedSum { a: 1.0, b: 1.0 }.into(), &[log_pxz, ratio])
}

/// How alike a view and its original are to the encoder in evaluation mode. Outputs: `cosine`, the
/// mean similarity of their latents z, and `kl`, the mean of `KL(q(z|view) || q(z|original))`,
/// where latents are sampled. With the uniform of a training step the view and its noise are those
/// of that step; the original's noise, input `eps_original` where it is given, is the next `latent`
/// elements of the sequence ([`RandomNormal`]).
pub fn views(config: &ModelConfig, layout: &Layout, views: Views) -> Model {
    evaluation(layout, |b| {
        let (original, view) = view_and_original(b, config, views);
        // The noise of the view is input `eps` where it is given.
        let [of_view, of_original] = [("eps", 0), ("eps_original", config.net.latent)];
        let view = latent_of(b, config, view, views, of_view);
        let original = latent_of(b, config, original, views, of_original);
        b.graph.label("views");
        let cosines = b.graph.emit1(CosineSimilarity.into(), &[view.z, original.z]);
        let total = b.graph.emit1(SumRows.into(), &[cosines]);
        let cosine = b.graph.emit1(Scale { a: 1.0 / config.batch as f32 }.into(), &[total]);
        b.graph.output("cosine", cosine);
        if let (Some((mu, logvar)), Some((mu2, logvar2))) = (view.posterior, original.posterior) {
            let kl = b.graph.emit1(KlGaussians.into(), &[mu, logvar, mu2, logvar2]);
            b.graph.output("kl", kl);
        }
    })
}

/// The original images and a view of each, whatever the method trains on.
fn view_and_original(b: &mut Builder, config: &ModelConfig, views: Views) -> (ValueId, ValueId) {
    match views {
        Views::Given => {
            let side = config.net.image;
            let ty = TensorType::f32(Shape::new(config.batch, side, side, 4));
            (b.graph.input("original", ty), b.graph.input("view", ty))
        }
        Views::Drawn => {
            let pixels = pixels(b, config);
            (decode(b, config, pixels), augment(b, config, pixels))
        }
    }
}

/// The latent of some images. Noise of a sampled one is an input of this name where views are
/// given, otherwise drawn from this element of the image's sequence on.
fn latent_of(
    b: &mut Builder,
    config: &ModelConfig,
    images: ValueId,
    views: Views,
    (name, first): (&str, usize),
) -> Latent {
    let h = encoder(b, &config.net, images);
    let given = views == Views::Given && config.objective.method.samples();
    let noise = if given {
        let shape = Shape::rows(config.batch, config.net.latent);
        Noise::Given(b.graph.input(name, TensorType::f32(shape)))
    } else {
        Noise::From(first)
    };
    latent(b, config, h, noise)
}

//! What is measured of a trained model besides its objective: importance weights, and how alike a
//! view and its original are.

use super::{Method, Model, ModelConfig, View, augment, decoded, evaluation, images, log_scale};
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
pub fn importance(config: &ModelConfig, layout: &Layout, samples: usize, view: View) -> Model {
    evaluation(layout, |b| {
        let images = images(b, config, view, samples);
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
pub fn views(config: &ModelConfig, layout: &Layout, view: View) -> Model {
    let side = config.net.image;
    evaluation(layout, |b| {
        let (original, view, given) = match view {
            View::Given => {
                let ty = TensorType::f32(Shape::new(config.batch, side, side, 4));
                (b.graph.input("original", ty), b.graph.input("view", ty), true)
            }
            View::Augmented => {
                let (pixels, original) = decoded(b, config);
                (original, augment(b, config, pixels), false)
            }
        };
        let (view, q_view) =
            latent(b, config, view, if given { Noise::Given("eps") } else { Noise::From(0) });
        let noise =
            if given { Noise::Given("eps_original") } else { Noise::From(config.net.latent) };
        let (original, q_original) = latent(b, config, original, noise);
        b.graph.label("views");
        let cosines = b.graph.emit1(CosineSimilarity.into(), &[view, original]);
        let total = b.graph.emit1(SumRows.into(), &[cosines]);
        let cosine = b.graph.emit1(Scale { a: 1.0 / config.batch as f32 }.into(), &[total]);
        b.graph.output("cosine", cosine);
        if let (Some((mu, logvar)), Some((mu2, logvar2))) = (q_view, q_original) {
            let kl = b.graph.emit1(KlGaussians.into(), &[mu, logvar, mu2, logvar2]);
            b.graph.output("kl", kl);
        }
    })
}

/// Noise of a latent.
enum Noise {
    /// Uploaded under this name.
    Given(&'static str),
    /// Drawn: the elements from here on of the image's sequence.
    From(usize),
}

/// The latent of an image, and its posterior where it is sampled.
fn latent(
    b: &mut Builder,
    config: &ModelConfig,
    image: ValueId,
    noise: Noise,
) -> (ValueId, Option<(ValueId, ValueId)>) {
    let h = encoder(b, &config.net, image);
    match config.objective.method {
        Method::Ae | Method::Aaae | Method::Simclr => {
            (projection::deterministic(b, &config.net, h), None)
        }
        Method::Vae | Method::Aavae => {
            let (mu, logvar) = projection::gaussian(b, &config.net, h);
            b.graph.label("latent");
            let shape = b.graph.ty(mu).shape;
            let eps = match noise {
                Noise::Given(name) => b.graph.input(name, TensorType::f32(shape)),
                Noise::From(first) => b.graph.emit1(RandomNormal { shape, first }.into(), &[]),
            };
            (b.graph.emit1(Reparameterize.into(), &[mu, logvar, eps]), Some((mu, logvar)))
        }
    }
}

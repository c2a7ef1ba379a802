//! VAE: `min beta * KL(q(z|x) || N(0, I)) - E_q log p(x|z)` with `beta = 1`.

use super::{Images, ModelConfig, Outcome, log_scale};
use crate::nn::Builder;
use crate::ops::ValueId;

pub(super) fn objective(b: &mut Builder, config: &ModelConfig, images: Images) -> Outcome {
    variational(b, config, images, images.original, images.original)
}

/// `beta * KL(q(z|input)) - log p(target|z)`, one sample of z per image, mean over the batch.
pub(super) fn variational(
    b: &mut Builder,
    config: &ModelConfig,
    images: Images,
    input: ValueId,
    target: ValueId,
) -> Outcome {
    use crate::model::{decoder::decoder, projection::gaussian, resnet::encoder};
    use crate::ops::{
        Emit, GaussianNll, KlNormal, RandomNormal, Reparameterize, Scale, WeightedSum,
    };
    let h = encoder(b, &config.net, input);
    let (mu, logvar) = gaussian(b, &config.net, h);
    b.graph.label("latent");
    let shape = b.graph.ty(mu).shape;
    let eps = images.eps.unwrap_or_else(|| b.graph.emit1(RandomNormal::new(shape).into(), &[]));
    let z = b.graph.emit1(Reparameterize.into(), &[mu, logvar, eps]);
    let reconstruction = decoder(b, &config.net, z);
    let log_scale = log_scale(b, &config.objective);
    b.graph.label("loss");
    let log_pxz =
        b.graph.emit1(GaussianNll { channels: 3 }.into(), &[reconstruction, target, log_scale]);
    let kl = b.graph.emit1(KlNormal.into(), &[mu, logvar]);
    // Without weight the KL is logged, not differentiated: 0 times its gradient would still be a
    // NaN where it overflows.
    let loss = match config.objective.kl_coeff {
        0.0 => b.graph.emit1(Scale { a: -1.0 }.into(), &[log_pxz]),
        beta => b.graph.emit1(WeightedSum { a: beta, b: -1.0 }.into(), &[kl, log_pxz]),
    };
    let latent = vec![("h", h), ("mu", mu), ("logvar", logvar), ("z", z)];
    Outcome {
        loss,
        reconstruction: Some(reconstruction),
        latent,
        metrics: vec![("loss", loss), ("log_pxz", log_pxz), ("kl", kl)],
    }
}

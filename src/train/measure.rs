//! What is measured while a model trains, besides the scalars of its objective. None of it touches
//! the model.
//!
//! * `train` and `val` records, as the loss: `elbo`, `bits_per_dim_elbo`.
//! * `view` records, every `view_metrics_every` steps, on the step's images, after its update:
//!   `cosine` and `kl` ([`views`](crate::method::views)).
//! * `eval` records, every `eval_every` epochs and after the last step: `log_px`, `elbo` and their
//!   bits; with `eval_every` also `knn20` and `knn200`.
//!
//! `q(z|input)` is of what the method encodes: the image for a VAE, a view of it for AAVAE. Means
//! over images x of
//!
//! ```text
//! elbo         = ln p(x|z) - KL(q(z|input) || N(0, I)), z ~ q
//! log_px       = ln (1/K) sum_k w_k, w_k = p(x|z_k) p(z_k) / q(z_k|input)
//! bits_per_dim = mean over channels of log2(255 std_c) - log_px / (D ln 2)       D = 3 H W
//! ```
//!
//! The ELBO is of the objective's one sample, whatever the weight of its KL; `log_px` is at least
//! the ELBO, and ln p(x) as K grows.
//!
//! Likelihoods are densities of normalised pixels, in nats. A step of a byte is `1 / (255 std_c)`
//! of that unit, so bits per dimension are those of the stored bytes: minus log2 of the density
//! times the width of a byte's bin. `bits_per_dim_elbo` is the same of the ELBO, an upper bound.
//!
//! An evaluation decodes an image K times, whatever the batch of training, and so takes whole
//! batches of at most [`IMPORTANCE_IMAGES`] held-out images, at least one batch: all of CIFAR-10's
//! 5,000 would take the multiply-adds of training on 8,700. Its `elbo` is of the same images and
//! samples, the mean of `ln w_k`. An image has the view and, as its first sample, the noise that
//! validation gives it. kNN (temperatures 0.07 and 0.1) looks for the neighbours of every held-out
//! image among the first [`KNN_IMAGES`] training images.

use super::plans::{RunSet, Sizes};
use crate::data::{Batch, Loader, Splits, Subset};
use crate::device::{Data, PlanId, Session};
use crate::eval::features::features;
use crate::eval::knn::knn;
use crate::method::ModelConfig;
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::resident::feed;
use crate::run::settings::RunConfig;

/// Most held-out images whose likelihood is importance-sampled, unless a batch is larger.
pub const IMPORTANCE_IMAGES: usize = 1024;
/// Most training images among which kNN looks for neighbours.
pub const KNN_IMAGES: usize = 10_000;
/// Name, neighbours and temperature of the accuracies of an evaluation.
const KNN: [(&str, usize, f32); 2] = [("knn20", 20, 0.07), ("knn200", 200, 0.1)];

/// Scalars with their names.
pub type Scalars = Vec<(String, f32)>;

/// Bits per byte of an image whose density in normalised pixels is `log_p` nats.
pub fn bits_per_dim(model: &ModelConfig, log_p: f64) -> f64 {
    let dims = 3 * model.net.image * model.net.image;
    let bytes: f64 =
        model.std.iter().map(|std| (255.0 * f64::from(*std)).log2()).sum::<f64>() / 3.0;
    bytes - log_p / (dims as f64 * std::f64::consts::LN_2)
}

/// `ln mean exp(x)`, whatever the size of the x.
///
/// # Panics
/// If there are none.
pub fn log_mean_exp(x: &[f32]) -> f64 {
    assert!(!x.is_empty(), "a mean of nothing");
    let largest = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = x.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    largest + (sum / x.len() as f64).ln()
}

/// Adds `elbo` and `bits_per_dim_elbo` to means that have a likelihood.
pub fn add_bound(model: &ModelConfig, means: &mut Scalars) {
    let find = |name: &str| means.iter().find(|m| m.0 == name).map(|m| f64::from(m.1));
    if let (Some(log_pxz), Some(kl)) = (find("log_pxz"), find("kl")) {
        let elbo = log_pxz - kl;
        means.push(("elbo".into(), elbo as f32));
        means.push(("bits_per_dim_elbo".into(), bits_per_dim(model, elbo) as f32));
    }
}

/// The plans of a run's measurements.
pub struct Measures {
    model: ModelConfig,
    seed: u64,
    importance: Option<Importance>,
    views: Option<PlanId>,
    features: Option<PlanId>,
}

/// The plan of importance sampling.
#[derive(Clone, Copy)]
struct Importance {
    plan: PlanId,
    /// Samples of an image.
    samples: usize,
    /// Images of the plan: with their samples about a batch.
    images: usize,
    /// Images of a validation batch.
    batch: usize,
}

impl Measures {
    /// Measures with the plans of a run.
    pub fn new(
        plans: &RunSet<PlanId>,
        sizes: Sizes,
        config: &RunConfig,
        model: &ModelConfig,
    ) -> Self {
        let (samples, images, batch) = (sizes.samples, sizes.sampled, sizes.validation);
        let importance = plans.importance.map(|plan| Importance { plan, samples, images, batch });
        let (views, features) = (plans.views, plans.features);
        Self { model: *model, seed: config.seed, importance, views, features }
    }

    /// Checks that a data set has what a configuration asks to be measured.
    ///
    /// # Errors
    /// If it has no labels or too few images.
    pub fn check(config: &RunConfig, splits: &Splits) -> Result<(), RunError> {
        needs_labels(config, splits)?;
        let (fewest, train, val) =
            (KNN[0].1, splits.labelled_train.len(), splits.labelled_val.len());
        if config.eval_every > 0 && (train < fewest || val < 2) {
            let message = format!(
                "--eval-every needs {fewest} training and 2 held-out images, there are {train} and \
                 {val}"
            );
            return Err(RunError::config(message, None));
        }
        Ok(())
    }

    /// `cosine` and `kl` of the views that a step drew of its images.
    ///
    /// # Errors
    /// If the device fails.
    pub fn views(
        &self,
        session: &mut Session,
        batch: &Batch,
        step: &StepUniforms,
    ) -> Result<Scalars, RunError> {
        let Some(plan) = self.views else { return Ok(vec![]) };
        feed(session, plan, batch)?;
        session.run(plan, step)?;
        let values = session.drain(plan)?.pop().map(|(_, values)| values).unwrap_or_default();
        Ok(session.plan(plan).outputs.iter().map(|port| port.name.clone()).zip(values).collect())
    }

    /// Likelihood and kNN of the held-out images; empty if nothing is asked for.
    ///
    /// # Errors
    /// If data or device fail, or `stop` ends the wait for images.
    pub fn evaluate(
        &self,
        session: &mut Session,
        splits: &Splits,
        stop: &dyn Fn() -> bool,
    ) -> Result<Scalars, RunError> {
        let mut values = Scalars::new();
        if let Some((log_px, elbo)) = self.log_px(session, &splits.val, stop)? {
            for (name, bits, log_p) in
                [("log_px", "bits_per_dim", log_px), ("elbo", "bits_per_dim_elbo", elbo)]
            {
                values.push((name.into(), log_p as f32));
                values.push((bits.into(), bits_per_dim(&self.model, log_p) as f32));
            }
        }
        if let Some(plan) = self.features {
            let labelled = &splits.labelled_train;
            let first = labelled.len().min(KNN_IMAGES);
            let reference = Subset {
                dataset: labelled.dataset.clone(),
                indices: labelled.indices[..first].into(),
            };
            let mut of = |subset| {
                let batches = Loader::eval_batches(subset, self.model.batch)?.unless(stop);
                features(session, plan, &self.model, batches, |_| ())
            };
            let (train, val) = (of(&reference)?, of(&splits.labelled_val)?);
            let fits: Vec<_> = KNN.into_iter().filter(|(_, k, _)| *k <= first).collect();
            let ks: Vec<_> = fits.iter().map(|(_, k, temperature)| (*k, *temperature)).collect();
            let accuracies = knn(&train, &val, &ks, labelled.dataset.classes().len())?;
            values.extend(fits.iter().map(|(name, ..)| (*name).to_owned()).zip(accuracies));
        }
        Ok(values)
    }

    /// Means over images of the importance-sampled `ln p(x)`, and of the log weights.
    fn log_px(
        &self,
        session: &mut Session,
        val: &Subset,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<(f64, f64)>, RunError> {
        let Some(Importance { plan, samples, images, batch: size }) = self.importance else {
            return Ok(None);
        };
        let area = self.model.net.image * self.model.net.image;
        let (mut log_px, mut elbo, mut count) = (0.0, 0.0, 0.0);
        let batches = Loader::eval_batches(val, size)?.unless(stop);
        for batch in batches.take((IMPORTANCE_IMAGES / size).max(1)) {
            let batch = batch?;
            if batch.valid < size {
                break; // Validation leaves out a part of a batch too.
            }
            for next in (0..size).step_by(images) {
                // The plan takes so many at once: the last come with some that were counted before.
                let first = next.min(size - images);
                session.upload(
                    plan,
                    0,
                    Data::U32(&batch.pixels[first * area..(first + images) * area]),
                )?;
                let step = StepUniforms::evaluation(self.seed, batch.step);
                session.run(plan, &StepUniforms { first_sample: first as u32, ..step })?;
                session.drain(plan)?;
                for weights in session.read(plan, 0)?.chunks_exact(samples).skip(next - first) {
                    log_px += log_mean_exp(weights);
                    elbo += weights.iter().map(|w| f64::from(*w)).sum::<f64>() / samples as f64;
                    count += 1.0;
                }
            }
        }
        Ok(Some((log_px / count, elbo / count)))
    }
}

impl std::fmt::Debug for Measures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measures").finish_non_exhaustive()
    }
}

/// Refuses to classify images that have no labels, or all the same.
fn needs_labels(config: &RunConfig, splits: &Splits) -> Result<(), RunError> {
    let asked = [
        ("--online-probe", config.online_probe, &splits.train),
        ("--eval-every", config.eval_every > 0, &splits.labelled_train),
    ];
    for (flag, _, subset) in asked.into_iter().filter(|(_, asked, _)| *asked) {
        let classes = subset.dataset.classes().len();
        if classes < 2 {
            let message = format!(
                "{flag} needs images of 2 classes, the training images of `{}` have {classes}",
                subset.dataset.name()
            );
            return Err(RunError::config(
                message,
                Some("leave it out; `aavae probe` takes labelled images afterwards"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_of_weights_of_any_size() {
        for shift in [0.0, -4.0e3, 9.0e4] {
            // ln ((1 + 2 + 5) / 3)
            let x = [0.0_f32, 2.0_f32.ln(), 5.0_f32.ln()].map(|x| x + shift);
            let got = log_mean_exp(&x) - f64::from(shift);
            let rounding = 1e-7 * f64::from(shift.abs() + 1.0);
            assert!((got - (8.0_f64 / 3.0).ln()).abs() < rounding, "{shift}: {got}");
        }
        assert_eq!(log_mean_exp(&[-3.5]), -3.5);
        assert_eq!(log_mean_exp(&[f32::NEG_INFINITY, 0.0]), -(2.0_f64.ln()));
    }

    /// Noise that is uniform over the 256 values of a byte has 8 bits, whatever the normalisation;
    /// half as wide a range has 7.
    #[test]
    fn bits_of_uniform_bytes() {
        for std in [[1.0, 1.0, 1.0], [0.25, 0.24, 0.26]] {
            let model = RunConfig::default().model([0.3; 3], std);
            let pixels = (model.net.image * model.net.image) as f64;
            for (values, bits) in [(256.0, 8.0), (128.0, 7.0)] {
                // A normalised pixel is uniform over `values / (255 std)`.
                let log_p: f64 =
                    std.iter().map(|std| -pixels * (values / (255.0 * f64::from(*std))).ln()).sum();
                assert!((bits_per_dim(&model, log_p) - bits).abs() < 1e-9, "{std:?} {values}");
            }
        }
    }
}

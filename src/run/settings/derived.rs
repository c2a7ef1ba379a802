//! What follows from the settings: the model, how its data set is evaluated, how long it trains.

use std::time::Duration;

use super::{DataKind, RunConfig};
use crate::method::{ModelConfig, Objective, Protocol};
use crate::model::{NetConfig, Stem};
use crate::optim::Update;
use crate::tensor::Half;

/// SimCLR's temperature where none is given: that of its authors' command for CIFAR-10.
const TEMPERATURE: f32 = 0.5;

impl RunConfig {
    /// The same on another data set. STL-10 comes and goes with its size and the stem made for it.
    #[must_use]
    pub fn on(mut self, dataset: DataKind) -> Self {
        let stl = |dataset| dataset == DataKind::Stl10;
        if stl(dataset) != stl(self.dataset) {
            (self.stem, self.image_size) =
                if stl(dataset) { (Stem::Stl, 96) } else { (Stem::Cifar, 32) };
        }
        Self { dataset, ..self }
    }

    /// Networks and objective; the data's statistics are given, its classes are not.
    pub fn model(&self, mean: [f32; 3], std: [f32; 3]) -> ModelConfig {
        ModelConfig {
            net: self.net(),
            objective: self.objective(),
            mean,
            std,
            batch: self.batch_size,
            online_probe: None,
        }
    }

    /// Samples an image of the importance-sampled likelihood: 16 where latents are sampled, as in
    /// the authors' code.
    pub fn importance_samples(&self) -> usize {
        if self.method.samples() { self.importance_samples.unwrap_or(16) } else { 0 }
    }

    /// How its data set is evaluated.
    pub fn protocol(&self) -> Protocol {
        if self.dataset == DataKind::Stl10 { Protocol::ResizedCrop } else { Protocol::PadCrop }
    }

    /// How gradients become new weights: the optimiser and its weight decay.
    pub fn update(&self) -> Update {
        Update { optimizer: self.optimizer, weight_decay: self.weight_decay, ..Update::default() }
    }

    /// The 16-bit float as which what passes between layers is stored, if not as f32.
    pub fn half(&self) -> Option<Half> {
        self.precision.half()
    }

    /// Whether the loss is scaled.
    pub fn scales_loss(&self) -> bool {
        self.half() == Some(Half::F16)
    }

    /// Images per batch of the probe; its learning rate is proportional to them.
    pub fn probe_batch(&self) -> usize {
        self.probe_batch_size.unwrap_or(self.batch_size)
    }

    /// Least time between two checkpoints.
    pub fn save_interval(&self) -> Duration {
        Duration::try_from_secs_f64(self.save_minutes * 60.0).unwrap_or(Duration::MAX)
    }

    /// Images that an update is made from.
    pub fn images_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }

    /// Steps of the whole run.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        (self.epochs as u64).saturating_mul(steps_per_epoch).min(self.max_steps.unwrap_or(u64::MAX))
    }

    /// The sizes of encoder and decoder.
    pub fn net(&self) -> NetConfig {
        NetConfig {
            encoder: self.encoder,
            decoder: self.decoder,
            width: self.width,
            latent: self.latent_dim,
            stem: self.stem,
            image: self.image_size,
        }
    }

    /// The loss with its free parameters; what is not set has the method's own value.
    pub fn objective(&self) -> Objective {
        Objective {
            method: self.method,
            kl_coeff: self.kl_coeff.unwrap_or(self.method.default_kl_coeff()),
            log_scale: self.log_scale,
            learn_log_scale: self.learn_log_scale,
            target: self.target,
            temperature: self.temperature.unwrap_or(TEMPERATURE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PrecisionKind, Preset};
    use super::*;
    use crate::model::Depth;

    #[test]
    fn stl10_comes_and_goes_with_its_size_and_stem() {
        let small = RunConfig {
            dataset: DataKind::Folder,
            stem: Stem::Imagenet,
            image_size: 64,
            ..RunConfig::default()
        };
        assert_eq!(
            small.clone().on(DataKind::Cifar10),
            RunConfig { dataset: DataKind::Cifar10, ..small.clone() }
        );
        let stl = small.on(DataKind::Stl10);
        assert_eq!(
            (stl.dataset, stl.stem, stl.image_size, stl.protocol()),
            (DataKind::Stl10, Stem::Stl, 96, Protocol::ResizedCrop)
        );
        let own = RunConfig { stem: Stem::Imagenet, ..stl };
        assert_eq!(own.clone().on(DataKind::Stl10), own);
        let back = own.on(DataKind::Shapes);
        assert_eq!(
            (back.stem, back.image_size, back.protocol()),
            (Stem::Cifar, 32, Protocol::PadCrop)
        );
    }

    /// The paper, section 4.
    #[test]
    fn the_paper_s_stl10_run() {
        let c = RunConfig::preset(Preset::PaperStl10);
        assert_eq!(
            (c.dataset, c.stem, c.image_size, c.encoder, c.decoder),
            (DataKind::Stl10, Stem::Stl, 96, Depth::Resnet50, Depth::Resnet50)
        );
        assert_eq!(
            (c.width, c.latent_dim, c.batch_size, c.learning_rate, c.warmup_epochs, c.epochs),
            (64, 128, 512, 5e-4, 10, 3200)
        );
    }

    #[test]
    fn a_precision_is_a_half_or_none() {
        let half = |precision| {
            let config = RunConfig { precision, ..RunConfig::default() };
            (config.half(), config.scales_loss())
        };
        assert_eq!(half(PrecisionKind::F32), (None, false));
        assert_eq!(half(PrecisionKind::F16), (Some(Half::F16), true));
        assert_eq!(half(PrecisionKind::Bf16), (Some(Half::Bf16), false));
    }
}

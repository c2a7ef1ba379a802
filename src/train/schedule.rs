//! What every step of a run is given: its images, its learning rate, its random numbers; and which
//! records are due after it. All of it follows from the configuration and the number of images.

use crate::data::{Order, Splits};
use crate::ops::StepUniforms;
use crate::optim;
use crate::rng::EVALUATION_STEP;
use crate::run::RunError;
use crate::run::settings::{RunConfig, Schedule};

/// Learning rate of a step: linear from 0 over the warm-up, then constant (the paper, section 4),
/// or falling so that the step after the last would have 0.
pub fn learning_rate(config: &RunConfig, steps_per_epoch: u64, step: u64) -> f32 {
    let warmup = (config.warmup_epochs as u64).saturating_mul(steps_per_epoch);
    let rate = f64::from(config.learning_rate);
    if step < warmup {
        return (rate * step as f64 / warmup as f64) as f32;
    }
    let falling = config.total_steps(steps_per_epoch).saturating_sub(warmup).max(1);
    let done = ((step - warmup) as f64 / falling as f64).min(1.0);
    match config.schedule {
        Schedule::Constant => config.learning_rate,
        Schedule::Cosine => (rate * optim::half_cosine(done)) as f32,
        Schedule::Linear => (rate * (1.0 - done)) as f32,
    }
}

/// The uniform of a training step, in its first batch.
pub fn uniforms(config: &RunConfig, steps_per_epoch: u64, step: u64) -> StepUniforms {
    let learning_rate = learning_rate(config, steps_per_epoch, step);
    let [bias1, bias2] = optim::bias_corrections(step);
    StepUniforms { learning_rate, bias1, bias2, ..StepUniforms::seeded(config.seed, step as u32) }
}

/// The uniform of batch `part` of a training step: its images draw what they would draw within the
/// whole step.
pub(super) fn part_uniforms(
    config: &RunConfig,
    steps_per_epoch: u64,
    step: u64,
    part: usize,
) -> StepUniforms {
    StepUniforms {
        first_sample: (part * config.batch_size) as u32,
        ..uniforms(config, steps_per_epoch, step)
    }
}

/// What is due after which step.
#[derive(Clone, Copy, Debug)]
pub struct Timetable<'a> {
    config: &'a RunConfig,
    /// The order of the training images, in batches of a whole step.
    pub order: Order,
    /// Steps of an epoch.
    pub per_epoch: u64,
    /// Steps of the whole run.
    pub total: u64,
}

impl<'a> Timetable<'a> {
    /// That of a run on so many training images.
    ///
    /// # Errors
    /// If no step fits in them.
    pub fn new(config: &'a RunConfig, images: usize) -> Result<Self, RunError> {
        let (batch, asked) = (config.batch_size, config.images_per_step());
        if config.accumulate > 1 && asked > images && batch <= images {
            let parts = config.accumulate;
            let message = format!(
                "--accumulate {parts} of --batch-size {batch} takes {asked} images a step, but \
                 there are {images}"
            );
            return Err(RunError::config(
                message,
                Some(&format!("`--accumulate {}` is the largest that fits", images / batch)),
            ));
        }
        let order = Order::new(images, asked, config.seed, config.shuffle)?;
        let per_epoch = order.steps_per_epoch();
        Ok(Self { config, order, per_epoch, total: config.total_steps(per_epoch) })
    }

    /// Refuses a run of more steps than have random numbers of their own.
    ///
    /// # Errors
    /// If it is one.
    pub fn refuse_endless(&self) -> Result<(), RunError> {
        if self.total <= u64::from(EVALUATION_STEP) {
            return Ok(());
        }
        let total = self.total;
        let message = format!(
            "{total} steps are more than {EVALUATION_STEP}, the most that have random numbers of \
             their own"
        );
        Err(RunError::config(message, Some("use fewer --epochs, or --max-steps")))
    }

    /// The milestones that the run reaches: epoch and step.
    pub fn milestones(&self) -> impl Iterator<Item = (usize, u64)> + use<'a> {
        let (per_epoch, total) = (self.per_epoch, self.total);
        self.config
            .milestones
            .iter()
            .map(move |epoch| (*epoch, *epoch as u64 * per_epoch))
            .filter(move |(_, step)| *step <= total)
    }

    /// The milestone that a step is, as its epoch.
    pub fn milestone(&self, step: u64) -> Option<usize> {
        self.milestones().find(|(_, at)| *at == step).map(|(epoch, _)| epoch)
    }

    /// The epoch that ends with a step, counted from 1.
    pub fn epoch_end(&self, step: u64) -> Option<u64> {
        step.is_multiple_of(self.per_epoch).then_some(step / self.per_epoch)
    }

    /// Whether a record of a split is due after a step, wherever the run stops. A run that is
    /// stopped adds records that the resumed one takes back, so that its metrics are those of a
    /// straight run.
    pub fn due(&self, step: u64, split: &str) -> bool {
        let (config, epoch) = (self.config, self.epoch_end(step));
        match split {
            "train" => epoch.is_some() || step.is_multiple_of(config.log_every),
            "view" => {
                config.view_metrics_every > 0 && step.is_multiple_of(config.view_metrics_every)
            }
            "eval" => epoch.is_some_and(|epoch| {
                config.eval_every > 0 && epoch.is_multiple_of(config.eval_every as u64)
            }),
            _ => epoch.is_some(),
        }
    }

    /// Whether a picture is due after a step: at the end, after the first epoch, and some seven
    /// times between.
    pub fn picture(&self, step: u64) -> bool {
        let between = (self.config.epochs as u64).div_ceil(8);
        step == self.total
            || self.epoch_end(step).is_some_and(|epoch| epoch == 1 || epoch.is_multiple_of(between))
    }
}

/// Steps of a whole run.
///
/// # Errors
/// If no batch fits in the training images.
pub fn total_steps(config: &RunConfig, splits: &Splits) -> Result<u64, RunError> {
    Ok(Timetable::new(config, splits.train.len())?.total)
}

/// The milestones that a run reaches: epoch and step.
///
/// # Errors
/// If no batch fits in the training images.
pub fn milestones(config: &RunConfig, splits: &Splits) -> Result<Vec<(usize, u64)>, RunError> {
    Ok(Timetable::new(config, splits.train.len())?.milestones().collect())
}

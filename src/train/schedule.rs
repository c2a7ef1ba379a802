//! What every step of a run is given: its images, its learning rate, its random numbers; and which
//! records are due after it. All of it follows from the configuration and the number of images.

use std::f64::consts::PI;

use super::TrainError;
use super::config::{RunConfig, Schedule};
use crate::data::{Order, Splits};
use crate::ops::StepUniforms;

/// Steps of validation and figures draw their randomness from here on, so that they never share a draw with training.
pub(super) const EVALUATION_STEP: u32 = 1 << 31;

/// Learning rate of a step: linear from 0 over the warm-up, then constant (the paper, section 4), or falling so that the step after the
/// last would have 0.
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
        Schedule::Cosine => (rate * 0.5 * (1.0 + (PI * done).cos())) as f32,
        Schedule::Linear => (rate * (1.0 - done)) as f32,
    }
}

/// The uniform of a training step, in its first batch.
pub fn uniforms(config: &RunConfig, steps_per_epoch: u64, step: u64) -> StepUniforms {
    let t = step as f64 + 1.0;
    StepUniforms {
        seed_lo: config.seed as u32,
        seed_hi: (config.seed >> 32) as u32,
        step: step as u32,
        first_sample: 0,
        learning_rate: learning_rate(config, steps_per_epoch, step),
        bias1: (1.0 / (1.0 - 0.9f64.powf(t))) as f32,
        bias2: (1.0 / (1.0 - 0.999f64.powf(t))) as f32,
        serial: 0,
    }
}

/// The uniform of batch `part` of a training step: its images draw what they would draw within the whole step.
pub(super) fn part_uniforms(config: &RunConfig, steps_per_epoch: u64, step: u64, part: usize) -> StepUniforms {
    StepUniforms { first_sample: (part * config.batch_size) as u32, ..uniforms(config, steps_per_epoch, step) }
}

/// Steps of an epoch.
fn steps_per_epoch(config: &RunConfig, splits: &Splits) -> Result<u64, TrainError> {
    Ok(Order::new(splits.train.len(), config.images_per_step(), config.seed, config.shuffle)?.steps_per_epoch())
}

/// Steps of a whole run.
///
/// # Errors
/// If no batch fits in the training images.
pub fn total_steps(config: &RunConfig, splits: &Splits) -> Result<u64, TrainError> {
    Ok(config.total_steps(steps_per_epoch(config, splits)?))
}

/// The milestones that a run reaches: epoch and step.
///
/// # Errors
/// If no batch fits in the training images.
pub fn milestones(config: &RunConfig, splits: &Splits) -> Result<Vec<(usize, u64)>, TrainError> {
    let per_epoch = steps_per_epoch(config, splits)?;
    let total = config.total_steps(per_epoch);
    Ok(config.milestones.iter().map(|epoch| (*epoch, *epoch as u64 * per_epoch)).filter(|(_, step)| *step <= total).collect())
}

/// The uniform of a validation batch.
pub(super) fn evaluation_uniforms(seed: u64, batch: u64) -> StepUniforms {
    StepUniforms { seed_lo: seed as u32, seed_hi: (seed >> 32) as u32, step: EVALUATION_STEP + batch as u32, ..StepUniforms::default() }
}

/// The order of the training images, in batches of a whole step.
pub(super) fn order(config: &RunConfig, images: usize) -> Result<Order, TrainError> {
    let (batch, asked) = (config.batch_size, config.images_per_step());
    if config.accumulate > 1 && asked > images && batch <= images {
        let message =
            format!("--accumulate {} of --batch-size {batch} takes {asked} images a step, but there are {images}", config.accumulate);
        return Err(TrainError::config(message, Some(&format!("`--accumulate {}` is the largest that fits", images / batch))));
    }
    Ok(Order::new(images, asked, config.seed, config.shuffle)?)
}

/// Whether a record of a split is due after a step, wherever the run stops: a run that is stopped between adds records that the
/// resumed one takes back, so that its metrics are those of a straight run.
pub(super) fn due(config: &RunConfig, per_epoch: u64, step: u64, split: &str) -> bool {
    let epoch = step.is_multiple_of(per_epoch).then_some(step / per_epoch);
    match split {
        "train" => epoch.is_some() || step.is_multiple_of(config.log_every),
        "view" => true, // written where it is due, and nowhere else
        "eval" => epoch.is_some_and(|epoch| config.eval_every > 0 && epoch.is_multiple_of(config.eval_every as u64)),
        _ => epoch.is_some(),
    }
}

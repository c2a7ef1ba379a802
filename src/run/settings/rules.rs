//! What a configuration must satisfy before anything is made of it.

use super::{Bounds, DataKind, RunConfig};
use crate::method::{Compare, Parameter};

impl RunConfig {
    /// Checks what can be checked before data is read.
    ///
    /// # Errors
    /// What is wrong, by the name of its flag and with the numbers.
    pub fn validate(&self) -> Result<(), String> {
        self.check_ranges(Some)?;
        self.net().validate()?;
        self.check_together()
    }

    /// The part of [`RunConfig::validate`] that a network and its plan depend on.
    ///
    /// # Errors
    /// What is wrong, by the name of its flag and with the numbers.
    pub fn validate_network(&self) -> Result<(), String> {
        self.check_ranges(Bounds::planned)?;
        self.net().validate()
    }

    /// What settings must satisfy together: each rule is whether it is broken, and what to say
    /// then.
    fn check_together(&self) -> Result<(), String> {
        let (method, dataset) = (self.method, self.dataset.name());
        let (name, loss) = (method.name(), self.objective().loss());
        let last = self.milestones.last().copied().unwrap_or(0);
        // This refuses a parameter that the loss of the method does not read.
        let unread = |flag: &str, set: bool, parameter| {
            let says = format!("{flag} means nothing for --method {name}, which minimises {loss}");
            (set && !method.reads(parameter), says)
        };
        // These refuse what asks for a property that the method lacks.
        let lacks = |flag: &str, set: bool, has: bool, why: &str| {
            (set && !has, format!("{flag} means nothing for --method {name}, which {why}"))
        };
        let (samples, views) = (self.importance_samples, self.view_metrics_every);
        let (batch, batches) = (self.batch_size, self.accumulate);
        let rules = [
            (
                last > self.epochs,
                format!("--milestones {last} is after the last of {} epochs", self.epochs),
            ),
            unread("--kl-coeff", self.kl_coeff.is_some(), Parameter::KlCoeff),
            unread("--log-scale", self.log_scale != 0.0, Parameter::LogScale),
            unread("--learn-log-scale", self.learn_log_scale, Parameter::LogScale),
            unread("--target view", self.target == Compare::View, Parameter::Target),
            unread("--temperature", self.temperature.is_some(), Parameter::Temperature),
            lacks(
                "--importance-samples",
                samples.is_some_and(|samples| samples > 0),
                method.samples(),
                "has no likelihood",
            ),
            lacks("--view-metrics-every", views > 0, method.views() == 1, "encodes no original"),
            lacks(
                "--decoder",
                self.decoder != self.encoder,
                method.reconstructs(),
                "reconstructs nothing",
            ),
            // A loss may compare the images of a batch: then a sum over batches is not the gradient
            // of the large batch.
            (
                batches > 1 && !method.definition().per_image,
                format!(
                    "--accumulate {batches} with --method {name} would find the negatives of a \
                     view among {batch} images, not among the {} of the step: raise --batch-size \
                     instead",
                    self.images_per_step()
                ),
            ),
            (
                self.eval_every > 0 && !self.shuffle,
                "--eval-every needs held-out images, of which --no-shuffle leaves none".into(),
            ),
            (
                self.dataset != DataKind::Shapes && self.data_dir.is_none(),
                format!("--dataset {dataset} needs --data-dir"),
            ),
        ];
        rules.into_iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, says)| Err(says))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Method;

    /// A milestone may be the last epoch, and nothing is asked for by a 0.
    #[test]
    fn rules_end_where_they_say() {
        let base = RunConfig { epochs: 2, ..RunConfig::default() };
        let milestone = |epoch| RunConfig { milestones: vec![epoch], ..base.clone() };
        assert_eq!(milestone(2).check_together(), Ok(()));
        assert!(milestone(3).check_together().is_err_and(|says| says.contains("--milestones 3")));
        let simclr = RunConfig { method: Method::Simclr, ..base.clone() };
        let samples = |n| RunConfig { importance_samples: Some(n), ..simclr.clone() };
        assert_eq!(samples(0).check_together(), Ok(()));
        assert!(samples(1).check_together().is_err_and(|says| says.contains("no likelihood")));
    }
}

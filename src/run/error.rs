//! What stops a run.

use std::path::PathBuf;

use super::checkpoint::CheckpointError;
use super::metrics::MetricsError;
use crate::disk::{DiskError, LockError};
use crate::text;

/// What stops a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The device failed, or there is none as asked for.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The data set is missing, damaged or too small.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `metrics.jsonl` cannot be read or written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Features that cannot be classified.
    #[error("{0}")]
    Features(String),
    /// The checkpoint belongs to another model.
    #[error("{message}")]
    Architecture {
        /// Which tensor, with the shapes.
        message: String,
    },
    /// A file or folder of the run.
    #[error(transparent)]
    Io(#[from] DiskError),
    /// Another process works in the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A scalar of a step, or one of its gradients, that is no number.
    #[error("the {split} {what} at step {step}; {}", Self::found(tensor.as_deref()))]
    NotFinite {
        /// "training", "validation" or "probe's".
        split: &'static str,
        /// Step, counted from 1 as in `metrics.jsonl`.
        step: u64,
        /// Which scalar, and its value: "loss is NaN".
        what: String,
        /// Label of the first tensor that is not finite when the step is run again op by op; `None`
        /// if none is.
        tensor: Option<String>,
    },
    /// A file with a weight, a statistic or a moment that no training makes.
    #[error("{message}")]
    Weights {
        /// Which element, and what it is.
        message: String,
    },
    /// A weight or a moment that is no number: such a checkpoint is not written.
    #[error(
        "after step {step} the first tensor that is not finite is `{tensor}`; it was not saved"
    )]
    NotFiniteState {
        /// Step, counted from 1.
        step: u64,
        /// Name of the tensor.
        tensor: String,
    },
    /// A disk that filled up under a run.
    #[error("{0}")]
    NoRoom(Box<RunError>),
    /// What exceeds a limit of the device, or its memory.
    #[error("{message}")]
    TooLarge {
        /// What is too large, and for what.
        message: String,
        /// The largest that fits.
        hint: String,
    },
    /// A wrong request.
    #[error("{message}")]
    Config {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// Ends what is said of a gradient that overflows in mixed precision.
const WITH_ANY_SCALE: &str = "with any scale of the loss, down to 1,";

impl RunError {
    pub(crate) fn config(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Config { message: message.into(), hint: hint.map(Into::into) }
    }
    /// What the step shows when it is run again.
    fn found(tensor: Option<&str>) -> String {
        match tensor {
            Some(tensor) => format!("the first tensor that is not finite is `{tensor}`"),
            None => "run again op by op, all of its tensors are finite, which is a fault of the \
                     device, its driver or of aavae"
                .into(),
        }
    }
    /// The first of a step's scalars that is not finite, in words.
    pub(crate) fn what(names: &[String], values: &[f32]) -> String {
        match names.iter().zip(values).find(|(_, value)| !value.is_finite()) {
            Some((name, value)) if name != crate::optim::FINITE => format!("{name} is {value}"),
            _ => "gradient is not finite".into(),
        }
    }
    /// The same of a step whose loss is scaled: one gradient that is not finite stops nothing.
    pub(crate) fn what_scaled(names: &[String], values: &[f32]) -> String {
        let what = Self::what(names, values);
        if what.starts_with("gradient") { format!("{what} {WITH_ANY_SCALE}") } else { what }
    }
    /// What the operating system refused, if it did.
    fn refused(&self) -> Option<&DiskError> {
        match self {
            Self::Io(e)
            | Self::Checkpoint(CheckpointError::Io(e))
            | Self::Metrics(MetricsError::Io(e)) => Some(e),
            _ => None,
        }
    }
    /// Of an error that stopped a run: one that can be resumed once there is room.
    pub fn of_run(self) -> Self {
        let full = self.refused().is_some_and(DiskError::is_full);
        if full { Self::NoRoom(Box::new(self)) } else { self }
    }
    /// Names the file that a checkpoint's error is about.
    pub(crate) fn of_file(self, path: &std::path::Path) -> Self {
        match self {
            Self::Architecture { message } => {
                Self::Architecture { message: format!("`{}`: {message}", text::name(&path)) }
            }
            Self::Weights { message } => {
                Self::Weights { message: format!("`{}`: {message}", text::name(&path)) }
            }
            other => other,
        }
    }
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let named = DiskError::of(action, path);
        move |source| Self::Io(named(source))
    }
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Data(e) => e.hint(),
            Self::Config { hint, .. } => hint.clone(),
            Self::TooLarge { hint, .. } => Some(hint.clone()),
            Self::Checkpoint(e) => e.hint(),
            Self::Device(e) => e.hint().map(Into::into),
            Self::Lock(LockError::Held { .. }) => Some(
                "wait until it has ended, or stop it; \
                another run needs another folder"
                    .into(),
            ),
            Self::Lock(LockError::Disk(e)) => e.hint(),
            Self::Metrics(MetricsError::Io(e)) | Self::Io(e) => e.hint(),
            Self::NoRoom(e) => Some(format!(
                "{}, and continue with `--resume`; the checkpoints saved before are whole",
                if e.refused().is_some_and(DiskError::is_too_long) {
                    "raise the limit on the length of files (`ulimit -f`)"
                } else {
                    "free some space"
                }
            )),
            Self::NotFinite { what, .. } if what.ends_with(WITH_ANY_SCALE) => Some(
                "use --precision f32 or a lower --learning-rate, with another --out; \
                 `--init-from` starts from the checkpoints saved before, which are whole"
                    .into(),
            ),
            Self::NotFinite { tensor: None, .. } => Some(
                "`aavae bench --step --check` looks for the op; another device, --no-tune or other \
                 libraries may train"
                    .into(),
            ),
            Self::NotFinite { .. } | Self::NotFiniteState { .. } => Some(
                "use a lower --learning-rate; the checkpoints saved before are whole, and \
                 `--init-from` with another --out starts from one"
                    .into(),
            ),
            Self::Weights { .. } => Some(
                "the file is damaged, or the training that wrote it had failed; take an \
                    earlier checkpoint"
                    .into(),
            ),
            Self::Architecture { .. } => Some(
                "use the --encoder, --decoder, --width, --latent-dim and --method the \
                    checkpoint was trained with"
                    .into(),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No tensor is blamed, nor the learning rate, where the step is finite op by op.
    #[test]
    fn what_only_a_whole_step_does_is_said() {
        let of = |tensor: Option<&str>| {
            let tensor = tensor.map(Into::into);
            let what = "gradient is not finite".into();
            RunError::NotFinite { split: "training", step: 1, what, tensor }
        };
        let said = |error: &RunError| format!("{error}; {}", error.hint().unwrap_or_default());
        let (named, none) = (said(&of(Some("conv1"))), said(&of(None)));
        assert!(named.contains("`conv1`") && named.contains("--learning-rate"), "{named}");
        assert!(none.contains("op by op") && none.contains("bench --step --check"), "{none}");
        assert!(!none.contains("--learning-rate"), "{none}");
    }
}

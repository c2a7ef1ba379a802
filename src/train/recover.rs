//! Going on after a device was lost: it is opened anew, and the run continues from its newest
//! checkpoint, with the bits of an undisturbed one.

use std::time::Duration;

use super::pretrain::{Outcome, TrainingRequest, train};
use crate::device::{DeviceError, Session};
use crate::run::RunError;
use crate::run::resume::Resumed;

/// Losses in a row, without a checkpoint between them, after which the device is given up.
const PATIENCE: u32 = 3;
/// A driver that has just been reset needs a moment before it can be opened; longer each time.
const PAUSE: Duration = Duration::from_secs(1);

/// Opens the device, at the start and after each loss, and says why it is the one.
pub type Open<'a> = &'a mut dyn FnMut() -> Result<(Session, String), DeviceError>;

/// Pretrains on a device that may be lost.
///
/// # Errors
/// What stops the run otherwise, or the loss if it happens again and again without progress.
pub fn pretrain(
    request: &TrainingRequest<'_>,
    resumed: Option<&Resumed>,
    open: Open<'_>,
) -> Result<Outcome, RunError> {
    attempts(request, resumed, open).map_err(RunError::of_run)
}

fn attempts(
    request: &TrainingRequest<'_>,
    resumed: Option<&Resumed>,
    open: Open<'_>,
) -> Result<Outcome, RunError> {
    let mut newest: Option<Resumed> = None;
    let mut reached = resumed.map_or(0, |r| r.step);
    let (mut losses, mut notes) = (0, Vec::new());
    loop {
        let from = newest.as_ref().or(resumed);
        let opened = open().map_err(RunError::from);
        let error = match opened.and_then(|opened| train(request, from, opened, &notes)) {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        let lost = matches!(error, RunError::Device(DeviceError::Lost { .. }));
        // A device that is lost may take a while to come back.
        let gone = losses > 0 && matches!(error, RunError::Device(_));
        if !(lost || gone) || request.interrupt.asked() {
            return Err(error);
        }
        newest = checkpoint(request)?;
        let step = newest.as_ref().map_or(0, |r| r.step);
        losses = if step > reached { 1 } else { losses + 1 };
        if losses > PATIENCE {
            return Err(error);
        }
        reached = step;
        notes = vec![format!("warning: {error}; opening it anew and going on from step {step}")];
        std::thread::sleep(PAUSE * (losses - 1));
    }
}

/// The newest checkpoint; `None` if the device was lost before the first, so that the run begins
/// again.
fn checkpoint(request: &TrainingRequest<'_>) -> Result<Option<Resumed>, RunError> {
    if request.folder.store().latest().found.is_none() {
        return Ok(None);
    }
    Resumed::load(request.folder, request.config).map(Some)
}

//! How to tell that a submission is done.

#[cfg(not(target_family = "wasm"))]
mod native {
    use std::time::Duration;

    use super::super::{Failure, Gpu, Waiting, fail};
    use crate::device::DeviceError;

    /// A submission.
    pub(in super::super) struct Completion(wgpu::SubmissionIndex);

    impl Completion {
        /// Of what was submitted last.
        pub(in super::super) fn of(_: &wgpu::Queue, submission: wgpu::SubmissionIndex) -> Self {
            Self(submission)
        }
    }

    impl Gpu {
        /// Waits for a submission, or only looks whether it is done. wgpu panics here if the device
        /// is lost.
        pub(in super::super) fn is_done(
            &self,
            waiting: &Waiting,
            wait: bool,
        ) -> Result<bool, DeviceError> {
            let timeout = if wait { None } else { Some(Duration::ZERO) };
            let submission_index = Some(waiting.done.0.clone());
            let poll = wgpu::PollType::Wait { submission_index, timeout };
            let device = std::panic::AssertUnwindSafe(&self.device);
            let done = match std::panic::catch_unwind(move || device.poll(poll)) {
                Ok(Ok(_)) => true,
                Ok(Err(wgpu::PollError::Timeout)) => false,
                Ok(Err(error)) => {
                    fail(&self.failure, Failure::Other(error.to_string()));
                    false
                }
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text
                        .or(panic.downcast_ref::<&str>().copied())
                        .unwrap_or("the driver failed");
                    fail(&self.failure, Failure::Lost(text.into()));
                    false
                }
            };
            self.check(None)?;
            Ok(done)
        }
    }
}

#[cfg(target_family = "wasm")]
mod browser {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::readback::Reading;
    use super::super::{Gpu, Waiting};
    use crate::device::{DeviceError, wait};

    /// Whether the browser has said that a submission is done.
    pub(in super::super) struct Completion(Arc<AtomicBool>);

    impl Completion {
        /// Of what was submitted last.
        pub(in super::super) fn of(queue: &wgpu::Queue, _: wgpu::SubmissionIndex) -> Self {
            let done = Arc::new(AtomicBool::new(false));
            let told = Arc::clone(&done);
            queue.on_submitted_work_done(move || {
                told.store(true, Ordering::Relaxed);
                wait::wake();
            });
            Self(done)
        }
    }

    impl Gpu {
        /// Waits for a submission and what is read of it, or only looks whether they are done.
        pub(in super::super) fn is_done(
            &self,
            waiting: &Waiting,
            wait: bool,
        ) -> Result<bool, DeviceError> {
            let done = || match &waiting.reading {
                Some(reading) => Reading::is_mapped(reading),
                None => waiting.done.0.load(Ordering::Relaxed),
            };
            if wait {
                wait::until(|| done() || self.has_failed());
            }
            self.check(None)?;
            Ok(done())
        }
    }
}

#[cfg(target_family = "wasm")]
pub(super) use browser::Completion;
#[cfg(not(target_family = "wasm"))]
pub(super) use native::Completion;

//! What goes wrong out of order: a driver tells it when it pleases.

use std::sync::{Arc, Mutex, PoisonError};

use crate::device::wait;

/// What the driver reported behind our back.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// There was no room.
    OutOfMemory,
    /// The device is gone.
    Lost(String),
    /// Something else.
    Other(String),
}

/// Keeps what the driver reports out of order.
pub(super) fn watch(device: &wgpu::Device) -> Arc<Mutex<Option<Failure>>> {
    let failure = Arc::new(Mutex::new(None));
    let sink = Arc::clone(&failure);
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        fail(
            &sink,
            match error {
                wgpu::Error::OutOfMemory { .. } => Failure::OutOfMemory,
                other => Failure::Other(other.to_string()),
            },
        );
    }));
    let sink = Arc::clone(&failure);
    device.set_device_lost_callback(move |reason, message| {
        // Natively only this program destroys a device, and says so itself.
        if cfg!(target_family = "wasm") || reason != wgpu::DeviceLostReason::Destroyed {
            fail(&sink, Failure::Lost(format!("{reason:?}: {message}")));
        }
    });
    failure
}

pub(super) fn fail(sink: &Mutex<Option<Failure>>, failure: Failure) {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    wait::wake();
    // The first failure is the cause and later ones follow from it, except that a lost device
    // explains all.
    if sink.is_none() || matches!(failure, Failure::Lost(_)) {
        *sink = Some(failure);
    }
}

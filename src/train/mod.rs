//! Training: the plans of a run, the trainer that takes steps (a device, no files), the recorder of
//! what is measured (files, no device), and the loop that sees to both and to checkpoints.

pub mod compare;
#[cfg(feature = "native")]
pub mod experiment;
#[cfg(feature = "native")]
pub mod interrupt;
pub mod measure;
pub mod plans;
#[cfg(feature = "native")]
pub mod pretrain;
#[cfg(feature = "native")]
pub mod progress;
#[cfg(feature = "native")]
pub mod recorder;
#[cfg(feature = "native")]
pub mod recover;
#[cfg(feature = "native")]
mod running;
pub mod schedule;
pub mod trainer;

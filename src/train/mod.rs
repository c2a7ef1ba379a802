//! Training: the plans of a run, the trainer that takes steps (a device, no files), the recorder of
//! what is measured (files, no device), and the loop that sees to both and to checkpoints.

pub mod experiment;
pub mod interrupt;
pub mod measure;
pub mod plans;
pub mod pretrain;
pub mod progress;
pub mod recorder;
pub mod recover;
mod running;
pub mod schedule;
mod trainer;

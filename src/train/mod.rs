//! Training: the plans of a run, the trainer that takes steps, and the loop that sees to logs and
//! checkpoints.

pub mod experiment;
pub mod interrupt;
pub mod measure;
pub mod plans;
pub mod pretrain;
pub mod progress;
pub mod recorder;
pub mod recover;
pub mod schedule;
mod trainer;

//! What a training run reads and writes: checkpoints, logs, images; and the kNN evaluation.

pub mod checkpoint;
pub mod events;
pub mod grid;
pub mod knn;
pub mod metrics;
pub mod progress;
pub mod store;

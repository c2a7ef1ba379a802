//! What a run is and what it leaves on disk: settings, folder, checkpoints, logs. Nothing here
//! trains or measures; what does is above.

pub mod checkpoint;
mod error;
pub mod events;
pub mod fit;
pub mod folder;
pub mod foreign;
pub mod metrics;
pub mod other_format;
pub mod precision;
pub mod resident;
pub mod resume;
pub mod saver;
pub mod settings;
pub mod state;
pub mod store;
pub mod summary;
mod tfrecord;
pub mod trained;

pub use error::RunError;

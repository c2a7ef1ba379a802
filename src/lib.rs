//! aavae

pub mod data;
pub mod device;
pub mod ir;
pub mod ops;
pub mod plan;
pub mod rng;
pub mod shader;
pub mod tensor;
pub mod train;

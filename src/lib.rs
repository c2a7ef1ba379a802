//! aavae

pub mod check;
pub mod cli;
pub mod data;
pub mod device;
pub mod ir;
pub mod method;
pub mod model;
pub mod nn;
pub mod ops;
pub mod plan;
pub mod rng;
pub mod shader;
pub mod tensor;
pub mod train;

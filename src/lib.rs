//! aavae
pub mod data;

//! The graph of one step: typed nodes over values, built by `nn` and `method`, extended by
//! [`autodiff`] and rewritten by [`resident`], [`fuse`], [`half`], [`moments`],
//! [`gradient_sums`] and [`cut`].

pub mod autodiff;
pub mod cut;
pub mod fuse;
pub mod gradient_sums;
mod graph;
pub mod half;
pub mod moments;
pub mod resident;

pub use graph::{Graph, Group, Layout, Node, Range, Source, StateTensor, Value};

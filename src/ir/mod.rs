//! The graph of one step: typed nodes over values, built by `nn` and `method`, extended by
//! [`autodiff`] and rewritten by [`resident`], [`fuse`], [`half`], [`moments`] and [`cut`].

pub mod autodiff;
pub mod cut;
pub mod fuse;
mod graph;
pub mod half;
pub mod moments;
pub mod resident;

pub use graph::{Graph, Group, Layout, Node, Range, Source, StateTensor, Value};

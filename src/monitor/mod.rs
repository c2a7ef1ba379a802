//! What people see of runs while and after they train: [`watch`] follows one, [`compare`] tells
//! several apart, and [`plot`] draws that. Everything is read from the run folders; nothing is
//! written there, and a run that is being written, was killed, or is resumed reads as what it is.

pub mod chart;
pub mod compare;
pub mod dashboard;
pub mod plot;
pub mod run;
pub mod watch;

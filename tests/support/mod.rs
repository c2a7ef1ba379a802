//! Shared by the test targets: contents of trial inputs and the comparator.
#![allow(dead_code, reason = "each test target uses a part")]

use aavae::ops::Fill;
use aavae::rng::{Philox, Stream, fnv1a};
use aavae::tensor::TensorType;

pub mod compare;

/// An input of a trial.
#[derive(Clone, Debug)]
pub enum Contents {
    /// Floats.
    F(Vec<f32>),
    /// Integers.
    U(Vec<u32>),
}

/// Fills an input from the name of its trial: the same on every device and in every run.
pub fn contents(trial: &str, input: usize, ty: TensorType, fill: Fill) -> Contents {
    let rng = Philox::new(u64::from(fnv1a(trial)), Stream::Test);
    let len = ty.shape.len();
    let word = |i: usize| rng.words(input as u32, (i / 4) as u32, 0)[i % 4];
    let unit = |i: usize| aavae::rng::uniform(word(i));
    match fill {
        Fill::Normal => Contents::F((0..len).map(|i| rng.normals(input as u32, (i / 4) as u32, 0)[i % 4] as f32).collect()),
        Fill::Uniform(a, b) => Contents::F((0..len).map(|i| a + (b - a) * unit(i)).collect()),
        Fill::Constant(x) => Contents::F(vec![x; len]),
        Fill::Alternate(a, b) => Contents::F((0..len).map(|i| if i % 2 == 0 { a } else { b }).collect()),
        Fill::Ties => Contents::F((0..len).map(|i| (word(i) % 3) as f32).collect()),
        Fill::Below(n) => Contents::U((0..len).map(|i| word(i) % n).collect()),
        Fill::AugmentParams(h, w) => Contents::F(aavae::ops::sample_augment_params(ty.shape.n, h, w, u64::from(fnv1a(trial)))),
        Fill::Pixels => Contents::U((0..len).map(|i| word(i) & 0x00ff_ffff).collect()),
    }
}

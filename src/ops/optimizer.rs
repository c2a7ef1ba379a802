//! Updates of the flat parameter buffer `p` from its gradient, as PyTorch's, its L2 `weight_decay`
//! included. With `g = grad + weight_decay * p` (`g = grad` where decay is excluded) and step
//! `t = 1, 2, …`:
//!
//! ```text
//! adam:  m = beta1 m + (1 - beta1) g           v = beta2 v + (1 - beta2) g^2
//!        p = p - lr * (m bias1) / (sqrt(v bias2) + eps)             bias1 = 1 / (1 - beta1^t), bias2 = 1 / (1 - beta2^t)
//! sgd:   b = momentum b + g                    p = p - lr * (g + momentum b)       (Nesterov; else p - lr * b)
//! ```
//!
//! `b` starts at 0, so the first step has `b = g`. `lr`, `bias1` and `bias2` are per-step values.
//! Where `guard` is not finite nothing is written, so a step that overflowed leaves the last good
//! weights ([`super::AllFinite`]).

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Binding, Call, Case, Fill, Io, Kernel, Lowering, Op, OpDef, Real, ShapeError, Target, arity,
    same,
};
use crate::tensor::{Shape, TensorType};
use Fill::{Constant, Normal, Uniform};

/// Elements that one task of the native version updates.
const CHUNK: usize = 1 << 16;

/// Elements of the flat buffer that decay together: the alignment of tensors in it.
const BLOCK: usize = 64;

/// Checks (p, grad, moments…, guard) and returns the types of p and the moments.
pub(super) fn flat(
    op: &'static str,
    inputs: &[TensorType],
    moments: usize,
) -> Result<Vec<TensorType>, ShapeError> {
    arity(op, inputs, moments + 3)?;
    let (p, guard) = (inputs[0], inputs[moments + 2]);
    same(op, "the parameter", TensorType::f32(Shape::vector(p.shape.len())), p)?;
    same(op, "the gradient", p, inputs[1])?;
    for &moment in &inputs[2..moments + 2] {
        same(op, "a moment", p, moment)?;
    }
    same(op, "the guard", TensorType::f32(Shape::SCALAR), guard)?;
    Ok(vec![p; moments + 1])
}

/// Checks that ranges without decay are whole blocks of a buffer of `len` elements.
fn check_plain(op: &'static str, plain: &[Range<usize>], len: usize) -> Result<(), ShapeError> {
    let whole = |r: &Range<usize>| {
        r.start.is_multiple_of(BLOCK) && (r.end.is_multiple_of(BLOCK) || r.end == len)
    };
    match plain.iter().find(|r| r.is_empty() || r.end > len || !whole(r)) {
        Some(r) => Err(ShapeError::new(
            op,
            format!(
                "the range {r:?} without decay is not whole \
            blocks of {BLOCK} within {len}"
            ),
        )),
        None => Ok(()),
    }
}

/// What of the ranges without decay lies within these elements, counted from their first.
fn plain_part(plain: &[Range<usize>], elements: &Range<usize>) -> Vec<Range<usize>> {
    let part = |r: &Range<usize>| r.start.max(elements.start)..r.end.min(elements.end);
    plain
        .iter()
        .map(part)
        .filter(|r| !r.is_empty())
        .map(|r| r.start - elements.start..r.end - elements.start)
        .collect()
}

/// A bit for each block: 1 where it does not decay. Empty if every block decays.
fn mask(plain: &[Range<usize>], len: usize) -> Vec<u32> {
    let mut words = vec![0; if plain.is_empty() { 0 } else { len.div_ceil(32 * BLOCK) }];
    for block in plain.iter().flat_map(|r| r.start / BLOCK..r.end.div_ceil(BLOCK)) {
        words[block / 32] |= 1 << (block % 32);
    }
    words
}

/// Cuts a chunk of the native versions where the decay may change, and gives each part's decay.
fn decays(mask: &[u32], chunk: usize, decay: f32) -> (usize, impl Fn(usize) -> f32 + '_) {
    let part = if mask.is_empty() { CHUNK } else { BLOCK };
    let plain = move |block: usize| !mask.is_empty() && mask[block / 32] >> (block % 32) & 1 == 1;
    (part, move |i| if plain((chunk * CHUNK + i * part) / BLOCK) { 0.0 } else { decay })
}

/// Adds the mask to a kernel that has `DECAY`, where some blocks do not decay.
fn lower_decay(
    kernel: Kernel,
    plain: &[Range<usize>],
    len: usize,
    target: &Target,
    mut bindings: Vec<Binding>,
) -> Lowering {
    let mut l = Lowering::default();
    let mask = mask(plain, len);
    let masked = !mask.is_empty();
    if masked {
        bindings.push(l.table(mask));
    }
    let kernel = if masked { kernel.set("MASKED", true) } else { kernel };
    l.push(kernel, target.grid_1d(len.div_ceil(4)), &bindings);
    l
}

/// Adam of (param, grad, m, v, guard), updating param, m and v.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// Ranges without decay, in whole blocks of 64 elements.
    pub plain: Vec<Range<usize>>,
}

impl OpDef for Adam {
    const NAME: &'static str = "adam";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        check_plain(Self::NAME, &self.plain, inputs.first().map_or(0, |p| p.shape.len()))?;
        flat(Self::NAME, inputs, 2)
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (2, 1), (3, 2)]
    }
    fn part(&self, elements: Range<usize>) -> Option<Op> {
        Some(Self { plain: plain_part(&self.plain, &elements), ..self.clone() }.into())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (grad, guard) = (call.inputs[1].f(), call.inputs[4].f()[0].get());
        let [lr, bias1, bias2] =
            [call.step.learning_rate, call.step.bias1, call.step.bias2].map(f64::from);
        let [p, m, v] = &mut call.outputs[..] else { unreachable!("three outputs") };
        if !guard.is_finite() {
            return;
        }
        for i in 0..grad.len() {
            let decay =
                if self.plain.iter().any(|r| r.contains(&i)) { 0.0 } else { self.weight_decay };
            let g = grad[i].get() + decay * p[i].get();
            let first = self.beta1 * m[i].get() + (1.0 - self.beta1) * g;
            let second = self.beta2 * v[i].get() + (1.0 - self.beta2) * g * g;
            p[i] = T::of(p[i].get() - lr * (first * bias1) / ((second * bias2).sqrt() + self.eps));
            m[i] = T::of(first);
            v[i] = T::of(second);
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (grad, guard) = (call.inputs[1].f(), call.inputs[4].f()[0]);
        let (lr, bias1, bias2) = (call.step.learning_rate, call.step.bias1, call.step.bias2);
        let [beta1, beta2, eps, decay] =
            [self.beta1, self.beta2, self.eps, self.weight_decay].map(|x| x as f32);
        let [rest1, rest2] = [self.beta1, self.beta2].map(|beta| (1.0 - beta) as f32);
        let [p, m, v] = &mut call.outputs[..] else { unreachable!("three outputs") };
        if !guard.is_finite() {
            return;
        }
        let mask = mask(&self.plain, p.len());
        let chunks = p
            .par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .zip(grad.par_chunks(CHUNK));
        chunks.enumerate().for_each(|(chunk, (((p, m), v), grad))| {
            let (part, decay) = decays(&mask, chunk, decay);
            let parts = p
                .chunks_mut(part)
                .zip(m.chunks_mut(part))
                .zip(v.chunks_mut(part))
                .zip(grad.chunks(part));
            for (i, (((p, m), v), grad)) in parts.enumerate() {
                let decay = decay(i);
                for (((p, m), v), grad) in p.iter_mut().zip(m).zip(v).zip(grad) {
                    let g = grad + decay * *p;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * g * g;
                    *p -= lr * (*m * bias1) / ((*v * bias2).sqrt() + eps);
                }
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let len = io.inputs[0].shape.len();
        let kernel = Kernel::new("adam")
            .set("LEN4", len.div_ceil(4))
            .set("BETA1", self.beta1 as f32)
            .set("BETA1_REST", (1.0 - self.beta1) as f32)
            .set("BETA2", self.beta2 as f32)
            .set("BETA2_REST", (1.0 - self.beta2) as f32)
            .set("EPS", self.eps as f32)
            .set("DECAY", self.weight_decay as f32);
        let [p, m, v] = [0, 1, 2].map(Binding::Output);
        lower_decay(
            kernel,
            &self.plain,
            len,
            target,
            vec![p, Binding::Input(1), m, v, Binding::Input(4), Binding::Step],
        )
    }
    fn cases() -> Vec<Case> {
        let plain = |plain: &[Range<usize>]| Adam {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            plain: plain.to_vec(),
        };
        let adam = |weight_decay: f64| Adam { weight_decay, ..plain(&[]) };
        let inputs = |len: usize, grad: Fill, m: Fill, v: Fill, guard: f32| {
            let p = Shape::vector(len);
            [(p, Normal), (p, grad), (p, m), (p, v), (Shape::SCALAR, Constant(guard))]
        };
        let used = |len: usize, guard: f32| inputs(len, Normal, Normal, Uniform(0.0, 1.0), guard);
        vec![
            Case::new("p64", adam(0.0), &used(64, 1.0)),
            Case::new("p1", adam(0.0), &used(1, -1.0)),
            Case::new("p1031 with weight decay", adam(0.1), &used(1031, 0.0)),
            Case::new("p300007", adam(0.0), &used(300_007, 1.0)),
            Case::new(
                "p1031, some without decay",
                plain(&[0..64, 192..576, 1024..1031]),
                &used(1031, 1.0),
            ),
            Case::new(
                "p300007, some without decay",
                plain(&[64..128, 65_472..131_072, 299_968..300_007]),
                &used(300_007, 1.0),
            ),
            Case::new(
                "first step",
                adam(0.0),
                &inputs(128, Normal, Constant(0.0), Constant(0.0), 1.0),
            ),
            Case::new(
                "zero gradient",
                adam(0.0),
                &inputs(128, Constant(0.0), Constant(0.0), Constant(0.0), 1.0),
            ),
            Case::new("guard is NaN", adam(0.1), &used(128, f32::NAN)),
            Case::new("guard is infinite", adam(0.1), &used(128, f32::NEG_INFINITY)),
        ]
    }
}

/// SGD of (param, grad, momentum buffer, guard), updating param and the buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sgd {
    /// Decay of the buffer.
    pub momentum: f64,
    /// Look ahead by one decay.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// Ranges without decay, in whole blocks of 64 elements.
    pub plain: Vec<Range<usize>>,
}

impl OpDef for Sgd {
    const NAME: &'static str = "sgd";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        check_plain(Self::NAME, &self.plain, inputs.first().map_or(0, |p| p.shape.len()))?;
        flat(Self::NAME, inputs, 1)
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (2, 1)]
    }
    fn part(&self, elements: Range<usize>) -> Option<Op> {
        Some(Self { plain: plain_part(&self.plain, &elements), ..self.clone() }.into())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (grad, guard, lr) =
            (call.inputs[1].f(), call.inputs[3].f()[0].get(), f64::from(call.step.learning_rate));
        let [p, b] = &mut call.outputs[..] else { unreachable!("two outputs") };
        if !guard.is_finite() {
            return;
        }
        for i in 0..grad.len() {
            let decay =
                if self.plain.iter().any(|r| r.contains(&i)) { 0.0 } else { self.weight_decay };
            let g = grad[i].get() + decay * p[i].get();
            let buffer = self.momentum * b[i].get() + g;
            let d = if self.nesterov { g + self.momentum * buffer } else { buffer };
            p[i] = T::of(p[i].get() - lr * d);
            b[i] = T::of(buffer);
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (grad, guard, lr) =
            (call.inputs[1].f(), call.inputs[3].f()[0], call.step.learning_rate);
        let (momentum, decay, nesterov) =
            (self.momentum as f32, self.weight_decay as f32, self.nesterov);
        let [p, b] = &mut call.outputs[..] else { unreachable!("two outputs") };
        if !guard.is_finite() {
            return;
        }
        let mask = mask(&self.plain, p.len());
        let chunks =
            p.par_chunks_mut(CHUNK).zip(b.par_chunks_mut(CHUNK)).zip(grad.par_chunks(CHUNK));
        chunks.enumerate().for_each(|(chunk, ((p, b), grad))| {
            let (part, decay) = decays(&mask, chunk, decay);
            for (i, ((p, b), grad)) in
                p.chunks_mut(part).zip(b.chunks_mut(part)).zip(grad.chunks(part)).enumerate()
            {
                let decay = decay(i);
                for ((p, b), grad) in p.iter_mut().zip(b).zip(grad) {
                    let g = grad + decay * *p;
                    *b = momentum * *b + g;
                    *p -= lr * if nesterov { g + momentum * *b } else { *b };
                }
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let len = io.inputs[0].shape.len();
        let kernel = Kernel::new("sgd")
            .set("LEN4", len.div_ceil(4))
            .set("MOMENTUM", self.momentum as f32)
            .set("DECAY", self.weight_decay as f32)
            .set("NESTEROV", self.nesterov);
        let [p, b] = [0, 1].map(Binding::Output);
        lower_decay(
            kernel,
            &self.plain,
            len,
            target,
            vec![p, Binding::Input(1), b, Binding::Input(3), Binding::Step],
        )
    }
    fn cases() -> Vec<Case> {
        let inputs = |len: usize, guard: f32| {
            let p = Shape::vector(len);
            [(p, Normal), (p, Normal), (p, Normal), (Shape::SCALAR, Constant(guard))]
        };
        let nesterov = Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0, plain: vec![] };
        let plain = Sgd { nesterov: false, weight_decay: 0.1, ..nesterov.clone() };
        let some = |plain: &[Range<usize>]| Sgd {
            weight_decay: 0.1,
            plain: plain.to_vec(),
            ..nesterov.clone()
        };
        vec![
            Case::new("p64", nesterov.clone(), &inputs(64, 1.0)),
            Case::new("p1", nesterov.clone(), &inputs(1, 1.0)),
            Case::new("p1031 plain with weight decay", plain.clone(), &inputs(1031, -3.0)),
            Case::new(
                "p1031, some without decay",
                some(&[0..64, 192..576, 1024..1031]),
                &inputs(1031, 1.0),
            ),
            Case::new(
                "p200001, some without decay",
                some(&[65_472..131_072, 199_936..200_001]),
                &inputs(200_001, 1.0),
            ),
            Case::new(
                "p300007 without momentum",
                Sgd { momentum: 0.0, weight_decay: 0.0, ..plain },
                &inputs(300_007, 0.0),
            ),
            Case::new("guard is NaN", nesterov.clone(), &inputs(128, f32::NAN)),
            Case::new("guard is infinite", nesterov, &inputs(128, f32::INFINITY)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_without_decay_are_whole_blocks() {
        for (range, whole) in [
            (0..64, true),
            (64..100, true),
            (64..128, false),
            (10..64, false),
            (0..80, false),
            (64..64, false),
        ] {
            assert_eq!(
                check_plain("sgd", std::slice::from_ref(&range), 100).is_ok(),
                whole,
                "{range:?}"
            );
        }
        assert_eq!(mask(&[64..192, 2048..2100], 2100), [0b110, 1]);
        assert!(mask(&[], 2100).is_empty());
    }
}

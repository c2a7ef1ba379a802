//! Updates with a rate of its own for each tensor of the flat parameter buffer, for large batches.
//! `|x|` is the Euclidean norm of a tensor:
//!
//! ```text
//! lars:  ratio = trust |p| / (|grad| + weight_decay |p| + eps)
//!        b = momentum b + ratio (grad + weight_decay p)              p = p - lr b
//! lamb:  m = beta1 m + (1 - beta1) grad                              v = beta2 v + (1 - beta2) grad^2
//!        u = (m bias1) / (sqrt(v bias2) + eps) + weight_decay p      p = p - lr ratio u,   ratio = |p| / |u|
//! ```
//!
//! `ratio` is 1 where either norm is 0. A [`Segment::plain`] tensor has `ratio` 1 and no decay, as
//! in SimCLR's LARS. Elements between segments stay. LARS is You et al. 2017 (arXiv 1708.03888),
//! with `lr` outside `b` as PyTorch's SGD has it (the paper's is inside: the same while `lr` is
//! constant). LAMB is You et al. 2019 (arXiv 1904.00962), algorithm 2 with the identity as `phi`.
//! `lr`, `bias1`, `bias2` and `guard` are those of `optimizer.rs`.

use std::ops::Range;

use rayon::prelude::*;

use super::native::simd;
use super::optimizer::flat;
use super::segments::{self, Chunk, Segment, chunk_table, chunks, pieces, segment_table};
use super::{Binding, Call, Case, Fill, Io, Kernel, Lowering, Op, OpDef, Real, ShapeError, Target};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Constant, Normal, Uniform};

/// `|p|` over `|x|` as far as they are not 0: 1 otherwise, and where the tensor is plain.
fn ratio(plain: bool, p: f64, x: f64, of: impl Fn(f64, f64) -> f64) -> f64 {
    if plain || p == 0.0 || x == 0.0 { 1.0 } else { of(p, x) }
}

/// Ratio of each segment from the sums of squares of its chunks.
fn ratios(
    segments: &[Segment],
    chunks: &[Chunk],
    parts: &[[f64; 2]],
    of: impl Fn(f64, f64) -> f64,
) -> Vec<f32> {
    let mut totals = vec![[0.0; 2]; segments.len()];
    for (c, part) in chunks.iter().zip(parts) {
        totals[c.segment][0] += part[0];
        totals[c.segment][1] += part[1];
    }
    segments
        .iter()
        .zip(totals)
        .map(|(s, [p, x])| ratio(s.plain, p.sqrt(), x.sqrt(), &of) as f32)
        .collect()
}

/// Sum of squares: f32 in lanes, then f64.
fn squares(x: &[f32]) -> f64 {
    const LANES: usize = 64;
    let mut lanes = [0.0_f32; LANES];
    simd(
        #[inline(always)]
        || {
            x.chunks(LANES)
                .for_each(|x| lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane += x * x))
        },
    );
    lanes.iter().map(|x| f64::from(*x)).sum()
}

/// What the kernels of both updates share: the chunks' table, the dispatch that turns sums into
/// ratios, and its result.
struct Passes {
    lowering: Lowering,
    chunks: Binding,
    parts: Binding,
    ratios: Binding,
    count: usize,
}

impl Passes {
    fn new(segments: &[Segment]) -> Self {
        let count = chunks(segments).len();
        let mut lowering = Lowering::default();
        let parts = lowering.scratch(DType::F32, 2 * count);
        let ratios = lowering.scratch(DType::F32, segments.len());
        let chunks = lowering.table(chunk_table(segments));
        Self { lowering, chunks, parts, ratios, count }
    }
    /// A dispatch of one workgroup per chunk.
    fn per_chunk(&mut self, kernel: Kernel, target: &Target, bindings: &[Binding]) {
        self.lowering.push(
            kernel.set("CHUNKS", self.count),
            target.groups_1d(self.count),
            bindings,
        );
    }
    /// `ratio = scale |p| / (|x| + decay |p| + eps)` of each segment.
    fn ratios(&mut self, segments: &[Segment], target: &Target, [scale, decay, eps]: [f64; 3]) {
        let table = self.lowering.table(segment_table(segments));
        let kernel = Kernel::new("trust_ratio").set("SEGMENTS", segments.len());
        let kernel =
            kernel.set("SCALE", scale as f32).set("DECAY", decay as f32).set("EPS", eps as f32);
        self.lowering.push(
            kernel,
            target.groups_1d(segments.len()),
            &[self.parts, table, self.ratios],
        );
    }
}

/// LARS of (param, grad, momentum buffer, guard), updating param and the buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Lars {
    /// Decay of the buffer.
    pub momentum: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// What every trust ratio is multiplied by.
    pub trust: f64,
    /// Added to the denominator of the ratio.
    pub eps: f64,
    /// The tensors, each with a ratio of its own.
    pub segments: Vec<Segment>,
}

impl OpDef for Lars {
    const NAME: &'static str = "lars";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let types = flat(Self::NAME, inputs, 1)?;
        segments::check(Self::NAME, &self.segments, types[0].shape.len())?;
        Ok(types)
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (2, 1)]
    }
    fn part(&self, elements: Range<usize>) -> Option<Op> {
        Some(Self { segments: segments::part(&self.segments, &elements), ..self.clone() }.into())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (grad, guard, lr) =
            (call.inputs[1].f(), call.inputs[3].f()[0].get(), f64::from(call.step.learning_rate));
        let [p, b] = &mut call.outputs[..] else { unreachable!("two outputs") };
        if !guard.is_finite() {
            return;
        }
        for s in &self.segments {
            let tensor = s.offset..s.offset + s.len;
            let norm =
                |x: &[T]| x[tensor.clone()].iter().map(|x| x.get() * x.get()).sum::<f64>().sqrt();
            let of = |p, g| self.trust * p / (g + self.weight_decay * p + self.eps);
            let ratio = ratio(s.plain, norm(p), norm(grad), of);
            let decay = if s.plain { 0.0 } else { self.weight_decay };
            for i in tensor {
                let buffer =
                    self.momentum * b[i].get() + ratio * (grad[i].get() + decay * p[i].get());
                p[i] = T::of(p[i].get() - lr * buffer);
                b[i] = T::of(buffer);
            }
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (grad, guard, lr) =
            (call.inputs[1].f(), call.inputs[3].f()[0], call.step.learning_rate);
        let momentum = self.momentum as f32;
        let [p, b] = &mut call.outputs[..] else { unreachable!("two outputs") };
        if !guard.is_finite() {
            return;
        }
        let chunks = chunks(&self.segments);
        let parts: Vec<_> = chunks
            .par_iter()
            .map(|c| [squares(&p[c.first..c.end]), squares(&grad[c.first..c.end])])
            .collect();
        let of = |p, g| self.trust * p / (g + self.weight_decay * p + self.eps);
        let ratios = ratios(&self.segments, &chunks, &parts, of);
        let (p, b) = (pieces(&chunks, p), pieces(&chunks, b));
        chunks.par_iter().zip(p).zip(b).for_each(|((c, p), b)| {
            let (ratio, plain) = (ratios[c.segment], self.segments[c.segment].plain);
            let decay = if plain { 0.0 } else { self.weight_decay as f32 };
            for ((p, b), grad) in p.iter_mut().zip(b).zip(&grad[c.first..c.end]) {
                *b = momentum * *b + ratio * (grad + decay * *p);
                *p -= lr * *b;
            }
        });
    }
    fn lower(&self, _io: &Io, target: &Target) -> Lowering {
        let mut l = Passes::new(&self.segments);
        let ([p, b], [grad, guard]) = ([0, 1].map(Binding::Output), [1, 3].map(Binding::Input));
        let (parts, ratios, chunks) = (l.parts, l.ratios, l.chunks);
        l.per_chunk(Kernel::new("lars_norms"), target, &[p, grad, chunks, parts]);
        l.ratios(&self.segments, target, [self.trust, self.weight_decay, self.eps]);
        let kernel = Kernel::new("lars")
            .set("MOMENTUM", self.momentum as f32)
            .set("DECAY", self.weight_decay as f32);
        l.per_chunk(kernel, target, &[p, grad, b, ratios, chunks, guard, Binding::Step]);
        l.lowering
    }
    fn cases() -> Vec<Case> {
        let lars = |weight_decay, segments| Self {
            momentum: 0.9,
            weight_decay,
            trust: 1e-3,
            eps: 1e-8,
            segments,
        };
        let case = |name: &str,
                    weight_decay: f64,
                    segments: Vec<Segment>,
                    p: Fill,
                    grad: Fill,
                    guard: f32| {
            let len = Shape::vector(flat_len(&segments));
            Case::new(
                name,
                lars(weight_decay, segments),
                &[(len, p), (len, grad), (len, Normal), (Shape::SCALAR, Constant(guard))],
            )
        };
        vec![
            case("one tensor of 1", 0.1, layout(&[(1, false)]), Normal, Normal, 1.0),
            case("odd lengths and gaps", 0.1, ragged(), Normal, Normal, 1.0),
            case("without decay", 0.0, ragged(), Normal, Normal, -1.0),
            case("300 tensors", 0.01, many(), Normal, Normal, 0.0),
            case("p300007", 0.1, layout(&[(300_007, false)]), Normal, Normal, 1.0),
            case("zero weights", 0.1, ragged(), Constant(0.0), Normal, 1.0),
            case("zero gradient", 0.1, ragged(), Normal, Constant(0.0), 1.0),
            case("tiny gradient", 0.0, ragged(), Normal, Uniform(-1e-12, 1e-12), 1.0),
            case("guard is NaN", 0.1, ragged(), Normal, Normal, f32::NAN),
            case("guard is infinite", 0.1, ragged(), Normal, Normal, f32::INFINITY),
        ]
    }
}

/// LAMB of (param, grad, m, v, guard), updating param, m and v.
#[derive(Clone, Debug, PartialEq)]
pub struct Lamb {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled: added to the update.
    pub weight_decay: f64,
    /// The tensors, each with a ratio of its own.
    pub segments: Vec<Segment>,
}

impl OpDef for Lamb {
    const NAME: &'static str = "lamb";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let types = flat(Self::NAME, inputs, 2)?;
        segments::check(Self::NAME, &self.segments, types[0].shape.len())?;
        Ok(types)
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (2, 1), (3, 2)]
    }
    fn part(&self, elements: Range<usize>) -> Option<Op> {
        Some(Self { segments: segments::part(&self.segments, &elements), ..self.clone() }.into())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (grad, guard) = (call.inputs[1].f(), call.inputs[4].f()[0].get());
        let [lr, bias1, bias2] =
            [call.step.learning_rate, call.step.bias1, call.step.bias2].map(f64::from);
        let [p, m, v] = &mut call.outputs[..] else { unreachable!("three outputs") };
        if !guard.is_finite() {
            return;
        }
        for s in &self.segments {
            let decay = if s.plain { 0.0 } else { self.weight_decay };
            let mut update = Vec::with_capacity(s.len);
            let mut squared = 0.0;
            for i in s.offset..s.offset + s.len {
                let g = grad[i].get();
                let first = self.beta1 * m[i].get() + (1.0 - self.beta1) * g;
                let second = self.beta2 * v[i].get() + (1.0 - self.beta2) * g * g;
                update.push(
                    (first * bias1) / ((second * bias2).sqrt() + self.eps) + decay * p[i].get(),
                );
                squared += p[i].get() * p[i].get();
                m[i] = T::of(first);
                v[i] = T::of(second);
            }
            let norm = update.iter().map(|u| u * u).sum::<f64>().sqrt();
            let ratio = ratio(s.plain, squared.sqrt(), norm, |p, u| p / u);
            for (i, u) in update.iter().enumerate() {
                let i = s.offset + i;
                p[i] = T::of(p[i].get() - lr * ratio * u);
            }
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (grad, guard) = (call.inputs[1].f(), call.inputs[4].f()[0]);
        let (lr, bias1, bias2) = (call.step.learning_rate, call.step.bias1, call.step.bias2);
        let [beta1, beta2, eps] = [self.beta1, self.beta2, self.eps].map(|x| x as f32);
        let [rest1, rest2] = [self.beta1, self.beta2].map(|beta| (1.0 - beta) as f32);
        let [p, m, v] = &mut call.outputs[..] else { unreachable!("three outputs") };
        if !guard.is_finite() {
            return;
        }
        let chunks = chunks(&self.segments);
        let decay =
            |c: &Chunk| if self.segments[c.segment].plain { 0.0 } else { self.weight_decay as f32 };
        let update = |p: f32, m: f32, v: f32, decay: f32| {
            (m * bias1) / ((v * bias2).sqrt() + eps) + decay * p
        };
        let mut pieces: Vec<_> = pieces(&chunks, p)
            .into_iter()
            .zip(pieces(&chunks, m))
            .zip(pieces(&chunks, v))
            .collect();
        let moments = chunks.par_iter().zip(&mut pieces).map(|(c, ((p, m), v))| {
            let (grad, decay) = (&grad[c.first..c.end], decay(c));
            let mut us = [0.0_f32; segments::CHUNK];
            for (i, u) in us.iter_mut().enumerate().take(grad.len()) {
                m[i] = beta1 * m[i] + rest1 * grad[i];
                v[i] = beta2 * v[i] + rest2 * grad[i] * grad[i];
                *u = update(p[i], m[i], v[i], decay);
            }
            [squares(p), squares(&us[..grad.len()])]
        });
        let parts: Vec<_> = moments.collect();
        let ratios = ratios(&self.segments, &chunks, &parts, |p, u| p / u);
        chunks.par_iter().zip(pieces).for_each(|(c, ((p, m), v))| {
            let (rate, decay) = (lr * ratios[c.segment], decay(c));
            for ((p, m), v) in p.iter_mut().zip(m).zip(v) {
                *p -= rate * update(*p, *m, *v, decay);
            }
        });
    }
    fn lower(&self, _io: &Io, target: &Target) -> Lowering {
        let mut l = Passes::new(&self.segments);
        let ([p, m, v], [grad, guard]) =
            ([0, 1, 2].map(Binding::Output), [1, 4].map(Binding::Input));
        let (parts, ratios, chunks) = (l.parts, l.ratios, l.chunks);
        let kernel = |file| {
            Kernel::new(file)
                .set("BETA1", self.beta1 as f32)
                .set("BETA1_REST", (1.0 - self.beta1) as f32)
                .set("BETA2", self.beta2 as f32)
                .set("BETA2_REST", (1.0 - self.beta2) as f32)
                .set("EPS", self.eps as f32)
                .set("DECAY", self.weight_decay as f32)
        };
        l.per_chunk(kernel("lamb_norms"), target, &[p, grad, m, v, chunks, parts, Binding::Step]);
        l.ratios(&self.segments, target, [1.0, 0.0, 0.0]);
        l.per_chunk(kernel("lamb"), target, &[p, grad, m, v, ratios, chunks, guard, Binding::Step]);
        l.lowering
    }
    fn cases() -> Vec<Case> {
        let lamb = |weight_decay, segments| Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay,
            segments,
        };
        let case = |name: &str,
                    weight_decay: f64,
                    segments: Vec<Segment>,
                    p: Fill,
                    [grad, m, v]: [Fill; 3],
                    guard: f32| {
            let len = Shape::vector(flat_len(&segments));
            let inputs =
                [(len, p), (len, grad), (len, m), (len, v), (Shape::SCALAR, Constant(guard))];
            Case::new(name, lamb(weight_decay, segments), &inputs)
        };
        let (used, zero) = ([Normal, Normal, Uniform(0.0, 1.0)], Constant(0.0));
        vec![
            case("one tensor of 1", 0.1, layout(&[(1, false)]), Normal, used, 1.0),
            case("odd lengths and gaps", 0.1, ragged(), Normal, used, 1.0),
            case("without decay", 0.0, ragged(), Normal, used, -1.0),
            case("300 tensors", 0.01, many(), Normal, used, 0.0),
            case("p300007", 0.1, layout(&[(300_007, false)]), Normal, used, 1.0),
            case("first step", 0.1, ragged(), Normal, [Normal, zero, zero], 1.0),
            case("zero weights", 0.1, ragged(), zero, used, 1.0),
            case("zero update", 0.0, ragged(), Normal, [zero; 3], 1.0),
            case("guard is NaN", 0.1, ragged(), Normal, used, f32::NAN),
            case("guard is infinite", 0.1, ragged(), Normal, used, f32::NEG_INFINITY),
        ]
    }
}

/// Segments of these lengths, each at the next multiple of 64.
fn layout(tensors: &[(usize, bool)]) -> Vec<Segment> {
    let mut offset = 0;
    let segment = |&(len, plain): &(usize, bool)| {
        let s = Segment { offset, len, plain };
        offset = (offset + len).next_multiple_of(64);
        s
    };
    tensors.iter().map(segment).collect()
}

/// Length of the flat buffer that holds them.
fn flat_len(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |s| (s.offset + s.len).next_multiple_of(64))
}

/// A single element, odd lengths, a whole chunk, one element more, plain tensors between them.
fn ragged() -> Vec<Segment> {
    let chunk = segments::CHUNK;
    layout(&[
        (1, true),
        (103, false),
        (64, true),
        (7, false),
        (chunk, false),
        (chunk + 1, false),
        (36, true),
        (2 * chunk - 3, false),
    ])
}

/// As many tensors as a deep network has.
fn many() -> Vec<Segment> {
    layout(&(0..300).map(|i| (1 + i * 37 % 211, i % 3 == 0)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_overlap_or_leave_the_buffer_are_refused() {
        let refused = |segments: &[(usize, usize)], len: usize| {
            let segments = segments
                .iter()
                .map(|&(offset, len)| Segment { offset, len, plain: false })
                .collect();
            let op = Lars { momentum: 0.9, weight_decay: 0.0, trust: 1e-3, eps: 1e-8, segments };
            let p = TensorType::f32(Shape::vector(len));
            op.outputs(&[p, p, p, TensorType::f32(Shape::SCALAR)]).is_err()
        };
        assert!(!refused(&[(0, 5), (8, 1), (64, 64)], 128));
        for segments in
            [&[][..], &[(0, 0)], &[(2, 4)], &[(0, 129)], &[(0, 9), (8, 4)], &[(64, 4), (0, 4)]]
        {
            assert!(refused(segments, 128), "{segments:?}");
        }
    }

    #[test]
    fn every_element_of_every_segment_is_in_one_chunk() {
        for segments in [ragged(), many()] {
            let chunks = chunks(&segments);
            for (i, s) in segments.iter().enumerate() {
                let own: Vec<_> =
                    chunks.iter().filter(|c| c.segment == i).flat_map(|c| c.first..c.end).collect();
                assert_eq!(own, (s.offset..s.offset + s.len).collect::<Vec<_>>());
            }
            let table = segment_table(&segments);
            for (i, row) in table.chunks(4).enumerate() {
                let (first, end) = (row[0] as usize, row[1] as usize);
                assert!(
                    first < end && chunks[first..end].iter().all(|c| c.segment == i),
                    "segment {i}: {row:?}"
                );
            }
            assert_eq!(table[table.len() - 3] as usize, chunks.len());
        }
    }
}

//! Loops of the `cpu` device that several ops share: compiled for the processor's widest vectors
//! (`pulp`), cut into tasks by the shape alone, so that results do not depend on the number of
//! threads.

use rayon::prelude::*;

/// Elements of a task of an elementwise loop: 64 KiB, so that a task's operands stay in the
/// second-level cache.
const TASK: usize = 1 << 14;
/// Channel vectors are repeated to at least this length, so that inner loops are long whatever the
/// channels.
const WIDE: usize = 64;

/// Runs a loop compiled for the vectors this processor has.
#[inline(always)]
pub(super) fn simd<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// `y[i] = f(x[i])`.
pub(super) fn map(y: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32 + Sync) {
    y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
        );
    });
}

/// `y[i] = f(p[i], q[i])`.
pub(super) fn map2(y: &mut [f32], p: &[f32], q: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    y.par_chunks_mut(TASK).zip(p.par_chunks(TASK)).zip(q.par_chunks(TASK)).for_each(
        |((y, p), q)| {
            simd(
                #[inline(always)]
                || y.iter_mut().zip(p).zip(q).for_each(|((y, p), q)| *y = f(*p, *q)),
            );
        },
    );
}

/// Length of a run of whole pixels that inner loops take at once: a multiple of `channels`.
pub(super) fn run_length(channels: usize) -> usize {
    channels * WIDE.div_ceil(channels)
}

/// A channel vector repeated to [`run_length`].
pub(super) fn repeated(v: &[f32]) -> Vec<f32> {
    v.iter().copied().cycle().take(run_length(v.len())).collect()
}

/// Elements of a task over whole runs: by the shape, not by the threads.
pub(super) fn task_length(channels: usize) -> usize {
    let run = run_length(channels);
    run * (TASK / run).max(1)
}

/// Adds a run's lanes up per channel.
pub(super) fn folded(lanes: &[f32], channels: usize) -> Vec<f64> {
    (0..channels)
        .map(|c| lanes[c..].iter().step_by(channels).map(|x| f64::from(*x)).sum())
        .collect()
}

/// Sum over the first `counted` of `channels` channels of `(a - b)^2`: f32 within a task's lanes,
/// f64 between tasks.
pub(super) fn squared_distance(a: &[f32], b: &[f32], channels: usize, counted: usize) -> f64 {
    let (length, task) = (run_length(channels), task_length(channels));
    let parts: Vec<f64> = a
        .par_chunks(task)
        .zip(b.par_chunks(task))
        .map(|(a, b)| {
            let mut lanes = vec![0.0_f32; length];
            simd(
                #[inline(always)]
                || {
                    for (a, b) in a.chunks(length).zip(b.chunks(length)) {
                        lanes
                            .iter_mut()
                            .zip(a)
                            .zip(b)
                            .for_each(|((lane, a), b)| *lane += (a - b) * (a - b));
                    }
                },
            );
            lanes
                .iter()
                .enumerate()
                .filter(|(i, _)| i % channels < counted)
                .map(|(_, x)| f64::from(*x))
                .sum()
        })
        .collect();
    parts.iter().sum()
}

/// `y = factor * (a - b)` in the first `counted` channels, 0 in the others.
pub(super) fn scaled_difference(
    y: &mut [f32],
    a: &[f32],
    b: &[f32],
    factor: f32,
    channels: usize,
    counted: usize,
) {
    let mask: Vec<f32> = (0..channels).map(|c| if c < counted { factor } else { 0.0 }).collect();
    let (mask, length, task) = (repeated(&mask), run_length(channels), task_length(channels));
    y.par_chunks_mut(task).zip(a.par_chunks(task)).zip(b.par_chunks(task)).for_each(
        |((y, a), b)| {
            simd(
                #[inline(always)]
                || {
                    for ((y, a), b) in
                        y.chunks_mut(length).zip(a.chunks(length)).zip(b.chunks(length))
                    {
                        y.iter_mut()
                            .zip(a)
                            .zip(b)
                            .zip(&mask)
                            .for_each(|(((y, a), b), m)| *y = (a - b) * m);
                    }
                },
            );
        },
    );
}

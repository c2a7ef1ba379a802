//! SimCLR's augmentation, the draws: which crop, flip, jitter, grey and blur each image of a step
//! gets.
//!
//! A row of 32 floats per view, `[views * N, 1, 1, 32]` ([`slot`] names them); row `v N + n` is
//! view `v` of image `n`:
//!
//! | slot | what |
//! |---|---|
//! | 0-3 | crop box: top, left, height, width, integers, inside the image |
//! | 4 | flip left-right (0 or 1) |
//! | 5 | colour jitter applies (0 or 1) |
//! | 6 | turn grey (0 or 1) |
//! | 7 | blur (0 or 1) |
//! | 8-11 | order of the jitter, a permutation: slot 8 is the first; 0 brightness, 1 contrast, 2 saturation, 3 hue |
//! | 12-15 | factors of brightness, contrast, saturation; hue in turns |
//! | 16 | sigma of the blur, in pixels |
//! | 17-31 | 0 |
//!
//! Draws are `rng::Philox::words(step, first_sample + n, 16 v + index)` of [`Stream::Augment`]
//! ([`Stream::Probe`] for the linear probe on STL-10); `u` is [`crate::rng::uniform`] of a word,
//! and `u < p` is exact:
//!
//! | index | word 0 | word 1 | word 2 | word 3 |
//! |---|---|---|---|---|
//! | `t` = 0..9, try `t` of the crop | area | aspect ratio | top | left |
//! | 10 | `flip = u < flip_p` | `jitter = u < jitter_p` | `grey = u < grey_p` | `blur = u < blur_p` |
//! | 11 | brightness | contrast | saturation | hue |
//! | 12 | swap 3 | swap 2 | swap 1 | `sigma = lo + (hi - lo) u` |
//!
//! The crop of an image `H x W`, in f32 and in this order, as PyTorch's RandomResizedCrop:
//!
//! ```text
//! area  = H W (scale_lo + (scale_hi - scale_lo) u0)
//! ratio = exp(ln ratio_lo + (ln ratio_hi - ln ratio_lo) u1)
//! width = floor(sqrt(area ratio) + 1/2)        height = floor(sqrt(area / ratio) + 1/2)
//! top   = floor(u2 (H - height + 1))           left   = floor(u3 (W - width + 1))
//! ```
//!
//! The first try with `1 <= width <= W` and `1 <= height <= H` counts; if none of ten does, the box
//! is the largest centred one with an allowed ratio, which does not depend on a draw. The order is
//! a Fisher-Yates shuffle of (0, 1, 2, 3): for `i` = 3, 2, 1, swap `i` with
//! `floor(u_swap_i (i + 1))`. With `v = 0.8 strength`, brightness, contrast and saturation are
//! `lo + (1 + v - lo) u` with `lo = max(0, 1 - v)`, and hue is `0.2 strength (2u - 1)`.
//!
//! `sqrt`, `exp` and a fused multiply-add may differ in the last bit between devices, so a box can
//! differ by a pixel where a size lies within about 1e-5 of a rounding boundary: one image in some
//! ten thousand. The trials keep clear of such draws (a test below holds them to it). Everything
//! else is exact.

use super::{Binding, Call, Case, Io, Kernel, Lowering, OpDef, Real, ShapeError, Target, arity};
use crate::rng::{Philox, Stream, uniform};
use crate::tensor::{Shape, TensorType};

/// Places in a row of augmentation parameters; the file's table says what stands there.
/// `shaders/lib/augment.wgsl` reads them as vec4s.
pub mod slot {
    /// Crop box: top, left, height, width.
    pub const BOX: usize = 0;
    /// Whether it is flipped left to right.
    pub const FLIP: usize = 4;
    /// Colour jitter applies.
    pub const JITTER: usize = 5;
    /// Whether it turns grey.
    pub const GREY: usize = 6;
    /// Whether it is blurred.
    pub const BLUR: usize = 7;
    /// Order of the jitter.
    pub const ORDER: usize = 8;
    /// Factors: brightness, contrast, saturation, hue.
    pub const FACTORS: usize = 12;
    /// Sigma of the blur.
    pub const SIGMA: usize = 16;
    /// Length of a row.
    pub const COUNT: usize = 32;
}

/// Indices of the draws of one view; `VIEW` of the shader.
const INDICES: u32 = 16;

/// Distribution of the augmentation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Strength of the colour jitter.
    pub strength: f32,
    /// Probability of the colour jitter.
    pub jitter_p: f32,
    /// Probability of turning grey.
    pub grey_p: f32,
    /// Probability of the blur.
    pub blur_p: f32,
    /// Width of the blur's kernel ([`super::GaussianBlur`] takes it), odd; a recipe with `blur_p` 0
    /// needs no blur.
    pub blur_kernel: usize,
    /// Range of the blur's sigma.
    pub sigma: (f32, f32),
    /// Probability of the flip.
    pub flip_p: f32,
    /// Range of the crop's share of the area.
    pub scale: (f32, f32),
    /// Range of the crop's width over height; its logarithm is uniform.
    pub ratio: (f32, f32),
}

impl Recipe {
    /// CIFAR-10: strength 0.5, no blur.
    pub fn cifar() -> Self {
        Self { strength: 0.5, blur_p: 0.0, blur_kernel: 3, ..Self::stl() }
    }
    /// STL-10: strength 1, blur with a kernel of a tenth of the height.
    pub fn stl() -> Self {
        Self {
            strength: 1.0,
            jitter_p: 0.8,
            grey_p: 0.2,
            blur_p: 0.5,
            blur_kernel: 9,
            sigma: (0.1, 2.0),
            flip_p: 0.5,
            scale: (0.08, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
        }
    }
    /// Crop and flip alone (the linear probe on STL-10).
    pub fn crop_and_flip() -> Self {
        Self { jitter_p: 0.0, grey_p: 0.0, blur_p: 0.0, ..Self::stl() }
    }

    /// Smallest factor of brightness, contrast and saturation, and the width of their range.
    fn factor_range(&self) -> (f32, f32) {
        let v = 0.8 * self.strength;
        let lo = (1.0 - v).max(0.0);
        (lo, 1.0 + v - lo)
    }
    /// Natural logarithm of the smallest ratio, and the width of the range.
    fn log_ratio_range(&self) -> (f32, f32) {
        let (lo, hi) = (f64::from(self.ratio.0).ln(), f64::from(self.ratio.1).ln());
        (lo as f32, (hi - lo) as f32)
    }
    /// Top, left, height, width where ten tries failed.
    fn fallback(&self, h: usize, w: usize) -> [usize; 4] {
        let (lo, hi) = (f64::from(self.ratio.0), f64::from(self.ratio.1));
        let ratio = w as f64 / h as f64;
        let (bh, bw) = if ratio < lo {
            ((w as f64 / lo).round() as usize, w)
        } else if ratio > hi {
            (h, (h as f64 * hi).round() as usize)
        } else {
            (h, w)
        };
        [(h - bh) / 2, (w - bw) / 2, bh, bw]
    }
    /// The row of view `view` of one image of `h x w`; the file's documentation is the
    /// specification.
    fn draw(
        &self,
        rng: &Philox,
        step: u32,
        sample: u32,
        view: u32,
        h: usize,
        w: usize,
    ) -> [f32; slot::COUNT] {
        let mut row = [0.0; slot::COUNT];
        let (log_lo, log_span) = self.log_ratio_range();
        let words = |index: u32| rng.words(step, sample, view * INDICES + index);
        let uniforms = |index: u32| words(index).map(uniform);
        let fits = |t: u32| {
            let [u0, u1, u2, u3] = uniforms(t);
            let area = (h * w) as f32 * (self.scale.0 + (self.scale.1 - self.scale.0) * u0);
            let ratio = (log_lo + log_span * u1).exp();
            let (bw, bh) =
                (((area * ratio).sqrt() + 0.5).floor(), ((area / ratio).sqrt() + 0.5).floor());
            let (free_h, free_w) = (h as f32 - bh, w as f32 - bw);
            let fits = bw >= 1.0 && bh >= 1.0 && free_w >= 0.0 && free_h >= 0.0;
            fits.then(|| [(u2 * (free_h + 1.0)).floor(), (u3 * (free_w + 1.0)).floor(), bh, bw])
        };
        let crop = (0..10).find_map(fits).unwrap_or_else(|| self.fallback(h, w).map(|x| x as f32));
        row[slot::BOX..][..4].copy_from_slice(&crop);

        let chances = [self.flip_p, self.jitter_p, self.grey_p, self.blur_p];
        for ((flag, u), p) in row[slot::FLIP..].iter_mut().zip(uniforms(10)).zip(chances) {
            *flag = f32::from(u8::from(u < p));
        }

        let (lo, span) = self.factor_range();
        let [b, c, s, hue] = uniforms(11);
        let factors =
            [lo + span * b, lo + span * c, lo + span * s, 0.2 * self.strength * (2.0 * hue - 1.0)];
        row[slot::FACTORS..][..4].copy_from_slice(&factors);

        let words = words(12);
        let mut order = [0.0, 1.0, 2.0, 3.0];
        for (word, i) in words.into_iter().zip([3, 2, 1]) {
            order.swap(i, (uniform(word) * (i + 1) as f32).floor() as usize);
        }
        row[slot::ORDER..][..4].copy_from_slice(&order);
        row[slot::SIGMA] = self.sigma.0 + (self.sigma.1 - self.sigma.0) * uniform(words[3]);
        row
    }
}

/// Rows for trials on images of `h x w`: every combination of flags occurs, and every sixth box is
/// one pixel in a corner.
pub fn sample_augment_params(n: usize, h: usize, w: usize, seed: u64) -> Vec<f32> {
    let rng = Philox::new(seed, Stream::Test);
    let row = |i: usize| {
        let mut row = Recipe::stl().draw(&rng, 0, i as u32, 0, h, w);
        for (flag, on) in
            row[slot::FLIP..].iter_mut().zip([i % 2 == 1, i % 4 != 3, i % 5 == 2, i % 3 != 1])
        {
            *flag = f32::from(u8::from(on));
        }
        if i % 6 == 5 {
            row[slot::BOX..][..4].copy_from_slice(&[h as f32 - 1.0, w as f32 - 1.0, 1.0, 1.0]);
        }
        row
    };
    (0..n).flat_map(row).collect()
}

/// Refuses anything but rows of augmentation parameters for `n` images.
pub(super) fn check_params(op: &'static str, ty: TensorType, n: usize) -> Result<(), ShapeError> {
    let want = TensorType::f32(Shape::rows(n, slot::COUNT));
    if ty == want {
        Ok(())
    } else {
        Err(ShapeError::new(
            op,
            format!(
                "the parameters are {ty}, \
        expected {want}"
            ),
        ))
    }
}

/// Draws the augmentation of a batch: no inputs, output `[views * n, 1, 1, 32]`, all of the first
/// view before the second.
#[derive(Clone, Debug, PartialEq)]
pub struct AugmentParams {
    /// What the parameters are drawn from.
    pub recipe: Recipe,
    /// Number of images.
    pub n: usize,
    /// Views of each image, drawn independently; the draws of one do not depend on how many there
    /// are.
    pub views: usize,
    /// Height of the images that are cropped.
    pub in_h: usize,
    /// Width of the images that are cropped.
    pub in_w: usize,
    /// Where the draws come from: [`Stream::Augment`], or another that shares none with it.
    pub stream: Stream,
}

impl OpDef for AugmentParams {
    const NAME: &'static str = "augment_params";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 0)?;
        if self.n * self.views * self.in_h * self.in_w == 0 {
            let message = format!(
                "no images: {} views of {} of {} x \
                {}",
                self.views, self.n, self.in_h, self.in_w
            );
            return Err(ShapeError::new(Self::NAME, message));
        }
        Ok(vec![TensorType::f32(Shape::rows(self.views * self.n, slot::COUNT))])
    }
    /// In f32 whatever `T` is: the draws are f32.
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let step = call.step;
        let rng = Philox::new(step.seed(), self.stream);
        for (i, row) in call.outputs[0].chunks_mut(slot::COUNT).enumerate() {
            let (view, sample) =
                ((i / self.n) as u32, step.first_sample.wrapping_add((i % self.n) as u32));
            let drawn = self.recipe.draw(&rng, step.step, sample, view, self.in_h, self.in_w);
            row.copy_from_slice(&drawn.map(|x| T::of(f64::from(x))));
        }
    }
    fn lower(&self, _io: &Io, target: &Target) -> Lowering {
        let r = &self.recipe;
        let (log_lo, log_span) = r.log_ratio_range();
        let (factor_lo, factor_span) = r.factor_range();
        let [top, left, height, width] = r.fallback(self.in_h, self.in_w);
        let rows = self.views * self.n;
        let mut kernel = Kernel::new("augment_params")
            .set("N", rows)
            .set("IN_H", self.in_h as f32)
            .set("IN_W", self.in_w as f32)
            .set("SCALE_LO", r.scale.0)
            .set("SCALE_SPAN", r.scale.1 - r.scale.0)
            .set("LOG_RATIO_LO", log_lo)
            .set("LOG_RATIO_SPAN", log_span)
            .set("FALLBACK_TOP", top as f32)
            .set("FALLBACK_LEFT", left as f32)
            .set("FALLBACK_HEIGHT", height as f32)
            .set("FALLBACK_WIDTH", width as f32)
            .set("FLIP_P", r.flip_p)
            .set("JITTER_P", r.jitter_p)
            .set("GREY_P", r.grey_p)
            .set("BLUR_P", r.blur_p)
            .set("FACTOR_LO", factor_lo)
            .set("FACTOR_SPAN", factor_span)
            .set("HUE", 0.2 * r.strength)
            .set("SIGMA_LO", r.sigma.0)
            .set("SIGMA_SPAN", r.sigma.1 - r.sigma.0);
        if self.views > 1 {
            kernel = kernel.set("VIEWS", self.views);
        }
        if self.stream != Stream::Augment {
            kernel = kernel.set("STREAM", self.stream as usize);
        }
        Lowering::one(kernel, target.grid_1d(rows), &[Binding::Output(0), Binding::Step])
    }
    fn cases() -> Vec<Case> {
        let op = |recipe, n, in_h, in_w| AugmentParams {
            recipe,
            n,
            views: 1,
            in_h,
            in_w,
            stream: Stream::Augment,
        };
        let probe = |op| AugmentParams { stream: Stream::Probe, ..op };
        let skewed = Recipe { ratio: (0.9, 1.1), ..Recipe::cifar() };
        // Slack: the tolerance of a case without inputs allows one rounding, a draw takes up to
        // four. A box still has to be exact.
        vec![
            Case::new("cifar", op(Recipe::cifar(), 16, 32, 32), &[]).slack(4.0),
            Case::new("stl", op(Recipe::stl(), 13, 96, 96), &[]).slack(4.0),
            Case::new("crop and flip 23x41", op(Recipe::crop_and_flip(), 7, 23, 41), &[])
                .slack(4.0),
            Case::new("probe stl", probe(op(Recipe::crop_and_flip(), 9, 96, 96)), &[]).slack(4.0),
            Case::new("fallback when wide", op(skewed, 5, 3, 97), &[]).slack(4.0),
            Case::new("fallback when tall", op(skewed, 5, 97, 3), &[]).slack(4.0),
            Case::new("one pixel", op(Recipe::stl(), 1, 1, 1), &[]).slack(4.0),
            Case::new(
                "two views",
                AugmentParams { views: 2, ..op(Recipe::cifar(), 7, 32, 32) },
                &[],
            )
            .slack(4.0),
            Case::new(
                "three views of one image",
                AugmentParams { views: 3, ..op(Recipe::stl(), 1, 96, 96) },
                &[],
            )
            .slack(4.0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Op;
    use super::*;

    const SEED: u64 = 1234; // of tests/ops.rs
    const STEP: u32 = 5;

    /// Sizes of each try in f64, until one fits.
    fn tries(op: &AugmentParams, sample: u32, view: u32) -> Vec<[f64; 2]> {
        let rng = Philox::new(SEED, op.stream);
        let (r, h, w) = (op.recipe, op.in_h as f64, op.in_w as f64);
        let mut sizes = Vec::new();
        for t in 0..10 {
            let u = rng.uniforms(STEP, sample, 16 * view + t).map(f64::from);
            let area = h * w * (f64::from(r.scale.0) + f64::from(r.scale.1 - r.scale.0) * u[0]);
            let (lo, hi) = (f64::from(r.ratio.0).ln(), f64::from(r.ratio.1).ln());
            let ratio = (lo + (hi - lo) * u[1]).exp();
            let size = [(area * ratio).sqrt(), (area / ratio).sqrt()];
            sizes.push(size);
            if (1.0..=w).contains(&size[0].round()) && (1.0..=h).contains(&size[1].round()) {
                break;
            }
        }
        sizes
    }

    #[test]
    fn cases_keep_clear_of_rounding_boundaries() {
        for case in AugmentParams::cases() {
            let Op::AugmentParams(op) = &case.op else { panic!("a case of another op") };
            let rows = (0..op.views as u32)
                .flat_map(|view| (0..op.n as u32).map(move |sample| (view, sample)));
            for (view, sample) in rows {
                for x in tries(op, sample, view).into_iter().flatten() {
                    let clear = (x.fract() - 0.5).abs() > 1e-4;
                    assert!(
                        clear,
                        "case {}, view {view} of sample {sample}: {x} is near a \
                        rounding boundary",
                        case.name
                    );
                }
            }
        }
    }

    #[test]
    fn draws_follow_the_recipe() {
        let rng = Philox::new(SEED, Stream::Augment);
        let rows: Vec<_> =
            (0..20_000).map(|i| Recipe::stl().draw(&rng, STEP, i, 0, 96, 64)).collect();
        let share = |f: &dyn Fn(&[f32; slot::COUNT]) -> bool| {
            rows.iter().filter(|r| f(r)).count() as f64 / rows.len() as f64
        };
        let near = |name: &str, got: f64, want: f64| {
            assert!(
                (got - want).abs() < 0.015,
                "{name}: \
            {got}, expected {want}"
            )
        };
        near("flip", share(&|r| r[slot::FLIP] == 1.0), 0.5);
        near("jitter", share(&|r| r[slot::JITTER] == 1.0), 0.8);
        near("grey", share(&|r| r[slot::GREY] == 1.0), 0.2);
        near("blur", share(&|r| r[slot::BLUR] == 1.0), 0.5);
        near("brightness below 1", share(&|r| r[slot::FACTORS] < 1.0), 0.5);
        near("hue below -0.1", share(&|r| r[slot::FACTORS + 3] < -0.1), 0.25);
        for (place, op) in (0..4).flat_map(|p| (0..4).map(move |o| (p, o as f32))) {
            near("place of a jitter op", share(&|r| r[slot::ORDER + place] == op), 0.25);
        }
        for r in &rows {
            let [top, left, h, w] = [0, 1, 2, 3].map(|i| r[slot::BOX + i]);
            assert!(
                top >= 0.0
                    && left >= 0.0
                    && h >= 1.0
                    && w >= 1.0
                    && top + h <= 96.0
                    && left + w <= 64.0,
                "box {r:?}"
            );
            let mut order = [0, 1, 2, 3].map(|i| r[slot::ORDER + i] as u32);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
            assert!((0.1..2.0).contains(&r[slot::SIGMA]));
        }
    }

    /// The file's table, read for the second view.
    #[test]
    fn a_second_view_is_drawn_as_specified() {
        let op = AugmentParams {
            recipe: Recipe::stl(),
            n: 50,
            views: 2,
            in_h: 96,
            in_w: 64,
            stream: Stream::Augment,
        };
        let step = super::super::StepUniforms {
            seed_lo: SEED as u32,
            step: STEP,
            first_sample: 3,
            ..Default::default()
        };
        let rows = |op: &AugmentParams| {
            let out_types = op.outputs(&[]).expect("no inputs");
            let mut rows = vec![f64::NAN; out_types[0].shape.len()];
            op.reference(&mut Call {
                inputs: vec![],
                outputs: vec![&mut rows],
                words: vec![],
                in_types: &[],
                out_types: &out_types,
                step: &step,
            });
            rows
        };
        let (both, first) = (rows(&op), rows(&AugmentParams { views: 1, ..op.clone() }));
        let (views, second) = both.split_at(first.len());
        assert_eq!(views, first, "the first view does not know of the second");
        let rng = Philox::new(SEED, Stream::Augment);
        for (n, row) in second.chunks(slot::COUNT).enumerate() {
            let sample = 3 + n as u32;
            let u = |index: u32| rng.uniforms(STEP, sample, 16 + index).map(f64::from);
            let sizes = tries(&op, sample, 1);
            let [width, height] = sizes[sizes.len() - 1].map(f64::round);
            assert!(width <= 64.0 && height <= 96.0, "ten tries of sample {sample} fail");
            let [_, _, top, left] = u(sizes.len() as u32 - 1);
            let mut want = vec![
                (top * (96.0 - height + 1.0)).floor(),
                (left * (64.0 - width + 1.0)).floor(),
                height,
                width,
            ];
            want.extend(
                u(10).iter().zip([0.5, 0.8, 0.2, 0.5]).map(|(u, p)| f64::from(u8::from(*u < p))),
            );
            let [swap3, swap2, swap1, sigma] = u(12);
            let mut order = [0.0, 1.0, 2.0, 3.0];
            order.swap(3, (4.0 * swap3) as usize);
            order.swap(2, (3.0 * swap2) as usize);
            order.swap(1, (2.0 * swap1) as usize);
            want.extend(order);
            let [brightness, contrast, saturation, hue] = u(11);
            want.extend([brightness, contrast, saturation].map(|u| 0.2 + 1.6 * u));
            want.extend([0.2 * (2.0 * hue - 1.0), 0.1 + 1.9 * sigma]);
            want.resize(slot::COUNT, 0.0);
            let far = row.iter().zip(&want).position(|(got, want)| (got - want).abs() > 1e-6);
            assert!(far.is_none(), "sample {sample}, slot {far:?}: {row:?}, specified {want:?}");
        }
    }
}

//! Convolution, and the linear layer as the 1x1 convolution of a 1x1 image. NHWC, no dilation, no
//! groups.
//!
//! ```text
//! conv2d:              y[n,oy,ox,o]  = sum_{kh,kw,c} x[n, oy*s+kh-p, ox*s+kw-p, c] * w[o,kh,kw,c]
//! conv2d_input_grad:   dx[n,iy,ix,c] = sum_{kh,kw,o} dy[n,(iy+p-kh)/s,(ix+p-kw)/s,o] * w[o,kh,kw,c]   where the division is exact
//! conv2d_weight_grad:  dw[o,kh,kw,c] = sum_{n,oy,ox} dy[n,oy,ox,o] * x[n, oy*s+kh-p, ox*s+kw-p, c]
//! ```
//!
//! The first two take an [`Epilogue`] (`ir::fuse` moves bias, residual addition, ReLU and the ReLU
//! mask of the backward pass there):
//! `v = sum; v += bias[o]; v += add; v = max(v, 0); v = 0 where mask <= 0`. A forward convolution
//! may write the moments of its result too, for the batch norm that follows (`ir::moments`), a
//! gradient what the gradient of a batch norm sums (`ir::gradient_sums`).
//!
//! One GEMM family carries all three (`shaders/conv_nt_*`, `conv_tn_*`): the input gradient is the
//! forward kernel on transposed weights, the weight gradient sums over pixels in `SPLIT` chunks
//! that are then added in order.

mod cases;
mod coop;
mod epilogue;
mod geometry;
mod library;
mod lower;
mod native;
mod native_weight;
mod winograd;
mod winograd_weight;

pub use epilogue::Epilogue;

use geometry::{Geometry, out_extent};
use lower::How;

use super::sum_rows::column_sums;
use super::{
    Call, Case, Emit, Fill, Forward, Io, Lowering, OpDef, Real, ShapeError, SumRows, Target,
    ValueId, Variant, arity,
};
use crate::tensor::{Shape, TensorType};

/// `y = conv(x, w)`; inputs x, w, then the epilogue's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Step between windows.
    pub stride: usize,
    /// Zero border on each side.
    pub pad: usize,
    /// What is done with each sum before it is stored.
    pub epilogue: Epilogue,
}

/// `dx` of a convolution; inputs dy, w, then the epilogue's. It is what PyTorch calls
/// `conv_transpose2d`, and differentiable as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv2dInputGrad {
    /// Step between windows.
    pub stride: usize,
    /// Zero border on each side.
    pub pad: usize,
    /// Height of dx.
    pub h: usize,
    /// Width of dx.
    pub w: usize,
    /// What is done with each sum before it is stored.
    pub epilogue: Epilogue,
}

/// `dw` of a convolution, and `db` of its bias if it has one; inputs x, dy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv2dWeightGrad {
    /// Step between windows.
    pub stride: usize,
    /// Zero border on each side.
    pub pad: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Whether there is a second output, `db [1,1,1,Cout]`: the sums of dy over all pixels. Only
    /// where 2 `pad` < `kernel`, so that some row of the kernel meets all of dy.
    pub bias: bool,
}

fn flops(x: Shape, y: Shape, kernel: usize) -> u64 {
    2 * (y.len() * kernel * kernel) as u64 * x.c as u64
}

fn channels(op: &'static str, c: usize) -> Result<(), ShapeError> {
    if c.is_multiple_of(4) {
        Ok(())
    } else {
        Err(ShapeError::new(op, format!("{c} channels; activations have a multiple of 4")))
    }
}

/// The weights, where they are multiplied with a 16-bit float and are none yet.
fn rounded_weights(io: &Io) -> Vec<usize> {
    let [x, w] = [0, 1].map(|i| io.inputs[i].dtype.half().is_some());
    if x && !w { vec![1] } else { vec![] }
}

impl Conv2d {
    /// A plain convolution.
    pub fn new(stride: usize, pad: usize) -> Self {
        Self { stride, pad, epilogue: Epilogue::default() }
    }
    fn geometry<T>(&self, call: &Call<'_, T>) -> Geometry {
        Geometry::new(call.in_shape(0), call.in_shape(1), call.out_shape(0), self.stride, self.pad)
    }
}

/// Input coordinate of a window's tap, if it is inside the image.
fn tap(o: usize, k: usize, stride: usize, pad: usize, size: usize) -> Option<usize> {
    (o * stride + k).checked_sub(pad).filter(|&i| i < size)
}

impl OpDef for Conv2d {
    const NAME: &'static str = "conv2d";
    fn halves(&self) -> [Vec<usize>; 2] {
        [self.epilogue.halves(), vec![0]]
    }
    fn rounded(&self, io: &Io) -> Vec<usize> {
        rounded_weights(io)
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2 + self.epilogue.inputs())?;
        let (x, w) = (inputs[0].shape, inputs[1].shape);
        channels(Self::NAME, x.c)?;
        channels(Self::NAME, w.n)?;
        if x.c != w.c || w.h != w.w {
            return Err(ShapeError::new(
                Self::NAME,
                format!("weight {w} does not fit the input {x}"),
            ));
        }
        let extents = (
            out_extent(x.h, w.h, self.stride, self.pad),
            out_extent(x.w, w.w, self.stride, self.pad),
        );
        let (Some(h), Some(wide)) = extents else {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "a {}x{} kernel exceeds the input {x} \
                with padding {}",
                    w.h, w.w, self.pad
                ),
            ));
        };
        let y = TensorType::f32(Shape::new(x.n, h, wide, w.n));
        self.epilogue.check(Self::NAME, inputs, y)?;
        Ok(self.epilogue.outputs(y, 1))
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (xs, ws, ys) = (call.in_shape(0), call.in_shape(1), call.out_shape(0));
        let (x, w) = (call.inputs[0].f(), call.inputs[1].f());
        for n in 0..ys.n {
            for oy in 0..ys.h {
                for ox in 0..ys.w {
                    for o in 0..ys.c {
                        let mut sum = 0.0;
                        for kh in 0..ws.h {
                            for kw in 0..ws.w {
                                let (Some(iy), Some(ix)) = (
                                    tap(oy, kh, self.stride, self.pad, xs.h),
                                    tap(ox, kw, self.stride, self.pad, xs.w),
                                ) else {
                                    continue;
                                };
                                for c in 0..xs.c {
                                    sum +=
                                        x[xs.at(n, iy, ix, c)].get() * w[ws.at(o, kh, kw, c)].get();
                                }
                            }
                        }
                        let at = ys.at(n, oy, ox, o);
                        call.outputs[0][at] = T::of(self.epilogue.apply(call, sum, at, o));
                    }
                }
            }
        }
        self.epilogue.parts(call, 1);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (g, tail) = (self.geometry(call), self.epilogue.tail(call));
        let sums =
            if winograd::pays(&g, call.in_types) { winograd::forward } else { native::forward };
        sums(&g, call.inputs[0].f(), call.inputs[1].f(), tail, call.outputs[0]);
        self.epilogue.parts(call, 1);
    }
    /// # Panics
    /// On a fused tail other than a bias: fusion comes after differentiation.
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Self { stride, pad, epilogue } = *self;
        assert!(epilogue.is_linear(), "differentiate before fusing");
        let Some(dy) = node.dy[0] else { return vec![None; node.x.len()] };
        let (x, w) = (g.ty(node.x[0]).shape, g.ty(node.x[1]).shape);
        let dx = Conv2dInputGrad { stride, pad, h: x.h, w: x.w, epilogue: Epilogue::default() };
        // The weight gradient first: then the input gradient is last and its consumers can be fused
        // into it.
        let bias = epilogue.bias && node.wants[2];
        let both = bias && node.wants[1] && 2 * pad < w.h;
        let op = Conv2dWeightGrad { stride, pad, kernel: w.h, bias: both };
        let sums = if node.wants[1] { g.emit(op.into(), &[node.x[0], dy]) } else { vec![] };
        let dw = sums.first().copied();
        let db = match sums.get(1) {
            Some(&db) => Some(db),
            None => bias.then(|| g.emit1(SumRows.into(), &[dy])),
        };
        let dx = node.wants[0].then(|| g.emit1(dx.into(), &[dy, node.x[1]]));
        if epilogue.bias { vec![dx, dw, db] } else { vec![dx, dw] }
    }
    fn differentiable(&self) -> &'static [usize] {
        self.epilogue.differentiable()
    }
    fn variants(&self, io: &Io, target: &Target) -> Vec<Variant> {
        let all = library::nt_variants(io, target, [self.stride, self.pad], &self.epilogue);
        lower::with_parts(all, &self.epilogue, target)
    }
    fn preferred(&self, io: &Io, target: &Target) -> Variant {
        lower::preferred(&self.variants(io, target), io, target)
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        self.lower_as(io, target, self.preferred(io, target))
    }
    fn lower_as(&self, io: &Io, target: &Target, variant: Variant) -> Lowering {
        let (x, w, y) = (io.inputs[0].shape, io.inputs[1].shape, io.outputs[0]);
        let g = Geometry::new(x, w, y.shape, self.stride, self.pad);
        let how = How { target, variant, half: y.dtype.half().is_some() };
        library::forward(&g, &self.epilogue, &how)
    }
    fn flops(&self, io: &Io) -> u64 {
        flops(io.inputs[0].shape, io.outputs[0].shape, io.inputs[1].shape.h)
    }
    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (name, x, w, stride, pad) in shapes() {
            cases.push(Case::new(
                name,
                Self::new(stride, pad),
                &[(x, Fill::Normal), (w, Fill::Normal)],
            ));
        }
        // As 16-bit floats these weights cancel, if each goes to its even neighbour, or to the
        // largest f16 there is; a kernel that does not round them, or rounds otherwise, shows.
        let (x, w) = (Shape::new(3, 9, 9, 36), Shape::new(20, 1, 1, 36));
        for (name, a, b) in [
            ("weights between two f16", 1.0 + 1.0 / 2048.0, -1.0),
            ("weights between two bf16", 1.0 + 3.0 / 256.0, -(1.0 + 5.0 / 256.0)),
            ("weights beyond the largest f16", 65_519.0, -65_504.0),
        ] {
            let inputs = [(x, Fill::Constant(1.0)), (w, Fill::Alternate(a, b))];
            cases.push(Case::new(name, Self::new(1, 0), &inputs));
        }
        let (x, w, y) = (Shape::new(2, 5, 7, 8), Shape::new(12, 3, 3, 8), Shape::new(2, 5, 7, 12));
        let bias = (Shape::vector(12), Fill::Normal);
        for bits in 1..16 {
            let epilogue = Epilogue {
                bias: bits & 1 > 0,
                add: bits & 2 > 0,
                relu: bits & 4 > 0,
                mask: bits & 8 > 0,
                ..Epilogue::default()
            };
            let mut inputs = vec![(x, Fill::Normal), (w, Fill::Normal)];
            inputs.extend(epilogue.bias.then_some(bias));
            inputs.extend(epilogue.add.then_some((y, Fill::Normal)));
            inputs.extend(epilogue.mask.then_some((y, Fill::Normal)));
            let name = [
                (epilogue.bias, "bias"),
                (epilogue.add, "add"),
                (epilogue.relu, "relu"),
                (epilogue.mask, "mask"),
            ];
            let name: Vec<_> = name.iter().filter(|n| n.0).map(|n| n.1).collect();
            cases.push(Case::new(
                format!("epilogue {}", name.join("+")),
                Self { stride: 1, pad: 1, epilogue },
                &inputs,
            ));
        }
        cases.extend(cases::moments());
        cases.extend(cases::gradient_sums());
        cases
    }
}

/// Shapes that hurt: prime sizes, a size smaller than the kernel, odd and even sizes under stride
/// 2, channels that fill no vector, fewer and more rows than any tile, linear layers.
fn shapes() -> Vec<(&'static str, Shape, Shape, usize, usize)> {
    let s = Shape::new;
    vec![
        ("n2h5w7c4 k3s1p1 o8", s(2, 5, 7, 4), s(8, 3, 3, 4), 1, 1),
        ("n1h1w1c4 k1s1p0 o4", s(1, 1, 1, 4), s(4, 1, 1, 4), 1, 0),
        ("n3h11w11c8 k3s2p1 o12", s(3, 11, 11, 8), s(12, 3, 3, 8), 2, 1),
        ("n2h8w6c12 k3s2p1 o4", s(2, 8, 6, 12), s(4, 3, 3, 12), 2, 1),
        ("n2h7w5c8 k1s2p0 o16", s(2, 7, 5, 8), s(16, 1, 1, 8), 2, 0),
        ("n1h2w2c16 k3s1p1 o36", s(1, 2, 2, 16), s(36, 3, 3, 16), 1, 1),
        ("n1h13w9c4 k7s2p3 o20", s(1, 13, 9, 4), s(20, 7, 7, 4), 2, 3),
        ("n1h5w5c4 k7s1p3 o8", s(1, 5, 5, 4), s(8, 7, 7, 4), 1, 3),
        ("n2h8w8c64 k3s1p1 o40", s(2, 8, 8, 64), s(40, 3, 3, 64), 1, 1),
        ("n5h16w16c16 k3s1p1 o16", s(5, 16, 16, 16), s(16, 3, 3, 16), 1, 1),
        ("n3h9w9c36 k1s1p0 o20", s(3, 9, 9, 36), s(20, 1, 1, 36), 1, 0),
        ("linear n1 c8 o12", s(1, 1, 1, 8), s(12, 1, 1, 8), 1, 0),
        ("linear n67 c36 o132", s(67, 1, 1, 36), s(132, 1, 1, 36), 1, 0),
        ("linear n300 c128 o64", s(300, 1, 1, 128), s(64, 1, 1, 128), 1, 0),
    ]
}

impl OpDef for Conv2dInputGrad {
    const NAME: &'static str = "conv2d_input_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [self.epilogue.halves(), vec![0]]
    }
    fn rounded(&self, io: &Io) -> Vec<usize> {
        rounded_weights(io)
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2 + self.epilogue.inputs())?;
        let (dy, w) = (inputs[0].shape, inputs[1].shape);
        let want = (
            out_extent(self.h, w.h, self.stride, self.pad),
            out_extent(self.w, w.w, self.stride, self.pad),
        );
        if dy.c != w.n || want != (Some(dy.h), Some(dy.w)) {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "dy {dy} is not the output of weight \
                {w} on a {}x{} input",
                    self.h, self.w
                ),
            ));
        }
        if self.epilogue.moments.is_some() {
            return Err(ShapeError::new(Self::NAME, "has no moments"));
        }
        let dx = TensorType::f32(Shape::new(dy.n, self.h, self.w, w.c));
        self.epilogue.check(Self::NAME, inputs, dx)?;
        Ok(self.epilogue.outputs(dx, self.stride))
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (ys, ws, xs) = (call.in_shape(0), call.in_shape(1), call.out_shape(0));
        let (dy, w) = (call.inputs[0].f(), call.inputs[1].f());
        // Scatter: the transpose of the forward loops, written independently of the gather that
        // kernels use.
        let mut dx = vec![0.0; xs.len()];
        for n in 0..ys.n {
            for oy in 0..ys.h {
                for ox in 0..ys.w {
                    for kh in 0..ws.h {
                        for kw in 0..ws.w {
                            let (Some(iy), Some(ix)) = (
                                tap(oy, kh, self.stride, self.pad, xs.h),
                                tap(ox, kw, self.stride, self.pad, xs.w),
                            ) else {
                                continue;
                            };
                            for o in 0..ys.c {
                                for c in 0..xs.c {
                                    dx[xs.at(n, iy, ix, c)] += dy[ys.at(n, oy, ox, o)].get()
                                        * w[ws.at(o, kh, kw, c)].get();
                                }
                            }
                        }
                    }
                }
            }
        }
        for (at, sum) in dx.into_iter().enumerate() {
            call.outputs[0][at] = T::of(self.epilogue.apply(call, sum, at, at % xs.c));
        }
        self.epilogue.parts(call, self.stride);
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (dx, w, dy) = (call.out_shape(0), call.in_shape(1), call.in_shape(0));
        let g = Geometry::new(dx, w, dy, self.stride, self.pad);
        let tail = self.epilogue.tail(call);
        let fast = winograd::pays(&g, call.in_types);
        let sums = if fast { winograd::input_gradient } else { native::input_gradient };
        sums(&g, call.inputs[0].f(), call.inputs[1].f(), tail, call.outputs[0]);
        self.epilogue.parts(call, self.stride);
    }
    /// # Panics
    /// On a fused tail other than a bias: fusion comes after differentiation.
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let Self { stride, pad, epilogue, .. } = *self;
        assert!(epilogue.is_linear(), "differentiate before fusing");
        let Some(dx) = node.dy[0] else { return vec![None; node.x.len()] };
        let op = Conv2dWeightGrad { stride, pad, kernel: g.ty(node.x[1]).shape.h, bias: false };
        let dw = node.wants[1].then(|| g.emit1(op.into(), &[dx, node.x[0]]));
        let db = (epilogue.bias && node.wants[2]).then(|| g.emit1(SumRows.into(), &[dx]));
        let dy = node.wants[0].then(|| g.emit1(Conv2d::new(stride, pad).into(), &[dx, node.x[1]]));
        if epilogue.bias { vec![dy, dw, db] } else { vec![dy, dw] }
    }
    fn differentiable(&self) -> &'static [usize] {
        self.epilogue.differentiable()
    }
    fn variants(&self, io: &Io, target: &Target) -> Vec<Variant> {
        let mut all = library::nt_variants(io, target, [self.stride, self.pad], &self.epilogue);
        // Its parts are of rows as they lie.
        let apart = self.epilogue.gradient_sums.is_some() && self.stride > 1;
        all.retain(|variant| !(apart && matches!(variant, Variant::Library { .. })));
        lower::with_parts(all, &self.epilogue, target)
    }
    fn preferred(&self, io: &Io, target: &Target) -> Variant {
        lower::preferred(&self.variants(io, target), io, target)
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        self.lower_as(io, target, self.preferred(io, target))
    }
    fn lower_as(&self, io: &Io, target: &Target, variant: Variant) -> Lowering {
        let (dy, w, dx) = (io.inputs[0].shape, io.inputs[1].shape, io.outputs[0].shape);
        let g = Geometry::new(dx, w, dy, self.stride, self.pad);
        let how = How { target, variant, half: io.outputs[0].dtype.half().is_some() };
        library::input_gradient(&g, &self.epilogue, &how)
    }
    fn flops(&self, io: &Io) -> u64 {
        flops(io.outputs[0].shape, io.inputs[0].shape, io.inputs[1].shape.h)
    }
    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (name, x, w, stride, pad) in shapes() {
            let y = forward_shape(x, w, stride, pad);
            cases.push(Case::new(
                name,
                grad(x, stride, pad, Epilogue::default()),
                &[(y, Fill::Normal), (w, Fill::Normal)],
            ));
        }
        let (x, w) = (Shape::new(2, 6, 7, 12), Shape::new(8, 3, 3, 12));
        for stride in [1, 2] {
            let y = forward_shape(x, w, stride, 1);
            let epilogue = Epilogue { add: true, mask: true, ..Epilogue::default() };
            let inputs =
                [(y, Fill::Normal), (w, Fill::Normal), (x, Fill::Normal), (x, Fill::Normal)];
            cases.push(Case::new(
                format!("epilogue add+mask s{stride}"),
                grad(x, stride, 1, epilogue),
                &inputs,
            ));
        }
        let epilogue = Epilogue { add: true, ..Epilogue::default() };
        let (w, y) = (Shape::new(8, 1, 1, 12), Shape::new(2, 3, 4, 8));
        cases.push(Case::new(
            "epilogue add k1s2",
            grad(x, 2, 0, epilogue),
            &[(y, Fill::Normal), (w, Fill::Normal), (x, Fill::Normal)],
        ));
        cases.extend(cases::transposed());
        cases.extend(cases::gradient_sums_of_inputs());
        cases
    }
}

fn forward_shape(x: Shape, w: Shape, stride: usize, pad: usize) -> Shape {
    let extent = |size, kernel| {
        out_extent(size, kernel, stride, pad).unwrap_or_else(|| panic!("case {x} * {w}"))
    };
    Shape::new(x.n, extent(x.h, w.h), extent(x.w, w.w), w.n)
}

fn grad(x: Shape, stride: usize, pad: usize, epilogue: Epilogue) -> Conv2dInputGrad {
    Conv2dInputGrad { stride, pad, h: x.h, w: x.w, epilogue }
}

impl OpDef for Conv2dWeightGrad {
    const NAME: &'static str = "conv2d_weight_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0, 1], vec![]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        let (x, dy) = (inputs[0].shape, inputs[1].shape);
        let extent = |size| out_extent(size, self.kernel, self.stride, self.pad);
        if x.n != dy.n || (extent(x.h), extent(x.w)) != (Some(dy.h), Some(dy.w)) {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "dy {dy} is not the output of a {0}x{0} \
                kernel on {x}",
                    self.kernel
                ),
            ));
        }
        if self.bias && 2 * self.pad >= self.kernel {
            let (kernel, pad) = (self.kernel, self.pad);
            let message =
                format!("no row of a kernel of {kernel} with padding {pad} meets all of dy");
            return Err(ShapeError::new(Self::NAME, message));
        }
        let dw = TensorType::f32(Shape::new(dy.c, self.kernel, self.kernel, x.c));
        let db = self.bias.then_some(TensorType::f32(Shape::vector(dy.c)));
        Ok(std::iter::once(dw).chain(db).collect())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (xs, ys, ws) = (call.in_shape(0), call.in_shape(1), call.out_shape(0));
        let (x, dy) = (call.inputs[0].f(), call.inputs[1].f());
        for o in 0..ws.n {
            for kh in 0..ws.h {
                for kw in 0..ws.w {
                    let mut sums = vec![0.0; ws.c];
                    for n in 0..ys.n {
                        for oy in 0..ys.h {
                            for ox in 0..ys.w {
                                let (Some(iy), Some(ix)) = (
                                    tap(oy, kh, self.stride, self.pad, xs.h),
                                    tap(ox, kw, self.stride, self.pad, xs.w),
                                ) else {
                                    continue;
                                };
                                let d = dy[ys.at(n, oy, ox, o)].get();
                                for (c, sum) in sums.iter_mut().enumerate() {
                                    *sum += d * x[xs.at(n, iy, ix, c)].get();
                                }
                            }
                        }
                    }
                    for (c, sum) in sums.into_iter().enumerate() {
                        call.outputs[0][ws.at(o, kh, kw, c)] = T::of(sum);
                    }
                }
            }
            if self.bias {
                let sum = (0..ys.pixels()).map(|p| dy[p * ys.c + o].get()).sum();
                call.outputs[1][o] = T::of(sum);
            }
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (x, dw, dy) = (call.in_shape(0), call.out_shape(0), call.in_shape(1));
        let g = Geometry::new(x, dw, dy, self.stride, self.pad);
        let fast = winograd::pays_for_weights(&g, call.in_types);
        let sums =
            if fast { winograd_weight::weight_gradient } else { native_weight::weight_gradient };
        sums(&g, call.inputs[0].f(), call.inputs[1].f(), call.outputs[0]);
        if self.bias {
            column_sums(call.inputs[1].f(), call.outputs[1]);
        }
    }
    fn variants(&self, io: &Io, target: &Target) -> Vec<Variant> {
        library::tn_variants(io, target, [self.stride, self.pad])
    }
    fn preferred(&self, io: &Io, target: &Target) -> Variant {
        lower::preferred(&self.variants(io, target), io, target)
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        self.lower_as(io, target, self.preferred(io, target))
    }
    fn lower_as(&self, io: &Io, target: &Target, variant: Variant) -> Lowering {
        let (x, dy, dw) = (io.inputs[0].shape, io.inputs[1].shape, io.outputs[0].shape);
        let g = Geometry::new(x, dw, dy, self.stride, self.pad);
        let how = How { target, variant, half: false };
        library::weight_gradient(&g, self.bias, &how)
    }
    fn flops(&self, io: &Io) -> u64 {
        flops(io.inputs[0].shape, io.inputs[1].shape, self.kernel)
    }
    fn cases() -> Vec<Case> {
        let case = |(name, x, w, stride, pad): (&'static str, Shape, Shape, usize, usize), bias| {
            let y = forward_shape(x, w, stride, pad);
            let name = if bias { format!("bias {name}") } else { name.to_owned() };
            let op = Self { stride, pad, kernel: w.h, bias };
            Case::new(name, op, &[(x, Fill::Normal), (y, Fill::Normal)])
        };
        let (x, w) = (Shape::new(3, 31, 33, 8), Shape::new(8, 3, 3, 8));
        let many = ("n3h31w33c8 k3s1p1 o8", x, w, 1, 1);
        // Every third shape with its bias too.
        let with_bias = shapes().into_iter().filter(|s| 2 * s.4 < s.2.h).step_by(3);
        shapes()
            .into_iter()
            .map(|s| case(s, false))
            .chain(with_bias.map(|s| case(s, true)))
            // So many pixels that their sums have parts for several lanes.
            .chain([many, many].into_iter().zip([false, true]).map(|(s, bias)| case(s, bias)))
            .collect()
    }
}

//! Elementwise ops. `relu: y = 0 where x < 0, else x`; `relu_grad: dx = 0 where y <= 0, else dy` (0
//! at 0; NaN stays NaN, and a NaN in `y` lets `dy` pass, all as PyTorch);
//! `weighted_sum: y = a*p + b*q`; `scale: y = a*x`; `dot: y = sum(p*q)`, a scalar.

use std::ops::Range;

use super::native::{map, map2};
use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, Op, OpDef, Real, ShapeError,
    Target, ValueId, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Normal, Uniform};

const ODD: Shape = Shape::new(3, 11, 7, 4);

fn unary(op: &'static str, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
    arity(op, inputs, 1)?;
    Ok(vec![inputs[0]])
}

fn binary(op: &'static str, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
    arity(op, inputs, 2)?;
    same(op, "the second input", inputs[0], inputs[1])?;
    Ok(vec![inputs[0]])
}

/// One dispatch over vec4s. Buffers are padded to 16 bytes, so a tail of fewer than 4 elements is
/// safe to touch.
pub(super) fn elementwise(kernel: Kernel, io: &Io, target: &Target) -> Lowering {
    let vec4s = io.outputs[0].shape.len().div_ceil(4);
    let mut bindings: Vec<_> = (0..io.inputs.len()).map(Binding::Input).collect();
    bindings.push(Binding::Output(0));
    Lowering::one(kernel.set("LEN4", vec4s), target.grid_1d(vec4s), &bindings)
}

/// ReLU that keeps NaN, which `f64::max` would not.
pub(super) fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// `y = max(x, 0)`, NaN where `x` is.
#[derive(Clone, Debug, PartialEq)]
pub struct Relu;

impl OpDef for Relu {
    const NAME: &'static str = "relu";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        unary(Self::NAME, inputs)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let x = call.inputs[0].f();
        for (y, x) in call.outputs[0].iter_mut().zip(x) {
            *y = T::of(relu(x.get()));
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        map(call.outputs[0], call.inputs[0].f(), |x| if x < 0.0 { 0.0 } else { x });
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![node.dy[0].map(|dy| g.emit1(ReluGrad.into(), &[dy, node.y[0]]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("relu"), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n3h11w7c4", Relu, &[(ODD, Normal)]),
            Case::new("len1", Relu, &[(Shape::SCALAR, Normal)]),
            Case::new("signed zeros", Relu, &[(ODD, Fill::Alternate(0.0, -0.0))]),
            Case::new("over 65535 groups", Relu, &[(Shape::new(33, 256, 512, 4), Normal)]),
        ]
    }
}

/// `dx = 0 where y <= 0, else dy`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReluGrad;

impl OpDef for ReluGrad {
    const NAME: &'static str = "relu_grad";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0, 1], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        binary(Self::NAME, inputs)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, y) = (call.inputs[0].f(), call.inputs[1].f());
        for (i, dx) in call.outputs[0].iter_mut().enumerate() {
            *dx = if y[i].get() <= 0.0 { T::of(0.0) } else { dy[i] };
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        map2(call.outputs[0], call.inputs[0].f(), call.inputs[1].f(), |dy, y| {
            if y <= 0.0 { 0.0 } else { dy }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("relu_grad"), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n3h11w7c4", ReluGrad, &[(ODD, Normal), (ODD, Normal)]),
            Case::new("y is 0", ReluGrad, &[(ODD, Normal), (ODD, Fill::Alternate(0.0, 1e-30))]),
        ]
    }
}

/// `y = a*p + b*q`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedSum {
    /// Factor of the first input.
    pub a: f32,
    /// Factor of the second input.
    pub b: f32,
}

impl OpDef for WeightedSum {
    const NAME: &'static str = "weighted_sum";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0, 1], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        binary(Self::NAME, inputs)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (p, q) = (call.inputs[0].f(), call.inputs[1].f());
        let (a, b) = (f64::from(self.a), f64::from(self.b));
        for (i, y) in call.outputs[0].iter_mut().enumerate() {
            *y = T::of(a * p[i].get() + b * q[i].get());
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let (a, b) = (self.a, self.b);
        map2(call.outputs[0], call.inputs[0].f(), call.inputs[1].f(), |p, q| a * p + b * q);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let scaled = |g: &mut dyn Emit, a: f32, want: bool| {
            let dy = node.dy[0].filter(|_| want)?;
            Some(if a == 1.0 { dy } else { g.emit1(Scale { a }.into(), &[dy]) })
        };
        vec![scaled(g, self.a, node.wants[0]), scaled(g, self.b, node.wants[1])]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0, 1]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("weighted_sum").set("A", self.a).set("B", self.b), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![
            Case::new("n3h11w7c4", WeightedSum { a: 1.0, b: 1.0 }, &[(ODD, Normal), (ODD, Normal)]),
            Case::new(
                "scalar",
                WeightedSum { a: 0.5, b: -3.0 },
                &[(Shape::SCALAR, Normal), (Shape::SCALAR, Normal)],
            ),
        ]
    }
}

/// `y = a*x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// The factor `a`.
    pub a: f32,
}

impl OpDef for Scale {
    const NAME: &'static str = "scale";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        unary(Self::NAME, inputs)
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let x = call.inputs[0].f();
        for (y, x) in call.outputs[0].iter_mut().zip(x) {
            *y = T::of(f64::from(self.a) * x.get());
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let a = self.a;
        map(call.outputs[0], call.inputs[0].f(), |x| a * x);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![node.dy[0].map(|dy| g.emit1(Scale { a: self.a }.into(), &[dy]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("scale").set("A", self.a), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![Case::new("len5", Scale { a: -0.3 }, &[(Shape::vector(5), Normal)])]
    }
}

/// `y = sum(p*q)`: the inner product that closes a gradient check, and any weighted total.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot;

/// Partial sums of the first stage: fixed, so the summation order is.
const DOT_PARTS: usize = 256;

impl OpDef for Dot {
    const NAME: &'static str = "dot";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        binary(Self::NAME, inputs)?;
        Ok(vec![TensorType::f32(Shape::SCALAR)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (p, q) = (call.inputs[0].f(), call.inputs[1].f());
        call.outputs[0][0] = T::of(p.iter().zip(q).map(|(p, q)| p.get() * q.get()).sum());
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let mut by = |other: usize, want: bool| {
            Some(g.emit1(ScaleBy.into(), &[node.x[other], node.dy[0].filter(|_| want)?]))
        };
        vec![by(1, node.wants[0]), by(0, node.wants[1])]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0, 1]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let len = io.inputs[0].shape.len();
        let mut l = Lowering::default();
        let parts = l.scratch(DType::F32, DOT_PARTS);
        let kernel = Kernel::new("dot").set("LEN", len).set("PARTS", DOT_PARTS);
        l.push(kernel, target.grid_1d(DOT_PARTS), &[Binding::Input(0), Binding::Input(1), parts]);
        l.push(
            Kernel::new("sum_parts").set("PARTS", DOT_PARTS).set("SCALE", 1.0),
            [1, 1, 1],
            &[parts, Binding::Output(0)],
        );
        l
    }
    fn cases() -> Vec<Case> {
        let long = Shape::rows(100_003, 1);
        vec![
            Case::new("n3h11w7c4", Dot, &[(ODD, Normal), (ODD, Normal)]),
            Case::new("len1", Dot, &[(Shape::SCALAR, Normal), (Shape::SCALAR, Normal)]),
            Case::new("len100003", Dot, &[(long, Uniform(0.0, 1.0)), (long, Normal)]),
        ]
    }
}

/// `y = x * s` with a scalar tensor `s`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleBy;

impl OpDef for ScaleBy {
    const NAME: &'static str = "scale_by";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        same(Self::NAME, "the factor", TensorType::f32(Shape::SCALAR), inputs[1])?;
        Ok(vec![inputs[0]])
    }
    fn part(&self, _elements: Range<usize>) -> Option<Op> {
        Some(Self.into())
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, s) = (call.inputs[0].f(), call.inputs[1].f()[0].get());
        for (y, x) in call.outputs[0].iter_mut().zip(x) {
            *y = T::of(s * x.get());
        }
    }
    fn native(&self, call: &mut Call<'_, f32>) {
        let a = call.inputs[1].f()[0];
        map(call.outputs[0], call.inputs[0].f(), |x| a * x);
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("scale_by"), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![Case::new("n3h11w7c4", ScaleBy, &[(ODD, Normal), (Shape::SCALAR, Normal)])]
    }
}

/// `y = value`, a constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Shape of the output.
    pub shape: Shape,
    /// What every element is.
    pub value: f32,
}

impl OpDef for Constant {
    const NAME: &'static str = "constant";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 0)?;
        Ok(vec![TensorType::f32(self.shape)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        call.outputs[0].fill(T::of(f64::from(self.value)));
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("constant").set("VALUE", self.value), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![Case::new("n3h11w7c4", Constant { shape: ODD, value: 1.25 }, &[])]
    }
}

/// The same elements under another shape (a copy: buffers are whole, never views).
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// Shape of the output.
    pub shape: Shape,
}

impl OpDef for Reshape {
    const NAME: &'static str = "reshape";
    fn halves(&self) -> [Vec<usize>; 2] {
        [vec![0], vec![0]]
    }
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        if inputs[0].shape.len() != self.shape.len() {
            return Err(ShapeError::new(
                Self::NAME,
                format!(
                    "{} does not hold the elements of \
                {}",
                    self.shape, inputs[0].shape
                ),
            ));
        }
        Ok(vec![TensorType::f32(self.shape)])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let x = call.inputs[0].f();
        call.outputs[0].copy_from_slice(x);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let shape = g.ty(node.x[0]).shape;
        vec![node.dy[0].map(|dy| g.emit1(Reshape { shape }.into(), &[dy]))]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        elementwise(Kernel::new("scale").set("A", 1.0), io, target)
    }
    fn cases() -> Vec<Case> {
        vec![Case::new(
            "rows to image",
            Reshape { shape: Shape::new(3, 4, 4, 8) },
            &[(Shape::rows(3, 128), Normal)],
        )]
    }
}

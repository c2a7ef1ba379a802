//! Softmax cross-entropy of the linear probe. Columns beyond `classes` are padding. With
//! `p = softmax(x)` over a row: `loss = mean_n -ln p[n, label_n]`,
//! `dx[n, c] = dloss * (p[n, c] - [c = label_n]) / N`. The maximum of the row is subtracted first,
//! so no logit overflows. `correct` counts the rows whose first maximum is the label.

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Alternate, Below, Normal, Ties, Uniform};

fn rows(
    op: &'static str,
    x: TensorType,
    labels: TensorType,
    classes: usize,
) -> Result<(), ShapeError> {
    same(op, "labels", TensorType::u32(Shape::rows(x.shape.n, 1)), labels)?;
    if x.shape != Shape::rows(x.shape.n, x.shape.c) || classes == 0 || classes > x.shape.c {
        return Err(ShapeError::new(
            op,
            format!(
                "logits are {x}, expected [N, 1, 1, C] with 1 <= \
            {classes} classes <= C"
            ),
        ));
    }
    Ok(())
}

/// (mean loss, number of correct rows) of (logits, labels).
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxCrossEntropy {
    /// Columns that count.
    pub classes: usize,
}

/// Maximum of a row and `sum exp(x - max)`.
fn softmax_sum<T: Real>(row: &[T]) -> (f64, f64) {
    let max = row.iter().fold(row[0].get(), |m, x| m.max(x.get()));
    (max, row.iter().map(|x| (x.get() - max).exp()).sum())
}

impl OpDef for SoftmaxCrossEntropy {
    const NAME: &'static str = "softmax_cross_entropy";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 2)?;
        rows(Self::NAME, inputs[0], inputs[1], self.classes)?;
        Ok(vec![TensorType::f32(Shape::SCALAR); 2])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (x, labels, shape) = (call.inputs[0].f(), call.inputs[1].u(), call.in_shape(0));
        let (mut loss, mut correct) = (0.0, 0);
        for (row, &label) in x.chunks_exact(shape.c).zip(labels) {
            let row = &row[..self.classes];
            let (max, sum) = softmax_sum(row);
            loss += sum.ln() + (max - row[label as usize].get());
            let first = row.iter().position(|x| x.get() == max);
            correct += usize::from(first == Some(label as usize));
        }
        call.outputs[0][0] = T::of(loss / shape.n as f64);
        call.outputs[1][0] = T::of(correct as f64);
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        let dy = node.dy[0].filter(|_| node.wants[0]);
        vec![
            dy.map(|dy| {
                g.emit1(
                    SoftmaxCrossEntropyGrad { classes: self.classes }.into(),
                    &[dy, node.x[0], node.x[1]],
                )
            }),
            None,
        ]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[0].shape;
        let mut l = Lowering::default();
        let (losses, hits) = (l.scratch(DType::F32, shape.n), l.scratch(DType::F32, shape.n));
        let kernel = Kernel::new("softmax_cross_entropy")
            .set("N", shape.n)
            .set("C", shape.c)
            .set("CLASSES", self.classes);
        l.push(
            kernel,
            target.grid_1d(shape.n),
            &[Binding::Input(0), Binding::Input(1), losses, hits],
        );
        for (parts, scale, y) in [(losses, 1.0 / shape.n as f32, 0), (hits, 1.0, 1)] {
            l.push(
                Kernel::new("sum_parts").set("PARTS", shape.n).set("SCALE", scale),
                [1, 1, 1],
                &[parts, Binding::Output(y)],
            );
        }
        l
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, n: usize, c: usize, classes: usize, fill: Fill| {
            let inputs = [(Shape::rows(n, c), fill), (Shape::rows(n, 1), Below(classes as u32))];
            Case::new(name, SoftmaxCrossEntropy { classes }, &inputs)
        };
        vec![
            case("n1c4", 1, 4, 4, Normal),
            case("n7c12 of 10", 7, 12, 10, Normal),
            case("n3c4 of 1", 3, 4, 1, Normal).forward_only(),
            case("n1031c12 of 10", 1031, 12, 10, Normal),
            case("n5c1000", 5, 1000, 1000, Normal),
            case("ties", 101, 12, 10, Ties),
            case("logits within 30", 11, 12, 10, Uniform(-30.0, 30.0)),
            case("logits 88 and -88", 11, 12, 10, Alternate(-88.0, 88.0)),
            case("logits within 10000", 11, 12, 10, Uniform(-1e4, 1e4)).forward_only(),
            case("logits 10000", 11, 12, 10, Fill::Constant(1e4)),
        ]
    }
}

/// Gradient of the logits, of (dloss, logits, labels).
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxCrossEntropyGrad {
    /// Columns that count; the others get 0.
    pub classes: usize,
}

impl OpDef for SoftmaxCrossEntropyGrad {
    const NAME: &'static str = "softmax_cross_entropy_grad";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        same(Self::NAME, "the gradient of the loss", TensorType::f32(Shape::SCALAR), inputs[0])?;
        rows(Self::NAME, inputs[1], inputs[2], self.classes)?;
        Ok(vec![inputs[1]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (dy, x, labels, shape) =
            (call.inputs[0].f()[0].get(), call.inputs[1].f(), call.inputs[2].u(), call.in_shape(1));
        for n in 0..shape.n {
            let row = &x[n * shape.c..][..self.classes];
            let (max, sum) = softmax_sum(row);
            let dx = &mut call.outputs[0][n * shape.c..][..shape.c];
            dx.fill(T::of(0.0));
            for (c, (dx, x)) in dx.iter_mut().zip(row).enumerate() {
                let own = f64::from(u8::from(c == labels[n] as usize));
                *dx = T::of(dy * ((x.get() - max).exp() / sum - own) / shape.n as f64);
            }
        }
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let shape = io.inputs[1].shape;
        let kernel = Kernel::new("softmax_cross_entropy_grad")
            .set("N", shape.n)
            .set("C", shape.c)
            .set("CLASSES", self.classes);
        let [dy, x, labels] = [0, 1, 2].map(Binding::Input);
        Lowering::one(kernel, target.grid_1d(shape.n), &[dy, x, labels, Binding::Output(0)])
    }
    fn cases() -> Vec<Case> {
        let case = |name: &str, n: usize, c: usize, classes: usize, fill: Fill| {
            let inputs = [
                (Shape::SCALAR, Normal),
                (Shape::rows(n, c), fill),
                (Shape::rows(n, 1), Below(classes as u32)),
            ];
            Case::new(name, SoftmaxCrossEntropyGrad { classes }, &inputs)
        };
        vec![
            case("n1c4", 1, 4, 4, Normal),
            case("n7c12 of 10", 7, 12, 10, Normal),
            case("n3c4 of 1", 3, 4, 1, Normal),
            case("n5c1000", 5, 1000, 1000, Normal),
            case("logits within 30", 11, 12, 10, Uniform(-30.0, 30.0)),
            case("logits 88 and -88", 11, 12, 10, Alternate(-88.0, 88.0)),
            case("logits within 10000", 11, 12, 10, Uniform(-1e4, 1e4)),
        ]
    }
}

//! NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, equation
//! 1), on the similarities `s` of `M` views. View `i` belongs with `j(i) = (i + M/2) mod M`: the
//! first views of all images come before the second.
//!
//! ```text
//! p[i, k] = exp(s[i, k] / T) / sum_{l != i} exp(s[i, l] / T),  k != i
//! loss    = mean_i -ln p[i, j(i)]           ds[i, k] = dloss (p[i, k] - [k = j(i)]) / (M T),  0 on the diagonal
//! ```
//!
//! The maximum of the row, its diagonal left out, is subtracted first: no similarity and no
//! temperature overflows. `accuracy` is the share of the rows whose positive exceeds every other
//! similarity; a tie is a miss, so that a network that maps all images to one point scores 0. Rows
//! and columns from `M` on are padding: ignored, and 0 in the gradient.

use rayon::prelude::*;

use super::{
    Binding, Call, Case, Emit, Fill, Forward, Io, Kernel, Lowering, OpDef, Real, ShapeError,
    Target, ValueId, arity, same,
};
use crate::tensor::{DType, Shape, TensorType};
use Fill::{Alternate, Constant, Normal, Ties, Uniform};

/// (loss, accuracy, rows) of similarities `[S, 1, 1, S]`, `S >= views`; a row is
/// `(max, sum exp((s - max) / T))`, for the gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct NtXent {
    /// `M`, even: two views of each image.
    pub views: usize,
    /// The temperature `T`.
    pub temperature: f32,
}

impl NtXent {
    fn check(&self, op: &'static str, s: TensorType) -> Result<(), ShapeError> {
        same(op, "the similarities", TensorType::f32(Shape::rows(s.shape.n, s.shape.n)), s)?;
        if self.views == 0
            || !self.views.is_multiple_of(2)
            || self.views > s.shape.n
            || !s.shape.n.is_multiple_of(4)
        {
            let message = format!(
                "{} views of similarities {s}: an even number of at most S, a \
                multiple of 4",
                self.views
            );
            return Err(ShapeError::new(op, message));
        }
        Ok(())
    }
    fn positive(&self, i: usize) -> usize {
        (i + self.views / 2) % self.views
    }
    fn rows(&self) -> TensorType {
        TensorType::f32(Shape::rows(self.views, 2))
    }
    fn kernel(&self, file: &'static str, s: Shape) -> Kernel {
        Kernel::new(file).set("VIEWS", self.views).set("T", self.temperature).set("S4", s.c / 4)
    }
}

impl OpDef for NtXent {
    const NAME: &'static str = "nt_xent";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 1)?;
        self.check(Self::NAME, inputs[0])?;
        let scalar = TensorType::f32(Shape::SCALAR);
        Ok(vec![scalar, scalar, self.rows()])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let (s, width, t) = (call.inputs[0].f(), call.in_shape(0).c, f64::from(self.temperature));
        let [loss, accuracy, rows] = &mut call.outputs[..] else { unreachable!("three outputs") };
        let row = |(i, stored): (usize, &mut [T])| {
            let own = s[i * width + self.positive(i)].get();
            let others = || {
                (0..self.views)
                    .filter(|&k| k != i && k != self.positive(i))
                    .map(|k| s[i * width + k].get())
            };
            let max = others().fold(own, f64::max);
            let sum = others().chain([own]).map(|x| ((x - max) / t).exp()).sum::<f64>();
            stored.copy_from_slice(&[T::of(max), T::of(sum)]);
            (sum.ln() + (max - own) / t, f64::from(u8::from(others().all(|x| x < own))))
        };
        let found: Vec<_> = rows.par_chunks_mut(2).enumerate().map(row).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| {
            T::of(found.iter().map(of).sum::<f64>() / self.views as f64)
        };
        (loss[0], accuracy[0]) = (mean(|f| f.0), mean(|f| f.1));
    }
    fn gradient(&self, g: &mut dyn Emit, node: &Forward<'_>) -> Vec<Option<ValueId>> {
        vec![
            node.dy[0]
                .map(|dy| g.emit1(NtXentGrad(self.clone()).into(), &[dy, node.x[0], node.y[2]])),
        ]
    }
    fn differentiable(&self) -> &'static [usize] {
        &[0]
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let mut l = Lowering::default();
        let (losses, hits) = (l.scratch(DType::F32, self.views), l.scratch(DType::F32, self.views));
        let kernel = self.kernel("nt_xent", io.inputs[0].shape);
        l.push(
            kernel,
            target.groups_1d(self.views),
            &[Binding::Input(0), losses, hits, Binding::Output(2)],
        );
        for (parts, y) in [(losses, 0), (hits, 1)] {
            let kernel = Kernel::new("sum_parts")
                .set("PARTS", self.views)
                .set("SCALE", 1.0 / self.views as f32);
            l.push(kernel, [1, 1, 1], &[parts, Binding::Output(y)]);
        }
        l
    }
    fn cases() -> Vec<Case> {
        let case = |name, views: usize, temperature, fill| {
            let size = views.next_multiple_of(4);
            Case::new(name, NtXent { views, temperature }, &[(Shape::rows(size, size), fill)])
        };
        let cosine = Uniform(-1.0, 1.0);
        vec![
            // Its loss is 0 whatever the similarity is.
            case("one image", 2, 0.5, cosine).forward_only(),
            case("two images", 4, 0.5, cosine),
            case("three images", 6, 1.0, cosine),
            case("five images, T .07", 10, 0.07, cosine),
            case("67 images, T 1", 134, 1.0, cosine),
            case("identical rows, T .07", 6, 0.07, Constant(1.0)),
            case("identical rows, T 1", 64, 1.0, Constant(1.0)),
            case("ties", 62, 0.07, Ties),
            case("1 and -1, T .001", 10, 0.001, Alternate(1.0, -1.0)),
            case("similarities within 10000", 14, 0.07, Uniform(-1e4, 1e4)).forward_only(),
            case("batch 256", 512, 0.07, cosine),
        ]
    }
}

/// Gradient of the similarities, of (dloss, similarities, rows).
#[derive(Clone, Debug, PartialEq)]
pub struct NtXentGrad(pub NtXent);

impl OpDef for NtXentGrad {
    const NAME: &'static str = "nt_xent_grad";
    fn outputs(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        arity(Self::NAME, inputs, 3)?;
        same(Self::NAME, "the gradient of the loss", TensorType::f32(Shape::SCALAR), inputs[0])?;
        self.0.check(Self::NAME, inputs[1])?;
        same(Self::NAME, "the rows", self.0.rows(), inputs[2])?;
        Ok(vec![inputs[1]])
    }
    fn reference<T: Real>(&self, call: &mut Call<'_, T>) {
        let Self(op) = self;
        let (dy, s, rows, width) = (
            call.inputs[0].f()[0].get(),
            call.inputs[1].f(),
            call.inputs[2].f(),
            call.in_shape(1).c,
        );
        let t = f64::from(op.temperature);
        call.outputs[0].par_chunks_mut(width).enumerate().for_each(|(i, ds)| {
            ds.fill(T::of(0.0));
            if i >= op.views {
                return;
            }
            let (max, sum) = (rows[2 * i].get(), rows[2 * i + 1].get());
            for k in (0..op.views).filter(|&k| k != i) {
                let p = ((s[i * width + k].get() - max) / t).exp() / sum;
                let own = f64::from(u8::from(k == op.positive(i)));
                ds[k] = T::of(dy * (p - own) / (op.views as f64 * t));
            }
        });
    }
    fn lower(&self, io: &Io, target: &Target) -> Lowering {
        let s = io.inputs[1].shape;
        let [dy, x, rows] = [0, 1, 2].map(Binding::Input);
        Lowering::one(
            self.0.kernel("nt_xent_grad", s),
            target.grid_1d(s.len() / 4),
            &[dy, x, rows, Binding::Output(0)],
        )
    }
    fn cases() -> Vec<Case> {
        // A row's maximum 1 and its sum.
        let case = |name, views: usize, temperature, fill, sum| {
            let op = NtXentGrad(NtXent { views, temperature });
            let size = views.next_multiple_of(4);
            Case::new(
                name,
                op,
                &[
                    (Shape::SCALAR, Normal),
                    (Shape::rows(size, size), fill),
                    (Shape::rows(views, 2), Alternate(1.0, sum)),
                ],
            )
        };
        let cosine = Uniform(-1.0, 1.0);
        vec![
            case("one image", 2, 0.5, Constant(1.0), 1.0),
            case("three images", 6, 1.0, cosine, 3.0),
            case("five images, T .07", 10, 0.07, cosine, 1.5),
            case("identical rows", 6, 0.07, Constant(1.0), 5.0),
            case("1 and -1, T .001", 10, 0.001, Alternate(1.0, -1.0), 4.0),
            case("batch 256", 512, 0.07, cosine, 2.0),
        ]
    }
}

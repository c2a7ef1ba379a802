//! Trials of what only some convolutions do: moments of a result, a transposed convolution as a
//! layer.

use super::{Conv2d, Epilogue, forward_shape, grad};
use crate::ops::{Case, Fill};
use crate::tensor::Shape;

/// Trials of a result's moments. Operands of small integers have sums that are exact in f32, so
/// that f16 rounds them alike in every order; of those above 2,048 it has every second.
pub(super) fn moments() -> Vec<Case> {
    let s = Shape::new;
    let case = |name: &str, x: Shape, w: Shape, [stride, pad]: [usize; 2], bias: Option<Fill>| {
        let rows = Some(64);
        let epilogue = Epilogue { bias: bias.is_some(), moments: rows, ..Epilogue::default() };
        let mut inputs = vec![(x, Fill::Ties), (w, Fill::Ties)];
        inputs.extend(bias.map(|fill| (Shape::vector(w.n), fill)));
        Case::new(format!("moments {name}"), Conv2d { stride, pad, epilogue }, &inputs)
    };
    let far = Some(Fill::Constant(3000.0));
    let mut all = vec![
        case("n2h5w7c4 k3s1p1 o8", s(2, 5, 7, 4), s(8, 3, 3, 4), [1, 1], None),
        case("n3h11w11c8 k3s2p1 o12, bias", s(3, 11, 11, 8), s(12, 3, 3, 8), [2, 1], far),
        case("n1h1w1c4 k1s1p0 o4", s(1, 1, 1, 4), s(4, 1, 1, 4), [1, 0], None),
        case("n5h16w16c16 k3s1p1 o16, bias", s(5, 16, 16, 16), s(16, 3, 3, 16), [1, 1], far),
        case("n3h9w9c36 k1s1p0 o36", s(3, 9, 9, 36), s(36, 1, 1, 36), [1, 0], None),
        case("n4h8w8c8 k3s1p1 o132, bias", s(4, 8, 8, 8), s(132, 3, 3, 8), [1, 1], far),
        case("linear n67 c36 o72", s(67, 1, 1, 36), s(72, 1, 1, 36), [1, 0], None),
    ];
    let (x, w, y) = (s(2, 9, 9, 8), s(20, 3, 3, 8), s(2, 9, 9, 20));
    let all_of = Epilogue { bias: true, add: true, relu: true, mask: true, moments: Some(64) };
    let inputs = [x, w, Shape::vector(20), y, y].map(|shape| (shape, Fill::Ties));
    let op = Conv2d { stride: 1, pad: 1, epilogue: all_of };
    all.push(Case::new("moments after bias+add+relu+mask", op, &inputs));
    all
}

/// Trials of a transposed convolution with a bias. A kernel of one pixel leaves pixels to the bias
/// alone.
pub(super) fn transposed() -> Vec<Case> {
    let s = Shape::new;
    let case = |name: &str, x: Shape, w: Shape, pad: usize, epilogue: Epilogue| {
        let add = epilogue.add.then_some(x);
        let inputs = [forward_shape(x, w, 2, pad), w, Shape::vector(x.c)].into_iter().chain(add);
        let inputs: Vec<_> = inputs.map(|shape| (shape, Fill::Normal)).collect();
        Case::new(name, grad(x, 2, pad, epilogue), &inputs)
    };
    let bias = Epilogue { bias: true, ..Epilogue::default() };
    let all = Epilogue { add: true, relu: true, ..bias };
    vec![
        case("bias k4s2p1", s(2, 6, 10, 12), s(8, 4, 4, 12), 1, bias),
        case("bias k1s2p0", s(2, 6, 10, 12), s(8, 1, 1, 12), 0, bias),
        case("bias+add+relu k4s2p1", s(3, 16, 14, 36), s(20, 4, 4, 36), 1, all),
    ]
}

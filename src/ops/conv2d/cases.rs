//! Trials of what only some convolutions do: moments of a result, what a batch norm's gradient
//! sums, a transposed convolution as a layer.

use super::{Conv2d, Epilogue, forward_shape, grad};
use crate::ops::{Case, Fill, Op};
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
    let tail = Epilogue { bias: true, add: true, relu: true, mask: true, ..Epilogue::default() };
    let all_of = Epilogue { moments: Some(64), ..tail };
    let inputs = [x, w, Shape::vector(20), y, y].map(|shape| (shape, Fill::Ties));
    let op = Conv2d { stride: 1, pad: 1, epilogue: all_of };
    all.push(Case::new("moments after bias+add+relu+mask", op, &inputs));
    all
}

/// A product of gradients, of integers as in [`moments`], and what a batch norm in front of it has
/// read.
fn with_sums(name: &str, op: Op, operands: [Shape; 2], y: Shape, tail: Epilogue) -> Case {
    let mut inputs: Vec<_> = operands.map(|shape| (shape, Fill::Ties)).into();
    inputs.extend(tail.add.then_some((y, Fill::Constant(3000.0))));
    inputs.extend(tail.mask.then_some((y, Fill::Ties)));
    inputs.extend([(y, Fill::Ties), (Shape::vector(y.c), Fill::Alternate(3.0, -2.0))]);
    Case::new(format!("sums {name}"), op, &inputs)
}

/// The epilogues of gradients: what is added and masked, and the sums.
fn tails() -> [Epilogue; 4] {
    [(false, false), (true, false), (false, true), (true, true)].map(|(add, mask)| Epilogue {
        add,
        mask,
        gradient_sums: Some(64),
        ..Epilogue::default()
    })
}

/// Trials of the gradient sums of a forward product, as the gradient of a transposed convolution
/// is.
pub(super) fn gradient_sums() -> Vec<Case> {
    let s = Shape::new;
    let case = |name: &str, x: Shape, w: Shape, [stride, pad]: [usize; 2], tail: usize| {
        let epilogue = tails()[tail];
        let y = forward_shape(x, w, stride, pad);
        with_sums(name, Conv2d { stride, pad, epilogue }.into(), [x, w], y, epilogue)
    };
    vec![
        case("n2h5w7c4 k3s1p1 o8", s(2, 5, 7, 4), s(8, 3, 3, 4), [1, 1], 0),
        case("n3h16w12c8 k4s2p1 o132, mask", s(3, 16, 12, 8), s(132, 4, 4, 8), [2, 1], 2),
        case("linear n67 c36 o72, add", s(67, 1, 1, 36), s(72, 1, 1, 36), [1, 0], 1),
    ]
}

/// Trials of those of an input gradient: all epilogues, parities of which some have no pixel, and
/// parts that are not full.
pub(super) fn gradient_sums_of_inputs() -> Vec<Case> {
    let s = Shape::new;
    let case = |name: &str, x: Shape, w: Shape, [stride, pad]: [usize; 2], tail: usize| {
        let epilogue = tails()[tail];
        let operands = [forward_shape(x, w, stride, pad), w];
        with_sums(name, grad(x, stride, pad, epilogue).into(), operands, x, epilogue)
    };
    vec![
        case("n2h5w7c8 k3s1p1", s(2, 5, 7, 8), s(4, 3, 3, 8), [1, 1], 0),
        case("n3h11w11c12 k3s2p1, add+mask", s(3, 11, 11, 12), s(8, 3, 3, 12), [2, 1], 3),
        case("n1h1w1c4 k3s2p1, mask", s(1, 1, 1, 4), s(4, 3, 3, 4), [2, 1], 2),
        case("n5h16w16c16 k3s1p1, mask", s(5, 16, 16, 16), s(16, 3, 3, 16), [1, 1], 2),
        case("n2h7w9c36 k1s1p0, add", s(2, 7, 9, 36), s(20, 1, 1, 36), [1, 0], 1),
        case("n4h8w8c132 k3s1p1, add+mask", s(4, 8, 8, 132), s(8, 3, 3, 132), [1, 1], 3),
        case("n2h6w5c20 k1s2p0", s(2, 6, 5, 20), s(12, 1, 1, 20), [2, 0], 0),
    ]
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

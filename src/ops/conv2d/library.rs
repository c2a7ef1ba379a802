//! Products that a library of the device's vendor computes ([`Variant::Library`]).
//!
//! The first dispatch is the portable kernel, in whose place a device calls its library: what the
//! library must give is what that kernel's text gives. What the library does not do along, the
//! moments of a result, what a batch norm's gradient sums and the gradient of a bias, follows in
//! kernels of its own.

use super::Epilogue;
use super::geometry::Geometry;
use super::lower::{self, How};
use crate::ops::batch_norm::{part_moments, part_sums};
use crate::ops::sum_rows::sum_to;
use crate::ops::{Binding, Io, Library, Lowering, Target, Variant};

/// How many of the library's proposals are tried. It orders them by its own estimate: of four, of
/// 41 products in f16 on an H100, one of the first two was the fastest right one but for one
/// product, whose third was a tenth faster.
const PROPOSALS: u32 = 2;

/// Variants with the proposals of libraries behind, where the device has them and both operands are
/// of one type: a library does not round. One of matrices computes what is a product of two.
fn with_proposals(
    mut all: Vec<Variant>,
    io: &Io,
    target: &Target,
    of_matrices: bool,
) -> Vec<Variant> {
    let [a, b] = [0, 1].map(|i| io.inputs[i].dtype);
    if target.library && a == b {
        let matrices = of_matrices.then_some(Library::Matrices);
        for of in [Library::Convolutions].into_iter().chain(matrices) {
            all.extend((0..PROPOSALS).map(|rank| Variant::Library { of, rank }));
        }
    }
    all
}

/// The variants of a forward-type product; the portable one first.
pub(super) fn nt_variants(
    io: &Io,
    target: &Target,
    stride_pad: [usize; 2],
    epilogue: &Epilogue,
) -> Vec<Variant> {
    let of_matrices = epilogue.is_of_matrices(io.inputs[1].shape, stride_pad, io.outputs[0].dtype);
    with_proposals(lower::nt_variants(io, target), io, target, of_matrices)
}

/// The variants of a weight gradient; the portable one first.
pub(super) fn tn_variants(io: &Io, target: &Target, stride_pad: [usize; 2]) -> Vec<Variant> {
    let weights = io.outputs[0];
    let of_matrices = Epilogue::default().is_of_matrices(weights.shape, stride_pad, weights.dtype);
    with_proposals(lower::tn_variants(io, target), io, target, of_matrices)
}

/// Whether the library takes a product; if not, a kernel does all of it.
fn takes(how: &How<'_>) -> bool {
    matches!(how.variant, Variant::Library { .. })
}

fn portable<'a>(how: &How<'a>, variant: Variant) -> How<'a> {
    How { variant, ..*how }
}

pub(super) fn forward(g: &Geometry, epilogue: &Epilogue, how: &How<'_>) -> Lowering {
    if !takes(how) {
        return lower::forward(g, epilogue, how);
    }
    let product = epilogue.without_parts();
    let mut l = lower::forward(g, &product, &portable(how, lower::portable_nt(g.oc)));
    parts(&mut l, epilogue, [g.n * g.oh * g.ow, g.oc], how.target);
    l
}

/// Finds what is wanted of rows of so many columns in a pass over the result.
fn parts(l: &mut Lowering, epilogue: &Epilogue, extents: [usize; 2], target: &Target) {
    let [result, parts] = [0, 1].map(Binding::Output);
    if let Some(rows) = epilogue.moments {
        part_moments(l, target, extents, rows, [result, parts]);
    }
    if let (Some(rows), Some(inputs)) = (epilogue.gradient_sums, epilogue.sums_positions()) {
        let [x, mean] = inputs.map(Binding::Input);
        part_sums(l, target, extents, rows, [result, x, mean, parts]);
    }
}

pub(super) fn input_gradient(g: &Geometry, epilogue: &Epilogue, how: &How<'_>) -> Lowering {
    if !takes(how) {
        return lower::input_gradient(g, epilogue, how);
    }
    let product = epilogue.without_parts();
    let mut l = lower::input_gradient(g, &product, &portable(how, lower::portable_nt(g.c)));
    parts(&mut l, epilogue, [g.n * g.ih * g.iw, g.c], how.target);
    l
}

pub(super) fn weight_gradient(g: &Geometry, bias: bool, how: &How<'_>) -> Lowering {
    if !takes(how) {
        return lower::weight_gradient(g, bias, how);
    }
    let mut l = lower::weight_gradient(g, false, &portable(how, lower::portable_tn(g.oc)));
    if bias {
        let (pixels, dy) = (g.n * g.oh * g.ow, Binding::Input(1));
        sum_to(&mut l, how.target, dy, [pixels, g.oc], Binding::Output(1));
    }
    l
}

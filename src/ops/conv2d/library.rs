//! Products that a library of the device's vendor computes ([`Variant::Library`]).
//!
//! The first dispatch is the portable kernel, in whose place a device calls its library: what the
//! library must give is what that kernel's text gives. What the library does not do along, the
//! moments of a result and the gradient of a bias, follows in kernels of its own.

use super::Epilogue;
use super::geometry::Geometry;
use super::lower::{self, How};
use crate::ops::batch_norm::part_moments;
use crate::ops::sum_rows::sum_to;
use crate::ops::{Binding, Io, Lowering, Target, Variant};

/// How many of the library's proposals are tried. It orders them by its own estimate: of four, of
/// 41 products in f16 on an H100, one of the first two was the fastest right one but for one
/// product, whose third was a tenth faster.
const PROPOSALS: u32 = 2;

/// Variants with the proposals of a library behind, where the device has one and both operands are
/// of one type: a library does not round.
fn with_proposals(mut all: Vec<Variant>, io: &Io, target: &Target) -> Vec<Variant> {
    if target.library && io.inputs[0].dtype == io.inputs[1].dtype {
        all.extend((0..PROPOSALS).map(|rank| Variant::Library { rank }));
    }
    all
}

/// The variants of a forward-type product; the portable one first.
pub(super) fn nt_variants(io: &Io, target: &Target) -> Vec<Variant> {
    with_proposals(lower::nt_variants(io, target), io, target)
}

/// The variants of a weight gradient; the portable one first.
pub(super) fn tn_variants(io: &Io, target: &Target) -> Vec<Variant> {
    with_proposals(lower::tn_variants(io, target), io, target)
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
    let product = Epilogue { moments: None, ..*epilogue };
    let mut l = lower::forward(g, &product, &portable(how, lower::portable_nt(g.oc)));
    if let Some(rows) = epilogue.moments {
        let (pixels, bindings) = (g.n * g.oh * g.ow, [0, 1].map(Binding::Output));
        part_moments(&mut l, how.target, [pixels, g.oc], rows, bindings);
    }
    l
}

pub(super) fn input_gradient(g: &Geometry, epilogue: &Epilogue, how: &How<'_>) -> Lowering {
    if !takes(how) {
        return lower::input_gradient(g, epilogue, how);
    }
    lower::input_gradient(g, epilogue, &portable(how, lower::portable_nt(g.c)))
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

//! Convolutions on WGSL: one GEMM family, tiles of several sizes, broadcasts, cooperative matrices.
//!
//! * `conv_nt_{tile,bcast,coop,async}`: `y[m, n] = sum_k a[m, k] * w[n, k]`, the forward pass and,
//!   with the weights read across (`bcast`: transposed by a kernel before), the input gradient.
//! * `conv_tn_{tile,bcast,coop,async}`: `dw = sum over pixels of dy^T x`, split over pixels into
//!   `SPLIT` partial sums that `conv_tn_reduce` adds in order.
//!
//! A 1x1 convolution of stride 1 (and a linear layer) is one matrix: one image of one row of
//! pixels. Tile sizes are chosen here, from shapes alone; `shaders/README.md` has the measurements
//! behind the choices.

use super::coop;
use super::epilogue::Epilogue;
use super::geometry::Geometry;
use crate::ops::{Binding, Io, Kernel, Lowering, Target, Tile, Variant};
use crate::tensor::DType;

/// Workgroups a weight gradient is split into at least on a CPU adapter (tens of cores find work).
const GROUPS: usize = 32;

/// Invocations that share the sum of many parts on a GPU, where a few invocations with long sums
/// would wait for memory.
const REDUCE_LANES: usize = 8;

fn dimension(x: usize) -> u32 {
    u32::try_from(x).unwrap_or_else(|_| panic!("a grid of {x} workgroups"))
}

/// Operand and result of a forward-type product.
struct Nt {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    oh: usize,
    ow: usize,
    oc: usize,
    /// Parity classes per axis.
    classes: usize,
    /// An output pixel reads where the forward convolution would write.
    transposed: bool,
    /// The weights are the forward convolution's.
    across: bool,
}

/// Epilogue bindings 3 to 8; those behind the last present one are left out.
fn tail(epilogue: &Epilogue) -> Vec<Binding> {
    let mut bindings: Vec<_> =
        epilogue.positions().iter().map(|p| p.map_or(Binding::Skip, Binding::Input)).collect();
    bindings.push(epilogue.rows().map_or(Binding::Skip, |_| Binding::Output(1)));
    bindings.extend(epilogue.sums_positions().into_iter().flatten().map(Binding::Input));
    while bindings.last() == Some(&Binding::Skip) {
        bindings.pop();
    }
    bindings
}

/// For the few results of a linear layer: of 256 x 512 of them 64 x 64 tiles are 32 workgroups, a
/// quarter of an H100, each of which waits for memory 32 times.
const FEW: [u32; 5] = [32, 32, 32, 2, 2];
/// Sizes of a forward-type product's tiles: rows and columns per workgroup, depth, rows and columns
/// per invocation. The first that has at least as many columns as the product, or the widest, is
/// the portable one.
const NT_TILES: [[u32; 5]; 11] = [
    [128, 4, 16, 2, 2],
    [128, 16, 16, 4, 4],
    [128, 32, 16, 8, 4],
    [64, 64, 16, 8, 4],
    [64, 64, 16, 4, 4],
    [64, 64, 8, 8, 8],
    [128, 64, 16, 8, 4],
    [128, 64, 8, 8, 8],
    [128, 128, 8, 8, 8],
    [64, 32, 16, 4, 4],
    FEW,
];
/// The same of a weight gradient, rows and columns exchanged: its rows are output channels.
const TN_TILES: [[u32; 5]; 8] = [
    // Deeper, each of its few invocations would fetch 16 vectors of x a tile, which take drivers
    // long to compile.
    [4, 128, 4, 4, 4],
    [16, 128, 16, 4, 4],
    [32, 128, 16, 8, 4],
    [64, 64, 16, 8, 4],
    [64, 64, 16, 4, 4],
    [64, 64, 8, 8, 8],
    [64, 128, 8, 8, 8],
    [128, 128, 8, 8, 8],
];
/// The tiles that have a compact variant, by the columns (rows of a weight gradient) that they are
/// for: each is one pipeline for every epilogue.
const NT_COMPACT: [[u32; 5]; 2] = [[128, 16, 8, 4, 4], [64, 64, 8, 8, 4]];
const TN_COMPACT: [[u32; 5]; 2] = [[16, 128, 8, 4, 4], [64, 64, 8, 8, 4]];
/// Workgroups that weight gradients are split for: enough for a large GPU first, then for smaller
/// and larger ones.
const TN_GROUPS: [u32; 3] = [512, 128, 2048];

/// The portable tile of so many columns, of those that every device can run.
fn portable(sizes: &[[u32; 5]], columns: usize, narrow: usize) -> &[u32; 5] {
    sizes[..4].iter().find(|t| t[narrow] as usize >= columns).unwrap_or(&sizes[3])
}

/// The portable variant of a forward-type product with so many columns.
pub(super) fn portable_nt(columns: usize) -> Variant {
    let [m, n, k, rows, cols] = *portable(&NT_TILES, columns, 1);
    Variant::Tile(Tile { m, n, k, rows, cols, groups: 0, compact: false })
}

/// The portable variant of a weight gradient with so many rows, its sum over pixels in one.
pub(super) fn portable_tn(rows: usize) -> Variant {
    let [m, n, k, rows, cols] = *portable(&TN_TILES, rows, 0);
    Variant::Tile(Tile { m, n, k, rows, cols, groups: 1, compact: false })
}

/// The portable tile of `columns`, the compact one, then every other of about that width that the
/// device can run.
fn tiles(
    sizes: &[[u32; 5]],
    compact: &[[u32; 5]; 2],
    columns: usize,
    narrow: usize,
    groups: &[u32],
    target: &Target,
) -> Vec<Variant> {
    let width = |t: &[u32; 5]| t[narrow] as usize;
    let portable = portable(sizes, columns, narrow);
    // A tile that is half empty, or half of what it could be, is not worth a measurement.
    let near =
        |t: &&[u32; 5]| *t != portable && width(t) < 2 * columns && width(t) * 2 >= columns.min(64);
    let sizes: Vec<&[u32; 5]> =
        std::iter::once(portable).chain(sizes.iter().filter(near)).collect();
    let mut all = Vec::new();
    for &groups in groups {
        for &&[m, n, k, rows, cols] in &sizes {
            all.push(Variant::Tile(Tile { m, n, k, rows, cols, groups, compact: false }));
        }
    }
    let [m, n, k, rows, cols] = compact[usize::from(columns > width(&compact[0]))];
    let groups = groups[0];
    all.insert(1, Variant::Tile(Tile { m, n, k, rows, cols, groups, compact: true }));
    all.retain(|v| target.can(&v.requirements()));
    all
}

/// The broadcasting kernels, where subgroups have one size.
fn broadcast(target: &Target) -> Option<Variant> {
    target.subgroup.map(|subgroup| Variant::Broadcast { subgroup })
}

/// The variants of a forward-type product; the portable one first.
pub(super) fn nt_variants(io: &Io, target: &Target) -> Vec<Variant> {
    let mut all = tiles(&NT_TILES, &NT_COMPACT, io.outputs[0].shape.c, 1, &[0], target);
    all.extend(broadcast(target));
    with_coop(all, coop::nt_variants(io, io.inputs[1].shape.h, target), target)
}

/// The variants of a weight gradient; the portable one first.
pub(super) fn tn_variants(io: &Io, target: &Target) -> Vec<Variant> {
    let mut all = tiles(&TN_TILES, &TN_COMPACT, io.inputs[1].shape.c, 0, &TN_GROUPS, target);
    all.extend(broadcast(target));
    with_coop(all, coop::tn_variants(io, target), target)
}

/// Variants with those by cooperative matrices behind. On a GPU that has these, the others are four
/// times as slow (an H100), and only the portable and the compact one are offered.
fn with_coop(mut all: Vec<Variant>, coop: Vec<Variant>, target: &Target) -> Vec<Variant> {
    if !coop.is_empty() && !target.software {
        let portable = all[0];
        all.retain(|v| *v == portable || v.is_compact());
    }
    all.extend(coop);
    all
}

/// Those of the variants that find what is wanted of so many rows of the result at a time: in one
/// workgroup, whose invocations, or subgroups, share them evenly.
pub(super) fn with_parts(
    mut all: Vec<Variant>,
    epilogue: &Epilogue,
    target: &Target,
) -> Vec<Variant> {
    let Some(rows) = epilogue.rows() else { return all };
    let divides = |part: u32, whole: u32| part <= whole && whole.is_multiple_of(part);
    let rows = dimension(rows);
    all.retain(|variant| match variant {
        Variant::Tile(t) => {
            let apart = t.m / t.rows;
            // Two sums of each invocation's rows, and what they are shifted by (`conv_nt_tile`).
            let memory = variant.requirements().workgroup_memory + (2 * apart + 1) * t.n * 4;
            divides(rows, t.m) && divides(apart, rows) && memory <= target.workgroup_memory
        }
        Variant::Coop(t) => divides(rows, t.m) && divides(t.rows, rows),
        Variant::Library { .. } => true, // by another kernel
        Variant::Broadcast { .. } | Variant::Only => false,
    });
    all
}

/// What is taken where nothing has been measured: what compiles least if that is what counts,
/// broadcasts on a processor, on a GPU cooperative matrices or else tiles: the portable ones, for a
/// linear layer smaller ones where these are too few.
pub(super) fn preferred(variants: &[Variant], io: &Io, target: &Target) -> Variant {
    if let Some(compact) = variants.iter().find(|v| v.is_compact()).filter(|_| target.compact) {
        return *compact;
    }
    let fastest = if target.software {
        broadcast(target).filter(|v| variants.contains(v))
    } else {
        let y = io.outputs[0].shape;
        let few = |t: &Tile| y.h * y.w == 1 && [t.m, t.n, t.k, t.rows, t.cols] == FEW;
        let tile = |v: &Variant| match v {
            Variant::Tile(t) if *v == variants[0] || few(t) => Some((*v, [t.m, t.n], t.groups)),
            _ => None,
        };
        coop::preferred(variants, y).or_else(|| coop::enough(variants.iter().filter_map(tile), y))
    };
    fastest.unwrap_or(variants[0])
}

/// How a product is lowered.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) target: &'a Target,
    pub(super) variant: Variant,
    /// Whether the result is stored as a 16-bit float.
    pub(super) half: bool,
}

fn nt(
    l: &mut Lowering,
    g: &Geometry,
    nt: &Nt,
    weights: Binding,
    epilogue: &Epilogue,
    how: &How<'_>,
) {
    let constants = |file: &'static str| {
        Kernel::new(file)
            .set("N", nt.n)
            .set("IH", nt.h)
            .set("IW", nt.w)
            .set("IC", nt.c)
            .set("OH", nt.oh)
            .set("OW", nt.ow)
            .set("OC", nt.oc)
            .set("KH", g.k)
            .set("KW", g.k)
            .set("STRIDE", g.stride)
            .set("PAD", g.pad)
            .set("TRANSPOSED", nt.transposed)
            .set("ACROSS", nt.across)
            .set("BIAS", epilogue.bias)
            .set("ADD", epilogue.add)
            .set("RELU", epilogue.relu)
            .set("MASK", epilogue.mask)
            .shaped(!how.variant.is_compact())
    };
    let constants = |file: &'static str| match epilogue.rows() {
        Some(rows) => constants(file)
            .set("MOMENTS", epilogue.moments.is_some())
            .set("SUMS", epilogue.gradient_sums.is_some())
            .set("SPAN", rows)
            .set("HALF", how.half),
        None => constants(file),
    };
    let pixels = nt.n * nt.oh.div_ceil(nt.classes) * nt.ow.div_ceil(nt.classes);
    let parities = nt.classes * nt.classes;
    let (kernel, columns, tiles, layers) = match how.variant {
        Variant::Only | Variant::Library { .. } => unreachable!("products have several variants"),
        Variant::Broadcast { subgroup } => {
            let sg = subgroup as usize;
            let (cols, rows, strip) = broadcast_tile(nt, g.k, sg);
            let kernel = constants("conv_nt_bcast")
                .set("SG", subgroup)
                .set("COLS", cols)
                .set("TR", rows)
                .set("QW", strip);
            let tiles = nt.ow.div_ceil(strip * nt.classes)
                * (nt.n * nt.oh.div_ceil(nt.classes)).div_ceil(rows);
            (kernel, nt.oc.div_ceil(sg * cols), tiles, nt.classes)
        }
        Variant::Tile(t) => {
            let tiles = pixels.div_ceil(t.m as usize);
            (tile(constants("conv_nt_tile"), &t), nt.oc.div_ceil(t.n as usize), tiles, parities)
        }
        Variant::Coop(t) => {
            let file = if t.copies() { "conv_nt_async" } else { "conv_nt_coop" };
            let kernel = coop::tile(constants(file), &t).set("PIECE4", 1 + u32::from(t.copies()));
            (kernel, nt.oc.div_ceil(t.n as usize), pixels.div_ceil(t.m as usize), parities)
        }
    };
    // Tiles fold along y and z; the kernels find the length of y in the grid itself.
    let [y, z, _] = how.target.groups_1d(tiles);
    let grid = [dimension(columns), y, z * dimension(layers)];
    let mut bindings = vec![Binding::Input(0), weights, Binding::Output(0)];
    bindings.extend(tail(epilogue));
    l.push(kernel, grid, &bindings);
}

fn tile(kernel: Kernel, t: &Tile) -> Kernel {
    kernel.set("BM", t.m).set("BN", t.n).set("BK", t.k).set("RM", t.rows).set("RN", t.cols)
}

/// Columns per lane, rows and strip width (in pixels of one parity) of a subgroup's tile. 64
/// accumulators a lane for a 3x3 kernel (more spill), 128 where one tap leaves registers free.
fn broadcast_tile(nt: &Nt, kernel: usize, subgroup: usize) -> (usize, usize, usize) {
    let accumulators = (192 * nt.classes / kernel).clamp(8, 128);
    let columns = if accumulators >= 128 { 4 } else { 2 }.min(nt.oc.div_ceil(subgroup));
    let pixels = (accumulators / columns / nt.classes).max(1);
    let width = nt.ow.div_ceil(nt.classes);
    let strip = width.div_ceil(width.div_ceil(pixels));
    (columns, (pixels / strip).clamp(1, nt.n * nt.oh.div_ceil(nt.classes)), strip)
}

pub(super) fn forward(g: &Geometry, epilogue: &Epilogue, how: &How<'_>) -> Lowering {
    let g = g.as_matrix();
    let mut l = Lowering::default();
    let shape = Nt {
        n: g.n,
        h: g.ih,
        w: g.iw,
        c: g.c,
        oh: g.oh,
        ow: g.ow,
        oc: g.oc,
        classes: 1,
        transposed: false,
        across: false,
    };
    nt(&mut l, &g, &shape, Binding::Input(1), epilogue, how);
    l
}

pub(super) fn input_gradient(g: &Geometry, epilogue: &Epilogue, how: &How<'_>) -> Lowering {
    // A matrix may be read either way; what is compact has one.
    let transposed = !g.is_matrix() || how.variant.is_compact();
    let g = g.as_matrix();
    let mut l = Lowering::default();
    let classes = if transposed { g.stride } else { 1 };
    // Lanes that own channels read four of the sum as one vector of transposed weights; read across
    // these are four loads, which cost a processor more than a pass over the weights.
    let across = !matches!(how.variant, Variant::Broadcast { .. });
    let weights = if across { Binding::Input(1) } else { transposed_weights(&mut l, &g, how) };
    let shape = Nt {
        n: g.n,
        h: g.oh,
        w: g.ow,
        c: g.oc,
        oh: g.ih,
        ow: g.iw,
        oc: g.c,
        classes,
        transposed,
        across,
    };
    nt(&mut l, &g, &shape, weights, epilogue, how);
    l
}

/// Transposes the weights to a buffer of their own.
fn transposed_weights(l: &mut Lowering, g: &Geometry, how: &How<'_>) -> Binding {
    let weights = l.scratch(DType::F32, g.weights());
    let kernel = Kernel::new("weight_transpose").set("OC", g.oc).set("IC", g.c);
    let grid = how.target.grid_1d(g.weights() / 4);
    l.push(kernel.set("TAPS", g.k * g.k), grid, &[Binding::Input(1), weights]);
    weights
}

/// Grid and split of a weight gradient in tiles of rows, columns and pixels: enough workgroups for
/// the device, each with at least four tiles of pixels.
fn tn_grid(g: &Geometry, [m, n, k]: [u32; 3], groups: u32, target: &Target) -> ([usize; 3], usize) {
    let columns = (g.k * g.k * g.c).div_ceil(n as usize);
    let rows = g.oc.div_ceil(m as usize);
    let pixels = g.n * g.oh * g.ow;
    let split = (groups as usize).div_ceil(rows * columns).min(pixels.div_ceil(k as usize * 4));
    let split = split.clamp(1, (target.max_groups as usize).min(256));
    ([columns, rows, split], split)
}

pub(super) fn weight_gradient(g: &Geometry, bias: bool, how: &How<'_>) -> Lowering {
    let (g, target) = (g.as_matrix(), how.target);
    let constants = |file: &'static str| {
        Kernel::new(file)
            .set("N", g.n)
            .set("IH", g.ih)
            .set("IW", g.iw)
            .set("IC", g.c)
            .set("OH", g.oh)
            .set("OW", g.ow)
            .set("OC", g.oc)
            .set("KH", g.k)
            .set("KW", g.k)
            .set("STRIDE", g.stride)
            .set("PAD", g.pad)
            .set("BIAS", bias)
            .shaped(!how.variant.is_compact())
    };
    let most_groups = target.max_groups as usize;
    let (kernel, grid, split) = match how.variant {
        Variant::Only | Variant::Library { .. } => unreachable!("products have several variants"),
        Variant::Broadcast { subgroup } => {
            let sg = subgroup as usize;
            let lanes = (g.c / 4).next_power_of_two().min(sg);
            let pixels = sg / lanes;
            // Rows of output channels: as many as registers hold for this kernel width without
            // padding more than a quarter. 16 compile in a third of the time of 32 and run as fast,
            // except under stride 2.
            let most = if g.stride > 1 { 32 } else { 16 };
            let pixel_groups = if g.c >= 32 { 2 } else { 4 };
            let fits =
                |r: &usize| *r <= most && r * g.k <= 96 && g.oc.div_ceil(*r) * r * 4 <= g.oc * 5;
            let rows = [32, 16, 8].into_iter().find(fits).unwrap_or(4);
            let width = g.ow.div_ceil(pixels);
            let strip = width.div_ceil(width.div_ceil((192 / (rows * g.k)).clamp(1, pixel_groups)));
            let strips = g.n * g.oh * g.ow.div_ceil(strip * pixels);
            let columns = g.oc.div_ceil(rows) * (g.c / 4).div_ceil(lanes);
            let split =
                GROUPS.div_ceil(columns * g.k).min(strips.div_ceil(4)).clamp(1, most_groups);
            let kernel = constants("conv_tn_bcast")
                .set("SG", subgroup)
                .set("LP", lanes)
                .set("ROWS", rows)
                .set("NI", strip);
            (kernel, [columns, g.k, split], split)
        }
        Variant::Tile(t) => {
            let (grid, split) = tn_grid(&g, [t.m, t.n, t.k], t.groups, target);
            (tile(constants("conv_tn_tile"), &t), grid, split)
        }
        Variant::Coop(t) => {
            let (grid, split) = tn_grid(&g, [t.m, t.n, t.k], t.groups, target);
            let file = if t.copies() { "conv_tn_async" } else { "conv_tn_coop" };
            (coop::tile(constants(file), &t), grid, split)
        }
    };
    let (len, sums) = (g.weights(), if bias { g.oc } else { 0 });
    let mut l = Lowering::default();
    let lengths = [Some(len), bias.then_some(sums)].into_iter().flatten();
    // The parts of dw and of db, and where they go in the end.
    let parts: Vec<[Binding; 2]> = (lengths.enumerate())
        .map(|(i, len)| match split {
            1 => [Binding::Output(i); 2],
            _ => [l.scratch(DType::F32, split * len), Binding::Output(i)],
        })
        .collect();
    let mut bindings = vec![Binding::Input(0), Binding::Input(1)];
    bindings.extend(parts.iter().map(|p| p[0]));
    l.push(kernel.set("SPLIT", split), grid.map(dimension), &bindings);
    if split > 1 {
        let kernel = Kernel::new("conv_tn_reduce").set("LEN4", len / 4).set("OC4", sums / 4);
        let kernel = kernel.set("SPLIT", split).set("BIAS", bias);
        let lanes = if target.software || split < REDUCE_LANES { 1 } else { REDUCE_LANES };
        let kernel = kernel.set("LANES", lanes).set("SHARED", lanes > 1);
        let kernel = kernel.set("AHEAD", target.rows_ahead());
        l.push(kernel, target.grid_1d((len + sums) / 4 * lanes), &parts.concat());
    }
    l
}

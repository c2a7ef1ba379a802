//! Tiles of cooperative matrices: which of them a product is offered, and what its kernel is told.
//!
//! A half product only, one whose first operand is stored as a 16-bit float: its sums are those of
//! the other variants, but for their order.

use crate::ops::{CoopTile, Io, Kernel, Target, Variant};
use crate::tensor::{Shape, TensorType};

/// Taps along an axis, at most: their bits share a word (`conv_nt_coop`).
const TAPS: usize = 15;
/// Vectors of an operand that an invocation fetches per tile, at most: their bits share a word.
const LOADS: u32 = 32;

/// Rows and columns per workgroup, depth, rows and columns per subgroup, buffers.
type Size = [u32; 6];

/// Tiles of a forward-type product, by their columns. Before anything is measured, the first of a
/// width is taken that has [`ENOUGH`] workgroups.
///
/// On an H100 workgroup memory, not the matrix units, is what a kernel of 32 x 32 results per
/// subgroup waits for (busy 80 %, the units 21 %), so 64 x 32 are better. Of 64 x 64 results an
/// operand is read still less often, but they take 255 registers and were never the fastest.
const NT_TILES: [Size; 11] = [
    [128, 16, 32, 32, 16, 2],
    [128, 32, 32, 32, 32, 2],
    [128, 32, 64, 32, 32, 1],
    [128, 64, 32, 64, 32, 2],
    [64, 64, 64, 32, 32, 1],
    [128, 64, 32, 32, 32, 2],
    [128, 64, 64, 64, 32, 1],
    [64, 64, 32, 32, 32, 2],
    [128, 128, 32, 64, 32, 1],
    [64, 128, 32, 32, 64, 2],
    [64, 128, 64, 32, 64, 1],
];
/// The same of a weight gradient, by their rows. Of its columns, 9 taps of 64 channels are whole
/// tiles of 192.
const TN_TILES: [Size; 10] = [
    [16, 128, 32, 16, 32, 2],
    [32, 128, 32, 32, 32, 2],
    [32, 192, 32, 32, 64, 2],
    [32, 256, 32, 32, 64, 1],
    [64, 192, 32, 32, 64, 2],
    [64, 192, 16, 32, 64, 2],
    [64, 128, 32, 32, 64, 2],
    [64, 64, 32, 32, 32, 2],
    [128, 128, 32, 64, 32, 1],
    [128, 64, 32, 64, 32, 2],
];
/// Both for subgroups of fewer than 32 lanes, each of which has more sums to keep.
const NT_NARROW: [Size; 4] = [
    [32, 16, 16, 16, 16, 2],
    [64, 32, 16, 32, 16, 1],
    [32, 64, 16, 16, 32, 2],
    [32, 64, 32, 16, 32, 1],
];
const TN_NARROW: [Size; 4] = [
    [16, 64, 16, 16, 32, 2],
    [32, 64, 32, 16, 32, 1],
    [64, 64, 16, 32, 32, 2],
    [64, 96, 16, 32, 32, 1],
];
const NT_NARROW_COPIED: [Size; 2] = [[64, 32, 16, 16, 16, 3], [64, 64, 16, 32, 16, 4]];
const TN_NARROW_COPIED: [Size; 2] = [[32, 64, 16, 16, 16, 3], [64, 64, 16, 32, 32, 4]];
/// Both where copies to workgroup memory go on by themselves: no register holds what is under way,
/// so that 64 x 64 sums fit, and pieces are twice as long. Of 55 products of a ResNet-18 of width
/// 64 these are all tiles that were the fastest on an H100, or within 4 % (`shaders/README.md`);
/// the first that has [`ENOUGH`] workgroups is 2 % slower than the fastest, taken over all.
const NT_COPIED: [Size; 6] = [
    [128, 128, 32, 64, 64, 3],
    [256, 64, 32, 64, 64, 3],
    [128, 64, 64, 64, 32, 3],
    [128, 64, 32, 64, 32, 4],
    [128, 128, 32, 64, 32, 3],
    [64, 128, 64, 32, 64, 3],
];
const TN_COPIED: [Size; 6] = [
    [128, 128, 32, 64, 64, 3],
    [64, 192, 32, 32, 64, 3],
    [64, 128, 64, 32, 64, 3],
    [32, 128, 32, 32, 32, 4],
    [64, 192, 32, 64, 32, 3],
    [128, 128, 32, 64, 32, 3],
];
/// Workgroups that weight gradients are split for.
const TN_GROUPS: [u32; 1] = [512];

/// Whether the operands of a product are of one 16-bit float; weights are rounded to it.
fn is_half(operands: &[TensorType]) -> bool {
    operands.iter().all(|x| x.dtype.half().is_some() && x.dtype == operands[0].dtype)
}

fn is_narrow(target: &Target) -> bool {
    target.subgroup.is_some_and(|lanes| lanes < 32)
}

/// Whether the rows that a workgroup fetches at once are whole, and an invocation's few.
fn divides(t: &CoopTile) -> bool {
    let invocations = t.subgroups() * t.subgroup;
    if t.copies() {
        // Pieces of 8, and of rows along the depth those of eight rows at once.
        let whole = |row: u32| invocations.is_multiple_of(row / 8);
        return whole(t.m) && whole(t.n) && (t.groups > 0 || whole(8 * t.k));
    }
    let whole = |row: u32| invocations.is_multiple_of(row / 4);
    let loads = |rows: u32, row: u32| (rows * row / 4).div_ceil(invocations);
    [t.m, t.n].iter().all(|&extent| {
        whole(extent) && whole(t.k) && loads(extent, t.k) <= LOADS && loads(t.k, extent) <= LOADS
    })
}

/// The tiles of about the width `columns` that a device can run, the first choice first.
fn tiles(
    sizes: &[Size],
    columns: usize,
    narrow: usize,
    groups: &[u32],
    target: &Target,
) -> Vec<Variant> {
    let (Some(edge), Some(subgroup)) = (target.coop, target.subgroup) else { return vec![] };
    let widest = sizes.iter().map(|t| t[narrow]).max().unwrap_or(0);
    let width = columns.next_power_of_two().clamp(16, widest as usize);
    // A narrower tile has more workgroups, and less waste at the edge.
    let near = |t: &&Size| {
        let of = t[narrow] as usize;
        of == width || (of == width / 2 && of >= 32)
    };
    let mut sizes: Vec<&Size> = sizes.iter().filter(near).collect();
    sizes.sort_by_key(|t| t[narrow] as usize != width);
    let tile = |groups: u32, &[m, n, k, rows, cols, buffers]: &Size| CoopTile {
        m,
        n,
        k,
        rows,
        cols,
        buffers,
        groups,
        edge,
        subgroup,
    };
    let all = groups.iter().flat_map(|&groups| sizes.iter().map(move |t| tile(groups, t)));
    let runs = |t: &CoopTile| divides(t) && target.can(&Variant::Coop(*t).requirements());
    all.filter(runs).map(Variant::Coop).collect()
}

/// Variants of a forward-type product with kernels of `kernel` taps an axis.
pub(super) fn nt_variants(io: &Io, kernel: usize, target: &Target) -> Vec<Variant> {
    if !is_half(&io.inputs[..1]) || kernel > TAPS {
        return vec![];
    }
    let narrow = is_narrow(target);
    let columns = io.outputs[0].shape.c;
    let sizes = if narrow { &NT_NARROW[..] } else { &NT_TILES };
    let loaded = tiles(sizes, columns, 1, &[0], target);
    // Weights that are read across are copied along the result's channels.
    if io.inputs[0].shape.c.is_multiple_of(8) && io.inputs[1].shape.c.is_multiple_of(8) {
        let sizes = if narrow { &NT_NARROW_COPIED[..] } else { &NT_COPIED };
        return [tiles(sizes, columns, 1, &[0], target), loaded].concat();
    }
    loaded
}

/// Variants of a weight gradient.
pub(super) fn tn_variants(io: &Io, target: &Target) -> Vec<Variant> {
    if !is_half(&io.inputs[..2]) {
        return vec![];
    }
    let narrow = is_narrow(target);
    let rows = io.inputs[1].shape.c;
    let sizes = if narrow { &TN_NARROW[..] } else { &TN_TILES };
    let loaded = tiles(sizes, rows, 0, &TN_GROUPS, target);
    if rows.is_multiple_of(8) && io.inputs[0].shape.c.is_multiple_of(8) {
        let sizes = if narrow { &TN_NARROW_COPIED[..] } else { &TN_COPIED };
        return [tiles(sizes, rows, 0, &TN_GROUPS, target), loaded].concat();
    }
    loaded
}

/// What is taken where nothing has been measured: the first tile with enough workgroups for the
/// result `y` of a forward-type product, or the one with the most; a weight gradient is split for
/// enough anyway. Tiles that are copied come before those that are loaded.
pub(super) fn preferred(variants: &[Variant], y: Shape) -> Option<Variant> {
    let tiles = variants.iter().filter_map(|v| match v {
        Variant::Coop(t) => Some((*v, [t.m, t.n], t.groups)),
        _ => None,
    });
    enough(tiles, y)
}

/// Workgroups that occupy a large GPU: nearly one for each of an H100's 132 SMs.
const ENOUGH: usize = 128;

/// The first variant with [`ENOUGH`] workgroups, or else with the most: of variants with the rows
/// and columns of their tiles, and the workgroups that a weight gradient is split for (otherwise
/// 0).
pub(super) fn enough(
    variants: impl Iterator<Item = (Variant, [u32; 2], u32)>,
    y: Shape,
) -> Option<Variant> {
    let groups = |[m, n]: [u32; 2]| y.pixels().div_ceil(m as usize) * y.c.div_ceil(n as usize);
    let groups = |tile, split| if split > 0 { ENOUGH } else { groups(tile).min(ENOUGH) };
    let mut tiles: Vec<_> = variants.map(|(v, tile, split)| (groups(tile, split), v)).collect();
    // Sorting is stable.
    tiles.sort_by_key(|(groups, _)| std::cmp::Reverse(*groups));
    tiles.first().map(|t| t.1)
}

/// The tile's consts.
pub(super) fn tile(kernel: Kernel, t: &CoopTile) -> Kernel {
    kernel
        .set("T", t.edge)
        .set("EDGE_8", t.edge == 8)
        .set("SG", t.subgroup)
        .set("BM", t.m)
        .set("BN", t.n)
        .set("BK", t.k)
        .set("WM", t.rows)
        .set("WN", t.cols)
        .set("BUFFERS", t.buffers)
        .set("SINGLE", t.buffers == 1)
}

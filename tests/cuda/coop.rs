//! Cooperative matrices through the writer: every way to stage and to store them, on numbers whose
//! products are exact, and bugs that must show.

use aavae::shader::cuda::{CudaError, PRELUDE, translate};
use aavae::tensor::Half;
use libtest_mimic::{Failed, Trial};

use crate::compiler::{Bug, REFUSES, run};
use crate::support::check;

/// Rows, columns and depth: two warps of 16 rows, two matrices beside each other, two stages.
const SIDE: usize = 32;

/// How a kernel keeps its tiles in workgroup memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Whether lines are rows: of A, of B, of C.
    rows: [bool; 3],
    /// Whether memory is declared as vectors.
    vectors: bool,
}

/// Each way.
pub(crate) fn layouts() -> Vec<Layout> {
    let bit = |i: u32, n: u32| i >> n & 1 == 1;
    let layout = |i| Layout { rows: [bit(i, 0), bit(i, 1), bit(i, 2)], vectors: bit(i, 3) };
    (0..16).map(layout).collect()
}

impl Layout {
    /// A kernel that multiplies 16-bit floats. `a` and `b` hold lines of 32 numbers.
    pub(crate) fn wgsl(&self, half: Half) -> String {
        self.f16().replace("f16", half.name())
    }

    fn f16(&self) -> String {
        let [a, b, c] = self.rows.map(|rows| if rows { "T" } else { "" });
        let (element, result, width) =
            if self.vectors { ("vec4<f16>", "vec4<f32>", 4) } else { ("f16", "f32", 1) };
        // Lines of A and B in a stage, which is 16 deep, and their numbers; 8 lie unused between.
        let lines = |rows: bool| if rows { [32usize, 16] } else { [16, 32] };
        let ([la, wa], [lb, wb]) = (lines(self.rows[0]), lines(!self.rows[1]));
        let (sa, sb, sc) = ((wa + 8) / width, (wb + 8) / width, (32 + 4) / width);
        let (za, zb, zc) = (la * sa, lb * sb, 32 * sc);
        let at = |rows: bool, stride: usize, line: &str, column: &str| {
            let (line, column) = if rows { (line, column) } else { (column, line) };
            format!("({line}) * {stride}u + ({column}) / {width}u")
        };
        let put = |name: &str, stride: usize| match self.vectors {
            true => format!("s{name}[line * {stride}u + i] = {name}[source];"),
            false => format!(
                "for (var e = 0u; e < 4u; e++) {{ \
                 s{name}[line * {stride}u + i * 4u + e] = {name}[source][e]; }}"
            ),
        };
        let stage = |name: &str, rows: bool, [lines, wide]: [usize; 2], stride: usize| {
            let (down, right) = if rows { ("0u", "k0") } else { ("k0", "0u") };
            format!(
                "for (var x = li; x < {}u; x += 64u) {{ let line = x / {w}u; let i = x % {w}u;\n\
                 let source = ({down} + line) * 8u + {right} / 4u + i;\n{} }}",
                lines * wide / 4,
                put(name, stride),
                w = wide / 4,
            )
        };
        let get = if self.vectors {
            format!("sc[(x / 32u) * {sc}u + x % 32u / 4u][x % 4u]")
        } else {
            format!("sc[(x / 32u) * {sc}u + x % 32u]")
        };
        let (at_a, at_b) =
            (at(self.rows[0], sa, "sg * 16u", "0u"), at(self.rows[1], sb, "0u", "j * 16u"));
        let at_c = at(self.rows[2], sc, "sg * 16u", "j * 16u");
        let (stage_a, stage_b) =
            (stage("a", self.rows[0], [la, wa], sa), stage("b", !self.rows[1], [lb, wb], sb));
        format!(
            "enable f16;
            enable wgpu_cooperative_matrix;
            alias MatA = coop_mat16x16<f16, A>;
            alias MatB = coop_mat16x16<f16, B>;
            alias MatC = coop_mat16x16<f32, C>;
            @group(0) @binding(0) var<storage, read> a: array<vec4<f16>>;
            @group(0) @binding(1) var<storage, read> b: array<vec4<f16>>;
            @group(0) @binding(2) var<storage, read_write> c: array<f32>;
            var<workgroup> sa: array<{element}, {za}>;
            var<workgroup> sb: array<{element}, {zb}>;
            var<workgroup> sc: array<{result}, {zc}>;
            @compute @workgroup_size(64)
            fn main(@builtin(local_invocation_index) li: u32, @builtin(subgroup_id) sg: u32) {{
                var sums: array<MatC, 2>;
                for (var k0 = 0u; k0 < {SIDE}u; k0 += 16u) {{
                    {stage_a}
                    {stage_b}
                    workgroupBarrier();
                    let ta = coopLoad{a}<MatA>(&sa[{at_a}], {sa}u);
                    for (var j = 0u; j < 2u; j++) {{
                        let tb = coopLoad{b}<MatB>(&sb[{at_b}], {sb}u);
                        sums[j] = coopMultiplyAdd(ta, tb, sums[j]);
                    }}
                    workgroupBarrier();
                }}
                for (var j = 0u; j < 2u; j++) {{ coopStore{c}(sums[j], &sc[{at_c}], {sc}u); }}
                workgroupBarrier();
                for (var x = li; x < 1024u; x += 64u) {{ c[x] = {get}; }}
            }}"
        )
    }
}

/// Small integers, exact in 16 bits, without a pattern that a permutation would keep.
fn numbers(seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        ((state >> 20) % 17) as f32 - 8.0
    };
    (0..SIDE * SIDE).map(|_| next()).collect()
}

/// 16-bit floats of small integers, in words of two.
fn packed(x: &[f32], format: Half) -> Vec<u32> {
    let half = |x: f32| {
        let bits = x.to_bits();
        match format {
            // The integers have few digits: nothing is rounded.
            Half::Bf16 => bits >> 16,
            Half::F16 if x == 0.0 => 0,
            Half::F16 => (bits >> 16 & 0x8000) + ((bits >> 13 & 0x3ffff) - (112 << 10)),
        }
    };
    x.chunks(2).map(|p| half(p[0]) | half(p[1]) << 16).collect()
}

fn transposed(x: &[f32]) -> Vec<f32> {
    (0..SIDE * SIDE).map(|i| x[i % SIDE * SIDE + i / SIDE]).collect()
}

fn product(layout: Layout, half: Half, bug: &Bug, order: u32) -> Result<(), String> {
    let (a, b) = (numbers(1), numbers(2));
    let of = |x: &[f32], rows: bool| packed(&if rows { x.to_vec() } else { transposed(x) }, half);
    let (mut lines_a, mut lines_b) = (of(&a, layout.rows[0]), of(&b, layout.rows[1]));
    let mut c = vec![f32::NAN.to_bits(); SIDE * SIDE];
    run(&layout.wgsl(half), &mut [&mut lines_a, &mut lines_b, &mut c], bug, order)?;
    let got: Vec<f32> = c.into_iter().map(f32::from_bits).collect();
    let got = if layout.rows[2] { got } else { transposed(&got) };
    for (i, got) in got.into_iter().enumerate() {
        let (row, column) = (i / SIDE, i % SIDE);
        let want: f32 = (0..SIDE).map(|k| a[row * SIDE + k] * b[k * SIDE + column]).sum();
        if got != want {
            return Err(format!("{layout:?}, {half:?}: {got} at {row}, {column}, not {want}"));
        }
    }
    Ok(())
}

const ORDERS: [u32; 3] = [0, 1, 0x5eed];

fn all() -> Result<(), Failed> {
    for layout in layouts() {
        for order in ORDERS {
            for half in Half::ALL {
                product(layout, *half, &Bug::default(), order)?;
            }
        }
    }
    Ok(())
}

fn notices(bug: &Bug, half: Half) -> Result<(), Failed> {
    let kernel = translate(&layouts()[7].wgsl(half), "k")?.text;
    let text = if bug.prelude { PRELUDE } else { &kernel };
    check(bug.plant(text) != text, || format!("no `{}`", bug.from))?;
    for layout in layouts() {
        for order in ORDERS {
            match product(layout, half, bug, order) {
                // A text that does not compile shows nothing.
                Err(e) if e.contains(REFUSES) => return Err(e.into()),
                Err(_) => return Ok(()),
                Ok(()) => {}
            }
        }
    }
    Err("every layout passes with the bug".into())
}

pub(crate) fn trials() -> Vec<Trial> {
    let barrier = "__syncthreads();";
    let bugs: [(&str, bool, usize, &str, &str); 11] = [
        ("a missing barrier before products", false, 0, barrier, ""),
        ("a missing barrier behind products", false, 1, barrier, ""),
        ("a missing barrier behind a store", false, 2, barrier, ""),
        ("swapped quarters of a matrix", true, 0, "DOWN ? low : high", "DOWN ? high : low"),
        ("equal quarters of a matrix", true, 0, "DOWN ? high : low", "low"),
        (
            "a wrong transposition of A",
            true,
            0,
            "w_quarters<ROWS, !ROWS>",
            "w_quarters<ROWS, ROWS>",
        ),
        (
            "a wrong transposition of B",
            true,
            0,
            "w_quarters<ROWS, ROWS>",
            "w_quarters<ROWS, !ROWS>",
        ),
        ("wrong columns of B", true, 0, "b.r[0], b.r[1]", "b.r[0], b.r[2]"),
        ("swapped halves of sums", true, 0, "row + down * 8u", "row + (1u - down) * 8u"),
        ("a lane that is missing", true, 0, "  w_ldmatrix<T", "  if (lane != 5u) w_ldmatrix<T"),
        ("a tile beyond its array", false, 0, "w_subgroup_id()", "(4u + w_subgroup_id())"),
    ];
    let mut trials = vec![Trial::test("cooperative products are exact", all)];
    for (what, prelude, nth, from, to) in bugs {
        for &half in Half::ALL {
            let bug = Bug { nth, from, to, prelude };
            let name = format!("notices {what} (cooperative, {})", half.name());
            trials.push(Trial::test(name, move || notices(&bug, half)));
        }
    }
    trials
}

/// What tensor cores or this writer cannot do is refused by name.
pub(crate) fn refusals() -> Vec<Trial> {
    let good = layouts()[15].wgsl(Half::F16);
    let refused = |what: &str, from: &str, to: &str, named: &'static str| {
        let (bad, name) = (good.replace(from, to), format!("the writer refuses {what}"));
        assert!(bad != good, "no `{from}`");
        Trial::test(name, move || match translate(&bad, "k") {
            Err(CudaError::Unknown(said)) if said.contains(named) => Ok(()),
            other => Err(format!("{other:?}").into()),
        })
    };
    let sums = "enable f16; enable wgpu_cooperative_matrix;
        var<workgroup> s: array<f16, 256>;
        @compute @workgroup_size(32)
        fn main() { var c: coop_mat16x16<f16, C>; coopStore(c, &s[0], 16u); }";
    let sums = Trial::test("the writer refuses sums in f16", move || match translate(sums, "k") {
        Err(CudaError::Unknown(said)) if said.contains("A and B are f16, C f32") => Ok(()),
        other => Err(format!("{other:?}").into()),
    });
    vec![
        sums,
        refused("matrices of 8 by 8", "mat16x16", "mat8x8", "8 by 8: only 16 by 16"),
        refused("a part of a warp", "workgroup_size(64)", "workgroup_size(48)", "workgroup of 48"),
        refused("a matrix in a buffer", "&sb[", "&b[", "a cooperative matrix in"),
        refused("a sum of matrices", "sums[j] = ", "sums[j] = sums[1] + ", "arithmetic on coop"),
    ]
}

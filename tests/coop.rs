//! Convolutions by cooperative matrices: every tile against the f64 reference, at shapes that hurt
//! these kernels, on 8x8 and on 16x16 matrices, and kernels that are spoiled, which must fail.
//!
//! They run where an adapter lists cooperative matrices, as Mesa's lavapipe does from version 26 on
//! (`scripts/new-lavapipe` fetches one). Elsewhere the trials show as *ignored*; `REQUIRE_COOP=1`
//! turns that into a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use aavae::check::{name, trial, variants};
use aavae::device::wgpu::{Gpu, OpenOptions, adapters};
use aavae::device::{Device, Pick, Session};
use aavae::ops::{
    Case, Conv2d, Conv2dInputGrad, Conv2dWeightGrad, CoopTile, Epilogue, Fill, Op, Target, Variant,
    all_cases,
};
use aavae::tensor::{Half, Shape};
use libtest_mimic::{Arguments, Failed, Trial};

/// An adapter with cooperative matrices of an edge, as what it is opened, and what it can then do.
#[derive(Clone, Copy)]
struct Adapter {
    index: usize,
    options: OpenOptions,
    target: Target,
}

impl Adapter {
    fn open(index: usize, edge: u32) -> Self {
        let options = OpenOptions { coop: Some(edge), ..OpenOptions::default() };
        let gpu = Gpu::pick(&Pick::Index(index), options).unwrap_or_else(|e| panic!("{e}"));
        // What WGSL says of copies that go on by themselves is tried here, as it stands.
        let target = Target { copies: true, ..gpu.capabilities().target };
        Self { index, options, target }
    }
    fn session(&self, options: OpenOptions) -> Result<Session, Failed> {
        let options = OpenOptions { coop: self.options.coop, ..options };
        let mut session = Session::from(Gpu::pick(&Pick::Index(self.index), options)?);
        session.set_target(self.target);
        Ok(session)
    }
}

/// Input, weights, stride, padding: channels that fill no tile of depth, columns that fill none of
/// width, tiles that hold two taps, odd images, fewer pixels than a tile and more than several.
fn shapes() -> Vec<(Shape, Shape, usize, usize)> {
    let s = Shape::new;
    vec![
        (s(2, 9, 7, 68), s(36, 3, 3, 68), 1, 1),
        (s(1, 5, 5, 12), s(100, 1, 1, 12), 1, 0),
        (s(2, 13, 9, 4), s(100, 7, 7, 4), 2, 3),
        (s(3, 12, 12, 32), s(64, 3, 3, 32), 1, 1),
        (s(2, 9, 11, 64), s(128, 3, 3, 64), 2, 1),
        (s(2, 8, 6, 64), s(132, 1, 1, 64), 2, 0),
        (s(1, 1, 333, 36), s(16, 1, 1, 36), 1, 0),
        (s(2, 16, 16, 64), s(4, 3, 3, 64), 1, 1),
    ]
}

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn extent(size: usize, kernel: usize, stride: usize, pad: usize) -> usize {
    (size + 2 * pad - kernel) / stride + 1
}

/// The three products of each of the shapes, on f16.
fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    for (x, w, stride, pad) in shapes() {
        let extent = |size| extent(size, w.h, stride, pad);
        let y = Shape::new(x.n, extent(x.h), extent(x.w), w.n);
        let tail = Epilogue { add: true, mask: true, ..Epilogue::default() };
        let all = Epilogue { bias: true, relu: true, ..tail };
        let forward = Conv2d { stride, pad, epilogue: all };
        let input = Conv2dInputGrad { stride, pad, h: x.h, w: x.w, epilogue: tail };
        let weight = Conv2dWeightGrad { stride, pad, kernel: w.h, bias: 2 * pad < w.h };
        let named = format!("{x} {w} s{stride} p{pad}");
        let case = |op: Op, shapes: &[Shape]| {
            let inputs: Vec<_> = shapes.iter().map(|s| (*s, Fill::Normal)).collect();
            Case::new(named.clone(), op, &inputs)
        };
        cases.push(case(forward.into(), &[x, w, Shape::vector(w.n), y, y]));
        cases.push(moments(&named, stride, pad, x, w));
        cases.push(case(input.clone().into(), &[y, w, x, x]));
        cases.push(case(weight.into(), &[x, y]));
        cases.push(gradient_sums(&named, input, [y, w], x));
    }
    cases.iter().filter_map(|case| case.halved(Half::F16)).collect()
}

/// A forward product that has its moments too. Its sums are integers, which f16 rounds alike in
/// whichever order they came about.
fn moments(named: &str, stride: usize, pad: usize, x: Shape, w: Shape) -> Case {
    let epilogue = Epilogue { bias: true, moments: Some(64), ..Epilogue::default() };
    let far = (Shape::vector(w.n), Fill::Constant(3000.0));
    let inputs = [(x, Fill::Ties), (w, Fill::Ties), far];
    Case::new(format!("moments {named}"), Conv2d { stride, pad, epilogue }, &inputs)
}

/// An input gradient that has the sums of a batch norm's gradient too, of integers as well.
fn gradient_sums(named: &str, op: Conv2dInputGrad, operands: [Shape; 2], x: Shape) -> Case {
    let epilogue = Epilogue { gradient_sums: Some(64), ..op.epilogue };
    let [dy, w] = operands.map(|shape| (shape, Fill::Ties));
    let (add, map) = ((x, Fill::Constant(3000.0)), (x, Fill::Ties));
    let mean = (Shape::vector(x.c), Fill::Alternate(3.0, -2.0));
    let inputs = [dy, w, add, map, map, mean];
    Case::new(format!("sums {named}"), Conv2dInputGrad { epilogue, ..op }, &inputs)
}

/// What an op's own trials have of half products.
fn own() -> Vec<Case> {
    let convolution = |c: &Case| c.half == Some(Half::F16) && c.op.name().starts_with("conv2d");
    all_cases().into_iter().filter(convolution).collect()
}

fn coop(case: &Case, target: &Target) -> Vec<Variant> {
    let matrices = |v: &Variant| matches!(v, Variant::Coop(_));
    variants(case, target).into_iter().filter(matrices).collect()
}

/// What a trial runs: every product in one tile, the next of the same op in the next.
fn chosen(target: &Target) -> Vec<(Case, Variant)> {
    let mut turn: BTreeMap<&str, usize> = BTreeMap::new();
    let mut pick = |case: Case| {
        let offered = coop(&case, target);
        let turn = turn.entry(case.op.name()).or_default();
        *turn += 1;
        let variant = *offered.get(*turn % offered.len().max(1))?;
        Some((case, variant))
    };
    // Of an op's own trials a few: these kernels take long to compile.
    let all = products().into_iter().chain(own().into_iter().step_by(8));
    let mut chosen: Vec<(Case, Variant)> = all.filter_map(&mut pick).collect();
    // And the tiles of few products, which no turn came to.
    for case in products() {
        for variant in coop(&case, target) {
            let same = |(other, v): &(Case, Variant)| {
                other.op.name() == case.op.name() && tile(v) == tile(&variant)
            };
            if !chosen.iter().any(same) {
                chosen.push((case.clone(), variant));
            }
        }
    }
    chosen
}

/// A tile whatever its split.
fn tile(variant: &Variant) -> Option<CoopTile> {
    match variant {
        Variant::Coop(t) => Some(CoopTile { groups: t.groups.min(1), ..*t }),
        _ => None,
    }
}

/// No tile that any of the products is offered is left out.
fn every_tile(target: &Target) -> Result<(), Failed> {
    let cases = products().into_iter().chain(own());
    let offered: BTreeSet<_> =
        cases.flat_map(|c| coop(&c, target)).filter_map(|v| tile(&v)).collect();
    let tried: BTreeSet<_> = chosen(target).iter().filter_map(|(_, v)| tile(v)).collect();
    check(!offered.is_empty() && tried == offered, || {
        format!("{:?} are not tried", offered.difference(&tried))
    })
}

/// A fault of a kernel's text.
type Fault = fn(String) -> String;

/// Faults that no comparison may miss.
const FAULTS: [(&str, Fault); 7] = [
    ("the last tile is left out", |t| {
        t.replace("tile < taps.tiles; tile++", "tile + 1u < taps.tiles; tile++")
            .replace("tile < tiles; tile++", "tile + 1u < tiles; tile++")
    }),
    ("an operand is transposed", |t| {
        t.replace("coopLoadT<MatrixA>", "coopLoad<MatrixA>")
            .replace("coopLoadT<MatrixB>", "coopLoad<MatrixB>")
    }),
    ("a product is added twice", |t| {
        let twice = |l: &str| match l.contains("coopMultiplyAdd(u[0u], v[0u]") {
            true => format!("{l} {l}\n"),
            false => format!("{l}\n"),
        };
        t.lines().map(twice).collect()
    }),
    ("nothing waits", |t| t.replace("workgroupBarrier();", "")),
    ("the border is not zero", |t| t.replace(")) != 0u)", ")) >= 0u)")),
    ("a matrix is left out", |t| t.replacen("coopStoreT(", "// (", 1)),
    ("results are a vector beside their place", |t| {
        t.replace("e / STRIP4) * SY + e", "e / STRIP4) * SY + 1u + e")
    }),
];

/// Faults of a result's moments.
const FAULTS_OF_MOMENTS: [(&str, Fault); 5] = [
    ("a lane is left out", |t| t.replace("i < PART * HEIGHT", "i + 1u < PART * HEIGHT")),
    ("a lane counts for one pixel too many", |t| {
        t.replace(
            "(end - top - h + HEIGHT - 1u) / HEIGHT",
            "(end - top - h + HEIGHT) / HEIGHT + 1u",
        )
    }),
    ("what is behind the last pixel counts", |t| {
        t.replace("let end = min(top + WM, M);", "let end = top + WM;")
    }),
    ("lanes do not wait", |t| t.replace("workgroupBarrier();\n        merge(", "merge(")),
    ("what is not stored counts", |t| {
        t.replace("count(lanes, s, stored(v),", "count(lanes, s, v,")
    }),
];

/// Faults of what a batch norm's gradient sums.
const FAULTS_OF_SUMS: [(&str, Fault); 4] = [
    ("a lane is left out", |t| t.replace("i < PART * HEIGHT", "i + 1u < PART * HEIGHT")),
    ("lanes do not wait", |t| t.replace("workgroupBarrier();\n        merge(", "merge(")),
    ("nothing is centred", |t| {
        t.replace(".norm_x - norm_mean[col]", ".norm_x - 0.0 * norm_mean[col]")
    }),
    ("what is not stored counts", |t| t.replace("let g = stored(v);", "let g = v;")),
];

/// A product must fail with a fault of its `parts`, moments or sums.
fn parts_refused(adapter: Adapter, parts: &str, fault: Fault) -> Result<(), Failed> {
    let mut cases = products().into_iter().filter(|c| c.name.starts_with(parts));
    let case = cases.find(|c| c.name.contains("68")).ok_or("no such product")?;
    let variant = coop(&case, &adapter.target)[0];
    let options = OpenOptions { rewrite: Some(fault), ..OpenOptions::default() };
    let result = trial(&case, &mut adapter.session(options)?, variant);
    let noticed = |e: &String| e.contains("times the tolerance") || e.contains("gave other bits");
    check(result.as_ref().is_err_and(noticed), || format!("{variant}: {result:?}"))
}

/// Each product with its epilogue must fail once its text has a fault.
fn refused(adapter: Adapter, fault: Fault) -> Result<(), Failed> {
    // Several taps, tiles and groups, and a border.
    let cases: Vec<Case> = products()
        .into_iter()
        .filter(|c| c.name.contains("68"))
        .filter(|c| !["moments", "sums"].iter().any(|parts| c.name.starts_with(parts)))
        .collect();
    check(cases.len() == 3, || format!("{} products", cases.len()))?;
    for case in cases {
        let variant = coop(&case, &adapter.target)[0];
        let options = OpenOptions { rewrite: Some(fault), ..OpenOptions::default() };
        let result = trial(&case, &mut adapter.session(options)?, variant);
        // Not a text that the driver refuses, but results that differ.
        let noticed =
            |e: &String| e.contains("times the tolerance") || e.contains("gave other bits");
        check(result.as_ref().is_err_and(noticed), || {
            format!("{} {variant}: {result:?}", case.op.name())
        })?;
    }
    Ok(())
}

fn one(case: &Case, adapter: Adapter, variant: Variant) -> Result<(), Failed> {
    trial(case, &mut adapter.session(OpenOptions::default())?, variant)?;
    Ok(())
}

fn trials(adapter: Adapter, edge: u32) -> Vec<Trial> {
    let target = adapter.target;
    let of = format!("{edge}x{edge}");
    let mut trials =
        vec![Trial::test(format!("every tile is tried, {of}"), move || every_tile(&target))];
    for (case, variant) in chosen(&target) {
        let title = format!("{}/{variant}", name(&case));
        trials.push(Trial::test(title, move || one(&case, adapter, variant)));
    }
    if edge == 8 {
        let refuse = |(what, fault): (&str, Fault)| {
            Trial::test(format!("a fault is noticed: {what}"), move || refused(adapter, fault))
        };
        trials.extend(FAULTS.map(refuse));
        let refuse = |(what, fault): (&str, Fault)| {
            let title = format!("a fault of moments is noticed: {what}");
            Trial::test(title, move || parts_refused(adapter, "moments ", fault))
        };
        trials.extend(FAULTS_OF_MOMENTS.map(refuse));
        let refuse = |(what, fault): (&str, Fault)| {
            let title = format!("a fault of gradient sums is noticed: {what}");
            Trial::test(title, move || parts_refused(adapter, "sums ", fault))
        };
        trials.extend(FAULTS_OF_SUMS.map(refuse));
    }
    trials
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let found = (0..).zip(adapters()).filter(|(_, a)| a.coop.is_some()).map(|(i, _)| i);
    let mut all: Vec<Trial> = found
        .flat_map(|index| [8, 16].map(|edge| (Adapter::open(index, edge), edge)))
        .flat_map(|(adapter, edge)| trials(adapter, edge))
        .collect();
    if all.is_empty() {
        let require = std::env::var_os("REQUIRE_COOP").is_some();
        let missing = || Err("no adapter lists cooperative matrices".into());
        let title = "products by cooperative matrices (no adapter lists them)";
        all.push(Trial::test(title, missing).with_ignored_flag(!require));
    }
    libtest_mimic::run(&args, all).exit_code()
}

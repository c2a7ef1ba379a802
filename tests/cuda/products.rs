//! Products by libraries, on stand-ins of cuDNN and cuBLASLt (`cudnn.cpp`, `cublas.cpp`) that
//! compute on the processor.

use std::ffi::{CString, c_char, c_int, c_long};
use std::path::Path;
use std::time::Duration;

use aavae::check::{name, plan, trial};
use aavae::device::Session;
use aavae::device::cuda::{Cuda, FOLDERS, OpenOptions};
use aavae::ir::Graph;
use aavae::method::{Method, Model, Training, training};
use aavae::ops::{
    Case, Choices, Conv2d, Conv2dInputGrad, Conv2dWeightGrad, Emit, Epilogue, Fill, Io,
    Library as By, Op, Target, Variant, key,
};
use aavae::plan::lower;
use aavae::tensor::{DType, Half, Shape, TensorType};
use aavae::train::compare::{compare_step, fill, trust_library};
use aavae::tune::{Effort, Memory, Product, products, tune_products};
use libloading::Library;
use libtest_mimic::Failed;

use crate::support::{self, check};
use crate::{StandIn, four_steps};

/// Added to a proposal of the stand-in: one that writes behind its result, and one that is wrong
/// later.
const BEYOND: c_int = 100;
const LATER: c_int = 200;

/// Proposals of the stand-in: these compute, with f32 operands the first does not count.
const TENSOR_CORES: c_int = 1;
const SECOND: c_int = 4;

/// A stand-in for a library in this process, and what its functions begin with.
struct Stand(Library, &'static str);

impl Stand {
    fn new() -> Result<Self, Failed> {
        Self::of(By::Convolutions)
    }
    fn of(by: By) -> Result<Self, Failed> {
        let (file, name) = match by {
            By::Convolutions => ("libcudnn.so.9", "stand_in_cudnn"),
            By::Matrices => ("libcublasLt.so.13", "stand_in_cublas"),
        };
        let folder = std::env::var_os(FOLDERS).ok_or("no stand-in")?;
        #[allow(unsafe_code, reason = "a library that this test has built")]
        // SAFETY: it is loaded already or runs no code when it is.
        let library = unsafe { Library::new(Path::new(&folder).join(file)) }?;
        let stand = Self(library, name);
        stand.set(-1, "", 0)?;
        Ok(stand)
    }
    /// A proposal that leaves out a term, and a function whose n-th call fails.
    fn set(&self, wrong: c_int, fails: &str, nth: u64) -> Result<(), Failed> {
        type Set = unsafe extern "C" fn(c_int, *const c_char, u64, c_int);
        let name = CString::new(fails)?;
        // CUDNN_STATUS_EXECUTION_FAILED, CUBLAS_STATUS_EXECUTION_FAILED.
        let status = if self.1.ends_with("cudnn") { 5000 } else { 13 };
        #[allow(unsafe_code, reason = "a function of the stand-in")]
        // SAFETY: it has this type, and copies the name.
        unsafe {
            self.0.get::<Set>(self.1.as_bytes())?(wrong, name.as_ptr(), nth, status);
        }
        Ok(())
    }
    /// Its objects that exist.
    fn held(&self) -> Result<c_long, Failed> {
        let name = format!("{}_held", self.1);
        #[allow(unsafe_code, reason = "a function of the stand-in")]
        // SAFETY: it has this type.
        Ok(unsafe { self.0.get::<unsafe extern "C" fn() -> c_long>(name.as_bytes())?() })
    }
}

fn open(options: OpenOptions) -> Result<Session, Failed> {
    let session = Session::from(Cuda::open(0, options)?);
    check(session.target().library, || "no library was found".into())?;
    check(session.device().contains("cuDNN 9.12.34"), || session.device())?;
    Ok(session)
}

/// Whether a trial of a case reaches the library: operands are of one type there.
fn reached(case: &Case, target: &Target, variant: Variant) -> bool {
    plan(case, target, variant).ops.iter().any(|o| o.op == case.op && o.variant == variant)
}

/// Every convolution of the trials with every epilogue, in f32 and as 16-bit floats.
pub(crate) fn trials() -> Result<(), Failed> {
    let _alone = StandIn::new()?;
    // Kernels of one tap are products of matrices.
    for (by, least) in [(By::Convolutions, 66), (By::Matrices, 8)] {
        let ran = trials_by(by)?;
        check(ran.iter().all(|n| *n >= least), || format!("only {ran:?} cases by {by:?}"))?;
    }
    Ok(())
}

/// Convolutions of one tap, which linear layers are, with a bias and something that is added.
fn one_tap() -> Vec<Case> {
    let (x, w, y) = (Shape::new(2, 5, 3, 12), Shape::new(20, 1, 1, 12), Shape::new(2, 5, 3, 20));
    let mut all = Vec::new();
    for [bias, add] in [[true, false], [false, true], [true, true]] {
        let epilogue = Epilogue { bias, add, ..Epilogue::default() };
        let of = |op: Op, a: Shape, result: Shape| {
            let tail = [bias.then_some(Shape::vector(result.c)), add.then_some(result)];
            let inputs = [a, w].into_iter().chain(tail.into_iter().flatten());
            let inputs: Vec<_> = inputs.map(|shape| (shape, Fill::Normal)).collect();
            Case::new(format!("one tap, bias {bias}, add {add}"), op, &inputs)
        };
        let gradient = Conv2dInputGrad { stride: 1, pad: 0, h: x.h, w: x.w, epilogue };
        all.push(of(Conv2d { stride: 1, pad: 0, epilogue }.into(), x, y));
        all.push(of(gradient.into(), y, x));
    }
    let halves = |case: &Case| [Half::F16, Half::Bf16].map(|half| case.halved(half));
    let halved: Vec<Case> = all.iter().flat_map(halves).flatten().collect();
    all.into_iter().chain(halved).collect()
}

/// Those that reach a library, of each type of operands.
fn trials_by(by: By) -> Result<[usize; 3], Failed> {
    let _stand = Stand::of(by)?;
    let mut session = open(OpenOptions::default())?;
    let (device, variant) = (session.target(), Variant::Library { of: by, rank: 1 });
    let mut ran = [0; 3];
    for case in aavae::ops::all_cases().into_iter().chain(one_tap()) {
        if !matches!(case.op, Op::Conv2d(_) | Op::Conv2dInputGrad(_) | Op::Conv2dWeightGrad(_)) {
            continue;
        }
        let target = Target { half: case.half, ..device };
        if !reached(&case, &target, variant) {
            continue;
        }
        session.set_target(target);
        trial(&case, &mut session, variant).map_err(|e| format!("{}: {e}", name(&case)))?;
        ran[match case.half {
            None => 0,
            Some(Half::F16) => 1,
            Some(Half::Bf16) => 2,
        }] += 1;
    }
    Ok(ran)
}

/// A session on which all products of a step of AAVAE that a library computes are its, and how many
/// these are.
fn by_library(
    by: By,
    options: OpenOptions,
    half: Option<Half>,
) -> Result<(Session, Model, usize), Failed> {
    let model = training(&support::config(Method::Aavae, 16, 2), Training::default());
    let mut session = open(options)?;
    session.set_target(Target { half, ..session.target() });
    let planned = lower("train", &model.graph, session.options());
    let (mut choices, variant) = (Choices::default(), Variant::Library { of: by, rank: 0 });
    for product in products([&planned]) {
        choices.set(product.key, variant);
    }
    session.set_choices(choices);
    let planned = lower("train", &model.graph, session.options());
    let taken = planned.ops.iter().filter(|o| o.library().is_some()).count();
    check(taken >= least(by), || format!("only {taken} products are the library's"))?;
    Ok((session, model, taken))
}

/// Products of a step of AAVAE that a library computes at least.
fn least(by: By) -> usize {
    match by {
        By::Convolutions => 60,
        By::Matrices => 5,
    }
}

/// Four steps: scalars and states, as bits.
fn train(
    by: By,
    options: OpenOptions,
    half: Option<Half>,
) -> Result<(Session, Vec<Vec<u32>>), Failed> {
    let (mut session, model, _) = by_library(by, options, half)?;
    let all = four_steps(&mut session, &model)?;
    Ok((session, all))
}

/// What an engine does beside its product, or only when calls follow each other, no comparison of
/// one product shows: a step does, before anything is trained, and the products are taken back.
pub(crate) fn steps() -> Result<(), Failed> {
    let (_alone, stand) = (StandIn::new()?, Stand::new()?);
    let (mut session, model, taken) = by_library(By::Convolutions, OpenOptions::default(), None)?;
    let (graph, params) = (&model.graph, &model.params);
    let said = compare_step(&mut session, graph, params)?;
    check(said.is_none(), || format!("a right step: {said:?}"))?;
    let all = session.choices().clone();
    let of_weights = |key: &str| key.starts_with("conv2d_weight_grad ");
    let others = all.iter().filter(|(key, _)| !of_weights(key)).count();
    let planted = [
        (BEYOND, 0, ["conv2d_weight_grad` changes", "too"]),
        (LATER, taken, ["run at once, the step leaves another", "than op by op"]),
        // The second time it is a graph.
        (LATER, 2 * taken, ["run at once for the second time, the step", "than op by op"]),
    ];
    for (what, right, [first, second]) in planted {
        session.set_choices(all.clone());
        stand.set(what + SECOND, "", right as u64)?;
        let said = trust_library(&mut session, graph, params)?.unwrap_or_default();
        check(said.contains(first) && said.contains(second), || said.clone())?;
        // Once an engine is always wrong a step is that of its ops, so the others stay.
        let left = session.choices().len();
        check(left == others, || format!("{left} products are left, not {others}"))?;
    }
    stand.set(-1, "", 0)
}

/// What the library queues is captured: a graph gives the bits of one call after the other, and
/// nothing is left.
pub(crate) fn graphs() -> Result<(), Failed> {
    let stand_in = StandIn::new()?;
    let both = [By::Convolutions, By::Matrices];
    for (by, half) in both.into_iter().flat_map(|by| [(by, None), (by, Some(Half::F16))]) {
        let stand = Stand::of(by)?;
        stand_in.fail("", 0, 0)?;
        let (session, eager) = train(by, OpenOptions { graphs: false }, half)?;
        drop(session);
        let (session, replayed) = train(by, OpenOptions::default(), half)?;
        let counts = stand_in.counts()?;
        let captured = counts["cuStreamBeginCapture_v2"];
        let added = counts["cuGraphAddChildGraphNode"];
        check(captured >= least(by) as u64 && captured == added, || {
            format!("{captured} and {added} calls")
        })?;
        check(eager == replayed, || "a graph gives other bits than its calls".into())?;
        drop(session);
        let (held, library) = (stand_in.counts()?["held"], stand.held()?);
        check(held == 0 && library == 0, || format!("{held} and {library} objects are left"))?;
    }
    Ok(())
}

/// A forward product of such operands.
fn product(dtype: DType) -> Product {
    let of = |shape| TensorType { dtype, shape };
    let (map, weights) = (of(Shape::new(2, 3, 4, 64)), of(Shape::new(64, 3, 3, 64)));
    let op: Op = Conv2d::new(1, 1).into();
    let io = Io { inputs: vec![map, weights], outputs: vec![map] };
    Product { key: key(&op, &io), op, io, flops: 1 }
}

fn tuned(session: &mut Session, dtype: DType) -> Result<Vec<(u32, Option<String>)>, Failed> {
    let effort = Effort { budget: Duration::from_secs(600), sweep: true, candidates: "" };
    let report = tune_products(session, &[product(dtype)], &mut Memory::nowhere(), effort)?;
    // Right behind the default.
    let first = report.trials.get(1..3).unwrap_or_default();
    let first = first.iter().all(|t| matches!(t.variant, Variant::Library { .. }));
    check(first && report.trials.len() > 3, || format!("{:?}", report.trials))?;
    let library = report.trials.into_iter().filter_map(|t| match t.variant {
        Variant::Library { of: By::Convolutions, rank } => Some((rank, t.refused)),
        _ => None,
    });
    Ok(library.collect())
}

/// A tuner compares the library's proposals like any candidate: a wrong one is refused, and so is
/// one whose call fails.
pub(crate) fn compared() -> Result<(), Failed> {
    let (_alone, stand) = (StandIn::new()?, Stand::new()?);
    let refused = |session: &mut Session| -> Result<Vec<(u32, String)>, Failed> {
        let tried = tuned(session, DType::F16)?;
        check(tried.len() == 2, || format!("{tried:?}"))?;
        Ok(tried.into_iter().filter_map(|(rank, why)| Some((rank, why?))).collect())
    };
    let session = || -> Result<Session, Failed> {
        let mut session = open(OpenOptions::default())?;
        session.set_target(Target { half: Some(Half::F16), ..session.target() });
        Ok(session)
    };
    check(refused(&mut session()?)?.is_empty(), || "a right proposal was refused".into())?;
    for (wrong, rank) in [(TENSOR_CORES, 0), (SECOND, 1)] {
        stand.set(wrong, "", 0)?;
        let said = refused(&mut session()?)?;
        let one = matches!(&said[..], [(r, why)] if *r == rank && why.contains("differs"));
        check(one, || format!("engine {wrong}: {said:?}"))?;
    }
    // Of f32 operands tensor cores are not asked for: the first proposal is the second engine.
    for (wrong, ranks) in [(TENSOR_CORES, &[][..]), (SECOND, &[0])] {
        stand.set(wrong, "", 0)?;
        let tried = tuned(&mut open(OpenOptions::default())?, DType::F32)?;
        let refused: Vec<u32> = tried.iter().filter(|t| t.1.is_some()).map(|t| t.0).collect();
        check(tried.len() == 2 && refused == ranks, || format!("engine {wrong}: {tried:?}"))?;
    }
    stand.set(-1, "cudnnBackendExecute", 1)?;
    let said = refused(&mut session()?)?;
    let named = ["cuDNN", "cudnnBackendExecute", "CUDNN_STATUS_EXECUTION_FAILED", "conv2d"];
    let one = matches!(&said[..], [(0, why)] if named.iter().all(|n| why.contains(n)));
    check(one, || format!("{said:?}"))
}

/// A call is timed as it is trained with, as a graph: the host queues it once by itself and once
/// into the graph, however often the device is asked how long it takes.
pub(crate) fn timed() -> Result<(), Failed> {
    let (stand_in, _stand) = (StandIn::new()?, Stand::new()?);
    let mut session = open(OpenOptions::default())?;
    let of = product(DType::F32);
    let mut g = Graph::default();
    let [x, w] = [("x", 0), ("w", 1)].map(|(name, i)| g.input(name, of.io.inputs[i]));
    g.label("product");
    let y = g.emit1(of.op.clone(), &[x, w]);
    g.output("y", y);
    let library = Variant::Library { of: By::Convolutions, rank: 0 };
    let portable = of.op.variants(&of.io, &session.target())[0];
    // What the stand-in's clock says: see `driver.cpp`.
    for (variant, launches, calls, seconds) in [(library, 5, 2, 125e-6), (portable, 0, 0, 250e-6)] {
        session.reset();
        let mut choices = Choices::default();
        choices.set(of.key.clone(), variant);
        session.set_choices(choices);
        session.allocate(&g.layout);
        let id = session.load(session.lower("product", &g))?;
        fill(&mut session, id)?;
        stand_in.fail("", 0, 0)?;
        let timing = session.time_op(id, 0)?;
        check(timing.by_device && timing.seconds == seconds, || format!("{variant}: {timing:?}"))?;
        let counts = stand_in.counts()?;
        let count = |name: &str| counts.get(name).copied().unwrap_or(0);
        let found = [count("cuGraphLaunch"), count("cuLaunchHostFunc")];
        check(found == [launches, calls], || format!("{variant}: {found:?}"))?;
    }
    Ok(())
}

/// Every call of the library fails once: one error that names it, and nothing is left.
pub(crate) fn every_call_fails_once() -> Result<(), Failed> {
    let (stand_in, stand) = (StandIn::new()?, Stand::new()?);
    let scenario = || -> Result<(), String> {
        let mut session =
            open(OpenOptions::default()).map_err(|e| e.message().unwrap_or_default().to_owned())?;
        let wanted = Variant::Library { of: By::Convolutions, rank: 1 };
        let case = aavae::ops::all_cases()
            .into_iter()
            .find(|c| c.half.is_none() && c.name == "epilogue bias+add+relu+mask")
            .ok_or("no case")?;
        trial(&case, &mut session, wanted).map(drop)
    };
    scenario()?;
    let mut tried = 0;
    for call in [
        "cudnnCreate",
        "cudnnSetStream",
        "cudnnBackendCreateDescriptor",
        "cudnnBackendSetAttribute",
        "cudnnBackendGetAttribute",
        "cudnnBackendExecute",
    ] {
        for nth in [1, 2, 5, 20] {
            stand_in.fail("", 0, 0)?;
            stand.set(-1, call, nth)?;
            match scenario() {
                Err(why) => check(why.contains(call), || format!("{call} {nth}: {why}"))?,
                // Another estimate is asked.
                Ok(()) if call == "cudnnBackendGetAttribute" => continue,
                // There are not so many calls.
                Ok(()) if nth > 1 && !call.contains("Descriptor") => continue,
                Ok(()) => return Err(format!("{call} {nth} failed and nobody noticed").into()),
            }
            let (held, library) = (stand_in.counts()?["held"], stand.held()?);
            check(held == 0 && library == 0, || {
                format!("{call} {nth}: {held} and {library} objects are left")
            })?;
            tried += 1;
        }
    }
    check(tried > 12, || format!("only {tried} failures"))
}

/// A gradient of weights of one tap, whose operands are halves: what the library of matrices
/// proposes is compared, a wrong one is refused, and so is one whose call fails.
pub(crate) fn matrices_compared() -> Result<(), Failed> {
    let (_alone, stand) = (StandIn::new()?, Stand::of(By::Matrices)?);
    let half = |shape| TensorType { dtype: DType::BF16, shape };
    let (x, dy) = (half(Shape::new(2, 3, 4, 16)), half(Shape::new(2, 3, 4, 24)));
    let op: Op = Conv2dWeightGrad { stride: 1, pad: 0, kernel: 1, bias: false }.into();
    let dw = TensorType::f32(Shape::new(24, 1, 1, 16));
    let io = Io { inputs: vec![x, dy], outputs: vec![dw] };
    let product = Product { key: key(&op, &io), op, io, flops: 1 };
    let refused = || -> Result<Vec<(u32, String)>, Failed> {
        let mut session = open(OpenOptions::default())?;
        session.set_target(Target { half: Some(Half::Bf16), ..session.target() });
        let effort =
            Effort { budget: Duration::from_secs(600), sweep: true, candidates: "of matrices" };
        let products = [product.clone()];
        let report = tune_products(&mut session, &products, &mut Memory::nowhere(), effort)?;
        let tried = report.trials.into_iter().filter_map(|t| match t.variant {
            Variant::Library { of: By::Matrices, rank } => Some((rank, t.refused)),
            _ => None,
        });
        let tried: Vec<_> = tried.collect();
        check(tried.len() == 2, || format!("{tried:?}"))?;
        Ok(tried.into_iter().filter_map(|(rank, why)| Some((rank, why?))).collect())
    };
    check(refused()?.is_empty(), || "a right proposal was refused".into())?;
    // The first two of the stand-in's proposals are passed over.
    for rank in [0, 1] {
        stand.set(rank as c_int + 2, "", 0)?;
        let said = refused()?;
        let one = matches!(&said[..], [(r, why)] if *r == rank && why.contains("differs"));
        check(one, || format!("proposal {rank}: {said:?}"))?;
    }
    stand.set(-1, "cublasLtMatmul", 1)?;
    let said = refused()?;
    let named = ["cuBLASLt", "cublasLtMatmul", "CUBLAS_STATUS_EXECUTION_FAILED", "conv2d"];
    let one = matches!(&said[..], [(0, why)] if named.iter().all(|n| why.contains(n)));
    check(one, || format!("{said:?}"))
}

/// Every call of the library of matrices fails once: one error that names it, and nothing is left.
pub(crate) fn every_call_of_matrices_fails_once() -> Result<(), Failed> {
    let (stand_in, stand) = (StandIn::new()?, Stand::of(By::Matrices)?);
    let wanted = Variant::Library { of: By::Matrices, rank: 1 };
    let scenario = || -> Result<(), String> {
        let mut session =
            open(OpenOptions::default()).map_err(|e| e.message().unwrap_or_default().to_owned())?;
        trial(&one_tap()[0], &mut session, wanted).map(drop)
    };
    scenario()?;
    for (call, most) in [
        ("cublasLtCreate", 1),
        ("cublasLtMatmulDescCreate", 1),
        ("cublasLtMatmulDescSetAttribute", 4),
        ("cublasLtMatrixLayoutCreate", 4),
        ("cublasLtMatmulPreferenceCreate", 1),
        ("cublasLtMatmulPreferenceSetAttribute", 6),
        ("cublasLtMatmulAlgoGetHeuristic", 1),
        ("cublasLtMatmul", 1),
    ] {
        for nth in 1..=most {
            stand_in.fail("", 0, 0)?;
            stand.set(-1, call, nth)?;
            let said = scenario().err().unwrap_or_default();
            let named = said.contains(call) && said.contains("CUBLAS_STATUS_EXECUTION_FAILED");
            check(named, || format!("{call} {nth}: `{said}`"))?;
            let (held, library) = (stand_in.counts()?["held"], stand.held()?);
            check(held == 0 && library == 0, || {
                format!("{call} {nth}: {held} and {library} objects are left")
            })?;
        }
    }
    stand.set(-1, "", 0)
}

//! The device `cuda` without a GPU: on a driver and a compiler that run on the processor
//! (`cuda/driver.cpp`, `cuda/compiler.cpp`), which this test builds and then starts itself with.
//!
//! Whole runs of the program, calls of the driver counted, and every call made to fail.

#[path = "cuda/compiler.rs"]
#[allow(dead_code, reason = "a part is used here")]
mod compiler;
#[path = "cuda/products.rs"]
mod products;
#[path = "cuda/proposals.rs"]
mod proposals;
#[path = "cuda/runs.rs"]
mod runs;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aavae::check::{name, trial, variants};
use aavae::device::cuda::{CUDNN, Cuda, FOLDERS, OpenOptions};
use aavae::device::{Data, DeviceError, Session};
use aavae::ir::Graph;
use aavae::ir::resident::{ImageSet, gather};
use aavae::method::{Method, Model, Training, training};
use aavae::ops::{
    Conv2d, Conv2dWeightGrad, Dot, Emit, Io, Op, Relu, Scale, StepUniforms, Target, Variant, key,
};
use aavae::shader::cuda::{STATIC, TARGET};
use aavae::tensor::{DType, Half, Shape, TensorType};
use aavae::tune::{Effort, Memory, Product, tune_products};
use compiler::{HOST, cache, library};
use libloading::Library;
use libtest_mimic::{Arguments, Failed, Trial};
use support::check;

/// The stand-ins' files and texts, under the names that are looked for.
const DRIVER: (&str, &str) = ("libcuda.so.1", include_str!("cuda/driver.cpp"));
const COMPILER: (&str, &str) = ("libnvrtc.so.13", include_str!("cuda/compiler.cpp"));
const PRODUCTS: (&str, &str) =
    ("libcudnn.so.9", concat!(include_str!("cuda/library.h"), include_str!("cuda/cudnn.cpp")));
const BLAS: (&str, &str) =
    ("libcublasLt.so.13", concat!(include_str!("cuda/library.h"), include_str!("cuda/cublas.cpp")));
const ALL: [(&str, &str); 4] = [DRIVER, COMPILER, PRODUCTS, BLAS];

/// A folder of some of the stand-ins.
fn build(folder: &str, wanted: &[(&str, &str)]) -> Result<PathBuf, String> {
    let at = cache(folder);
    std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    for (name, text) in wanted {
        let named = format!("-Wl,-soname,{name}");
        let made = library("stand-in-objects", text, &["-O1", "-ldl", &named])?;
        let path = at.join(name);
        if std::fs::read(&made).ok() != std::fs::read(&path).ok() {
            let part = at.join(format!("{name}.{}", std::process::id()));
            std::fs::copy(&made, &part)
                .and_then(|_| std::fs::rename(&part, &path))
                .map_err(|e| e.to_string())?;
        }
    }
    std::fs::write(at.join("host.h"), HOST).map_err(|e| e.to_string())?;
    Ok(at)
}

/// A command that finds the stand-ins and nothing else of CUDA.
fn with_stand_ins(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    let objects = cache("stand-in-objects");
    command.env(FOLDERS, folder).env("STAND_IN_INCLUDE", folder).env("STAND_IN_OBJECTS", &objects);
    command.env("XDG_CACHE_HOME", cache("stand-in-cache")).env("NODEVICE_SELECT", "1");
    command.env(CUDNN, "1");
    for variable in ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"] {
        command.env_remove(variable);
    }
    command
}

/// The program with the stand-ins of a folder.
fn aavae(folder: &Path, line: &str, set: &[(&str, &str)]) -> Result<Output, Failed> {
    let mut command = with_stand_ins(Path::new(env!("CARGO_BIN_EXE_aavae")), folder);
    command.args(line.split_whitespace()).envs(set.iter().copied());
    Ok(command.output()?)
}

fn succeeded(out: &Output) -> Result<serde_json::Value, Failed> {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    check(out.status.success() && !stderr.contains("panicked"), || stderr.clone())?;
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// One `error:` line that holds every text, exit code 1, no panic.
fn failed(out: &Output, says: &[&str], hint: &str) -> Result<(), Failed> {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let errors: Vec<_> = stderr.lines().filter(|l| l.starts_with("error:")).collect();
    let one = errors.len() == 1 && says.iter().all(|s| errors[0].contains(s));
    let quiet =
        out.status.code() == Some(1) && !stderr.contains("panicked") && out.stdout.is_empty();
    let hinted = stderr.lines().any(|l| l.starts_with("hint:") && l.contains(hint));
    check(one && quiet && (hint.is_empty() || hinted), || {
        format!("{says:?} and `{hint}` expected of {:?}: {stderr}", out.status)
    })
}

/// The stand-in driver of this process; its calls are everyone's, so one trial at a time uses it.
struct StandIn {
    library: Library,
    _alone: MutexGuard<'static, ()>,
}

impl StandIn {
    fn new() -> Result<Self, Failed> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = std::env::var_os(FOLDERS).ok_or("no stand-in")?;
        let path = Path::new(&folder).join("libcuda.so.1");
        #[allow(unsafe_code, reason = "a library that this test has built")]
        // SAFETY: it is loaded already or runs no code when it is.
        let library = unsafe { Library::new(path) }?;
        let stand_in = Self { library, _alone: alone };
        stand_in.fail("", 0, 0)?;
        stand_in.edges(true)?;
        Ok(stand_in)
    }

    /// Whether kernels of a graph wait for those that they name.
    fn edges(&self, wait: bool) -> Result<(), Failed> {
        #[allow(unsafe_code, reason = "a function of driver.cpp")]
        // SAFETY: it has this type.
        unsafe {
            self.library.get::<unsafe extern "C" fn(bool)>(b"stand_in_edges")?(wait);
        }
        Ok(())
    }

    /// Forgets all counts; call `nth` of a function then returns `code`.
    fn fail(&self, name: &str, nth: u64, code: i32) -> Result<(), Failed> {
        type Fail = unsafe extern "C" fn(*const std::ffi::c_char, u64, i32);
        let name = std::ffi::CString::new(name)?;
        #[allow(unsafe_code, reason = "a function of driver.cpp")]
        // SAFETY: it has this type, and copies the name.
        unsafe {
            self.library.get::<Fail>(b"stand_in_fail")?(name.as_ptr(), nth, code);
        }
        Ok(())
    }

    /// Calls of each function since, `uploaded`: bytes; and `held`: what was not freed.
    fn counts(&self) -> Result<BTreeMap<String, u64>, Failed> {
        type Counts = unsafe extern "C" fn() -> *const std::ffi::c_char;
        #[allow(unsafe_code, reason = "a function of driver.cpp")]
        // SAFETY: it has this type, and its string lives until the next call.
        let text = unsafe {
            let text = self.library.get::<Counts>(b"stand_in_counts")?();
            std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
        };
        let pair = |line: &str| {
            Some((line.split_once(' ')?.0.into(), line.split_once(' ')?.1.parse().ok()?))
        };
        Ok(text.lines().filter_map(pair).collect())
    }
}

fn ops() -> Result<(), Failed> {
    let _alone = StandIn::new()?;
    let mut session = Session::from(Cuda::open(0, OpenOptions::default())?);
    let wanted = ["conv2d", "conv2d_weight_grad", "batch_norm", "adam", "decode", "nt_xent"];
    let mut ran = 0;
    for op in wanted {
        let case = aavae::ops::all_cases().into_iter().find(|c| c.op.name() == op);
        let Some(case) = case else { continue };
        trial(&case, &mut session, variants(&case, &TARGET)[0])
            .map_err(|e| format!("{}: {e}", name(&case)))?;
        ran += 1;
    }
    check(ran >= 5, || format!("only {ran} ops"))
}

/// Tiles that need more shared memory than a kernel may have by itself: the launch brings it.
fn large_tiles() -> Result<(), Failed> {
    let stand_in = StandIn::new()?;
    let mut session = Session::from(Cuda::open(0, OpenOptions::default())?);
    session.set_target(Target { half: Some(Half::F16), ..session.target() });
    let target = session.target();
    let large = |v: &Variant| v.requirements().workgroup_memory > STATIC;
    let mut ran = Vec::new();
    for op in ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"] {
        let mut cases = aavae::ops::all_cases();
        cases.retain(|c| c.op.name() == op && c.half == Some(Half::F16));
        let mut found = cases.into_iter().filter_map(|case| {
            let variant = variants(&case, &target).into_iter().find(large)?;
            Some((case, variant))
        });
        let (case, variant) = found.next().ok_or_else(|| format!("no large tile of {op}"))?;
        trial(&case, &mut session, variant).map_err(|e| format!("{op}, {variant}: {e}"))?;
        ran.push((case, variant));
    }
    let calls = stand_in.counts()?["cuFuncSetAttribute"];
    check(calls == 6, || format!("{calls} attributes of three kernels"))?;
    drop(session);
    stand_in.fail("cuFuncSetAttribute", 1, 1)?;
    let mut session = Session::from(Cuda::open(0, OpenOptions::default())?);
    session.set_target(target);
    let refused = trial(&ran[0].0, &mut session, ran[0].1);
    check(refused.as_ref().is_err_and(|e| e.contains("cuFuncSetAttribute")), || {
        format!("{refused:?}")
    })
}

/// The tuner takes every candidate of half products for right, copied tiles too.
fn tunes() -> Result<(), Failed> {
    let _alone = StandIn::new()?;
    let mut session = Session::from(Cuda::open(0, OpenOptions::default())?);
    session.set_target(Target { half: Some(Half::F16), ..session.target() });
    let half = |shape| TensorType { dtype: DType::F16, shape };
    let (map, weights) = (half(Shape::new(2, 3, 4, 64)), TensorType::f32(Shape::new(64, 3, 3, 64)));
    let product = |op: Op, inputs: [TensorType; 2], output| {
        let io = Io { inputs: inputs.into(), outputs: vec![output] };
        Product { key: key(&op, &io), op, io, flops: 1 }
    };
    let weight_grad = Conv2dWeightGrad { stride: 1, pad: 1, kernel: 3, bias: false };
    let products = [
        product(Conv2d::new(1, 1).into(), [map, weights], map),
        product(weight_grad.into(), [map, map], weights),
    ];
    let effort = Effort::within(Duration::from_secs(600));
    let report = tune_products(&mut session, &products, &mut Memory::nowhere(), effort)?;
    let wrong: Vec<_> = report.trials.iter().filter(|t| t.refused.is_some()).collect();
    check(wrong.is_empty() && report.chosen == 2, || format!("{wrong:?} of {report:?}"))?;
    for product in &products {
        let copied = report.trials.iter().filter(|t| t.key == product.key);
        let copied = copied.filter(|t| t.variant.requirements().copies).count();
        check(copied > 0, || format!("no copied tile of {}", product.key))?;
    }
    Ok(())
}

/// Four steps of a model on an empty session: scalars, then all states, as bits.
fn four_steps(session: &mut Session, model: &Model) -> Result<Vec<Vec<u32>>, Failed> {
    session.allocate(&model.graph.layout);
    let id = support::load(session, model, true)?;
    support::reset(session, model, 7)?;
    support::fill(session, id)?;
    let mut all = support::run(session, id, 7, 0..4, 1e-3)?;
    all.extend(support::states(session)?);
    Ok(all)
}

/// Four steps of AAVAE, on a device opened so.
fn train(options: OpenOptions) -> Result<(Session, Vec<Vec<u32>>), Failed> {
    let model = training(&support::config(Method::Aavae, 16, 2), Training::default());
    let mut session = Session::from(Cuda::open(0, options)?);
    let all = four_steps(&mut session, &model)?;
    Ok((session, all))
}

fn graphs() -> Result<(), Failed> {
    let stand_in = StandIn::new()?;
    let (session, eager) = train(OpenOptions { graphs: false })?;
    drop(session);
    let counts = stand_in.counts()?;
    check(!counts.contains_key("cuGraphLaunch"), || "a graph where none was wanted".into())?;
    check(counts["held"] == 0, || format!("{} objects are left", counts["held"]))?;
    stand_in.fail("", 0, 0)?;
    let (session, replayed) = train(OpenOptions::default())?;
    let counts = stand_in.counts()?;
    check(counts["cuGraphLaunch"] == 3, || format!("{counts:?}"))?;
    check(counts["cuGraphInstantiateWithFlags"] == 1, || format!("{counts:?}"))?;
    check(eager == replayed, || "a graph gives other bits than its kernels one by one".into())?;
    drop(session);
    let held = stand_in.counts()?["held"];
    check(held == 0, || format!("{held} objects are left"))?;
    // Of kernels that may run the last goes first, so that an edge which is missing shows.
    stand_in.edges(false)?;
    match train(OpenOptions::default()) {
        Ok((_, hasty)) if hasty == eager => Err("kernels of a graph ran in plan order".into()),
        // Other losses, such as are no numbers, or an index from what has not been written yet.
        Ok(_) => Ok(()),
        Err(error) => match error.message() {
            Some(m) if m.contains("NaN") || m.contains("CUDA_ERROR_LAUNCH_FAILED") => Ok(()),
            _ => Err(error),
        },
    }
}

/// Steps of AAVAE on two of seven images: with these on the device a step uploads which ones it
/// takes, and its uniform; else their pixels. The bits are the same.
fn images_stay() -> Result<(), Failed> {
    const SIDE: usize = 16;
    const UNIFORM: usize = size_of::<StepUniforms>();
    let stand_in = StandIn::new()?;
    let model = training(&support::config(Method::Aavae, SIDE, 2), Training::default());
    let pixels = support::pixels(0..7, SIDE);
    let bytes: Vec<u8> = pixels.iter().flat_map(|p| p.to_le_bytes()[..3].to_vec()).collect();
    let words = |b: &[u8]| b.iter().rev().fold(0, |word, b| word << 8 | u32::from(*b));
    let packed: Vec<u32> = bytes.chunks(4).map(words).collect();
    let set = ImageSet::new(7, SIDE, 4 << 10).ok_or("a set")?;
    check(set.parts == [5, 2], || format!("{set:?}"))?;
    let taken = [[3, 6], [0, 5], [4, 4], [6, 1]];
    let mut found = Vec::new();
    for resident in [false, true] {
        let mut session = Session::from(Cuda::open(0, OpenOptions::default())?);
        let graph = model.graph.clone();
        let graph = if resident { gather(graph, &set) } else { graph };
        session.allocate(&graph.layout);
        session.keep_images(&set.types())?;
        session.write_images(0, 0, &packed[..5 * set.words()])?;
        session.write_images(1, 0, &packed[5 * set.words()..])?;
        let id = session.load(session.lower("train", &graph))?;
        support::reset(&mut session, &model, 7)?;
        for (step, images) in (0..).zip(taken) {
            let of = |i: u32| &pixels[i as usize * SIDE * SIDE..][..SIDE * SIDE];
            stand_in.fail("", 0, 0)?;
            let data = if resident { images.to_vec() } else { images.map(of).concat() };
            session.upload(id, 0, Data::U32(&data))?;
            session.run(id, &support::uniforms(7, step, 1e-3))?;
            let (counts, bytes) = (stand_in.counts()?, 4 * data.len() + UNIFORM);
            let two = counts["cuMemcpyHtoDAsync_v2"] == 2 && counts["uploaded"] == bytes as u64;
            check(two, || format!("step {step} uploads {bytes} bytes, not {counts:?}"))?;
            let graph = counts.get("cuGraphLaunch").copied().unwrap_or(0);
            check(graph == u64::from(step > 0), || format!("step {step}: {counts:?}"))?;
        }
        let scalars = session.drain(id)?;
        let bits = |(_, row): &(u32, Vec<f32>)| row.iter().map(|x| x.to_bits()).collect();
        let mut all: Vec<Vec<u32>> = scalars.iter().map(bits).collect();
        all.extend(support::states(&mut session)?);
        found.push(all);
    }
    check(found[0] == found[1], || "images that stay give other bits than uploads".into())
}

/// A small graph with an input, a state and a scalar.
fn small() -> Graph {
    let mut g = Graph::default();
    let x = g.input("x", TensorType::f32(Shape::new(2, 3, 5, 4)));
    g.label("small");
    let y = g.emit1(Relu.into(), &[x]);
    let y = g.emit1(Scale { a: 2.0 }.into(), &[y]);
    g.output("y", y);
    let dot = g.emit1(Dot.into(), &[y, y]);
    g.output("sum", dot);
    g
}

/// Opens a device, runs a plan in every way, and lets all of it go.
fn scenario(steps: u32) -> Result<Vec<f32>, DeviceError> {
    let g = small();
    let mut session = Session::from(Cuda::open(0, OpenOptions::default())?);
    session.allocate(&g.layout);
    let id = session.load(session.lower("small", &g))?;
    let x: Vec<f32> = (0..120).map(|i| i as f32 - 60.0).collect();
    for step in 0..steps {
        session.upload(id, 0, Data::F32(&x))?;
        session.run(id, &StepUniforms { step, ..StepUniforms::default() })?;
    }
    session.time_op(id, 0)?;
    session.drain(id)?;
    let y = session.read(id, 0)?;
    session.reset();
    Ok(y)
}

fn steps_do_not_allocate() -> Result<(), Failed> {
    let stand_in = StandIn::new()?;
    let mut counts = Vec::new();
    for steps in [10, 30] {
        stand_in.fail("", 0, 0)?;
        let y = scenario(steps)?;
        check(y[119] == 118.0 && y[0] == 0.0, || format!("{y:?}"))?;
        counts.push(stand_in.counts()?);
    }
    let (few, many) = (&counts[0], &counts[1]);
    for (name, n) in many {
        // An upload, a uniform, a graph and an event a step, and waiting for the one before the
        // last.
        let free = ["cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuCtxSetCurrent", "cuGraphLaunch"];
        let waits = ["cuEventQuery", "cuEventSynchronize"];
        if name == "uploaded" || free.contains(&name.as_str()) || waits.contains(&name.as_str()) {
            continue;
        }
        check(few.get(name) == Some(n), || {
            format!("{name}: {n} calls, with 20 steps less {few:?}")
        })?;
    }
    check(many["cuGraphLaunch"] == 29, || format!("{many:?}"))?;
    check(many["held"] == 0, || format!("{} objects are left", many["held"]))
}

/// Functions that only clean up: their failure is nobody's loss.
fn cleans(name: &str) -> bool {
    ["Destroy", "Free", "Release", "Unload"].iter().any(|part| name.contains(part))
}

fn every_call_fails_once() -> Result<(), Failed> {
    let stand_in = StandIn::new()?;
    scenario(4)?;
    let counts = stand_in.counts()?;
    let mut tried = 0;
    for (name, n) in counts.iter().filter(|c| c.0.starts_with("cu")) {
        for nth in [1, n.div_ceil(2), *n] {
            // CUDA_ERROR_INVALID_VALUE: of a call, not of the context.
            stand_in.fail(name, nth, 1)?;
            // What a failure to clean up has left before is not this one's.
            let left = stand_in.counts()?["held"];
            let ran = scenario(4);
            let held = stand_in.counts()?["held"] - left;
            match ran {
                Err(
                    DeviceError::Driver { message, .. } | DeviceError::NotFound { message, .. },
                ) => {
                    check(message.contains(name.as_str()), || format!("{name} {nth}: {message}"))?;
                }
                Err(other) => return Err(format!("{name} {nth}: {other:?}").into()),
                // Making the device current and waiting also happen while cleaning up.
                Ok(_)
                    if cleans(name)
                        || matches!(&name[..], "cuCtxSetCurrent" | "cuStreamSynchronize") => {}
                Ok(_) => return Err(format!("{name} {nth} failed and nobody noticed").into()),
            }
            check(held == 0 || cleans(name), || format!("{name} {nth}: {held} objects are left"))?;
            tried += 1;
        }
    }
    check(tried > 80, || format!("only {tried} failures"))
}

fn errors_have_kinds() -> Result<(), Failed> {
    let stand_in = StandIn::new()?;
    stand_in.fail("cuMemAlloc_v2", 3, 2)?;
    let ran = scenario(4);
    check(matches!(ran, Err(DeviceError::OutOfMemory { .. })), || format!("{ran:?}"))?;
    for (call, nth, code) in
        [("cuGraphLaunch", 2, 700), ("cuEventSynchronize", 1, 719), ("cuLaunchKernel", 1, 999)]
    {
        stand_in.fail(call, nth, code)?;
        let ran = scenario(4);
        let lost = matches!(&ran, Err(DeviceError::Lost { message, .. }) if message.contains(call));
        check(lost, || format!("{call}: {ran:?}"))?;
    }
    // Machine code that was kept and is broken is made anew.
    stand_in.fail("cuModuleLoadData", 1, 200)?;
    scenario(4)?;
    stand_in.fail("cuLaunchKernel", 2, 1)?;
    let said = scenario(4).err().map(|e| e.to_string()).unwrap_or_default();
    check(said.contains("small:scale (scale)"), || format!("no op and kernel in `{said}`"))?;
    let other = Cuda::open(7, OpenOptions::default()).err().map(|e| e.to_string());
    check(other.as_ref().is_some_and(|e| e.contains("no CUDA device 7")), || format!("{other:?}"))
}

fn main() -> ExitCode {
    if let Some(code) = proposals::worker() {
        return code;
    }
    let mut args = Arguments::from_args();
    // The trials of this process share one stand-in and its counts.
    args.test_threads = Some(1);
    let is_stand_in = std::env::var_os("STAND_IN_INCLUDE").is_some();
    if !is_stand_in && !args.list {
        let started = build("stand-in", &ALL).map_err(Failed::from).and_then(|folder| {
            let mut command = with_stand_ins(&std::env::current_exe()?, &folder);
            Ok(command.args(std::env::args_os().skip(1)).status()?)
        });
        return match started {
            Ok(status) => status.code().map_or(ExitCode::FAILURE, |c| ExitCode::from(c as u8)),
            Err(e) => {
                eprintln!("{}", e.message().unwrap_or_default());
                ExitCode::FAILURE
            }
        };
    }
    let trials = vec![
        Trial::test("ops equal the reference", ops),
        Trial::test("large tiles get their memory", large_tiles),
        Trial::test("every candidate of a half product is right", tunes),
        Trial::test("a library equals the reference", products::trials),
        Trial::test("a graph equals a library's calls", products::graphs),
        Trial::test("a library's proposals are compared", products::compared),
        Trial::test("a library's call is timed as a graph", products::timed),
        Trial::test("a step by a library is compared", products::steps),
        Trial::test("every call of a library fails once", products::every_call_fails_once),
        Trial::test("proposals of matrices are compared", products::matrices_compared),
        Trial::test(
            "every call of a library of matrices fails once",
            products::every_call_of_matrices_fails_once,
        ),
        Trial::test("cuDNN proposes something for every product", || {
            proposals::every_product(&build("stand-in-driver", &[DRIVER])?)
        })
        .with_ignored_flag(std::env::var_os(proposals::PACKAGES).is_none()),
        Trial::test("a graph equals its kernels", graphs),
        Trial::test("a step uploads which images it takes", images_stay),
        Trial::test("steps do not allocate", steps_do_not_allocate),
        Trial::test("every call fails once", every_call_fails_once),
        Trial::test("errors have kinds", errors_have_kinds),
        Trial::test("pretrain, resume and probe", runs::pretrain),
        Trial::test("pretrain by a library and resume", runs::pretrain_by_a_library),
        Trial::test(
            "a failing run keeps its checkpoints",
            runs::a_failing_run_keeps_its_checkpoints,
        ),
        Trial::test("missing libraries are errors", runs::missing_libraries),
    ];
    libtest_mimic::run(&args, trials).exit_code()
}

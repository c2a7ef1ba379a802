//! Every kernel of the trials and of a ResNet-18's step by NVIDIA's own compiler, which needs no
//! GPU.
//!
//! The compiler comes from PyPI (`nvidia-cuda-nvrtc`) into `target/tmp/cuda`. Where it cannot be
//! had the trials show as *ignored*; `REQUIRE_NVRTC=1` turns that into a failure. Registers,
//! spills, stack and shared memory of each shader file stand in `usage.txt`; after a deliberate
//! change `UPDATE_GOLDENS=1 cargo test --test cuda -- nvrtc` writes it anew and fails, so that the
//! variable cannot stay set.
//!
//! Two versions for two architectures compile a thousand kernels in a quarter of an hour of a core.
//! The table says of which texts it is, by a digest: while they are the same, each kernel is
//! compiled by one of the four, and may take no more than the table says. `NVRTC_ALL=1` asks all
//! four.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use aavae::method::{Training, training};
use aavae::ops::{Variant, all_cases};
use aavae::plan::{Options, Plan, lower};
use aavae::run::settings::RunConfig;
use aavae::shader::cuda::{CudaKernel, PRELUDE, translate};
use aavae::shader::source;
use aavae::tensor::Half;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::compiler::{cache, hash};
use crate::support::check;

#[path = "../../src/device/cuda/nvrtc.rs"]
#[allow(dead_code, reason = "the device's own file")]
mod nvrtc;

/// The first of CUDA 13, which data-centre images hold, and the newest when this was written.
const VERSIONS: [&str; 2] = ["13.0.88", "13.5.37"];
/// A100 and H100.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];
/// Kernels that are compiled together.
const BATCH: usize = 16;
/// Bytes of shared memory that a launch may ask of every GPU since 8.0.
const SHARED: u32 = 99 << 10;
/// Bytes that a kernel of tensor cores may spill which no step takes before it is measured: a few
/// words, stored and loaded.
const COUNTERS: u32 = 64;
/// Share of a step's FLOPs or bytes above which a kernel may not spill.
const HEAVY: f64 = 0.01;
/// Stands for a file's name: kernels of `coop.rs`, which count as heavy.
const COOPERATIVE: &str = "cooperative (tests)";
/// Set in the processes that compile: the library. Two copies of it do not share one process.
const WORKER: &str = "AAVAE_TEST_NVRTC";

/// What the compiler says of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    registers: u32,
    spilled: u32,
    stack: u32,
    shared: u32,
}

impl Usage {
    fn most(self, other: Self) -> Self {
        Self {
            registers: self.registers.max(other.registers),
            spilled: self.spilled.max(other.spilled),
            stack: self.stack.max(other.stack),
            shared: self.shared.max(other.shared),
        }
    }
}

/// A process that compiles: the arguments are a list of texts, options' architecture and where the
/// log goes.
pub(crate) fn worker() -> Option<ExitCode> {
    let library = std::env::var_os(WORKER)?;
    let work = || -> Result<(), String> {
        let nvrtc = nvrtc::Nvrtc::open(Path::new(&library))?;
        let list = std::env::args().nth(1).ok_or("no list")?;
        let list = std::fs::read_to_string(&list).map_err(|e| format!("{list}: {e}"))?;
        for line in list.lines() {
            let parts: Vec<&str> = line.split('\t').collect();
            let [text, architecture, log] = parts[..] else { return Err(line.into()) };
            let text = std::fs::read_to_string(text).map_err(|e| format!("{text}: {e}"))?;
            let option = format!("--gpu-architecture={architecture}");
            let options = [&option, "--std=c++17", "-default-device", "--ptxas-options=-v"];
            let made = nvrtc.compile(&text, &options)?;
            let part = format!("{log}.part");
            std::fs::write(&part, made.log).map_err(|e| format!("{part}: {e}"))?;
            std::fs::rename(&part, log).map_err(|e| format!("{log}: {e}"))?;
        }
        Ok(())
    };
    Some(match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    })
}

fn library(version: &str) -> PathBuf {
    cache("nvrtc").join(version).join("nvidia/cu13/lib/libnvrtc.so.13")
}

/// Installs a version's wheel.
fn fetch(version: &str) -> Result<(), String> {
    if library(version).exists() {
        return Ok(());
    }
    let folder = cache("nvrtc").join(version);
    let wheel = format!("nvidia-cuda-nvrtc=={version}");
    let out = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--target".as_ref(), folder.as_os_str(), wheel.as_ref()])
        .output()
        .map_err(|e| format!("python3: {e}"))?;
    if library(version).exists() {
        return Ok(());
    }
    Err(format!("pip: {}", String::from_utf8_lossy(&out.stderr)))
}

/// The default run on a large GPU.
fn resnet18() -> Plan {
    let config = RunConfig { batch_size: 256, ..RunConfig::default() };
    let model = training(&config.model([0.5; 3], [0.25; 3]), Training::default());
    lower("train", &model.graph, Options::new(crate::target()))
}

/// A kernel that is compiled.
struct Subject {
    file: &'static str,
    wgsl: String,
    /// Share of a step's FLOPs or bytes, whichever is larger.
    share: f64,
}

/// All kernels, by file, and those that try cooperative matrices; [`seal`] of them.
fn subjects() -> &'static (Vec<Subject>, Result<String, String>) {
    static SUBJECTS: OnceLock<(Vec<Subject>, Result<String, String>)> = OnceLock::new();
    SUBJECTS.get_or_init(|| {
        let all = collect();
        let seal = seal(&all);
        (all, seal)
    })
}

fn collect() -> Vec<Subject> {
    let step = resnet18();
    let (flops, bytes) = (step.flops() as f64, step.ops.iter().map(|s| s.bytes()).sum::<usize>());
    let mut all: BTreeMap<(&'static str, String), [f64; 2]> = BTreeMap::new();
    for s in &step.ops {
        let texts: BTreeSet<_> =
            s.dispatches.iter().map(|d| (d.kernel.file, source(&d.kernel))).collect();
        for text in texts {
            let sums = all.entry(text).or_default();
            sums[0] += s.flops as f64 / flops;
            sums[1] += s.bytes() as f64 / bytes as f64;
        }
    }
    for case in all_cases() {
        // Of a half product the tensor cores' tiles: the others differ from f32's in conversions.
        let differs =
            |v: &Variant| case.half.is_none() || matches!(v, Variant::Coop(_) | Variant::Only);
        for variant in crate::tiles(&case).into_iter().filter(differs) {
            let plan = crate::plan(&case, variant);
            for d in plan.ops.iter().flat_map(|s| &s.dispatches) {
                all.entry((d.kernel.file, source(&d.kernel))).or_default();
            }
        }
    }
    for layout in crate::coop::layouts() {
        for half in Half::ALL {
            all.insert((COOPERATIVE, layout.wgsl(*half)), [1.0; 2]);
        }
    }
    let subject = |((file, wgsl), [a, b]): ((&'static str, String), [f64; 2])| Subject {
        file,
        wgsl,
        share: a.max(b),
    };
    all.into_iter().map(subject).collect()
}

/// The numbers of a log by kernel.
fn parse(log: &str) -> BTreeMap<String, Usage> {
    let mut found = BTreeMap::new();
    let mut current: Option<String> = None;
    let number = |text: &str, unit: &str| {
        let before = text.split(unit).next().unwrap_or("");
        before.rsplit([' ', ',']).find(|w| !w.is_empty()).and_then(|w| w.parse().ok()).unwrap_or(0)
    };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().map(str::to_owned);
        }
        let Some(name) = &current else { continue };
        let usage: &mut Usage = found.entry(name.clone()).or_default();
        if line.contains("bytes stack frame") {
            usage.stack = number(line, " bytes stack frame");
            usage.spilled =
                number(line, " bytes spill stores") + number(line, " bytes spill loads");
        } else if line.contains("Used ") {
            usage.registers = number(line, " registers");
            if line.contains(" bytes smem") {
                usage.shared = number(line, " bytes smem");
            }
        }
    }
    found
}

/// What is compiled together: kernels of one file.
fn batches(subjects: &[Subject]) -> impl Iterator<Item = &[Subject]> {
    subjects.chunk_by(|a, b| a.file == b.file).flat_map(|same| same.chunks(BATCH))
}

/// The text of a kernel as it is compiled, behind the prelude.
fn translated(subject: &Subject) -> Result<(String, CudaKernel), String> {
    let name = format!("k{}", hash(&subject.wgsl));
    let kernel = translate(&subject.wgsl, &name).map_err(|e| format!("{}: {e}", subject.file))?;
    Ok((name, kernel))
}

/// Says of which texts a table is.
fn seal(subjects: &[Subject]) -> Result<String, String> {
    let mut all = PRELUDE.to_owned();
    for subject in subjects {
        all += &translated(subject)?.1.text;
    }
    Ok(format!("{} texts, {}", subjects.len(), hash(&all)))
}

/// Compiles kernels for an architecture; the numbers by kernel.
fn compile(
    version: &str,
    architecture: &str,
    batches: &[&[Subject]],
) -> Result<BTreeMap<String, Usage>, String> {
    let folder = cache("cubins");
    let io = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::create_dir_all(&folder).map_err(|e| io(&folder, e))?;
    let (mut list, mut logs, mut launched) = (String::new(), Vec::new(), Vec::new());
    for batch in batches {
        let mut text = PRELUDE.to_owned();
        for subject in *batch {
            let (name, kernel) = translated(subject)?;
            text += &kernel.text;
            launched.push((name, kernel.dynamic()));
        }
        let path = folder.join(format!("{}.cu", hash(&text)));
        let log = folder.join(format!("{}.{version}.{architecture}.log", hash(&text)));
        if !log.exists() {
            std::fs::write(&path, &text).map_err(|e| io(&path, e))?;
            writeln!(list, "{}\t{architecture}\t{}", path.display(), log.display()).ok();
        }
        logs.push(log);
    }
    if !list.is_empty() {
        let path = folder.join(format!("{version}.{architecture}.{}.list", std::process::id()));
        std::fs::write(&path, list).map_err(|e| io(&path, e))?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        let out = command.arg(&path).env(WORKER, library(version)).output();
        let out = out.map_err(|e| e.to_string())?;
        std::fs::remove_file(&path).ok();
        if !out.status.success() {
            return Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
        }
    }
    let mut all = BTreeMap::new();
    for log in logs {
        all.extend(parse(&std::fs::read_to_string(&log).map_err(|e| io(&log, e))?));
    }
    // The compiler knows only what a kernel declares, none of it where the launch brings it.
    for (name, bytes) in launched {
        all.entry(name).or_default().shared += bytes;
    }
    Ok(all)
}

/// What no kernel may take.
fn limits(batches: &[&[Subject]], usage: &BTreeMap<String, Usage>) -> Result<(), Failed> {
    for subject in batches.iter().copied().flatten() {
        let name = format!("k{}", hash(&subject.wgsl));
        let u = usage.get(&name).ok_or_else(|| format!("{}: no numbers", subject.file))?;
        let (file, share) = (subject.file, subject.share * 100.0);
        check(u.registers > 0, || format!("{file}: no registers"))?;
        check(u.shared <= SHARED, || format!("{file}: {} bytes of shared memory", u.shared))?;
        // Sums of tensor cores that do not stay in registers are worth nothing; a counter may
        // leave.
        let heavy = subject.share > HEAVY;
        let most = if heavy { 0 } else { COUNTERS };
        let matrices = file.ends_with("_coop") || file.ends_with("_async");
        check(!(heavy || matrices) || u.spilled <= most, || {
            format!("{file}: {} bytes spilled in {share:.1} % of a step", u.spilled)
        })?;
    }
    Ok(())
}

/// The most that kernels of each file take.
fn table(seal: &str, subjects: &[Subject], by: &[(&str, BTreeMap<String, Usage>)]) -> String {
    let mut text = format!(
        "NVRTC {}: the most that kernels of a file take, of those of the trials and of a \
         ResNet-18's step ({seal})\n\
         {:28}{:>6} kernels registers  spilled    stack   shared\n",
        VERSIONS[0], "file", ""
    );
    for same in subjects.chunk_by(|a, b| a.file == b.file) {
        for (architecture, usage) in by {
            let numbers = same.iter().map(|s| usage[&format!("k{}", hash(&s.wgsl))]);
            let most = numbers.fold(Usage::default(), Usage::most);
            let (file, count) = (same[0].file, same.len());
            let Usage { registers, spilled, stack, shared } = most;
            writeln!(
                text,
                "{file:28}{architecture:>6}{count:8}{registers:10}{spilled:9}{stack:9}{shared:9}"
            )
            .ok();
        }
    }
    text
}

/// The table as it was last written.
fn written() -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/usage.txt");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    (path, text)
}

fn golden(got: &str) -> Result<(), Failed> {
    let (path, want) = written();
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, got)?;
        return Err("the table is written; review it and run again without UPDATE_GOLDENS".into());
    }
    let mut pairs = got.lines().zip(want.lines().chain(std::iter::repeat("")));
    let differs = pairs.find(|(a, b)| a != b);
    let whole = got.lines().count() == want.lines().count();
    check(differs.is_none() && whole, || {
        let (got, want) = differs.unwrap_or(("fewer lines", "more lines"));
        format!("{got}\n{want} is what tests/cuda/usage.txt says; UPDATE_GOLDENS=1 writes it anew")
    })
}

/// No kernel may take more than the table says of its file.
fn within(
    batches: &[&[Subject]],
    architecture: &str,
    of: &BTreeMap<String, Usage>,
) -> Result<(), Failed> {
    let (_, table) = written();
    let rows: BTreeMap<&str, Usage> =
        table.lines().filter_map(|line| row(line, architecture)).collect();
    for subject in batches.iter().copied().flatten() {
        let most = rows.get(subject.file).ok_or_else(|| format!("no row of {}", subject.file))?;
        let found = of[&format!("k{}", hash(&subject.wgsl))];
        let more = || format!("{}: {found:?} on {architecture}, at most {most:?}", subject.file);
        check(most.most(found) == *most, more)?;
    }
    Ok(())
}

/// A row of the table, of an architecture.
fn row<'a>(line: &'a str, architecture: &str) -> Option<(&'a str, Usage)> {
    let (file, rest) = line.split_once(&format!(" {architecture} "))?;
    let mut numbers = rest.split_whitespace().skip(1).map_while(|n| n.parse().ok());
    let mut next = || numbers.next();
    let usage = Usage { registers: next()?, spilled: next()?, stack: next()?, shared: next()? };
    Some((file.trim_end(), usage))
}

fn version(version: &str) -> Result<(), Failed> {
    let (subjects, seal) = subjects();
    let heavy = subjects.iter().filter(|s| s.share > HEAVY).count();
    check(heavy > 10, || format!("only {heavy} kernels are heavy"))?;
    let seal = seal.as_ref().map_err(Clone::clone)?;
    eprintln!("NVRTC {version}: {seal}");
    let asked = ["NVRTC_ALL", "UPDATE_GOLDENS"].iter().any(|v| std::env::var_os(v).is_some());
    let all = asked || !written().1.contains(seal);
    let compilers = VERSIONS.len() * ARCHITECTURES.len();
    let first = VERSIONS.iter().position(|v| *v == version).map_or(0, |v| v * ARCHITECTURES.len());
    let mut by = Vec::new();
    for (turn, architecture) in (first..).zip(ARCHITECTURES) {
        let mine = |(i, _): &(usize, &[Subject])| all || i % compilers == turn;
        let batches: Vec<_> = batches(subjects).enumerate().filter(mine).map(|b| b.1).collect();
        let usage = compile(version, architecture, &batches)?;
        let at = |e: Failed| -> Failed {
            format!("{architecture}: {}", e.message().unwrap_or("")).into()
        };
        limits(&batches, &usage).map_err(at)?;
        // The table is of the first version.
        if !all && version == VERSIONS[0] {
            within(&batches, architecture, &usage)?;
        }
        by.push((architecture, usage));
    }
    let table = all && version == VERSIONS[0];
    if table { golden(&self::table(seal, subjects, &by)) } else { Ok(()) }
}

/// A text that is wrong must not pass, and its error must say where.
fn refuses() -> Result<(), Failed> {
    let folder = cache("cubins");
    std::fs::create_dir_all(&folder)?;
    let [text, list] = ["wrong.cu", "wrong.list"].map(|n| folder.join(n));
    std::fs::write(&text, "extern \"C\" __global__ void k(float* y) { y[0] = x; }")?;
    std::fs::write(
        &list,
        format!("{}\tsm_90\t{}", text.display(), folder.join("wrong").display()),
    )?;
    let mut command = Command::new(std::env::current_exe()?);
    let out = command.arg(&list).env(WORKER, library(VERSIONS[0])).output()?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    check(!out.status.success() && said.contains("\"x\" is undefined"), || said.clone())
}

pub(crate) fn trials(args: &Arguments) -> Vec<Trial> {
    let require = std::env::var_os("REQUIRE_NVRTC").is_some();
    let names = VERSIONS.map(|v| format!("nvrtc {v} compiles every kernel"));
    // Nothing is fetched for a run that asks for other trials.
    let wanted = |name: &str| args.filter.as_ref().is_none_or(|f| name.contains(f.as_str()));
    let mut trials = Vec::new();
    for (v, name) in VERSIONS.into_iter().zip(names) {
        let missing = if args.list || !wanted(&name) { None } else { fetch(v).err() };
        trials.push(match missing {
            None => Trial::test(name, move || version(v)),
            Some(why) => {
                let name = format!("{name} (the wheel cannot be had)");
                Trial::test(name, move || Err(why.into())).with_ignored_flag(!require)
            }
        });
    }
    if library(VERSIONS[0]).exists() || require {
        trials.push(Trial::test("nvrtc refuses a wrong text", refuses));
    }
    trials
}

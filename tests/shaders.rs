//! The shaders, without a device: the embedded table is the folder, every file stands alone, every
//! kernel that any op case or any plan of the networks reaches is valid for baseline WebGPU and can
//! be written as SPIR-V, MSL and HLSL, binds what its dispatch says and no more than a browser
//! allows. No file is unreachable. The host's `StepUniforms` is the shaders' `Step`.
//!
//! If Dawn's `tint` is on the path, it reads every kernel too; otherwise that trial shows as
//! *ignored*.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use aavae::ir::Graph;
use aavae::method::{self, Compare, Method, ModelConfig, Objective, Protocol, Training, Views};
use aavae::model::{Depth, NetConfig, Stem};
use aavae::ops::{Binding, Dispatch, Io, Kernel, StepUniforms, Target, all_cases};
use aavae::optim::{self, Optimizer, Update};
use aavae::plan::{Options, lower};
use aavae::shader::{FILES, file, source};
use libtest_mimic::{Arguments, Failed, Trial};
use naga::valid::{Capabilities, GlobalUse, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess};
use rayon::prelude::*;

/// Baseline WebGPU.
const WORKGROUP_BYTES: u32 = 16 << 10;
const INVOCATIONS: u32 = 256;
const STORAGE_BUFFERS: usize = 8;
/// Fewer distinct kernels than this means that the walk below no longer reaches the networks.
const LEAST_KERNELS: usize = 1500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Uniform,
    Read,
    ReadWrite,
}

/// What a validated kernel declares.
#[derive(Debug)]
struct Reflection {
    bindings: BTreeMap<u32, Access>,
    /// The bindings that are read, and those that are written.
    reads: BTreeSet<u32>,
    writes: BTreeSet<u32>,
    workgroup_size: u32,
    workgroup_bytes: u32,
}

fn uses_subgroups(name: &str) -> bool {
    name.ends_with("_bcast")
}

fn parse(name: &str, text: &str) -> Result<(naga::Module, naga::valid::ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(text)
        .map_err(|e| format!("{name}: {}", e.emit_to_string(text)))?;
    let capabilities =
        if uses_subgroups(name) { Capabilities::SUBGROUP } else { Capabilities::empty() };
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info =
        validator.validate(&module).map_err(|e| format!("{name}: {}", e.emit_to_string(text)))?;
    Ok((module, info))
}

/// Parses, validates and writes in every language; checks the limits; says what the kernel binds.
fn validate(name: &str, text: &str) -> Result<Reflection, String> {
    let (module, info) = parse(name, text)?;
    let subgroups = uses_subgroups(name);
    let failed = |language: &str, e: &dyn std::fmt::Display| format!("{name}: {language}: {e}");

    let spv = naga::back::spv::Options {
        lang_version: if subgroups { (1, 3) } else { (1, 0) },
        ..Default::default()
    };
    let words =
        naga::back::spv::write_vec(&module, &info, &spv, None).map_err(|e| failed("SPIR-V", &e))?;
    let msl = naga::back::msl::Options {
        lang_version: if subgroups { (2, 1) } else { (2, 0) },
        ..Default::default()
    };
    let (metal, _) = naga::back::msl::write_string(&module, &info, &msl, &Default::default())
        .map_err(|e| failed("MSL", &e))?;
    // Wave intrinsics came with shader model 6.0; everything else must suit the older compiler too.
    let shader_model = if subgroups {
        naga::back::hlsl::ShaderModel::V6_0
    } else {
        naga::back::hlsl::ShaderModel::V5_1
    };
    let hlsl = naga::back::hlsl::Options { shader_model, ..Default::default() };
    let (mut direct, pipeline) = (String::new(), Default::default());
    naga::back::hlsl::Writer::new(&mut direct, &hlsl, &pipeline)
        .write(&module, &info, None)
        .map_err(|e| failed("HLSL", &e))?;
    if words.len() < 20 || metal.len() < 20 || direct.len() < 20 {
        return Err(format!("{name}: an output is empty"));
    }

    let [entry] = module.entry_points.as_slice() else {
        return Err(format!("{name}: {} entry points", module.entry_points.len()));
    };
    if entry.name != "main" || entry.stage != naga::ShaderStage::Compute {
        return Err(format!(
            "{name}: the entry point is `{}`, expected a compute shader `main`",
            entry.name
        ));
    }
    let mut r = Reflection {
        bindings: BTreeMap::new(),
        reads: BTreeSet::new(),
        writes: BTreeSet::new(),
        workgroup_size: entry.workgroup_size.iter().product(),
        workgroup_bytes: 0,
    };
    for (handle, variable) in module.global_variables.iter() {
        let usage = info.get_entry_point(0)[handle];
        let label = variable.name.as_deref().unwrap_or("?");
        if variable.space == AddressSpace::WorkGroup {
            r.workgroup_bytes += module.types[variable.ty].inner.size(module.to_ctx());
        }
        let Some(at) = &variable.binding else { continue };
        let access = match variable.space {
            AddressSpace::Uniform => Access::Uniform,
            AddressSpace::Storage { access: StorageAccess::LOAD } => Access::Read,
            AddressSpace::Storage { .. } => Access::ReadWrite,
            other => return Err(format!("{name}: `{label}` is bound in {other:?}")),
        };
        if at.group != 0 || r.bindings.insert(at.binding, access).is_some() {
            return Err(format!("{name}: `{label}` is not at a binding of its own in group 0"));
        }
        // The pipeline's layout comes from what is used: a binding that is declared in vain would
        // not be in it.
        if usage.is_empty() {
            return Err(format!("{name}: `{label}` is bound but not used"));
        }
        if access == Access::ReadWrite && !usage.contains(GlobalUse::WRITE) {
            return Err(format!("{name}: `{label}` is read_write but never written"));
        }
        if usage.contains(GlobalUse::READ) {
            r.reads.insert(at.binding);
        }
        if usage.contains(GlobalUse::WRITE) {
            r.writes.insert(at.binding);
        }
    }
    let buffers = r.bindings.values().filter(|a| **a != Access::Uniform).count();
    if buffers > STORAGE_BUFFERS {
        return Err(format!(
            "{name}: {buffers} storage buffers, baseline WebGPU binds {STORAGE_BUFFERS}"
        ));
    }
    if r.workgroup_bytes > WORKGROUP_BYTES {
        return Err(format!(
            "{name}: {} bytes of workgroup memory, baseline WebGPU has {WORKGROUP_BYTES}",
            r.workgroup_bytes
        ));
    }
    if r.workgroup_size == 0 || r.workgroup_size > INVOCATIONS {
        return Err(format!(
            "{name}: {} invocations, baseline WebGPU has {INVOCATIONS}",
            r.workgroup_size
        ));
    }
    Ok(r)
}

/// The dispatches of one op, with what their bindings must satisfy.
#[derive(Clone, Debug)]
struct Reached {
    /// A trial or a step of a plan, for messages.
    from: String,
    dispatches: Vec<Dispatch>,
    outputs: usize,
    /// Outputs that hold an input's contents before.
    in_place: Vec<usize>,
}

fn targets() -> Vec<Target> {
    let processors = [4, 8, 16, 32].map(|lanes| Target {
        subgroup: Some(lanes),
        software: true,
        ..Target::WEBGPU
    });
    [Target::WEBGPU].into_iter().chain(processors).collect()
}

/// The graphs of a run at the paper's scale.
fn graphs(depth: Depth, stem: Stem, method: Method) -> Vec<(&'static str, Graph)> {
    let (image, batch, protocol) = if stem == Stem::Cifar {
        (32, 256, Protocol::PadCrop)
    } else {
        (96, 64, Protocol::ResizedCrop)
    };
    let net = NetConfig { encoder: depth, decoder: depth, width: 64, latent: 128, stem, image };
    let objective = Objective {
        method,
        kl_coeff: method.default_kl_coeff(),
        log_scale: 0.0,
        learn_log_scale: method == Method::Vae,
        target: Compare::Original,
        temperature: 0.5,
    };
    let config = ModelConfig {
        net,
        objective,
        mean: [0.49, 0.48, 0.45],
        std: [0.25, 0.24, 0.26],
        batch,
        online_probe: Some(10),
    };
    let train = method::training(&config, Training::default()).graph;
    let layout = train.layout.clone();
    let update = |optimizer, weight_decay| {
        optim::update(&layout, Update { optimizer, weight_decay, ..Update::default() })
    };
    let mut graphs = vec![
        ("train", train),
        ("update by adam", update(Optimizer::Adam, 0.1)),
        ("update by sgd", update(Optimizer::Sgd, 0.1)),
        ("update by lars", update(Optimizer::Lars, 0.1)),
        ("update by lamb", update(Optimizer::Lamb, 0.1)),
        ("validation", method::validation(&config, &layout, Views::Drawn).graph),
        ("figures", method::figures(&config, &layout).graph),
    ];
    graphs.extend(aavae::eval::graphs(&config, protocol, 10));
    if method.reconstructs() {
        graphs.push(("views", method::views(&config, &layout, Views::Drawn).graph));
    }
    if method.samples() {
        let few = ModelConfig { batch: batch / 16, ..config };
        graphs.push(("importance", method::importance(&few, &layout, 16, Views::Drawn).graph));
    }
    graphs
}

/// Every distinct lowering that an op case or a plan of the networks reaches.
fn reached() -> &'static [Reached] {
    static REACHED: OnceLock<Vec<Reached>> = OnceLock::new();
    REACHED.get_or_init(|| {
        let mut all: Vec<Reached> = Vec::new();
        for case in all_cases() {
            let inputs: Vec<_> = case.inputs.iter().map(|i| i.0).collect();
            let outputs = case.op.outputs(&inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let io = Io { inputs, outputs };
            for target in targets() {
                all.extend(case.op.variants(&io, &target).into_iter().map(|variant| Reached {
                    from: format!("trial {}/{} ({variant})", case.op.name(), case.name),
                    dispatches: case.op.lower_as(&io, &target, variant).dispatches,
                    outputs: io.outputs.len(),
                    in_place: case.op.in_place().iter().map(|p| p.1).collect(),
                }));
            }
        }
        let mut models = Vec::new();
        for depth in [Depth::Resnet18, Depth::Resnet50] {
            for stem in [Stem::Cifar, Stem::Stl] {
                models.extend(
                    [Method::Ae, Method::Vae, Method::Aaae, Method::Aavae]
                        .map(|method| (depth, stem, method)),
                );
            }
        }
        // Its encoder is theirs on twice the images.
        models.extend([
            (Depth::Resnet18, Stem::Cifar, Method::Simclr),
            (Depth::Resnet50, Stem::Stl, Method::Simclr),
        ]);
        let plans: Vec<Vec<Reached>> = models
            .into_par_iter()
            .map(|(depth, stem, method)| {
                let mut found = Vec::new();
                for (name, graph) in graphs(depth, stem, method) {
                    // Subgroups of 8 lanes (llvmpipe) and tiles see every network; the other sizes
                    // see one, and every trial.
                    let common = |t: &Target| matches!(t.subgroup, None | Some(8));
                    let small = (depth, stem) == (Depth::Resnet18, Stem::Cifar);
                    let of = format!("{} {depth:?} {stem:?}", method.name());
                    for target in targets().into_iter().filter(|t| small || common(t)) {
                        let mut plans = vec![lower(name, &graph, Options::new(target))];
                        if name == "train" && target == Target::WEBGPU {
                            plans.push(lower(
                                name,
                                &graph,
                                Options { fuse: false, ..Options::new(target) },
                            ));
                        }
                        // What a tuner may choose for the networks' shapes.
                        let tuned =
                            small && method == Method::Aavae && name == "train" && common(&target);
                        for s in plans.into_iter().flat_map(|p| p.ops) {
                            let io = Io::from(&s.io);
                            let all =
                                if tuned { s.op.variants(&io, &target) } else { vec![s.variant] };
                            found.extend(all.into_iter().map(|variant| Reached {
                                from: format!("{name} of {of} ({variant}): {}", s.label),
                                outputs: s.outputs.len(),
                                in_place: s.op.in_place().iter().map(|p| p.1).collect(),
                                dispatches: s.op.lower_as(&io, &target, variant).dispatches,
                            }));
                        }
                    }
                }
                dedupe(found)
            })
            .collect();
        all.extend(plans.into_iter().flatten());
        dedupe(all)
    })
}

fn dedupe(all: Vec<Reached>) -> Vec<Reached> {
    let mut seen = BTreeSet::new();
    all.into_iter().filter(|r| seen.insert(format!("{:?}", r.dispatches))).collect()
}

/// Every distinct text among them: a kernel that has it and the trial or step that asked for it.
fn texts() -> &'static BTreeMap<String, (Kernel, String)> {
    static TEXTS: OnceLock<BTreeMap<String, (Kernel, String)>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let mut kernels: BTreeMap<String, (Kernel, String)> = BTreeMap::new();
        for r in reached() {
            for d in &r.dispatches {
                kernels
                    .entry(format!("{:?}", d.kernel))
                    .or_insert_with(|| (d.kernel.clone(), r.from.clone()));
            }
        }
        kernels
            .into_par_iter()
            .map(|(_, (kernel, from))| (source(&kernel), (kernel, from)))
            .collect()
    })
}

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn shader_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

fn table_is_the_folder() -> Result<(), Failed> {
    let mut found = BTreeMap::new();
    for (folder, prefix) in [(shader_folder(), ""), (shader_folder().join("lib"), "lib/")] {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "wgsl") {
                let stem =
                    path.file_stem().and_then(|s| s.to_str()).ok_or("a file name is not UTF-8")?;
                found.insert(format!("{prefix}{stem}"), std::fs::read_to_string(&path)?);
            }
        }
    }
    let table: BTreeMap<String, String> =
        FILES.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
    check(table.len() == FILES.len(), || "a file stands in the table twice".into())?;
    let names = |t: &BTreeMap<String, String>| t.keys().cloned().collect::<Vec<_>>();
    check(names(&table) == names(&found), || {
        format!(
            "src/shader/files.rs is not the folder; run scripts/shader-table\ntable  {:?}\nfolder \
             {:?}",
            names(&table),
            names(&found)
        )
    })?;
    check(table == found, || "an embedded text is not the file's: build again".into())
}

fn every_file_stands_alone() -> Result<(), Failed> {
    for (name, _) in FILES {
        let text = source(&Kernel::new(name));
        if name.starts_with("lib/") {
            let (module, _) = parse(name, &text)?;
            check(module.entry_points.is_empty(), || format!("{name} has an entry point"))?;
        } else {
            validate(name, &text)?;
        }
    }
    Ok(())
}

/// What a header lacks of what `shaders/README.md` promises: a formula, what is read, how the
/// result is written, the grid and the Rust reference, in this order, with every buffer that the
/// file or its imports bind; and each binding's line ends with its shape.
fn header_faults(name: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
    let header = lines.join("\n");
    let mut faults = Vec::new();
    if name.starts_with("lib/") {
        if header.is_empty() {
            faults.push("no header".into());
        }
        return faults;
    }
    let mut at = 0;
    for (what, words) in [
        ("`reads`", &["Reads ", "reads "][..]),
        (
            "`writes (=)`, `adds (+=)` or `updates (in place)`",
            &["rites (=)", "dds (+=)", "pdates (in place)"],
        ),
        ("`Grid:`", &["Grid:"]),
        ("`Reference:`", &["Reference:"]),
    ] {
        match words.iter().filter_map(|w| header[at..].find(w)).min() {
            Some(found) if what == "`reads`" && !header[..found].contains('=') => {
                faults.push("no formula stands before what is read".into())
            }
            Some(found) => at += found,
            None => faults.push(format!("no {what} where it belongs")),
        }
    }
    // Bindings, those of imported modules too, but not what is specialised away: every `#if`
    // counts.
    let mut files = vec![text];
    while let Some(text) = files.pop() {
        for line in text.lines() {
            files.extend(
                line.trim_start().strip_prefix("#import ").and_then(|name| file(name.trim())),
            );
            let Some((_, rest)) =
                line.split_once("@binding(").and_then(|(_, rest)| rest.split_once("> "))
            else {
                continue;
            };
            let variable: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let uniform = line.contains("var<uniform>");
            let named = header
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .any(|word| word == variable);
            if !named {
                faults.push(format!("the header does not say `{variable}`"));
            }
            if !uniform && !line.split_once("// ").is_some_and(|(_, note)| note.starts_with('[')) {
                faults.push(format!("the line of `{variable}` does not end with its shape"));
            }
        }
    }
    faults.extend(reference_fault(&header));
    faults
}

/// A reference that is not there: a file and, in backticks, ops that it implements
/// (`Op::reference`) or functions of it.
fn reference_fault(header: &str) -> Option<String> {
    let (_, reference) = header.split_once("Reference:")?;
    let reference = reference.lines().next().unwrap_or("");
    let path = reference.split('`').next().unwrap_or("").trim();
    let items: Vec<&str> = reference.split('`').skip(1).step_by(2).collect();
    let Ok(code) =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path))
    else {
        return Some(format!("there is no src/{path}"));
    };
    let declared = |item: &str| match item.strip_suffix("::reference") {
        Some(op) => code.contains(&format!("impl OpDef for {op} ")),
        None => code.contains(&format!("fn {item}")),
    };
    match items.iter().find(|item| !declared(item)) {
        Some(item) => Some(format!("src/{path} has no `{item}`")),
        None => items.is_empty().then(|| "the reference names no item".into()),
    }
}

fn headers() -> Result<(), Failed> {
    let faults = |(name, text): &(&str, &str)| {
        header_faults(name, text).into_iter().map(|f| format!("{name}: {f}")).collect::<Vec<_>>()
    };
    let all: Vec<_> = FILES.iter().flat_map(faults).collect();
    check(all.is_empty(), || all.join("\n"))?;
    // The check refuses what is not as it should be.
    let good = file("relu").ok_or("relu is gone")?;
    for (from, to) in [
        ("y = 0 where x < 0, else x", "rectifies"),
        ("Reads x", "Takes x"),
        ("writes (=)", "gives"),
        ("Grid:", "Groups:"),
        ("Reference:", "See"),
        ("pointwise.rs", "elsewhere.rs"),
        ("`Relu::reference`", "`Rectify::reference`"),
        ("Reads x [LEN4]", "Reads everything"),
        ("y: array<vec4<f32>>; // [LEN4]", "y: array<vec4<f32>>;"),
    ] {
        let bad = good.replacen(from, to, 1);
        check(bad != good && !header_faults("relu", &bad).is_empty(), || {
            format!("accepted a header with `{to}` for `{from}`")
        })?;
    }
    Ok(())
}

/// A browser's limits and every output language, for every distinct text; then every dispatch
/// against what its kernel declares.
fn reachable_kernels() -> Result<(), Failed> {
    let reflections: Vec<(&String, Result<Reflection, String>)> = texts()
        .par_iter()
        .map(|(text, (kernel, from))| {
            (text, validate(kernel.file, text).map_err(|e| format!("{from}: {e}")))
        })
        .collect();
    let mut by_text = BTreeMap::new();
    for (text, r) in reflections {
        by_text.insert(text.as_str(), r?);
    }
    let dispatches: usize = reached().iter().map(|r| r.dispatches.len()).sum();
    eprintln!(
        "{} distinct kernels in {} distinct lowerings with {dispatches} dispatches",
        by_text.len(),
        reached().len()
    );
    check(by_text.len() >= LEAST_KERNELS, || {
        format!("only {} kernels are reached, expected {LEAST_KERNELS}", by_text.len())
    })?;
    let sources: BTreeMap<String, &str> =
        texts().iter().map(|(text, (kernel, _))| (format!("{kernel:?}"), text.as_str())).collect();
    reached().par_iter().try_for_each(|r| {
        let found = |d: &Dispatch| match sources.get(&format!("{:?}", d.kernel)) {
            Some(text) => &by_text[*text],
            None => &by_text[source(&d.kernel).as_str()], // another kernel had the same text
        };
        bindings_match(r, found).map_err(|e| format!("{}: {e}", r.from))
    })?;
    Ok(())
}

/// Every binding of every dispatch is declared, as what it is; scratch is written before it is
/// read; every output is written.
fn bindings_match<'a>(
    r: &Reached,
    reflection: impl Fn(&Dispatch) -> &'a Reflection,
) -> Result<(), String> {
    let mut scratch = BTreeSet::new();
    let mut written: BTreeSet<usize> = r.in_place.iter().copied().collect();
    let mut touched = BTreeSet::new();
    for d in &r.dispatches {
        let shader = reflection(d);
        let file = d.kernel.file;
        let bound: BTreeMap<u32, Binding> = d
            .bindings
            .iter()
            .enumerate()
            .filter(|(_, b)| **b != Binding::Skip)
            .map(|(i, b)| (i as u32, *b))
            .collect();
        if !bound.keys().eq(shader.bindings.keys()) {
            return Err(format!(
                "{file} declares bindings {:?}, the dispatch binds {:?}",
                shader.bindings.keys(),
                bound.keys()
            ));
        }
        if d.grid.iter().any(|&g| g == 0 || g > 65_535) {
            return Err(format!("{file}: grid {:?}", d.grid));
        }
        for (i, b) in &bound {
            let (access, reads, writes) =
                (shader.bindings[i], shader.reads.contains(i), shader.writes.contains(i));
            let fits = match b {
                Binding::Step => access == Access::Uniform,
                Binding::Input(_) | Binding::Table(_) => access == Access::Read,
                Binding::Output(o) => {
                    if reads && !writes && !written.contains(o) {
                        return Err(format!("{file} reads output {o} before it is written"));
                    }
                    if writes {
                        touched.insert(*o);
                    }
                    access != Access::Uniform
                }
                Binding::Scratch(s) => {
                    if reads && !scratch.contains(s) {
                        return Err(format!("{file} reads scratch {s} before it is written"));
                    }
                    access != Access::Uniform
                }
                Binding::Skip => unreachable!("filtered above"),
            };
            if !fits {
                return Err(format!(
                    "{file} declares binding {i} as {access:?}, the dispatch binds {b:?}"
                ));
            }
        }
        for (i, b) in &bound {
            match b {
                Binding::Output(o) if shader.writes.contains(i) => drop(written.insert(*o)),
                Binding::Scratch(s) if shader.writes.contains(i) => drop(scratch.insert(*s)),
                _ => {}
            }
        }
    }
    match (0..r.outputs).find(|o| !touched.contains(o)) {
        Some(o) => Err(format!("no dispatch writes output {o}")),
        None => Ok(()),
    }
}

fn no_orphans() -> Result<(), Failed> {
    let used: BTreeSet<&str> =
        reached().iter().flat_map(|r| &r.dispatches).map(|d| d.kernel.file).collect();
    let mut imported = BTreeSet::new();
    for (_, text) in FILES {
        imported.extend(
            text.lines().filter_map(|l| l.trim_start().strip_prefix("#import ")).map(str::trim),
        );
    }
    for (name, _) in FILES {
        let found =
            if name.starts_with("lib/") { imported.contains(name) } else { used.contains(name) };
        check(found, || format!("shaders/{name}.wgsl is reached by nothing"))?;
    }
    Ok(())
}

fn step_uniform() -> Result<(), Failed> {
    let text = file("lib/step").ok_or("lib/step is gone")?;
    let (module, _) = parse("lib/step", text)?;
    let (_, ty) = module
        .types
        .iter()
        .find(|(_, t)| t.name.as_deref() == Some("Step"))
        .ok_or("there is no struct Step")?;
    let naga::TypeInner::Struct { members, span } = &ty.inner else {
        return Err("Step is no struct".into());
    };
    let got: Vec<(String, usize, String)> = members
        .iter()
        .map(|m| {
            (
                m.name.clone().unwrap_or_default(),
                m.offset as usize,
                format!("{:?}", module.types[m.ty].inner),
            )
        })
        .collect();
    let scalar = |kind| format!("{:?}", naga::TypeInner::Scalar(naga::Scalar { kind, width: 4 }));
    let (u, f) = (scalar(naga::ScalarKind::Uint), scalar(naga::ScalarKind::Float));
    macro_rules! fields {
        ($($name:ident: $ty:expr),+ $(,)?) => {{
            let StepUniforms { $($name: _),+ } = StepUniforms::default(); // names every field
            vec![$((stringify!($name).to_owned(), std::mem::offset_of!(StepUniforms, $name), $ty.clone())),+]
        }};
    }
    let want = fields!(seed_lo: u, seed_hi: u, step: u, first_sample: u, learning_rate: f, bias1: f, bias2: f, serial: u);
    check(got == want, || format!("struct Step is {got:?}, StepUniforms {want:?}"))?;
    check(*span as usize == size_of::<StepUniforms>(), || {
        format!("Step has {span} bytes, StepUniforms {}", size_of::<StepUniforms>())
    })
}

/// What `validate` and `bindings_match` must refuse, or nothing above means anything.
fn canaries() -> Result<(), Failed> {
    let good = source(&Kernel::new("relu"));
    validate("relu", &good)?;
    let spoil = |what: &str, from: &str, to: &str| -> Result<(), Failed> {
        let text = good.replace(from, to);
        check(text != good, || format!("{what}: `{from}` is not in relu.wgsl"))?;
        check(validate("relu", &text).is_err(), || format!("accepted {what}"))
    };
    spoil("a syntax error", "{", "")?;
    spoil("an unknown name", "relu(x[i])", "rectify(x[i])")?;
    spoil("a write to a read binding", "var<storage, read_write> y", "var<storage, read> y")?;
    spoil(
        "a binding that is only read, bound for writing",
        "var<storage, read> x",
        "var<storage, read_write> x",
    )?;
    spoil("two variables at one binding", "@binding(1)", "@binding(0)")?;
    spoil(
        "an unused binding",
        "@compute",
        "@group(0) @binding(2) var<storage, read> z: array<f32>;\n@compute",
    )?;
    spoil("a large workgroup", "@workgroup_size(WG)", "@workgroup_size(WG * 8u)")?;
    spoil("another entry point", "fn main(", "fn other(")?;
    let large = format!(
        "var<workgroup> sh_a: array<f32, 4097>;\n{}",
        good.replacen(") {\n", ") {\n sh_a[0] = 1.0;\n", 2)
    );
    check(validate("relu", &large).is_err(), || {
        "accepted 16 KiB and 4 bytes of workgroup memory".into()
    })?;
    let half = format!("enable f16;\nconst H: f16 = 1.0h;\n{good}");
    check(validate("relu", &half).is_err(), || "accepted f16".into())?;
    let subgroups = source(&Kernel::new("conv_nt_bcast"));
    validate("conv_nt_bcast", &subgroups)?;
    check(validate("conv_nt_tile", &subgroups).is_err(), || {
        "accepted subgroups outside *_bcast".into()
    })?;

    let r = validate("relu", &good)?;
    let dispatch = |bindings: &[Binding]| Reached {
        from: "canary".into(),
        dispatches: vec![Dispatch {
            kernel: Kernel::new("relu"),
            grid: [1, 1, 1],
            bindings: bindings.to_vec(),
        }],
        outputs: 1,
        in_place: vec![],
    };
    bindings_match(&dispatch(&[Binding::Input(0), Binding::Output(0)]), |_| &r)?;
    for bad in [
        vec![Binding::Input(0)],
        vec![Binding::Input(0), Binding::Output(0), Binding::Step],
        vec![Binding::Skip, Binding::Output(0)],
        vec![Binding::Input(0), Binding::Input(1)],
        vec![Binding::Step, Binding::Output(0)],
        vec![Binding::Input(0), Binding::Table(0)],
        vec![Binding::Scratch(0), Binding::Output(0)], // read before it is written
        vec![Binding::Input(0), Binding::Scratch(0)],  // the output is not written
    ] {
        check(bindings_match(&dispatch(&bad), |_| &r).is_err(), || {
            format!("accepted the bindings {bad:?}")
        })?;
    }
    Ok(())
}

fn tint_installed() -> bool {
    Command::new("tint").arg("--help").output().is_ok()
}

/// Dawn's own front end, on every text.
fn tint() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = |name: &str, text: &str| -> Result<(), String> {
        let path = folder.path().join(format!("{name}.wgsl"));
        std::fs::write(&path, text).map_err(|e| e.to_string())?;
        let out = Command::new("tint")
            .args(["--format", "none"])
            .arg(&path)
            .output()
            .map_err(|e| e.to_string())?;
        std::fs::remove_file(&path).map_err(|e| e.to_string())?;
        if out.status.success() {
            Ok(())
        } else {
            Err(format!("{name}: {}", String::from_utf8_lossy(&out.stderr)))
        }
    };
    check(
        run("canary", "@compute @workgroup_size(1) fn main() { undefined(); }").is_err(),
        || "tint accepted an undefined name".into(),
    )?;
    let began = std::time::Instant::now();
    let all: Vec<_> = texts().iter().enumerate().collect();
    all.par_iter()
        .map(|(i, (text, (kernel, from)))| {
            let mut whole = String::new();
            if uses_subgroups(kernel.file) {
                // naga takes the feature without the directive
                whole.push_str("enable subgroups;\n");
            }
            write!(whole, "{text}").map_err(|e| e.to_string())?;
            run(&format!("{i}_{}", kernel.file), &whole).map_err(|e| format!("{from}: {e}"))
        })
        .collect::<Result<(), String>>()?;
    eprintln!("tint read {} kernels in {:.1} s", all.len(), began.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = vec![
        Trial::test("the embedded table is the folder", table_is_the_folder),
        Trial::test("every file stands alone", every_file_stands_alone),
        Trial::test("every header says formula, shapes, grid and reference", headers),
        Trial::test(
            "every reachable kernel is valid, portable and bound as declared",
            reachable_kernels,
        ),
        Trial::test("no file is unreachable", no_orphans),
        Trial::test("StepUniforms is struct Step", step_uniform),
        Trial::test("broken shaders are refused", canaries),
    ];
    let found = tint_installed();
    let name = if found {
        "tint reads every kernel"
    } else {
        "tint reads every kernel (tint is not installed)"
    };
    trials.push(Trial::test(name, tint).with_ignored_flag(!found));
    libtest_mimic::run(&args, trials).exit_code()
}

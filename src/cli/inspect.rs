//! `aavae devices`, `plan`, `check`: what a machine has, what a step does, whether it is right.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::flags::{Flags, Selection};
use super::{Failure, Outcome, choice, print_json, print_text, say, usage};
use crate::check;
use crate::device::wgpu::adapters;
use crate::device::{self, DeviceSpec, Pick, Session};
use crate::method::ModelConfig;
use crate::ops::{Case, Target, Variant};
use crate::optim::Update;
use crate::plan::{Plan, held_bytes, summary};
use crate::run::settings::{PrecisionKind, RunConfig, Setting};
use crate::run::{RunError, precision};
use crate::tensor::{Half, TensorType};
use crate::train::plans;

#[derive(Debug, clap::Args)]
pub(super) struct DevicesArgs {
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn devices(args: &DevicesArgs) -> Outcome {
    let found = adapters();
    let (taken, why) = device::auto();
    let taken = match &taken {
        DeviceSpec::Wgpu(Pick::Index(index)) => format!("wgpu:{index}"),
        DeviceSpec::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if args.json {
        let cuda = cuda_report();
        let cpu = json!({ "threads": threads });
        print_json(
            &json!({ "auto": taken, "why": why, "cpu": cpu, "adapters": found, "cuda": cuda }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("cpu: {threads} threads\n");
    for (index, a) in found.iter().enumerate() {
        let subgroup = match a.subgroup {
            None => "none".into(),
            Some([least, most]) if least == most => least.to_string(),
            Some([least, most]) => format!("{least} to {most}"),
        };
        let features = if a.features.is_empty() { "none".into() } else { a.features.join(", ") };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        text += &format!(
            "wgpu:{index} = wgpu:{}:{}\n  {}, driver {}\n  binding {:.2} GiB, buffer {:.2} GiB, \
             {} storage buffers, {} KiB workgroup memory, subgroup {subgroup}\n  \
             features: {features}\n",
            a.backend,
            a.name,
            a.kind,
            a.driver,
            gib(a.max_binding_bytes),
            gib(a.max_buffer_bytes),
            a.max_storage_buffers,
            a.workgroup_memory_bytes / 1024,
        );
    }
    text += &cuda_text();
    print_text(&format!("{text}auto takes {taken}: {why}"))?;
    Ok(ExitCode::SUCCESS)
}

/// What there is of CUDA; null in a program without it.
fn cuda_report() -> Value {
    #[cfg(feature = "cuda")]
    return json!(device::cuda::report());
    #[cfg(not(feature = "cuda"))]
    Value::Null
}

/// What there is of CUDA, in lines; none in a program without it.
fn cuda_text() -> String {
    #[cfg(feature = "cuda")]
    {
        let report = device::cuda::report();
        let mut text = String::new();
        for (index, gpu) in report.gpus.iter().enumerate() {
            let gib = gpu.memory_bytes as f64 / f64::from(1 << 30);
            text += &format!(
                "cuda:{index} = {}\n  compute capability {}, {} multiprocessors, {gib:.1} GiB\n",
                gpu.name, gpu.capability, gpu.processors,
            );
        }
        let libraries = [
            ("driver for CUDA", report.driver),
            ("run-time compiler for CUDA", report.compiler),
            ("cuDNN", report.products),
            ("cuBLASLt", report.matrices),
        ];
        for (what, library) in libraries {
            if let Some([version, path]) = library {
                text += &format!("cuda: {what} {version} ({path})\n");
            }
        }
        for [what, hint] in [report.missing, report.optional].into_iter().flatten() {
            text += &format!("cuda: {what}\n  hint: {hint}\n");
        }
        text
    }
    #[cfg(not(feature = "cuda"))]
    String::new()
}

/// The settings that say what a training step computes.
#[derive(Debug)]
pub(super) struct OfStep;

impl OfStep {
    /// What the flags start from: a step that is planned and measured within seconds everywhere.
    fn base() -> RunConfig {
        RunConfig { width: 16, batch_size: 64, ..RunConfig::default() }
    }
}

impl Selection for OfStep {
    fn takes(setting: &Setting) -> bool {
        let of_update =
            ["batch_size", "optimizer", "weight_decay", "precision"].contains(&setting.key);
        setting.section == "Method and networks" || of_update
    }
    fn default(setting: &Setting) -> Option<String> {
        setting.default(&Self::base())
    }
}

/// The model a plan or a benchmark is of.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    #[command(flatten)]
    settings: Flags<OfStep>,
    /// auto, cpu, wgpu, wgpu:NAME or cuda
    #[arg(long, default_value = "auto")]
    pub(super) device: String,
    /// Print JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
}

impl ModelArgs {
    /// The settings of the step, on images of which nothing is read.
    fn config(&self) -> Result<RunConfig, Failure> {
        let mut config = OfStep::base();
        self.settings.apply(&mut config);
        config.decoder = self.settings.decoder.unwrap_or(config.encoder);
        config.validate().map_err(|message| usage(message, None))?;
        Ok(config)
    }

    /// The model and how its weights are updated.
    pub(super) fn step(&self) -> Result<(ModelConfig, Update), Failure> {
        let config = self.config()?;
        Ok((config.model([0.5; 3], [0.25; 3]), config.update()))
    }

    /// The device, set up for the precision of the step; why it is the one, and the precision.
    pub(super) fn open(&self) -> Result<(Session, String, PrecisionKind), Failure> {
        let (mut session, why) = device::open(&choice(&self.device)?)?;
        let precision = precision::resolve(self.config()?.precision, &session);
        precision::train(&mut session, precision.half())?;
        Ok((session, why, precision))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Print the final WGSL of every kernel whose file has this name
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    kernel: Option<String>,
    /// Batches per step; more than 1 make two plans
    #[arg(long, default_value_t = 1, value_name = "N")]
    accumulate: usize,
    /// Let products share pipelines, as where compiling is slow
    #[arg(long)]
    compact: bool,
}

pub(super) fn plan(args: &PlanArgs) -> Outcome {
    let config = RunConfig { accumulate: args.accumulate, ..args.model.config()? };
    config.validate().map_err(|message| usage(message, None))?;
    let model = config.model([0.5; 3], [0.25; 3]);
    let (mut session, _, precision) = args.model.open()?;
    let config = RunConfig { precision, ..config };
    session.set_target(Target { compact: args.compact, ..session.target() });
    // As many held-out images as a batch takes: what a run on a whole data set has.
    let plans = plans::plan(&session, &config, &model, model.batch)?;
    let steps: Vec<&Plan> = std::iter::once(&plans.train).chain(&plans.update).collect();
    if let Some(file) = &args.kernel {
        print_text(&kernel_texts(&steps, file)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let all: Vec<Plan> = plans.iter().map(|(_, plan)| plan.clone()).collect();
    let total = plans::device_bytes(&session, &all);
    let transient = |(name, plan): (&str, &Plan)| (name.to_owned(), plan.buffer_bytes());
    let parts: Vec<(String, usize)> = plans.iter().map(transient).collect();
    let state = held_bytes(&all) - parts.iter().map(|p| p.1).sum::<usize>();
    let own = total - held_bytes(&all);
    if args.model.json {
        let mut value = plan_json(&plans.train);
        if let Some(update) = &plans.update {
            value["update"] = plan_json(update);
            value["peak_bytes"] = json!(held_bytes(&all[..2]));
        }
        let parts: BTreeMap<_, _> = parts.into_iter().collect();
        value["pretrain"] =
            json!({ "bytes": total, "state": state, "device": own, "plans": parts });
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = plans.train.to_string();
    if let Some(update) = &plans.update {
        let peak = held_bytes(&all[..2]) as f64 / 1e6;
        let times = args.accumulate;
        text += &format!("\n\n{update}\n\n{times} x train, then update: peak memory {peak:.3} MB");
    }
    let mb = |bytes: usize| format!("{:.3}", bytes as f64 / 1e6);
    let parts: Vec<_> =
        parts.iter().map(|(name, bytes)| format!("{name} {}", mb(*bytes))).collect();
    let images = if session.keeps_images() {
        "\nthe training images stay on the device where they fit: 3 bytes a pixel more"
    } else {
        ""
    };
    print_text(&format!(
        "{text}\npretrain holds at most {} MB: state {}, {}, reads and the device itself {}{images}",
        mb(total),
        mb(state),
        parts.join(", "),
        mb(own)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The final WGSL of every kernel of a file, each text once.
fn kernel_texts(plans: &[&Plan], file: &str) -> Result<String, Failure> {
    let dispatches = plans.iter().flat_map(|p| &p.ops).flat_map(|s| &s.dispatches);
    let of_file = dispatches.filter(|d| d.kernel.file == file);
    let texts: BTreeSet<String> = of_file.map(|d| crate::shader::source(&d.kernel)).collect();
    if texts.is_empty() {
        let message = format!("no step of this plan uses a kernel `{file}`");
        return Err(RunError::config(message, Some("`aavae plan` names the kernels")).into());
    }
    Ok(texts.into_iter().collect::<Vec<_>>().join("\n// ----\n\n"))
}

fn plan_json(plan: &Plan) -> Value {
    let shapes = |types: &[TensorType]| {
        types.iter().map(|t| vec![t.shape.n, t.shape.h, t.shape.w, t.shape.c]).collect::<Vec<_>>()
    };
    let places = |x: &[(crate::ops::ValueId, crate::plan::Place)]| {
        x.iter().map(|p| p.1.to_string()).collect::<Vec<_>>()
    };
    let step = |s: &crate::plan::PlannedOp| {
        let kernels: Vec<_> =
            s.dispatches.iter().map(|d| json!({ "file": d.kernel.file, "grid": d.grid })).collect();
        json!({
            "label": s.label,
            "op": s.op.name(),
            "inputs": shapes(&s.io.inputs),
            "outputs": shapes(&s.io.outputs),
            "reads": places(&s.inputs),
            "writes": places(&s.outputs),
            "kernels": kernels,
            "flops": s.flops,
            "bytes": s.bytes(),
        })
    };
    json!({ "summary": summary(plan), "steps": plan.ops.iter().map(step).collect::<Vec<_>>() })
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// auto, cpu, wgpu, wgpu:NAME or cuda
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only cases whose name contains this; if repeated, all of these
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Trials for each core whose kernels are compiled together.
const PER_CORE: usize = 8;
/// How often `check` says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What trials have shown.
#[derive(Default)]
struct Checked {
    /// Of each op: trials, and the worst ratio of error to tolerance.
    accuracy: BTreeMap<&'static str, (usize, f64)>,
    passed: usize,
    failures: Vec<Value>,
}

/// Tries cases on a device, in every way that it has for each.
fn trials(session: &mut Session, cases: &[Case]) -> Checked {
    let target = session.target();
    let ways = if session.capabilities().dispatches { usize::MAX } else { 1 };
    let variants = |case| check::variants(case, &target).into_iter().take(ways);
    let trials: Vec<(&Case, Variant)> =
        cases.iter().flat_map(|case| variants(case).map(move |v| (case, v))).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (began, mut said) = (Instant::now(), Instant::now());
    let mut checked = Checked::default();
    for together in trials.chunks(PER_CORE * cores) {
        let plan = |(case, variant): &(&Case, Variant)| check::plan(case, &target, *variant);
        // What is refused here is refused again by its own trial.
        session.prepare(&together.iter().map(plan).collect::<Vec<Plan>>()).ok();
        for &(case, variant) in together {
            match check::trial(case, session, variant) {
                Ok(ratio) => {
                    checked.passed += 1;
                    let row = checked.accuracy.entry(case.op.name()).or_default();
                    *row = (row.0 + 1, row.1.max(ratio));
                }
                Err(message) => {
                    let name = check::name(case);
                    say(&format!("FAILED {name} ({variant}): {message}"));
                    let failure =
                        json!({ "case": name, "variant": variant.to_string(), "message": message });
                    checked.failures.push(failure);
                }
            }
        }
        let (done, all) = (checked.passed + checked.failures.len(), trials.len());
        if said.elapsed() >= SAY_EVERY && done < all {
            said = Instant::now();
            let left = began.elapsed().as_secs_f64() / done as f64 * (all - done) as f64;
            say(&format!("{done} of {all} trials, about {left:.0} s left"));
        }
    }
    checked
}

pub(super) fn check(args: &CheckArgs) -> Outcome {
    let (mut session, why) = device::open(&choice(&args.device)?)?;
    say(&format!("device: {} ({why})", session.device()));
    let mut cases = crate::ops::all_cases();
    for half in Half::ALL.iter().filter(|half| !session.capabilities().stores(**half)) {
        let name = half.name();
        say(&format!("trials in {name} are left out: the device does not store {name}"));
        cases.retain(|c| c.half != Some(*half));
    }
    cases.retain(|case| args.only.iter().all(|text| check::name(case).contains(text)));
    let Checked { accuracy, passed, failures } = trials(&mut session, &cases);
    let failed = failures.len();
    if passed + failed == 0 {
        let asked = args.only.join("` and `");
        return Err(usage(
            format!("no case is named like `{asked}`"),
            Some("`--only relu` is an example"),
        ));
    }
    if args.json {
        let row = |(op, (trials, worst)): (&&str, &(usize, f64))| json!({ "op": op, "trials": trials, "worst": worst });
        let accuracy: Vec<_> = accuracy.iter().map(row).collect();
        print_json(&json!({
            "device": session.device(),
            "passed": passed,
            "failed": failed,
            "accuracy": accuracy,
            "failures": failures,
        }))?;
    } else {
        let mut text = String::from("trials  worst error / tolerance  op\n");
        for (op, (trials, worst)) in &accuracy {
            text += &format!("{trials:6}  {worst:23.4}  {op}\n");
        }
        print_text(&format!("{text}{passed} passed, {failed} failed on {}", session.device()))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

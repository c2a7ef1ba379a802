//! `aavae devices`, `plan`, `check`, `bench`: what a machine has, what a step does, whether it is right, how fast it is.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Failure, Outcome, choice, print_json, print_text, say, usage};
use crate::check;
use crate::device::wgpu::adapters;
use crate::device::{self, Choice, Data, PlanId, Session};
use crate::ir::Graph;
use crate::method::{self, Method, ModelConfig, Optimizer, Training, Update, View};
use crate::model::{Depth, Stem};
use crate::ops::{Conv2d, Emit, Gemm, Scale, StepUniforms, Target};
use crate::plan::{Options, Plan, held_bytes, lower, summary};
use crate::rng::{Philox, Stream};
use crate::tensor::{DType, Shape, TensorType};
use crate::train::config::RunConfig;
use crate::train::{TrainError, fit, state};

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
        Choice::Wgpu(Some(name)) => format!("wgpu:{name}"),
        _ => "cpu".into(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if args.json {
        print_json(&json!({ "auto": taken, "why": why, "cpu": { "threads": threads }, "adapters": found }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("cpu: {threads} threads\n");
    for a in &found {
        text += &format!(
            "wgpu:{}\n  backend {}, {}, driver {}\n  binding {:.2} GiB, buffer {:.2} GiB, {} storage buffers, {} KiB workgroup memory, subgroup {}\n  features: {}\n",
            a.name,
            a.backend,
            a.kind,
            a.driver,
            a.max_binding_bytes as f64 / f64::from(1 << 30),
            a.max_buffer_bytes as f64 / f64::from(1 << 30),
            a.max_storage_buffers,
            a.workgroup_memory_bytes / 1024,
            a.subgroup.map_or("none".into(), |[a, b]| if a == b { a.to_string() } else { format!("{a} to {b}") }),
            if a.features.is_empty() { "none".into() } else { a.features.join(", ") },
        );
    }
    print_text(&format!("{text}auto takes {taken}: {why}"))?;
    Ok(ExitCode::SUCCESS)
}

/// The model a plan or a benchmark is of.
#[derive(Debug, clap::Args)]
struct ModelArgs {
    /// Method
    #[arg(long, value_enum, default_value = "aavae")]
    method: Method,
    /// Encoder
    #[arg(long, value_enum, default_value = "resnet18")]
    encoder: Depth,
    /// Decoder (default: as deep as the encoder)
    #[arg(long, value_enum)]
    decoder: Option<Depth>,
    /// Stem of the encoder
    #[arg(long, value_enum, default_value = "cifar")]
    stem: Stem,
    /// Channels of the first stage
    #[arg(long, default_value_t = 16)]
    width: usize,
    /// Latent dimensions
    #[arg(long, default_value_t = 128)]
    latent_dim: usize,
    /// Side of the images
    #[arg(long, default_value_t = 32)]
    image_size: usize,
    /// Images per step
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Optimiser
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: Optimizer,
    /// Its weight decay
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f32,
    /// auto, cpu, wgpu or wgpu:NAME
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

impl ModelArgs {
    fn update(&self) -> Update {
        Update { optimizer: self.optimizer, weight_decay: self.weight_decay }
    }

    fn model(&self) -> Result<ModelConfig, Failure> {
        let config = RunConfig {
            method: self.method,
            encoder: self.encoder,
            decoder: self.decoder.unwrap_or(self.encoder),
            stem: self.stem,
            width: self.width,
            latent_dim: self.latent_dim,
            image_size: self.image_size,
            batch_size: self.batch_size,
            optimizer: self.optimizer,
            weight_decay: self.weight_decay,
            ..RunConfig::default()
        };
        config.validate().map_err(|message| usage(message, None))?;
        Ok(config.model([0.5; 3], [0.25; 3]))
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
}

pub(super) fn plan(args: &PlanArgs) -> Outcome {
    let config = args.model.model()?;
    if args.accumulate == 0 {
        return Err(usage("--accumulate is 0; it must be positive", None));
    }
    let (session, _) = device::open(&choice(&args.model.device)?)?;
    let how = Training { rule: args.model.update(), accumulate: args.accumulate, ..Training::default() };
    let graph = |batch| method::training(&ModelConfig { batch, ..config }, how).graph;
    let mut plans = vec![fit::plan(session.as_ref(), "train", config.batch, &graph)?];
    if args.accumulate > 1 {
        let update = method::update(&plans[0].layout, how.rule);
        plans.push(lower("update", &update, Options { target: session.target(), alias: true }));
    }
    if let Some(file) = &args.kernel {
        let mut texts: Vec<String> = plans
            .iter()
            .flat_map(|p| &p.steps)
            .flat_map(|s| &s.dispatches)
            .filter(|d| d.kernel.file == *file)
            .map(|d| crate::shader::source(&d.kernel))
            .collect();
        texts.dedup();
        if texts.is_empty() {
            return Err(
                TrainError::config(format!("no step of this plan uses a kernel `{file}`"), Some("`aavae plan` names the kernels")).into()
            );
        }
        print_text(&texts.join("\n// ----\n\n"))?;
    } else if args.model.json {
        let mut value = plan_json(&plans[0]);
        if let [_, update] = &plans[..] {
            value["update"] = plan_json(update);
            value["peak_bytes"] = json!(held_bytes(&plans));
        }
        print_json(&value)?;
    } else if let [train, update] = &plans[..] {
        let peak = held_bytes(&plans) as f64 / 1e6;
        print_text(&format!("{train}\n\n{update}\n\n{} x train, then update: peak memory {peak:.3} MB", args.accumulate))?;
    } else {
        print_text(&plans[0].to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plan_json(plan: &Plan) -> Value {
    let shapes = |types: &[TensorType]| types.iter().map(|t| vec![t.shape.n, t.shape.h, t.shape.w, t.shape.c]).collect::<Vec<_>>();
    let places = |x: &[(crate::ops::ValueId, crate::plan::Place)]| x.iter().map(|p| p.1.to_string()).collect::<Vec<_>>();
    let step = |s: &crate::plan::Step| {
        let kernels: Vec<_> = s.dispatches.iter().map(|d| json!({ "file": d.kernel.file, "grid": d.grid })).collect();
        json!({ "label": s.label, "op": s.op.name(), "inputs": shapes(&s.io.inputs), "outputs": shapes(&s.io.outputs), "reads": places(&s.inputs),
            "writes": places(&s.outputs), "kernels": kernels, "flops": s.flops, "bytes": s.bytes() })
    };
    json!({ "summary": summary(plan), "steps": plan.steps.iter().map(step).collect::<Vec<_>>() })
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// auto, cpu, wgpu or wgpu:NAME
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs) -> Outcome {
    let choice = choice(&args.device)?;
    let (first, why) = device::open(&choice)?;
    say(&format!("device: {} ({why})", first.device()));
    let (mut passed, mut failures) = (0, Vec::new());
    for case in crate::ops::all_cases() {
        let name = check::name(&case);
        if args.only.as_ref().is_some_and(|text| !name.contains(text)) {
            continue;
        }
        let mut targets = vec![first.target()];
        // A device that runs one GEMM variant is checked with the portable one too.
        let tile = Target { gemm: Gemm::Tile, ..first.target() };
        if tile != first.target() && check::lowers_differently(&case, tile, first.target()) {
            targets.push(tile);
        }
        for target in targets {
            let (mut session, _) = device::open(&choice)?;
            match check::trial(&case, session.as_mut(), target) {
                Ok(()) => passed += 1,
                Err(message) => {
                    say(&format!("FAILED {name} ({:?}): {message}", target.gemm));
                    failures.push(json!({ "case": name, "gemm": target.gemm, "message": message }));
                }
            }
        }
    }
    let failed = failures.len();
    if passed + failed == 0 {
        return Err(usage(format!("no case is named like `{}`", args.only.as_deref().unwrap_or("")), Some("`--only relu` is an example")));
    }
    if args.json {
        print_json(&json!({ "device": first.device(), "passed": passed, "failed": failed, "failures": failures }))?;
    } else {
        print_text(&format!("{passed} passed, {failed} failed on {}", first.device()))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Time every distinct op of the training step
    #[arg(long)]
    op: bool,
    /// Time whole training steps (the default)
    #[arg(long)]
    step: bool,
    /// Timed steps
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Include decoding and augmentation of the images
    #[arg(long)]
    augment: bool,
}

pub(super) fn bench(args: &BenchArgs) -> Outcome {
    if args.steps == 0 {
        return Err(usage("--steps is 0; it must be positive", None));
    }
    let config = args.model.model()?;
    let opened = Instant::now();
    let (mut session, why) = device::open(&choice(&args.model.device)?)?;
    let session = session.as_mut();
    say(&format!("device: {} ({why})", session.device()));
    let view = if args.augment { View::Augmented } else { View::Given };
    let model =
        |batch| method::training(&ModelConfig { batch, ..config }, Training { view, rule: args.model.update(), ..Training::default() });
    let plan = fit::plan(session, "train", config.batch, &|batch| model(batch).graph)?;
    let training = model(config.batch);
    session.allocate(&training.graph.layout)?;
    let id = session.load(plan)?;
    state::initialise(session, &training.graph.layout, &training.params, 0)?;
    fill(session, id)?;
    let mut result = json!({
        "device": session.device(), "method": config.objective.method.name(), "width": config.net.width, "batch_size": config.batch,
        "parameters": training.params.count(), "plan": summary(session.plan(id)),
    });
    let uniforms = |step: usize| StepUniforms { step: step as u32, learning_rate: 1e-4, bias1: 1.0, bias2: 1.0, ..StepUniforms::default() };
    session.run(id, &uniforms(0))?;
    session.drain(id)?;
    result["ready_seconds"] = json!(opened.elapsed().as_secs_f64());
    if args.step || !args.op {
        result["step"] = time_steps(session, id, args.steps, config.batch, uniforms)?;
        let planned = session.plan(id).peak_bytes();
        result["step"]["allocated_bytes"] = json!(session.allocated_bytes());
        result["step"]["planned_bytes"] = json!(planned);
    }
    if args.op {
        let peak = peaks(&args.model.device)?;
        result["peak"] = json!({ "gflops": peak.0, "gigabytes_per_second": peak.1 });
        result["ops"] = time_ops(session, id, peak)?;
    }
    if args.model.json {
        print_json(&result)?;
    } else {
        print_text(&text(&result))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Random contents for every input.
fn fill(session: &mut dyn Session, id: PlanId) -> Result<(), Failure> {
    let rng = Philox::new(0, Stream::Test);
    let ports = session.plan(id).inputs.clone();
    for (i, port) in ports.iter().enumerate() {
        let len = port.ty.shape.len();
        match port.ty.dtype {
            DType::U32 => session.upload(
                id,
                i,
                Data::U32(&(0..len).map(|e| rng.words(0, i as u32, e as u32)[0] & 0x00ff_ffff).collect::<Vec<_>>()),
            )?,
            DType::F32 => {
                // The fourth channel of an image is zero.
                let image = port.ty.shape.h > 1;
                let value = |e: usize| if image && e % 4 == 3 { 0.0 } else { rng.uniforms(0, i as u32, e as u32)[0] * 2.0 - 1.0 };
                session.upload(id, i, Data::F32(&(0..len).map(value).collect::<Vec<_>>()))?;
            }
        }
    }
    Ok(())
}

fn time_steps(
    session: &mut dyn Session,
    id: PlanId,
    steps: usize,
    batch: usize,
    uniforms: impl Fn(usize) -> StepUniforms,
) -> Result<Value, Failure> {
    session.run(id, &uniforms(1))?;
    session.drain(id)?;
    let host = session.host_seconds();
    let mut seconds = Vec::with_capacity(steps);
    let began = Instant::now();
    for step in 0..steps {
        let start = Instant::now();
        session.run(id, &uniforms(step + 2))?;
        session.drain(id)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let total = began.elapsed().as_secs_f64();
    let host = session.host_seconds() - host;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[steps / 2];
    Ok(json!({
        "n": steps, "median_ms": median * 1e3, "best_ms": seconds[0] * 1e3, "worst_ms": seconds[steps - 1] * 1e3,
        "images_per_second": batch as f64 / median, "gflops": session.plan(id).flops() as f64 / median / 1e9, "host_share": host / total,
    }))
}

/// The peaks that ops are compared with: the better GFLOP/s of a 1024^3 product and of a convolution whose operands stay in caches,
/// and GB/s of an elementwise op over 64 MB.
fn peaks(device: &str) -> Result<(f64, f64), Failure> {
    let (mut session, _) = device::open(&choice(device)?)?;
    let mut g = Graph::default();
    let x = g.input("x", TensorType::f32(Shape::rows(1024, 1024)));
    let w = g.input("w", TensorType::f32(Shape::new(1024, 1, 1, 1024)));
    let z = g.input("z", TensorType::f32(Shape::new(256, 32, 32, 32)));
    let map = g.input("map", TensorType::f32(Shape::new(64, 8, 8, 64)));
    let kernel = g.input("kernel", TensorType::f32(Shape::new(64, 3, 3, 64)));
    g.label("peak");
    let y = g.emit1(Conv2d::new(1, 0).into(), &[x, w]);
    let copy = g.emit1(Scale { a: 0.5 }.into(), &[z]);
    let conv = g.emit1(Conv2d::new(1, 1).into(), &[map, kernel]);
    for (name, value) in [("y", y), ("copy", copy), ("conv", conv)] {
        g.output(name, value);
    }
    session.allocate(&g.layout)?;
    let id = session.load(lower("peak", &g, Options { target: session.target(), alias: true }))?;
    fill(session.as_mut(), id)?;
    session.run(id, &StepUniforms::default())?;
    let mut best = [f64::INFINITY; 3];
    for _ in 0..5 {
        for (step, best) in best.iter_mut().enumerate() {
            *best = best.min(session.time_step(id, step, 2)?);
        }
    }
    let steps = &session.plan(id).steps;
    let gflops = |i: usize| steps[i].flops as f64 / best[i] / 1e9;
    Ok((gflops(0).max(gflops(2)), steps[1].bytes() as f64 / best[1] / 1e9))
}

/// Every distinct op of the plan: median milliseconds, rates, share of the peak that bounds it, how often it occurs.
fn time_ops(session: &mut dyn Session, id: PlanId, peak: (f64, f64)) -> Result<Value, Failure> {
    let mut distinct: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (i, step) in session.plan(id).steps.iter().enumerate() {
        let shapes = step.io.inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        distinct.entry(format!("{:?} {shapes}", step.op)).or_insert((i, 0)).1 += 1;
    }
    let mut rows = Vec::new();
    for (key, (index, count)) in distinct {
        let mut seconds = (0..5).map(|_| session.time_step(id, index, 1)).collect::<Result<Vec<_>, _>>()?;
        seconds.sort_by(f64::total_cmp);
        let (s, step) = (seconds[2], &session.plan(id).steps[index]);
        let (gflops, gbs) = (step.flops as f64 / s / 1e9, step.bytes() as f64 / s / 1e9);
        let share = f64::max(gflops / peak.0, gbs / peak.1);
        rows.push(json!({ "op": step.op.name(), "detail": key, "label": step.label, "count": count, "ms": s * 1e3, "total_ms": s * 1e3 * count as f64,
            "gflops": gflops, "gigabytes_per_second": gbs, "share_of_peak": share }));
    }
    rows.sort_by(|a, b| b["total_ms"].as_f64().unwrap_or(0.0).total_cmp(&a["total_ms"].as_f64().unwrap_or(0.0)));
    Ok(Value::Array(rows))
}

fn text(result: &Value) -> String {
    let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    let mut out = format!(
        "{}, width {}, batch {}, ready after {:.1} s\n",
        result["device"],
        result["width"],
        result["batch_size"],
        number(&result["ready_seconds"])
    );
    if let Some(s) = result.get("step") {
        out += &format!(
            "step: median {:.1} ms ({:.1}..{:.1}, n = {}), {:.1} images/s, {:.1} GFLOP/s, host {:.1} %, memory {:.1} MB (plan {:.1} MB)\n",
            number(&s["median_ms"]),
            number(&s["best_ms"]),
            number(&s["worst_ms"]),
            s["n"],
            number(&s["images_per_second"]),
            number(&s["gflops"]),
            number(&s["host_share"]) * 100.0,
            number(&s["allocated_bytes"]) / 1e6,
            number(&s["planned_bytes"]) / 1e6,
        );
    }
    if let Some(ops) = result.get("ops").and_then(Value::as_array) {
        out += &format!(
            "peak: {:.1} GFLOP/s, {:.1} GB/s\n",
            number(&result["peak"]["gflops"]),
            number(&result["peak"]["gigabytes_per_second"])
        );
        out += "  total ms  count        ms  GFLOP/s    GB/s   peak  op (first layer)\n";
        for r in ops {
            out += &format!(
                "{:10.2} {:6} {:9.3} {:8.1} {:7.1} {:5.0}%  {}\n",
                number(&r["total_ms"]),
                r["count"],
                number(&r["ms"]),
                number(&r["gflops"]),
                number(&r["gigabytes_per_second"]),
                number(&r["share_of_peak"]) * 100.0,
                r["label"].as_str().unwrap_or("")
            );
        }
    }
    out.trim_end().into()
}

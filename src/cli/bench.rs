//! `aavae bench`, `tune`: how fast a device is, and with which kernels.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::inspect::ModelArgs;
use super::{Failure, Outcome, choice, print_json, print_text, say, usage};
use crate::device::{self, PlanId, Session};
use crate::ir::Graph;
use crate::method::{self, ModelConfig, Training, Views};
use crate::ops::{Conv2d, Emit, Scale, StepUniforms};
use crate::plan::summary;
use crate::run::fit::{self, Fit};
use crate::run::settings::PrecisionKind;
use crate::run::{RunError, state};
use crate::tensor::{Shape, TensorType};
use crate::train::compare;
use crate::tune;

/// The batch size as what may be lowered until a plan fits.
fn batch(asked: usize) -> Fit {
    Fit { option: "--batch-size", asked, least: 2 }
}

#[derive(Debug, clap::Args)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Seconds for new measurements
    #[arg(long, default_value_t = tune::BUDGET.as_secs_f64(), value_name = "SECONDS")]
    budget: f64,
    /// Try every candidate of every product, whatever is remembered, and print each; remembers the
    /// result
    #[arg(long)]
    sweep: bool,
    /// Only products whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Beside each default only candidates whose description contains this, e.g. `library`
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    candidates: String,
}

pub(super) fn tune(args: &TuneArgs) -> Outcome {
    let Ok(budget) = Duration::try_from_secs_f64(args.budget) else {
        return Err(usage(format!("--budget is {}; it must be seconds", args.budget), None));
    };
    let (config, rule) = args.model.step()?;
    let (mut session, why, precision) = args.model.open()?;
    say(&format!("device: {} ({why})", session.device()));
    let scaled = precision == PrecisionKind::F16;
    let how = Training { rule, scaled, ..Training::default() };
    let plan = session.lower("train", &method::training(&config, how).graph);
    let mut products = tune::products([&plan]);
    products.retain(|p| args.only.as_ref().is_none_or(|text| p.key.contains(text)));
    if products.is_empty() || !session.capabilities().dispatches {
        let hint = "`cpu` has none; `--only` takes part of a product's name, e.g. `conv2d `";
        let message =
            format!("no product with several variants is there to tune on {}", session.device());
        return Err(RunError::config(message, Some(hint)).into());
    }
    let effort = tune::Effort { budget, sweep: args.sweep, candidates: &args.candidates };
    let report =
        tune::tune_products(&mut session, &products, &mut tune::Memory::of_user(), effort)?;
    if args.model.json {
        let chosen: BTreeMap<_, _> =
            session.choices().iter().map(|(k, v)| (k.clone(), v.to_string())).collect();
        print_json(&json!({ "device": session.device(), "chosen": chosen, "report": report }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::from("        ms   GFLOP/s  variant, product\n");
    for t in &report.trials {
        let number =
            |x: Option<f64>, scale: f64| x.map_or("-".into(), |x| format!("{:.3}", x * scale));
        let (ms, rate) = (number(t.seconds, 1e3), number(t.flops_per_second, 1e-9));
        let refused = t.refused.as_ref().map_or(String::new(), |why| format!(", refused: {why}"));
        text += &format!("{ms:>10} {rate:>9}  {}, {}{refused}\n", t.variant, t.key);
    }
    for (key, variant) in session.choices().iter() {
        text += &format!("takes {variant} for {key}\n");
    }
    print_text(&format!("{text}{report}"))?;
    Ok(ExitCode::SUCCESS)
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
    /// First compare a step with its ops one by one: the bits, and what ops write beside their
    /// results
    #[arg(long)]
    check: bool,
    /// Take the table of defaults instead of measuring which kernels are the fastest
    #[arg(long)]
    no_tune: bool,
}

pub(super) fn bench(args: &BenchArgs) -> Outcome {
    if args.steps == 0 {
        return Err(usage("--steps is 0; it must be positive", None));
    }
    let (config, rule) = args.model.step()?;
    let opened = Instant::now();
    let (mut session, why, precision) = args.model.open()?;
    let session = &mut session;
    say(&format!("device: {} ({why})", session.device()));
    let scaled = precision == PrecisionKind::F16;
    let views = if args.augment { Views::Drawn } else { Views::Given };
    let model = |batch| {
        method::training(
            &ModelConfig { batch, ..config },
            Training { views, rule, scaled, ..Training::default() },
        )
    };
    let plan =
        fit::plan(session, "the train plan", batch(config.batch), &|batch| model(batch).graph)?;
    let training = model(config.batch);
    // A software adapter takes seconds to compile a candidate and keeps its table of defaults.
    let plan = if args.no_tune || session.target().software || !session.capabilities().dispatches {
        plan
    } else {
        let effort = tune::Effort::within(tune::BUDGET);
        let report = tune::tune(session, &[&training.graph], &mut tune::Memory::of_user(), effort)?;
        say(&report.to_string());
        session.lower("train", &training.graph)
    };
    if args.check
        && let Some(wrong) = compare::compare_step(session, &training.graph, &training.params)?
    {
        return Err(RunError::config(format!("the step is wrong: {wrong}"), None).into());
    }
    session.allocate(&training.graph.layout);
    let id = session.load(plan)?;
    state::initialise(session, &training.graph.layout, &training.params, 0)?;
    compare::fill(session, id)?;
    let mut result = json!({
        "device": session.device(),
        "method": config.objective.method.name(),
        "width": config.net.width,
        "batch_size": config.batch,
        "precision": precision,
        "parameters": training.params.count(),
        "plan": summary(session.plan(id)),
    });
    let uniforms = |step: usize| StepUniforms {
        step: step as u32,
        learning_rate: 1e-4,
        bias1: 1.0,
        bias2: 1.0,
        ..StepUniforms::default()
    };
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

/// Samples of a timing of whole steps; their median counts.
const SAMPLES: usize = 5;

/// Steps are queued one behind the other, as in training: the host reads their scalars once a
/// sample.
fn time_steps(
    session: &mut Session,
    id: PlanId,
    steps: usize,
    batch: usize,
    uniforms: impl Fn(usize) -> StepUniforms,
) -> Result<Value, Failure> {
    // Two more steps than the first: after them a watched device is no longer measured piece by
    // piece.
    for step in 1..3 {
        session.run(id, &uniforms(step))?;
    }
    session.drain(id)?;
    let host = session.host_seconds();
    let samples = SAMPLES.min(steps);
    let mut seconds = Vec::with_capacity(samples);
    let began = Instant::now();
    for sample in 0..samples {
        let range = sample * steps / samples..(sample + 1) * steps / samples;
        let (start, count) = (Instant::now(), range.len());
        for step in range {
            session.run(id, &uniforms(step + 3))?;
        }
        let rows = session.drain(id)?;
        seconds.push(start.elapsed().as_secs_f64() / count as f64);
        finite(session, id, &rows)?;
    }
    let total = began.elapsed().as_secs_f64();
    let host = session.host_seconds() - host;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[samples / 2];
    Ok(json!({
        "n": steps, "samples": samples, "median_ms": median * 1e3, "best_ms": seconds[0] * 1e3,
        "worst_ms": seconds[samples - 1] * 1e3, "images_per_second": batch as f64 / median,
        "gflops": session.plan(id).flops() as f64 / median / 1e9, "host_share": host / total,
    }))
}

/// Refuses the times of steps that are not trained with: one whose loss or gradient is not finite
/// leaves the weights as they are, which takes less. Where the loss is scaled (f16) only the loss
/// is looked at: there a gradient that is not finite belongs to training.
fn finite(session: &Session, id: PlanId, rows: &[(u32, Vec<f32>)]) -> Result<(), Failure> {
    let Some((step, row)) = rows.iter().find(|(_, row)| row.iter().any(|x| !x.is_finite())) else {
        return Ok(());
    };
    let what = RunError::what(&session.plan(id).ring.scalars, row);
    let message = format!("the {what} at step {step}, so the time of the step says nothing");
    Err(RunError::config(message, Some("`bench --step --check` looks for the op")).into())
}

/// The peaks that ops are compared with: the better GFLOP/s of a 1024^3 product and of a
/// convolution whose operands stay in caches, and GB/s of an elementwise op over 64 MB.
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
    session.allocate(&g.layout);
    let id = session.load(session.lower("peak", &g))?;
    compare::fill(&mut session, id)?;
    session.run(id, &StepUniforms::default())?;
    let mut best = [f64::INFINITY; 3];
    for _ in 0..3 {
        for (step, best) in best.iter_mut().enumerate() {
            *best = best.min(session.time_op(id, step)?.seconds);
        }
    }
    let steps = &session.plan(id).ops;
    let gflops = |i: usize| steps[i].flops as f64 / best[i] / 1e9;
    Ok((gflops(0).max(gflops(2)), steps[1].bytes() as f64 / best[1] / 1e9))
}

/// Every distinct op of the plan: median milliseconds, rates, share of the peak that bounds it, how
/// often it occurs.
fn time_ops(session: &mut Session, id: PlanId, peak: (f64, f64)) -> Result<Value, Failure> {
    let mut distinct: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (i, step) in session.plan(id).ops.iter().enumerate() {
        let shapes = step.io.inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        distinct.entry(format!("{:?} {shapes}", step.op)).or_insert((i, 0)).1 += 1;
    }
    let mut rows = Vec::new();
    for (key, (index, count)) in distinct {
        let timing = session.time_op(id, index)?;
        let (s, step) = (timing.seconds, &session.plan(id).ops[index]);
        let (gflops, gbs) = (step.flops as f64 / s / 1e9, step.bytes() as f64 / s / 1e9);
        let share = f64::max(gflops / peak.0, gbs / peak.1);
        rows.push(json!({
            "op": step.op.name(),
            "detail": key,
            "label": step.label,
            "count": count,
            "ms": s * 1e3,
            "total_ms": s * 1e3 * count as f64,
            "gflops": gflops,
            "gigabytes_per_second": gbs,
            "share_of_peak": share,
            "n": timing.runs,
            "clock": if timing.by_device { "device" } else { "host" },
        }));
    }
    rows.sort_by(|a, b| {
        b["total_ms"].as_f64().unwrap_or(0.0).total_cmp(&a["total_ms"].as_f64().unwrap_or(0.0))
    });
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
            "step: median {:.1} ms ({:.1}..{:.1}, n = {}), {:.1} images/s, {:.1} GFLOP/s, host \
             {:.1} %, memory {:.1} MB (plan {:.1} MB)\n",
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

//! Single operations, losses, optimisers and schedules against PyTorch's numbers
//! (`tests/golden/layers.*`), forward and backward, on every device. Losses are means over the
//! batch here, so per-example numbers are compared by their mean.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

#[path = "golden/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod golden;

use std::collections::BTreeMap;
use std::process::ExitCode;

use aavae::device::{Data, PlanId, Session};
use aavae::eval::probe;
use aavae::ir::{Graph, Group, autodiff};
use aavae::ops::{
    Adam, BatchNorm, BatchNormEval, Conv2d, CosineSimilarity, Dot, Emit, Epilogue, GaussianNll,
    GlobalAvgPool, KlNormal, L2Normalize, MaxPool2d, Mse, NtXent, Reparameterize, Scale, Sgd,
    SoftmaxCrossEntropy, StepUniforms, UpsampleNearest, ValueId,
};
use aavae::run::settings::{RunConfig, Schedule};
use aavae::tensor::{Shape, TensorType};
use aavae::train::schedule;
use golden::{Device, Report, Tensors, fill, no_adapter, read, wgpu_devices, wide};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// Relative error in f32, and in f64 (the golden numbers are rounded to f32).
const F32: f64 = 1e-5;
const F64: f64 = 1e-6;

/// A tensor in PyTorch's layout.
#[derive(Clone, Debug)]
struct Stored {
    dims: Vec<usize>,
    data: Vec<f32>,
}

/// Shape in memory of PyTorch's dimensions: NCHW and OIHW become NHWC and OHWI, the last axis a
/// multiple of 4; one element is a scalar.
fn memory(dims: &[usize]) -> Shape {
    let padded = |c: usize| c.next_multiple_of(4);
    match *dims {
        [1] => Shape::SCALAR,
        [c] => Shape::vector(c),
        [n, c] => Shape::rows(n, padded(c)),
        [n, c, h, w] => Shape::new(n, h, w, padded(c)),
        _ => panic!("no tensor has dimensions {dims:?}"),
    }
}

/// Where each element lies in memory.
fn places(dims: &[usize]) -> Vec<usize> {
    let shape = memory(dims);
    let [n, c, h, w] = match *dims {
        [c] => [1, c, 1, 1],
        [n, c] => [n, c, 1, 1],
        [n, c, h, w] => [n, c, h, w],
        _ => unreachable!("memory() has refused it"),
    };
    let at = |i: usize| shape.at(i / (c * h * w), i / w % h, i % w, i / (h * w) % c);
    (0..n * c * h * w).map(at).collect()
}

impl Stored {
    fn to_memory(&self) -> Vec<f32> {
        let mut out = vec![0.0; memory(&self.dims).len()];
        for (x, at) in self.data.iter().zip(places(&self.dims)) {
            out[at] = *x;
        }
        out
    }
}

fn from_memory(dims: &[usize], data: &[f64]) -> Vec<f64> {
    places(dims).into_iter().map(|at| data[at]).collect()
}

fn dimensions(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .expect("dimensions")
        .iter()
        .map(|d| d.as_u64().expect("a dimension") as usize)
        .collect()
}

/// A case and its graph under construction.
struct Layer<'a> {
    case: &'a Value,
    golden: &'a Tensors,
    g: Graph,
    /// What the graph takes, by name.
    values: BTreeMap<String, (Stored, ValueId)>,
}

impl<'a> Layer<'a> {
    fn name(&self) -> &'a str {
        self.case["name"].as_str().expect("a case has a name")
    }
    fn number(&self, key: &str) -> usize {
        self.case[key].as_u64().unwrap_or_else(|| panic!("{}: no number `{key}`", self.name()))
            as usize
    }
    /// An input by name: filled by the hash, or stored. Stored ones have the dimensions given.
    fn tensor(&self, name: &str, dims: Option<&[usize]>) -> Stored {
        let full = format!("{}.{name}", self.name());
        let entry = &self.case["inputs"][name];
        if entry.is_null() {
            let data = self
                .golden
                .get(&format!("{}/{name}", self.name()))
                .iter()
                .map(|&x| x as f32)
                .collect();
            return Stored {
                dims: dims.unwrap_or_else(|| panic!("{full} is stored")).to_vec(),
                data,
            };
        }
        let number = |key: &str| entry[key].as_f64().expect("a number");
        let dims = dimensions(&entry["shape"]);
        Stored { data: fill(&full, dims.iter().product(), number("scale"), number("offset")), dims }
    }
    fn add(&mut self, name: &str, stored: Stored, group: Option<Group>) -> ValueId {
        let shape = memory(&stored.dims);
        let id = match group {
            Some(group) => self.g.state(name, shape, group),
            None => self.g.input(name, TensorType::f32(shape)),
        };
        self.values.insert(name.into(), (stored, id));
        id
    }
    /// An input whose gradient is compared.
    fn param(&mut self, name: &str) -> ValueId {
        let stored = self.tensor(name, None);
        self.add(name, stored, Some(Group::Param))
    }
    /// The same for a stored one.
    fn stored_param(&mut self, name: &str, dims: &[usize]) -> ValueId {
        let stored = self.tensor(name, Some(dims));
        self.add(name, stored, Some(Group::Param))
    }
    fn input(&mut self, name: &str) -> ValueId {
        let stored = self.tensor(name, None);
        self.add(name, stored, None)
    }
    fn has(&self, name: &str) -> bool {
        !self.case["inputs"][name].is_null()
    }
    fn op(&mut self, op: impl Into<aavae::ops::Op>, inputs: &[ValueId]) -> ValueId {
        self.g.label("layer");
        self.g.emit1(op.into(), inputs)
    }
    /// The result `y` that meets the cotangent `dy`; returns the scalar to differentiate.
    fn meet(&mut self, y: &str, value: ValueId, dy: &str) -> ValueId {
        self.g.output(y, value);
        let dy = self.input(dy);
        self.op(Dot, &[value, dy])
    }

    /// Builds the case; `Some` is the scalar to differentiate.
    fn build(&mut self) -> Option<ValueId> {
        let op = self.case["op"].as_str().expect("a case has an op");
        if op == "cosine_similarity" {
            let inputs = [self.input("a"), self.input("b")];
            let y = self.op(CosineSimilarity, &inputs);
            self.g.output("y", y);
            return None;
        }
        let scalar = self.layer(op).or_else(|| self.objective(op));
        Some(scalar.unwrap_or_else(|| panic!("unknown op `{op}` in layers.json")))
    }

    /// A layer, met by a cotangent.
    fn layer(&mut self, op: &str) -> Option<ValueId> {
        let scalar = match op {
            "conv2d" | "linear" => {
                let mut inputs = vec![self.param("x"), self.param("weight")];
                let bias = self.has("bias");
                if bias {
                    inputs.push(self.param("bias"));
                }
                let (stride, pad) = if op == "linear" {
                    (1, 0)
                } else {
                    (self.number("stride"), self.number("padding"))
                };
                let y = self.op(
                    Conv2d { stride, pad, epilogue: Epilogue { bias, ..Epilogue::default() } },
                    &inputs,
                );
                self.meet("y", y, "dy")
            }
            "batch_norm" => {
                let dims = dimensions(&self.case["inputs"]["dy"]["shape"]);
                let mut inputs =
                    vec![self.stored_param("x", &dims), self.param("weight"), self.param("bias")];
                for name in ["running_mean", "running_var"] {
                    let stored = self.tensor(name, None);
                    inputs.push(self.add(name, stored, Some(Group::Buffer)));
                }
                let y = self.op(
                    BatchNorm { eps: 1e-5, momentum: 0.1, add: false, relu: false, parts: None },
                    &inputs,
                );
                self.meet("y", y, "dy")
            }
            "max_pool" => {
                let name = self.name();
                let dims = if name == "max_pool" { [2, 4, 7, 6] } else { [2, 4, 4, 4] };
                let x = self.stored_param("x", &dims);
                let y = self.op(MaxPool2d, &[x]);
                self.meet("y", y, "dy")
            }
            "global_avg_pool" => {
                let x = self.param("x");
                let y = self.op(GlobalAvgPool, &[x]);
                self.meet("y", y, "dy")
            }
            "upsample_nearest" => {
                let x = self.param("x");
                let size = dimensions(&self.case["size"]);
                let y = self.op(UpsampleNearest { h: size[0], w: size[1] }, &[x]);
                self.meet("y", y, "dy")
            }
            "reparameterise" => {
                let inputs = [self.param("mu"), self.param("logvar"), self.input("eps")];
                let z = self.op(Reparameterize, &inputs);
                self.meet("z", z, "dz")
            }
            _ => return None,
        };
        Some(scalar)
    }

    /// A part of an objective: a scalar by itself.
    fn objective(&mut self, op: &str) -> Option<ValueId> {
        let scalar = match op {
            "cross_entropy" => {
                let logits = self.stored_param("logits", &[6, 10]);
                let labels = self.g.input("labels", TensorType::u32(Shape::rows(6, 1)));
                let loss = self.op(SoftmaxCrossEntropy { classes: 10 }, &[logits, labels]);
                self.g.output("loss", loss);
                loss
            }
            "gaussian_nll" => {
                let inputs = [self.param("x_hat"), self.input("x"), self.param("log_scale")];
                let log_pxz = self.op(GaussianNll { channels: 3 }, &inputs);
                self.g.output("log_pxz", log_pxz);
                let loss = self.op(Scale { a: -1.0 }, &[log_pxz]);
                self.g.output("loss", loss);
                loss
            }
            "kl" => {
                let inputs = [self.param("mu"), self.param("logvar")];
                let kl = self.op(KlNormal, &inputs);
                self.g.output("kl", kl);
                kl
            }
            "mse" => {
                let inputs = [self.param("x_hat"), self.input("x")];
                let loss = self.op(Mse { channels: 3 }, &inputs);
                self.g.output("loss", loss);
                loss
            }
            "nt_xent" => {
                let dims = dimensions(&self.case["shape"]);
                let temperature = self.case["temperature"].as_f64().expect("a number") as f32;
                let z = self.stored_param("z", &dims);
                let unit = self.op(L2Normalize { rows: dims[0].next_multiple_of(4) }, &[z]);
                let similarities = self.op(Conv2d::new(1, 0), &[unit, unit]);
                let out =
                    self.g.emit(NtXent { views: dims[0], temperature }.into(), &[similarities]);
                self.g.output("loss", out[0]);
                self.g.output("accuracy", out[1]);
                out[0]
            }
            _ => return None,
        };
        Some(scalar)
    }

    /// Writes what the case gives.
    fn feed(&self, session: &mut Session, id: PlanId) -> Result<(), Failed> {
        for (name, (stored, _)) in &self.values {
            match (session.plan(id).input(name).map(|p| p.0), self.g.layout.get(name)) {
                (Some(i), _) => session.upload(id, i, Data::F32(&stored.to_memory()))?,
                (None, Some(state)) => session.write_state(
                    state.range.group,
                    state.range.offset,
                    &stored.to_memory(),
                )?,
                (None, None) => {
                    return Err(format!("{name} is neither uploaded nor persistent").into());
                }
            }
        }
        if let Some(i) = session.plan(id).input("labels").map(|p| p.0) {
            let labels: Vec<u32> = self
                .golden
                .get(&format!("{}/labels", self.name()))
                .iter()
                .map(|&x| x as u32)
                .collect();
            session.upload(id, i, Data::U32(&labels))?;
        }
        Ok(())
    }
}

fn tolerance(device: &Device) -> f64 {
    if *device == Device::Reference { F64 } else { F32 }
}

/// A batch norm's output in evaluation mode.
fn batch_norm_in_evaluation(
    layer: &Layer<'_>,
    session: &mut Session,
    report: &mut Report,
) -> Result<(), Failed> {
    let mut g = Graph::with_layout(layer.g.layout.clone());
    let state = |g: &mut Graph, name: &str| {
        let group = if name.starts_with("running") { Group::Buffer } else { Group::Param };
        g.state(name, memory(&layer.values[name].0.dims), group)
    };
    let inputs =
        ["x", "weight", "bias", "running_mean", "running_var"].map(|name| state(&mut g, name));
    g.label("eval");
    let y = g.emit1(BatchNormEval { eps: 1e-5, add: false, relu: false }.into(), &inputs);
    g.output("y", y);
    let id = session.load(session.lower("eval", &g))?;
    for (name, (stored, _)) in layer.values.iter().filter(|(name, _)| *name != "dy") {
        let range = g.layout.get(name).ok_or("not laid out")?.range;
        session.write_state(range.group, range.offset, &stored.to_memory())?;
    }
    session.poison(id)?;
    session.run(id, &StepUniforms::default())?;
    let got = from_memory(&layer.values["x"].0.dims, &read(session, id, "y")?);
    report.tensor("y_eval", &got, layer.golden.get(&format!("{}/y_eval", layer.name())));
    Ok(())
}

/// An op with its gradient.
fn layer(case: &Value, device: &Device) -> Result<(), Failed> {
    let golden = Tensors::open("layers.safetensors");
    let mut layer = Layer { case, golden: &golden, g: Graph::default(), values: BTreeMap::new() };
    let scalar = layer.build();
    if let Some(scalar) = scalar {
        autodiff::backward(&mut layer.g, scalar);
    }
    let name = layer.name();
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(&layer.g.layout);
    // With x = 100 +- 1, rounding the mean to f32 alone moves x - mean by 1e-5 of a standard
    // deviation.
    let loss_of_digits =
        if name == "bn2d_offset" && *device != Device::Reference { 4.0 } else { 1.0 };
    let mut report =
        Report::new(&format!("{name} {}", device.name()), tolerance(device) * loss_of_digits);
    let mut outputs: Vec<&str> =
        case["outputs"].as_array().ok_or("no outputs")?.iter().filter_map(Value::as_str).collect();

    if case["op"] == "batch_norm" {
        batch_norm_in_evaluation(&layer, session, &mut report)?;
        outputs.retain(|o| *o != "y_eval");
    }

    let id = session.load(session.lower("layer", &layer.g))?;
    session.poison(id)?;
    layer.feed(session, id)?;
    session.run(id, &StepUniforms::default())?;

    let (grads, buffers) =
        (wide(&session.read_state(Group::Grad)?), wide(&session.read_state(Group::Buffer)?));
    for output in outputs {
        let want = golden.get(&format!("{name}/{output}"));
        let state = |values: &[f64], of: &str| -> Result<Vec<f64>, Failed> {
            let range =
                layer.g.layout.get(of).ok_or_else(|| format!("{of} has no gradient"))?.range;
            Ok(from_memory(
                &layer.values[of].0.dims,
                &values[range.offset..range.offset + range.len],
            ))
        };
        match output {
            // Ours are means over the batch.
            "loss_per_example" => {}
            "kl" | "log_pxz" | "loss" | "accuracy" => {
                let ours = if case["op"] == "kl" { "kl" } else { output };
                let mean = want.iter().sum::<f64>() / want.len() as f64;
                report.tensor(output, &read(session, id, ours)?, &[mean]);
            }
            "running_mean_after" | "running_var_after" => {
                report.tensor(output, &state(&buffers, output.trim_end_matches("_after"))?, want);
            }
            "y" | "z" => {
                let dims = ["dy", "dz"]
                    .iter()
                    .find_map(|d| layer.values.get(*d))
                    .map_or(vec![want.len()], |d| d.0.dims.clone());
                let got = read(session, id, output)?;
                report.tensor(
                    output,
                    &if output == "y" && scalar.is_none() { got } else { from_memory(&dims, &got) },
                    want,
                );
            }
            gradient => report.tensor(
                gradient,
                &state(&grads, gradient.strip_prefix('d').ok_or("an unknown output")?)?,
                want,
            ),
        }
    }
    report.finish()
}

/// Three updates with stored gradients.
fn optimizer(case: &Value, device: &Device) -> Result<(), Failed> {
    let golden = Tensors::open("layers.safetensors");
    let mut layer = Layer { case, golden: &golden, g: Graph::default(), values: BTreeMap::new() };
    layer.param("w");
    let guard = layer.g.input("guard", TensorType::f32(Shape::SCALAR));
    let [p, grad, m, v] = [Group::Param, Group::Grad, Group::Moment1, Group::Moment2]
        .map(|group| layer.g.whole(group));
    layer.g.label("optimizer");
    let number = |value: &Value| value.as_f64().expect("a number");
    let weight_decay = number(&case["weight_decay"]);
    if case["op"] == "adam" {
        let (beta1, beta2) = (number(&case["betas"][0]), number(&case["betas"][1]));
        layer.g.emit(
            Adam { beta1, beta2, eps: number(&case["eps"]), weight_decay, plain: vec![] }.into(),
            &[p, grad, m, v, guard],
        );
    } else {
        layer.g.emit(
            Sgd {
                momentum: number(&case["momentum"]),
                nesterov: true,
                weight_decay,
                plain: vec![],
            }
            .into(),
            &[p, grad, m, guard],
        );
    }
    let name = layer.name();
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(&layer.g.layout);
    let id = session.load(session.lower("update", &layer.g))?;
    layer.feed(session, id)?;
    let run = RunConfig {
        learning_rate: number(&case["lr"]) as f32,
        warmup_epochs: 0,
        ..RunConfig::default()
    };
    let mut report = Report::new(&format!("{name} {}", device.name()), tolerance(device));
    for step in 0..3 {
        let i = session.plan(id).input("guard").ok_or("no guard")?.0;
        session.upload(id, i, Data::F32(&[1.0]))?;
        let grad: Vec<f32> =
            golden.get(&format!("{name}/grad.{step}")).iter().map(|&x| x as f32).collect();
        session.write_state(Group::Grad, 0, &grad)?;
        session.run(id, &schedule::uniforms(&run, 1, step))?;
        let got = wide(&session.read_state(Group::Param)?[..grad.len()]);
        let want =
            &golden.get(&format!("{name}/w_after"))[step as usize * grad.len()..][..grad.len()];
        report.tensor(&format!("step {step}"), &got, want);
    }
    report.finish()
}

/// The linear probe's schedule at batch 256, where its base is 0.1.
fn cosine_schedule() -> Result<(), Failed> {
    let golden = Tensors::open("layers.safetensors");
    let want = golden.get("cosine_schedule/lr");
    let got: Vec<f64> =
        (0..=90).map(|step| f64::from(probe::learning_rate(256, step, 90))).collect();
    let mut report = Report::new("cosine_schedule", F64);
    report.tensor("lr", &got, want);
    report.finish()
}

/// The schedules of pretraining without warm-up: `CosineAnnealingLR(90)`, and `LinearLR` from 1 to
/// 0 in 90.
fn schedules() -> Result<(), Failed> {
    let golden = Tensors::open("layers.safetensors");
    let straight: Vec<f64> = (0..90).map(|step| 0.1 * (1.0 - f64::from(step) / 90.0)).collect();
    let mut report = Report::new("schedules", F64);
    for (schedule, want) in
        [(Schedule::Cosine, &golden.get("cosine_schedule/lr")[..90]), (Schedule::Linear, &straight)]
    {
        // 9 epochs of 10 steps, and 90 steps of more epochs: the run's length counts, however it is
        // said.
        for (epochs, max_steps) in [(9, None), (20, Some(90))] {
            let config = RunConfig {
                learning_rate: 0.1,
                warmup_epochs: 0,
                schedule,
                epochs,
                max_steps,
                ..RunConfig::default()
            };
            let got: Vec<f64> =
                (0..90).map(|step| f64::from(schedule::learning_rate(&config, 10, step))).collect();
            report.tensor(&format!("{schedule:?}"), &got, want);
        }
        // After a warm-up of two epochs the fall takes the remaining seven, from the full rate on.
        let config = RunConfig {
            learning_rate: 0.1,
            warmup_epochs: 2,
            schedule,
            epochs: 9,
            ..RunConfig::default()
        };
        let got: Vec<f64> = [0, 10, 20, 55, 89]
            .map(|step| f64::from(schedule::learning_rate(&config, 10, step)))
            .into();
        let last = if schedule == Schedule::Linear {
            0.1 / 70.0
        } else {
            0.05 * (1.0 - (std::f64::consts::PI / 70.0).cos())
        };
        report.tensor(
            &format!("{schedule:?} after a warm-up"),
            &got,
            &[0.0, 0.05, 0.1, 0.05, last],
        );
    }
    report.finish()
}

/// Linear from 0 over the warm-up epochs, per step, then constant
/// (`torch.optim.lr_scheduler.LambdaLR(min(1, step / warm-up))`).
fn warm_up() -> Result<(), Failed> {
    let config = RunConfig { learning_rate: 2.5e-4, warmup_epochs: 10, ..RunConfig::default() };
    let mut report = Report::new("warm-up", F64);
    for step in 0..2000_u64 {
        let want = 2.5e-4 * (step as f64 / (10.0 * 39.0)).min(1.0);
        report.scaled(
            &format!("step {step}"),
            &[f64::from(schedule::learning_rate(&config, 39, step))],
            &[want],
            2.5e-4,
        );
    }
    report.finish()
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let gpus = wgpu_devices();
    let cases = golden::json("layers.json");
    let mut trials = vec![
        Trial::test("cosine_schedule", cosine_schedule),
        Trial::test("learning-rate warm-up", warm_up),
        Trial::test("schedules", schedules),
    ];
    for case in cases["cases"].as_array().expect("a list of cases") {
        let name = case["name"].as_str().expect("a case has a name");
        let run: fn(&Value, &Device) -> Result<(), Failed> = match case["op"].as_str() {
            Some("cosine_schedule") => continue,
            Some("adam" | "sgd_nesterov") => optimizer,
            _ => layer,
        };
        // Only products have a second GEMM variant.
        let variants =
            if matches!(case["op"].as_str(), Some("conv2d" | "linear")) { gpus.len() } else { 1 };
        for device in
            [Device::Reference, Device::Cpu].into_iter().chain(gpus.iter().take(variants).cloned())
        {
            let case = case.clone();
            trials.push(Trial::test(format!("{name}/{}", device.name()), move || {
                run(&case, &device)
            }));
        }
        if gpus.is_empty() {
            trials.push(no_adapter(name));
        }
    }
    libtest_mimic::run(&args, trials).exit_code()
}

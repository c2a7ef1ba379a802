//! Whole networks and whole training runs against PyTorch's numbers (`tests/golden`), on every
//! device.
//!
//! * `network_*`: one forward and backward pass from the same weights. Features, posterior, latent,
//!   reconstruction, losses, running statistics and the gradient of every parameter differ by less
//!   than 1e-4 of the largest element of their tensor.
//! * `measure_*`: what validation reports, in evaluation mode: likelihoods, weights of five samples
//!   an image, comparisons of views.
//! * `curve`: the loss of every step of 20 AE steps, 10 AAVAE steps and 10 SimCLR steps from the
//!   same weights.
//! * `optimizers`: the same for 10 AE steps of each optimiser with weight decay and 5 SimCLR steps
//!   of LARS, and the weights they end with.
//! * `half/curve`: 20 steps of every method in mixed precision, beside PyTorch's with the same
//!   casts, and gradients of the first.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure. `SHOW_ERRORS=1` prints the worst error of every trial.

#[path = "parity/curve.rs"]
mod curve;
#[path = "golden/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod golden;

use std::process::ExitCode;

use aavae::device::{Data, Session};
use aavae::ir::{Graph, Group, Layout};
use aavae::method::{self, Method, Model, Training, Views, training};
use aavae::model::resnet;
use aavae::nn::{Builder, Param};
use aavae::ops::StepUniforms;
use aavae::plan::{Options, Plan, lower};
use aavae::run::settings::RunConfig;
use aavae::tensor::{Shape, TensorType};
use aavae::train::measure::{add_bound, bits_per_dim, log_mean_exp};
use curve::{curve, halves};
use golden::{
    Device, Report, Tensors, fill, fill_parameter, largest, no_adapter, pixels, read, wgpu_devices,
    wide,
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// Relative error of a network's outputs and gradients in f32. PyTorch's own f32 run is within
/// 2.2e-5 (`f32_error` in the manifest).
const F32: f64 = 1e-4;
/// Relative error in f64: the golden numbers are rounded to f32.
const F64: f64 = 1e-6;

/// The configuration of a case in the manifest. Its keys are named as in Python.
fn config(method: &str, case: &Value) -> RunConfig {
    let text = |key: &str| case[key].clone();
    let size = |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("no size `{key}`")) as usize;
    let parse =
        |what: Value| serde_json::from_value(what).unwrap_or_else(|e| panic!("{case}: {e}"));
    RunConfig {
        method: serde_json::from_value(json!(method)).unwrap_or_else(|e| panic!("{method}: {e}")),
        encoder: parse(text("encoder")),
        decoder: parse(text("decoder")),
        stem: serde_json::from_value(case.get("stem").cloned().unwrap_or(json!("cifar")))
            .unwrap_or_else(|e| panic!("{case}: {e}")),
        width: size("width"),
        latent_dim: size("latent"),
        image_size: size("image"),
        batch_size: size("batch"),
        learn_log_scale: case["learn_log_scale"] == true,
        ..RunConfig::default()
    }
}

/// The elements of a parameter in the file's order; padding must hold zeros.
fn in_file_order(p: &Param, memory: &[f32]) -> Result<Vec<f64>, Failed> {
    let file = p.file.to_file(memory, p.shape);
    let same = p
        .file
        .to_memory(&file, p.shape)
        .iter()
        .zip(memory)
        .all(|(a, b)| a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0));
    if same { Ok(wide(&file)) } else { Err(format!("{}: the padding is not 0", p.name).into()) }
}

/// Allocates the model and fills its weights by the hash.
fn fill_model(
    session: &mut Session,
    model: &Model,
    value: impl Fn(&Param) -> Vec<f32>,
) -> Result<(), Failed> {
    session.allocate(&model.graph.layout);
    for p in &model.params.all {
        let range = model.graph.layout.get(&p.name).ok_or("a parameter is not laid out")?.range;
        session.write_state(p.group, range.offset, &p.file.to_memory(&value(p), p.shape))?;
    }
    Ok(())
}

fn input(plan: &Plan, name: &str) -> Option<usize> {
    plan.input(name).map(|i| i.0)
}

/// One forward and backward pass.
fn network(file: &str, case: &Value, device: &Device, fused: bool) -> Result<(), Failed> {
    let golden = Tensors::open(file);
    let config = config(case["method"].as_str().ok_or("no method")?, case);
    let (n, side, latent) = (config.batch_size, config.image_size, config.latent_dim);
    let suffix = case["input_suffix"].as_str().ok_or("no suffix")?;
    let image = |name: &str, n: usize| {
        pixels(&fill(&format!("input.{name}{suffix}"), n * 3 * side * side, 4.0, 0.0), n, side)
    };
    let views = config.method.views() * n;
    let (original, view) = (image("original", n), image("view", views));
    let eps = fill(&format!("input.eps{suffix}"), n * latent, 2.0 * 3.0_f64.sqrt(), 0.0);

    let model_config = config.model([0.0; 3], [1.0; 3]);
    let model = training(
        &model_config,
        Training { views: Views::Given, update: false, ..Training::default() },
    );
    let layout = model.graph.layout.clone();
    let mut session = device.open()?;
    let session = &mut session;
    fill_model(session, &model, |p| fill_parameter(&p.name, &p.file.shape()))?;
    let mut report = Report::new(
        &format!("{file} {} {fused}", device.name()),
        if *device == Device::Reference { F64 } else { F32 },
    );

    // Before the step moves the running statistics.
    let seen = if config.method.augments() { &view } else { &original };
    let h = features_in_evaluation(session, &layout, &config, seen, fused)?;
    report.tensor("h_eval", &h, golden.get("out/h_eval"));

    let id = session.load(session.lower("train", &model.graph))?;
    session.poison(id)?;
    for (name, data) in [("original", &original), ("view", &view), ("eps", &eps)] {
        if let Some(i) = input(session.plan(id), name) {
            session.upload(id, i, Data::F32(data))?;
        }
    }
    session.run(id, &StepUniforms::default())?;

    for name in ["h", "mu", "logvar", "z"] {
        let ours = if name == "mu" && !config.method.samples() { "z" } else { name };
        if let Some(want) = golden.find(&format!("out/{name}")) {
            report.tensor(name, &read(session, id, ours)?, want);
        }
    }
    if config.method.reconstructs() {
        let nhwc = read(session, id, "reconstruction")?;
        let area = side * side;
        let nchw: Vec<f64> = (0..n * 3 * area)
            .map(|i| nhwc[(i / (3 * area) * area + i % area) * 4 + i / area % 3])
            .collect();
        report.sample("reconstruction", &nchw, golden.get("out.sample/reconstruction"));
    }
    for name in ["loss", "log_pxz", "kl", "contrastive_accuracy"] {
        // Ours are means over the batch.
        if let Some(want) = golden.find(&format!("out/{name}")) {
            report.tensor(
                name,
                &read(session, id, name)?,
                &[want.iter().sum::<f64>() / want.len() as f64],
            );
        }
    }

    states_of_a_step(&golden, session, &model, &mut report)?;
    report.finish()
}

/// The encoder alone in evaluation mode.
fn features_in_evaluation(
    session: &mut Session,
    layout: &Layout,
    config: &RunConfig,
    images: &[f32],
    fuse: bool,
) -> Result<Vec<f64>, Failed> {
    let side = config.image_size;
    let mut b = Builder::new(Graph::with_layout(layout.clone()), false);
    let shape = Shape::new(images.len() / (side * side * 4), side, side, 4);
    let x = b.graph.input("image", TensorType::f32(shape));
    let h = resnet::encoder(&mut b, &config.net(), x);
    b.graph.output("h_eval", h);
    let plan = lower("eval", &b.graph, Options { fuse, ..session.options() });
    let eval = session.load(plan)?;
    session.poison(eval)?;
    session.upload(eval, 0, Data::F32(images))?;
    session.run(eval, &StepUniforms::default())?;
    read(session, eval, "h_eval")
}

/// Gradients and running statistics after one step.
fn states_of_a_step(
    golden: &Tensors,
    session: &mut Session,
    model: &Model,
    report: &mut Report,
) -> Result<(), Failed> {
    let layout = &model.graph.layout;
    let (grads, buffers) = (session.read_state(Group::Grad)?, session.read_state(Group::Buffer)?);
    let (mut gradients, mut statistics) = (0, 0);
    for p in &model.params.all {
        let range = layout.get(&p.name).ok_or("a parameter is not laid out")?.range;
        let part = |flat: &[f32]| in_file_order(p, &flat[range.offset..range.offset + range.len]);
        if p.group == Group::Param {
            gradients += 1;
            // 0 in exact arithmetic (BatchNorm removes a constant): measured against the gradient
            // of that BatchNorm's own bias.
            if let Some(layer) =
                p.name.strip_prefix("projection.").and_then(|rest| rest.strip_suffix(".0.bias"))
            {
                let next = format!("projection.{layer}.1.bias");
                let behind = golden
                    .find(&format!("grad/{next}"))
                    .unwrap_or_else(|| golden.get(&format!("grad.sample/{next}")));
                let got = part(&grads)?;
                report.scaled(&p.name, &got, &vec![0.0; got.len()], largest(&behind[..32]));
            } else {
                report.stored(golden, "grad", &p.name, &part(&grads)?);
            }
        } else if p.name != "log_scale" {
            statistics += 1;
            report.stored(golden, "stat", &p.name, &part(&buffers)?);
        }
    }
    if (gradients, statistics) != (golden.count("grad"), golden.count("stat")) {
        return Err(format!(
            "{gradients} gradients and {statistics} statistics, PyTorch has others"
        )
        .into());
    }
    Ok(())
}

/// The validation metrics of one batch.
fn measures(file: &str, case: &Value, device: &Device) -> Result<(), Failed> {
    let config = config(case["method"].as_str().ok_or("no method")?, case);
    let (n, side, latent) = (config.batch_size, config.image_size, config.latent_dim);
    let samples = case["samples"].as_u64().ok_or("no samples")? as usize;
    let std: [f64; 3] = serde_json::from_value(case["std"].clone())?;
    let model_config = config.model([0.0; 3], std.map(|x| x as f32));
    let golden = Tensors::open(file);
    let trained = training(&model_config, Training { views: Views::Given, ..Training::default() });
    let layout = trained.graph.layout.clone();
    let mut session = device.open()?;
    let session = &mut session;
    fill_model(session, &trained, |p| fill_parameter(&p.name, &p.file.shape()))?;

    let image = |name: &str| {
        pixels(&fill(&format!("measure.{name}"), n * 3 * side * side, 4.0, 0.0), n, side)
    };
    let noise = |name: &str, count: usize| {
        fill(&format!("measure.{name}"), n * count * latent, 2.0 * 3.0_f64.sqrt(), 0.0)
    };
    let mut run = |graph: &Graph,
                   eps: &str,
                   count: usize,
                   outputs: &[&str]|
     -> Result<Vec<Vec<f64>>, Failed> {
        let id = session.load(session.lower("measure", graph))?;
        session.poison(id)?;
        let inputs = [
            ("original", image("original")),
            ("view", image("view")),
            ("eps", noise(eps, count)),
            ("eps_original", noise("eps_original", 1)),
        ];
        for (name, data) in inputs {
            if let Some(i) = input(session.plan(id), name) {
                session.upload(id, i, Data::F32(&data))?;
            }
        }
        session.run(id, &StepUniforms::default())?;
        outputs.iter().map(|name| read(session, id, name)).collect()
    };
    let tolerance = if *device == Device::Reference { F64 } else { F32 };
    let mut report = Report::new(&format!("{file} {}", device.name()), tolerance);
    let scalars = run(
        &method::validation(&model_config, &layout, Views::Given).graph,
        "eps",
        1,
        &["log_pxz", "kl"],
    )?;
    let mut means =
        vec![("log_pxz".to_owned(), scalars[0][0] as f32), ("kl".into(), scalars[1][0] as f32)];
    add_bound(&model_config, &mut means);
    for (name, value) in &means {
        report.tensor(name, &[f64::from(*value)], golden.get(name));
    }
    let weights = run(
        &method::importance(&model_config, &layout, samples, Views::Given).graph,
        "eps_samples",
        samples,
        &["log_weights"],
    )?;
    report.tensor("log_weights", &weights[0], golden.get("log_weights"));
    let rows: Vec<f32> = weights[0].iter().map(|x| *x as f32).collect();
    let log_px = rows.chunks(samples).map(log_mean_exp).sum::<f64>() / n as f64;
    report.tensor("log_px", &[log_px], golden.get("log_px"));
    report.tensor(
        "bits_per_dim",
        &[bits_per_dim(&model_config, log_px)],
        golden.get("bits_per_dim"),
    );
    let views = run(
        &method::views(&model_config, &layout, Views::Given).graph,
        "eps",
        1,
        &["cosine", "kl"],
    )?;
    report.tensor("cosine", &views[0], golden.get("view_cosine"));
    report.tensor("kl of views", &views[1], golden.get("view_kl"));
    report.finish()
}

/// The comparison must refuse these, or nothing below means anything.
fn canaries() -> Vec<Trial> {
    fn refuses(name: &str, spoil: impl Fn(&mut Vec<f64>) + Send + 'static) -> Trial {
        Trial::test(format!("comparison refuses {name}"), move || {
            let want: Vec<f64> = (0..100).map(|i| f64::from(i * 37 % 101) - 50.0).collect();
            let mut stored: Vec<f64> = want.clone();
            stored.extend([want.iter().map(|x| x * x).sum::<f64>().sqrt(), want.iter().sum()]);
            // 100 draws of 100 elements miss some: those are caught by the norm or the sum.
            let sample = |got: &[f64]| {
                let mut report = Report::new("canary", F32);
                let picked = golden::sample_of("canary", &want, 32);
                report.sample("canary", got, &[&picked[..], &stored[100..]].concat());
                report.finish()
            };
            sample(&want).map_err(|_| "refused the truth")?;
            let mut got = want.clone();
            spoil(&mut got);
            if sample(&got).is_ok() { Err("accepted".into()) } else { Ok(()) }
        })
    }
    vec![
        refuses("one wrong element, sampled or not", |x| x[17] += 0.5),
        refuses("a NaN", |x| x[63] = f64::NAN),
        refuses("a scaled tensor", |x| x.iter_mut().for_each(|v| *v *= 1.0002)),
        refuses("a shifted tensor", |x| x.rotate_left(1)),
        refuses("zeros", |x| x.fill(0.0)),
    ]
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let manifest = golden::json("manifest.json");
    let files = manifest["files"].as_object().expect("the manifest lists files");
    let gpus = wgpu_devices();
    let mut trials = canaries();
    for (file, entry) in files.iter().filter(|(name, _)| name.starts_with("network_")) {
        let name = file.trim_end_matches(".safetensors");
        let mut devices =
            vec![(Device::Reference, true), (Device::Cpu, true), (Device::Cpu, false)];
        // An adapter's other GEMM variant is compared on one network; every op of it is in
        // tests/ops.rs.
        let all = name == "network_aavae_resnet18_w8_learned";
        let mut adapters = Vec::new();
        for gpu in &gpus {
            let Device::Wgpu { adapter, .. } = gpu else { continue };
            if all || !adapters.contains(adapter) {
                devices.push((gpu.clone(), true));
            }
            adapters.push(adapter.clone());
        }
        for (device, fused) in devices {
            let (file, case) = (file.clone(), entry["case"].clone());
            let title = format!("{name}/{}{}", device.name(), if fused { "" } else { "/unfused" });
            trials.push(Trial::test(title, move || network(&file, &case, &device, fused)));
        }
        if gpus.is_empty() {
            trials.push(no_adapter(name));
        }
    }
    for (file, entry) in files.iter().filter(|(name, _)| name.starts_with("measure_")) {
        let name = file.trim_end_matches(".safetensors");
        // The methods differ in the encoder's input: on an adapter one of them compiles every
        // kernel.
        let adapters = gpus.iter().take(usize::from(file.contains("aavae")));
        for device in [Device::Reference, Device::Cpu].into_iter().chain(adapters.cloned()) {
            let (file, case, title) =
                (file.clone(), entry["case"].clone(), format!("{name}/{}", device.name()));
            trials.push(Trial::test(title, move || measures(&file, &case, &device)));
        }
        if gpus.is_empty() {
            trials.push(no_adapter(name));
        }
    }
    // PyTorch's f32 runs, in two orders of summation, are within 4e-5 (AE), 2e-7 (AAVAE) and 2e-4
    // (SimCLR) of f64.
    for (method, tolerance) in [(Method::Ae, 3e-4), (Method::Aavae, 1e-5), (Method::Simclr, 1e-3)] {
        let case = &files["curve.safetensors"]["case"][method.name()];
        let name = format!("curve/{}", method.name());
        for device in [Device::Cpu].into_iter().chain(gpus.iter().take(1).cloned()) {
            let (case, title) = (case.clone(), format!("{name}/{}", device.name()));
            let test = move || {
                curve("curve.safetensors", method.name(), method.name(), &case, tolerance, &device)
            };
            trials.push(Trial::test(title, test));
        }
        if gpus.is_empty() {
            trials.push(no_adapter(&name));
        }
    }
    trials.extend(halves(files, &gpus));
    for (name, case) in
        files["optimizers.safetensors"]["case"].as_object().expect("a case of each optimiser")
    {
        // The kernels of each are in tests/ops.rs; a whole run of the one that has all of them is
        // enough for a slow adapter.
        let gpus: Vec<_> = gpus.iter().take(usize::from(name == "lamb")).cloned().collect();
        for device in [Device::Cpu].into_iter().chain(gpus.clone()) {
            let (name, case, title) =
                (name.clone(), case.clone(), format!("optimizers/{name}/{}", device.name()));
            let test = move || {
                let method = case["method"].as_str().ok_or("no method")?;
                curve("optimizers.safetensors", &name, method, &case, 3e-4, &device)
            };
            trials.push(Trial::test(title, test));
        }
        if gpus.is_empty() && name == "lamb" {
            trials.push(no_adapter(&format!("optimizers/{name}")));
        }
    }
    libtest_mimic::run(&args, trials).exit_code()
}

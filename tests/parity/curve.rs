//! Whole training runs against PyTorch's: losses of every step, gradients of the first, weights
//! after the last.

use aavae::device::Data;
use aavae::ir::Group;
use aavae::method::{Method, Model, Training, Views, training};
use aavae::nn::Param;
use aavae::optim::{Optimizer, loss_scale};
use aavae::run::precision;
use aavae::run::settings::{PrecisionKind, RunConfig};
use aavae::tensor::Half;
use aavae::train::schedule::uniforms;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::golden::{Device, Report, Tensors, fill, fill_parameter, pixels};
use crate::{config, fill_model, in_file_order, input};

/// Weights after 10 steps: PyTorch's f32 runs are within 3e-3, because Adam's first steps have the
/// size of the rate however small the gradient. Without the decay, or with one of every tensor,
/// they are 1.5e-2 away and more.
const WEIGHTS: f64 = 5e-3;
/// Gradients of the first step in mixed precision: PyTorch's own sums in f32 and f64 are up to
/// 1.15e-3 apart. Without the casts they are 2e-3 (f16) and 9e-3 (bf16) away.
const HALF_GRADIENTS: f64 = 1.2e-3;

/// Gradients of the first step, where they are stored, `scale` times as large.
fn first_gradients(
    golden: &Tensors,
    name: &str,
    model: &Model,
    memory: &[f32],
    scale: f32,
) -> Result<(), Failed> {
    let prefix = format!("{name}/grad");
    let mut report = Report::new(&prefix, HALF_GRADIENTS);
    let mut found = 0;
    for p in &model.params.all {
        let whole = golden.find(&format!("{prefix}/{}", p.name));
        if whole.or(golden.find(&format!("{prefix}.sample/{}", p.name))).is_none() {
            continue;
        }
        let range = model.graph.layout.get(&p.name).ok_or("a parameter is not laid out")?.range;
        let scaled = &memory[range.offset..range.offset + range.len];
        let gradient: Vec<f32> = scaled.iter().map(|g| g / scale).collect();
        report.stored(golden, &prefix, &p.name, &in_file_order(p, &gradient)?);
        found += 1;
    }
    match golden.count(&prefix) {
        n if n != found => Err(format!("{found} of {n} stored gradients are in the model").into()),
        0 => Ok(()),
        _ => report.finish(),
    }
}

/// The run of a curve's case.
fn curve_s_run(method: &str, case: &Value) -> Result<RunConfig, Failed> {
    Ok(RunConfig {
        precision: case
            .get("precision")
            .map_or(Ok(PrecisionKind::F32), |name| serde_json::from_value(name.clone()))?,
        learning_rate: case["lr"].as_f64().ok_or("no lr")? as f32,
        warmup_epochs: 0,
        optimizer: case
            .get("optimizer")
            .map_or(Ok(Optimizer::Adam), |name| serde_json::from_value(name.clone()))?,
        weight_decay: case.get("weight_decay").and_then(Value::as_f64).unwrap_or(0.0) as f32,
        ..config(method, case)
    })
}

/// The images of a curve, normalised, and their views: themselves, and for SimCLR the mirrored ones
/// too.
fn curve_s_images(run: &RunConfig) -> (Vec<f32>, Vec<f32>) {
    let (n, side) = (run.batch_size, run.image_size);
    let images = Tensors::open("images.safetensors");
    let (mean, std) = ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]);
    let normal = |(i, x): (usize, &f64)| {
        ((x - mean[i / (side * side) % 3]) / std[i / (side * side) % 3]) as f32
    };
    let original =
        pixels(&images.get("images").iter().enumerate().map(normal).collect::<Vec<_>>(), n, side);
    let column = |i: usize| {
        if i < n * side * side {
            i
        } else {
            i % (n * side * side) / side * side + (side - 1 - i % side)
        }
    };
    let view = (0..run.method.views() * n * side * side)
        .flat_map(|i| original[column(i) * 4..][..4].to_vec())
        .collect();
    (original, view)
}

/// The weights that a run ends with, where they are stored.
fn last_weights(
    golden: &Tensors,
    name: &str,
    model: &Model,
    params: &[f32],
    mut report: Report,
) -> Result<(), Failed> {
    let prefix = format!("{name}/weight");
    let stored = |p: &&Param| {
        golden
            .find(&format!("{prefix}/{}", p.name))
            .or(golden.find(&format!("{prefix}.sample/{}", p.name)))
            .is_some()
    };
    let kept: Vec<_> = model.params.all.iter().filter(stored).collect();
    for p in &kept {
        let range = model.graph.layout.get(&p.name).ok_or("a parameter is not laid out")?.range;
        let weights = &params[range.offset..range.offset + range.len];
        report.stored(golden, &prefix, &p.name, &in_file_order(p, weights)?);
    }
    match golden.count(&prefix) {
        n if n != kept.len() => {
            Err(format!("{} of {n} stored weights are in the model", kept.len()).into())
        }
        0 => Ok(()),
        _ => report.finish(),
    }
}

/// Steps from the same weights on the same images: the loss before every update, and where they are
/// stored the weights after the last.
pub(crate) fn curve(
    file: &str,
    name: &str,
    method: &str,
    case: &Value,
    tolerance: f64,
    device: &Device,
) -> Result<(), Failed> {
    let golden = Tensors::open(file);
    let run = curve_s_run(method, case)?;
    let (original, view) = curve_s_images(&run);
    let shrink = case["decoder_scale"].as_f64().ok_or("no scale")? as f32;

    let (half, scaled) = (run.half(), run.scales_loss());
    let how = Training { views: Views::Given, rule: run.update(), scaled, ..Training::default() };
    let model = training(&run.model([0.0; 3], [1.0; 3]), how);
    let mut session = device.open()?;
    let session = &mut session;
    precision::train(session, half)?;
    fill_model(session, &model, |p| match &p.name[..] {
        "log_scale" => vec![0.0],
        name => {
            let scale = if name.starts_with("decoder.") { shrink } else { 1.0 };
            fill_parameter(name, &p.file.shape()).iter().map(|x| x * scale).collect()
        }
    })?;
    if scaled {
        let scale = model.graph.layout.loss_scale();
        session.write_state(scale.group, scale.offset, &loss_scale::begin())?;
    }
    let id = session.load(session.lower("train", &model.graph))?;
    let want = golden.get(&format!("{name}/loss"));
    for step in 0..want.len() {
        let eps = fill(
            &format!("eps.{step}"),
            run.batch_size * run.latent_dim,
            2.0 * 3.0_f64.sqrt(),
            0.0,
        );
        for (name, data) in [("original", &original), ("view", &view), ("eps", &eps)] {
            if let Some(i) = input(session.plan(id), name) {
                session.upload(id, i, Data::F32(data))?;
            }
        }
        session.run(id, &uniforms(&run, 1, step as u64))?;
        if step == 0 {
            let scale = if scaled { loss_scale::begin()[0] } else { 1.0 };
            first_gradients(&golden, name, &model, &session.read_state(Group::Grad)?, scale)?;
        }
    }
    // The scalars in order of the outputs; the loss is the first.
    let losses: Vec<f64> =
        session.drain(id)?.iter().map(|(_, scalars)| f64::from(scalars[0])).collect();
    let mut report = Report::new(&format!("{file} {name} {}", device.name()), tolerance);
    if losses.len() != want.len() {
        return Err(format!("{} losses of {} steps", losses.len(), want.len()).into());
    }
    for (step, (got, want)) in losses.iter().zip(want).enumerate() {
        report.scaled(&format!("step {step}"), &[*got], &[*want], *want);
    }
    report.finish()?;

    let report = Report::new(&format!("{file} {name} {} (weights)", device.name()), WEIGHTS);
    last_weights(&golden, name, &model, &session.read_state(Group::Param)?, report)
}

/// Every method in mixed precision. A sum near the middle of two neighbours is rounded to the one
/// in PyTorch and to the other here: its own sums in f32 and f64, with the same casts, are `losses`
/// apart, the largest of three orders of f32's. There are many: ours may be four times as far,
/// SimCLR's eight times.
pub(crate) fn halves(files: &serde_json::Map<String, Value>, gpus: &[Device]) -> Vec<Trial> {
    const FILE: &str = "half.safetensors";
    let mut trials = vec![];
    for (&method, &half) in Method::ALL.iter().flat_map(|m| Half::ALL.iter().map(move |h| (m, h))) {
        let name = format!("{}/{}", half.name(), method.name());
        let apart = files[FILE]["f32_error"][&name]["losses"].as_f64().expect("an error");
        let times = if method == Method::Simclr { 8.0 } else { 4.0 };
        // All of them are trained as the three of `curve`.
        let mut case = files["curve.safetensors"]["case"]["ae"].clone();
        case["precision"] = json!(half.name());
        // WGSL has no bf16.
        let gpus = gpus.iter().take(usize::from(half == Half::F16)).cloned();
        for device in [Device::Cpu].into_iter().chain(gpus) {
            let (case, name) = (case.clone(), name.clone());
            let title = format!("half/curve/{name}/{}", device.name());
            let test = move || curve(FILE, &name, method.name(), &case, times * apart, &device);
            trials.push(Trial::test(title, test));
        }
    }
    trials
}

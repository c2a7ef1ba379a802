//! The randomness is specified: `tests/replay.py` computes one AAVAE step's batch, augmentation,
//! views, noise and initial weights from the seed (and the pixels) alone (Python's standard
//! library), and finds the numbers that each device drew. Altered dumps must be refused.
//!
//! Without `python3` the trials show as *ignored*; `REQUIRE_PYTHON=1` turns that into a failure.
//! Without an adapter the wgpu trial shows as *ignored*; `REQUIRE_GPU=1` turns that into a failure.
//!
//! To replay by hand: `KEEP_DUMP=dump.json cargo test --test replay -- cpu`, then
//! `python3 tests/replay.py dump.json`.

#[path = "golden/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod golden;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use aavae::data::Order;
use aavae::data::split::split;
use aavae::device::Data;
use aavae::ir::Group;
use aavae::method::{Model, Training, training};
use aavae::ops::{Op, Recipe, StepUniforms, slot};
use aavae::rng::{Philox, Stream};
use aavae::run::settings::RunConfig;
use aavae::run::state;
use aavae::train::schedule;
use golden::{Device, no_adapter, wgpu_devices};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// More than 32 bits, so that both words of the key count.
const SEED: u64 = 0x0123_4567_89ab_cdef;
const IMAGES: usize = 203;
const HELD_OUT: usize = 30;
/// In epoch 2: 43 steps per epoch.
const STEP: u64 = 100;

/// Has a model give what it draws, values of the graph like any other. Returns the recipe of the
/// augmentation.
fn give_draws(model: &mut Model) -> Option<Recipe> {
    let mut recipe = None;
    for node in model.graph.nodes.clone() {
        match &node.op {
            Op::AugmentParams(op) => {
                recipe = Some(op.recipe);
                model.graph.output("augmentation", node.outputs[0]);
            }
            Op::ColorJitter(_) => model.graph.output("view", node.outputs[0]),
            Op::RandomNormal(_) => model.graph.output("noise", node.outputs[0]),
            _ => {}
        }
    }
    recipe
}

/// What a device drew in one step of the graph that `pretrain` runs.
fn dump(device: &Device) -> Result<Value, Failed> {
    let config =
        RunConfig { width: 8, latent_dim: 12, batch_size: 4, seed: SEED, ..RunConfig::default() };
    let (mean, std) = ([0.5, 0.45, 0.4], [0.25; 3]);
    let mut model = training(&config.model(mean, std), Training::default());
    let Recipe { strength, jitter_p, grey_p, blur_p, flip_p, sigma, scale, ratio, .. } =
        give_draws(&mut model).ok_or("the graph draws no augmentation")?;

    let layout = model.graph.layout.clone();
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(&layout);
    state::initialise(session, &layout, &model.params, SEED)?;
    let initial = session.read_state(Group::Param)?;
    let weight = |name: &str, init: &str| -> Result<Value, Failed> {
        let p = model
            .params
            .all
            .iter()
            .find(|p| p.name == name)
            .ok_or_else(|| format!("no parameter {name}"))?;
        let range = layout.get(name).ok_or("not laid out")?.range;
        let values = p.file.to_file(&initial[range.offset..range.offset + range.len], p.shape);
        Ok(json!({ "name": name, "shape": p.file.shape(), "init": init, "values": values }))
    };
    let weights = [
        weight("encoder.conv1.weight", "normal")?,
        weight("projection.mu.weight", "uniform")?,
        weight("decoder.linear_projection2.weight", "uniform")?,
        weight("decoder.layer1.0.upsample.1.weight", "uniform")?,
    ];

    let id = session.load(session.lower("train", &model.graph))?;
    let indices = split(IMAGES, HELD_OUT, SEED, None, true)?;
    let order = Order::new(indices.train.len(), config.batch_size, SEED, true)?;
    let uniforms: StepUniforms = schedule::uniforms(&config, order.steps_per_epoch(), STEP);
    let (side, rng) = (config.image_size, Philox::new(SEED, Stream::Test));
    let pixels: Vec<u32> = (0..(config.batch_size * side * side) as u32)
        .map(|i| rng.words(0, 0, i)[0] & 0x00ff_ffff)
        .collect();
    session.upload(id, 0, Data::U32(&pixels))?;
    session.run(id, &uniforms)?;
    let mut rows = |name: &str, width: usize| -> Result<Vec<Vec<f32>>, Failed> {
        let position = session
            .plan(id)
            .outputs
            .iter()
            .position(|p| p.name == name)
            .ok_or_else(|| format!("no output {name}"))?;
        Ok(session.read(id, position)?.chunks(width).map(<[f32]>::to_vec).collect())
    };
    let (augmentation, noise) =
        (rows("augmentation", slot::COUNT)?, rows("noise", config.latent_dim)?);
    // RGB without the fourth channel.
    let mut view = rows("view", side * side * 4)?;
    view.iter_mut().for_each(|v| *v = v.chunks(4).flat_map(|p| p[..3].to_vec()).collect());

    let (epoch, first) = order.locate(STEP);
    let positions = &order.epoch(epoch)[first..first + config.batch_size];
    let batch_images: Vec<u32> = positions.iter().map(|&p| indices.train[p as usize]).collect();
    let orders: BTreeMap<String, Vec<u32>> =
        [0, epoch].map(|e| (e.to_string(), order.epoch(e))).into();
    Ok(json!({
        "seed": SEED, "step": STEP, "batch": config.batch_size, "image": config.image_size,
            "latent": config.latent_dim,
        "images": IMAGES, "held_out": HELD_OUT, "train": indices.train, "val": indices.val,
            "order": orders, "batch_images": batch_images,
        "recipe": {
            "strength": strength, "flip_p": flip_p, "jitter_p": jitter_p, "grey_p": grey_p,
                "blur_p": blur_p,
            "sigma": [sigma.0, sigma.1], "scale": [scale.0, scale.1], "ratio": [ratio.0, ratio.1],
        },
        "pixels": pixels, "mean": mean, "std": std, "view": view,
        "augmentation": augmentation, "noise": noise, "weights": weights,
    }))
}

/// Exit status of the script, and what it printed.
fn replay(dump: &Value) -> Result<(Option<i32>, String), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("dump.json");
    std::fs::write(&path, serde_json::to_vec(dump)?)?;
    let script = format!("{}/tests/replay.py", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("python3").arg(script).arg(&path).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

fn agrees(device: &Device) -> Result<(), Failed> {
    let dump = dump(device)?;
    if let Some(path) = std::env::var_os("KEEP_DUMP") {
        std::fs::write(path, serde_json::to_vec_pretty(&dump)?)?;
    }
    match replay(&dump)? {
        (Some(0), _) => Ok(()),
        (status, text) => Err(format!("replay.py ended with {status:?}:\n{text}").into()),
    }
}

/// One altered number must be found.
fn refuses(pointer: &str, change: f64) -> Result<(), Failed> {
    let mut dump = dump(&Device::Cpu)?;
    let number = dump.pointer_mut(pointer).ok_or_else(|| format!("the dump has no {pointer}"))?;
    *number = json!(number.as_f64().ok_or("not a number")? + change);
    match replay(&dump)? {
        (Some(1), text) if text.contains(" 1 differ") => Ok(()),
        (status, text) => Err(format!("replay.py ended with {status:?}:\n{text}").into()),
    }
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let python =
        Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    let skip = !python && std::env::var_os("REQUIRE_PYTHON").is_none();
    let mut trials = Vec::new();
    let gpus = wgpu_devices();
    for device in [Device::Reference, Device::Cpu].into_iter().chain(gpus.iter().take(1).cloned()) {
        trials.push(
            Trial::test(format!("replay/{}", device.name()), move || agrees(&device))
                .with_ignored_flag(skip),
        );
    }
    if gpus.is_empty() {
        trials.push(no_adapter("replay"));
    }
    let altered = [
        ("/augmentation/1/2", 1.0),
        ("/augmentation/3/9", 1.0),
        ("/augmentation/0/13", 1e-5),
        ("/view/2/700", 1e-4),
        ("/noise/2/11", 1e-5),
        ("/order/0/5", 1.0),
        ("/batch_images/0", 1.0),
        ("/weights/0/values/7", 1e-5),
        ("/weights/2/values/3", -1e-5),
    ];
    for (pointer, change) in altered {
        trials.push(
            Trial::test(format!("replay refuses an altered {pointer}"), move || {
                refuses(pointer, change)
            })
            .with_ignored_flag(skip),
        );
    }
    libtest_mimic::run(&args, trials).exit_code()
}

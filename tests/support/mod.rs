//! Small networks on every device, for the tests of plans and of training. Each test file uses a
//! part.
#![allow(dead_code, reason = "each test binary uses a part of this file")]

pub(crate) mod faulty;

use aavae::device::wgpu::{Gpu, OpenOptions, adapters};
use aavae::device::{Data, Host, Pick, PlanId, Session};
use aavae::ir::Group;
use aavae::method::{Compare, Method, Model, ModelConfig, Objective};
use aavae::model::{Depth, NetConfig, Stem};
use aavae::ops::StepUniforms;
use aavae::plan::{Options, lower};
use aavae::rng::{Philox, Stream};
use aavae::run::state;
use aavae::tensor::DType;
use libtest_mimic::{Failed, Trial};

/// ResNet-18 of width 8 both ways.
pub(crate) fn config(method: Method, image: usize, batch: usize) -> ModelConfig {
    let net = NetConfig {
        encoder: Depth::Resnet18,
        decoder: Depth::Resnet18,
        width: 8,
        latent: 16,
        stem: Stem::Cifar,
        image,
    };
    let kl_coeff = method.default_kl_coeff();
    let objective = Objective {
        method,
        kl_coeff,
        log_scale: 0.0,
        learn_log_scale: false,
        target: Compare::Original,
        temperature: 0.5,
    };
    ModelConfig {
        net,
        objective,
        mean: [0.5, 0.45, 0.4],
        std: [0.25, 0.24, 0.26],
        batch,
        online_probe: None,
    }
}

/// Where a trial runs.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    Reference,
    Cpu,
    /// Index and name.
    Wgpu(usize, String),
}

impl Device {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
            Self::Wgpu(_, name) => name,
        }
    }
    pub(crate) fn open(&self) -> Result<Session, Failed> {
        Ok(match self {
            Self::Reference => Session::from(Host::<f64>::new()),
            Self::Cpu => Session::from(Host::<f32>::new()),
            Self::Wgpu(index, _) => Gpu::pick(&Pick::Index(*index), OpenOptions::default())?.into(),
        })
    }
}

fn gpus() -> Vec<Device> {
    adapters().into_iter().enumerate().map(|(i, a)| Device::Wgpu(i, a.name)).collect()
}

/// `name/device` for each of `hosts` and every adapter. Without an adapter that trial shows as
/// *ignored*; `REQUIRE_GPU=1` turns that into a failure.
pub(crate) fn on_devices(
    name: &str,
    hosts: &[Device],
    test: impl Fn(&Device) -> Result<(), Failed> + Clone + Send + 'static,
) -> Vec<Trial> {
    let gpus = gpus();
    let mut trials: Vec<Trial> = hosts
        .iter()
        .chain(&gpus)
        .map(|device| {
            let (device, test) = (device.clone(), test.clone());
            Trial::test(format!("{name}/{}", device.name()), move || test(&device))
        })
        .collect();
    if gpus.is_empty() {
        let missing = || Err("no Vulkan, Metal or DX12 adapter".into());
        let require = std::env::var_os("REQUIRE_GPU").is_some();
        trials.push(
            Trial::test(format!("{name}/wgpu (no adapter)"), missing).with_ignored_flag(!require),
        );
    }
    trials
}

pub(crate) fn check(ok: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(message().into()) }
}

/// Per-step values of a run at a constant rate.
pub(crate) fn uniforms(seed: u64, step: u32, learning_rate: f32) -> StepUniforms {
    let bias = |beta: f64| (1.0 / (1.0 - beta.powi(step as i32 + 1))) as f32;
    StepUniforms {
        seed_lo: seed as u32,
        seed_hi: (seed >> 32) as u32,
        step,
        first_sample: 0,
        learning_rate,
        bias1: bias(0.9),
        bias2: bias(0.999),
        serial: 0,
    }
}

/// Writes initial weights and zero moments.
pub(crate) fn reset(session: &mut Session, model: &Model, seed: u64) -> Result<(), Failed> {
    let layout = &model.graph.layout;
    state::initialise(session, layout, &model.params, seed)?;
    for group in [Group::Grad, Group::Moment1, Group::Moment2] {
        session.write_state(group, 0, &vec![0.0; layout.size(group)])?;
    }
    Ok(())
}

pub(crate) fn load(session: &mut Session, model: &Model, alias: bool) -> Result<PlanId, Failed> {
    let plan = lower("train", &model.graph, Options { alias, ..session.options() });
    Ok(session.load(plan)?)
}

/// Smooth images, different for each index, normalised or packed; noise for `eps`.
pub(crate) fn fill(session: &mut Session, id: PlanId) -> Result<(), Failed> {
    for i in 0..session.plan(id).inputs.len() {
        let port = session.plan(id).inputs[i].clone();
        let shape = port.ty.shape;
        let rng = Philox::new(99, Stream::Test);
        match (port.name.as_str(), port.ty.dtype) {
            ("pixels", DType::U32) => {
                session.upload(id, i, Data::U32(&pixels(0..shape.n, shape.h)))?
            }
            ("original" | "view", DType::F32) => {
                let mut image = vec![0.0f32; shape.len()];
                for n in 0..shape.n {
                    for (y, x) in (0..shape.h).flat_map(|y| (0..shape.w).map(move |x| (y, x))) {
                        // The view is the mirrored image.
                        let column = if port.name == "view" { shape.w - 1 - x } else { x };
                        for c in 0..3 {
                            image[shape.at(n, y, x, c)] = pixel(&rng, n, y, column, c);
                        }
                    }
                }
                session.upload(id, i, Data::F32(&image))?;
            }
            ("eps", DType::F32) => {
                let noise: Vec<f32> =
                    (0..shape.len()).map(|e| rng.normals(1, 0, e as u32)[0] as f32).collect();
                session.upload(id, i, Data::F32(&noise))?;
            }
            ("labels", DType::U32) => {
                let labels: Vec<u32> = (0..shape.n as u32).collect();
                session.upload(id, i, Data::U32(&labels))?;
            }
            (name, _) => return Err(format!("unknown input `{name}`").into()),
        }
    }
    Ok(())
}

/// Smooth images, packed, different for each index.
pub(crate) fn pixels(images: std::ops::Range<usize>, side: usize) -> Vec<u32> {
    let rng = Philox::new(99, Stream::Test);
    let packed = |n: usize, p: usize| {
        let byte = |c: usize| {
            ((pixel(&rng, n, p / side, p % side, c) * 0.2 + 0.5) * 255.0).clamp(0.0, 255.0) as u32
        };
        byte(0) | byte(1) << 8 | byte(2) << 16
    };
    images.flat_map(|n| (0..side * side).map(move |p| (n, p))).map(|(n, p)| packed(n, p)).collect()
}

/// A plane wave per image and channel.
fn pixel(rng: &Philox, n: usize, y: usize, x: usize, c: usize) -> f32 {
    let [kx, ky, phase, _] = rng.uniforms(0, n as u32, c as u32);
    let angle = (kx - 0.5) * x as f32 + (ky - 0.5) * y as f32 + 6.3 * phase;
    1.2 * angle.sin()
}

/// Every persistent group, as bits.
pub(crate) fn states(session: &mut Session) -> Result<Vec<Vec<u32>>, Failed> {
    let groups = [Group::Param, Group::Buffer, Group::Grad, Group::Moment1, Group::Moment2];
    groups
        .iter()
        .map(|&g| Ok(session.read_state(g)?.into_iter().map(f32::to_bits).collect()))
        .collect()
}

/// Runs steps from `first` and returns the scalars of each as bits.
pub(crate) fn run(
    session: &mut Session,
    id: PlanId,
    seed: u64,
    steps: std::ops::Range<u32>,
    rate: f32,
) -> Result<Vec<Vec<u32>>, Failed> {
    for step in steps {
        session.run(id, &uniforms(seed, step, rate))?;
    }
    let scalars = session.drain(id)?;
    for (step, values) in &scalars {
        check(!values.is_empty() && values.iter().all(|v| v.is_finite()), || {
            format!("step {step}: {values:?}")
        })?;
    }
    Ok(scalars.into_iter().map(|(_, v)| v.into_iter().map(f32::to_bits).collect()).collect())
}

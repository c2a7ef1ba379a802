//! Importance sampling where the answer is known: a linear decoder, `x = W z + b + N(0, s^2)`, has
//! the density `N(x; b, W W^T + s^2 I)`, and with orthogonal columns of W the posterior of z is a
//! Gaussian with independent latents, which an encoder could find.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

mod support;

use std::f64::consts::PI;
use std::process::ExitCode;

use aavae::device::Data;
use aavae::ir::{Graph, Group};
use aavae::method::log_weights;
use aavae::nn::Builder;
use aavae::ops::{Emit, KlGaussians, KlNormal, Op, StepUniforms};
use aavae::rng::{Philox, Stream};
use aavae::tensor::{Shape, TensorType};
use aavae::train::measure::log_mean_exp;
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Device, check};

/// Images, samples of each, side of an image (12 dimensions), latents.
const N: usize = 6;
const K: usize = 4096;
const SIDE: usize = 2;
const LATENT: usize = 4;
/// Dimensions as stored, the fourth channel 0, and those that count.
const STORED: usize = SIDE * SIDE * 4;
const DIMS: usize = SIDE * SIDE * 3;
/// Added to deviations (SPEC, Objective).
const FLOOR: f64 = 1e-6;
/// Deviation of a pixel around `W z + b`.
const S: f64 = 0.6;

/// Columns `W_l = LENGTHS[l] * u_l` with orthonormal u, and the images drawn around them.
struct World {
    u: Vec<[f64; DIMS]>,
    b: [f64; DIMS],
    images: Vec<[f64; DIMS]>,
}

const LENGTHS: [f64; LATENT] = [2.0, 1.0, 0.5, 0.1];

impl World {
    fn new() -> Self {
        let rng = Philox::new(11, Stream::Test);
        let draw = |sample: u32| -> [f64; DIMS] {
            std::array::from_fn(|i| rng.normals(0, sample, i as u32)[0])
        };
        let mut u: Vec<[f64; DIMS]> = Vec::new();
        for l in 0..LATENT {
            let mut v = draw(l as u32);
            for w in &u {
                let along = dot(&v, w);
                v.iter_mut().zip(w).for_each(|(v, w)| *v -= along * w);
            }
            let length = dot(&v, &v).sqrt();
            u.push(v.map(|x| x / length));
        }
        Self {
            u,
            b: draw(100),
            images: (0..N).map(|n| draw(200 + n as u32).map(|x| 1.5 * x)).collect(),
        }
    }

    /// `ln N(x; b, W W^T + s^2 I)`: along u_l the variance is `LENGTHS[l]^2 + s^2`, across all of
    /// them s^2.
    fn log_px(&self, n: usize) -> f64 {
        let d: [f64; DIMS] = std::array::from_fn(|i| self.images[n][i] - self.b[i]);
        let (mut rest, mut total) = (dot(&d, &d), 0.0);
        for (u, length) in self.u.iter().zip(LENGTHS) {
            let (along, variance) = (dot(&d, u), length * length + S * S);
            total -= (along * along / variance + (2.0 * PI * variance).ln()) / 2.0;
            rest -= along * along;
        }
        total - rest / (2.0 * S * S) - (DIMS - LATENT) as f64 / 2.0 * (2.0 * PI * S * S).ln()
    }

    /// Mean and deviation of the posterior of latent l of image n: precision
    /// `1 + LENGTHS[l]^2 / s^2`.
    fn posterior(&self, n: usize, l: usize) -> (f64, f64) {
        let d: [f64; DIMS] = std::array::from_fn(|i| self.images[n][i] - self.b[i]);
        let precision = 1.0 + LENGTHS[l] * LENGTHS[l] / (S * S);
        (LENGTHS[l] * dot(&d, &self.u[l]) / (S * S) / precision, precision.sqrt().recip())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Log variance whose deviation is `std`.
fn logvar(std: f64) -> f64 {
    2.0 * (std - FLOOR).ln()
}

/// KL(N(m, s) || N(m2, s2)).
fn kl((m, s): (f64, f64), (m2, s2): (f64, f64)) -> f64 {
    (s2 / s).ln() + (s * s + (m - m2) * (m - m2)) / (2.0 * s2 * s2) - 0.5
}

/// DIMS values as they are stored, with zeros between.
fn stored(x: impl Fn(usize) -> f64) -> Vec<f32> {
    (0..STORED).map(|i| if i % 4 < 3 { x(i / 4 * 3 + i % 4) as f32 } else { 0.0 }).collect()
}

/// What the device makes of posteriors `q(image, latent)`: log weights and log p(x|z) `[N, K]`, and
/// the means over images of `KL(q || N(0, I))` and of `KL(q || posterior)`.
struct Measured {
    log_weights: Vec<f32>,
    log_pxz: Vec<f32>,
    kl_prior: f64,
    kl_posterior: f64,
}

fn measure(
    device: &Device,
    world: &World,
    q: &dyn Fn(usize, usize) -> (f64, f64),
) -> Result<Measured, Failed> {
    let mut b = Builder::new(Graph::default(), false);
    let rows = TensorType::f32(Shape::rows(N, LATENT));
    let [mu, log_var, mu2, log_var2] =
        ["mu", "logvar", "mu2", "logvar2"].map(|name| b.graph.input(name, rows));
    let target = b.graph.input("target", TensorType::f32(Shape::new(N, SIDE, SIDE, 4)));
    let log_scale = b.graph.input("log_scale", TensorType::f32(Shape::SCALAR));
    let weights = log_weights(&mut b, (mu, log_var), K, None, (target, log_scale), |b, z| {
        let x = b.linear("w", z, STORED, true);
        b.reshape("w", x, Shape::new(N * K, SIDE, SIDE, 4))
    });
    b.graph.output("log_weights", weights);
    let log_pxz = b
        .graph
        .nodes
        .iter()
        .find(|node| matches!(node.op, Op::GaussianLogProb(_)))
        .ok_or("no likelihood")?
        .outputs[0];
    b.graph.output("log_pxz", log_pxz);
    let kl_prior = b.graph.emit1(KlNormal.into(), &[mu, log_var]);
    let kl_posterior = b.graph.emit1(KlGaussians.into(), &[mu, log_var, mu2, log_var2]);
    b.graph.output("kl_prior", kl_prior);
    b.graph.output("kl_posterior", kl_posterior);

    let mut session = device.open()?;
    session.allocate(&b.graph.layout);
    let columns: Vec<Vec<f32>> =
        (0..LATENT).map(|l| stored(|i| LENGTHS[l] * world.u[l][i])).collect();
    let w: Vec<f32> = (0..STORED).flat_map(|i| columns.iter().map(move |c| c[i])).collect();
    for (name, data) in [("w.weight", w), ("w.bias", stored(|i| world.b[i]))] {
        let range = b.graph.layout.get(name).ok_or("no such parameter")?.range;
        session.write_state(Group::Param, range.offset, &data)?;
    }
    let id = session.load(session.lower("measure", &b.graph))?;
    session.poison(id)?;
    let each = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f32> {
        (0..N * LATENT).map(|i| f(i / LATENT, i % LATENT) as f32).collect()
    };
    let inputs = [
        ("mu", each(&|n, l| q(n, l).0)),
        ("logvar", each(&|n, l| logvar(q(n, l).1))),
        ("mu2", each(&|n, l| world.posterior(n, l).0)),
        ("logvar2", each(&|n, l| logvar(world.posterior(n, l).1))),
        ("target", world.images.iter().flat_map(|x| stored(|i| x[i])).collect()),
        ("log_scale", vec![logvar(S) as f32]),
    ];
    for (name, data) in inputs {
        let (input, _) = session.plan(id).input(name).ok_or(format!("no input {name}"))?;
        session.upload(id, input, Data::F32(&data))?;
    }
    session.run(id, &StepUniforms { seed_lo: 5, step: 3, ..StepUniforms::default() })?;
    let (log_weights, log_pxz) = (session.read(id, 0)?, session.read(id, 1)?);
    let [kl_prior, kl_posterior] =
        [session.read(id, 2)?[0], session.read(id, 3)?[0]].map(f64::from);
    Ok(Measured { log_weights, log_pxz, kl_prior, kl_posterior })
}

fn mean(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len() as f64;
    x.sum::<f64>() / n
}

/// With the true posterior every single weight is the density: nothing is left to chance.
fn exact(device: &Device) -> Result<(), Failed> {
    let world = World::new();
    let m = measure(device, &world, &|n, l| world.posterior(n, l))?;
    check(m.log_weights.len() == N * K, || format!("{} weights", m.log_weights.len()))?;
    for (i, weight) in m.log_weights.iter().enumerate() {
        let want = world.log_px(i / K);
        check((f64::from(*weight) - want).abs() < 1e-4 * want.abs(), || {
            format!("sample {i}: {weight}, the density is {want}")
        })?;
    }
    check(m.kl_posterior.abs() < 1e-5, || {
        format!("the posterior is {} nats from itself", m.kl_posterior)
    })?;
    let spread =
        m.log_pxz.iter().fold([f32::MAX, f32::MIN], |[low, high], x| [low.min(*x), high.max(*x)]);
    check(spread[1] - spread[0] > 10.0, || {
        format!("log p(x|z) hardly varies ({spread:?}): the samples are all the same")
    })
}

/// With another posterior q: the ELBO, by either formula, is ln p(x) - KL(q || posterior), and more
/// samples close the gap.
fn other(device: &Device) -> Result<(), Failed> {
    let world = World::new();
    let q = |n: usize, l: usize| {
        let (mean, std) = world.posterior(n, l);
        (mean + 0.5 * std, 1.2 * std)
    };
    let m = measure(device, &world, &q)?;
    let gap = mean((0..N).map(|n| (0..LATENT).map(|l| kl(q(n, l), world.posterior(n, l))).sum()));
    let prior = mean((0..N).map(|n| (0..LATENT).map(|l| kl(q(n, l), (0.0, 1.0))).sum()));
    check((m.kl_posterior / gap - 1.0).abs() < 1e-4, || {
        format!("KL(q || posterior) is {}, expected {gap}", m.kl_posterior)
    })?;
    check((m.kl_prior / prior - 1.0).abs() < 1e-4, || {
        format!("KL(q || prior) is {}, expected {prior}", m.kl_prior)
    })?;

    let log_px = mean((0..N).map(|n| world.log_px(n)));
    // Standard errors of these means of 24,576 samples are below .02.
    for (what, elbo) in [
        ("mean log weight", mean(m.log_weights.iter().map(|x| f64::from(*x)))),
        ("log p(x|z) - KL", mean(m.log_pxz.iter().map(|x| f64::from(*x))) - m.kl_prior),
    ] {
        check((elbo - (log_px - gap)).abs() < 0.06, || {
            format!("{what}: {elbo}, expected {log_px} - {gap}")
        })?;
    }
    // Mean over images and over K / k groups of k samples of the estimate from k samples.
    let shortfall = |k: usize| log_px - mean(m.log_weights.chunks(k).map(log_mean_exp));
    let shortfalls = [1, 4, 16, 256, K].map(shortfall);
    eprintln!("{}: gap {gap:.4}, shortfalls {shortfalls:.4?}", device.name());
    check(shortfalls.windows(2).all(|w| w[1] < 0.6 * w[0]), || {
        format!("more samples do not come nearer: {shortfalls:?}")
    })?;
    check(gap > 0.5 && shortfalls[4].abs() < 0.03, || {
        format!("{K} samples are {} nats from the density", shortfalls[4])
    })
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let hosts = [Device::Reference, Device::Cpu];
    let mut trials: Vec<Trial> =
        support::on_devices("every weight of the true posterior is the density", &hosts, exact);
    trials.extend(support::on_devices(
        "another posterior falls short by its divergence",
        &hosts,
        other,
    ));
    libtest_mimic::run(&args, trials).exit_code()
}

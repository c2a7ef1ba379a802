//! What is measured along with training: importance sampling, evaluations, the online probe.

use aavae::data::{self, DataOptions, Kind, Loader};
use aavae::device::{Data, Host, Session};
use aavae::ir::Group;
use aavae::method::{self, Method, ModelConfig, Training, Views};
use aavae::ops::{Op, StepUniforms};
use aavae::plan::{Options, lower};
use aavae::run::settings::RunConfig;
use aavae::run::trained::model_config;
use aavae::train::measure::{Measures, bits_per_dim, log_mean_exp};
use aavae::train::plans::{self, Sizes};
use libtest_mimic::Failed;

use crate::support::{Device, check, config, fill, load, pixels, reset, uniforms};
use crate::trace;

/// Importance sampling sees what validation sees: with the step of its batch and the position in
/// it, an image has the same view and, as its first sample, the same noise.
pub(crate) fn same_draws() -> Result<(), Failed> {
    let config = config(Method::Aavae, 16, 6);
    let model = method::training(&config, Training::default());
    let mut host = Session::from(Host::<f32>::new());
    host.allocate(&model.graph.layout);
    reset(&mut host, &model, 4)?;
    let validation = method::validation(&config, &model.graph.layout, Views::Drawn);
    let validation = host.load(lower("validation", &validation.graph, Options::default()))?;
    fill(&mut host, validation)?;
    host.run(validation, &uniforms(9, 70, 0.0))?;
    let want = f64::from(host.read(validation, 1)?[0]);

    let (few, samples) = (2, 3);
    let mut graph = method::importance(
        &ModelConfig { batch: few, ..config },
        &model.graph.layout,
        samples,
        Views::Drawn,
    )
    .graph;
    let log_pxz = graph
        .nodes
        .iter()
        .find(|node| matches!(node.op, Op::GaussianLogProb(_)))
        .ok_or("no likelihood")?
        .outputs[0];
    graph.output("log_pxz", log_pxz);
    let plan = host.load(lower("importance", &graph, Options::default()))?;
    let mut first = 0.0;
    let pixels = pixels(0..config.batch, config.net.image);
    for (i, pixels) in pixels.chunks(few * config.net.image * config.net.image).enumerate() {
        host.upload(plan, 0, Data::U32(pixels))?;
        host.run(plan, &StepUniforms { first_sample: (i * few) as u32, ..uniforms(9, 70, 0.0) })?;
        first += host.read(plan, 1)?.iter().step_by(samples).map(|x| f64::from(*x)).sum::<f64>()
            / config.batch as f64;
    }
    check((first - want).abs() < 1e-5 * want.abs(), || {
        format!("the first samples have log p(x|z) {first}, validation's {want}")
    })
}

/// An evaluation of batches that its images do not divide takes every image of every whole batch
/// once.
pub(crate) fn every_image_once() -> Result<(), Failed> {
    let (batch_size, samples) = (7, 2); // three images at a time, the last of them one
    let run = RunConfig {
        width: 8,
        latent_dim: 16,
        batch_size,
        importance_samples: Some(samples),
        ..RunConfig::default()
    };
    let data =
        DataOptions { shapes_len: (40, 1), n_val: Some(15), ..DataOptions::new(Kind::Shapes) };
    let splits = data::open(&data)?;
    let config = model_config(&run, &splits);
    let model = method::training(&config, Training::default());
    let layout = &model.graph.layout;
    let mut host = Session::from(Host::<f32>::new());
    let held_out = splits.val.len();
    let plans = plans::load(&mut host, &run, &config, held_out)?;
    reset(&mut host, &model, 4)?;
    let sizes = Sizes::new(&run, config.batch, held_out);
    let got =
        Measures::new(&plans, sizes, &run, &config).evaluate(&mut host, &splits, &|| false)?;

    let one =
        method::importance(&ModelConfig { batch: 1, ..config }, layout, samples, Views::Drawn)
            .graph;
    let plan = host.load(lower("importance", &one, Options::default()))?;
    let (mut log_px, mut elbo) = (0.0, 0.0);
    for i in 0..14 {
        let only = data::Subset {
            dataset: splits.val.dataset.clone(),
            indices: splits.val.indices[i..=i].into(),
        };
        let image = Loader::eval_batches(&only, 1)?.next().ok_or("no image")??;
        host.upload(plan, 0, Data::U32(&image.pixels))?;
        // Validation's counters: a step a batch, in a range of their own; the position in it.
        let step = (1 << 31) + (i / batch_size) as u32;
        host.run(
            plan,
            &StepUniforms {
                step,
                first_sample: (i % batch_size) as u32,
                ..StepUniforms::default()
            },
        )?;
        let weights = host.read(plan, 0)?;
        log_px += log_mean_exp(&weights) / 14.0;
        elbo += f64::from(weights[0] + weights[1]) / 2.0 / 14.0;
    }
    let want =
        [("log_px", log_px), ("bits_per_dim", bits_per_dim(&config, log_px)), ("elbo", elbo)];
    for (name, want) in want.into_iter().chain([("bits_per_dim_elbo", bits_per_dim(&config, elbo))])
    {
        let got = got.iter().find(|v| v.0 == name).ok_or(format!("no {name}"))?.1;
        check((f64::from(got) - want).abs() < 1e-6 * want.abs(), || {
            format!("{name} is {got}, expected {want}")
        })?;
    }
    check(got.len() == 4, || format!("{got:?}"))
}

/// Classes of the online probe, padded to 8 in memory.
const CLASSES: usize = 5;

/// The classifier that is trained along changes no bit of anything else, and its gradient is that
/// of softmax regression on the features.
pub(crate) fn online_probe(device: &Device) -> Result<(), Failed> {
    let plain = config(Method::Aavae, 16, 4);
    let with = ModelConfig { online_probe: Some(CLASSES), ..plain };
    // One session for all, because its compiled kernels are.
    let mut session = device.open()?;
    session.allocate(&method::training(&with, Training::default()).graph.layout);
    changes_nothing_else(&mut session, &plain, &with)?;
    regresses(&mut session, &with)
}

/// Steps with and without the classifier give the same bits of all that both have.
fn changes_nothing_else(
    session: &mut Session,
    plain: &ModelConfig,
    with: &ModelConfig,
) -> Result<(), Failed> {
    let probed = method::training(with, Training::default());
    let mut model = method::training(plain, Training::default());
    let layout = std::mem::replace(&mut model.graph.layout, probed.graph.layout.clone());
    let mut traces = Vec::new();
    for model in [&model, &probed] {
        let id = load(session, model, true)?;
        traces.push(trace(session, id, model, 7)?);
    }
    let [alone, along] = &traces[..] else { unreachable!("two runs") };
    for s in &layout.states {
        check(probed.graph.layout.get(&s.name) == Some(s), || format!("`{}` has moved", s.name))?;
        let part = |states: &[Vec<u32>], group: usize| {
            states[group][s.range.offset..s.range.offset + s.range.len].to_vec()
        };
        for group in if s.range.group == Group::Buffer { vec![1] } else { vec![0, 2, 3, 4] } {
            check(part(&alone.1, group) == part(&along.1, group), || {
                format!("`{}` differs (group {group})", s.name)
            })?;
        }
    }
    for (a, b) in alone.0.iter().zip(&along.0) {
        // The flag that guards the update is the last of both.
        let metrics = a.len() - 1;
        check(b.len() == a.len() + 2 && a[..metrics] == b[..metrics], || {
            "the scalars of the objective differ".into()
        })?;
    }
    let last: Vec<_> =
        probed.graph.layout.states.iter().rev().take(2).map(|s| &s.name[..]).collect();
    check(last == ["online_probe.bias", "online_probe.weight"], || {
        format!("the probe is not the last of the layout: {last:?}")
    })
}

/// Loss, accuracy and gradient are those of softmax regression on the features, in f64.
fn regresses(session: &mut Session, with: &ModelConfig) -> Result<(), Failed> {
    let model = method::training(
        with,
        Training { views: Views::Given, update: false, ..Training::default() },
    );
    let [weight, bias] = ["weight", "bias"]
        .map(|name| model.graph.layout.get(&format!("online_probe.{name}")).map(|s| s.range));
    let (Some(weight), Some(bias)) = (weight, bias) else {
        return Err("the probe has no parameters".into());
    };
    let id = load(session, &model, true)?;
    reset(session, &model, 3)?;
    fill(session, id)?;
    session.run(id, &uniforms(3, 0, 0.0))?;
    let output = |session: &mut Session, name: &str| {
        let position = session
            .plan(id)
            .outputs
            .iter()
            .position(|p| p.name == name)
            .ok_or(format!("no output {name}"))?;
        Ok::<_, Failed>(session.read(id, position)?)
    };
    let h = output(session, "h")?;
    let (loss, accuracy) =
        (output(session, "online_loss")?[0], output(session, "online_accuracy")?[0]);
    let (params, grads) = (session.read_state(Group::Param)?, session.read_state(Group::Grad)?);
    let (n, dim) = (with.batch, h.len() / with.batch);
    let (mut want, mut want_loss, mut hits) = (vec![0.0; CLASSES * (dim + 1)], 0.0, 0);
    for i in 0..n {
        let row = &h[i * dim..][..dim];
        let w = |c: usize| &params[weight.offset + c * dim..][..dim];
        let logit = |c: usize| f64::from(params[bias.offset + c]) + dot(w(c), row);
        let logits: Vec<f64> = (0..CLASSES).map(logit).collect();
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        want_loss += (total.ln() - logits[i]) / n as f64; // the label of image i is i
        hits += usize::from((0..CLASSES).all(|c| logits[c] <= logits[i]));
        for c in 0..CLASSES {
            let d = (logits[c].exp() / total - f64::from(u8::from(c == i))) / n as f64;
            row.iter().zip(&mut want[c * dim..]).for_each(|(x, g)| *g += d * f64::from(*x));
            want[CLASSES * dim + c] += d;
        }
    }
    check((f64::from(loss) - want_loss).abs() < 1e-5, || {
        format!("the loss is {loss}, expected {want_loss}")
    })?;
    check(accuracy == hits as f32 / n as f32, || {
        format!("the accuracy is {accuracy}, expected {hits} of {n}")
    })?;
    let got = [&grads[weight.offset..][..CLASSES * dim], &grads[bias.offset..][..CLASSES]].concat();
    let scale = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    check(scale > 0.0 && worst < 1e-5 * scale, || {
        format!("a gradient is off by {worst}, the largest is {scale}")
    })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

//! Training on small networks: every method fits one batch; a seed gives its bits, on every device
//! and with any number of threads; a checkpoint carries the whole state; evaluation changes
//! nothing.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;

use aavae::data::{self, Kind, Loader, OpenOptions};
use aavae::device::{Data, Host, PlanId, Session};
use aavae::ir::Group;
use aavae::method::{self, Method, ModelConfig, Protocol, Training, Views};
use aavae::ops::{Op, StepUniforms};
use aavae::optim::{self, Optimizer, Update};
use aavae::plan::{Options, held_bytes, lower};
use aavae::run::checkpoint::Checkpoint;
use aavae::run::settings::RunConfig;
use aavae::run::state;
use aavae::run::trained::model_config;
use aavae::train::measure::{Measures, bits_per_dim, log_mean_exp};
use aavae::train::plans::{self, Sizes};
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Device, check, config, fill, load, pixels, reset, run, states, uniforms};

const RATE: f32 = 1e-3;
const MOMENTS: [Group; 2] = [Group::Moment1, Group::Moment2];
/// See [`amplify_decoder`].
const GAIN: f32 = 2.2;

/// What of a loss is not a constant: the likelihood's normalisation falls away.
fn excess(config: &ModelConfig, loss: f32) -> f64 {
    let count = (3 * config.net.image * config.net.image) as f64;
    let constant = if config.objective.method.samples() {
        count * 0.5 * (2.0 * std::f64::consts::PI).ln()
    } else {
        0.0
    };
    f64::from(loss) - constant
}

/// PyTorch's default weights shrink a signal 2.4 times a layer, and the decoder has no
/// normalisation: at first it is blind to its latent, and needs thousands of steps to see it.
/// Larger weights get over that at once.
fn amplify_decoder(session: &mut Session, model: &method::Model) -> Result<(), Failed> {
    for p in model
        .params
        .all
        .iter()
        .filter(|p| p.name.starts_with("decoder.") && p.name.ends_with(".weight"))
    {
        let range = model.graph.layout.get(&p.name).ok_or("a parameter is not laid out")?.range;
        let values: Vec<f32> = p.initial(1).iter().map(|w| w * GAIN).collect();
        session.write_state(range.group, range.offset, &values)?;
    }
    Ok(())
}

/// Trains on one batch; the loss must fall below `factor` of the first.
fn overfits(method: Method, views: Views, steps: u32, factor: f64) -> Result<(), Failed> {
    let config = config(method, 16, 8);
    let model = method::training(&config, Training { views, ..Training::default() });
    let mut host = Session::from(Host::<f32>::new());
    host.allocate(&model.graph.layout);
    let id = load(&mut host, &model, true)?;
    reset(&mut host, &model, 1)?;
    amplify_decoder(&mut host, &model)?;
    fill(&mut host, id)?;
    for step in 0..steps {
        host.run(id, &uniforms(1, step, 2e-3))?;
    }
    let losses: Vec<f64> = host.drain(id)?.iter().map(|(_, v)| excess(&config, v[0])).collect();
    let last = losses[losses.len() - 5..].iter().sum::<f64>() / 5.0;
    eprintln!(
        "{} {views:?}: {:.4} to {last:.4}, factor {:.4}",
        method.name(),
        losses[0],
        last / losses[0]
    );
    check(last.is_finite() && losses[0] > 0.0 && last < factor * losses[0], || {
        format!(
            "the loss went from {} to {last} in {steps} steps, expected below {factor} of the \
             first",
            losses[0]
        )
    })
}

/// Losses and final state of a few steps of AAVAE: augmentation, noise, everything that is random.
type Trace = (Vec<Vec<u32>>, Vec<Vec<u32>>);

fn trace(
    session: &mut Session,
    id: PlanId,
    model: &method::Model,
    seed: u64,
) -> Result<Trace, Failed> {
    reset(session, model, seed)?;
    fill(session, id)?;
    let scalars = run(session, id, seed, 0..3, RATE)?;
    Ok((scalars, states(session)?))
}

fn aavae() -> method::Model {
    method::training(&config(Method::Aavae, 16, 4), Training::default())
}

fn seeds(device: &Device) -> Result<(), Failed> {
    let model = aavae();
    let mut session = device.open()?;
    session.allocate(&model.graph.layout);
    let id = load(&mut session, &model, true)?;
    let first = trace(&mut session, id, &model, 7)?;
    let again = trace(&mut session, id, &model, 7)?;
    check(first == again, || "the same seed gave other bits on the same session".into())?;
    let other = trace(&mut session, id, &model, 8)?;
    check(first.0 != other.0 && first.1[0] != other.1[0], || {
        "another seed gave the same bits".into()
    })?;
    // The seed's high word counts too.
    let high = trace(&mut session, id, &model, 7 | 1 << 32)?;
    check(first.0 != high.0, || "a seed beyond 32 bits is cut off".into())?;
    let mut fresh = device.open()?;
    fresh.allocate(&model.graph.layout);
    let id = load(&mut fresh, &model, true)?;
    fresh.poison(id)?;
    check(trace(&mut fresh, id, &model, 7)? == first, || {
        "the same seed gave other bits on a fresh session".into()
    })
}

/// Each weight and each draw is specified by counters, so no thread can change it; sums have fixed
/// trees.
fn threads() -> Result<(), Failed> {
    for &method in Method::ALL {
        let model = method::training(&config(method, 16, 5), Training::default());
        let traces = [1, 2, 3].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build()?;
            pool.install(|| {
                let mut host = Session::from(Host::<f32>::new());
                host.allocate(&model.graph.layout);
                let id = load(&mut host, &model, true)?;
                trace(&mut host, id, &model, 3)
            })
        });
        let [one, two, three] = traces;
        let one = one?;
        check(one == two?, || format!("{}: two threads give other bits than one", method.name()))?;
        check(one == three?, || {
            format!("{}: three threads give other bits than one", method.name())
        })?;
    }
    Ok(())
}

/// Straight steps equal steps, export, file, import into a session of other contents, steps.
fn resume(device: &Device) -> Result<(), Failed> {
    let model = aavae();
    let layout = &model.graph.layout;
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(layout);
    let id = load(session, &model, true)?;
    reset(session, &model, 5)?;
    fill(session, id)?;
    let mut straight = run(session, id, 5, 0..4, RATE)?;
    let end = states(session)?;

    reset(session, &model, 5)?;
    run(session, id, 5, 0..2, RATE)?;
    let middle = states(session)?;
    let saved = Checkpoint {
        tensors: state::export(session, layout, &model.params, 2, &MOMENTS)?,
        meta: BTreeMap::new(),
    };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("a.safetensors");
    saved.save(&path)?;
    let loaded = Checkpoint::load(&path)?;
    check(loaded.tensors == saved.tensors, || "the file does not hold what was saved".into())?;

    // Other weights, moments and running statistics, so that whatever the import leaves out shows.
    for group in Group::ALL {
        session.write_state(group, 0, &vec![0.37; layout.size(group)])?;
    }
    // What lies between tensors belongs to none.
    reset_padding(session, &model)?;
    state::import(session, layout, &model.params, &loaded, &MOMENTS)?;
    let back = states(session)?;
    for (group, (a, b)) in Group::ALL.iter().zip(middle.iter().zip(&back)) {
        let differs = layout.states.iter().find(|s| {
            let r = s.range;
            let same_kind = (*group == Group::Buffer) == (r.group == Group::Buffer);
            *group != Group::Grad
                && same_kind
                && a[r.offset..r.offset + r.len] != b[r.offset..r.offset + r.len]
        });
        check(differs.is_none(), || {
            format!("{group:?} of `{}` is not restored", differs.map_or("", |s| s.name.as_str()))
        })?;
    }
    let exported = state::export(session, layout, &model.params, 2, &MOMENTS)?;
    check(exported == saved.tensors, || "export after import differs".into())?;
    let rest = run(session, id, 5, 2..4, RATE)?;
    check(straight.split_off(2) == rest, || "the losses after resuming differ".into())?;
    let resumed = states(session)?;
    for (i, group) in Group::ALL.iter().enumerate() {
        check(resumed.get(i) == end.get(i), || format!("{group:?} differs after resuming"))?;
    }
    Ok(())
}

/// Zeros the gaps between the ranges of a flat buffer; they are zero from allocation on.
fn reset_padding(session: &mut Session, model: &method::Model) -> Result<(), Failed> {
    let layout = &model.graph.layout;
    for group in Group::ALL {
        let mut flat = vec![0.0; layout.size(group)];
        let kept = if group == Group::Buffer { Group::Buffer } else { Group::Param };
        for s in layout.states.iter().filter(|s| s.range.group == kept) {
            flat[s.range.offset..s.range.offset + s.range.len].fill(0.37);
        }
        session.write_state(group, 0, &flat)?;
    }
    Ok(())
}

/// Evaluation plans leave parameters, running statistics and moments alone, and give the same
/// twice.
fn evaluation(device: &Device) -> Result<(), Failed> {
    let config = ModelConfig { online_probe: Some(4), ..config(Method::Aavae, 16, 4) };
    let model = method::training(&config, Training::default());
    let layout = &model.graph.layout;
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(layout);
    let train = load(session, &model, true)?;
    reset(session, &model, 2)?;
    fill(session, train)?;
    let initial = states(session)?;
    run(session, train, 2, 0..2, RATE)?;
    let before = states(session)?;
    check(initial[1] != before[1], || "training does not move the running statistics".into())?;
    for (name, graph) in [
        ("validation", method::validation(&config, layout, Views::Drawn).graph),
        ("importance", method::importance(&config, layout, 3, Views::Drawn).graph),
        ("views", method::views(&config, layout, Views::Drawn).graph),
        ("figures", method::figures(&config, layout).graph),
        ("features", method::features(&config, layout, Protocol::PadCrop).graph),
        ("features of STL-10", method::features(&config, layout, Protocol::ResizedCrop).graph),
    ] {
        let id = session.load(session.lower(name, &graph))?;
        fill(session, id)?;
        let mut outputs = Vec::new();
        for _ in 0..2 {
            session.poison(id)?;
            session.run(id, &uniforms(2, 1000, 0.0))?;
            let read: Vec<Vec<f32>> =
                (0..graph.outputs.len()).map(|o| session.read(id, o)).collect::<Result<_, _>>()?;
            check(read.iter().flatten().all(|x| x.is_finite()), || {
                format!("{name}: a result is not finite")
            })?;
            outputs.push(read);
        }
        check(outputs[0] == outputs[1], || format!("{name} gives other results the second time"))?;
        check(states(session)? == before, || format!("{name} changes the model"))?;
    }
    Ok(())
}

/// The batch of an accumulated step that uploads and counts from `part * batch`.
fn run_part(
    session: &mut Session,
    id: PlanId,
    part: usize,
    batch: usize,
    step: u32,
) -> Result<(), Failed> {
    let side = session.plan(id).inputs[0].ty.shape.h;
    session.upload(id, 0, Data::U32(&pixels(part * batch..(part + 1) * batch, side)))?;
    Ok(session.run(
        id,
        &StepUniforms { first_sample: (part * batch) as u32, ..uniforms(3, step, RATE) },
    )?)
}

/// Largest difference of two flat gradients, relative to the largest element of its tensor.
fn apart(model: &method::Model, a: &[f32], b: &[f32]) -> Result<f64, Failed> {
    let mut worst = 0.0_f64;
    for s in model.graph.layout.states.iter().filter(|s| s.range.group == Group::Param) {
        let tensor = s.range.offset..s.range.offset + s.range.len;
        let largest = a[tensor.clone()].iter().fold(0.0_f64, |m, x| m.max(f64::from(x.abs())));
        check(largest > 0.0, || format!("`{}` has no gradient", s.name))?;
        let error = tensor
            .map(|i| (f64::from(a[i]) - f64::from(b[i])).abs())
            .fold(0.0, |m: f64, e| if e <= m { m } else { e });
        check(error.is_finite(), || format!("the gradient of `{}` is not finite", s.name))?;
        worst = worst.max(error / largest);
    }
    Ok(worst)
}

/// Three batches of two give the gradient of one of six, augmentation and noise included, with
/// BatchNorm's running statistics; with a batch's own they do not.
fn accumulation(device: &Device) -> Result<(), Failed> {
    const PARTS: usize = 3;
    let (whole, part) = (config(Method::Aavae, 16, 2 * PARTS), config(Method::Aavae, 16, 2));
    // Software adapters compile for long, and the statistics are the same kernels everywhere.
    let modes: &[bool] = if matches!(device, Device::Wgpu(..)) { &[true] } else { &[true, false] };
    for &freeze_statistics in modes {
        let how = Training { update: false, freeze_statistics, ..Training::default() };
        let large = method::training(&whole, how);
        let small = method::training(&part, Training { accumulate: PARTS, ..how });
        let mut session = device.open()?;
        let session = &mut session;
        session.allocate(&large.graph.layout);
        let (large_id, small_id) = (load(session, &large, true)?, load(session, &small, true)?);
        reset(session, &large, 3)?;
        // Statistics as they are after some training.
        for s in large.graph.layout.states.iter().filter(|s| s.name.contains(".running_")) {
            let value = |i: usize| {
                if s.name.ends_with("var") {
                    0.5 + (i % 7) as f32 / 7.0
                } else {
                    (i % 5) as f32 / 10.0 - 0.2
                }
            };
            session.write_state(
                Group::Buffer,
                s.range.offset,
                &(0..s.range.len).map(value).collect::<Vec<_>>(),
            )?;
        }
        let statistics = session.read_state(Group::Buffer)?;
        run_part(session, large_id, 0, 2 * PARTS, 6)?;
        let want = session.read_state(Group::Grad)?;
        // What an earlier step left must not count.
        session.write_state(
            Group::Accumulated,
            0,
            &vec![f32::NAN; large.graph.layout.size(Group::Accumulated)],
        )?;
        for i in 0..PARTS {
            run_part(session, small_id, i, 2, 6)?;
        }
        let sum = session.read_state(Group::Accumulated)?;
        let error = apart(&large, &want, &sum)?;
        eprintln!("{}, frozen {freeze_statistics}: {error:.1e}", device.name());
        check(freeze_statistics == (error < 1e-5), || {
            format!("frozen {freeze_statistics}: the gradients differ by {error:e}")
        })?;
        check(freeze_statistics == (session.read_state(Group::Buffer)? == statistics), || {
            "frozen statistics move, or others stay".into()
        })?;
        // The mean loss is among what guards the update.
        let losses: Vec<f32> = session.drain(small_id)?.iter().map(|(_, v)| v[0]).collect();
        let (mean, stored) = (
            losses.iter().sum::<f32>() / PARTS as f32,
            sum[large.graph.layout.accumulated_loss().offset],
        );
        check(losses.len() == PARTS && (mean - stored).abs() < 1e-5 * mean.abs(), || {
            format!("{losses:?} are not {stored} in the mean")
        })?;
        if freeze_statistics {
            // The draws of the first batch again and again would not do: the images of a step draw
            // each their own.
            for i in 0..PARTS {
                session.upload(small_id, 0, Data::U32(&pixels(2 * i..2 * i + 2, 16)))?;
                session.run(
                    small_id,
                    &StepUniforms {
                        first_sample: if i == 0 { 0 } else { 100 },
                        ..uniforms(3, 6, RATE)
                    },
                )?;
            }
            let other = apart(&large, &want, &session.read_state(Group::Accumulated)?)?;
            check(other > 1e-2, || format!("other draws give the same gradients: {other:e}"))?;
        }
    }
    Ok(())
}

/// A loss that is no number in any batch of a step stops the update of every optimiser from that
/// step on, and leaves nothing behind once the flag is cleared.
fn a_bad_batch(device: &Device) -> Result<(), Failed> {
    const PARTS: usize = 3;
    let part = method::training(
        &config(Method::Ae, 16, 2),
        Training { views: Views::Given, accumulate: PARTS, ..Training::default() },
    );
    let layout = &part.graph.layout;
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(layout);
    let id = load(session, &part, true)?;
    let rules = [Optimizer::Adam, Optimizer::Sgd, Optimizer::Lars, Optimizer::Lamb]
        .map(|optimizer| Update { optimizer, weight_decay: 0.1, ..Update::default() });
    let lowered = rules.map(|rule| session.lower("update", &optim::update(layout, rule)));
    let mut updates = Vec::new();
    for plan in lowered.clone() {
        updates.push(session.load(plan)?);
    }
    reset(session, &part, 4)?;
    fill(session, id)?;
    let plans = [&[session.plan(id).clone()], &lowered[..]].concat();
    let planned = held_bytes(&plans) + session.capabilities().overhead;
    check(session.allocated_bytes() == planned, || {
        format!("{} bytes are allocated, the plans say {planned}", session.allocated_bytes())
    })?;
    let len = session.plan(id).inputs[0].ty.shape.len();
    let step = |session: &mut Session,
                update: PlanId,
                step: u32,
                bad: Option<usize>|
     -> Result<Vec<Vec<u32>>, Failed> {
        for i in 0..PARTS {
            fill(session, id)?;
            if bad == Some(i) {
                session.upload(id, 0, Data::F32(&vec![f32::NAN; len]))?;
            }
            session
                .run(id, &StepUniforms { first_sample: 2 * i as u32, ..uniforms(4, step, RATE) })?;
        }
        session.run(update, &uniforms(4, step, RATE))?;
        session.drain(update)?;
        let kept = [Group::Param, Group::Moment1, Group::Moment2];
        kept.iter()
            .map(|&g| Ok(session.read_state(g)?.into_iter().map(f32::to_bits).collect()))
            .collect()
    };
    for (rule, update) in rules.iter().zip(updates) {
        let name = format!("{:?}", rule.optimizer);
        reset(session, &part, 4)?;
        let first = step(session, update, 0, None)?;
        let second = step(session, update, 1, None)?;
        check(first[0] != second[0] && first[1] != second[1], || {
            format!("{name}: a step changes nothing")
        })?;
        check((first[2] != second[2]) == (rule.moments().len() == 2), || {
            format!("{name}: the second moment")
        })?;
        reset(session, &part, 4)?;
        step(session, update, 0, None)?;
        for bad in 0..PARTS {
            check(step(session, update, 1, Some(bad))? == first, || {
                format!("{name}: updated although batch {bad} is bad")
            })?;
        }
        check(step(session, update, 1, None)? == first, || {
            format!("{name}: updated after a bad step")
        })?;
        session.write_state(layout.guard().group, layout.guard().offset, &[0.0])?;
        check(step(session, update, 1, None)? == second, || {
            format!("{name}: a bad step has left something behind")
        })?;
    }
    Ok(())
}

/// Importance sampling sees what validation sees: with the step of its batch and the position in
/// it, an image has the same view and, as its first sample, the same noise.
fn same_draws() -> Result<(), Failed> {
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
    let pixels = support::pixels(0..config.batch, config.net.image);
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
fn every_image_once() -> Result<(), Failed> {
    let (batch_size, samples) = (7, 2); // three images at a time, the last of them one
    let run = RunConfig {
        width: 8,
        latent_dim: 16,
        batch_size,
        importance_samples: Some(samples),
        ..RunConfig::default()
    };
    let data =
        OpenOptions { shapes_len: (40, 1), n_val: Some(15), ..OpenOptions::new(Kind::Shapes) };
    let splits = data::open(&data)?;
    let config = model_config(&run, &splits);
    let model = method::training(&config, Training::default());
    let layout = &model.graph.layout;
    let mut host = Session::from(Host::<f32>::new());
    let held_out = splits.val.len();
    let plans = plans::load(&mut host, &run, &config, held_out)?;
    reset(&mut host, &model, 4)?;
    let sizes = Sizes::new(&run, config.batch, held_out);
    let got = Measures::new(&plans, sizes, &run, &config).evaluate(&mut host, &splits)?;

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

/// The classifier that is trained along changes no bit of anything else, and its gradient is that
/// of softmax regression on the features.
fn online_probe(device: &Device) -> Result<(), Failed> {
    const CLASSES: usize = 5; // padded to 8 in memory
    let plain = config(Method::Aavae, 16, 4);
    let with = ModelConfig { online_probe: Some(CLASSES), ..plain };
    let probed = method::training(&with, Training::default());
    let mut model = method::training(&plain, Training::default());
    let layout = std::mem::replace(&mut model.graph.layout, probed.graph.layout.clone());
    // One session for both, because its compiled kernels are.
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(&probed.graph.layout);
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
    let [weight, bias] = ["weight", "bias"]
        .map(|name| probed.graph.layout.get(&format!("online_probe.{name}")).cloned());
    let (Some(weight), Some(bias)) = (weight, bias) else {
        return Err("the probe has no parameters".into());
    };
    let last = probed.graph.layout.states.len();
    check(probed.graph.layout.states[last - 2..] == [weight.clone(), bias.clone()], || {
        "the probe is not the last of the layout".into()
    })?;

    let model = method::training(
        &with,
        Training { views: Views::Given, update: false, ..Training::default() },
    );
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
        let w = |c: usize| &params[weight.range.offset + c * dim..][..dim];
        let logit = |c: usize| f64::from(params[bias.range.offset + c]) + dot(w(c), row);
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
    let got =
        [&grads[weight.range.offset..][..CLASSES * dim], &grads[bias.range.offset..][..CLASSES]]
            .concat();
    let scale = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    check(scale > 0.0 && worst < 1e-5 * scale, || {
        format!("a gradient is off by {worst}, the largest is {scale}")
    })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials =
        vec![Trial::test("the bits do not depend on the number of threads/cpu", threads)];
    for &method in Method::ALL {
        // The batch's mean image alone gives 0.9, and so does SimCLR with all views in one point.
        let test = move || overfits(method, Views::Given, 150, 0.4);
        trials.push(Trial::test(format!("{} fits one batch/cpu", method.name()), test));
    }
    trials.push(Trial::test("aavae learns through its augmentation/cpu", || {
        overfits(Method::Aavae, Views::Drawn, 150, 0.7)
    }));
    trials.extend(support::on_devices("a seed is its bits", &[Device::Cpu], seeds));
    trials.extend(support::on_devices("a checkpoint is the whole state", &[Device::Cpu], resume));
    trials.extend(support::on_devices(
        "accumulated gradients are those of the large batch",
        &[Device::Cpu],
        accumulation,
    ));
    trials.extend(support::on_devices("a bad batch stops the update", &[Device::Cpu], a_bad_batch));
    trials.extend(support::on_devices("evaluation changes nothing", &[Device::Cpu], evaluation));
    trials.push(Trial::test("importance sampling sees what validation sees/cpu", same_draws));
    trials.push(Trial::test("an evaluation takes every image once/cpu", every_image_once));
    trials.extend(support::on_devices(
        "an online probe changes nothing else",
        &[Device::Cpu],
        online_probe,
    ));
    libtest_mimic::run(&args, trials).exit_code()
}

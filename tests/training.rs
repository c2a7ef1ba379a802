//! Training on small networks: every method fits one batch; a seed gives its bits, on every device
//! and with any number of threads; a checkpoint carries the whole state; evaluation changes
//! nothing.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

#[path = "training/accumulation.rs"]
mod accumulation;
#[path = "training/measures.rs"]
mod measures;
#[path = "training/resident.rs"]
mod resident;
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;

use aavae::device::{Host, PlanId, Session};
use aavae::ir::Group;
use aavae::method::{self, Method, ModelConfig, Protocol, Training, Views};
use aavae::ops::StepUniforms;
use aavae::optim;
use aavae::run::checkpoint::Checkpoint;
use aavae::run::state;
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Device, check, config, fill, load, reset, run, states, uniforms};

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

/// A scaled loss gives the bits of one that is not, as long as nothing is stored as f16: a power of
/// two changes no digit of a gradient.
fn scaled(accumulate: usize) -> Result<(), Failed> {
    for &method in Method::ALL.iter().filter(|m| accumulate == 1 || m.definition().per_image) {
        let config = ModelConfig { online_probe: Some(8), ..config(method, 16, 4) };
        let ends = [false, true].map(|scaled| {
            let how = Training { scaled, accumulate, ..Training::default() };
            let model = method::training(&config, how);
            let mut host = Session::from(Host::<f32>::new());
            host.allocate(&model.graph.layout);
            let id = load(&mut host, &model, true)?;
            let update = optim::update(&model.graph.layout, how.rule);
            let update = host.load(host.lower("update", &update))?;
            reset(&mut host, &model, 3)?;
            fill(&mut host, id)?;
            for step in 0..3 {
                for part in 0..accumulate {
                    let first_sample = (part * config.batch) as u32;
                    host.run(id, &StepUniforms { first_sample, ..uniforms(3, step, RATE) })?;
                }
                if accumulate > 1 {
                    host.run(update, &uniforms(3, step, RATE))?;
                }
            }
            let flat = states(&mut host)?;
            let asked = state::request_scale(&mut host, &model.graph.layout)?;
            let skipped = asked.map(|asked| state::scale(&mut host, asked)).transpose()?;
            check(skipped == scaled.then_some([65_536.0, 0.0]), || format!("{skipped:?}"))?;
            Ok::<_, Failed>([flat[0].clone(), flat[3].clone(), flat[4].clone()])
        });
        let [full, scaled] = ends;
        let (full, scaled) = (full?, scaled?);
        check(full == scaled && full[1].iter().any(|m| *m != 0), || {
            format!("{}: other weights or moments", method.name())
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
fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials =
        vec![Trial::test("the bits do not depend on the number of threads/cpu", threads)];
    for batches in [1, 2] {
        let name = format!("a scaled loss gives the same bits, {batches} batches a step/cpu");
        trials.push(Trial::test(name, move || scaled(batches)));
    }
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
        accumulation::accumulation,
    ));
    trials.extend(support::on_devices(
        "a bad batch stops the update",
        &[Device::Cpu],
        accumulation::a_bad_batch,
    ));
    trials.extend(support::on_devices("evaluation changes nothing", &[Device::Cpu], evaluation));
    trials.push(Trial::test(
        "importance sampling sees what validation sees/cpu",
        measures::same_draws,
    ));
    trials
        .push(Trial::test("an evaluation takes every image once/cpu", measures::every_image_once));
    trials.extend(support::on_devices(
        "an online probe changes nothing else",
        &[Device::Cpu],
        measures::online_probe,
    ));
    trials.extend(support::on_devices(
        "images that stay change no bit",
        &[Device::Cpu, Device::Reference],
        resident::same_bits,
    ));
    trials.push(Trial::test("images that stay in parts change no bit/cpu", resident::parts));
    trials.push(Trial::test("images stay where they fit/cpu", resident::memory));
    libtest_mimic::run(&args, trials).exit_code()
}

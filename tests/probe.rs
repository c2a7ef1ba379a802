//! The linear probe: its step on the device is that of a classifier on uploaded features, bit for
//! bit, and moves nothing else; its accuracy is that of the logits; what is not finite, or has no
//! room, stops it.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use aavae::data::shapes::Part;
use aavae::data::{Shapes, Subset};
use aavae::device::{Data, Host, PlanId, Session};
use aavae::eval::features::{Evaluator, Features};
use aavae::eval::probe::{ProbeConfig, ProbeResult, probe};
use aavae::ir::{Graph, Group, autodiff};
use aavae::method::{self, Method, ModelConfig, Protocol};
use aavae::model::resnet::encoder;
use aavae::nn::Builder;
use aavae::ops::{Emit, ProbeAugment, SoftmaxCrossEntropy, StepUniforms};
use aavae::optim::{Optimizer, Update};
use aavae::run::RunError;
use aavae::run::state;
use aavae::tensor::{Shape, TensorType};
use libtest_mimic::{Arguments, Failed, Trial};
use support::faulty::{Faulty, Temper};
use support::{Device, check, config, pixels, states};

const CLASSES: usize = 5; // padded to 8 in memory
const BATCH: usize = 8;
const STEPS: u32 = 4;

fn model() -> ModelConfig {
    config(Method::Aavae, 16, BATCH)
}

fn uniforms(step: u32) -> StepUniforms {
    StepUniforms { learning_rate: 0.3 / (step + 1) as f32, ..StepUniforms::seeded(7, step) }
}

fn load(session: &mut Session, name: &str, graph: &Graph) -> Result<PlanId, Failed> {
    Ok(session.load(session.lower(name, graph))?)
}

/// The images that a probe trains on, and their features, as a graph of its own.
fn features(model: &ModelConfig, frozen: &method::Frozen) -> Graph {
    let mut b = Builder::new(Graph::with_layout(frozen.layout.clone()), false);
    let side = model.net.image;
    let pixels = b.graph.input("pixels", TensorType::u32(Shape::new(BATCH, side, side, 1)));
    let augment = ProbeAugment { pad: 4, mean: model.mean, std: model.std };
    let x = b.graph.emit1(augment.into(), &[pixels]);
    let h = encoder(&mut b, &model.net, x);
    b.graph.output("features", h);
    b.graph
}

/// A step of a classifier on uploaded features: SGD with momentum 0.9 that looks ahead.
fn classifier(dim: usize) -> method::Model {
    let mut b = Builder::new(Graph::default(), true);
    let x = b.graph.input("features", TensorType::f32(Shape::rows(BATCH, dim)));
    let labels = b.graph.input("labels", TensorType::u32(Shape::rows(BATCH, 1)));
    let logits = b.linear("classifier", x, CLASSES, true);
    let out = b.graph.emit(SoftmaxCrossEntropy { classes: CLASSES }.into(), &[logits, labels]);
    b.graph.output("loss", out[0]);
    b.graph.output("correct", out[1]);
    autodiff::backward(&mut b.graph, out[0]);
    let rule = Update { optimizer: Optimizer::Sgd, nesterov: true, weight_decay: 0.0 };
    rule.emit(&mut b.graph, Group::Grad, out[0]);
    method::Model { graph: b.graph, params: b.params }
}

/// Steps from bytes to the update, on one device, are those of reading the features back and
/// training the classifier elsewhere; the encoder stays what it was.
fn one_plan(device: &Device) -> Result<(), Failed> {
    let model = model();
    let frozen = method::frozen(&model, CLASSES);
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(&frozen.layout);
    let step = method::probe(&model, &frozen.layout, Protocol::PadCrop, CLASSES).graph;
    let step = load(session, "probe", &step)?;
    let features = load(session, "features", &features(&model, &frozen))?;
    state::initialise(session, &frozen.layout, &frozen.model, 1)?;
    state::initialise(session, &frozen.layout, &frozen.classifier, 2)?;
    let before = states(session)?;

    let alone = classifier(model.net.features());
    let mut other = device.open()?;
    other.allocate(&alone.graph.layout);
    let update = load(&mut other, "classifier", &alone.graph)?;
    state::initialise(&mut other, &alone.graph.layout, &alone.params, 2)?;

    for s in 0..STEPS {
        let images = s as usize * BATCH..(s as usize + 1) * BATCH;
        let labels: Vec<u32> = images.clone().map(|i| i as u32 % CLASSES as u32).collect();
        let pixels = pixels(images, model.net.image);
        session.upload(step, 0, Data::U32(&pixels))?;
        session.upload(step, 1, Data::U32(&labels))?;
        session.run(step, &uniforms(s))?;
        session.upload(features, 0, Data::U32(&pixels))?;
        session.run(features, &uniforms(s))?;
        other.upload(update, 0, Data::F32(&session.read(features, 0)?))?;
        other.upload(update, 1, Data::U32(&labels))?;
        other.run(update, &uniforms(s))?;
    }
    let (ours, theirs) = (session.drain(step)?, other.drain(update)?);
    check(ours == theirs, || format!("the scalars are {ours:?}, expected {theirs:?}"))?;
    check(ours.iter().all(|(_, v)| v.len() == 3 && v[2] == 0.0), || format!("{ours:?}"))?;
    let (after, trained) = (states(session)?, states(&mut other)?);
    for (group, name) in [(0, "parameters"), (3, "momentum")] {
        check(after[group] == trained[group], || format!("the {name} differ"))?;
        check(after[group] != before[group], || format!("the {name} do not move"))?;
    }
    check(after[1] == before[1], || "the probe moves the encoder".into())
}

/// A few embedded images whose last test batch is padded, an evaluator of them, and the
/// features of the test images.
fn small(session: Session) -> Result<(Evaluator, Subset, Features), RunError> {
    let subset = |part, n| Subset::full(Arc::new(Shapes::new(3, part, n)));
    let (train, test) = (subset(Part::Train, 40), subset(Part::Test, 21));
    let model = config(Method::Aavae, 32, BATCH);
    let classes = train.dataset.classes().len();
    let mut evaluator = Evaluator::new(session, model, Protocol::PadCrop, classes, None, 5)?;
    let test = evaluator.features(&test, |_| ())?;
    Ok((evaluator, train, test))
}

const TWO_EPOCHS: ProbeConfig = ProbeConfig { epochs: 2, seed: 9 };

/// The accuracy on a test set that is no whole number of batches is that of the weights, and a
/// second probe of the same encoder is the first again.
fn accuracy() -> Result<(), Failed> {
    let (mut evaluator, train, test) = small(Session::from(Host::<f32>::new()))?;
    let mut run = |test: &Features| -> Result<ProbeResult, RunError> {
        probe(&mut evaluator, TWO_EPOCHS, &train, test, |_, _| ())
    };
    let first = run(&test)?;
    check(run(&test)? == first, || "a second probe has another result".into())?;
    let classes = train.dataset.classes().len();
    let flat = evaluator.session.read_state(Group::Param)?;
    let bias = classes.next_multiple_of(4) * test.dim;
    let right = |i: &usize| {
        let x = &test.data[i * test.dim..][..test.dim];
        let logit = |c: usize| {
            let w = &flat[c * test.dim..][..test.dim];
            let product = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
            product + f64::from(flat[bias + c])
        };
        let best = (0..classes).fold(0, |best, c| if logit(c) > logit(best) { c } else { best });
        best == test.labels[*i] as usize
    };
    let hits = (0..test.len()).filter(right).count();
    check(first.test == hits as f64 / test.len() as f64, || {
        format!("{first:?}, but {hits} of {} are right", test.len())
    })?;
    check(hits > 0 && first.train > 0.0 && first.loss > 0.0, || format!("{first:?}"))
}

/// A probe of images that stay on the device is that of uploaded ones, and gives back what it took.
fn stays(device: &Device) -> Result<(), Failed> {
    let mut found = Vec::new();
    for keeps in [false, true] {
        let mut session = device.open()?;
        session.set_keeps_images(keeps);
        let (mut evaluator, train, test) = small(session)?;
        let before = evaluator.session.allocated_bytes();
        let result = probe(&mut evaluator, TWO_EPOCHS, &train, &test, |_, _| ())?;
        found.push((result, states(&mut evaluator.session)?));
        // The plan of the test stays, which is smaller than an image.
        let more = evaluator.session.allocated_bytes() - before;
        check(more < 40 * 3072, || format!("{more} bytes more are held"))?;
    }
    check(found[0] == found[1], || format!("{:?} with uploads {:?}", found[1].0, found[0].0))
}

/// Weights that overflow stop the probe with the name of the tensor; so do test features.
fn not_finite() -> Result<(), Failed> {
    let (mut evaluator, train, test) = small(Session::from(Host::<f32>::new()))?;
    let mut bad = test.clone();
    bad.data[7 * bad.dim + 3] = f32::NAN;
    let run = |evaluator: &mut Evaluator, test: &Features| {
        probe(evaluator, TWO_EPOCHS, &train, test, |_, _| ()).map_err(|e| e.to_string())
    };
    let told = run(&mut evaluator, &bad);
    let want = Err("the features of test image 7 are not finite".to_owned());
    check(told == want, || format!("{told:?}"))?;
    evaluator.session.write_state(Group::Buffer, 0, &[f32::MAX; 64])?;
    let told = run(&mut evaluator, &test).expect_err("weights that overflow");
    check(
        told.starts_with("the probe's ")
            && told.contains(" at step 1; ")
            && told.contains("`encoder."),
        || told.clone(),
    )
}

/// A probe that does not fit is refused before it is loaded; the hint names a batch that does.
fn memory() -> Result<(), Failed> {
    let attempt = |batch: usize, memory: Option<usize>| {
        let temper = Temper::default();
        temper.memory.set(memory);
        let train = Subset::full(Arc::new(Shapes::new(3, Part::Train, 200)));
        let model = config(Method::Ae, 32, batch);
        let session = Session::from(Faulty::new(temper, true));
        let mut evaluator = Evaluator::new(session, model, Protocol::PadCrop, 10, None, 5)?;
        let dim = model.net.features();
        let test = Features { dim, data: vec![0.5; dim], labels: vec![0] };
        let config = ProbeConfig { epochs: 1, seed: 0 };
        probe(&mut evaluator, config, &train, &test, |_, _| ()).map(|_| ())
    };
    let room = Some(6 << 20);
    let error = attempt(200, room).expect_err("6 MiB are too few for 200 images");
    let hint = error.hint().unwrap_or_default();
    let fitting: usize = hint
        .split('`')
        .nth(1)
        .and_then(|hint| hint.strip_prefix("--batch-size ")?.parse().ok())
        .ok_or(format!("{error}\nhint: {hint}"))?;
    check((1..200).contains(&fitting), || format!("{error}\nhint: {hint}"))?;
    attempt(fitting, room).map_err(|e| format!("{fitting}, the number of the hint: {e}").into())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = support::on_devices("one plan is the two", &[Device::Cpu], one_plan);
    trials.extend(support::on_devices("images that stay change no bit", &[Device::Cpu], stays));
    trials.push(Trial::test("accuracy is that of the weights/cpu", accuracy));
    trials.push(Trial::test("what is not finite stops it/cpu", not_finite));
    trials.push(Trial::test("it obeys the memory", memory));
    libtest_mimic::run(&args, trials).exit_code()
}

//! Plans: reviewed texts, a verifier that refuses broken ones, and buffer reuse and fusion that
//! change no result.
//!
//! `tests/golden/plans` has one plan as a whole and summaries of the others, each with a digest of
//! its text, so that no change of a kernel, a grid or a buffer goes unseen. After a deliberate one,
//! `UPDATE_GOLDENS=1 cargo test --test plans` writes them anew and fails, so that the variable
//! cannot stay set; review the difference and run again without it.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

mod support;
#[path = "plans/verifier.rs"]
mod verifier;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aavae::device::{Data, Host, Session};
use aavae::ir::{Graph, Group, autodiff, fuse};
use aavae::method::{self, Method, ModelConfig, Protocol, Training, Views};
use aavae::model::{Depth, NetConfig};
use aavae::ops::{
    BatchNorm, Choices, Conv2d, Dot, Emit, Io, Op, Relu, ReluGrad, Scale, Target, ValueId, Variant,
    WeightedSum, key,
};
use aavae::optim::{self, Optimizer, Update};
use aavae::plan::{Options, Plan, PlannedOp, lower, summary};
use aavae::rng::{Philox, Stream};
use aavae::tensor::{Half, Shape, TensorType};
use libtest_mimic::{Arguments, Failed, Trial};
use sha2::{Digest, Sha256};
use support::{Device, check, config, fill, load, reset, run, states, uniforms};
use verifier::{QUIET, broken_plans, limits, scratch_fits};

/// The plan that is reviewed as a whole.
const WHOLE: &str = "aavae_train";

/// The reviewed plans by name.
fn reviewed() -> Vec<(String, Plan)> {
    let tile = Target::default();
    let train = |method: Method, target| {
        lower(
            "train",
            &method::training(&config(method, 16, 2), Training::default()).graph,
            Options::new(target),
        )
    };
    let mut plans: Vec<_> =
        Method::ALL.iter().map(|m| (format!("{}_train", m.name()), train(*m, tile))).collect();
    let broadcast = Target { subgroup: Some(8), software: true, ..tile };
    plans.push(("aavae_train_broadcast8".into(), train(Method::Aavae, broadcast)));
    let config = config(Method::Aavae, 16, 2);
    let layout = method::training(&config, Training::default()).graph.layout;
    for (name, optimizer) in
        [("adam", Optimizer::Adam), ("lars", Optimizer::Lars), ("lamb", Optimizer::Lamb)]
    {
        let update =
            optim::update(&layout, Update { optimizer, weight_decay: 0.1, ..Update::default() });
        plans.push((format!("update_{name}"), lower("update", &update, Options::default())));
    }
    let features = method::features(&config, &layout, Protocol::PadCrop).graph;
    let frozen = method::frozen(&config, 10).layout;
    let probe = method::probe(&config, &frozen, Protocol::PadCrop, 10).graph;
    for (name, graph) in [("features", features), ("probe", probe)] {
        plans.push((name.into(), lower(name, &graph, Options::default())));
    }
    plans
}

/// Most pipelines of a small network where compiling is slow: a browser's software adapter makes
/// about one a second.
const PIPELINES: usize = 65;

/// What start-up and a step's host time depend on, at scale.
fn totals() -> Result<String, Failed> {
    use std::fmt::Write as _;

    let mut text = String::new();
    let portable = Target::default();
    let targets = [
        ("portable", portable),
        ("compact", Target { compact: true, ..portable }),
        ("broadcast 8", Target { subgroup: Some(8), software: true, ..portable }),
    ];
    for (depth, width, batch) in
        [(Depth::Resnet18, 8, 32), (Depth::Resnet18, 64, 256), (Depth::Resnet50, 64, 256)]
    {
        let small = config(Method::Aavae, 32, batch);
        let net = NetConfig { encoder: depth, decoder: depth, width, latent: 128, ..small.net };
        let model = ModelConfig { net, ..small };
        let graph = method::training(&model, Training::default()).graph;
        for (what, target) in targets {
            let s = summary(&lower("train", &graph, Options::new(target)));
            writeln!(
                text,
                "AAVAE, {depth:?}, width {width}, batch {batch}, {what}: {} ops, {} dispatches, {} \
                 pipelines, {:.1} MB moved, {:.1} MB held",
                s.steps,
                s.dispatches,
                s.pipelines,
                s.bytes as f64 / 1e6,
                s.peak_bytes as f64 / 1e6
            )?;
            check(width > 8 || !target.compact || s.pipelines <= PIPELINES, || {
                format!("{} pipelines at width 8, at most {PIPELINES}", s.pipelines)
            })?;
        }
    }
    Ok(text)
}

/// Which ops a plan has, with which kernels and how many of each; its totals; a digest of its text.
fn summarised(name: &str, plan: &Plan) -> String {
    let mut ops: BTreeMap<&str, (usize, BTreeMap<&str, usize>)> = BTreeMap::new();
    for op in &plan.ops {
        let (count, kernels) = ops.entry(op.op.name()).or_default();
        *count += 1;
        for dispatch in &op.dispatches {
            *kernels.entry(dispatch.kernel.file).or_default() += 1;
        }
    }
    let text = plan.to_string();
    let mut summary = format!("{name}: {}\n", text.lines().last().unwrap_or_default());
    for (op, (count, kernels)) in ops {
        let kernels: Vec<_> = kernels.iter().map(|(file, n)| format!("{file} {n}")).collect();
        summary += &format!("  {op} {count}: {}\n", kernels.join(", "));
    }
    let digest: String =
        Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    summary + &format!("  text {digest}\n")
}

/// What `tests/golden/plans` has to say, by file. The texts of all plans are left in the folder of
/// the build, to be compared with those of another commit.
fn plan_texts() -> Result<BTreeMap<String, String>, Failed> {
    let (mut files, mut summaries) = (BTreeMap::new(), String::new());
    std::fs::create_dir_all(built())?;
    for (name, plan) in reviewed() {
        let (file, text) = (format!("{name}.txt"), format!("{plan}\n"));
        std::fs::write(built().join(&file), &text)?;
        if name == WHOLE {
            files.insert(file, text);
        } else {
            summaries += &summarised(&name, &plan);
        }
    }
    files.insert("summaries.txt".into(), summaries);
    files.insert("totals.txt".into(), totals()?);
    Ok(files)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plans")
}

fn built() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("plans")
}

/// The first line in which two texts differ, and what either says there.
fn difference<'a>(got: &'a str, want: &'a str) -> (usize, &'a str, &'a str) {
    let (mut a, mut b) = (got.lines(), want.lines());
    for line in 1.. {
        match (a.next(), b.next()) {
            (None, None) => break,
            (x, y) if x != y => return (line, x.unwrap_or("(the end)"), y.unwrap_or("(the end)")),
            _ => {}
        }
    }
    (0, "(other line ends)", "")
}

fn goldens() -> Result<(), Failed> {
    let texts = plan_texts()?;
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::create_dir_all(folder())?;
        for (name, text) in &texts {
            std::fs::write(folder().join(name), text)?;
        }
        return Err(
            "the plans are written; review them and run again without UPDATE_GOLDENS".into()
        );
    }
    for (name, text) in &texts {
        let path = folder().join(name);
        let reviewed = std::fs::read_to_string(&path)
            .map_err(|e| format!("{}: {e}; write it with UPDATE_GOLDENS=1", path.display()))?;
        check(*text == reviewed, || {
            let (line, got, want) = difference(text, &reviewed);
            format!(
                "{name}: line {line} is\n  {got}\nthe reviewed text says\n  {want}\nThe whole \
                 plans are in {}. If the change is meant, run UPDATE_GOLDENS=1 cargo test --test \
                 plans and review the difference",
                built().display()
            )
        })?;
    }
    for entry in std::fs::read_dir(folder())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        check(texts.contains_key(&name), || format!("{name} is no plan's text"))?;
    }
    Ok(())
}

/// Two steps of training from the same state on the aliased and on the unaliased plan give the same
/// bits, and a step allocates nothing.
fn aliasing(device: &Device, method: Method) -> Result<(), Failed> {
    // Naive f64 takes a smaller image.
    let image = if matches!(device, Device::Reference) { 8 } else { 16 };
    let model = method::training(&config(method, image, 3), Training::default());
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(&model.graph.layout);
    let aliased = load(session, &model, true)?;
    let bytes = session.allocated_bytes();
    let peak = session.plan(aliased).peak_bytes() + session.capabilities().overhead;
    check(bytes == peak, || format!("{bytes} bytes are allocated, the plan says {peak}"))?;
    reset(session, &model, 11)?;
    session.poison(aliased)?;
    fill(session, aliased)?;
    let want = run(session, aliased, 11, 0..2, 1e-3)?;
    let end = states(session)?;
    run(session, aliased, 11, 2..3, 1e-3)?;
    let now = session.allocated_bytes();
    check(now == bytes, || format!("{bytes} bytes before the steps, {now} after"))?;

    let unaliased = load(session, &model, false)?;
    let summary = summary(session.plan(aliased));
    check(session.plan(unaliased).peak_bytes() == summary.peak_bytes_unaliased, || {
        "the summary's unaliased peak is another".into()
    })?;
    check(summary.peak_bytes < summary.peak_bytes_unaliased, || "aliasing saves nothing".into())?;
    reset(session, &model, 11)?;
    session.poison(unaliased)?;
    fill(session, unaliased)?;
    let got = run(session, unaliased, 11, 0..2, 1e-3)?;
    check(got == want, || format!("the scalars differ: {got:?} and {want:?}"))?;
    for (group, (a, b)) in Group::ALL.iter().zip(end.iter().zip(states(session)?)) {
        check(*a == b, || format!("{group:?} differs between the aliased and the unaliased plan"))?;
    }
    Ok(())
}

/// What a graph gives in f64: its outputs and its gradients.
fn results(
    g: &Graph,
    alias: bool,
    uploads: &[Vec<f64>],
    weights: &[f64],
) -> Result<Vec<Vec<f64>>, Failed> {
    let mut host = Session::from(Host::<f64>::new());
    host.allocate(&g.layout);
    let id = host.load(lower("random", g, Options { alias, ..Options::default() }))?;
    for (i, x) in uploads.iter().enumerate() {
        host.upload(id, i, Data::F64(x))?;
    }
    for group in [Group::Param, Group::Buffer] {
        host.write_state_of(group, 0, Data::F64(&weights[..g.layout.size(group)]))?;
    }
    // Twice: the second step must not see what the first left in the buffers.
    let mut all = Vec::new();
    for step in 0..2 {
        host.run(id, &uniforms(1, step, 0.0))?;
        for o in 0..g.outputs.len() {
            all.push(host.read_f64(id, o)?);
        }
        all.push(host.read_state(Group::Grad)?.into_iter().map(f64::from).collect());
        all.push(host.read_state(Group::Buffer)?.into_iter().map(f64::from).collect());
    }
    Ok(all)
}

const TENSOR: TensorType = TensorType::f32(Shape::new(2, 5, 3, 8));

/// A random DAG of elementwise ops, convolutions and batch norms on tensors of one type, its loss
/// and the gradient.
fn random_graph(seed: u64) -> Graph {
    let rng = Philox::new(seed, Stream::Test);
    let mut draws = 0;
    let mut draw = |below: usize| {
        draws += 1;
        rng.words(0, 0, draws)[0] as usize % below
    };
    let mut g = Graph::default();
    let mut values: Vec<ValueId> = (0..2).map(|i| g.input(&format!("x{i}"), TENSOR)).collect();
    let nodes = 8 + draw(25);
    for i in 0..nodes {
        g.label(format!("n{i}"));
        // Recent values more often than old ones, so that lives differ.
        let mut pick =
            |n: usize| values[if draw(3) > 0 { n - 1 - draw(n.min(4)) } else { draw(n) }];
        let n = values.len();
        let (p, q) = (pick(n), pick(n));
        let y = match draw(8) {
            0 | 1 => {
                let channels = TENSOR.shape.c;
                let w =
                    g.state(&format!("w{i}"), Shape::new(channels, 3, 3, channels), Group::Param);
                g.emit1(Conv2d::new(1, 1).into(), &[p, w])
            }
            2 => {
                let vector = Shape::vector(TENSOR.shape.c);
                let mut state = |name: &str, group| g.state(&format!("{name}{i}"), vector, group);
                let inputs = [
                    p,
                    state("gamma", Group::Param),
                    state("beta", Group::Param),
                    state("mean", Group::Buffer),
                    state("var", Group::Buffer),
                ];
                g.emit1(
                    BatchNorm {
                        eps: 1e-5,
                        momentum: 0.1,
                        add: false,
                        relu: draw(2) == 0,
                        parts: None,
                    }
                    .into(),
                    &inputs,
                )
            }
            3 => g.emit1(Relu.into(), &[p]),
            4 => g.emit1(ReluGrad.into(), &[p, q]),
            5 => g.emit1(Scale { a: 0.25 + draw(5) as f32 / 4.0 }.into(), &[p]),
            6 => g.emit1(WeightedSum { a: 0.5, b: -1.5 }.into(), &[p, q]),
            _ => g.emit1(WeightedSum { a: 1.0, b: 1.0 }.into(), &[p, q]),
        };
        values.push(y);
    }
    let first = g.nodes[0].outputs[0];
    g.label("end");
    let mut last = values[values.len() - 1];
    for i in 0..2 {
        last = g.emit1(WeightedSum { a: 1.0, b: 0.5 }.into(), &[last, values[i]]);
    }
    let cotangent = g.input("cotangent", TENSOR);
    let loss = g.emit1(Dot.into(), &[last, cotangent]);
    if draw(4) > 0 && g.layout.states.iter().any(|s| s.range.group == Group::Param) {
        autodiff::backward(&mut g, loss);
    }
    g.output("loss", loss);
    g.output("last", last);
    g.output("first", first); // lives to the end
    g
}

fn random_graphs() -> Result<(), Failed> {
    let (mut reused, mut gradients, mut fused_nodes) = (0, 0, 0);
    let rng = Philox::new(5, Stream::Test);
    let noise = |stream: u32, len: usize| -> Vec<f64> {
        (0..len).map(|i| 0.3 * rng.normals(stream, 0, i as u32)[0]).collect()
    };
    for seed in 0..50 {
        let mut g = random_graph(seed);
        let uploads: Vec<_> = (0..3).map(|i| noise(i, TENSOR.shape.len())).collect();
        // Positive, so that they serve as variances too.
        let weights: Vec<f64> =
            noise(9, g.layout.size(Group::Param).max(g.layout.size(Group::Buffer)))
                .iter()
                .map(|x| x.abs() + 0.01)
                .collect();
        let want = results(&g, false, &uploads, &weights)?;
        let got = results(&g, true, &uploads, &weights)?;
        let same = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits());
        check(want.iter().zip(&got).all(|(a, b)| same(a, b)), || {
            format!("seed {seed}: the aliased plan gives another result")
        })?;
        check(want.iter().flatten().all(|x| x.is_finite()), || {
            format!("seed {seed}: a result is not finite")
        })?;
        let plan = |g: &Graph, alias| lower("random", g, Options { alias, ..Options::default() });
        reused += plan(&g, false).buffers.len() - plan(&g, true).buffers.len();
        gradients += usize::from(want[3].iter().any(|x| *x != 0.0));
        let before = g.nodes.len();
        fuse::fuse(&mut g, &Target::default());
        fused_nodes += before - g.nodes.len();
        let fused = results(&g, true, &uploads, &weights)?;
        for (a, b) in want.iter().zip(&fused) {
            let largest = a.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
            let far = a.iter().zip(b).position(|(x, y)| !((x - y).abs() <= 1e-6 * largest));
            check(far.is_none(), || {
                format!("seed {seed}: the fused graph gives another result at {far:?}")
            })?;
        }
    }
    eprintln!(
        "50 graphs: {reused} buffers saved, {gradients} with gradients, {fused_nodes} nodes fused"
    );
    check(reused > 500 && gradients >= 20 && fused_nodes > 30, || {
        format!(
            "the graphs are too tame: {reused} buffers saved, {gradients} with gradients, \
             {fused_nodes} nodes fused"
        )
    })
}

/// Losses and gradients of a method with and without fusion, in f64.
fn fusion(method: Method) -> Result<(), Failed> {
    let config = config(method, 8, 2);
    let mut found = Vec::new();
    for fuse in [false, true] {
        let model = method::training(
            &config,
            Training { views: Views::Given, update: false, ..Training::default() },
        );
        let mut host = Session::from(Host::<f64>::new());
        host.allocate(&model.graph.layout);
        let target = Target { moments: Target::WEBGPU.moments, ..host.target() };
        let options = Options { fuse, target, ..host.options() };
        let plan = lower("train", &model.graph, options);
        check(fuse == plan.ops.iter().any(takes_moments), || "no moments are fused".into())?;
        check(fuse == plan.ops.iter().any(takes_sums), || "no sums are fused".into())?;
        let id = host.load(plan)?;
        reset(&mut host, &model, 4)?;
        fill(&mut host, id)?;
        host.run(id, &uniforms(4, 0, 0.0))?;
        let outputs = 0..model.graph.outputs.len();
        let mut values: Vec<Vec<f64>> =
            outputs.map(|o| host.read_f64(id, o)).collect::<Result<_, _>>()?;
        let grad = host.read_state(Group::Grad)?;
        for s in model.graph.layout.states.iter().filter(|s| s.range.group == Group::Param) {
            values.push(
                grad[s.range.offset..s.range.offset + s.range.len]
                    .iter()
                    .map(|x| f64::from(*x))
                    .collect(),
            );
        }
        found.push((values, host.plan(id).ops.len()));
    }
    let [(plain, many), (fused, few)] = &found[..] else { unreachable!("two runs") };
    check(few + 15 < *many, || format!("fusion leaves {few} of {many} nodes"))?;
    let most = plain.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in plain.iter().zip(fused).enumerate() {
        // Some gradients would be 0 without rounding: those of a bias in front of a batch norm.
        let largest = a.iter().fold(1e-9 * most, |m, x| m.max(x.abs()));
        // Gradients are read as f32.
        let far = a.iter().zip(b).find(|(x, y)| !((*x - *y).abs() <= 1e-6 * largest));
        check(far.is_none(), || format!("{}: tensor {i} differs: {far:?}", method.name()))?;
    }
    let moved = plain.iter().skip(3).filter(|v| v.iter().any(|x| *x != 0.0)).count();
    check(moved > 50, || format!("only {moved} parameters have a gradient"))
}

/// Whether an op is a batch norm that is given the moments of its input.
fn takes_moments(op: &PlannedOp) -> bool {
    matches!(&op.op, Op::BatchNorm(norm) if norm.parts.is_some())
}

/// Whether an op is the gradient of a batch norm that is given its sums.
fn takes_sums(op: &PlannedOp) -> bool {
    matches!(&op.op, Op::BatchNormGrad(norm) if norm.parts)
}

/// Every batch norm behind a convolution is given moments, in either precision, but where the
/// convolution takes a kernel that has none.
fn moments_ask_the_kernel() -> Result<(), Failed> {
    let graph = method::training(&config(Method::Vae, 16, 2), Training::default()).graph;
    let portable = Target::default();
    let broadcast = Target { subgroup: Some(32), ..portable };
    // How many have none: that of a linear layer, whose small tiles find none, or all.
    for (target, without) in [
        (portable, Some(1)),
        (Target { compact: true, ..portable }, Some(0)),
        (Target { half: Some(Half::F16), ..portable }, Some(1)),
        (
            Target {
                half: Some(Half::F16),
                coop: Some(16),
                workgroup_memory: 48 << 10,
                ..broadcast
            },
            Some(1),
        ),
        (broadcast, Some(1)),
        (Target { software: true, ..broadcast }, None),
        (Target { moments: None, ..portable }, None),
    ] {
        let plan = lower("train", &graph, Options::new(target));
        let norms = plan.ops.iter().filter(|op| op.op.name() == "batch_norm").count();
        let taking = plan.ops.iter().filter(|op| takes_moments(op)).count();
        check(norms > 20 && taking == norms - without.unwrap_or(norms), || {
            format!("{taking} of {norms} batch norms are given moments: {target:?}")
        })?;
        // Of gradients also that in front of a pool, and those of three downsamplings, whose dy is
        // another one's, find their own.
        let sums = plan.ops.iter().filter(|op| takes_sums(op)).count();
        check(sums == without.map_or(0, |without| norms - 4 - without), || {
            format!("the gradients of {sums} of {norms} are given sums: {target:?}")
        })?;
    }
    // Nor where a tuner has chosen such a kernel.
    let options = Options::new(broadcast);
    let plan = lower("train", &graph, options);
    for (name, takes) in
        [("conv2d", takes_moments as fn(&PlannedOp) -> bool), ("conv2d_input_grad", takes_sums)]
    {
        let conv = plan.ops.iter().find(|op| op.outputs.len() == 2 && op.op.name() == name);
        let conv = conv.ok_or_else(|| format!("no parts of {name}"))?;
        let mut choices = Choices::default();
        choices.set(key(&conv.op, &Io::from(&conv.io)), Variant::Broadcast { subgroup: 32 });
        let chosen = lower("train", &graph, Options { choices: &choices, ..options });
        let taking = |plan: &Plan| plan.ops.iter().filter(|op| takes(op)).count();
        check(taking(&chosen) < taking(&plan), || format!("a choice of {name} is not respected"))?;
    }
    Ok(())
}

/// A device that cannot fuse gets the ops one by one.
fn fusion_asks_the_device() -> Result<(), Failed> {
    let graph = method::training(&config(Method::Vae, 16, 2), Training::default()).graph;
    let count = |epilogues| {
        let target = Target { epilogues, ..Target::default() };
        let plan = lower("train", &graph, Options::new(target));
        plan.ops.iter().filter(|s| s.op.name() == "relu").count()
    };
    let (fused, apart) = (count(true), count(false));
    check(fused < apart && apart > 10, || {
        format!("{fused} ReLUs are left where they can be fused, {apart} where not")
    })
}

/// What an input holds before its first upload is zero on a host and unknown elsewhere; this says
/// that `fill` covers every input.
fn uploads_are_checked() -> Result<(), Failed> {
    let model = method::training(&config(Method::Ae, 8, 2), Training::default());
    let mut host = Session::from(Host::<f32>::new());
    host.allocate(&model.graph.layout);
    let id = load(&mut host, &model, true)?;
    QUIET.set(true);
    let short = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        host.upload(id, 0, Data::U32(&[0; 3]))
    }));
    QUIET.set(false);
    check(short.is_err(), || "accepted an upload of another size".into())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            report(info);
        }
    }));
    let mut trials = vec![
        Trial::test("plans read as reviewed", goldens),
        Trial::test("broken plans are refused", broken_plans),
        Trial::test("limits are errors with the numbers", limits),
        Trial::test("scratch fits", scratch_fits),
        Trial::test("random graphs: aliased, unaliased and fused agree", random_graphs),
        Trial::test("fusion asks the device", fusion_asks_the_device),
        Trial::test("moments ask the kernel", moments_ask_the_kernel),
        Trial::test("an upload of another size is refused", uploads_are_checked),
    ];
    for &method in Method::ALL {
        trials.push(Trial::test(
            format!("fusion changes nothing/{}/reference", method.name()),
            move || fusion(method),
        ));
        let name = format!("aliasing changes nothing/{}", method.name());
        trials.extend(support::on_devices(
            &name,
            &[Device::Reference, Device::Cpu],
            move |device| aliasing(device, method),
        ));
    }
    libtest_mimic::run(&args, trials).exit_code()
}

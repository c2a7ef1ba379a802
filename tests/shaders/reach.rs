//! Every kernel that anything reaches: all op cases and all plans of the networks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use aavae::check;
use aavae::ir::Graph;
use aavae::method::{self, Compare, Method, ModelConfig, Objective, Protocol, Training, Views};
use aavae::model::{Depth, NetConfig, Stem};
use aavae::ops::{Dispatch, Io, Kernel, Target, all_cases};
use aavae::optim::{self, Optimizer, Update};
use aavae::plan::{Options, lower};
use aavae::shader::source;
use aavae::tensor::Half;
use rayon::prelude::*;

/// The dispatches of one op, with what their bindings must satisfy.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    /// A trial or a step of a plan, for messages.
    pub(crate) from: String,
    pub(crate) dispatches: Vec<Dispatch>,
    pub(crate) outputs: usize,
    /// Outputs that hold an input's contents before.
    pub(crate) in_place: Vec<usize>,
}

fn targets() -> Vec<Target> {
    let processors = [4, 8, 16, 32].map(|lanes| Target {
        subgroup: Some(lanes),
        software: true,
        ..Target::WEBGPU
    });
    // Cooperative matrices as of llvmpipe, of NVIDIA's GPUs by Vulkan, and of those by CUDA.
    let coop = [(8, 8, 32 << 10, false), (32, 16, 48 << 10, false), (32, 16, 99 << 10, true)].map(
        |(lanes, edge, workgroup_memory, copies)| Target {
            subgroup: Some(lanes),
            coop: Some(edge),
            workgroup_memory,
            half: Some(Half::F16),
            copies,
            ..Target::WEBGPU
        },
    );
    [Target::WEBGPU].into_iter().chain(processors).chain(coop).collect()
}

/// The graphs of a run at the paper's scale.
fn graphs(depth: Depth, stem: Stem, method: Method) -> Vec<(&'static str, Graph)> {
    let (image, batch, protocol) = if stem == Stem::Cifar {
        (32, 256, Protocol::PadCrop)
    } else {
        (96, 64, Protocol::ResizedCrop)
    };
    let net = NetConfig { encoder: depth, decoder: depth, width: 64, latent: 128, stem, image };
    let objective = Objective {
        method,
        kl_coeff: method.default_kl_coeff(),
        log_scale: 0.0,
        learn_log_scale: method == Method::Vae,
        target: Compare::Original,
        temperature: 0.5,
    };
    let config = ModelConfig {
        net,
        objective,
        mean: [0.49, 0.48, 0.45],
        std: [0.25, 0.24, 0.26],
        batch,
        online_probe: Some(10),
    };
    let train = method::training(&config, Training::default()).graph;
    let layout = train.layout.clone();
    let update = |optimizer, weight_decay| {
        optim::update(&layout, Update { optimizer, weight_decay, ..Update::default() })
    };
    let mut graphs = vec![
        ("train", train),
        ("update by adam", update(Optimizer::Adam, 0.1)),
        ("update by sgd", update(Optimizer::Sgd, 0.1)),
        ("update by lars", update(Optimizer::Lars, 0.1)),
        ("update by lamb", update(Optimizer::Lamb, 0.1)),
        ("validation", method::validation(&config, &layout, Views::Drawn).graph),
        ("figures", method::figures(&config, &layout).graph),
    ];
    graphs.extend(aavae::eval::graphs(&config, protocol, 10));
    if method.reconstructs() {
        graphs.push(("views", method::views(&config, &layout, Views::Drawn).graph));
    }
    if method.samples() {
        let few = ModelConfig { batch: batch / 16, ..config };
        graphs.push(("importance", method::importance(&few, &layout, 16, Views::Drawn).graph));
    }
    graphs
}

/// Every distinct lowering that an op case or a plan of the networks reaches. Kernels with bf16 are
/// those with f16 by another name, and no WGSL (`tests/cuda.rs`).
pub(crate) fn reached() -> &'static [Reached] {
    static REACHED: OnceLock<Vec<Reached>> = OnceLock::new();
    REACHED.get_or_init(|| {
        let mut all: Vec<Reached> = Vec::new();
        for case in all_cases().into_iter().filter(|c| c.half != Some(Half::Bf16)) {
            let io = check::io(&case);
            for target in targets() {
                all.extend(case.op.variants(&io, &target).into_iter().map(|variant| Reached {
                    from: format!("trial {}/{} ({variant})", case.op.name(), case.name),
                    dispatches: case.op.lower_as(&io, &target, variant).dispatches,
                    outputs: io.outputs.len(),
                    in_place: case.op.in_place().iter().map(|p| p.1).collect(),
                }));
            }
        }
        let mut models = Vec::new();
        for depth in [Depth::Resnet18, Depth::Resnet50] {
            for stem in [Stem::Cifar, Stem::Stl] {
                models.extend(
                    [Method::Ae, Method::Vae, Method::Aaae, Method::Aavae]
                        .map(|method| (depth, stem, method)),
                );
            }
        }
        // Its encoder is theirs on twice the images.
        models.extend([
            (Depth::Resnet18, Stem::Cifar, Method::Simclr),
            (Depth::Resnet50, Stem::Stl, Method::Simclr),
        ]);
        let plans: Vec<Vec<Reached>> = models
            .into_par_iter()
            .map(|(depth, stem, method)| {
                let mut found = Vec::new();
                for (name, graph) in graphs(depth, stem, method) {
                    // Subgroups of 8 lanes (llvmpipe) and tiles see every network; the other sizes
                    // and cooperative matrices see one, and every trial.
                    let common =
                        |t: &Target| t.coop.is_none() && matches!(t.subgroup, None | Some(8));
                    let small = (depth, stem) == (Depth::Resnet18, Stem::Cifar);
                    let of = format!("{} {depth:?} {stem:?}", method.name());
                    for target in targets().into_iter().filter(|t| small || common(t)) {
                        let mut plans = vec![lower(name, &graph, Options::new(target))];
                        if name == "train" && common(&target) {
                            let half = Target { half: Some(Half::F16), ..target };
                            plans.push(lower(name, &graph, Options::new(half)));
                        }
                        if name == "train" && target == Target::WEBGPU {
                            plans.push(lower(
                                name,
                                &graph,
                                Options { fuse: false, ..Options::new(target) },
                            ));
                        }
                        // What a tuner may choose for the networks' shapes.
                        let tuned = small
                            && method == Method::Aavae
                            && name == "train"
                            && (common(&target) || target.coop.is_some());
                        for s in plans.into_iter().flat_map(|p| p.ops) {
                            let io = Io::from(&s.io);
                            let all =
                                if tuned { s.op.variants(&io, &target) } else { vec![s.variant] };
                            found.extend(all.into_iter().map(|variant| Reached {
                                from: format!("{name} of {of} ({variant}): {}", s.label),
                                outputs: s.outputs.len(),
                                in_place: s.op.in_place().iter().map(|p| p.1).collect(),
                                dispatches: s.op.lower_as(&io, &target, variant).dispatches,
                            }));
                        }
                    }
                }
                dedupe(found)
            })
            .collect();
        all.extend(plans.into_iter().flatten());
        dedupe(all)
    })
}

fn dedupe(all: Vec<Reached>) -> Vec<Reached> {
    let mut seen = BTreeSet::new();
    all.into_iter().filter(|r| seen.insert(format!("{:?}", r.dispatches))).collect()
}

/// Every distinct text among them: a kernel that has it and the trial or step that asked for it.
pub(crate) fn texts() -> &'static BTreeMap<String, (Kernel, String)> {
    static TEXTS: OnceLock<BTreeMap<String, (Kernel, String)>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let mut kernels: BTreeMap<String, (Kernel, String)> = BTreeMap::new();
        for r in reached() {
            for d in &r.dispatches {
                kernels
                    .entry(format!("{:?}", d.kernel))
                    .or_insert_with(|| (d.kernel.clone(), r.from.clone()));
            }
        }
        kernels
            .into_par_iter()
            .map(|(_, (kernel, from))| (source(&kernel), (kernel, from)))
            .collect()
    })
}

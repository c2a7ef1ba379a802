//! Values that were published elsewhere or are computed by hand, against what the crate does with
//! them. Each is independent of the code it tests, and each has failed for a mutation of that code.

#[path = "published/memory.rs"]
mod memory;
#[path = "published/pictures.rs"]
mod pictures;
#[path = "published/probe.rs"]
mod probe;
mod support;

use std::sync::Arc;

use aavae::data::shapes::Part;
use aavae::data::{Kind, Shapes, Subset};
use aavae::device::{Data, Host, PlanId, Session};
use aavae::eval::features::{Evaluator, Features};
use aavae::eval::knn::{KNN, knn, knn_left_out, knn_table};
use aavae::ir::{Graph, Group, autodiff};
use aavae::method::{self, Compare, Method, ModelConfig, Objective, Protocol, Training, Views};
use aavae::model::Stem;
use aavae::ops::{Dot, Emit, Op, Recipe, StepUniforms};
use aavae::optim::{Optimizer, Update, loss_scale};
use aavae::run::fit::Fit;
use aavae::tensor::{Shape, TensorType};
use support::{config, fill, load, reset, uniforms};

/// Draws of the training graph of a stem at a side.
fn recipe(stem: Stem, image: usize) -> Recipe {
    let mut config = config(Method::Aavae, image, 2);
    config.net.stem = stem;
    let nodes = method::training(&config, Training::default()).graph.nodes;
    let draws = |op: Op| if let Op::AugmentParams(op) = op { Some(op.recipe) } else { None };
    nodes.into_iter().find_map(|node| draws(node.op)).expect("AAVAE augments")
}

/// SimCLR's transforms: colour strength .5 and no blur on CIFAR-10; strength 1 and, with
/// probability .5, a blur of a tenth of the height elsewhere (Chen et al., 2020, appendix A and
/// B.9).
#[test]
fn each_stem_has_its_augmentation() {
    let cifar = recipe(Stem::Cifar, 32);
    assert_eq!((cifar.strength, cifar.blur_p), (0.5, 0.0));
    for (side, kernel) in [(96, 9), (64, 7), (224, 23)] {
        let stl = recipe(Stem::Stl, side);
        assert_eq!((stl.strength, stl.blur_p, stl.blur_kernel), (1.0, 0.5, kernel), "{side}");
        assert_eq!(stl.sigma, (0.1, 2.0));
    }
    for recipe in [cifar, recipe(Stem::Stl, 96)] {
        assert_eq!((recipe.jitter_p, recipe.grey_p, recipe.flip_p), (0.8, 0.2, 0.5));
        assert_eq!((recipe.scale, recipe.ratio), ((0.08, 1.0), (0.75, 4.0 / 3.0)));
    }
}

/// Means and standard deviations of the libraries that the paper's code normalises with
/// (lightning-bolts 0.2: `cifar10_normalization`, `stl10_normalization`; ImageNet's of
/// torchvision).
#[test]
fn pixels_are_normalised_as_published() {
    let bytes = |values: [f64; 3]| values.map(|x| (x / 255.0) as f32);
    let close = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    let (mean, std) = Kind::Cifar10.mean_std(32);
    assert!(close(mean, bytes([125.3, 123.0, 113.9])), "{mean:?}");
    assert!(close(std, bytes([63.0, 62.1, 66.7])), "{std:?}");
    assert_eq!(Kind::Stl10.mean_std(96), ([0.43, 0.42, 0.39], [0.27, 0.26, 0.27]));
    assert_eq!(Kind::Folder.mean_std(96), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));
    assert_eq!(Kind::Folder.mean_std(32), Kind::Cifar10.mean_std(32));
}

/// One step of a method, without an update, and its scalars by name.
fn step(config: &ModelConfig, views: Views) -> (Session, PlanId, Vec<(String, f32)>) {
    let options = Training { views, update: false, ..Training::default() };
    let model = method::training(config, options);
    let mut session = Session::from(Host::<f32>::new());
    session.allocate(&model.graph.layout);
    let id = load(&mut session, &model, true).expect("a plan");
    reset(&mut session, &model, 1).expect("weights");
    fill(&mut session, id).expect("images");
    session.run(id, &uniforms(1, 0, 0.0)).expect("a step");
    let rows = session.drain(id).expect("scalars");
    let names = session.plan(id).ring.scalars.clone();
    (session, id, names.into_iter().zip(rows[0].1.clone()).collect())
}

fn scalar(scalars: &[(String, f32)], name: &str) -> f64 {
    let found = scalars.iter().find(|(n, _)| n == name);
    f64::from(found.unwrap_or_else(|| panic!("no {name} in {scalars:?}")).1)
}

/// The AAAE's loss is the mean square over the three channels between its reconstruction and the
/// image or, as in the authors' code, its view.
#[test]
fn the_reconstruction_is_compared_with_what_was_asked() {
    let losses = [Compare::Original, Compare::View].map(|target| {
        let mut config = config(Method::Aaae, 16, 4);
        config.objective.target = target;
        let (mut session, id, scalars) = step(&config, Views::Given);
        let port = |name: &str| {
            let outputs = &session.plan(id).outputs;
            outputs.iter().position(|p| p.name == name).unwrap_or_else(|| panic!("no {name}"))
        };
        let output = port("reconstruction");
        let reconstruction = session.read(id, output).expect("a reconstruction");
        // `fill` makes the view the mirror image of the original.
        let (original, side) = (originals(4, 16), 16);
        let mut sum = 0.0;
        for (i, pixel) in reconstruction.chunks(4).enumerate() {
            let (x, row) = (i % side, i / side);
            let column = if target == Compare::View { side - 1 - x } else { x };
            let with = &original[(row * side + column) * 4..][..3];
            sum += pixel.iter().zip(with).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        }
        let expected = sum / (reconstruction.len() / 4 * 3) as f64;
        let loss = scalar(&scalars, "loss");
        assert!((loss / expected - 1.0).abs() < 1e-5, "{target:?}: {loss}, by hand {expected}");
        // Where the view is drawn, it is another target than the image too.
        scalar(&step(&config, Views::Drawn).2, "loss")
    });
    assert!((losses[0] / losses[1] - 1.0).abs() > 1e-3, "the two targets are alike: {losses:?}");
}

/// What `fill` uploads as `original`.
fn originals(images: usize, side: usize) -> Vec<f32> {
    let mut g = Graph::default();
    let x = g.input("original", TensorType::f32(Shape::new(images, side, side, 4)));
    let total = g.emit1(aavae::ops::Scale { a: 1.0 }.into(), &[x]);
    g.output("copy", total);
    let mut session = Session::from(Host::<f32>::new());
    session.allocate(&g.layout);
    let id = session.load(session.lower("copy", &g)).expect("a plan");
    fill(&mut session, id).expect("images");
    session.run(id, &StepUniforms::default()).expect("a step");
    session.read(id, 0).expect("the images")
}

/// `loss = beta KL - log p`, whatever beta: 1 is the VAE (Kingma and Welling, 2014), others the
/// beta-VAE (Higgins et al., 2017), 0 AAVAE.
#[test]
fn beta_weighs_the_kl_term() {
    for method in [Method::Vae, Method::Aavae] {
        for beta in [0.0, 0.25, 1.0, 4.0] {
            let mut config = config(method, 16, 4);
            config.objective.kl_coeff = beta;
            let (_, _, scalars) = step(&config, Views::Given);
            let [loss, kl, log_pxz] = ["loss", "kl", "log_pxz"].map(|n| scalar(&scalars, n));
            let expected = f64::from(beta) * kl - log_pxz;
            assert!(kl > 0.01 && (loss / expected - 1.0).abs() < 1e-6, "{method:?}: {scalars:?}");
        }
    }
    assert_eq!(Method::Vae.default_kl_coeff(), 1.0);
    assert_eq!(Method::Aavae.default_kl_coeff(), 0.0);
}

/// PyTorch's initial values: scale 1 and shift 0 of BatchNorm, running mean 0 and variance 1.
#[test]
fn batch_norm_begins_as_the_identity() {
    let model = method::training(&config(Method::Vae, 16, 4), Training::default());
    let mut session = Session::from(Host::<f32>::new());
    session.allocate(&model.graph.layout);
    reset(&mut session, &model, 1).expect("weights");
    let states = &model.graph.layout.states;
    let norms: Vec<&str> =
        states.iter().filter_map(|s| s.name.strip_suffix(".running_mean")).collect();
    // Of the stem, two of each of eight blocks, three shortcuts, and the projection.
    assert_eq!(norms.len(), 1 + 16 + 3 + 1, "{norms:?}");
    for norm in norms {
        for (of, expected) in
            [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)]
        {
            let name = format!("{norm}.{of}");
            let range = model.graph.layout.get(&name).expect("a part of BatchNorm").range;
            let all = session.read_state(range.group).expect("weights");
            let values = &all[range.offset..][..range.len];
            assert!(values.iter().all(|x| *x == expected), "{name} begins with {:?}", &values[..4]);
        }
    }
}

/// Weights (3, 4) after one step with this gradient at rate `rate`, by an optimiser with decay .1.
fn updated(optimizer: Optimizer, gradient: [f32; 2], rate: f32) -> [f32; 2] {
    let mut g = Graph::default();
    // Of two dimensions: a vector would have no decay.
    let shape = Shape::rows(2, 4);
    let p = g.state("w", shape, Group::Param);
    let x = g.input("x", TensorType::f32(shape));
    let loss = g.emit1(Dot.into(), &[p, x]);
    g.output("loss", loss);
    autodiff::backward(&mut g, loss);
    let rule = Update { optimizer, weight_decay: 0.1, ..Update::default() };
    rule.emit(&mut g, Group::Grad, loss);
    let offset = g.layout.get("w").expect("w").range.offset;
    let mut session = Session::from(Host::<f32>::new());
    session.allocate(&g.layout);
    let id = session.load(session.lower("step", &g)).expect("a plan");
    let spread = |pair: [f32; 2]| vec![pair[0], 0.0, 0.0, 0.0, pair[1], 0.0, 0.0, 0.0];
    session.write_state(Group::Param, offset, &spread([3.0, 4.0])).expect("weights");
    session.upload(id, 0, Data::F32(&spread(gradient))).expect("a gradient");
    session.run(id, &uniforms(1, 0, rate)).expect("a step");
    session.drain(id).expect("scalars");
    let w = session.read_state(Group::Param).expect("weights");
    [w[offset], w[offset + 4]]
}

fn assert_close(a: [f32; 2], b: [f64; 2]) {
    let near = a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6);
    assert!(near, "{a:?}, published {b:?}");
}

/// LARS (You, Gitman and Ginsburg, 2017, arXiv 1708.03888, equation 6 and algorithm 1), trust .001:
/// the decay counts in the local rate, by its norm beside the gradient's, and in the step.
///
/// `|w| = 5`, `|g| = 2`: local rate `.001 * 5 / (2 + .1 * 5) = .002`; step
/// `2 * .002 * (g + .1 w) = .004 * (.3, 2.4) = (.0012, .0096)`.
#[test]
fn lars_is_the_published_one() {
    assert_close(updated(Optimizer::Lars, [0.0, 2.0], 2.0), [3.0 - 0.0012, 4.0 - 0.0096]);
}

/// LAMB (You et al., 2020, arXiv 1904.00962, algorithm 2, phi the identity): the decay is added to
/// Adam's direction, before the norm that scales the step.
///
/// In the first step Adam's direction is the sign of the gradient, (-1, 1);
/// `u = (-1, 1) + .1 (3, 4) = (-.7, 1.4)`, `|u| = .7 sqrt 5`, ratio `5 / |u|`; step
/// `.01 * 5 / (.7 sqrt 5) * u = .05 / sqrt 5 * (-1, 2)`.
#[test]
fn lamb_is_the_published_one() {
    let unit = 0.05 / 5f64.sqrt();
    assert_close(updated(Optimizer::Lamb, [-1.0, 2.0], 0.01), [3.0 + unit, 4.0 - 2.0 * unit]);
}

/// Adam and SGD with PyTorch's L2 decay, first step: Adam moves by the rate in the direction of the
/// decayed gradient's sign, SGD by the rate times that gradient.
#[test]
fn decay_of_adam_and_sgd_is_pytorchs() {
    // .1 * 3 > .2 turns the sign of the first gradient.
    assert_close(updated(Optimizer::Adam, [-0.2, 2.0], 0.01), [2.99, 3.99]);
    assert_close(updated(Optimizer::Sgd, [-0.2, 2.0], 0.01), [3.0 - 0.001, 4.0 - 0.024]);
}

/// kNN (Wu et al., 2018, arXiv 1805.01978, section 3.4: k 200 at temperature .07) of two classes in
/// two directions, all votes of a row's own class: three of four test images are labelled right.
#[test]
fn the_table_of_knn_has_what_the_images_suffice_for() {
    let rows = |n: usize, wrong: usize| {
        let side = |i: usize| if i.is_multiple_of(2) { [1.0, 0.1] } else { [0.1, 1.0] };
        let label = |i: usize| (i % 2) as u32 ^ u32::from(i < wrong);
        let data = (0..n).flat_map(side).collect();
        Features { dim: 2, data, labels: (0..n).map(label).collect() }
    };
    let ks = |train: usize| -> Vec<usize> {
        let table = knn_table(&rows(train, 0), &rows(4, 1), 2).expect("a table");
        assert!(table.iter().all(|row| row.2 == 0.75), "{table:?}");
        let pairs: Vec<_> = table.iter().map(|row| (row.0, row.1)).collect();
        assert!(pairs.iter().all(|pair| KNN.contains(pair)), "{pairs:?}");
        table.iter().map(|row| row.0).collect()
    };
    let all: Vec<usize> = KNN.iter().map(|row| row.0).collect();
    assert!(all.contains(&20) && all.contains(&200), "{all:?}");
    assert_eq!(ks(400), all);
    // Of 60 images 20 neighbours are all of a row's class; 200 there are not.
    assert_eq!(ks(60), all.iter().copied().filter(|k| *k == 20).collect::<Vec<_>>());
    let left_out = knn_left_out(60).expect("200 are too many");
    assert_eq!(left_out, "no kNN with k = 200: there are 60 training images");
    assert_eq!(knn_left_out(200), None);
}

/// A vote weighs `exp(s / T)`, beyond any number for a small T: here `exp(1000)` for the nearest
/// row, and `exp(999)` for each of the two of the other class, which are `2 / e < 1` of it
/// together.
#[test]
fn votes_of_knn_do_not_overflow() {
    let near = [0.999, (1.0_f32 - 0.999 * 0.999).sqrt()];
    let data = [near, near, [1.0, 0.0]].concat();
    let train = Features { dim: 2, data, labels: vec![0, 0, 1] };
    let test = Features { dim: 2, data: vec![1.0, 0.0], labels: vec![1] };
    assert_eq!(knn(&train, &test, &[(3, 0.001)], 2).expect("an accuracy"), [1.0]);
    // At a temperature of 1 the two outvote the one.
    assert_eq!(knn(&train, &test, &[(3, 1.0)], 2).expect("an accuracy"), [0.0]);
}

/// View `v` of step `s` is the first one of step `s + v`: views of an image are different draws.
#[test]
fn every_view_that_is_embedded_has_draws_of_its_own() {
    let subset = Subset::full(Arc::new(Shapes::new(1, Part::Train, 4)));
    let session = Session::from(Host::<f32>::new());
    let model = config(Method::Aavae, 32, 4);
    let made = Evaluator::new(session, model, Protocol::PadCrop, 3, None, 1);
    let mut evaluator = made.expect("a model");
    let mut embed = |views: usize, step: u32| {
        evaluator.embed_views(&subset, 2, views, &StepUniforms::seeded(7, step)).expect("views")
    };
    let (three, last) = (embed(3, 10), embed(1, 12));
    for image in 0..2 {
        let views = &three.views[image];
        assert_eq!((views.len(), last.views[image].len()), (3, 1));
        assert!(views[0] != views[1] && views[1] != views[2] && views[0] != views[2]);
        assert_eq!(views[2], last.views[image][0]);
        for ((name, vectors), (_, later)) in three.vectors.iter().zip(&last.vectors) {
            assert_eq!(vectors[image].len(), 3, "{name}");
            assert_eq!(vectors[image][2], later[image][0], "{name}");
            assert_ne!(vectors[image][0], vectors[image][1], "{name}");
        }
    }
}

/// What is said of a loss is its equation with the numbers of this run.
#[test]
fn a_loss_is_said_with_its_numbers() {
    let said = |method: Method, kl_coeff: f32| {
        let objective = config(method, 16, 4).objective;
        Objective { kl_coeff, temperature: 0.25, ..objective }.loss()
    };
    assert_eq!(said(Method::Vae, 0.5), "`0.5 KL - log p(x|z)`");
    assert_eq!(said(Method::Simclr, 0.0), "NT-Xent at temperature 0.25 between two views");
    for method in Method::ALL {
        assert!(!said(*method, 0.0).is_empty(), "{method:?}");
    }
}

/// PyTorch's `GradScaler` begins at 2^16 and moves by factors of two.
#[test]
fn a_scale_that_no_training_makes_is_told() {
    assert_eq!(loss_scale::begin(), [65_536.0, 0.0, 0.0]);
    let scale = |x: f32| loss_scale::fault(&[x, 3.0, 1.0]);
    for good in [1.0, 2.0, 65_536.0, 16_777_216.0] {
        assert_eq!(scale(good), None, "{good}");
    }
    for bad in [0.5, 0.0, -2.0, 3.0, 65_537.0, 33_554_432.0, f32::NAN, f32::INFINITY] {
        assert!(scale(bad).is_some_and(|why| why.contains("power of two")), "{bad}");
    }
    for bad in [-1.0, 0.5, f32::NAN] {
        let counted = |state: [f32; 3]| loss_scale::fault(&state);
        assert!(counted([2.0, bad, 0.0]).is_some_and(|why| why.contains("counted")), "{bad}");
        assert!(counted([2.0, 0.0, bad]).is_some(), "{bad}");
    }
}

/// The hint of what does not fit names the largest number that does.
#[test]
fn the_largest_that_fits_is_named() {
    let hint = |asked: usize, least: usize, room: usize| {
        let fit = Fit { option: "--batch-size", asked, least };
        let found = fit.largest(|n| if n <= room { Ok(n) } else { Err(format!("{n} is much")) });
        found.map_err(|error| {
            assert_eq!(error.to_string(), format!("{asked} is much"));
            error.hint().expect("a hint")
        })
    };
    for room in 1..40 {
        assert_eq!(hint(room, 1, room), Ok(room));
        let said = hint(40, 1, room).expect_err("too much");
        assert!(said.starts_with(&format!("`--batch-size {room}` fits")), "{room}: {said}");
    }
    for asked in [2, 40] {
        assert!(hint(asked, 2, 1).is_err_and(|hint| hint.starts_with("no batch fits")));
    }
}

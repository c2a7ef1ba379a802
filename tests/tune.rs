//! The tuner: a variant that is wrong at one shape is refused there and nowhere else, the fastest
//! right one is taken, and what a file remembers is never trusted blindly. On a device whose
//! results and times are a test's (`support/faulty.rs`), and with the real kernels on every
//! adapter.

mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use aavae::device::{DeviceError, Session};
use aavae::ir::Graph;
use aavae::nn::Builder;
use aavae::ops::{Conv2d, Emit, Io, Op, Target, Tile, Variant, key};
use aavae::plan::{Options, lower};
use aavae::tensor::{Half, Shape, TensorType};
use aavae::tune::{Effort, Memory, Product, products, trust, tune, tune_products};
use libtest_mimic::{Arguments, Failed, Trial};
use support::faulty::{Faulty, Temper};
use support::{Device, check, on_devices};

const ALL: Effort<'_> = Effort::within(Duration::from_secs(600));

/// A 1x1 convolution of 2x3 pixels.
fn product(from: usize, to: usize) -> Product {
    let io = Io {
        inputs: vec![
            TensorType::f32(Shape::new(2, 2, 3, from)),
            TensorType::f32(Shape::new(to, 1, 1, from)),
        ],
        outputs: vec![TensorType::f32(Shape::new(2, 2, 3, to))],
    };
    let op: Op = Conv2d::new(1, 0).into();
    Product { key: key(&op, &io), op, flops: 1, io }
}

/// The shapes at which another project's tuner picked a wrong 1x1 kernel, and two at which it did
/// not.
fn shapes() -> Vec<Product> {
    [(104, 208), (208, 104), (440, 440), (64, 64)].map(|(from, to)| product(from, to)).into()
}

fn tuned(
    temper: &Temper,
    memory: &mut Memory,
    effort: Effort<'_>,
) -> Result<(Session, aavae::tune::Tuning), Failed> {
    let mut session = Session::from(Faulty::with_variants(temper.clone()));
    let report = tune_products(&mut session, &shapes(), memory, effort)?;
    Ok((session, report))
}

fn chosen(session: &Session) -> BTreeMap<String, Variant> {
    session.choices().iter().map(|(k, v)| (k.clone(), *v)).collect()
}

const BROADCAST: Variant = Variant::Broadcast { subgroup: 8 };

/// The broadcast is the fastest everywhere and wrong at two of the shapes.
fn wrong_at_one_shape() -> Result<(), Failed> {
    let temper = Temper::default();
    temper.costs.borrow_mut().insert(BROADCAST, 0.5);
    let (honest, report) = tuned(&temper, &mut Memory::nowhere(), ALL)?;
    check(chosen(&honest).values().all(|v| *v == BROADCAST), || format!("{:?}", chosen(&honest)))?;
    check(report.trials.iter().all(|t| t.refused.is_none()), || format!("{report:?}"))?;

    let wrong = [product(104, 208).key, product(440, 440).key];
    temper.crooked.borrow_mut().extend(wrong.iter().map(|key| (BROADCAST, key.clone())));
    let (session, report) = tuned(&temper, &mut Memory::nowhere(), ALL)?;
    for (key, variant) in chosen(&session) {
        check((variant != BROADCAST) == wrong.contains(&key), || {
            format!("{variant} was taken for {key}")
        })?;
    }
    let refused: Vec<_> =
        report.trials.iter().filter(|t| t.refused.is_some()).map(|t| &t.key).collect();
    check(refused.len() == 2 && refused.iter().all(|k| wrong.contains(k)), || {
        format!("refused {refused:?}")
    })?;
    // The plan that is lowered with the choices says them.
    let mut g = Graph::default();
    let shape = &shapes()[0].io;
    let inputs = [g.input("x", shape.inputs[0]), g.input("w", shape.inputs[1])];
    let y = g.emit1(Conv2d::new(1, 0).into(), &inputs);
    g.output("y", y);
    let plan = session.lower("tuned", &g);
    check(plan.ops[0].variant != BROADCAST && plan.to_string().contains("tile "), || {
        plan.to_string()
    })
}

/// Each tile in turn is made the fastest, and then the portable kernel.
fn the_fastest_is_taken() -> Result<(), Failed> {
    let one = product(64, 64);
    let target = Target { subgroup: Some(8), ..Target::WEBGPU };
    let offered = one.op.variants(&one.io, &target);
    check(offered.len() >= 6, || format!("only {} variants", offered.len()))?;
    for variant in offered {
        let temper = Temper::default();
        temper.costs.borrow_mut().insert(variant, 0.5);
        let mut session = Session::from(Faulty::with_variants(temper));
        tune_products(&mut session, std::slice::from_ref(&one), &mut Memory::nowhere(), ALL)?;
        let found = chosen(&session)[&one.key];
        check(found == variant, || format!("{variant} is the fastest, {found} was taken"))?;
    }
    Ok(())
}

/// Beside the default only what is asked for is tried, however fast the rest is.
fn only_candidates_that_are_named_are_tried() -> Result<(), Failed> {
    let temper = Temper::default();
    temper.costs.borrow_mut().insert(BROADCAST, 0.5);
    let effort = Effort { candidates: "tile 64x64", ..ALL };
    let (session, report) = tuned(&temper, &mut Memory::nowhere(), effort)?;
    let portable = |key: &str| {
        let product = shapes().into_iter().find(|p| p.key == key);
        product.map(|p| p.op.variants(&p.io, &session.target())[0])
    };
    let named = |v: Variant| v.to_string().contains("tile 64x64");
    let asked =
        report.trials.iter().all(|t| named(t.variant) || portable(&t.key) == Some(t.variant));
    check(asked && report.trials.len() > 8, || format!("{:?}", report.trials))?;
    check(!chosen(&session).values().any(|v| *v == BROADCAST), || format!("{:?}", chosen(&session)))
}

/// A file is used, compared once more, and ignored where it is of another device, of other kernels
/// or edited.
fn memory_is_not_trusted() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("variants.json");
    let temper = Temper::default();
    temper.costs.borrow_mut().insert(BROADCAST, 0.5);
    let (first, report) = tuned(&temper, &mut Memory::open(&path), ALL)?;
    check(report.remembered == 0 && report.chosen == 4, || format!("{report:?}"))?;
    let text = std::fs::read_to_string(&path)?;

    let none = Effort::within(Duration::ZERO);
    let (again, report) = tuned(&temper, &mut Memory::open(&path), none)?;
    check(report.remembered == 4 && chosen(&again) == chosen(&first), || format!("{report:?}"))?;

    // What was right is wrong now: a driver was updated in place.
    temper.crooked.borrow_mut().push((BROADCAST, product(64, 64).key));
    let (session, report) = tuned(&temper, &mut Memory::open(&path), ALL)?;
    check(report.remembered == 3 && chosen(&session)[&product(64, 64).key] != BROADCAST, || {
        format!("{report:?}")
    })?;
    temper.crooked.borrow_mut().clear();

    let edits = [
        ("another device", text.replace("faulty", "another")),
        ("other kernels", text.replacen("\"kernels\": ", "\"kernels\": 1", 1)),
        ("a subgroup of 0", text.replace("\"subgroup\": 8", "\"subgroup\": 0")),
        ("a subgroup of 64", text.replace("\"subgroup\": 8", "\"subgroup\": 64")),
        ("an unknown variant", text.replace("broadcast", "telepathy")),
        ("no JSON", text[..text.len() / 2].into()),
        ("nothing", String::new()),
    ];
    for (what, edited) in edits {
        check(edited != text, || format!("{what}: the edit changes nothing"))?;
        std::fs::write(&path, edited)?;
        let (session, report) = tuned(&temper, &mut Memory::open(&path), ALL)?;
        check(report.remembered == 0, || format!("{what}: {report:?}"))?;
        check(chosen(&session) == chosen(&first), || format!("{what}: {:?}", chosen(&session)))?;
    }
    Ok(())
}

/// Without time the table of defaults holds, and says so; a little time is not spent on half the
/// truth.
fn budget_holds() -> Result<(), Failed> {
    let none = Effort::within(Duration::ZERO);
    let (session, report) = tuned(&Temper::default(), &mut Memory::nowhere(), none)?;
    check(session.choices().is_empty() && report.left == 4 && report.trials.is_empty(), || {
        format!("{report:?}")
    })?;
    check(report.to_string().contains("4 left to the defaults"), || report.to_string())
}

/// A default that is not the portable kernel is compared before it is used: one that is wrong gives
/// way to the portable kernel, with and without time for measurements.
fn defaults_are_compared() -> Result<(), Failed> {
    let wrong = product(440, 440);
    let portable = |p: &Product| p.op.variants(&p.io, &Target::WEBGPU)[0];
    let tuned = |budget| -> Result<_, Failed> {
        let temper = Temper::default();
        temper.costs.borrow_mut().insert(BROADCAST, 0.5);
        temper.crooked.borrow_mut().push((BROADCAST, wrong.key.clone()));
        let mut session = Session::from(Faulty::with_variants(temper.clone()));
        // Where broadcasts are the default.
        session.set_target(Target { software: true, ..session.target() });
        let effort = Effort::within(budget);
        let report = tune_products(&mut session, &shapes(), &mut Memory::nowhere(), effort)?;
        Ok((chosen(&session), report))
    };
    let (choices, report) = tuned(ALL.budget)?;
    for product in shapes() {
        let found = choices[&product.key];
        check((found == BROADCAST) == (product.key != wrong.key), || {
            format!("{found} was taken for {}", product.key)
        })?;
    }
    let refused = report.trials.iter().filter(|t| t.refused.is_some()).count();
    check(refused == 1, || format!("{report:?}"))?;

    // Without time for anything else too: nothing is measured then.
    let (without_time, report) = tuned(Duration::ZERO)?;
    check(without_time == BTreeMap::from([(wrong.key.clone(), portable(&wrong))]), || {
        format!("{without_time:?}")
    })?;
    check(report.chosen == 0 && report.left == 4, || format!("{report:?}"))
}

/// A kernel of a resumed run that is wrong now gives way to the portable one, not to a default that
/// nobody has compared.
fn a_refused_choice_is_portable() -> Result<(), Failed> {
    let one = product(64, 64);
    let temper = Temper::default();
    temper.crooked.borrow_mut().push((BROADCAST, one.key.clone()));
    let mut session = Session::from(Faulty::with_variants(temper));
    session.set_target(Target { software: true, ..session.target() });
    let mut choices = aavae::ops::Choices::default();
    choices.set(one.key.clone(), BROADCAST);
    let refused = trust(&mut session, &[&graph(false)], choices)?;
    check(refused == [one.key.as_str()], || format!("refused {refused:?}"))?;
    let portable = one.op.variants(&one.io, &Target::WEBGPU)[0];
    check(chosen(&session)[&one.key] == portable, || format!("{:?}", chosen(&session)))
}

/// Convolutions of one shape, `product(64, 64)`: one by itself, one whose result goes to a ReLU or,
/// if `norm`, to a batch norm.
fn graph(norm: bool) -> Graph {
    let one = product(64, 64);
    let mut b = Builder::new(Graph::default(), true);
    let inputs = [b.graph.input("x", one.io.inputs[0]), b.graph.input("w", one.io.inputs[1])];
    let y = b.graph.emit1(one.op.clone(), &inputs);
    b.graph.output("y", y);
    let y = b.graph.emit1(one.op.clone(), &inputs);
    let y = if norm { b.batch_norm("norm", y, None, false) } else { b.relu("relu", y) };
    b.graph.output("other", y);
    b.graph
}

/// A variant that is right where it is measured and wrong with another epilogue, or with moments
/// that only a choice brings, is not taken, not remembered, and not taken from a checkpoint.
fn every_form_is_compared() -> Result<(), Failed> {
    let key = product(64, 64).key;
    let tile = product(64, 64).op.variants(&product(64, 64).io, &Target::WEBGPU)[2];
    for (norm, best, wrong) in [(false, BROADCAST, "relu: true"), (true, tile, "moments: Some")] {
        let graph = graph(norm);
        let temper = Temper::default();
        temper.costs.borrow_mut().insert(best, 0.5);
        let mut session = Session::from(Faulty::with_variants(temper.clone()));
        // Broadcasts are the default there, and have no moments.
        let target =
            Target { software: true, epilogues: true, moments: Some(64), ..session.target() };
        session.set_target(target);
        let mut memory = Memory::nowhere();
        tune(&mut session, &[&graph], &mut memory, ALL)?;
        check(chosen(&session)[&key] == best, || format!("{:?}", chosen(&session)))?;
        let choices = session.choices().clone();
        check(trust(&mut session, &[&graph], choices.clone())?.is_empty(), || "refused".into())?;

        temper.crooked.borrow_mut().push((best, wrong.into()));
        let portable = product(64, 64).op.variants(&product(64, 64).io, &Target::WEBGPU)[0];
        let refused = trust(&mut session, &[&graph], choices)?;
        check(refused == [key.as_str()], || format!("{wrong}: refused {refused:?}"))?;
        check(chosen(&session)[&key] == portable, || format!("{wrong}: {:?}", chosen(&session)))?;
        for remembered in [1, 0] {
            session.reset();
            session.set_choices(aavae::ops::Choices::default());
            let report = tune(&mut session, &[&graph], &mut memory, ALL)?;
            let refused = report.trials.iter().filter(|t| t.refused.is_some()).count();
            check((report.remembered, refused) == (remembered, 1), || format!("{report:?}"))?;
            check(chosen(&session)[&key] == portable, || format!("{:?}", chosen(&session)))?;
        }
    }
    Ok(())
}

/// What is tried is compiled together, a few products at a time, and nothing else is.
fn candidates_are_compiled_together() -> Result<(), Failed> {
    let temper = Temper::default();
    let (_, report) = tuned(&temper, &mut Memory::nowhere(), ALL)?;
    let rounds = temper.prepared.take();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    check(rounds.len() <= report.trials.len().div_ceil(4 * cores), || format!("{rounds:?}"))?;
    let mut compiled = rounds.concat();
    let mut tried: Vec<_> = report.trials.iter().map(|t| t.variant).collect();
    compiled.sort();
    tried.sort();
    check(compiled == tried, || format!("{compiled:?} compiled, {tried:?} tried"))?;

    let none = Effort::within(Duration::ZERO);
    tuned(&temper, &mut Memory::nowhere(), none)?;
    check(temper.prepared.take().concat().is_empty(), || "compiled without time".into())?;

    // Of what is remembered, that alone.
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("variants.json");
    temper.costs.borrow_mut().insert(BROADCAST, 0.5);
    tuned(&temper, &mut Memory::open(&path), ALL)?;
    temper.prepared.take();
    tuned(&temper, &mut Memory::open(&path), none)?;
    let again = temper.prepared.take().concat();
    check(again == [BROADCAST; 4], || format!("{again:?}"))
}

/// A kernel that the driver refuses among others is refused when it is tried; a lost device ends
/// the tuning.
fn compiling_may_fail() -> Result<(), Failed> {
    let temper = Temper::default();
    let (device, message) = ("faulty".to_owned(), "a kernel".to_owned());
    let refused = DeviceError::Driver { device: device.clone(), message: message.clone() };
    temper.unprepared.replace(Some(refused));
    let (_, report) = tuned(&temper, &mut Memory::nowhere(), ALL)?;
    check(report.chosen == 4 && report.left == 0, || format!("{report:?}"))?;
    temper.unprepared.replace(Some(DeviceError::Lost { device, message }));
    let lost = tuned(&temper, &mut Memory::nowhere(), ALL);
    check(lost.is_err(), || "a lost device was tuned".into())
}

/// A candidate is refused for what it does: where a driver does not take what it is compared with,
/// which says nothing of it, tuning ends with that.
fn what_is_compared_with_must_work() -> Result<(), Failed> {
    let offered = |p: Product| p.op.variants(&p.io, &Target::WEBGPU);
    let trusted = offered(product(64, 64)).into_iter().find(Variant::is_compact);
    let trusted = trusted.ok_or("no compact kernel")?;
    for (refused, all) in [(BROADCAST, false), (trusted, true)] {
        let temper = Temper::default();
        temper.unloadable.set(Some(("pair", refused)));
        match tuned(&temper, &mut Memory::nowhere(), ALL) {
            Err(error) => {
                check(all && error.message().is_some_and(|m| m.contains("as the test")), || {
                    format!("{error:?}")
                })?
            }
            Ok((session, report)) => {
                let count = report.trials.iter().filter(|t| t.refused.is_some()).count();
                check(!all && count == 4, || format!("{report:?}"))?;
                check(!chosen(&session).values().any(|v| *v == refused), || format!("{report:?}"))?;
            }
        }
    }
    Ok(())
}

/// An edited choice cannot reach a lowering: a variant that is not offered is no choice.
fn foreign_choices_are_ignored() -> Result<(), Failed> {
    let one = product(64, 64);
    let zero = Tile { m: 0, n: 0, k: 0, rows: 1, cols: 1, groups: 0, compact: false };
    for foreign in [
        Variant::Broadcast { subgroup: 0 },
        Variant::Broadcast { subgroup: 32 },
        Variant::Tile(zero),
        Variant::Only,
    ] {
        let mut choices = aavae::ops::Choices::default();
        choices.set(one.key.clone(), foreign);
        let mut g = Graph::default();
        let inputs = [g.input("x", one.io.inputs[0]), g.input("w", one.io.inputs[1])];
        let y = g.emit1(one.op.clone(), &inputs);
        g.output("y", y);
        let plan = lower("foreign", &g, Options { choices: &choices, ..Options::default() });
        let portable = one.op.variants(&one.io, &Target::WEBGPU)[0];
        check(plan.ops[0].variant == portable, || format!("{foreign} was taken"))?;
    }
    Ok(())
}

/// Every variant of the real kernels at a small network's shapes is right, and the choice is one of
/// them.
fn real_kernels(device: &Device, half: Option<Half>) -> Result<(), Failed> {
    let mut session = device.open()?;
    session.set_target(Target { half, ..session.target() });
    let model = support::config(aavae::method::Method::Vae, 8, 2);
    let graph = aavae::method::training(&model, aavae::method::Training::default()).graph;
    let plan = session.lower("train", &graph);
    let mut found = products([&plan]);
    if matches!(device, Device::Cpu) {
        let report = tune_products(&mut session, &found, &mut Memory::nowhere(), ALL)?;
        return check(report.trials.is_empty() && session.choices().is_empty(), || {
            format!("the processor runs no kernels: {report:?}")
        });
    }
    check(found.len() > 20, || format!("only {} products", found.len()))?;
    // One of each pass.
    let mut seen = Vec::new();
    found.retain(|p| {
        !seen.contains(&p.op.name()) && {
            seen.push(p.op.name());
            true
        }
    });
    let report = tune_products(&mut session, &found, &mut Memory::nowhere(), ALL)?;
    let refused: Vec<_> = report.trials.iter().filter(|t| t.refused.is_some()).collect();
    check(refused.is_empty(), || format!("{refused:?}"))?;
    check(report.trials.len() >= 6 && report.chosen == found.len(), || format!("{report:?}"))
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = vec![
        Trial::test("a variant that is wrong at one shape is refused there", wrong_at_one_shape),
        Trial::test("only named candidates are tried", only_candidates_that_are_named_are_tried),
        Trial::test("the fastest variant is taken", the_fastest_is_taken),
        Trial::test("what is remembered is compared again", memory_is_not_trusted),
        Trial::test("no time, no choice", budget_holds),
        Trial::test("defaults are compared before they are used", defaults_are_compared),
        Trial::test("a refused choice is portable", a_refused_choice_is_portable),
        Trial::test("every form of a product is compared", every_form_is_compared),
        Trial::test("candidates are compiled together", candidates_are_compiled_together),
        Trial::test("compiling together may fail", compiling_may_fail),
        Trial::test("what is compared with must work", what_is_compared_with_must_work),
        Trial::test("foreign choices are ignored", foreign_choices_are_ignored),
    ];
    for (name, half) in [("f32", None), ("f16", Some(Half::F16))] {
        let name = format!("real kernels agree in {name}");
        trials.extend(on_devices(&name, &[Device::Cpu], move |device| real_kernels(device, half)));
    }
    libtest_mimic::run(&args, trials).exit_code()
}

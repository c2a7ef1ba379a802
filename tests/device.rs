//! What the session does for every device, proven on one with a clock and a temper of its own
//! (`support/faulty.rs`); and which adapter a `--device` means.

mod support;

use aavae::device::pace::SUBMISSION;
use aavae::device::wgpu::{AdapterInfo, find};
use aavae::device::{DeviceError, DeviceSpec, Pick, PlanId, Session};
use aavae::method::{self, Method, Training};
use aavae::plan::{Options, Plan, lower};
use support::faulty::{Fault, Faulty, Temper};
use support::{config, fill, reset, uniforms};

fn plan() -> (method::Model, Plan) {
    let model = method::training(&config(Method::Vae, 8, 2), Training::default());
    let plan = lower("train", &model.graph, Options::default());
    (model, plan)
}

/// A session on a device of the given speed, ready to train.
fn session(temper: &Temper, watched: bool) -> (Session, PlanId) {
    let (model, plan) = plan();
    let mut session =
        Session::from(Faulty::new(temper.clone(), watched)).with_clock(Faulty::clock(temper));
    session.allocate(&model.graph.layout);
    let id = session.load(plan).expect("there is room");
    reset(&mut session, &model, 3).expect("a whole device");
    fill(&mut session, id).expect("a whole device");
    (session, id)
}

/// Seconds of the submissions of each of `steps` steps, drained after every step as `--log-every 1`
/// does.
fn submissions(temper: &Temper, watched: bool, steps: u32) -> Vec<Vec<f64>> {
    let (mut session, id) = session(temper, watched);
    let run = |step: u32| {
        temper.submissions.borrow_mut().clear();
        session.run(id, &uniforms(3, step, 1e-3)).expect("a whole device");
        session.drain(id).expect("a whole device");
        temper.submissions.borrow().clone()
    };
    (0..steps).map(run).collect()
}

fn longest(submissions: &[f64]) -> f64 {
    submissions.iter().fold(0.0, |a, b| a.max(*b))
}

/// FLOP/s at which the whole plan takes so many seconds.
fn rate(seconds: f64) -> f64 {
    plan().1.flops() as f64 / seconds
}

#[test]
fn no_submission_runs_long_from_the_third_step_on() {
    let temper = Temper::default();
    temper.flops.set(rate(10.0));
    let whole = submissions(&temper, false, 1);
    assert_eq!(whole[0].len(), 1, "a device that nothing watches gets the step in one piece");
    assert!(longest(&whole[0]) > 9.9, "the slow device is slow: {whole:?}");

    let steps = submissions(&temper, true, 5);
    for (step, pieces) in steps.iter().enumerate().skip(2) {
        // What a piece took is shared out among its ops by the guess, so a new cut may be somewhat
        // longer.
        assert!(longest(pieces) <= 2.0 * SUBMISSION, "step {step}: {pieces:?}");
        let total: f64 = pieces.iter().sum();
        assert!((total - 10.0).abs() < 1e-6, "step {step} runs every op once: {total} s");
    }
}

/// A plan whose guess already exceeds a submission is cut in its very first step, before anything
/// was measured.
#[test]
fn the_first_step_is_cut_by_its_cost() {
    let mut config = config(Method::Aavae, 32, 64);
    config.net.width = 64;
    let graph = method::training(&config, Training::default()).graph;
    let plan = lower("train", &graph, Options::default());
    let pace = aavae::device::pace::Pace::new(&plan);
    let pieces = pace.pieces();
    assert!(!pace.is_measured() && pieces.len() > 10, "{} pieces", pieces.len());
    // On a device five times as fast as the pessimistic guess no piece comes near the two seconds
    // of a reset.
    let flops = |r: &std::ops::Range<usize>| {
        plan.ops[r.clone()].iter().map(|s| s.flops).sum::<u64>() as f64
    };
    let worst = pieces.iter().map(|r| flops(r) / 1.5e11).fold(0.0, f64::max);
    assert!(worst < 0.5, "{worst} s");
    let covered: Vec<usize> = pieces.into_iter().flatten().collect();
    assert_eq!(covered, (0..plan.ops.len()).collect::<Vec<_>>());
}

#[test]
fn a_fast_device_gets_whole_steps() {
    let temper = Temper::default();
    temper.flops.set(rate(0.01));
    let steps = submissions(&temper, true, 4);
    assert_eq!(steps[3].len(), 1, "{:?}", steps[3]);
}

#[test]
fn a_device_that_slows_down_is_cut_at_once() {
    let temper = Temper::default();
    temper.flops.set(rate(0.2));
    let (mut session, id) = session(&temper, true);
    let mut run = |step| {
        temper.submissions.borrow_mut().clear();
        session.run(id, &uniforms(3, step, 1e-3)).expect("a whole device");
        session.drain(id).expect("a whole device");
        temper.submissions.borrow().len()
    };
    let before = (0..4).map(&mut run).last();
    assert_eq!(before, Some(1));
    temper.flops.set(rate(4.0));
    run(4);
    assert!(run(5) >= 8, "four seconds are cut into at least 8 pieces");
}

#[test]
fn losses_of_a_slow_device_are_those_of_a_fast_one() {
    let losses = |flops: f64, watched: bool| {
        let temper = Temper::default();
        temper.flops.set(flops);
        let (mut session, id) = session(&temper, watched);
        support::run(&mut session, id, 3, 0..4, 1e-3).expect("finite losses")
    };
    assert_eq!(losses(rate(10.0), true), losses(0.0, false));
}

#[test]
fn a_lost_device_is_an_error() {
    for (fault, loud) in [(Fault::Loud(2), true), (Fault::Silent(2), false)] {
        let temper = Temper::default();
        let (mut session, id) = session(&temper, true);
        temper.fault.set(fault);
        let mut failed = None;
        for step in 0..5 {
            let ran = session.run(id, &uniforms(3, step, 1e-3));
            let drained = ran.and_then(|()| session.drain(id)).map(|rows| rows.len());
            if let Err(error) = drained {
                failed = Some((step, error));
                break;
            }
        }
        let Some((2, DeviceError::Lost { message, .. })) = &failed else {
            panic!("{fault:?}: {failed:?}")
        };
        let says = if loud {
            "as the test asked"
        } else {
            "step 2 of the plan `train` was reported as done"
        };
        assert!(message.contains(says), "{message}");
    }
}

/// A silent loss is seen where the same step number is run again, as validation does every epoch.
#[test]
fn a_silent_loss_is_seen_though_the_step_repeats() {
    let temper = Temper::default();
    let (mut session, id) = session(&temper, true);
    for _ in 0..3 {
        session.run(id, &uniforms(3, 7, 1e-3)).expect("a whole device");
        assert_eq!(session.drain(id).expect("a whole device").len(), 1);
    }
    temper.fault.set(Fault::Silent(7));
    session.run(id, &uniforms(3, 7, 1e-3)).expect("it says that all is well");
    assert!(matches!(session.drain(id), Err(DeviceError::Lost { .. })));
}

#[test]
fn more_runs_than_the_ring_holds_are_all_drained() {
    let temper = Temper::default();
    let (mut session, id) = session(&temper, true);
    for step in 0..150 {
        session.run(id, &uniforms(3, step, 0.0)).expect("a whole device");
    }
    let rows = session.drain(id).expect("a whole device");
    assert_eq!(rows.iter().map(|r| r.0).collect::<Vec<_>>(), (0..150).collect::<Vec<_>>());
    assert_eq!(rows[0].1.len(), session.plan(id).ring.scalars.len());
    assert!(session.drain(id).expect("a whole device").is_empty());
}

#[test]
fn reset_gives_all_memory_back() {
    let temper = Temper::default();
    let (mut session, _) = session(&temper, true);
    assert!(session.allocated_bytes() > 0);
    session.reset();
    assert_eq!(session.allocated_bytes(), 0);
    let (model, plan) = plan();
    session.allocate(&model.graph.layout);
    let bytes = plan.peak_bytes();
    session.load(plan).expect("there is room");
    assert_eq!(session.allocated_bytes(), bytes);
}

#[test]
fn no_room_names_the_buffer_and_the_bytes() {
    let temper = Temper::default();
    let (model, plan) = plan();
    temper.memory.set(Some(plan.peak_bytes() - 1));
    let mut session = Session::from(Faulty::new(temper.clone(), true));
    session.allocate(&model.graph.layout);
    let error = session.load(plan).expect_err("one byte is missing");
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    assert!(error.hint().is_some_and(|h| h.contains("--batch-size")), "{:?}", error.hint());
    // Only the flat buffers stay, and the session knows now how much there is.
    assert!(session.allocated_bytes() < session.memory().expect("it has turned out"));
    let (found, real) = (session.memory().expect("found"), temper.memory.get().expect("set"));
    assert!(found <= real && found * 10 > real * 9, "{found} of {real} bytes were found");
}

fn adapter(name: &str, backend: &str, software: bool) -> AdapterInfo {
    AdapterInfo {
        name: name.into(),
        backend: backend.into(),
        kind: "DiscreteGpu".into(),
        driver: "1".into(),
        software,
        max_binding_bytes: 0,
        max_buffer_bytes: 0,
        max_storage_buffers: 8,
        workgroup_memory_bytes: 0,
        subgroup: None,
        coop: None,
        features: vec![],
    }
}

fn pick(text: &str) -> Pick {
    match text.parse() {
        Ok(DeviceSpec::Wgpu(pick)) => pick,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_adapter_that_was_meant() {
    let all = [
        adapter("NVIDIA GeForce RTX 3070 Ti", "vulkan", false),
        adapter("NVIDIA GeForce RTX 3070", "vulkan", false),
        adapter("NVIDIA GeForce RTX 3070", "dx12", false),
        adapter("Twin", "vulkan", false),
        adapter("Twin", "vulkan", false),
        adapter("llvmpipe (LLVM 15)", "vulkan", true),
    ];
    for (text, index) in [
        ("wgpu", 0),
        ("wgpu:4", 4),
        ("wgpu:3070 ti", 0),
        ("wgpu:dx12:3070", 2),
        ("wgpu:vulkan:NVIDIA GeForce RTX 3070", 1),
        ("wgpu:Vulkan:ti", 0),
        ("wgpu:LLVMPIPE", 5),
    ] {
        assert_eq!(find(&pick(text), &all), Ok(index), "{text}");
    }
    for (text, says) in [
        ("wgpu:3070", "fits 3 adapters: wgpu:0 = NVIDIA GeForce RTX 3070 Ti (vulkan), wgpu:1 = "),
        ("wgpu:nvidia geforce rtx 3070", "fits 3 adapters"),
        ("wgpu:twin", "wgpu:3 = Twin (vulkan), wgpu:4 = Twin (vulkan)"),
        ("wgpu:metal:3070", "no adapter of metal is named `3070`"),
        ("wgpu:6", "there is no adapter 6"),
    ] {
        let error = find(&pick(text), &all).expect_err(text);
        assert!(error.to_string().contains(says), "{text}: {error}");
        assert!(error.hint().is_some(), "{text}");
    }
    assert!(find(&Pick::Any, &all[5..]).is_err_and(|e| e.to_string().contains("no GPU adapter")));
    for text in ["wgpu:", "wgpu:dx12:", "gpu", "CPU"] {
        assert!(text.parse::<DeviceSpec>().is_err_and(|e| e.hint().is_some()), "{text}");
    }
}

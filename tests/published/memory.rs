//! What a plan is said to need is what the device then holds, to the byte.

use aavae::device::Session;
use aavae::ir::{Graph, Group, Layout};
use aavae::method::{self, Method, ModelConfig, Training, Views};
use aavae::ops::{Emit, Scale};
use aavae::run::RunError;
use aavae::run::fit::{self, Fit};
use aavae::tensor::{Shape, TensorType};

use super::support::config;
use super::support::faulty::Faulty;

/// Bytes that the device takes to read.
const READS: usize = 1000;

fn session(memory: usize, layout: &Layout) -> Session {
    let mut session = Session::from(Faulty::bounded(memory, READS));
    session.allocate(layout);
    session
}

#[test]
fn a_plan_fits_beside_others_to_the_byte() {
    let config = config(Method::Vae, 16, 2);
    let of = |n: usize| ModelConfig { batch: n, ..config };
    let layout = method::training(&config, Training::default()).graph.layout;
    // The second works on what the first has allocated, the third on more.
    let graphs: [&dyn Fn(usize) -> Graph; 3] = [
        &|n| method::validation(&of(n), &layout, Views::Given).graph,
        &|n| method::encoding(&of(n), &layout).graph,
        &|n| method::training(&of(n), Training::default()).graph,
    ];
    let fit = Fit { option: "--batch-size", asked: 2, least: 2 };
    let load = |session: &mut Session, which: &[&dyn Fn(usize) -> Graph]| {
        which.iter().try_for_each(|graph| fit::load(session, "a plan", fit, graph).map(|_| ()))
    };
    for count in 1..=graphs.len() {
        let (before, all) = (&graphs[..count - 1], &graphs[..count]);
        let mut boundless = session(usize::MAX, &layout);
        load(&mut boundless, all).expect("room");
        let needed = boundless.allocated_bytes() + READS;
        load(&mut session(needed, &layout), all).expect("room for just that");
        let mut short = session(needed - 1, &layout);
        load(&mut short, before).expect("room for the others");
        let error = load(&mut short, &all[count - 1..]).expect_err("a byte too few");
        let numbers = format!("needs {needed} bytes, but `faulty` has {} bytes", needed - 1);
        assert!(matches!(error, RunError::TooLarge { .. }), "{error:?}");
        assert!(error.to_string().contains(&numbers), "{error}");
    }
}

#[test]
fn a_state_fits_to_the_byte() {
    let layout = method::training(&config(Method::Vae, 16, 2), Training::default()).graph.layout;
    let mut boundless = session(usize::MAX, &layout);
    for group in Group::ALL.into_iter().filter(|group| layout.size(*group) > 0) {
        boundless.read_state(group).expect("a flat buffer");
    }
    let needed = boundless.allocated_bytes();
    fit::check_state(&session(needed, &layout), &layout).expect("room for just that");
    let error = fit::check_state(&session(needed - 1, &layout), &layout).expect_err("a byte less");
    assert!(error.to_string().contains(&format!("the state needs {needed} bytes")), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--width")));
}

#[test]
fn a_tensor_is_bound_to_the_byte() {
    // 3 * 5 * 7 * 44 floats of 4 bytes; the others are smaller, if not in elements and bytes mixed.
    let bytes = 18_480;
    let mut layout = Layout::default();
    layout.register("smaller", Shape::vector(4_608), Group::Param);
    layout.register("largest", Shape::new(3, 5, 7, 44), Group::Param);
    layout.register("statistics", Shape::vector(64), Group::Buffer);
    let narrow = |limit| Session::from(Faulty::narrow(limit));
    fit::check_state(&narrow(bytes), &layout).expect("bound whole");
    let error = fit::check_state(&narrow(bytes - 1), &layout).expect_err("a byte too few");
    let said = error.to_string();
    assert!(
        said.contains("`largest`") && said.contains("18480") && said.contains("18479"),
        "{said}"
    );

    // Of a plan also what is neither weight nor update, by the batch that it is for.
    let graph = |n: usize| {
        let mut g = Graph::default();
        let x = g.input("x", TensorType::f32(Shape::new(n, 5, 7, 44)));
        g.label("twice");
        let y = g.emit1(Scale { a: 2.0 }.into(), &[x]);
        g.output("y", y);
        g
    };
    let fit = |asked| Fit { option: "--batch-size", asked, least: 1 };
    fit::load(&mut narrow(bytes), "a plan", fit(3), &graph).expect("bound whole");
    let error = fit::load(&mut narrow(bytes - 1), "a plan", fit(3), &graph).expect_err("too large");
    assert!(error.hint().is_some_and(|hint| hint.contains("`--batch-size 2` fits")), "{error:?}");
    let error = fit::plan(&narrow(bytes - 1), "a plan", Fit { least: 3, ..fit(3) }, &graph);
    let hint = error.as_ref().err().and_then(RunError::hint).unwrap_or_default();
    assert!(hint.contains("no batch fits"), "{hint}");
    // What no device binds is refused before anything counts it in 32 bits: 2^31 bytes are 348,617
    // samples of 6,160.
    let error = fit::plan(&narrow(usize::MAX), "a plan", fit(1 << 24), &graph);
    let hint = error.as_ref().err().and_then(RunError::hint).unwrap_or_default();
    assert!(hint.contains("`--batch-size 348617` fits"), "{hint}");
}

//! What a plan is said to need is what the device then holds, to the byte.

use aavae::device::Session;
use aavae::ir::{Graph, Group, Layout};
use aavae::method::{self, Method, ModelConfig, Training, Views};
use aavae::run::RunError;
use aavae::run::fit::{self, Fit};

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

//! A run whose device is lost goes on with the bits of an undisturbed one, loudly or silently lost,
//! and gives up where there is no progress. Memory that does not suffice is one error before
//! training.

mod support;

use std::path::Path;

use aavae::device::{DeviceError, Session};
use aavae::method::Method;
use aavae::run::RunError;
use aavae::run::folder::RunFolder;
use aavae::run::metrics;
use aavae::run::settings::{DataKind, RunConfig};
use aavae::run::trained::{model_config, open_data};
use aavae::train::interrupt::Interrupt;
use aavae::train::pretrain::{Outcome, TrainingRequest};
use aavae::train::recover;
use support::faulty::{Fault, Faulty, Temper};

/// Four epochs of five steps, each epoch saved.
fn settings() -> RunConfig {
    RunConfig {
        dataset: DataKind::Shapes,
        method: Method::Vae,
        width: 8,
        latent_dim: 16,
        batch_size: 8,
        epochs: 4,
        limit_train: Some(40),
        log_every: 2,
        save_minutes: 0.0,
        ..RunConfig::default()
    }
}

/// Pretrains on devices that are opened so.
fn pretrain_on(
    config: &RunConfig,
    out: &Path,
    mut open: impl FnMut() -> Result<(Session, String), DeviceError>,
) -> Result<Outcome, RunError> {
    let folder = RunFolder::claim(out, "test").expect("an empty folder");
    let interrupt = Interrupt::default();
    let splits = open_data(config).expect("embedded images");
    let request = TrainingRequest {
        config,
        splits: &splits,
        another_device: false,
        tune: true,
        folder: &folder,
        interrupt: &interrupt,
    };
    recover::pretrain(&request, None, &mut open)
}

/// Pretrains on a device that meets each of the faults in turn, one at each opening.
fn pretrain(
    config: &RunConfig,
    out: &Path,
    faults: &[Fault],
) -> (Result<Outcome, RunError>, usize) {
    let mut opened = 0;
    let open = || {
        let temper = Temper::default();
        temper.fault.set(faults.get(opened).copied().unwrap_or_default());
        opened += 1;
        Ok((Session::from(Faulty::new(temper, true)), "as the test asked".into()))
    };
    let outcome = pretrain_on(config, out, open);
    (outcome, opened)
}

/// What a run leaves that may not depend on what happened to its device.
fn results(out: &Path, outcome: &Outcome) -> (String, u64, Vec<String>) {
    let records = metrics::read(out.join("metrics.jsonl")).expect("whole records");
    let kept = |record: &metrics::MetricsRecord| {
        let values: Vec<_> = record.values.iter().filter(|v| v.0 != "images_per_second").collect();
        format!("{} {} {values:?}", record.step, record.split)
    };
    (outcome.digest.clone(), outcome.steps, records.iter().map(kept).collect())
}

#[test]
fn a_lost_device_costs_time_and_no_bit() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, straight) = (settings(), dir.path().join("straight"));
    let (outcome, opened) = pretrain(&config, &straight, &[]);
    let want = results(&straight, &outcome.expect("a whole device"));
    assert_eq!((opened, want.1), (1, 20));
    assert!(want.2.len() > 10, "{:?}", want.2);

    let cases: [(&str, &[Fault]); 4] = [
        ("before the first checkpoint", &[Fault::Loud(3)]),
        ("loudly", &[Fault::Loud(12)]),
        ("silently", &[Fault::Silent(11)]),
        (
            "again and again",
            &[Fault::Silent(6), Fault::Loud(11), Fault::Loud(17), Fault::Silent(19)],
        ),
    ];
    for (what, faults) in cases {
        let out = dir.path().join(what);
        let (outcome, opened) = pretrain(&config, &out, faults);
        let outcome = outcome.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(opened, faults.len() + 1, "{what}");
        assert_eq!(results(&out, &outcome), want, "{what}");
        let log = std::fs::read_to_string(out.join("train.log")).expect("a log");
        assert!(
            log.contains("was lost") && log.contains("opening it anew and going on from step"),
            "{log}"
        );
    }
}

/// A record of training after every step, and the device is idle no more often than with one an
/// epoch; the records are those of the steps, in order.
#[test]
fn records_never_let_the_device_wait() {
    let dir = tempfile::tempdir().expect("a folder");
    let idle = |accumulate: usize, log_every: u64| {
        let config = RunConfig { log_every, accumulate, epochs: 2, ..settings() };
        let temper = Temper::default();
        temper.flops.set(1e9);
        let open = || {
            let session = Session::from(Faulty::new(temper.clone(), false));
            Ok((session.with_clock(Faulty::clock(&temper)), "as the test asked".into()))
        };
        let out = dir.path().join(format!("{accumulate} {log_every}"));
        let outcome = pretrain_on(&config, &out, open).expect("a whole device");
        let of = metrics::read(out.join("metrics.jsonl")).expect("whole records").into_iter();
        let steps: Vec<_> = of.filter(|r| r.split == "train").map(|r| r.step).collect();
        (temper.idle.get(), outcome.digest, steps)
    };
    for accumulate in [1, 5] {
        let ((idle_once, once, few), (idle_always, always, all)) =
            (idle(accumulate, 1000), idle(accumulate, 1));
        let per_epoch = 5 / accumulate as u64;
        assert_eq!(few, [per_epoch, 2 * per_epoch]);
        assert_eq!(all, (1..=2 * per_epoch).collect::<Vec<_>>());
        assert_eq!(once, always);
        // At least at the end of each epoch.
        assert!(idle_once >= 2, "{idle_once}");
        assert_eq!(idle_always, idle_once);
    }
}

#[test]
fn a_device_that_is_lost_without_progress_is_given_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let (outcome, opened) = pretrain(&settings(), dir.path(), &[Fault::Loud(7); 9]);
    let error = outcome.expect_err("the seventh step never ends");
    assert!(matches!(error, RunError::Device(DeviceError::Lost { .. })), "{error}");
    assert!(error.hint().is_some());
    // The first loss, and three more at the same checkpoint.
    assert_eq!(opened, 4);
}

/// Memory that does not suffice, seen only when buffers are made, is one error that names a batch
/// of which everything fits; and that batch does fit.
#[test]
fn no_memory_is_one_error_with_a_batch_that_fits() {
    let dir = tempfile::tempdir().expect("a folder");
    let train = |batch_size: usize, memory: Option<usize>, out: &str| {
        let config = RunConfig { batch_size, epochs: 1, limit_train: Some(80), ..settings() };
        let folder = RunFolder::claim(&dir.path().join(out), "test").expect("an empty folder");
        let interrupt = Interrupt::default();
        let splits = open_data(&config).expect("embedded images");
        let request = TrainingRequest {
            config: &config,
            splits: &splits,
            another_device: false,
            tune: true,
            folder: &folder,
            interrupt: &interrupt,
        };
        let mut open = || {
            let temper = Temper::default();
            temper.memory.set(memory);
            Ok((Session::from(Faulty::new(temper, true)), String::new()))
        };
        recover::pretrain(&request, None, &mut open)
    };
    train(40, None, "enough").expect("all the memory there is");
    // Room for a batch of about 16 of this network.
    let error = train(40, Some(16 << 20), "short").expect_err("16 MiB");
    let hint = error.hint().unwrap_or_default();
    let fitting = hint
        .split('`')
        .nth(1)
        .and_then(|h| h.strip_prefix("--batch-size "))
        .and_then(|n| n.parse().ok());
    let fitting: usize = fitting.unwrap_or_else(|| panic!("{error}\nhint: {hint}"));
    assert!((2..40).contains(&fitting), "{fitting}");
    assert!(error.to_string().contains("16"), "{error}");
    train(fitting, Some(16 << 20), "fits").expect("the batch of the hint");
}

/// A picture of more images than fit is an error that names how many do.
#[test]
fn reconstructions_obey_the_memory() {
    use aavae::eval::features::Evaluator;
    let config = RunConfig { limit_train: None, ..settings() };
    let splits = open_data(&config).expect("embedded images");
    let model = model_config(&config, &splits);
    let temper = Temper::default();
    temper.memory.set(Some(8 << 20));
    let session = Session::from(Faulty::new(temper, true));
    let mut evaluator = Evaluator::new(session, model, config.protocol(), 10, None, 0)
        .expect("room for the weights");
    let step = aavae::ops::StepUniforms::default();
    let error = evaluator.reconstruct(&splits.train, 5_000, &step).expect_err("more than 8 MiB");
    let hint = error.hint().unwrap_or_default();
    let fitting = hint
        .split('`')
        .nth(1)
        .and_then(|h| h.strip_prefix("--count "))
        .and_then(|n| n.parse().ok());
    let fitting: usize = fitting.unwrap_or_else(|| panic!("{error}\nhint: {hint}"));
    assert!((1..1000).contains(&fitting), "{fitting}");
    assert!(
        evaluator.reconstruct(&splits.train, fitting, &step).is_ok(),
        "{fitting}, the number of the hint"
    );
}

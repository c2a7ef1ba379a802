//! Images that stay on the device: whatever is computed is as with uploads, to the bit.

use std::ops::Range;
use std::path::Path;

use aavae::data::{self, DataOptions, Kind, Splits};
use aavae::device::Session;
use aavae::method::Method;
use aavae::ops::Target;
use aavae::run::checkpoint::Checkpoint;
use aavae::run::resident;
use aavae::run::settings::RunConfig;
use aavae::train::plans;
use aavae::train::schedule::Timetable;
use aavae::train::trainer::Trainer;
use libtest_mimic::Failed;

use crate::support::faulty::{Faulty, Temper};
use crate::support::{Device, check};

/// Bytes that a read takes of a bounded device.
const READS: usize = 4096;
/// Steps in all: two epochs.
const STEPS: u64 = 6;

fn config(method: Method) -> RunConfig {
    RunConfig {
        method,
        log_every: 1,
        width: 8,
        latent_dim: 8,
        batch_size: 4,
        accumulate: 2,
        epochs: 2,
        warmup_epochs: 0,
        learning_rate: 1e-3,
        importance_samples: Some(0),
        view_metrics_every: 3,
        online_probe: true,
        ..RunConfig::default()
    }
}

fn splits() -> Result<Splits, Failed> {
    let options =
        DataOptions { shapes_len: (26, 1), n_val: Some(2), ..DataOptions::new(Kind::Shapes) };
    Ok(data::open(&options)?)
}

/// What a run reports and leaves, as bits.
#[derive(Debug, Default, PartialEq)]
struct Trace {
    scalars: Vec<(String, u32)>,
    state: Vec<u8>,
}

/// A run whose images stay on the device or not; with so many bytes to a binding, if they are
/// given.
fn trainer<'a>(
    device: &Device,
    config: &'a RunConfig,
    splits: &'a Splits,
    (keeps, binding): (bool, Option<usize>),
) -> Result<Trainer<'a>, Failed> {
    let mut session = device.open()?;
    session.set_keeps_images(keeps);
    let target = session.target();
    session.set_target(Target { max_binding: binding.unwrap_or(target.max_binding), ..target });
    let timetable = Timetable::new(config, splits.train.len())?;
    let trainer = Trainer::new(config, timetable, splits, session)?;
    let said = trainer.describe_images();
    let right = if keeps { Some("images: 24 stay on the device, in 0.1 MB") } else { None };
    check(said.as_deref() == right, || format!("{said:?}"))?;
    Ok(trainer)
}

/// Takes steps, with all that is measured on the way.
fn steps(
    trainer: &mut Trainer<'_>,
    range: Range<u64>,
    pixels: bool,
    trace: &mut Trace,
) -> Result<Vec<u8>, Failed> {
    let mut batches = trainer.batches(range.clone())?;
    for number in range.clone() {
        let step = trainer.step(&mut batches)?.ok_or("more batches")?;
        check(step.batch.pixels.is_empty() != pixels, || "pixels that nobody reads".into())?;
        let asked = trainer.ask(&step)?;
        let mut values = trainer.answer(asked)?.values;
        if number % 3 == 2 {
            values.extend(trainer.views(&step)?);
        }
        trace.scalars.extend(values.into_iter().map(|(name, value)| (name, value.to_bits())));
    }
    let (layout, params) = trainer.tensors();
    let tensors = trainer.snapshot(range.end)?.tensors(&layout, &params);
    trace.state = Checkpoint { tensors, meta: [].into() }.to_bytes();
    Ok(trace.state.clone())
}

fn whole(
    device: &Device,
    config: &RunConfig,
    splits: &Splits,
    images: (bool, Option<usize>),
) -> Result<Trace, Failed> {
    let mut trainer = trainer(device, config, splits, images)?;
    trainer.initialise(None)?;
    let mut trace = Trace::default();
    steps(&mut trainer, 0..STEPS, !images.0, &mut trace)?;
    Ok(trace)
}

/// Training in several batches a step, the online probe, views: with uploads, with images that
/// stay, and begun in one way and resumed in the other.
pub(crate) fn same_bits(device: &Device) -> Result<(), Failed> {
    let (config, splits) = (config(Method::Aavae), splits()?);
    let uploaded = whole(device, &config, &splits, (false, None))?;
    check(uploaded.scalars.iter().any(|s| s.0 == "online_loss"), || "no probe".into())?;
    check(uploaded.scalars.iter().any(|s| s.0 == "cosine"), || "no views".into())?;
    let stayed = whole(device, &config, &splits, (true, None))?;
    check(stayed == uploaded, || {
        format!("{:?} with uploads {:?}", stayed.scalars, uploaded.scalars)
    })?;

    if matches!(device, Device::Reference) {
        return Ok(()); // A checkpoint holds f32.
    }
    let mut first = trainer(device, &config, &splits, (false, None))?;
    first.initialise(None)?;
    let mut trace = Trace::default();
    let middle = steps(&mut first, 0..4, true, &mut trace)?;
    drop(first);
    let mut second = trainer(device, &config, &splits, (true, None))?;
    second.restore(&Checkpoint::from_bytes(Path::new("middle"), &middle)?, vec![])?;
    steps(&mut second, 4..STEPS, false, &mut trace)?;
    check(trace == uploaded, || "resumed with images that stay it gives other bits".into())
}

/// Every method, of images in three parts.
pub(crate) fn parts() -> Result<(), Failed> {
    let splits = splits()?;
    for &method in Method::ALL {
        // SimCLR compares the images of a batch, so that its mean is of one.
        let accumulate = if method == Method::Simclr { 1 } else { 2 };
        let batch_size = 8 / accumulate;
        let view_metrics_every = if method.reconstructs() { 3 } else { 0 };
        let config = RunConfig { accumulate, batch_size, view_metrics_every, ..config(method) };
        let uploaded = whole(&Device::Cpu, &config, &splits, (false, None))?;
        // An image takes 3072 bytes.
        let stayed = whole(&Device::Cpu, &config, &splits, (true, Some(10 * 3072)))?;
        check(stayed == uploaded, || format!("{method:?} gives other bits"))?;
    }
    Ok(())
}

/// What the session holds is what was forecast, and where images do not fit training goes on with
/// uploads, for a reason that is given.
pub(crate) fn memory() -> Result<(), Failed> {
    let (config, splits) = (config(Method::Aavae), splits()?);
    let mut session = Device::Cpu.open()?;
    session.set_keeps_images(true);
    let set = resident::set(&session, &splits.train, 48)?;
    check(set.bytes() == 24 * 3072, || format!("{set:?}"))?;
    // Who sees fewer images than twice as many as there are, uploads them.
    let once = resident::set(&session, &splits.train, 47);
    check(once.as_ref().is_err_and(|e| e.contains("once")), || format!("{once:?}"))?;

    let forecast = |session: &Session, resident: bool| -> Result<usize, Failed> {
        let model = aavae::run::trained::model_config(&config, &splits);
        let sizes = plans::Sizes::new(&config, model.batch, splits.val.len());
        let graphs = plans::graphs(&config, &model, sizes).0;
        let graphs = if resident { graphs.resident(&set) } else { graphs };
        let plans: Vec<_> = graphs.iter().map(|(name, graph)| session.lower(name, graph)).collect();
        Ok(plans::device_bytes(session, &plans))
    };
    let (with, without) = (forecast(&session, true)?, forecast(&session, false)?);
    let resident = trainer(&Device::Cpu, &config, &splits, (true, None))?;
    let held = resident.session().allocated_bytes();
    check(held == with, || format!("{held} bytes are held, the forecast is {with}"))?;
    drop(resident);

    // What a forecast adds for images: their bytes where they stay and fit beside the rest.
    let mut known = Session::from(Faulty::bounded(100_000, 0));
    known.set_keeps_images(true);
    for (seen, needed, bytes) in [(48, 26_272, 73_728), (48, 26_273, 0), (47, 0, 0)] {
        let found = resident::bytes(&known, &splits.train, seen, needed);
        check(found == bytes, || format!("{found} bytes beside {needed}, of {seen} seen"))?;
    }

    // Of a device that says how much memory it has, and of one that has no more at some point.
    for (memory, fits) in [(with, true), (with - 1, false), (without, false)] {
        let known = Session::from(Faulty::bounded(memory + READS, READS));
        let temper = Temper::default();
        temper.memory.set(Some(memory));
        let found = Session::from(Faulty::new(temper, false));
        for (mut session, reason) in [(known, "needs"), (found, "no memory left")] {
            session.set_keeps_images(true);
            let timetable = Timetable::new(&config, splits.train.len())?;
            let trainer = Trainer::new(&config, timetable, &splits, session)?;
            let said = trainer.describe_images().unwrap_or_default();
            let uploads = said.contains("uploaded by every step") && said.contains(reason);
            let right = if fits { said.contains("24 stay") } else { uploads };
            check(right, || format!("of {memory} bytes: {said}"))?;
            let held = trainer.session().allocated_bytes();
            let wanted = if fits { with } else { without };
            check(held == wanted, || format!("of {memory} bytes {held} are held: {said}"))?;
        }
    }
    Ok(())
}

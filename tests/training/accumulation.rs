//! Steps of several batches: their gradient is that of the large batch, and one bad batch stops the
//! update.

use aavae::device::{Data, PlanId, Session};
use aavae::ir::Group;
use aavae::method::{self, Method, Training, Views};
use aavae::ops::StepUniforms;
use aavae::optim::{self, Optimizer, Update};
use aavae::plan::held_bytes;
use libtest_mimic::Failed;

use crate::RATE;
use crate::support::{Device, check, config, fill, load, pixels, reset, uniforms};

/// The batch of an accumulated step that uploads and counts from `part * batch`.
fn run_part(
    session: &mut Session,
    id: PlanId,
    part: usize,
    batch: usize,
    step: u32,
) -> Result<(), Failed> {
    let side = session.plan(id).inputs[0].ty.shape.h;
    session.upload(id, 0, Data::U32(&pixels(part * batch..(part + 1) * batch, side)))?;
    Ok(session.run(
        id,
        &StepUniforms { first_sample: (part * batch) as u32, ..uniforms(3, step, RATE) },
    )?)
}

/// Largest difference of two flat gradients, relative to the largest element of its tensor.
fn apart(model: &method::Model, a: &[f32], b: &[f32]) -> Result<f64, Failed> {
    let mut worst = 0.0_f64;
    for s in model.graph.layout.states.iter().filter(|s| s.range.group == Group::Param) {
        let tensor = s.range.offset..s.range.offset + s.range.len;
        let largest = a[tensor.clone()].iter().fold(0.0_f64, |m, x| m.max(f64::from(x.abs())));
        check(largest > 0.0, || format!("`{}` has no gradient", s.name))?;
        let error = tensor
            .map(|i| (f64::from(a[i]) - f64::from(b[i])).abs())
            .fold(0.0, |m: f64, e| if e <= m { m } else { e });
        check(error.is_finite(), || format!("the gradient of `{}` is not finite", s.name))?;
        worst = worst.max(error / largest);
    }
    Ok(worst)
}

/// Three batches of two give the gradient of one of six, augmentation and noise included, with
/// BatchNorm's running statistics; with a batch's own they do not.
pub(crate) fn accumulation(device: &Device) -> Result<(), Failed> {
    const PARTS: usize = 3;
    let (whole, part) = (config(Method::Aavae, 16, 2 * PARTS), config(Method::Aavae, 16, 2));
    // Software adapters compile for long, and the statistics are the same kernels everywhere.
    let modes: &[bool] = if matches!(device, Device::Wgpu(..)) { &[true] } else { &[true, false] };
    for &freeze_statistics in modes {
        let how = Training { update: false, freeze_statistics, ..Training::default() };
        let large = method::training(&whole, how);
        let small = method::training(&part, Training { accumulate: PARTS, ..how });
        let mut session = device.open()?;
        let session = &mut session;
        session.allocate(&large.graph.layout);
        let (large_id, small_id) = (load(session, &large, true)?, load(session, &small, true)?);
        reset(session, &large, 3)?;
        // Statistics as they are after some training.
        for s in large.graph.layout.states.iter().filter(|s| s.name.contains(".running_")) {
            let value = |i: usize| {
                if s.name.ends_with("var") {
                    0.5 + (i % 7) as f32 / 7.0
                } else {
                    (i % 5) as f32 / 10.0 - 0.2
                }
            };
            session.write_state(
                Group::Buffer,
                s.range.offset,
                &(0..s.range.len).map(value).collect::<Vec<_>>(),
            )?;
        }
        let statistics = session.read_state(Group::Buffer)?;
        run_part(session, large_id, 0, 2 * PARTS, 6)?;
        let want = session.read_state(Group::Grad)?;
        // What an earlier step left must not count.
        session.write_state(
            Group::Accumulated,
            0,
            &vec![f32::NAN; large.graph.layout.size(Group::Accumulated)],
        )?;
        for i in 0..PARTS {
            run_part(session, small_id, i, 2, 6)?;
        }
        let sum = session.read_state(Group::Accumulated)?;
        let error = apart(&large, &want, &sum)?;
        eprintln!("{}, frozen {freeze_statistics}: {error:.1e}", device.name());
        check(freeze_statistics == (error < 1e-5), || {
            format!("frozen {freeze_statistics}: the gradients differ by {error:e}")
        })?;
        check(freeze_statistics == (session.read_state(Group::Buffer)? == statistics), || {
            "frozen statistics move, or others stay".into()
        })?;
        // The mean loss is among what guards the update.
        let losses: Vec<f32> = session.drain(small_id)?.iter().map(|(_, v)| v[0]).collect();
        let (mean, stored) = (
            losses.iter().sum::<f32>() / PARTS as f32,
            sum[large.graph.layout.accumulated_loss().offset],
        );
        check(losses.len() == PARTS && (mean - stored).abs() < 1e-5 * mean.abs(), || {
            format!("{losses:?} are not {stored} in the mean")
        })?;
        if freeze_statistics {
            // The draws of the first batch again and again would not do: the images of a step draw
            // each their own.
            for i in 0..PARTS {
                session.upload(small_id, 0, Data::U32(&pixels(2 * i..2 * i + 2, 16)))?;
                session.run(
                    small_id,
                    &StepUniforms {
                        first_sample: if i == 0 { 0 } else { 100 },
                        ..uniforms(3, 6, RATE)
                    },
                )?;
            }
            let other = apart(&large, &want, &session.read_state(Group::Accumulated)?)?;
            check(other > 1e-2, || format!("other draws give the same gradients: {other:e}"))?;
        }
    }
    Ok(())
}

/// A loss that is no number in any batch of a step stops the update of every optimiser from that
/// step on, and leaves nothing behind once the flag is cleared.
pub(crate) fn a_bad_batch(device: &Device) -> Result<(), Failed> {
    const PARTS: usize = 3;
    let part = method::training(
        &config(Method::Ae, 16, 2),
        Training { views: Views::Given, accumulate: PARTS, ..Training::default() },
    );
    let layout = &part.graph.layout;
    let mut session = device.open()?;
    let session = &mut session;
    session.allocate(layout);
    let id = load(session, &part, true)?;
    let rules = [Optimizer::Adam, Optimizer::Sgd, Optimizer::Lars, Optimizer::Lamb]
        .map(|optimizer| Update { optimizer, weight_decay: 0.1, ..Update::default() });
    let lowered = rules.map(|rule| session.lower("update", &optim::update(layout, rule)));
    let mut updates = Vec::new();
    for plan in lowered.clone() {
        updates.push(session.load(plan)?);
    }
    reset(session, &part, 4)?;
    fill(session, id)?;
    let plans = [&[session.plan(id).clone()], &lowered[..]].concat();
    let planned = held_bytes(&plans) + session.capabilities().overhead;
    check(session.allocated_bytes() == planned, || {
        format!("{} bytes are allocated, the plans say {planned}", session.allocated_bytes())
    })?;
    let len = session.plan(id).inputs[0].ty.shape.len();
    let step = |session: &mut Session,
                update: PlanId,
                step: u32,
                bad: Option<usize>|
     -> Result<Vec<Vec<u32>>, Failed> {
        for i in 0..PARTS {
            fill(session, id)?;
            if bad == Some(i) {
                session.upload(id, 0, Data::F32(&vec![f32::NAN; len]))?;
            }
            session
                .run(id, &StepUniforms { first_sample: 2 * i as u32, ..uniforms(4, step, RATE) })?;
        }
        session.run(update, &uniforms(4, step, RATE))?;
        session.drain(update)?;
        let kept = [Group::Param, Group::Moment1, Group::Moment2];
        kept.iter()
            .map(|&g| Ok(session.read_state(g)?.into_iter().map(f32::to_bits).collect()))
            .collect()
    };
    for (rule, update) in rules.iter().zip(updates) {
        let name = format!("{:?}", rule.optimizer);
        reset(session, &part, 4)?;
        let first = step(session, update, 0, None)?;
        let second = step(session, update, 1, None)?;
        check(first[0] != second[0] && first[1] != second[1], || {
            format!("{name}: a step changes nothing")
        })?;
        check((first[2] != second[2]) == (rule.moments().len() == 2), || {
            format!("{name}: the second moment")
        })?;
        reset(session, &part, 4)?;
        step(session, update, 0, None)?;
        for bad in 0..PARTS {
            check(step(session, update, 1, Some(bad))? == first, || {
                format!("{name}: updated although batch {bad} is bad")
            })?;
        }
        check(step(session, update, 1, None)? == first, || {
            format!("{name}: updated after a bad step")
        })?;
        session.write_state(layout.guard().group, layout.guard().offset, &[0.0])?;
        check(step(session, update, 1, None)? == second, || {
            format!("{name}: a bad step has left something behind")
        })?;
    }
    Ok(())
}

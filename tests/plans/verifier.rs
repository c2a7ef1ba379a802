//! The verifier refuses broken plans, and says which limit of a device a plan exceeds.

use std::cell::Cell;

use aavae::ir::resident::{ImageSet, gather};
use aavae::ir::{Graph, Group, Range};
use aavae::method::{self, Method, Training};
use aavae::ops::{Binding, Io};
use aavae::plan::{Limits, Options, Place, Plan, PlanError, lower, verify};
use aavae::tensor::TensorType;
use libtest_mimic::Failed;

use crate::reviewed;
use crate::support::{check, config};

thread_local! {
    /// Set where a panic is what is tested: its message would only confuse.
    pub(crate) static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn refused(plan: &Plan) -> bool {
    QUIET.set(true);
    let result = std::panic::catch_unwind(|| verify(plan, &Limits::NONE));
    QUIET.set(false);
    result.is_err()
}

/// Breaks a plan in one way at every place that allows it; each must be refused, and there must be
/// such places.
fn refuses(
    what: &str,
    plan: &Plan,
    at_least: usize,
    broken: impl Fn(&mut Plan, usize) -> bool,
) -> Result<(), Failed> {
    let mut count = 0;
    for i in 0..plan.ops.len() {
        let mut bad = plan.clone();
        if broken(&mut bad, i) {
            check(refused(&bad), || format!("accepted {what} at step {i}, {}", plan.ops[i].label))?;
            count += 1;
        }
    }
    check(count >= at_least, || format!("{what}: only {count} places, expected {at_least}"))
}

fn graph() -> Graph {
    method::training(&config(Method::Aavae, 16, 2), Training::default()).graph
}

fn whole_plan() -> Plan {
    lower("train", &graph(), Options::default())
}

pub(crate) fn broken_plans() -> Result<(), Failed> {
    let plan = whole_plan();
    check(!refused(&plan), || "refused a whole plan".into())?;
    wrong_places(&plan)?;
    wrong_order(&plan)?;
    wrong_states(&plan)?;
    wrong_scratch(&plan)?;
    wrong_sizes(&plan)?;
    wrong_ends(&plan)?;
    wrong_images()
}

fn wrong_places(plan: &Plan) -> Result<(), Failed> {
    let n = plan.buffers.len();
    refuses("an input read from another buffer", plan, 100, |p, i| {
        let Some(Place::Buffer(b)) = p.ops[i].inputs.first().map(|x| x.1) else { return false };
        p.ops[i].inputs[0].1 = Place::Buffer((b + 1) % n);
        true
    })?;
    let upload = plan.inputs[0].place;
    refuses("an input read from an uploaded buffer", plan, 100, |p, i| {
        let own =
            p.ops[i].inputs.iter().position(|x| matches!(x.1, Place::Buffer(_)) && x.1 != upload);
        own.is_some_and(|j| {
            p.ops[i].inputs[j].1 = upload;
            true
        })
    })?;
    refuses("an output where an input is", plan, 100, |p, i| {
        let step = &mut p.ops[i];
        let updated = |x: &Place| step.outputs.iter().any(|y| y.1 == *x);
        let input =
            step.inputs.iter().map(|x| x.1).find(|x| matches!(x, Place::Buffer(_)) && !updated(x));
        let output = step.outputs.iter().position(|y| matches!(y.1, Place::Buffer(_)));
        let (Some(input), Some(output)) = (input, output) else { return false };
        step.outputs[output].1 = input;
        true
    })?;
    refuses("an output over an uploaded input", plan, 100, |p, i| {
        let output = p.ops[i].outputs.iter().position(|y| matches!(y.1, Place::Buffer(_)));
        output.is_some_and(|o| {
            p.ops[i].outputs[o].1 = upload;
            true
        })
    })
}

fn wrong_order(plan: &Plan) -> Result<(), Failed> {
    refuses("a step before what it reads", plan, 50, |p, i| {
        let next = p.ops.get(i + 1).is_some_and(|next| {
            next.inputs.iter().any(|x| {
                matches!(x.1, Place::Buffer(_)) && p.ops[i].outputs.iter().any(|y| y.0 == x.0)
            })
        });
        if next {
            p.ops.swap(i, i + 1);
        }
        next
    })?;
    refuses("a step left out", plan, 100, |p, i| {
        let read = p.ops[i].outputs.iter().any(|y| {
            matches!(y.1, Place::Buffer(_))
                && p.ops.iter().any(|s| s.inputs.iter().any(|x| x.0 == y.0))
        });
        if read {
            p.ops.remove(i);
        }
        read
    })?;
    refuses("an optimiser before the gradients", plan, 30, |p, i| {
        let gradient = p.ops[i]
            .outputs
            .iter()
            .any(|y| matches!(y.1, Place::State(r) if r.group == Group::Grad));
        let last = p.ops.len() - 1;
        if gradient {
            let step = p.ops.remove(i);
            p.ops.insert(last, step);
        }
        gradient
    })
}

fn wrong_states(plan: &Plan) -> Result<(), Failed> {
    refuses("overlapping outputs", plan, 20, |p, i| {
        let states: Vec<usize> = (0..p.ops[i].outputs.len())
            .filter(|&o| matches!(p.ops[i].outputs[o].1, Place::State(_)))
            .collect();
        let [a, b, ..] = states[..] else { return false };
        let Place::State(r) = p.ops[i].outputs[a].1 else { return false };
        // The last element of one is the first of the other.
        p.ops[i].outputs[b].1 = Place::State(Range { offset: r.offset + r.len - 1, ..r });
        true
    })?;
    refuses("gradients that overlap", plan, 30, |p, i| {
        let grad = |s: &aavae::plan::PlannedOp| {
            s.outputs
                .iter()
                .position(|y| matches!(y.1, Place::State(r) if r.group == Group::Grad))
                .map(|o| (o, s.outputs[o].1))
        };
        let Some((o, _)) = grad(&p.ops[i]) else { return false };
        let Some((_, Place::State(other))) = p.ops[..i].iter().rev().find_map(grad) else {
            return false;
        };
        let len = p.ops[i].io.outputs[o].shape.len();
        if other.offset + len > p.layout.size(Group::Grad) {
            return false;
        }
        p.ops[i].outputs[o].1 = Place::State(Range { len, ..other });
        true
    })?;
    refuses("a range beyond its flat buffer", plan, 30, |p, i| {
        let state = p.ops[i]
            .outputs
            .iter_mut()
            .find_map(|y| if let Place::State(r) = &mut y.1 { Some(r) } else { None });
        state.is_some_and(|r| {
            r.offset = usize::MAX / 8;
            true
        })
    })
}

fn wrong_scratch(plan: &Plan) -> Result<(), Failed> {
    refuses("scratch that is an input", plan, 20, |p, i| {
        let step = &mut p.ops[i];
        let input = step
            .inputs
            .iter()
            .find_map(|x| if let Place::Buffer(b) = x.1 { Some(b) } else { None });
        let (Some(input), Some(scratch)) = (input, step.scratch.first_mut()) else { return false };
        *scratch = input;
        true
    })?;
    refuses("scratch that is an output", plan, 20, |p, i| {
        let step = &mut p.ops[i];
        let output = step
            .outputs
            .iter()
            .find_map(|y| if let Place::Buffer(b) = y.1 { Some(b) } else { None });
        let (Some(output), Some(scratch)) = (output, step.scratch.first_mut()) else {
            return false;
        };
        *scratch = output;
        true
    })
}

fn wrong_sizes(plan: &Plan) -> Result<(), Failed> {
    refuses("an empty grid", plan, 100, |p, i| {
        p.ops[i].dispatches.first_mut().is_some_and(|d| {
            d.grid[1] = 0;
            true
        })
    })?;
    for b in 0..plan.buffers.len() {
        let mut small = plan.clone();
        small.buffers[b].bytes = 12;
        let tensor = |p: &Place, bytes: usize| *p == Place::Buffer(b) && bytes > 12;
        let used = small.ops.iter().any(|s| {
            let all = s.inputs.iter().zip(&s.io.inputs).chain(s.outputs.iter().zip(&s.io.outputs));
            all.into_iter().any(|(x, t)| tensor(&x.1, t.bytes()))
        });
        check(!used || refused(&small), || format!("accepted a buffer {b} that is too small"))?;
    }
    Ok(())
}

fn wrong_ends(plan: &Plan) -> Result<(), Failed> {
    let mut unstamped = plan.clone();
    unstamped.ops.pop();
    check(refused(&unstamped), || "accepted a plan that does not say when it is done".into())?;
    let mut early = plan.clone();
    early.ops.rotate_right(1);
    check(refused(&early), || "accepted a plan that says too early that it is done".into())?;
    let mut lost = plan.clone();
    lost.outputs[0].place = lost.outputs[1].place;
    check(refused(&lost), || "accepted an output read from where another is".into())
}

/// Images that stay on the device.
fn wrong_images() -> Result<(), Failed> {
    let set = ImageSet::new(7, 16, 4000).ok_or("a set")?;
    let plan = lower("train", &gather(graph(), &set), Options::default());
    check(!refused(&plan) && plan.images.len() == 2, || "refused images that stay".into())?;
    refuses("an output in place of images that stay", &plan, 100, |p, i| {
        p.ops[i].outputs[0].1 = Place::Images(1);
        true
    })?;
    refuses("images of another part", &plan, 1, |p, i| {
        let part = p.ops[i].inputs.iter().position(|x| x.1 == Place::Images(1));
        part.is_some_and(|j| {
            p.ops[i].inputs[j].1 = Place::Images(0);
            true
        })
    })?;
    refuses("more images than stay", &plan, 1, |p, i| {
        p.images.pop();
        p.ops[i].inputs.iter().any(|x| x.1 == Place::Images(1))
    })
}

pub(crate) fn limits() -> Result<(), Failed> {
    let plan = whole_plan();
    check(verify(&plan, &Limits::WEBGPU).is_ok(), || {
        "baseline WebGPU does not take a small plan".into()
    })?;
    let sizes = plan
        .ops
        .iter()
        .flat_map(|s| s.io.inputs.iter().chain(&s.io.outputs))
        .map(TensorType::bytes);
    let scratch = plan.ops.iter().flat_map(|s| &s.scratch).map(|b| plan.buffers[*b].bytes);
    let largest = sizes.chain(scratch).max().unwrap_or(0);
    let binding = |max_binding| verify(&plan, &Limits { max_binding, ..Limits::NONE });
    check(binding(largest).is_ok(), || "refused a binding of just the limit".into())?;
    let found = binding(largest - 1);
    check(
        matches!(&found, Err(PlanError::TooLarge { bytes, limit, .. }) if *bytes == largest && *limit == largest - 1),
        || format!("{largest} bytes against a limit of one less: {found:?}"),
    )?;
    let mut table = plan.clone();
    table.ops[0].tables.push(vec![0; largest / 4 + 1]);
    let found = verify(&table, &Limits { max_binding: largest, ..Limits::NONE });
    check(matches!(found, Err(PlanError::TooLarge { bytes, .. }) if bytes == largest + 4), || {
        format!("a table: {found:?}")
    })?;
    let most = plan.ops.iter().flat_map(|s| &s.dispatches).flat_map(|d| d.grid).max().unwrap_or(0);
    let grid = |max_groups| verify(&plan, &Limits { max_groups, ..Limits::NONE });
    check(grid(most).is_ok(), || "refused a grid of just the limit".into())?;
    let found = grid(most - 1);
    check(matches!(found, Err(PlanError::Grid { groups, .. }) if groups == most), || {
        format!("{most} workgroups: {found:?}")
    })?;
    let buffers = |d: &aavae::ops::Dispatch| {
        d.bindings.iter().filter(|b| !matches!(b, Binding::Step | Binding::Skip)).count()
    };
    let most = plan.ops.iter().flat_map(|s| &s.dispatches).map(buffers).max().unwrap_or(0);
    let bound =
        |max_storage_buffers| verify(&plan, &Limits { max_storage_buffers, ..Limits::NONE });
    check(bound(most).is_ok(), || "refused just as many bindings as the limit".into())?;
    let found = bound(most - 1);
    check(matches!(found, Err(PlanError::Bindings { bindings, .. }) if bindings == most), || {
        format!("{most} bindings: {found:?}")
    })
}

/// A plan does not say how much scratch a dispatch touches; the op does.
pub(crate) fn scratch_fits() -> Result<(), Failed> {
    let mut count = 0;
    for (name, plan) in reviewed() {
        for step in &plan.ops {
            let lowering = step.op.lower_as(&Io::from(&step.io), &plan.target, step.variant);
            check(lowering.dispatches == step.dispatches, || {
                format!("{name}: {} lowers to something else", step.label)
            })?;
            check(lowering.scratch.len() == step.scratch.len(), || {
                format!("{name}: {} has other scratch", step.label)
            })?;
            for (b, bytes) in step.scratch.iter().zip(&lowering.scratch) {
                check(plan.buffers[*b].bytes >= *bytes, || {
                    format!("{name}: the scratch of {} is too small", step.label)
                })?;
                count += 1;
            }
        }
    }
    check(count > 100, || format!("only {count} scratch buffers"))
}

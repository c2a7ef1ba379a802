//! Updates of the weights, on every device: they stop at the first gradient that is not finite, and
//! are the same where flat buffers are cut to what a device binds.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use aavae::device::{Data, PlanId, Session};
use aavae::ir::{Graph, Group, Layout, Range, autodiff};
use aavae::method::{self, Method, Training, Views};
use aavae::ops::{Dot, Emit, Scale, StepUniforms, Target, WeightedSum};
use aavae::optim::{self, FINITE, Optimizer, Update};
use aavae::plan::{Limits, Options, Place, Plan, PlannedOp, lower, verify};
use aavae::tensor::{Shape, TensorType};
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Device, check, config, fill, on_devices, reset, uniforms};

const OPTIMIZERS: [Optimizer; 4] =
    [Optimizer::Adam, Optimizer::Sgd, Optimizer::Lars, Optimizer::Lamb];
/// What an update may change.
const KEPT: [Group; 3] = [Group::Param, Group::Moment1, Group::Moment2];
/// A vector, which is plain, and a matrix.
const SHAPES: [Shape; 2] = [Shape::vector(100), Shape::rows(5, 28)];

/// `loss = 10 (v . x0 + w . x1)`, whose gradient is `10 x0` and `10 x1`, and its update.
fn linear(rule: Update, scaled: bool) -> Graph {
    let mut g = Graph::with_layout(Layout { scaled, ..Layout::default() });
    let dots = [0, 1].map(|i| {
        let p = g.state(["v", "w"][i], SHAPES[i], Group::Param);
        let x = g.input(&format!("x{i}"), TensorType::f32(SHAPES[i]));
        g.emit1(Dot.into(), &[p, x])
    });
    let sum = g.emit1(WeightedSum { a: 1.0, b: 1.0 }.into(), &dots);
    let loss = g.emit1(Scale { a: 10.0 }.into(), &[sum]);
    g.output("loss", loss);
    autodiff::backward(&mut g, loss);
    rule.emit(&mut g, Group::Grad, loss);
    g
}

fn kept(session: &mut Session) -> Result<Vec<Vec<u32>>, Failed> {
    KEPT.iter()
        .map(|&g| Ok(session.read_state(g)?.into_iter().map(f32::to_bits).collect()))
        .collect()
}

/// One step on `x0` and `x1`, of which element `at` of the latter is `value`; the scalars.
fn step(
    session: &mut Session,
    id: PlanId,
    step: u32,
    at: usize,
    value: f32,
) -> Result<Vec<f32>, Failed> {
    // Buffers begin with NaN, also behind the one element of the loss.
    session.poison(id)?;
    for (i, shape) in SHAPES.iter().enumerate() {
        let mut x: Vec<f32> =
            (0..shape.len()).map(|k| ((k * 7 + 3) % 11) as f32 * 0.1 - 0.4).collect();
        if i == 1 {
            x[at] = value;
        }
        session.upload(id, i, Data::F32(&x))?;
    }
    session.run(id, &uniforms(1, step, 1e-3))?;
    let rows = session.drain(id)?;
    let names = session.plan(id).ring.scalars.clone();
    check(names == ["loss", FINITE] && rows.len() == 1, || format!("{names:?}: {rows:?}"))?;
    Ok(rows[0].1.clone())
}

/// A gradient that overflows while the loss stays finite changes no weight and no moment, in that
/// step and in later ones.
fn overflowing_gradient(device: &Device) -> Result<(), Failed> {
    for optimizer in OPTIMIZERS {
        for at in [0, 77, SHAPES[1].len() - 1] {
            let g = linear(Update { optimizer, weight_decay: 0.1, ..Update::default() }, false);
            let (guard, w) = (g.layout.guard(), g.layout.get("w").ok_or("no w")?.range);
            let mut session = device.open()?;
            session.allocate(&g.layout);
            let id = session.load(session.lower("linear", &g))?;
            session.write_state(Group::Param, 0, &vec![0.5; g.layout.size(Group::Param)])?;
            // Its weight and its gradients are 0, so that it stays 0.
            session.write_state(Group::Param, w.offset + at, &[0.0])?;
            let what = |message: &str| format!("{optimizer:?}, element {at}: {message}");
            let good = step(&mut session, id, 0, at, 0.0)?;
            let first = kept(&mut session)?;
            check(good[0].is_finite() && good[1] == 0.0, || {
                what(&format!("a good step gives {good:?}"))
            })?;
            check(first[0].iter().any(|&x| f32::from_bits(x) != 0.5), || {
                what("a good step changes nothing")
            })?;
            // 10 * 3e38 overflows; the reference computes in f64, so there it takes an infinity,
            // which 0 makes NaN.
            let bad = step(
                &mut session,
                id,
                1,
                at,
                if matches!(device, Device::Reference) { f32::INFINITY } else { 3e38 },
            )?;
            let wide = matches!(device, Device::Reference);
            check(wide || bad[0].is_finite(), || what(&format!("the loss is {}", bad[0])))?;
            check(bad[1].is_nan(), || {
                what(&format!("the flag is {} after a gradient that overflowed", bad[1]))
            })?;
            check(kept(&mut session)? == first, || {
                what("updated by a gradient that is not finite")
            })?;
            let after = step(&mut session, id, 2, at, 0.0)?;
            check(after[0].is_finite() && after[1].is_nan(), || {
                what(&format!("a later step gives {after:?}"))
            })?;
            check(kept(&mut session)? == first, || {
                what("updated after a gradient that is not finite")
            })?;
            session.write_state(guard.group, guard.offset, &[0.0])?;
            let again = step(&mut session, id, 2, at, 0.0)?;
            check(again[1] == 0.0 && kept(&mut session)? != first, || {
                what("stays still although the flag is cleared")
            })?;
            check(again[0].to_bits() == after[0].to_bits(), || {
                what("the weights have moved meanwhile")
            })?;
        }
    }
    Ok(())
}

/// The same for accumulated gradients, wherever the element is, and for their loss.
fn accumulated_gradients(device: &Device) -> Result<(), Failed> {
    let layout = linear(Update::default(), false).layout;
    let len = layout.size(Group::Param);
    let loss = layout.accumulated_loss().offset;
    for optimizer in OPTIMIZERS {
        let g =
            optim::update(&layout, Update { optimizer, weight_decay: 0.0, ..Update::default() });
        let mut session = device.open()?;
        session.allocate(&layout);
        let id = session.load(session.lower("update", &g))?;
        let mut gradients: Vec<f32> = (0..len).map(|i| (i % 5) as f32 - 2.0).collect();
        gradients.resize(layout.size(Group::Accumulated), 0.0);
        session.write_state(Group::Param, 0, &vec![0.5; len])?;
        let before = kept(&mut session)?;
        let mut run = |at: Option<(usize, f32)>| -> Result<(f32, Vec<Vec<u32>>), Failed> {
            let mut x = gradients.clone();
            if let Some((at, value)) = at {
                x[at] = value;
            }
            session.write_state(Group::Accumulated, 0, &x)?;
            session.write_state(layout.guard().group, layout.guard().offset, &[0.0])?;
            session.run(id, &uniforms(1, 0, 1e-3))?;
            Ok((session.drain(id)?[0].1[0], kept(&mut session)?))
        };
        for at in [0, 1, 63, 100, len - 1, loss] {
            for value in [f32::NAN, f32::from_bits(0xffc0_0000), f32::INFINITY, f32::NEG_INFINITY] {
                let (flag, after) = run(Some((at, value)))?;
                check(flag.is_nan() && after == before, || {
                    format!("{optimizer:?}: {value} at element {at} is not noticed")
                })?;
            }
        }
        let (flag, after) = run(Some((1, -f32::MAX)))?;
        check(flag == 0.0 && after != before, || {
            format!("{optimizer:?}: a large gradient counts as infinite")
        })?;
    }
    Ok(())
}

/// A device with a linear graph on it whose loss is scaled, or not.
struct Linear<'a> {
    session: Session,
    id: PlanId,
    layout: Layout,
    what: &'a str,
}

impl<'a> Linear<'a> {
    fn new(device: &Device, rule: Update, scaled: bool, what: &'a str) -> Result<Self, Failed> {
        let g = linear(rule, scaled);
        let mut session = device.open()?;
        session.allocate(&g.layout);
        let id = session.load(session.lower("linear", &g))?;
        Ok(Self { session, id, layout: g.layout, what })
    }
    /// Weights of 0.5 but for one of `w`, which stays 0; the flag is cleared, and the scale set.
    fn reset(&mut self, at: usize, scale: [f32; 3]) -> Result<(), Failed> {
        let (guard, w) = (self.layout.guard(), self.layout.get("w").ok_or("no w")?.range);
        let len = self.layout.size(Group::Param);
        self.session.write_state(Group::Param, 0, &vec![0.5; len])?;
        self.session.write_state(Group::Param, w.offset + at, &[0.0])?;
        for group in [Group::Moment1, Group::Moment2] {
            self.session.write_state(group, 0, &vec![0.0; len])?;
        }
        self.session.write_state(guard.group, guard.offset, &[0.0])?;
        if self.layout.scaled {
            let range = self.layout.loss_scale();
            self.session.write_state(range.group, range.offset, &scale)?;
        }
        Ok(())
    }
    fn step(&mut self, number: u32, at: usize, value: f32) -> Result<Vec<f32>, Failed> {
        step(&mut self.session, self.id, number, at, value)
    }
    fn scale(&mut self) -> Result<Vec<f32>, Failed> {
        let range = self.layout.loss_scale();
        let flat = self.session.read_state(range.group)?;
        Ok(flat[range.offset..range.offset + range.len].to_vec())
    }
    /// Checks what a step made of the flag and the scale, and whether weights or moments moved.
    fn expect(
        &mut self,
        scalars: &[f32],
        before: &[Vec<u32>],
        [fails, moves]: [bool; 2],
        scale: [f32; 3],
    ) -> Result<(), Failed> {
        let (got, moved) = (self.scale()?, kept(&mut self.session)? != before);
        let right = scalars[1].is_nan() == fails && (fails || scalars[1] == 0.0);
        check(right && moved == moves && got == scale, || {
            format!(
                "{}: the step gives {scalars:?}, moves: {moved}, and leaves the scale {got:?}; \
                 expected fails: {fails}, moves: {moves}, {scale:?}",
                self.what
            )
        })
    }
}

/// A scaled loss gives the bits of one that is not; a gradient that overflows halves the scale and
/// changes nothing else, and stops the updates where no scale is left; a loss that is not finite
/// stops them at once, and what has stopped leaves the scale for the step to be run again.
fn scaled_losses(device: &Device) -> Result<(), Failed> {
    const MOST: f32 = optim::loss_scale::MOST;
    for optimizer in OPTIMIZERS {
        let rule = Update { optimizer, weight_decay: 0.1, ..Update::default() };
        let what = format!("{optimizer:?}");
        let mut plain = Linear::new(device, rule, false, &what)?;
        let mut scaled = Linear::new(device, rule, true, &what)?;
        for at in [0, 77, SHAPES[1].len() - 1] {
            plain.reset(at, [0.0; 3])?;
            scaled.reset(at, [65_536.0, 1998.0, 3.0])?;
            for number in 0..3 {
                let losses = [plain.step(number, at, 0.25)?[0], scaled.step(number, at, 0.25)?[0]];
                let [want, got] = [kept(&mut plain.session)?, kept(&mut scaled.session)?];
                check(losses[0].to_bits() == losses[1].to_bits() && want == got, || {
                    format!("{what}: other bits in step {number}")
                })?;
            }
            check(scaled.scale()? == [131_072.0, 1.0, 3.0], || {
                format!("{what}: after 2000 good steps and one {:?}", scaled.scale())
            })?;
            scaled.reset(at, [MOST, 1999.0, 3.0])?;
            let before = kept(&mut scaled.session)?;
            let good = scaled.step(0, at, 0.0)?;
            scaled.expect(&good, &before, [false, true], [MOST, 0.0, 3.0])?;
            if matches!(device, Device::Reference) {
                continue; // whose f64 no scale overflows
            }
            // 10 * 2.4e30 * 2^24 overflows, with half the scale it does not.
            scaled.reset(at, [MOST, 5.0, 3.0])?;
            let before = kept(&mut scaled.session)?;
            let skipped = scaled.step(0, at, 2.4e30)?;
            scaled.expect(&skipped, &before, [false, false], [MOST / 2.0, 0.0, 4.0])?;
            let good = scaled.step(1, at, 2.4e30)?;
            scaled.expect(&good, &before, [false, true], [MOST / 2.0, 1.0, 4.0])?;
            // 10 * 3e38 overflows with any scale.
            scaled.reset(at, [2.0, 5.0, 3.0])?;
            let skipped = scaled.step(0, at, 3e38)?;
            scaled.expect(&skipped, &before, [false, false], [1.0, 0.0, 4.0])?;
            let failed = scaled.step(1, at, 3e38)?;
            scaled.expect(&failed, &before, [true, false], [1.0, 0.0, 4.0])?;
            let after = scaled.step(2, at, 0.0)?;
            scaled.expect(&after, &before, [true, false], [1.0, 0.0, 4.0])?;
            // 0 times an infinity.
            scaled.reset(at, [MOST, 5.0, 3.0])?;
            let failed = scaled.step(0, at, f32::INFINITY)?;
            scaled.expect(&failed, &before, [true, false], [MOST, 5.0, 3.0])?;
        }
    }
    Ok(())
}

/// The same of accumulated gradients: an update skips where an element is not finite, wherever it
/// is, and stops where the mean loss is not.
fn scaled_accumulated_gradients(device: &Device) -> Result<(), Failed> {
    let layout = linear(Update::default(), true).layout;
    let (len, loss) = (layout.size(Group::Param), layout.accumulated_loss().offset);
    let (guard, scale) = (layout.guard(), layout.loss_scale());
    for optimizer in OPTIMIZERS {
        let rule = Update { optimizer, weight_decay: 0.0, ..Update::default() };
        let mut session = device.open()?;
        session.allocate(&layout);
        let id = session.load(session.lower("update", &optim::update(&layout, rule)))?;
        let gradients: Vec<f32> =
            (0..layout.size(Group::Accumulated)).map(|i| (i % 5) as f32 - 2.0).collect();
        session.write_state(Group::Param, 0, &vec![0.5; len])?;
        let before = kept(&mut session)?;
        let mut run = |at: usize, value: f32| -> Result<(f32, bool, Vec<f32>), Failed> {
            let mut x = gradients.clone();
            x[at] = value;
            session.write_state(Group::Accumulated, 0, &x)?;
            session.write_state(guard.group, guard.offset, &[0.0])?;
            session.write_state(scale.group, scale.offset, &[8.0, 5.0, 3.0])?;
            session.run(id, &uniforms(1, 0, 1e-3))?;
            let flag = session.drain(id)?[0].1[0];
            let state = session.read_state(scale.group)?;
            let state = state[scale.offset..scale.offset + scale.len].to_vec();
            Ok((flag, kept(&mut session)? != before, state))
        };
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 63, 100, len - 1] {
                let got = run(at, value)?;
                check(got == (0.0, false, vec![4.0, 0.0, 4.0]), || {
                    format!("{optimizer:?}: {value} at element {at} gives {got:?}")
                })?;
            }
            let (flag, moved, state) = run(loss, value)?;
            check(flag.is_nan() && !moved && state == [8.0, 5.0, 3.0], || {
                format!("{optimizer:?}: a loss of {value} gives {flag}, {moved}, {state:?}")
            })?;
        }
        let got = run(1, -f32::MAX)?;
        check(got == (0.0, true, vec![8.0, 6.0, 3.0]), || {
            format!("{optimizer:?}: a large gradient gives {got:?}")
        })?;
    }
    Ok(())
}

/// The State operands of a plan's steps that exceed `bytes`, though they are more than one tensor.
fn too_large(plan: &Plan, bytes: usize) -> Vec<String> {
    // A single tensor, padding included, a scalar, or the scale of a loss.
    let tensor = |r: Range| {
        plan.layout.states.iter().any(|s| s.range.offset == r.offset && r.len < s.range.len + 64)
    };
    let single = |r: Range| r.len <= 3 || tensor(r);
    let operands = plan
        .ops
        .iter()
        .flat_map(|s| s.inputs.iter().chain(&s.outputs).map(move |x| (&s.label, x.1)));
    let large = operands
        .filter(|(_, place)| matches!(place, Place::State(r) if r.len * 4 > bytes && !single(*r)));
    large.map(|(label, place)| format!("{label} at {place}")).take(3).collect()
}

/// Three steps of a network whose flat buffers are whole, cut to some tensors, and cut to single
/// ones: the same bits, also where gradients are accumulated, some tensors do not decay, and the
/// loss is scaled.
fn cut_updates(device: &Device) -> Result<(), Failed> {
    for (optimizer, weight_decay, accumulate, scaled) in OPTIMIZERS
        .into_iter()
        .flat_map(|o| [(o, 0.1, 1, false), (o, 0.1, 2, false)])
        .chain([(Optimizer::Adam, 0.0, 1, false)])
        .chain([1, 2].map(|accumulate| (Optimizer::Lamb, 0.1, accumulate, true)))
    {
        let rule = Update { optimizer, weight_decay, ..Update::default() };
        let how = Training { views: Views::Given, accumulate, rule, scaled, ..Training::default() };
        let model = method::training(&config(Method::Ae, 16, 2), how);
        let mut session = device.open()?;
        session.allocate(&model.graph.layout);
        let mut want: Option<Vec<Vec<u32>>> = None;
        for (max_binding, least_parts) in [(usize::MAX, 1), (256 << 10, 4), (1, 60)] {
            let what = format!(
                "{optimizer:?}, decay {weight_decay}, {accumulate} batches, scaled: {scaled}, \
                 {max_binding} bytes"
            );
            let options = Options::new(Target { max_binding, ..session.target() });
            let mut plans = vec![lower("train", &model.graph, options)];
            if accumulate > 1 {
                plans.push(lower("update", &optim::update(&model.graph.layout, rule), options));
            }
            let updates = plans
                .iter()
                .flat_map(|p| &p.ops)
                .filter(|s| s.label.starts_with("optimizer"))
                .count();
            check(updates >= least_parts && (max_binding < usize::MAX || updates == 1), || {
                format!("{what}: {updates} parts")
            })?;
            for plan in &plans {
                let large = too_large(plan, max_binding);
                check(large.is_empty(), || format!("{what}: {large:?}"))?;
            }
            let ids =
                plans.into_iter().map(|plan| session.load(plan)).collect::<Result<Vec<_>, _>>()?;
            reset(&mut session, &model, 5)?;
            fill(&mut session, ids[0])?;
            let mut scalars = Vec::new();
            for step in 0..3 {
                for part in 0..accumulate {
                    session.run(
                        ids[0],
                        &StepUniforms { first_sample: 2 * part as u32, ..uniforms(5, step, 1e-2) },
                    )?;
                }
                if accumulate > 1 {
                    session.run(ids[1], &uniforms(5, step, 1e-2))?;
                }
            }
            for &id in &ids {
                scalars
                    .extend(session.drain(id)?.into_iter().flat_map(|row| row.1).map(f32::to_bits));
            }
            let mut got = kept(&mut session)?;
            got.push(scalars);
            match &want {
                None => want = Some(got),
                Some(want) => check(*want == got, || format!("{what}: other bits than uncut"))?,
            }
        }
    }
    Ok(())
}

/// The same of the update alone, from gradients that are given.
fn cut_update_plans(device: &Device) -> Result<(), Failed> {
    let model = method::training(&config(Method::Ae, 16, 2), Training::default());
    let layout = &model.graph.layout;
    for optimizer in OPTIMIZERS {
        let g = optim::update(layout, Update { optimizer, weight_decay: 0.1, ..Update::default() });
        let mut session = device.open()?;
        session.allocate(layout);
        let mut want: Option<Vec<Vec<u32>>> = None;
        for max_binding in [usize::MAX, 256 << 10, 1] {
            let options = Options::new(Target { max_binding, ..session.target() });
            let id = session.load(lower("update", &g, options))?;
            // What stands between tensors is updated too.
            session.write_state(Group::Param, 0, &vec![0.0; layout.size(Group::Param)])?;
            reset(&mut session, &model, 5)?;
            let gradient: Vec<f32> = (0..layout.size(Group::Accumulated))
                .map(|i| ((i * 37 + 11) % 101) as f32 * 0.01 - 0.5)
                .collect();
            session.write_state(Group::Accumulated, 0, &gradient)?;
            for step in 0..2 {
                session.run(id, &uniforms(5, step, 1e-2))?;
            }
            let flags = session.drain(id)?;
            check(flags.iter().all(|f| f.1 == [0.0]), || {
                format!("{optimizer:?}, {max_binding} bytes: {flags:?}")
            })?;
            let got = kept(&mut session)?;
            match &want {
                None => want = Some(got),
                Some(want) => check(*want == got, || {
                    format!("{optimizer:?}, {max_binding} bytes: other bits than uncut")
                })?,
            }
        }
    }
    Ok(())
}

/// A tensor that is read after a part of it, or all, was updated in place is a bug of the planner.
fn stale_reads() -> Result<(), Failed> {
    let g = linear(Update::default(), false);
    for max_binding in [usize::MAX, 1] {
        let options =
            Options { alias: false, ..Options::new(Target { max_binding, ..Target::default() }) };
        let plan = lower("linear", &g, options);
        verify(&plan, &Limits::NONE)?;
        let updates = plan.ops.iter().filter(|s| s.op.name() == "adam").count();
        check(updates == if max_binding == 1 { 2 } else { 1 }, || format!("{updates} updates"))?;
        for name in ["v", "w"] {
            let mut bad = plan.clone();
            let reads = |s: &PlannedOp| {
                s.op.name() == "dot" && s.inputs.iter().any(|x| plan.names[x.0.0 as usize] == name)
            };
            let at = bad.ops.iter().position(reads).ok_or("no step reads it")?;
            // Only its place in the order changes, so no buffer is to blame.
            let late = bad.ops[at].clone();
            bad.ops.insert(bad.ops.len() - 1, PlannedOp { outputs: vec![], ..late });
            let refused = catch_unwind(AssertUnwindSafe(|| verify(&bad, &Limits::NONE)));
            check(refused.is_err(), || {
                format!("`{name}` is read after its update ({max_binding} bytes)")
            })?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let hosts = [Device::Reference, Device::Cpu];
    let trials: Vec<Trial> = [
        on_devices("a gradient that overflows stops the updates", &hosts, overflowing_gradient),
        on_devices("a scaled loss", &hosts, scaled_losses),
        on_devices("a scaled loss of several batches", &hosts, scaled_accumulated_gradients),
        on_devices(
            "an accumulated gradient that is not finite stops the update",
            &hosts,
            accumulated_gradients,
        ),
        vec![Trial::test("cut flat buffers give the same bits/cpu", || cut_updates(&Device::Cpu))],
        on_devices("a cut update gives the same bits", &[Device::Reference], cut_update_plans),
        vec![Trial::test("a read after an update in place is refused", stale_reads)],
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

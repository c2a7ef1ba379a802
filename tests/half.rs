//! Mixed precision: what a plan stores as 16-bit floats, and training steps with them on every
//! device beside the f64 reference, which rounds where they do.

mod support;

use std::process::ExitCode;

use aavae::device::{Host, Session};
use aavae::ir::Group;
use aavae::method::{Method, Training, training};
use aavae::model::Depth;
use aavae::ops::{Op, Target};
use aavae::plan::{Options, Plan, lower};
use aavae::run::{RunError, precision};
use aavae::shader::cuda;
use aavae::tensor::Half;
use libtest_mimic::{Arguments, Failed, Trial};
use support::faulty::Faulty;
use support::{Device, check, on_devices};

/// Steps of a comparison.
const STEPS: u32 = 3;
/// Largest accepted distance of their scalars from the reference's, over their length, in f16; in
/// bf16, whose last place is worth eight times as much, it is eight times that. In f16 it is at
/// most 4e-5, but for SimCLR's, which eight images give: up to 3e-2.
const fn tolerance(method: Method) -> f64 {
    if matches!(method, Method::Simclr) { 0.05 } else { 2e-4 }
}

/// A training step of width 64 and batch 256.
fn plan(depth: Depth, target: Target) -> Plan {
    let mut config = support::config(Method::Aavae, 32, 256);
    (config.net.encoder, config.net.decoder) = (depth, depth);
    (config.net.width, config.net.latent) = (64, 128);
    let target = Target { max_binding: Target::LARGEST_BINDING, ..target };
    lower("train", &training(&config, Training::default()).graph, Options::new(target))
}

fn maps_are_half(half: Half) -> Result<(), Failed> {
    let target = Target { half: Some(half), ..Target::WEBGPU };
    let (plan, full) = (plan(Depth::Resnet18, target), plan(Depth::Resnet18, Target::WEBGPU));
    let dtype = half.dtype();
    let mut halves = 0;
    for op in &plan.ops {
        let [inputs, outputs] = op.op.halves();
        let operands = op.io.inputs.iter().enumerate().map(|x| (&inputs, x));
        let operands = operands.chain(op.io.outputs.iter().enumerate().map(|y| (&outputs, y)));
        for (may, (i, ty)) in operands {
            let map = ty.shape.h * ty.shape.w > 1 && ty.shape.n == 256;
            let half = ty.dtype == dtype;
            check(!half || (map && may.contains(&i)), || format!("{}: {ty}", op.label))?;
            halves += usize::from(half);
        }
        let product =
            matches!(op.op, Op::Conv2d(_) | Op::Conv2dInputGrad(_) | Op::Conv2dWeightGrad(_));
        if product && op.io.inputs[0].shape.h > 1 {
            check(op.io.inputs[0].dtype == dtype, || format!("{} is a full product", op.label))?;
        }
    }
    check(halves > 300, || format!("{halves} operands in {dtype:?}"))?;
    let bytes = |plan: &Plan| plan.ops.iter().map(|op| op.bytes()).sum::<usize>();
    let (less, all) = (bytes(&plan), bytes(&full));
    check(less * 100 < all * 56, || format!("{less} of {all} bytes are moved"))?;
    check(plan.ops.len() == full.ops.len(), || "another number of ops".into())
}

/// Weights are rounded by few dispatches where they are rounded before they are multiplied; those
/// of three convolutions of upsampled maps are written so.
fn few_casts() -> Result<(), Failed> {
    let target = Target { half: Some(Half::F16), ..cuda::target([9, 0]) };
    let plan = plan(Depth::Resnet18, target);
    let casts: Vec<_> = plan.ops.iter().filter(|op| matches!(op.op, Op::Cast(_))).collect();
    let [cast] = casts[..] else { return Err(format!("{} ops cast", casts.len()).into()) };
    let (weights, dispatches) = (cast.inputs.len(), cast.dispatches.len());
    let ok = weights == 40 && dispatches == 5;
    check(ok, || format!("{dispatches} dispatches round {weights} weights"))
}

fn resnet50_takes_less() -> Result<(), Failed> {
    let half = Target { half: Some(Half::F16), ..Target::WEBGPU };
    let [half, full] = [half, Target::WEBGPU].map(|t| plan(Depth::Resnet50, t).peak_bytes());
    let ok = half <= 5_500_000_000 && full >= 9_000_000_000;
    check(ok, || format!("{half} bytes in f16, {full} in f32"))
}

/// Scalars of each step, and the gradients of the first.
fn train(
    mut session: Session,
    method: Method,
    half: Option<Half>,
) -> Result<[Vec<f32>; 2], Failed> {
    session.set_target(Target { half, ..session.target() });
    let model = training(&support::config(method, 16, 8), Training::default());
    session.allocate(&model.graph.layout);
    let id = support::load(&mut session, &model, true)?;
    support::reset(&mut session, &model, 7)?;
    session.poison(id)?;
    support::fill(&mut session, id)?;
    let mut scalars = support::run(&mut session, id, 7, 0..1, 1e-3)?;
    let gradients = session.read_state(Group::Grad)?;
    scalars.extend(support::run(&mut session, id, 7, 1..STEPS, 1e-3)?);
    Ok([scalars.into_iter().flatten().map(f32::from_bits).collect(), gradients])
}

/// `|a - b| / |a|` (L2).
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (apart / a.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

fn steps(device: &Device, method: Method, half: Half) -> Result<(), Failed> {
    let reference = || Session::from(Host::<f64>::new());
    let [want, gradients] = train(reference(), method, Some(half))?;
    let [full, full_gradients] = train(reference(), method, None)?;
    let [got, found] = train(device.open()?, method, Some(half))?;
    // No further from the reference that rounds as the device does than full precision is: near
    // ties round to one side here and to the other there.
    let near = |what: &str, want: &[f32], got: &[f32], full: &[f32]| {
        let (found, most) = (distance(want, got), 2.0 * distance(want, full) + 1e-4);
        check(found <= most, || format!("the {what} are {found:.1e} apart, at most {most:.1e}"))
    };
    near("scalars of the first step", &want[..1], &got[..1], &full[..1])?;
    near("gradients", &gradients, &found, &full_gradients)?;
    // Steps of Adam hang on the signs of small gradients.
    let moved = distance(&want, &got);
    let most = tolerance(method) * half.epsilon() / Half::F16.epsilon();
    check(moved <= most, || format!("the scalars of {STEPS} steps are {moved:.1e} apart"))?;
    let again = train(device.open()?, method, Some(half))?;
    check(again == [got, found], || "another run has other bits".into())
}

/// What a device lacks is refused by its name, with a hint that it can follow. A model is evaluated
/// in the precision that it was trained in where the device has it.
fn what_is_stored() -> Result<(), Failed> {
    const BOTH: &[Half] = Half::ALL;
    for (stores, asked, hint) in [
        (BOTH, Half::F16, None),
        (BOTH, Half::Bf16, None),
        (&[Half::F16], Half::F16, None),
        (&[Half::F16], Half::Bf16, Some("take --precision f16, or --device cuda")),
        (&[Half::Bf16], Half::F16, Some("leave --precision out, or name another device")),
        (&[], Half::F16, Some("leave --precision out, or name another device")),
        (&[], Half::Bf16, Some("leave --precision out, or --device cuda or cpu")),
    ] {
        let about = || format!("{} of {stores:?}", asked.name());
        let mut session = Session::from(Faulty::storing(stores));
        let trained = precision::train(&mut session, Some(asked));
        let half = session.target().half;
        check(half == Some(asked).filter(|_| hint.is_none()), || format!("{}: {half:?}", about()))?;
        let said = trained.as_ref().err().and_then(RunError::hint);
        let right = match (&said, hint) {
            (Some(said), Some(hint)) => said.starts_with(hint),
            (said, hint) => said.is_none() && hint.is_none() && trained.is_ok(),
        };
        check(right, || format!("{}: {trained:?}, {said:?}", about()))?;

        let mut session = Session::from(Faulty::storing(stores));
        let used = precision::evaluate(&mut session, Some(asked));
        let want = Some(asked).filter(|half| stores.contains(half));
        let target = session.target().half;
        check(used == want && target == want, || format!("{}: {used:?} {target:?}", about()))?;
        check(precision::evaluate(&mut session, None).is_none(), || "trained in f32".into())?;
        check(session.target().half.is_none(), || "trained in f32".into())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut trials = vec![
        Trial::test("a precision is one that the device stores", what_is_stored),
        Trial::test("resnet50 takes at most 5.5 GB", resnet50_takes_less),
        Trial::test("five dispatches round the weights of resnet18", few_casts),
    ];
    for &half in Half::ALL {
        let name = format!("maps are {}, and nothing else is", half.name());
        trials.push(Trial::test(name, move || maps_are_half(half)));
        for &method in Method::ALL {
            let name = format!("steps/{}/{}", half.name(), method.name());
            let steps = move |device: &Device| steps(device, method, half);
            match half {
                Half::F16 => trials.extend(on_devices(&name, &[Device::Cpu], steps)),
                // WGSL has no bf16.
                Half::Bf16 => {
                    trials.push(Trial::test(format!("{name}/cpu"), move || steps(&Device::Cpu)));
                }
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

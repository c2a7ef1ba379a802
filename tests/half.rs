//! Mixed precision: what a plan stores as f16, and training steps with it on every device beside
//! the f64 reference, which rounds where they do.

mod support;

use std::process::ExitCode;

use aavae::device::{Host, Session};
use aavae::ir::Group;
use aavae::method::{Method, Training, training};
use aavae::model::Depth;
use aavae::ops::{Op, Target};
use aavae::plan::{Options, Plan, lower};
use aavae::tensor::DType;
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Device, check, on_devices};

/// Steps of a comparison.
const STEPS: u32 = 3;
/// Largest accepted distance of their scalars from the reference's, over their length. It is at
/// most 4e-5, but for SimCLR's, which eight images give: up to 3e-2.
const fn tolerance(method: Method) -> f64 {
    if matches!(method, Method::Simclr) { 0.05 } else { 2e-4 }
}
const HALF: Target = Target { half: true, ..Target::WEBGPU };

/// A training step of width 64 and batch 256.
fn plan(depth: Depth, target: Target) -> Plan {
    let mut config = support::config(Method::Aavae, 32, 256);
    (config.net.encoder, config.net.decoder) = (depth, depth);
    (config.net.width, config.net.latent) = (64, 128);
    let target = Target { max_binding: Target::LARGEST_BINDING, ..target };
    lower("train", &training(&config, Training::default()).graph, Options::new(target))
}

fn maps_are_half() -> Result<(), Failed> {
    let (plan, full) = (plan(Depth::Resnet18, HALF), plan(Depth::Resnet18, Target::WEBGPU));
    let mut halves = 0;
    for op in &plan.ops {
        let [inputs, outputs] = op.op.halves();
        let operands = op.io.inputs.iter().enumerate().map(|x| (&inputs, x));
        let operands = operands.chain(op.io.outputs.iter().enumerate().map(|y| (&outputs, y)));
        for (may, (i, ty)) in operands {
            let map = ty.shape.h * ty.shape.w > 1 && ty.shape.n == 256;
            let half = ty.dtype == DType::F16;
            check(!half || (map && may.contains(&i)), || format!("{}: {ty}", op.label))?;
            halves += usize::from(half);
        }
        let product =
            matches!(op.op, Op::Conv2d(_) | Op::Conv2dInputGrad(_) | Op::Conv2dWeightGrad(_));
        if product && op.io.inputs[0].shape.h > 1 {
            check(op.io.inputs[0].dtype == DType::F16, || {
                format!("{} is a full product", op.label)
            })?;
        }
    }
    check(halves > 300, || format!("{halves} operands in f16"))?;
    let bytes = |plan: &Plan| plan.ops.iter().map(|op| op.bytes()).sum::<usize>();
    let (less, all) = (bytes(&plan), bytes(&full));
    check(less * 100 < all * 56, || format!("{less} of {all} bytes are moved"))?;
    check(plan.ops.len() == full.ops.len(), || "another number of ops".into())
}

fn resnet50_takes_less() -> Result<(), Failed> {
    let [half, full] = [HALF, Target::WEBGPU].map(|t| plan(Depth::Resnet50, t).peak_bytes());
    let ok = half <= 5_500_000_000 && full >= 9_000_000_000;
    check(ok, || format!("{half} bytes in f16, {full} in f32"))
}

/// Scalars of each step, and the gradients of the first.
fn train(mut session: Session, method: Method, half: bool) -> Result<[Vec<f32>; 2], Failed> {
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

fn steps(device: &Device, method: Method) -> Result<(), Failed> {
    let reference = || Session::from(Host::<f64>::new());
    let [want, gradients] = train(reference(), method, true)?;
    let [full, full_gradients] = train(reference(), method, false)?;
    let [got, found] = train(device.open()?, method, true)?;
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
    check(moved <= tolerance(method), || {
        format!("the scalars of {STEPS} steps are {moved:.1e} apart")
    })?;
    let again = train(device.open()?, method, true)?;
    check(again == [got, found], || "another run has other bits".into())
}

fn main() -> ExitCode {
    let mut trials = vec![
        Trial::test("maps are half, and nothing else is", maps_are_half),
        Trial::test("resnet50 takes at most 5.5 GB", resnet50_takes_less),
    ];
    for &method in Method::ALL {
        let name = format!("steps/{}", method.name());
        trials.extend(on_devices(&name, &[Device::Cpu], move |device| steps(device, method)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

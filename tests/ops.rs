//! Every op x case on every device against the f64 reference: outputs poisoned first, run twice (an op writes `=`, so the second
//! run must give the same bits), both GEMM variants, checked and unchecked shaders. One trial per (op, case, device).
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns that into a failure.

mod support;

use std::process::ExitCode;

use aavae::device::wgpu::{Gpu, OpenOptions, adapters};
use aavae::device::{Data, DeviceError, Host, PlanId, Session};
use aavae::ir::{Graph, Group};
use aavae::ops::{Case, Emit, Gemm, Io, StepUniforms, Target, ValueId};
use aavae::plan::{Options, lower};
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Contents, compare, contents};

const STEP: StepUniforms =
    StepUniforms { seed_lo: 1234, seed_hi: 0, step: 5, first_sample: 0, learning_rate: 0.01, bias1: 2.0, bias2: 3.0, reserved: 0.0 };

fn inputs(case: &Case) -> Vec<Contents> {
    let name = format!("{}/{}", case.op.name(), case.name);
    case.inputs.iter().enumerate().map(|(i, (ty, fill))| contents(&name, i, *ty, *fill)).collect()
}

/// The op alone in a graph: inputs updated in place are persistent, the others are uploaded.
fn graph(case: &Case) -> Graph {
    let mut g = Graph::default();
    let in_place = case.op.in_place();
    let ids: Vec<ValueId> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(i, (ty, _))| {
            if in_place.iter().any(|p| p.0 == i) {
                g.state(&format!("x{i}"), ty.shape, Group::Buffer)
            } else {
                g.input(&format!("x{i}"), *ty)
            }
        })
        .collect();
    g.label("trial");
    for (i, y) in g.emit(case.op.clone(), &ids).into_iter().enumerate() {
        g.output(&format!("y{i}"), y);
    }
    g
}

fn feed(session: &mut dyn Session, id: PlanId, g: &Graph, data: &[Contents]) -> Result<(), DeviceError> {
    for (i, data) in data.iter().enumerate() {
        let name = format!("x{i}");
        let input = session.plan(id).input(&name).map(|p| p.0);
        match (input, data) {
            (Some(p), Contents::F(x)) => session.upload(id, p, Data::F32(x))?,
            (Some(p), Contents::U(x)) => session.upload(id, p, Data::U32(x))?,
            (None, Contents::F(x)) => {
                let range = g.layout.get(&name).expect("an input is uploaded or persistent").range;
                session.write_state(range.group, range.offset, x)?;
            }
            (None, Contents::U(_)) => panic!("no op updates integers in place"),
        }
    }
    Ok(())
}

fn expected(case: &Case) -> Vec<Vec<f64>> {
    let g = graph(case);
    let mut host = Host::<f64>::new();
    host.allocate(&g.layout).expect("the reference device has no limits");
    let id = host.load(lower("trial", &g, Options::default())).expect("the reference device has no limits");
    feed(&mut host, id, &g, &inputs(case)).expect("the reference device does not fail");
    host.run(id, &STEP).expect("the reference device does not fail");
    (0..g.outputs.len()).map(|o| host.read_f64(id, o)).collect()
}

fn trial(case: &Case, session: &mut dyn Session, target: Target) -> Result<(), Failed> {
    let want = expected(case);
    let g = graph(case);
    session.allocate(&g.layout)?;
    let id = session.load(lower("trial", &g, Options { target, alias: true }))?;
    let data = inputs(case);
    let terms = case.inputs.iter().map(|i| i.0.shape.len()).sum();
    let mut first: Vec<Vec<f32>> = Vec::new();
    for run in 0..2 {
        if run == 0 {
            session.poison(id)?;
        }
        feed(session, id, &g, &data)?;
        session.run(id, &STEP)?;
        let got = (0..want.len()).map(|o| session.read(id, o)).collect::<Result<Vec<_>, _>>()?;
        for (o, (got, want)) in got.iter().zip(&want).enumerate() {
            compare::close(got, want, terms, case.slack).map_err(|e| format!("output {o}, run {run}: {e}"))?;
        }
        if run == 1 {
            let same = first.iter().flatten().zip(got.iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits());
            if !same {
                return Err("the second run gave other bits: the op adds where it should write, or is not deterministic".into());
            }
        }
        first = got;
    }
    Ok(())
}

fn lowers_differently(case: &Case, a: Target, b: Target) -> bool {
    let inputs: Vec<_> = case.inputs.iter().map(|i| i.0).collect();
    let io = Io { outputs: case.op.outputs(&inputs).expect("a case has legal inputs"), inputs };
    case.op.lower(&io, &a) != case.op.lower(&io, &b)
}

fn gpu_trial(case: &Case, adapter: &str, target: Target) -> Result<(), Failed> {
    let small = case.inputs.iter().all(|i| i.0.shape.len() <= 100_000);
    for checked in if small { vec![false, true] } else { vec![false] } {
        let mut gpu = Gpu::open(Some(adapter), OpenOptions { checked })?;
        trial(case, &mut gpu, target)
            .map_err(|e| format!("{} ({})", e.message().unwrap_or("failed"), if checked { "checked" } else { "unchecked" }))?;
    }
    Ok(())
}

/// The comparator must refuse each of these, or nothing above means anything.
fn canaries() -> Vec<Trial> {
    fn canary(name: &str, spoil: impl Fn(&mut Vec<f32>) + Send + 'static) -> Trial {
        Trial::test(format!("comparator refuses {name}"), move || {
            let want: Vec<f64> = (0..60).map(|i| f64::from((i * 37 % 61) as f32) - 30.0).collect();
            let mut got: Vec<f32> = want.iter().map(|&x| x as f32).collect();
            compare::close(&got, &want, 60, 1.0).map_err(|e| format!("refused the truth: {e}"))?;
            spoil(&mut got);
            if compare::close(&got, &want, 60, 1.0).is_ok() { Err("accepted".into()) } else { Ok(()) }
        })
    }
    vec![
        canary("a NaN", |x| x[7] = f32::NAN),
        canary("an infinity", |x| x[7] = f32::INFINITY),
        canary("an unwritten element", |x| x[59] = 0.0),
        canary("one wrong element", |x| x[31] += 0.01),
        canary("swapped rows", |x| x.rotate_left(10)),
        canary("a transposed copy", |x| *x = (0..60).map(|i| x[i % 10 * 6 + i / 10]).collect()),
        canary("a doubled result", |x| x.iter_mut().for_each(|v| *v *= 2.0)),
    ]
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let found = adapters();
    let require = std::env::var_os("REQUIRE_GPU").is_some();
    let mut trials = canaries();
    for case in aavae::ops::all_cases() {
        let name = format!("{}/{}", case.op.name(), case.name);
        let c = case.clone();
        trials.push(Trial::test(format!("{name}/cpu"), move || trial(&c, &mut Host::<f32>::new(), Target::default())));
        if found.is_empty() {
            let missing = move || Err("no Vulkan, Metal or DX12 adapter".into());
            trials.push(Trial::test(format!("{name}/wgpu (no adapter)"), missing).with_ignored_flag(!require));
        }
        for adapter in &found {
            let tile = Target::default();
            let mut targets = vec![("", tile)];
            if let Some([subgroup, _]) = adapter.subgroup {
                let broadcast = Target { gemm: Gemm::Broadcast { subgroup }, ..tile };
                if lowers_differently(&case, tile, broadcast) {
                    targets = vec![("/tile", tile), ("/broadcast", broadcast)];
                }
            }
            for (variant, target) in targets {
                let (c, a) = (case.clone(), adapter.name.clone());
                trials.push(Trial::test(format!("{name}/{}{variant}", adapter.name), move || gpu_trial(&c, &a, target)));
            }
        }
    }
    libtest_mimic::run(&args, trials).exit_code()
}

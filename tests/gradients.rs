//! Gradients of every differentiable op against central differences in f64: the op stands mid-graph
//! (its inputs are scaled parameters, its output meets a random cotangent), so a gradient that
//! ignores `dy` fails.

use aavae::check::{Filled, contents};
use aavae::device::{Data, Host, PlanId, Session};
use aavae::ir::{Graph, Group, autodiff};
use aavae::ops::{Case, Dot, Emit, Scale, StepUniforms, ValueId};
use aavae::plan::{Options, lower};
use aavae::tensor::DType;

/// Elements of an input that are perturbed.
const PROBES: usize = 40;

fn graph(case: &Case, backward: bool) -> Graph {
    let mut g = Graph::default();
    let differentiable = case.op.differentiable();
    let ids: Vec<ValueId> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(i, (ty, _))| {
            let name = format!("x{i}");
            if differentiable.contains(&i) {
                let x = g.state(&name, ty.shape, Group::Param);
                g.label(name);
                g.emit1(Scale { a: 0.7 }.into(), &[x])
            } else if case.op.in_place().iter().any(|p| p.0 == i) {
                g.state(&name, ty.shape, Group::Buffer)
            } else {
                g.input(&name, *ty)
            }
        })
        .collect();
    g.label("op");
    let y = g.emit(case.op.clone(), &ids)[0];
    let cotangent = g.input("cotangent", g.ty(y));
    g.label("loss");
    let loss = g.emit1(Dot.into(), &[y, cotangent]);
    g.output("loss", loss);
    if backward {
        let grads = autodiff::backward(&mut g, loss);
        assert_eq!(
            grads.len(),
            differentiable.len(),
            "{}: every differentiable input has a gradient",
            case.op.name()
        );
    }
    g
}

fn load(
    case: &Case,
    g: &Graph,
    host: &mut Session,
    data: &[Vec<f64>],
    words: &[Vec<u32>],
) -> PlanId {
    host.allocate(&g.layout);
    let id = host.load(lower("gradient", g, Options::default())).expect("no limits");
    for (i, x) in data.iter().enumerate().take(case.inputs.len()) {
        let name = format!("x{i}");
        match host.plan(id).input(&name).map(|p| (p.0, p.1.ty.dtype)) {
            Some((p, DType::F32)) => {
                host.upload(id, p, Data::F64(x)).expect("the reference device does not fail")
            }
            Some((_, DType::F16 | DType::BF16)) => {
                unreachable!("gradients are checked in full precision")
            }
            Some((p, DType::U32)) => host
                .upload(id, p, Data::U32(&words[i]))
                .expect("the reference device does not fail"),
            None => {
                let range = g.layout.get(&name).expect("persistent").range;
                host.write_state_of(range.group, range.offset, Data::F64(x))
                    .expect("the reference device does not fail");
            }
        }
    }
    let (p, _) = host.plan(id).input("cotangent").expect("every graph has a cotangent");
    host.upload(id, p, Data::F64(&data[case.inputs.len()]))
        .expect("the reference device does not fail");
    id
}

fn check(case: &Case) {
    let step = StepUniforms { seed_lo: 1234, step: 5, ..StepUniforms::default() };
    let name = format!("{}/{}", case.op.name(), case.name);
    let g = graph(case, true);
    let mut data = Vec::new();
    let mut words = Vec::new();
    for (i, (ty, fill)) in case.inputs.iter().enumerate() {
        match contents(&name, i, *ty, *fill) {
            Filled::F(x) => {
                data.push(x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
                words.push(vec![]);
            }
            Filled::U(x) => {
                data.push(vec![]);
                words.push(x);
            }
        }
    }
    let inputs: Vec<_> = case.inputs.iter().map(|i| i.0).collect();
    let y = case.op.outputs(&inputs).expect("a case has legal inputs")[0];
    let Filled::F(cotangent) = contents(&name, 99, y, aavae::ops::Fill::Normal) else {
        unreachable!("normal draws are floats")
    };
    data.push(cotangent.iter().map(|v| f64::from(*v)).collect());

    let mut host = Session::from(Host::<f64>::new());
    let id = load(case, &g, &mut host, &data, &words);
    host.run(id, &step).expect("the reference device does not fail");
    let analytic = host.read_state(Group::Grad).expect("the reference device does not fail");

    let forward = graph(case, false);
    for &i in case.op.differentiable() {
        let range = g.layout.get(&format!("x{i}")).expect("a parameter").range;
        let stride = range.len.div_ceil(PROBES);
        let mut largest = 0.0f64;
        let mut worst = (0.0f64, 0, 0.0, 0.0);
        for e in (0..range.len).step_by(stride) {
            let mut losses = [0.0; 2];
            let h = 1e-5 * data[i][e].abs().max(0.1);
            for (loss, sign) in losses.iter_mut().zip([1.0, -1.0]) {
                let mut moved = data.clone();
                moved[i][e] += sign * h;
                let mut host = Session::from(Host::<f64>::new());
                let id = load(case, &forward, &mut host, &moved, &words);
                host.run(id, &step).expect("the reference device does not fail");
                *loss = host.read_f64(id, 0).expect("the reference device does not fail")[0];
            }
            let numeric = (losses[0] - losses[1]) / (2.0 * h);
            let got = f64::from(analytic[range.offset + e]);
            largest = largest.max(numeric.abs());
            let error = (got - numeric).abs();
            assert!(error.is_finite(), "{name}: the gradient of input {i}, element {e} is {got}");
            if error > worst.0 {
                worst = (error, e, got, numeric);
            }
        }
        // 1e-5: f32 rounding of the gradient read back, plus the h^2 term of the difference.
        assert!(
            worst.0 <= 1e-5 * largest.max(1e-3),
            "{name}: input {i}, element {}: gradient {:e}, central difference {:e}",
            worst.1,
            worst.2,
            worst.3
        );
        assert!(largest > 0.0, "{name}: input {i} has no influence, so nothing was checked");
    }
}

#[test]
fn every_differentiable_op_matches_central_differences() {
    let cases = aavae::ops::all_cases();
    let mut checked = std::collections::BTreeSet::new();
    for case in cases.iter().filter(|c| c.gradient && !c.op.differentiable().is_empty()) {
        check(case);
        checked.insert(case.op.name());
    }
    let all: std::collections::BTreeSet<_> =
        cases.iter().filter(|c| !c.op.differentiable().is_empty()).map(|c| c.op.name()).collect();
    assert_eq!(checked, all, "every differentiable op needs a small case without kinks");
}

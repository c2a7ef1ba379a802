//! What the trials of `tests/ops.rs` leave out, on every device: where NaN and infinities come out
//! of an op (the comparator of the trials refuses them), and grids that fold because a device takes
//! few workgroups along an axis.
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure.

mod support;

use std::process::ExitCode;

use aavae::check::{Filled, STEP, contents, graph, io, trial, variants};
use aavae::device::{Data, Session};
use aavae::ops::{
    AllFinite, BatchNorm, BatchNormEval, BatchNormGrad, Case, Conv2d, Conv2dInputGrad, Epilogue,
    Fill, L2Normalize, MaxPool2d, MaxPool2dGrad, Op, Relu, ReluGrad, Target, all_cases,
};
use aavae::plan::{Options, lower};
use aavae::tensor::{Shape, TensorType};
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Device, check, on_devices};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;
/// The NaN that x86 makes of 0 / 0 has its sign bit set: bit tests must not take it for a negative
/// number.
const NEGATIVE_NAN: f32 = f32::from_bits(0xffc0_0000);

/// An input: its shape, and standard normal values but for some elements.
struct Input {
    shape: Shape,
    special: Vec<(usize, f32)>,
}

fn input(shape: Shape, special: &[(usize, f32)]) -> Input {
    Input { shape, special: special.to_vec() }
}

impl Input {
    fn values(&self, position: usize) -> Vec<f32> {
        let Filled::F(mut x) =
            contents("kernels", position, TensorType::f32(self.shape), Fill::Normal)
        else {
            unreachable!("normal values are floats")
        };
        for &(i, value) in &self.special {
            x[i] = value;
        }
        x
    }
}

/// What the kernels of a device are lowered for: its own kind, and as if it were a GPU.
fn targets(device: &Device, session: &Session) -> Vec<Target> {
    let own = session.target();
    if matches!(device, Device::Wgpu(..)) && own.software {
        return vec![own, Target { software: false, ..own }];
    }
    vec![own]
}

/// The outputs of an op, for each target of the device.
fn outputs(device: &Device, op: &Op, inputs: &[Input]) -> Result<Vec<Vec<Vec<f32>>>, Failed> {
    let types: Vec<_> = inputs.iter().map(|i| (i.shape, Fill::Normal)).collect();
    let g = graph(&Case::new("kernels", op.clone(), &types));
    let mut all = Vec::new();
    let mut session = device.open()?;
    for target in targets(device, &session) {
        session.reset();
        session.allocate(&g.layout);
        let id = session.load(lower("kernels", &g, Options::new(target)))?;
        session.poison(id)?;
        for (i, input) in inputs.iter().enumerate() {
            let name = format!("x{i}");
            let values = input.values(i);
            match session.plan(id).input(&name).map(|p| p.0) {
                Some(port) => session.upload(id, port, Data::F32(&values))?,
                None => {
                    let range = g
                        .layout
                        .get(&name)
                        .ok_or("an input is neither uploaded nor persistent")?
                        .range;
                    session.write_state(range.group, range.offset, &values)?;
                }
            }
        }
        session.run(id, &STEP)?;
        all.push((0..g.outputs.len()).map(|o| session.read(id, o)).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(all)
}

/// Checks that NaN stands at the elements of an output that `want` names, and nowhere else.
fn nans(what: &str, got: &[f32], want: impl Fn(usize) -> bool) -> Result<(), Failed> {
    let wrong: Vec<_> = (0..got.len())
        .filter(|&i| got[i].is_nan() != want(i))
        .take(5)
        .map(|i| (i, got[i], want(i)))
        .collect();
    check(wrong.is_empty(), || format!("{what}: (element, value, whether NaN is due): {wrong:?}"))
}

fn relu(device: &Device) -> Result<(), Failed> {
    let shape = Shape::new(3, 11, 7, 4);
    let x = [input(
        shape,
        &[(0, NAN), (17, NEGATIVE_NAN), (18, INF), (19, -INF), (20, -0.0), (923, NAN)],
    )];
    for out in outputs(device, &Relu.into(), &x)? {
        nans("y", &out[0], |i| [0, 17, 923].contains(&i))?;
        check(out[0][18] == INF && out[0][19] == 0.0 && out[0][20] == 0.0, || {
            format!("{:?}", &out[0][18..21])
        })?;
    }
    let inputs = [
        input(shape, &[(1, NAN), (2, NAN), (3, 7.0), (4, 8.0)]),
        input(shape, &[(1, 1.0), (2, -1.0), (3, NAN), (4, NEGATIVE_NAN)]),
    ];
    for out in outputs(device, &ReluGrad.into(), &inputs)? {
        nans("dx", &out[0], |i| i == 1)?;
        check(out[0][2..5] == [0.0, 7.0, 8.0], || {
            format!("a NaN in y lets dy pass: {:?}", &out[0][2..5])
        })?;
    }
    Ok(())
}

/// Every epilogue of a 3x3 convolution, some of a 1x1, with a NaN in one operand at a time.
fn epilogues(device: &Device) -> Result<(), Failed> {
    // Twenty output channels fill more than half a vector of the processor, so that it folds no
    // neighbouring pixels into one.
    let (x, y, at) =
        (Shape::new(2, 5, 6, 8), Shape::new(2, 5, 6, 20), Shape::new(2, 5, 6, 20).at(1, 2, 3, 7));
    for (kernel, pad) in [(3, 1), (1, 0)] {
        let w = Shape::new(20, kernel, kernel, 8);
        for bits in (0..16).filter(|b| kernel == 3 || [0, 4, 15].contains(b)) {
            let epilogue = Epilogue {
                bias: bits & 1 > 0,
                add: bits & 2 > 0,
                relu: bits & 4 > 0,
                mask: bits & 8 > 0,
                ..Epilogue::default()
            };
            let operands = 2 + epilogue.inputs();
            for spoiled in 0..operands {
                let place = |i: usize, at: usize| {
                    if i == spoiled { vec![(at, NEGATIVE_NAN)] } else { vec![] }
                };
                let mut inputs = vec![
                    input(x, &place(0, x.at(1, 2, 3, 5))),
                    input(w, &place(1, w.at(7, 0, 0, 5))),
                ];
                if epilogue.bias {
                    inputs.push(input(Shape::vector(20), &place(inputs.len(), 7)));
                }
                if epilogue.add {
                    inputs.push(input(y, &place(inputs.len(), at)));
                }
                let mask = epilogue.mask.then(|| {
                    // One NaN of another operand meets a mask of 0.
                    let special = if spoiled == inputs.len() {
                        vec![(at, NEGATIVE_NAN)]
                    } else {
                        vec![(at, 0.0)]
                    };
                    inputs.push(input(y, &special));
                    inputs[inputs.len() - 1].values(inputs.len() - 1)
                });
                let closed = |i: usize| mask.as_ref().is_some_and(|m| m[i] <= 0.0);
                let window = |i: usize| {
                    let (n, row, column) = (i / (20 * 30), i / (20 * 6) % 5, i / 20 % 6);
                    n == 1 && row.abs_diff(2) <= pad && column.abs_diff(3) <= pad
                };
                // Tap (0, 0) of the kernel reads outside in the first row and column, where PyTorch
                // multiplies it with nothing.
                let read = |i: usize| {
                    let (row, column) = (i / (20 * 6) % 5, i / 20 % 6);
                    pad == 0 || (row > 0 && column > 0)
                };
                let due = |i: usize| match spoiled {
                    0 => window(i),
                    1 => i % 20 == 7 && read(i),
                    2 if epilogue.bias => i % 20 == 7,
                    s => i == at && !(epilogue.mask && s + 1 == operands),
                };
                let op = Op::from(Conv2d { stride: 1, pad, epilogue });
                for out in outputs(device, &op, &inputs)? {
                    let what = format!("k{kernel} {epilogue:?}, NaN in operand {spoiled}");
                    // Outside the image a kernel may multiply its zeros with a weight that is NaN:
                    // that is allowed to show.
                    let got = &out[0];
                    if spoiled == 1 {
                        let missing =
                            (0..got.len()).find(|&i| due(i) && !closed(i) && !got[i].is_nan());
                        check(missing.is_none(), || {
                            format!("{what}: element {missing:?} is not NaN")
                        })?;
                        nans(&what, got, |i| i % 20 == 7 && got[i].is_nan() && !closed(i))?;
                    } else {
                        nans(&what, got, |i| due(i) && !closed(i))?;
                    }
                    let passes = epilogue.mask && spoiled + 1 == operands && !epilogue.relu;
                    check(!passes || got[at] != 0.0, || {
                        format!("{what}: a NaN in the mask hides the sum")
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// The tail of the input gradient, which has kernels' paths of its own, with strides.
fn input_gradients(device: &Device) -> Result<(), Failed> {
    let epilogue = Epilogue { add: true, mask: true, ..Epilogue::default() };
    for stride in [1, 2] {
        let (x, w) = (Shape::new(2, 6, 8, 20), Shape::new(8, 3, 3, 20));
        let dy = Shape::new(2, 6usize.div_ceil(stride), 8usize.div_ceil(stride), 8);
        let op = Op::from(Conv2dInputGrad { stride, pad: 1, h: 6, w: 8, epilogue });
        let inputs = [
            input(dy, &[]),
            input(w, &[]),
            input(x, &[(33, NAN), (34, NAN), (35, 1.0)]),
            input(x, &[(33, 1.0), (34, -1.0), (35, NAN)]),
        ];
        for out in outputs(device, &op, &inputs)? {
            nans(&format!("stride {stride}"), &out[0], |i| i == 33)?;
            check(out[0][34] == 0.0 && out[0][35] != 0.0, || {
                format!("stride {stride}: {:?}", &out[0][33..36])
            })?;
        }
    }
    Ok(())
}

/// A NaN, or an infinity, makes its channel NaN and no other; what is added afterwards stays where
/// it is.
fn batch_norms(device: &Device) -> Result<(), Failed> {
    for rows in [35, 300] {
        let (x, v) = (Shape::rows(rows, 12), Shape::vector(12));
        for (add, relu) in [(false, false), (false, true), (true, false), (true, true)] {
            for (first, value) in [(0, NEGATIVE_NAN), (rows / 2, NAN), (rows - 1, INF), (0, -INF)] {
                let mut inputs = vec![
                    input(x, &[(first * 12 + 5, value)]),
                    input(v, &[]),
                    input(v, &[]),
                    input(v, &[]),
                    input(v, &[]),
                ];
                if add {
                    inputs.push(input(x, &[(12 + 3, NEGATIVE_NAN)]));
                }
                let op = Op::from(BatchNorm { eps: 1e-5, momentum: 0.1, add, relu, parts: None });
                let what = format!("{rows} rows, {value} in row {first}, add {add}, relu {relu}");
                for out in outputs(device, &op, &inputs)? {
                    nans(&format!("{what}: y"), &out[0], |i| i % 12 == 5 || add && i == 12 + 3)?;
                    for (name, stats) in
                        ["rstd", "running variance"].into_iter().zip([&out[2], &out[4]])
                    {
                        nans(&format!("{what}: {name}"), stats, |i| i == 5)?;
                    }
                    for stats in [&out[1], &out[3]] {
                        check(!stats[5].is_finite(), || {
                            format!("{what}: the mean is {}", stats[5])
                        })?;
                        check(stats.iter().filter(|s| !s.is_finite()).count() == 1, || {
                            format!("{what}: {stats:?}")
                        })?;
                    }
                }
                // In evaluation the statistics are given: y is NaN where x is, and in the channel
                // of a negative variance.
                inputs[4].special = (0..12).map(|i| (i, if i == 7 { -1.0 } else { 1.0 })).collect();
                let op = Op::from(BatchNormEval { eps: 1e-5, add, relu });
                for out in outputs(device, &op, &inputs)? {
                    let here = |i: usize| value.is_nan() && i == first * 12 + 5;
                    nans(&format!("{what}: y in evaluation"), &out[0], |i| {
                        here(i) || i % 12 == 7 || add && i == 12 + 3
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// A NaN in y lets dy pass, and one in dy counts only where y is not masked.
fn batch_norm_gradients(device: &Device) -> Result<(), Failed> {
    let (x, v) = (Shape::rows(50, 8), Shape::vector(8));
    for (frozen, spread) in [(None, 1.0), (Some(1e-5), 1.0)] {
        let op = Op::from(BatchNormGrad { relu: true, frozen, parts: false });
        let spread: Vec<_> = (0..8).map(|i| (i, spread)).collect();
        let inputs = [
            input(x, &[(8 + 1, NAN), (8 + 2, NAN), (8 + 3, 100.0), (8 + 4, 100.0)]),
            input(x, &[]),
            input(v, &(0..8).map(|i| (i, 1.0)).collect::<Vec<_>>()),
            input(v, &[]),
            input(v, &spread),
            input(x, &[(8 + 1, 1.0), (8 + 2, -1.0), (8 + 3, NEGATIVE_NAN), (8 + 4, -1.0)]),
        ];
        for out in outputs(device, &op, &inputs)? {
            // Through the statistics one NaN reaches its channel; with constant ones it stays.
            nans("dx", &out[0], |i| if frozen.is_some() { i == 9 } else { i % 8 == 1 })?;
            nans("dgamma", &out[1], |i| i == 1)?;
            nans("dbeta", &out[2], |i| i == 1)?;
            check(out[2][3] > 50.0 && out[2][4] < 50.0, || {
                format!("dbeta {:?}: dy of 100 passes a NaN in y, not a negative y", out[2])
            })?;
        }
    }
    Ok(())
}

/// A window with a NaN is NaN, whatever is before and after it, and its gradient goes to that
/// pixel.
fn pools(device: &Device) -> Result<(), Failed> {
    let (x, y) = (Shape::new(2, 7, 6, 8), Shape::new(2, 4, 3, 8));
    for (row, column) in [(0, 0), (2, 2), (3, 3), (4, 5), (6, 1)] {
        let at = x.at(1, row, column, 3);
        let inputs = [input(x, &[(at, NEGATIVE_NAN)])];
        let due = |i: usize| {
            let (n, p, q, c) = (i / (8 * 12), i / 24 % 4, i / 8 % 3, i % 8);
            n == 1 && c == 3 && (2 * p).abs_diff(row) <= 1 && (2 * q).abs_diff(column) <= 1
        };
        for out in outputs(device, &MaxPool2d.into(), &inputs)? {
            nans(&format!("y, NaN in row {row}, column {column}"), &out[0], due)?;
            // The gradient, from this very y.
            let special: Vec<_> = out[0].iter().copied().enumerate().collect();
            let ones: Vec<_> = (0..y.len()).map(|i| (i, 1.0)).collect();
            let same: Vec<_> = inputs[0].values(0).into_iter().enumerate().collect();
            let inputs = [input(y, &ones), input(x, &same), input(y, &special)];
            let windows = (0..y.len()).filter(|&i| due(i)).count() as f32;
            for out in outputs(device, &MaxPool2dGrad.into(), &inputs[..])? {
                check(out[0][at] == windows, || {
                    format!(
                        "dx of the NaN in row {row}, column {column} is {}, not {windows}",
                        out[0][at]
                    )
                })?;
                let sum: f32 = out[0].iter().sum();
                check(sum == y.len() as f32, || {
                    format!("gradients of {sum} windows of {} arrive", y.len())
                })?;
            }
        }
    }
    Ok(())
}

/// A row of NaN length is NaN.
fn normalized_rows(device: &Device) -> Result<(), Failed> {
    let x = Shape::rows(5, 12);
    for out in outputs(
        device,
        &L2Normalize { rows: 8 }.into(),
        &[input(x, &[(3 * 12 + 4, NEGATIVE_NAN)])],
    )? {
        nans("y", &out[0], |i| i / 12 == 3)?;
    }
    Ok(())
}

/// The flag is NaN from the first element on that is not finite, wherever it is, and 0 before.
fn finite_flags(device: &Device) -> Result<(), Failed> {
    let lens = [1, 7, 5000, 300_007];
    let op = Op::from(AllFinite);
    for (k, &len) in lens.iter().enumerate() {
        for at in [0, len / 2, len - 1] {
            for value in [NAN, NEGATIVE_NAN, INF, -INF] {
                let place = |i: usize| if i == k { vec![(at, value)] } else { vec![] };
                let mut inputs = vec![input(Shape::SCALAR, &[(0, 0.0)])];
                inputs.extend(
                    lens.iter().enumerate().map(|(i, &len)| input(Shape::vector(len), &place(i))),
                );
                for out in outputs(device, &op, &inputs)? {
                    check(out[0][0].is_nan(), || {
                        format!("{value} at element {at} of {len} gives {}", out[0][0])
                    })?;
                }
            }
        }
    }
    for (flag, due) in [(0.0, false), (1.0, false), (NAN, true), (-INF, true)] {
        let x = Shape::vector(5000);
        for out in outputs(
            device,
            &op,
            &[input(Shape::SCALAR, &[(0, flag)]), input(x, &[(7, f32::MAX), (8, -1e-45)])],
        )? {
            check(out[0][0].is_nan() == due && (due || out[0][0] == 0.0), || {
                format!("a flag of {flag} becomes {}", out[0][0])
            })?;
        }
    }
    Ok(())
}

/// Ops whose grid folds because the device takes three workgroups along an axis: those whose trials
/// are too small for that.
fn folded_grids(device: &Device) -> Result<(), Failed> {
    let names = [
        "n5h16w16c16 k3s1p1 o16",
        "n3h11w11c8 k3s2p1 o12",
        "linear n300 c128 o64",
        "more than one dispatch",
    ];
    let ops = |name: &str| name.starts_with("conv2d") || name == "cast";
    let cases = all_cases().into_iter().filter(|c| ops(c.op.name()) && names.contains(&&*c.name));
    let mut folded = 0;
    for case in cases {
        let mut session = device.open()?;
        let most = session.target();
        let few = Target { max_groups: 3, ..most };
        session.set_target(few);
        let offered = variants(&case, &few);
        for variant in [offered[0], offered[offered.len() - 1]] {
            let lowered = |target| case.op.lower_as(&io(&case), target, variant);
            folded += usize::from(lowered(&most) != lowered(&few));
            trial(&case, &mut session, variant)
                .map_err(|e| format!("{} {}: {e}", case.op.name(), case.name))?;
        }
    }
    check(folded >= 11, || format!("only {folded} lowerings fold"))
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let hosts = [Device::Reference, Device::Cpu];
    let trials: Vec<Trial> = [
        on_devices("NaN in relu", &hosts, relu),
        on_devices("NaN in the epilogue of a convolution", &hosts, epilogues),
        on_devices("NaN in the epilogue of an input gradient", &hosts, input_gradients),
        on_devices("NaN in batch norm", &hosts, batch_norms),
        on_devices("NaN in the gradient of batch norm", &hosts, batch_norm_gradients),
        on_devices("NaN in max pooling", &hosts, pools),
        on_devices("NaN in normalised rows", &hosts, normalized_rows),
        on_devices("flags of what is not finite", &hosts, finite_flags),
        on_devices("folded grids", &[], folded_grids),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

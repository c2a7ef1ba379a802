//! Every op x case on every device against the f64 reference (`aavae::check`): every variant,
//! checked and unchecked shaders. One trial per (op, case, device).
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure. So do, either way, trials in f16 on an adapter that does not store it.

use std::process::ExitCode;

use aavae::check::{close, name, trial, variants};
use aavae::device::wgpu::{Gpu, OpenOptions, adapters};
use aavae::device::{Device, Host, Pick, Session};
use aavae::ops::{Case, Target, Variant};
use aavae::tensor::DType;
use libtest_mimic::{Arguments, Failed, Trial};

fn gpu_trial(case: &Case, adapter: &Pick, variant: Variant) -> Result<(), Failed> {
    let small = case.inputs.iter().all(|i| i.0.shape.len() <= 100_000);
    for checked in if small { vec![false, true] } else { vec![false] } {
        let mut session =
            Session::from(Gpu::pick(adapter, OpenOptions { checked, ..OpenOptions::default() })?);
        trial(case, &mut session, variant)
            .map_err(|e| format!("{e} ({})", if checked { "checked" } else { "unchecked" }))?;
    }
    Ok(())
}

/// The comparator must refuse each of these, or nothing above means anything.
fn canaries() -> Vec<Trial> {
    // What is stored as f16 may be off by one unit of 11 bits, and by no more.
    let halves = Trial::test("comparator refuses two units of f16", || {
        let want: Vec<f64> = (0..60).map(|i| 1.0 + f64::from(i as u8) / 64.0).collect();
        let off = |units: f64| want.iter().map(|x| (x + units / 1024.0) as f32).collect::<Vec<_>>();
        let close = |units| close(&off(units), &want, 60, 1.0, DType::F16);
        close(0.99).map_err(|e| format!("refused a unit: {e}"))?;
        if close(2.01).is_ok() { Err("accepted".into()) } else { Ok(()) }
    });
    fn canary(name: &str, spoil: impl Fn(&mut Vec<f32>) + Send + 'static) -> Trial {
        Trial::test(format!("comparator refuses {name}"), move || {
            let want: Vec<f64> = (0..60).map(|i| f64::from((i * 37 % 61) as f32) - 30.0).collect();
            let mut got: Vec<f32> = want.iter().map(|&x| x as f32).collect();
            close(&got, &want, 60, 1.0, DType::F32)
                .map_err(|e| format!("refused the truth: {e}"))?;
            spoil(&mut got);
            if close(&got, &want, 60, 1.0, DType::F32).is_ok() {
                Err("accepted".into())
            } else {
                Ok(())
            }
        })
    }
    vec![
        halves,
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
    let open = |i: usize| {
        Gpu::pick(&Pick::Index(i), OpenOptions::default()).map(|gpu| gpu.capabilities().clone())
    };
    let can = |i: usize| open(i).unwrap_or_else(|e| panic!("{e}"));
    let found: Vec<_> = adapters().into_iter().enumerate().map(|(i, a)| (a.name, can(i))).collect();
    let require = std::env::var_os("REQUIRE_GPU").is_some();
    let mut trials = canaries();
    for case in aavae::ops::all_cases() {
        let name = name(&case);
        let c = case.clone();
        trials.push(Trial::test(format!("{name}/cpu"), move || {
            let portable = variants(&c, &Target::default())[0];
            trial(&c, &mut Session::from(Host::<f32>::new()), portable)?;
            Ok(())
        }));
        if found.is_empty() {
            let missing = move || Err("no Vulkan, Metal or DX12 adapter".into());
            trials.push(
                Trial::test(format!("{name}/wgpu (no adapter)"), missing)
                    .with_ignored_flag(!require),
            );
        }
        for (index, (adapter, can)) in found.iter().enumerate() {
            for variant in variants(&case, &can.target) {
                let (c, a) = (case.clone(), Pick::Index(index));
                let suffix =
                    if variant == Variant::Only { String::new() } else { format!("/{variant}") };
                let trial = Trial::test(format!("{name}/{adapter}{suffix}"), move || {
                    gpu_trial(&c, &a, variant)
                });
                trials.push(trial.with_ignored_flag(case.half && !can.f16));
            }
        }
    }
    libtest_mimic::run(&args, trials).exit_code()
}

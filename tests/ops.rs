//! Every op x case on every device against the f64 reference (`aavae::check`): every variant,
//! checked and unchecked shaders. One trial per (op, case, device).
//!
//! Without a Vulkan, Metal or DX12 adapter the wgpu trials show as *ignored*; `REQUIRE_GPU=1` turns
//! that into a failure. So do, either way, trials in f16 on an adapter that does not store it.
//! WGSL has no bf16: its trials are those of `cpu`, and of `cuda-emulated` (`tests/cuda.rs`).

use std::process::ExitCode;

use aavae::check::{Reference, close, name, trial, variants};
use aavae::device::wgpu::{Gpu, OpenOptions, adapters};
use aavae::device::{Device, Host, Pick, Session};
use aavae::ops::{Case, Target, Variant};
use aavae::tensor::{DType, Half};
use libtest_mimic::{Arguments, Failed, Trial};

fn gpu_trial(case: &Case, adapter: &Pick, variant: Variant) -> Result<(), Failed> {
    let small = case.inputs.iter().all(|i| i.0.shape.len() <= 100_000);
    let reference = Reference::of(case)?;
    for checked in if small { vec![false, true] } else { vec![false] } {
        let mut session =
            Session::from(Gpu::pick(adapter, OpenOptions { checked, ..OpenOptions::default() })?);
        reference
            .trial(&mut session, variant)
            .map_err(|e| format!("{e} ({})", if checked { "checked" } else { "unchecked" }))?;
    }
    Ok(())
}

/// The comparator must refuse each of these, or nothing above means anything.
fn canaries() -> Vec<Trial> {
    // What is stored as f16 may be off by one unit of 11 bits, as bf16 of 8, and by no more.
    let [f16, bf16] = [(Half::F16, 1024.0), (Half::Bf16, 128.0)].map(|(half, unit)| {
        Trial::test(format!("comparator refuses two units of {}", half.name()), move || {
            let want: Vec<f64> = (0..60).map(|i| 1.0 + f64::from(i as u8) / 64.0).collect();
            let off = |units: f64| want.iter().map(move |x| (x + units / unit) as f32);
            let close =
                |units| close(&off(units).collect::<Vec<_>>(), &want, 60, 1.0, half.dtype());
            close(0.99).map_err(|e| format!("refused a unit: {e}"))?;
            if close(2.01).is_ok() { Err("accepted".into()) } else { Ok(()) }
        })
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
        f16,
        bf16,
        canary("a NaN", |x| x[7] = f32::NAN),
        canary("an infinity", |x| x[7] = f32::INFINITY),
        canary("an unwritten element", |x| x[59] = 0.0),
        canary("one wrong element", |x| x[31] += 0.01),
        canary("swapped rows", |x| x.rotate_left(10)),
        canary("a transposed copy", |x| *x = (0..60).map(|i| x[i % 10 * 6 + i / 10]).collect()),
        canary("a doubled result", |x| x.iter_mut().for_each(|v| *v *= 2.0)),
    ]
}

/// A fault of a kernel's text.
type Fault = fn(String) -> String;

/// Faults that no trial may miss, and a case that shows each: of a result's moments, of what a
/// batch norm's gradient sums, and of images that are gathered.
const FAULTS: [(&str, &str, Fault); 12] = [
    ("a row of invocations is left out", "moments n5h16w16c16 k3s1p1 o16, bias", |t| {
        t.replace("var t = 0u; t < TY", "var t = 1u; t < TY")
    }),
    ("what is behind the last pixel counts", "moments n2h5w7c4 k3s1p1 o8", |t| {
        t.replace("select(0.0, apart,", "select(apart, apart,")
    }),
    ("nothing is shifted", "moments n5h16w16c16 k3s1p1 o16, bias", |t| {
        t.replace("+ tx] = acc[", "+ tx] = 0.0 * acc[")
    }),
    ("what is not stored counts", "moments n5h16w16c16 k3s1p1 o16, bias, f16", |t| {
        t.replace("= stored(v);", "= v;")
    }),
    ("a part is another parity's", "sums n3h11w11c12 k3s2p1, add+mask", |t| {
        t.replace("let part = (py *", "let part = (px *")
    }),
    ("a row of invocations is not summed", "sums n5h16w16c16 k3s1p1, mask", |t| {
        t.replace("var t = 0u; t < TY", "var t = 1u; t < TY")
    }),
    ("sums are not centred", "sums n2h5w7c8 k3s1p1", |t| {
        t.replace("- norm_mean[col]", "- 0.0 * norm_mean[col]")
    }),
    ("what is not stored is summed", "sums n4h8w8c132 k3s1p1, add+mask, f16", |t| {
        t.replace("let g = stored(v);", "let g = v;")
    }),
    ("what is in the next word is left out", "37 of 50", |t| {
        t.replace("if (shift > 8u)", "if (shift > 16u)")
    }),
    ("a byte of the next pixel stays", "37 of 50", |t| t.replace("pixel & 0xffffffu", "pixel")),
    ("every part begins at the first image", "three parts, one of one image", |t| {
        t.replace("indices[place.x] -", "indices[place.x] - 0u *")
    }),
    ("images lie without a gap", "odd side, bytes behind the last pixel", |t| {
        t.replace("+ byte / 4u;", "+ byte / 4u - image * 3u / 4u;")
    }),
];

/// A case must fail in every variant once the kernel's text has a fault.
fn refused(case: &Case, adapter: &Pick, target: &Target, fault: Fault) -> Result<(), Failed> {
    let all = variants(case, target);
    let tiles = all.into_iter().filter(|v| matches!(v, Variant::Tile(_) | Variant::Only));
    let reference = Reference::of(case)?;
    for variant in tiles {
        let options = OpenOptions { rewrite: Some(fault), ..OpenOptions::default() };
        let mut session = Session::from(Gpu::pick(adapter, options)?);
        let result = reference.trial(&mut session, variant);
        // Not a text that the driver refuses, but results that differ.
        if !result.as_ref().is_err_and(|e| e.contains("times the tolerance")) {
            return Err(format!("{variant}: {result:?}").into());
        }
    }
    Ok(())
}

fn faults(index: usize, adapter: &str, target: Target, f16: bool) -> Vec<Trial> {
    let planted = |(what, name, fault): (&str, &'static str, Fault)| {
        let case = aavae::ops::all_cases().into_iter().find(|c| c.name == name);
        let half = name.ends_with("f16");
        let run = move || {
            let case = case.ok_or_else(|| format!("there is no case {name}"))?;
            refused(&case, &Pick::Index(index), &target, fault)
        };
        Trial::test(format!("a fault is noticed: {what}/{adapter}"), run)
            .with_ignored_flag(half && !f16)
    };
    FAULTS.map(planted).into()
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
    for (index, (adapter, can)) in found.iter().enumerate() {
        trials.extend(faults(index, adapter, can.target, can.stores(Half::F16)));
    }
    for case in aavae::ops::all_cases() {
        let name = name(&case);
        let c = case.clone();
        trials.push(Trial::test(format!("{name}/cpu"), move || {
            let portable = variants(&c, &Target::default())[0];
            trial(&c, &mut Session::from(Host::<f32>::new()), portable)?;
            Ok(())
        }));
        if case.half == Some(Half::Bf16) {
            continue;
        }
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
                trials
                    .push(trial.with_ignored_flag(case.half.is_some_and(|half| !can.stores(half))));
            }
        }
    }
    libtest_mimic::run(&args, trials).exit_code()
}

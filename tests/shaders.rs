//! The shaders, without a device: the embedded table is the folder, every file stands alone, every
//! kernel that any op case or any plan of the networks reaches is valid for baseline WebGPU and can
//! be written as SPIR-V, MSL and HLSL, binds what its dispatch says and no more than a browser
//! allows. No file is unreachable. The host's `StepUniforms` is the shaders' `Step`.
//!
//! If Dawn's `tint` is on the path, it reads every kernel too; otherwise that trial shows as
//! *ignored*.

#[path = "shaders/bindings.rs"]
mod bindings;
#[path = "shaders/headers.rs"]
mod headers;
#[path = "shaders/kernel.rs"]
mod kernel;
#[path = "shaders/reach.rs"]
mod reach;
#[path = "shaders/tint.rs"]
mod tint;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aavae::ops::{Kernel, StepUniforms, Storage};
use aavae::shader::{FILES, file, source};
use libtest_mimic::{Arguments, Failed, Trial};

use bindings::{canaries, reachable_kernels};
use headers::headers;
use kernel::{parse, validate};
use reach::reached;
use tint::{tint, tint_installed};

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn shader_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

fn table_is_the_folder() -> Result<(), Failed> {
    let mut found = BTreeMap::new();
    for (folder, prefix) in [(shader_folder(), ""), (shader_folder().join("lib"), "lib/")] {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "wgsl") {
                let stem =
                    path.file_stem().and_then(|s| s.to_str()).ok_or("a file name is not UTF-8")?;
                found.insert(format!("{prefix}{stem}"), std::fs::read_to_string(&path)?);
            }
        }
    }
    let table: BTreeMap<String, String> =
        FILES.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
    check(table.len() == FILES.len(), || "a file stands in the table twice".into())?;
    let names = |t: &BTreeMap<String, String>| t.keys().cloned().collect::<Vec<_>>();
    check(names(&table) == names(&found), || {
        format!(
            "src/shader/files.rs is not the folder; run scripts/shader-table\ntable  {:?}\nfolder \
             {:?}",
            names(&table),
            names(&found)
        )
    })?;
    check(table == found, || "an embedded text is not the file's: build again".into())
}

fn every_file_stands_alone() -> Result<(), Failed> {
    for (name, _) in FILES {
        // With every const where it stands in the file.
        let text = source(&Kernel::new(name).shaped(true));
        if name.starts_with("lib/") {
            let (module, _) = parse(name, &text)?;
            check(module.entry_points.is_empty(), || format!("{name} has an entry point"))?;
        } else {
            validate(name, &text)?;
        }
    }
    Ok(())
}

fn no_orphans() -> Result<(), Failed> {
    let used: BTreeSet<&str> =
        reached().iter().flat_map(|r| &r.dispatches).map(|d| d.kernel.file).collect();
    let mut imported = BTreeSet::new();
    for (_, text) in FILES {
        imported.extend(
            text.lines().filter_map(|l| l.trim_start().strip_prefix("#import ")).map(str::trim),
        );
    }
    // What rounds a binding is added by the last rewrite, not by the text.
    let rounds = |k: &Kernel| k.storage.iter().any(|(_, s)| matches!(s, Storage::Rounded(_)));
    if reached().iter().flat_map(|r| &r.dispatches).any(|d| rounds(&d.kernel)) {
        imported.extend(["lib/round_f16", "lib/round_bf16"]);
    }
    for (name, _) in FILES {
        let found =
            if name.starts_with("lib/") { imported.contains(name) } else { used.contains(name) };
        check(found, || format!("shaders/{name}.wgsl is reached by nothing"))?;
    }
    Ok(())
}

fn step_uniform() -> Result<(), Failed> {
    let text = file("lib/step").ok_or("lib/step is gone")?;
    let (module, _) = parse("lib/step", text)?;
    let (_, ty) = module
        .types
        .iter()
        .find(|(_, t)| t.name.as_deref() == Some("Step"))
        .ok_or("there is no struct Step")?;
    let naga::TypeInner::Struct { members, span } = &ty.inner else {
        return Err("Step is no struct".into());
    };
    let got: Vec<(String, usize, String)> = members
        .iter()
        .map(|m| {
            (
                m.name.clone().unwrap_or_default(),
                m.offset as usize,
                format!("{:?}", module.types[m.ty].inner),
            )
        })
        .collect();
    let scalar = |kind| format!("{:?}", naga::TypeInner::Scalar(naga::Scalar { kind, width: 4 }));
    let (u, f) = (scalar(naga::ScalarKind::Uint), scalar(naga::ScalarKind::Float));
    macro_rules! fields {
        ($($name:ident: $ty:expr),+ $(,)?) => {{
            let StepUniforms { $($name: _),+ } = StepUniforms::default(); // names every field
            vec![$((stringify!($name).to_owned(), std::mem::offset_of!(StepUniforms, $name), $ty.clone())),+]
        }};
    }
    let want = fields!(seed_lo: u, seed_hi: u, step: u, first_sample: u, learning_rate: f, bias1: f, bias2: f, serial: u);
    check(got == want, || format!("struct Step is {got:?}, StepUniforms {want:?}"))?;
    check(*span as usize == size_of::<StepUniforms>(), || {
        format!("Step has {span} bytes, StepUniforms {}", size_of::<StepUniforms>())
    })
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = vec![
        Trial::test("the embedded table is the folder", table_is_the_folder),
        Trial::test("every file stands alone", every_file_stands_alone),
        Trial::test("every header says formula, shapes, grid and reference", headers),
        Trial::test(
            "every reachable kernel is valid, portable and bound as declared",
            reachable_kernels,
        ),
        Trial::test("no file is unreachable", no_orphans),
        Trial::test("StepUniforms is struct Step", step_uniform),
        Trial::test("broken shaders are refused", canaries),
    ];
    let found = tint_installed();
    let name = if found {
        "tint reads every kernel"
    } else {
        "tint reads every kernel (tint is not installed)"
    };
    trials.push(Trial::test(name, tint).with_ignored_flag(!found));
    libtest_mimic::run(&args, trials).exit_code()
}

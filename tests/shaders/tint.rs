//! Dawn's own front end, where it is installed.

use std::fmt::Write as _;
use std::process::Command;

use libtest_mimic::Failed;
use rayon::prelude::*;

use crate::check;
use crate::kernel::{COOP, uses_subgroups};
use crate::reach::texts;

pub(crate) fn tint_installed() -> bool {
    Command::new("tint").arg("--help").output().is_ok()
}

/// Reads every text, and sees what tint makes of it: one that reads nothing finds no fault either.
pub(crate) fn tint() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = |name: &str, text: &str| -> Result<(), String> {
        let path = folder.path().join(format!("{name}.wgsl"));
        std::fs::write(&path, text).map_err(|e| e.to_string())?;
        let out = Command::new("tint")
            .args(["--format", "wgsl"])
            .arg(&path)
            .output()
            .map_err(|e| e.to_string())?;
        std::fs::remove_file(&path).map_err(|e| e.to_string())?;
        let (errors, made) =
            (String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
        if !out.status.success() {
            return Err(format!("{name}: {errors}"));
        }
        // What it prints is the module as it understood it.
        match made.contains("@compute") && made.contains("fn main(") {
            true => Ok(()),
            false => Err(format!("{name}: tint printed no kernel: {made}{errors}")),
        }
    };
    let canary = "@compute @workgroup_size(1) fn main() {}";
    run("canary", canary).map_err(|e| format!("tint refuses a kernel: {e}"))?;
    for (what, text) in [
        ("an undefined name", canary.replace("{}", "{ undefined(); }")),
        ("a text without a kernel", String::from("const a = 1;")),
    ] {
        check(run("canary", &text).is_err(), || format!("tint accepted {what}"))?;
    }
    let began = std::time::Instant::now();
    // Cooperative matrices are an extension of wgpu's.
    let of_webgpu = |kernel: &aavae::ops::Kernel| !COOP.contains(&kernel.file);
    let all: Vec<_> = texts().iter().filter(|t| of_webgpu(&t.1.0)).enumerate().collect();
    all.par_iter()
        .map(|(i, (text, (kernel, from)))| {
            let mut whole = String::new();
            if uses_subgroups(kernel.file) {
                // naga takes the feature without the directive
                whole.push_str("enable subgroups;\n");
            }
            write!(whole, "{text}").map_err(|e| e.to_string())?;
            run(&format!("{i}_{}", kernel.file), &whole).map_err(|e| format!("{from}: {e}"))
        })
        .collect::<Result<(), String>>()?;
    eprintln!("tint read {} kernels in {:.1} s", all.len(), began.elapsed().as_secs_f64());
    Ok(())
}

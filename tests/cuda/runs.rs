//! Whole runs of the program on the stand-ins, and what it says where libraries are missing.

use std::path::Path;
use std::process::Output;

use aavae::run::checkpoint::Checkpoint;
use libtest_mimic::Failed;

use crate::support::check;
use crate::{ALL, COMPILER, DRIVER, aavae, build, failed, succeeded};

/// Flags of a run of a few small steps.
///
/// Nothing is held out: a stand-in computes a thousandth of what a GPU does.
const TINY: &str = "--dataset folder --no-shuffle --width 8 --batch-size 2 --no-tune";

/// Eight images to train on and four to test on, in two classes.
fn images(dir: &Path) -> Result<String, Failed> {
    for (split, count) in [("train", 4), ("test", 2)] {
        for class in ["a", "b"] {
            let folder = dir.join(split).join(class);
            std::fs::create_dir_all(&folder)?;
            for i in 0..count {
                let shade = |x: u32, y: u32| (x * 7 + y * 3 + i * 40) as u8 ^ class.as_bytes()[0];
                let image = image::RgbImage::from_fn(32, 32, |x, y| {
                    image::Rgb([shade(x, y), shade(y, x), shade(x + y, y)])
                });
                image.save(folder.join(format!("{i}.png")))?;
            }
        }
    }
    Ok(format!("{TINY} --data-dir {}", dir.display()))
}

pub(crate) fn pretrain() -> Result<(), Failed> {
    let folder = build("stand-in", &ALL)?;
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    let counts = at("counts");
    let tiny = images(&dir.path().join("images"))?;
    let run = |out: &str, more: &str| {
        let line = format!("pretrain --device cuda {more} --out {}", at(out));
        aavae(&folder, &line, &[("STAND_IN_COUNTS", &counts)])
    };
    let whole = succeeded(&run("whole", &format!("{tiny} --max-steps 4 --no-eval"))?)?;
    let device = whole["device"].as_str().unwrap_or_default();
    check(device.contains("cuda:stand-in (sm_90"), || whole.to_string())?;
    let text = std::fs::read_to_string(&counts)?;
    check(text.lines().any(|l| l == "held 0"), || format!("something is left:\n{text}"))?;
    succeeded(&run("parts", &format!("{tiny} --max-steps 2 --no-eval"))?)?;
    let resumed = succeeded(&run("parts", "--resume --max-steps 4 --no-eval")?)?;
    let same = whole["sha256"].is_string() && whole["sha256"] == resumed["sha256"];
    check(same, || format!("resumed: {resumed}, straight: {whole}"))?;
    let line = format!("probe {} --device cuda:0 --epochs 1 --batch-size 4 --json", at("whole"));
    succeeded(&aavae(&folder, &line, &[])?)?;
    Ok(())
}

/// What a user does to train by a library: tunes, and starts. A step shows what the comparison of
/// each product did not, that gradients of weights are written beyond; so our kernels take their
/// place in a new run, and one that was trained with them is not resumed.
pub(crate) fn pretrain_by_a_library() -> Result<(), Failed> {
    const WRONG: (&str, &str) = ("STAND_IN_CUDNN", "104"); // `cudnn.cpp`: engine 4 writes beyond
    let folder = build("stand-in", &ALL)?;
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (remembered, counts) = (at("cache"), at("counts"));
    let own = [("XDG_CACHE_HOME", &remembered[..]), ("STAND_IN_COUNTS", &counts[..])];
    let model = TINY.split_once("--width").map_or("", |(_, model)| model).replace("--no-tune", "");
    let of_weights = "--only conv2d_weight_grad --candidates library";
    let line =
        format!("tune --device cuda --json --sweep {of_weights} --budget 600 --width{model}");
    let tuned = succeeded(&aavae(&folder, &line, &own)?)?;
    let chosen = tuned["chosen"].as_object().map_or(0, |chosen| {
        chosen.values().filter(|v| v.as_str().is_some_and(|v| v.starts_with("library"))).count()
    });
    check(chosen > 10, || tuned.to_string())?;
    let tiny = images(&dir.path().join("images"))?.replace("--no-tune", "");
    let run = |out: &str, more: &str, set: &[(&str, &str)]| {
        let line = format!("pretrain --device cuda --no-eval {more} --out {}", at(out));
        aavae(&folder, &line, &[&own[..], set].concat())
    };
    let said = |out: &Output| String::from_utf8_lossy(&out.stderr).into_owned();
    let by_library = |summary: &serde_json::Value| -> Result<bool, Failed> {
        let path = summary["checkpoint"].as_str().ok_or_else(|| summary.to_string())?;
        let meta = Checkpoint::load(Path::new(path)).map_err(|e| e.to_string())?.meta;
        let kernels = meta.get("kernels").ok_or("no kernels")?;
        Ok(kernels.contains("conv2d_weight_grad") && kernels.contains("library"))
    };
    let right = run("right", &format!("{tiny} --max-steps 2"), &[])?;
    let text = said(&right);
    check(by_library(&succeeded(&right)?)? && !text.contains("products by the library"), || text)?;
    let wrong = run("wrong", &format!("{tiny} --max-steps 2"), &[WRONG])?;
    let text = said(&wrong);
    succeeded(&wrong)?;
    let taken = "our kernels take the place of";
    check(text.contains(taken) && text.contains("conv2d_weight_grad` changes"), || text)?;
    let refused = run("right", "--resume --max-steps 3", &[WRONG])?;
    let says = ["kernels that are wrong here", "products by the library", "conv2d_weight_grad"];
    failed(&refused, &says, "--allow-device-change")?;
    succeeded(&run("right", "--resume --max-steps 3", &[])?)?;
    succeeded(&run("right", "--resume --max-steps 4 --allow-device-change", &[WRONG])?)?;
    Ok(())
}

/// A failure in the middle is one error, and the run goes on from what was saved with the bits of
/// one that did not fail.
pub(crate) fn a_failing_run_keeps_its_checkpoints() -> Result<(), Failed> {
    let folder = build("stand-in", &ALL)?;
    let dir = tempfile::tempdir()?;
    let counts = dir.path().join("counts").display().to_string();
    let start = |out: &Path, more: &str, set: &[(&str, &str)]| {
        let line = format!("pretrain --device cuda --no-eval --out {} {more}", out.display());
        aavae(&folder, &line, set)
    };
    let tiny = images(&dir.path().join("images"))?;
    let new = format!("{tiny} --save-minutes 0 --max-steps 8");
    let straight = start(&dir.path().join("straight"), &new, &[("STAND_IN_COUNTS", &counts)])?;
    let straight = succeeded(&straight)?;
    let text = std::fs::read_to_string(&counts)?;
    for (call, code) in [("cuGraphLaunch", 719), ("cuMemcpyDtoHAsync_v2", 1), ("cuEventRecord", 1)]
    {
        let count = text.lines().find_map(|l| l.strip_prefix(call)?.trim().parse::<u64>().ok());
        let count = count.ok_or_else(|| format!("no {call} in\n{text}"))?;
        // Behind the checkpoint of the first of two epochs.
        let fail = format!("{call}:{}:{code}", count * 3 / 4);
        let out = dir.path().join(call);
        let ran = start(&out, &new, &[("STAND_IN_FAIL", &fail)])?;
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        // A device that is lost is opened anew, and the run goes on.
        let recovered = ran.status.success() && stderr.contains("lost");
        if !recovered {
            failed(&ran, &[call], "")?;
        }
        let entries = std::fs::read_dir(out.join("checkpoints"))?.flatten().map(|e| e.path());
        // Beside the checkpoints lies a marker while none is saved.
        let saved: Vec<_> =
            entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
        check(!saved.is_empty(), || format!("{fail}: no checkpoint\n{stderr}"))?;
        for path in saved {
            Checkpoint::load(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let resumed = succeeded(&start(&out, "--resume", &[])?)?;
        let same = straight["sha256"].is_string() && straight["sha256"] == resumed["sha256"];
        check(same, || format!("{fail}: resumed {resumed}, straight {straight}"))?;
    }
    Ok(())
}

pub(crate) fn missing_libraries() -> Result<(), Failed> {
    let none = build("stand-in-none", &[])?;
    let driver = build("stand-in-driver", &[DRIVER])?;
    let both = build("stand-in", &ALL)?;
    let line = "check --device cuda";
    // The system's own driver, if it has one, is another test's.
    let ran = aavae(&none, line, &[])?;
    if !ran.status.success() {
        failed(&ran, &["no CUDA", "driver"], "nvidia-smi")?;
    }
    failed(&aavae(&driver, line, &[])?, &["libnvrtc.so.13"], "pip install 'nvidia-cuda-nvrtc<14'")?;
    let old = aavae(&both, line, &[("STAND_IN_DRIVER", "11080")])?;
    failed(&old, &["CUDA 11.8", "12.0"], "525")?;
    // A compiler of CUDA 13 does not serve a driver of CUDA 12.
    let older = aavae(&both, line, &[("STAND_IN_DRIVER", "12020")])?;
    failed(&older, &["libnvrtc.so.12"], "nvidia-cuda-nvrtc-cu12")?;
    let no_device = aavae(&both, "check --device cuda:3", &[])?;
    failed(&no_device, &["no CUDA device 3", "found 1"], "devices")?;
    let listed = succeeded(&aavae(&both, "devices --json", &[])?)?;
    let gpu = &listed["cuda"]["gpus"][0];
    let whole = gpu["name"] == "stand-in" && gpu["capability"] == "9.0";
    check(whole && listed["cuda"]["missing"].is_null(), || listed.to_string())?;
    let library = &listed["cuda"]["products"];
    let found = library[0] == "9.12.34"
        && library[1].as_str().is_some_and(|path| path.ends_with("libcudnn.so.9"));
    check(found && listed["cuda"]["optional"].is_null(), || listed.to_string())?;
    let library = &listed["cuda"]["matrices"];
    let found = library[0] == "13.1.2"
        && library[1].as_str().is_some_and(|path| path.ends_with("libcublasLt.so.13"));
    check(found, || listed.to_string())?;
    // What needs not be there is no error, unless it is asked for.
    let without = build("stand-in-kernels", &[DRIVER, COMPILER])?;
    let asked = aavae(&without, "check --device cuda --only relu", &[])?;
    if !asked.status.success() {
        failed(&asked, &["cuDNN", "libcudnn.so.9"], "unset AAVAE_CUDNN")?;
    }
    let only = "check --device cuda --only relu --json";
    succeeded(&aavae(&without, only, &[("AAVAE_CUDNN", "0")])?)?;
    let listed = succeeded(&aavae(&without, "devices --json", &[])?)?;
    let (missing, more) = (&listed["cuda"]["missing"], &listed["cuda"]["optional"]);
    let said = more[1].as_str().is_some_and(|hint| hint.contains("pip install nvidia-cudnn-cu13"));
    // The Python of this machine may have the real one.
    let found = !listed["cuda"]["products"].is_null();
    check(missing.is_null() && (said || found), || listed.to_string())?;
    let listed = succeeded(&aavae(&driver, "devices --json", &[])?)?;
    let missing = listed["cuda"]["missing"][1].as_str().unwrap_or_default();
    check(missing.contains("pip install"), || listed.to_string())
}

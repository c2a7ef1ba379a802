//! The program packed, and measured where it can run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::Value;

use super::{
    STAGES, check, cut, folder, is_small, named, names, random, root, script, shown, stages, table,
    text,
};

/// Bytes of an image and its label, images of an official file.
const RECORD: usize = 3073;
const FILE_RECORDS: usize = 10_000;
const FILES: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

/// A folder of CIFAR-10's files: images of noise where they are packed, nothing after them.
fn official_files(dir: &Path) -> Result<(), Failed> {
    fs::create_dir_all(dir)?;
    let mut state = 1_u32;
    for name in FILES {
        let mut bytes = Vec::with_capacity(2000 * RECORD);
        for i in 0..2000 {
            bytes.push((i % 10) as u8);
            for _ in 1..RECORD {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes.push((state >> 24) as u8);
            }
        }
        let path = dir.join(format!("{name}.bin"));
        fs::write(&path, bytes)?;
        File::options().write(true).open(&path)?.set_len((FILE_RECORDS * RECORD) as u64)?;
    }
    Ok(())
}

/// Packs the program under test.
pub(super) fn pack(dir: &Path, more: &[&str]) -> Command {
    let dir = dir.display().to_string();
    let arguments = [&[&dir, "--binary", env!("CARGO_BIN_EXE_aavae")], more].concat();
    script(&root().join("scripts/pack-gpu"), &arguments, Path::new("/tmp"))
}

/// Built here, the program needs the glibc that is here.
pub(super) fn glibc_here() -> Result<String, Failed> {
    let here = Command::new("getconf").arg("GNU_LIBC_VERSION").output()?;
    let here = String::from_utf8(here.stdout)?.trim().trim_start_matches("glibc ").to_owned();
    let minor = here.strip_prefix("2.").and_then(|minor| minor.parse::<u32>().ok()).unwrap_or(0);
    Ok(format!("2.{}", minor.max(36)))
}

/// The program packed with images and without, made once.
pub(super) fn packed() -> Result<(PathBuf, PathBuf), Failed> {
    static PACKED: OnceLock<(tempfile::TempDir, Result<(), String>)> = OnceLock::new();
    let glibc = glibc_here()?;
    let make = move |dir: &Path| -> Result<(), Failed> {
        official_files(&dir.join("data"))?;
        let data = dir.join("data").display().to_string();
        for (name, more) in [("full", &["--data", &data][..]), ("bare", &[])] {
            let ran = pack(&dir.join(name), more).args(["--glibc", &glibc]).output()?;
            check(ran.status.success(), || shown(&ran))?;
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            let images = if more.is_empty() { 0 } else { 10_000 };
            check(said.contains(&format!(" MiB, {images} images, commit ")), || said.clone())?;
        }
        Ok(())
    };
    let (dir, made) = PACKED.get_or_init(|| {
        let dir = folder();
        let made = make(dir.path()).map_err(|e| format!("{e:?}"));
        (dir, made)
    });
    made.clone()?;
    Ok((dir.path().join("full"), dir.path().join("bare")))
}

/// The folder holds what it should: images of the official files, at most 60 MiB.
pub(super) fn pack_is_whole() -> Result<(), Failed> {
    let (full, bare) = packed()?;
    for (i, name) in FILES.iter().enumerate() {
        let count = if i == 5 { 2000 } else { 1600 };
        let source = fs::read(full.with_file_name("data").join(format!("{name}.bin")))?;
        let found = fs::read(full.join("data").join(format!("{name}.bin")))?;
        check(found == source[..count * RECORD], || format!("{name}.bin: {} bytes", found.len()))?;
    }
    check(!bare.join("data").exists(), || "images without --data".into())?;
    let mut bytes = 0;
    let mut folders = vec![full.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            bytes += if entry.path().is_dir() { 0 } else { entry.metadata()?.len() };
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    check(bytes <= 60 << 20, || format!("{bytes} bytes"))?;
    for name in [
        "lib/libvulkan.so.1",
        "bin/aavae.gz",
        "scripts/measure-gpu",
        "scripts/measure-paper",
        "tests/golden/bench_torch.py",
        "tests/golden/twin.py",
    ] {
        check(full.join(name).exists(), || format!("{name} is missing"))?;
    }
    // Without these no Vulkan adapter is found on a machine that has NVIDIA's driver alone.
    let system = Command::new("ldconfig").arg("-p").output()?;
    let system = String::from_utf8_lossy(&system.stdout).into_owned();
    for name in ["libGLdispatch.so.0", "libGLX.so.0", "libEGL.so.1", "libOpenGL.so.0"] {
        let has = full.join("lib").join(name).exists();
        check(has == system.contains(name), || format!("{name} is packed: {has}"))?;
    }
    let info: Value = serde_json::from_str(&text(&full.join("pack.json")))?;
    check(
        info["images"] == 10_000 && info["sha256"].as_str().is_some_and(|s| s.len() == 64),
        || info.to_string(),
    )
}

/// What must not be packed is refused, and nothing half-made is left.
pub(super) fn pack_refuses() -> Result<(), Failed> {
    let dir = folder();
    let tools = dir.path().join("tools");
    fs::create_dir(&tools)?;
    let tool = |name: &str, body: &str| -> Result<(), Failed> {
        let path = tools.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
        check(Command::new("chmod").arg("+x").arg(&path).status()?.success(), || name.into())
    };
    let data = dir.path().join("data");
    official_files(&data)?;
    File::options().write(true).open(data.join("test_batch.bin"))?.set_len(3073)?;
    let data = data.display().to_string();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let fails = |more: &[&str], says: &str| -> Result<(), Failed> {
        let out = dir.path().join("out");
        let ran = pack(&out, more).env("PATH", &path).output()?;
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        check(ran.status.code() == Some(1) && stderr.contains(says), || shown(&ran))?;
        check(!out.exists(), || format!("something is left: {}", shown(&ran)))
    };
    fails(&["--data", &data], "test_batch.bin has 3073 bytes; 10000 images have 30730000")?;
    fails(&["--binary", "/etc/passwd"], "no program for x86-64 Linux")?;
    tool("strip", "head -c 63M /dev/urandom >\"$2\"")?;
    tool("objdump", "echo 'file format elf64-x86-64, GLIBC_2.36, GLIBC_2.9'")?;
    fails(&[], "error: that is more than 60 MiB")?;
    tool("objdump", "echo 'file format elf64-x86-64, GLIBC_2.37, GLIBC_2.9'")?;
    fails(&[], "needs glibc 2.37; what is packed must run on glibc 2.36")?;
    let held = dir.path().display().to_string();
    let ran = script(&root().join("scripts/pack-gpu"), &[&held], dir.path()).output()?;
    check(String::from_utf8_lossy(&ran.stderr).contains("is not empty"), || shown(&ran))?;
    check(tools.join("strip").exists(), || "a folder in use was emptied".into())
}

fn measure(pack: &Path, dir: &Path, device: &str, minutes: &str) -> Command {
    let out = dir.join("out").display().to_string();
    let arguments = [&out, "--minutes", minutes, "--size", "smoke", "--device", device];
    script(&pack.join("scripts/measure-gpu"), &arguments, dir)
}

/// On `cpu` every stage succeeds, with the packed images. It takes half a minute; the limit is for
/// machines that do other work meanwhile.
pub(super) fn measures_cpu() -> Result<(), Failed> {
    let (full, _) = packed()?;
    let dir = folder();
    let ran = measure(&full, dir.path(), "cpu", "10").output()?;
    check(ran.status.success(), || shown(&ran))?;
    let out = dir.path().join("out");
    let stages = stages(&out)?;
    // No PyTorch with CUDA, no candidates to tune, and the first batch of ResNet-50 fits.
    let other = |s: &str| s.starts_with("torch") || ["step_tuned", "resnet50_batch48"].contains(&s);
    let wanted: Vec<_> =
        STAGES.into_iter().filter(|s| !other(s)).map(|s| s.replace("256", "8")).collect();
    let found: Vec<_> = names(&stages).into_iter().filter(|s| !s.starts_with("torch")).collect();
    check(found == wanted, || format!("{found:?}"))?;
    for stage in stages.iter().filter(|s| !s["stage"].as_str().unwrap_or("").starts_with("torch")) {
        // The kernels of the processor have no variants, and no library has them.
        let none = |s: &str| s.starts_with("tune_sweep") || s.ends_with("_library");
        let skipped = stage["stage"].as_str().is_some_and(none) && stage["skipped"].is_string();
        check(stage["rc"] == 0 && stage["result"].is_object() || skipped, || stage.to_string())?;
    }
    let number = |stage: &str, key: &str| -> Result<f64, Failed> {
        let found = named(&stages, stage)?["result"].pointer(key).and_then(Value::as_f64);
        found.ok_or_else(|| format!("{stage} has no number at {key}").into())
    };
    check(number("step_cold", "/step/images_per_second")? > 0.0, || "no throughput".into())?;
    check(number("resnet50_batch8", "/parameters")? > number("step_cold", "/parameters")?, || {
        "no ResNet-50".into()
    })?;
    check((number("train", "/steps")?, number("train_resumed", "/steps")?) == (8.0, 8.0), || {
        "steps".into()
    })?;
    check(named(&stages, "digests")?["result"]["same"] == true, || "another digest".into())?;
    let accuracy = number("probe", "/accuracy")?;
    check((0.0..=1.0).contains(&accuracy), || format!("accuracy {accuracy}"))?;
    check(
        named(&stages, "train")?["command"]
            .as_str()
            .is_some_and(|c| c.contains("--dataset cifar10")),
        || "no images".into(),
    )?;
    check(text(&out.join("metrics.jsonl")).lines().count() > 0, || "no metrics".into())?;
    is_small(&out)?;
    table(&out).map(drop)
}

/// On an adapter: within the time, every stage is accounted for, and what did not fit says so.
pub(super) fn measures_adapter(name: &str) -> Result<(), Failed> {
    let (_, bare) = packed()?;
    let dir = folder();
    let began = Instant::now();
    let ran = measure(&bare, dir.path(), &format!("wgpu:{name}"), "2").output()?;
    check(ran.status.success() && began.elapsed().as_secs() < 150, || shown(&ran))?;
    let stages = stages(&dir.path().join("out"))?;
    for stage in &stages {
        let fits = stage["skipped"].is_string() || stage["rc"] == 124;
        check(fits || stage["rc"] == 0, || stage.to_string())?;
    }
    for stage in
        STAGES.into_iter().filter(|s| !s.starts_with("torch_") && !s.starts_with("resnet50"))
    {
        named(&stages, stage)?;
    }
    for stage in ["machine", "check_conv2d", "check_batch_norm", "step_cold"] {
        check(named(&stages, stage)?["rc"] == 0, || shown(&ran))?;
    }
    is_small(&dir.path().join("out"))?;
    table(&dir.path().join("out")).map(drop)
}

/// The real program, killed once at a random moment of its first seconds.
pub(super) fn cut_loses_nothing() -> Result<(), Failed> {
    let (full, _) = packed()?;
    let dir = folder();
    let after = Duration::from_secs_f64(8.0 * random());
    cut(measure(&full, dir.path(), "cpu", "2"), &dir.path().join("out"), after).map(drop)
}

/// The twin's bench on the processor has the fields that the table reads, and the size of our step.
pub(super) fn bench_of_twin() -> Result<(), Failed> {
    let run = |precision: &str| -> Result<Value, Failed> {
        let script = root().join("tests/golden/bench_torch.py");
        let sizes =
            ["--width", "8", "--batch-size", "4", "--steps", "2", "--warm-up", "1", "--json"];
        let mut command = Command::new("python3");
        command
            .arg(script)
            .args(sizes)
            .args(["--precision", precision])
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let ran = command.output()?;
        check(ran.status.success(), || shown(&ran))?;
        Ok(serde_json::from_slice(&ran.stdout)?)
    };
    let arguments =
        ["bench", "--width", "8", "--batch-size", "4", "--steps", "1", "--device", "cpu", "--json"];
    let ours: Value = serde_json::from_slice(
        &Command::new(env!("CARGO_BIN_EXE_aavae")).args(arguments).output()?.stdout,
    )?;
    for precision in ["f32", "bf16"] {
        let torch = run(precision)?;
        check(torch["parameters"] == ours["parameters"], || format!("{torch}\n{ours}"))?;
        let images = 4e3 / torch["step"]["median_ms"].as_f64().ok_or("no median")?;
        let said = torch["step"]["images_per_second"].as_f64().ok_or("no throughput")?;
        check((images / said - 1.0).abs() < 1e-6 && torch["step"]["n"] == 2, || torch.to_string())?;
    }
    Ok(())
}

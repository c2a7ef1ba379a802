//! The paper's two methods for as long as there is: `scripts/measure-gpu --paper`, on the stand-in
//! and with the real program.

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::real::{glibc_here, pack, packed};
use super::stand_in::{measure_stand_in, stand_in};
use super::{
    check, folder, is_small, named, names, running, script, shown, signal, stages, table, wait_for,
};

/// The stages of a method, in their order.
const OF_METHOD: [&str; 5] = ["_train", "_carry", "_knn", "_probe", ""];

fn all_stages() -> Vec<String> {
    let methods = ["aavae", "vae"]
        .into_iter()
        .flat_map(|method| OF_METHOD.map(|stage| format!("{method}{stage}")));
    ["machine", "paper_step"].map(str::to_owned).into_iter().chain(methods).collect()
}

/// What the pieces of a method hold, put together.
fn carried(out: &Path, method: &str) -> Result<Vec<u8>, Failed> {
    let pieces = format!("cat {}/{method}.safetensors.gz.* | gzip -dc", out.display());
    let ran = Command::new("bash").args(["-c", &format!("set -o pipefail; {pieces}")]).output()?;
    check(ran.status.success(), || shown(&ran))?;
    Ok(ran.stdout)
}

fn paper_stand_in(dir: &Path, more: &[&str]) -> Command {
    measure_stand_in(dir, &[&["--paper", "--size", "smoke"], more].concat())
}

/// Both methods are trained until their time is up, which is no failure; what they reached, and
/// what was measured of it, is one row each; their weights come back whole in small pieces, and a
/// second call starts from them.
pub(super) fn both_methods_are_reported() -> Result<(), Failed> {
    let dir = stand_in();
    let ran = paper_stand_in(dir.path(), &["--minutes", "0.7"]).env("HOLD", "1").output()?;
    check(ran.status.success(), || shown(&ran))?;
    let out = dir.path().join("out");
    let found = stages(&out)?;
    check(names(&found) == all_stages(), || format!("{:?}\n{}", names(&found), shown(&ran)))?;
    is_small(&out)?;
    let rc = &named(&found, "aavae_train")?["rc"];
    check(*rc == 0 && named(&found, "vae_probe")?["rc"] == 3, || shown(&ran))?;
    let want = json!({
        "method": "aavae", "paper_probe": 0.8714, "paper_epochs": 3200, "probe": 0.75,
        "probe_epochs": 2, "knn20": 0.25, "knn200": 0.5, "epochs": 2.5, "epochs_now": 2.5,
        "calls": 1, "images_per_second": 9.5
    });
    let row = named(&found, "aavae")?;
    check(row["result"] == want && row["rc"] == 0, || row.to_string())?;
    let vae = named(&found, "vae")?;
    let lacks = vae["rc"] == 1 && vae["result"]["probe"].is_null();
    check(lacks && vae["result"]["paper_probe"] == 0.5716, || vae.to_string())?;
    let printed = table(&out)?;
    for line in [
        "2.5 epochs (2.5 of them now, 9.5 images/s), probe 0.75 (2 epochs), kNN-20 0.25, ",
        "kNN-200 0.5; paper: probe 0.8714 (ResNet-50, 3200 epochs) |",
        "| vae | failed (1) | 0.0 | 2.5 epochs (2.5 of them now, 9.5 images/s), probe none (",
        "2 files, 240",
    ] {
        check(printed.contains(line), || format!("the table lacks `{line}`: {printed}"))?;
    }
    check(carried(&out, "aavae")?.len() == 24_000_000, || "the weights are torn".into())?;

    let first = dir.path().join("first");
    fs::rename(&out, &first)?;
    let earlier = first.display().to_string();
    let ran = paper_stand_in(dir.path(), &["--minutes", "3", "--earlier", &earlier]).output()?;
    check(ran.status.success(), || shown(&ran))?;
    let found = stages(&out)?;
    let command = named(&found, "aavae_train")?["command"].as_str().unwrap_or("").to_owned();
    let flags = "--init-from WORK/runs/aavae.safetensors --warmup-epochs 1 --seed 2";
    check(command.contains(flags), || command.clone())?;
    let row = &named(&found, "aavae")?["result"];
    check((&row["epochs"], &row["calls"]) == (&json!(5.0), &json!(2)), || row.to_string())
}

/// `SIGTERM` ends the training, once, and its weights are carried all the same.
pub(super) fn told_to_stop() -> Result<(), Failed> {
    let dir = stand_in();
    let out = dir.path().join("out");
    let mut child = paper_stand_in(dir.path(), &[]).env("HOLD", "1").spawn()?;
    wait_for(|| running(&out).is_some_and(|r| r.0 == "aavae_train"))?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal("TERM", &child.id().to_string())?;
    check(child.wait()?.code() == Some(1), || "another exit status".into())?;
    let found = stages(&out)?;
    let last = ["machine", "paper_step", "aavae_train", "aavae_carry", "rest"];
    check(names(&found) == last, || format!("{found:?}"))?;
    let reached = &named(&found, "aavae_carry")?["result"]["epochs"];
    check(*reached == 2.5, || format!("{found:?}"))?;
    check(carried(&out, "aavae")?.len() == 24_000_000, || "the weights are torn".into())
}

/// 180 training images of two classes and 20 to test with, of one colour each.
fn tree_of_images(dir: &Path) -> Result<(), Failed> {
    for (split, count) in [("train", 90_u8), ("test", 10)] {
        for class in [0_u8, 100] {
            let place = dir.join(format!("{split}/class{class}"));
            fs::create_dir_all(&place)?;
            for i in 0..count {
                let image = image::RgbImage::from_pixel(32, 32, image::Rgb([class, i, 50]));
                image.save(place.join(format!("{i}.png")))?;
            }
        }
    }
    Ok(())
}

/// Of weights that do not fit beside the rest, those of AAVAE are packed; without them nothing is.
pub(super) fn what_fits_is_packed() -> Result<(), Failed> {
    let dir = folder();
    let earlier = dir.path().join("earlier");
    fs::create_dir(&earlier)?;
    fs::write(earlier.join("stages.jsonl"), "")?;
    let earlier = earlier.display().to_string();
    let more = ["--earlier", &earlier, "--glibc", &glibc_here()?];
    let out = dir.path().join("pack");
    let ran = pack(&out, &more).output()?;
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    check(ran.status.code() == Some(1) && stderr.contains("has no aavae.safe"), || shown(&ran))?;
    for name in ["aavae.safetensors.gz.00", "aavae.safetensors.gz.01", "vae.safetensors.gz.00"] {
        fs::File::create(dir.path().join("earlier").join(name))?.set_len(20 << 20)?;
    }
    let ran = pack(&out, &more).output()?;
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    check(ran.status.success() && stderr.contains("the VAE of"), || shown(&ran))?;
    let packed = |name: &str| out.join("earlier").join(name).exists();
    check(packed("aavae.safetensors.gz.01") && packed("stages.jsonl"), || shown(&ran))?;
    check(!packed("vae.safetensors.gz.00"), || shown(&ran))
}

/// The real program: a call, one that goes on from the weights that were packed, and one that goes
/// on in the run folders that were kept.
pub(super) fn a_later_call_goes_on() -> Result<(), Failed> {
    let (_, bare) = packed()?;
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let runs = at("runs");
    let call = |pack: &Path, out: &str, more: &[&str]| -> Result<Vec<Value>, Failed> {
        let out = at(out);
        let flags = ["--paper", &out, "--minutes", "0.8", "--size", "smoke", "--device", "cpu"];
        let arguments = [&flags[..], more].concat();
        let ran = script(&pack.join("scripts/measure-gpu"), &arguments, dir.path()).output()?;
        check(ran.status.success(), || shown(&ran))?;
        is_small(Path::new(&out))?;
        let found = stages(Path::new(&out))?;
        check(found.iter().all(|s| s["rc"] == 0), || shown(&ran))?;
        Ok(found)
    };
    let number = |found: &[Value], stage: &str, key: &str| -> Result<f64, Failed> {
        let value = &named(found, stage)?["result"][key];
        value.as_f64().ok_or_else(|| format!("{stage}: {key} is {value}").into())
    };
    let first = call(&bare, "first", &["--runs", &runs])?;
    check(names(&first) == all_stages(), || format!("{first:?}"))?;
    for method in ["aavae", "vae"] {
        let probe = number(&first, method, "probe")?;
        check((0.0..=1.0).contains(&probe), || format!("{method}: {probe}"))?;
        check(number(&first, method, "knn20")? > 0.0, || format!("{method} has no kNN"))?;
        check(number(&first, method, "epochs")? > 0.0, || format!("{method} has no epochs"))?;
    }

    tree_of_images(&dir.path().join("tree"))?;
    let more = ["--earlier", &at("first"), "--data", &at("tree"), "--glibc", &glibc_here()?];
    let ran = pack(&dir.path().join("pack"), &more).output()?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    check(ran.status.success() && said.contains(" MiB, 200 images, "), || shown(&ran))?;
    let second = call(&dir.path().join("pack"), "second", &[])?;
    let dataset = &named(&second, "aavae_train")?["result"]["dataset"];
    check(*dataset == "folder", || format!("trained on {dataset}"))?;
    let third = call(&bare, "third", &["--runs", &runs])?;
    for method in ["aavae", "vae"] {
        let before = number(&first, method, "epochs")?;
        for later in [&second, &third] {
            let (all, now) =
                (number(later, method, "epochs")?, number(later, method, "epochs_now")?);
            check(now > 0.0 && (all - before - now).abs() < 0.11, || {
                format!("{before} {all} {now}")
            })?;
        }
        check(number(&second, method, "calls")? == 2.0, || format!("{second:?}"))?;
        let train = named(&third, &format!("{method}_train"))?;
        check(train["result"]["resumed_at"].as_u64() > Some(0), || train.to_string())?;
    }
    Ok(())
}

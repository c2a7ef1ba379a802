//! What is exported: a folder for others, the names of torchvision, the snippet of the README.

use crate::golden::fill_parameter;
use crate::support::{TINY, copy, digest, folder, sh};
use aavae::method::{Training, training};
use aavae::run::checkpoint::{Checkpoint, TensorData};
use aavae::run::settings::RunConfig;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{Dict, described, dict, filled, write_foreign};

/// A run and its published folder, made once: the folder of `run` and `export`, the run's summary,
/// and what `export` said.
fn published() -> &'static (tempfile::TempDir, Value, Value) {
    static MADE: OnceLock<(tempfile::TempDir, Value, Value)> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = folder();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let flags = "--max-steps 5 --probe-epochs 1 --seed 18446744073709551615 \
            --learn-log-scale --learning-rate 0.0007 --online-probe";
        let summary = sh(&format!("pretrain {TINY} {flags} --out {}", at("run"))).ok().json();
        let export = format!("export {} --format folder --out {} --json", at("run"), at("export"));
        let said = sh(&export).ok().json();
        (dir, summary, said)
    })
}

/// A path in the folder of [`published`].
fn made(name: &str) -> String {
    published().0.path().join(name).display().to_string()
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("export/bf16", half_as_many_bytes),
        Trial::test("export/folder", a_published_folder_is_whole),
        Trial::test("export/folder trains the run again", its_card_trains_the_run_again),
        Trial::test("export/folder of an earlier step", an_earlier_step_has_no_results),
        Trial::test("export/folder of an import", an_import_has_no_results),
        Trial::test("export/over nothing", nothing_is_written_over),
        Trial::test("export/an impossible network", an_impossible_network_is_refused),
        Trial::test("export/torchvision", torchvision_values),
    ]
}

/// The folder has the weights, how they were trained and what was measured.
fn a_published_folder_is_whole() -> Result<(), Failed> {
    let (_, summary, exported) = published();
    assert_eq!(exported["results"], true, "{exported}");
    let mut names: Vec<_> = fs::read_dir(made("export"))?
        .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["README.md", "config.json", "model.safetensors"]);
    assert!(!Path::new(&made("export.tmp")).exists());

    let config: Value = serde_json::from_slice(&fs::read(made("export/config.json"))?)?;
    for (pointer, want) in [
        ("/architecture/encoder", Value::from("resnet18")),
        ("/architecture/features", 64.into()),
        ("/normalisation/mean/0", 0.498.into()),
        ("/training/learning_rate", 0.0007.into()),
        ("/training/seed", u64::MAX.into()),
    ] {
        assert_eq!(config.pointer(pointer), Some(&want), "{pointer} in {config:#}");
    }
    let model = Checkpoint::load(made("export/model.safetensors"))?;
    let run = Checkpoint::load(made("run/checkpoints/last.safetensors"))?;
    let weights: Vec<_> =
        run.tensors.iter().filter(|(name, _)| !name.starts_with("optim.")).collect();
    assert!(weights.len() > 100 && weights.into_iter().eq(&model.tensors));

    let card = fs::read_to_string(made("export/README.md"))?;
    let accuracy = format!(
        "| linear probe, 1 epochs, test accuracy | {:.4} |",
        summary["probe"]["accuracy"].as_f64().expect("an accuracy")
    );
    for part in [
        "n = 1 run (seed 18446744073709551615) on `cpu`",
        "Resnet18, width 8",
        "64 training images",
        &accuracy,
        "## Licence",
    ] {
        assert!(card.contains(part), "`{part}` is missing:\n{card}");
    }
    Ok(())
}

/// The card's command trains the same weights and measures the same accuracy; commands take the
/// file.
fn its_card_trains_the_run_again() -> Result<(), Failed> {
    let (summary, dir) = (&published().1, folder());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let card = fs::read_to_string(made("export/README.md"))?;
    let command =
        card.lines().find_map(|line| line.strip_prefix("aavae pretrain ")).ok_or("no command")?;
    let line = format!("pretrain {command}")
        .replace("config.json", &made("export/config.json"))
        .replace("--out run", &format!("--out {}", at("again")));
    let again = sh(&line).ok().json();
    assert_eq!((digest(&again), &again["probe"]), (digest(summary), &summary["probe"]));

    let features = |model: &str| {
        let flags = "--device cpu --dataset shapes --batch-size 50";
        sh(&format!("embed {} {flags} --out {}", made(model), at("f.safetensors"))).ok();
        Checkpoint::load(at("f.safetensors")).expect("features").tensors
    };
    assert_eq!(features("export/model.safetensors"), features("run"));
    Ok(())
}

fn an_earlier_step_has_no_results() -> Result<(), Failed> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir(at("empty"))?;
    let ran = sh(&format!(
        "export {} --format folder --out {}",
        made("run/checkpoints/step-4.safetensors"),
        at("empty")
    ))
    .ok();
    assert!(ran.stderr.contains("warning: no summary.json is about these weights"), "{ran:?}");
    let card = fs::read_to_string(at("empty/README.md"))?;
    assert!(card.contains("The run left none") && !card.contains("accuracy"), "{card}");
    Ok(())
}

/// A card of weights that nobody here trained states no results.
fn an_import_has_no_results() -> Result<(), Failed> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    sh(&format!("import {} --out {}", made("export/model.safetensors"), at("imported"))).ok();
    let ran = sh(&format!("export {} --format folder --out {}", at("imported"), at("card"))).ok();
    assert!(ran.stderr.contains("states no results"), "{ran:?}");
    let card = fs::read_to_string(at("card/README.md"))?;
    assert!(
        card.contains("imported from `model.safetensors`") && !card.contains("epochs of batch"),
        "{card}"
    );
    let line = format!(
        "import {} --image-size 4294967296 --out {}",
        made("export/model.safetensors"),
        at("z")
    );
    sh(&line).fails(1, &["--image-size 4294967296"]).hints("flag");
    Ok(())
}

/// Nothing that is there is written over, and nothing is left half written.
fn nothing_is_written_over() -> Result<(), Failed> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    sh(&format!("export {} --format folder --out {}", made("run"), made("export")))
        .fails(1, &["export is not empty"])
        .hints("--out");
    sh(&format!("export {} --format folder --out {}/file/x", made("run"), made("run/config.toml")))
        .fails(1, &["cannot create"]);
    fs::create_dir(at("theirs.tmp"))?;
    fs::write(at("theirs.tmp/kept"), "")?;
    sh(&format!("export {} --format folder --out {}", made("run"), at("theirs")))
        .fails(1, &["theirs.tmp is there already"])
        .hints("killed");
    assert!(Path::new(&at("theirs.tmp/kept")).exists() && !Path::new(&at("theirs")).exists());
    sh(&format!("export {} --format folder --out {}", made("run"), made("run/train.log")))
        .fails(1, &["train.log is no folder"])
        .hints("--out");
    assert!(
        Path::new(&made("run/train.log")).is_file()
            && !Path::new(&made("run/train.log.tmp")).exists()
    );
    sh(&format!("export {} --format torchvision --out {}", made("run"), at("e.safetensors")))
        .fails(1, &["width 64", "width 8"])
        .hints("folder");
    sh(&format!("export {} --format torchvision --out {}", at("none"), at("e.safetensors")))
        .fails(1, &["none"]);
    sh(&format!("export {} --format onnx --out {}", made("run"), at("e"))).fails(2, &["'onnx'"]);
    fs::write(at("bad.json"), "{}")?;
    sh(&format!("pretrain --config {} --out {}", at("bad.json"), at("x")))
        .fails(1, &["bad.json", "`training`"]);
    assert!(!Path::new(&at("e.safetensors")).exists() && !Path::new(&at("x")).exists());
    // Where everybody may make a link.
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("bad.json", at("link"))?;
        sh(&format!("import {} --out {}", made("export/model.safetensors"), at("link")))
            .fails(1, &["link is no folder"])
            .hints("--out");
        assert!(fs::symlink_metadata(at("link")).is_ok_and(|m| m.is_symlink()));
    }
    Ok(())
}

/// A stored configuration that no network can have.
fn an_impossible_network_is_refused() -> Result<(), Failed> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    copy(Path::new(&made("run")), Path::new(&at("run")));
    let config = fs::read_to_string(at("run/config.toml"))?;
    for (line, says) in [
        ("width = 12", "width"),
        ("latent_dim = 0", "--latent-dim is 0"),
        ("image_size = 33", "33"),
    ] {
        let key = line.split(' ').next().expect("a key");
        let other = |l: &str| {
            if l.starts_with(&format!("{key} =")) { line.to_owned() } else { l.to_owned() }
        };
        fs::write(at("run/config.toml"), config.lines().map(other).collect::<Vec<_>>().join("\n"))?;
        sh(&format!("export {} --format folder --out {}", at("run"), at("y")))
            .fails(1, &["config.toml", says])
            .hints("metadata");
    }
    Ok(())
}

/// Matrices are rounded, vectors and counters are not, the optimiser stays behind; a run starts
/// from the file, and its bytes are the same each time.
fn half_as_many_bytes() -> Result<(), Failed> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    sh(&format!("pretrain {TINY} --max-steps 3 --no-eval --learn-log-scale --out {}", at("run")))
        .ok();
    let export = |name: &str| format!("export {} --format bf16 --out {}", at("run"), at(name));
    sh(&export("half.safetensors")).ok();
    sh(&export("again.safetensors")).ok();
    assert_eq!(fs::read(at("half.safetensors"))?, fs::read(at("again.safetensors"))?);
    sh(&export("half.safetensors")).fails(1, &["half.safetensors is there already"]).hints("--out");

    let half = Checkpoint::load(at("half.safetensors"))?.tensors;
    let run = Checkpoint::load(at("run/checkpoints/last.safetensors"))?.tensors;
    let names = run.keys().filter(|name| !name.starts_with("optim."));
    assert!(names.eq(half.keys()));
    let mut rounded = 0;
    for (name, found) in &half {
        let mut want = run[name].clone();
        if let (TensorData::F32(values), true) = (&mut want.data, found.shape.len() > 1) {
            let exact = values.clone();
            values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
            rounded += usize::from(exact != *values);
        }
        assert!(*found == want, "{name}");
    }
    assert!(rounded > 20, "only {rounded} tensors were rounded");
    let bytes = |name: &str| fs::metadata(at(name)).map(|m| m.len());
    assert!(bytes("half.safetensors")? * 5 < bytes("run/checkpoints/last.safetensors")?);

    let from = format!("--init-from {} --learn-log-scale", at("half.safetensors"));
    sh(&format!("pretrain {TINY} {from} --max-steps 1 --no-eval --out {}", at("next"))).ok();
    Ok(())
}

/// ResNet-18 of the paper's width, imported, and its encoder exported: `run`,
/// `encoder.safetensors`.
fn paper_width() -> &'static Path {
    static DIR: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DIR.get_or_init(|| {
        let dir = folder();
        let path = dir.path().to_owned();
        let file = path.join("reference.safetensors");
        write_foreign(&filled(&wide_names(), fill_parameter), &file);
        let data = path.join("data");
        let import = format!(
            "import {} --out {}/run --dataset folder --data-dir {}",
            file.display(),
            path.display(),
            data.display()
        );
        sh(&import).ok();
        let export = format!(
            "export {0}/run --format torchvision --out {0}/encoder.safetensors",
            path.display()
        );
        sh(&export).ok();
        sh(&export).fails(1, &["encoder.safetensors is there already"]).hints("--out");
        (dir, path)
    });
    path
}

/// Names and shapes of ResNet-18 of width 64 with 8 latent dimensions, from our own parameters:
/// width 8's are golden.
fn wide_names() -> Dict {
    let config = RunConfig { latent_dim: 8, ..RunConfig::default() };
    let params = training(&config.model([0.0; 3], [1.0; 3]), Training::default()).params;
    params.all.iter().map(|p| (p.name.clone(), ("F32".to_owned(), p.file.shape()))).collect()
}

/// Every exported value is the one that was imported.
fn torchvision_values() -> Result<(), Failed> {
    let encoder = Checkpoint::load(paper_width().join("encoder.safetensors"))?;
    assert_eq!(described(&encoder), dict("torchvision/resnet18"));
    assert_eq!(
        (encoder.meta["architecture"].as_str(), encoder.meta["stem"].as_str()),
        ("resnet18", "cifar")
    );
    for (name, tensor) in &encoder.tensors {
        let want = if name.ends_with("num_batches_tracked") {
            TensorData::I64(vec![0])
        } else {
            TensorData::F32(fill_parameter(&format!("encoder.{name}"), &tensor.shape))
        };
        assert!(tensor.data == want, "{name}");
    }
    Ok(())
}

/// The README's snippet loads the file, and the network gives the features of `aavae embed`.
pub(crate) fn the_readme_snippet_loads() -> Result<(), Failed> {
    let dir = paper_width();
    for (split, count) in [("train", 2), ("test", 6)] {
        for class in 0..2u32 {
            let folder = dir.join(format!("data/{split}/class{class}"));
            fs::create_dir_all(&folder)?;
            for i in 0..count {
                let pixel = |x: u32, y: u32| {
                    image::Rgb([
                        (x * 9 + class * 80) as u8,
                        (y * 7 + i * 31) as u8,
                        (x * y + class * 60 + i * 5) as u8,
                    ])
                };
                image::RgbImage::from_fn(32, 32, pixel).save(folder.join(format!("{i}.png")))?;
            }
        }
    }
    sh(&format!(
        "embed {0}/run --device cpu --batch-size 12 --out {0}/features.safetensors",
        dir.display()
    ))
    .ok();
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("python3")
        .arg(format!("{root}/tests/check_torchvision.py"))
        .arg(format!("{root}/README.md"))
        .current_dir(dir)
        .output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("check_torchvision.py ended with {}:\n{text}", output.status).into())
    }
}

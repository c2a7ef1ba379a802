//! Weights for and from other programs: names, types and shapes are those that
//! `tests/golden/make_state_dicts.py` found in torchvision and in the twin of the reference
//! implementation, and imported weights compute what the golden networks computed.
//!
//! The README's snippet is run where `python3` has torch, torchvision, safetensors and Pillow;
//! elsewhere its trial shows as *ignored*, and `REQUIRE_TORCH=1` turns that into a failure.
//! `tests/terminal.py` plays the terminal of `watch` (Unix; `REQUIRE_PYTHON=1`).

#[path = "interop/export.rs"]
mod export;
#[path = "golden/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod golden;
#[path = "cli/support.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use aavae::device::Data;
use aavae::interop::import::{self, ImportOptions};
use aavae::interop::torchvision;
use aavae::ir::Graph;
use aavae::method::{Method, Training, Views, training};
use aavae::model::{Depth, Stem, resnet};
use aavae::nn::Builder;
use aavae::ops::StepUniforms;
use aavae::run::checkpoint::{Checkpoint, NamedTensor, TensorData};
use aavae::run::settings::{DataKind, RunConfig};
use aavae::run::state;
use aavae::run::trained::Trained;
use aavae::tensor::{Shape, TensorType};
use golden::{Device, Report, Tensors, fill, fill_parameter, pixels, read};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use support::{TINY, digest, folder, sh};

/// Type and shape of each tensor of a golden state dict.
type Dict = BTreeMap<String, (String, Vec<usize>)>;

fn dict(name: &str) -> Dict {
    static ALL: OnceLock<Value> = OnceLock::new();
    let all = ALL.get_or_init(|| golden::json("state_dicts.json"));
    let tensors = all[name].as_object().unwrap_or_else(|| panic!("no state dict `{name}`"));
    let entry = |(name, row): (&String, &Value)| {
        let shape = row.as_array().expect("a row")[1..]
            .iter()
            .map(|n| n.as_u64().expect("an extent") as usize)
            .collect();
        (name.clone(), (row[0].as_str().expect("a type").to_owned(), shape))
    };
    tensors.iter().map(entry).collect()
}

fn described(file: &Checkpoint) -> Dict {
    let dtype = |t: &NamedTensor| if matches!(t.data, TensorData::F32(_)) { "F32" } else { "I64" };
    file.tensors
        .iter()
        .map(|(name, t)| (name.clone(), (dtype(t).to_owned(), t.shape.clone())))
        .collect()
}

/// A checkpoint of these names and shapes; `value` fills the floats.
fn filled(dict: &Dict, value: impl Fn(&str, &[usize]) -> Vec<f32>) -> Checkpoint {
    let tensor = |name: &str, dtype: &str, shape: &[usize]| match dtype {
        "F32" => NamedTensor::f32(shape, value(name, shape)),
        _ => NamedTensor::i64(shape, vec![7]),
    };
    let tensors = dict
        .iter()
        .map(|(name, (dtype, shape))| (name.clone(), tensor(name, dtype, shape)))
        .collect();
    Checkpoint { tensors, meta: BTreeMap::new() }
}

fn zeros(_: &str, shape: &[usize]) -> Vec<f32> {
    vec![0.0; shape.iter().product()]
}

/// Writes a file as PyTorch's users do: no metadata.
fn write_foreign(file: &Checkpoint, path: &Path) {
    let bytes: Vec<(&String, &NamedTensor, Vec<u8>)> = file
        .tensors
        .iter()
        .map(|(name, t)| match &t.data {
            TensorData::F32(x) => (name, t, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            TensorData::I64(x) => (name, t, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        })
        .collect();
    let views = bytes.iter().map(|(name, t, bytes)| {
        let dtype = if matches!(t.data, TensorData::F32(_)) {
            safetensors::Dtype::F32
        } else {
            safetensors::Dtype::I64
        };
        (
            name.as_str(),
            safetensors::tensor::TensorView::new(dtype, t.shape.clone(), bytes).expect("a view"),
        )
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}

/// Every encoder has exactly the names, types and shapes of torchvision's, so `strict=True` has
/// nothing to say.
fn torchvision_names(depth: Depth, stem: Stem) -> Result<(), Failed> {
    let name = format!("{depth:?}").to_lowercase();
    let mut want = dict(&format!("torchvision/{name}"));
    if stem != Stem::Cifar {
        want.extend(dict(&format!("torchvision/{name}/7x7")));
    }
    let config = RunConfig { encoder: depth, stem, ..RunConfig::default() };
    let mut encoder = Builder::new(Graph::default(), false);
    let image = encoder.graph.input("image", TensorType::f32(Shape::new(1, 32, 32, 4)));
    resnet::encoder(&mut encoder, &config.net(), image);
    let tensors =
        encoder.params.all.iter().map(|p| {
            (p.name.clone(), NamedTensor::f32(&p.file.shape(), zeros("", &p.file.shape())))
        });
    let checkpoint = Checkpoint { tensors: tensors.collect(), meta: BTreeMap::new() };
    let trained =
        Trained { config, checkpoint, path: "weights.safetensors".into(), skipped: vec![] };
    let got = described(&torchvision::state_dict(&trained)?);
    let odd: Vec<_> = got.iter().filter(|row| !want.iter().any(|w| w == *row)).collect();
    if got == want {
        Ok(())
    } else {
        Err(format!("{} tensors, torchvision has {}; not there: {odd:?}", got.len(), want.len())
            .into())
    }
}

/// Reads the network off names and shapes.
fn understands(case: &str, options: &ImportOptions, want: &RunConfig) -> Result<(), Failed> {
    let want_names = dict(&format!("reference/{case}"));
    let imported = import::understand(filled(&want_names, zeros), options)?;
    if imported.config != *want {
        return Err(format!("understood as {:?}", imported.config.differences(want)).into());
    }
    let got = described(&Checkpoint { tensors: imported.tensors, meta: BTreeMap::new() });
    if got == want_names && imported.extra.is_empty() {
        Ok(())
    } else {
        Err(format!("{case}: other tensors; extra {:?}", imported.extra).into())
    }
}

/// Weights of a VAE that are all there.
fn whole() -> Checkpoint {
    filled(&dict("reference/resnet18-w8"), zeros)
}

fn without(name: &str) -> Checkpoint {
    let mut file = whole();
    file.tensors.remove(name).unwrap_or_else(|| panic!("no `{name}`"));
    file
}

fn refused(file: Checkpoint, options: &ImportOptions, says: &[&str]) -> Result<(), Failed> {
    match import::understand(file, options) {
        Ok(imported) => {
            Err(format!("understood as {:?}, not refused with {says:?}", imported.config).into())
        }
        Err(error) if says.iter().all(|text| error.to_string().contains(text)) => Ok(()),
        Err(error) => Err(format!("`{error}` does not say {says:?}").into()),
    }
}

/// What is wrong with a file is one sentence with the tensor and the shapes.
fn misfits() -> Result<(), Failed> {
    let fails = |file, says: &[&str]| refused(file, &ImportOptions::default(), says);
    let with = |name: &str, shape: &[usize]| {
        let mut file = whole();
        file.tensors.insert(name.into(), NamedTensor::f32(shape, zeros("", shape)));
        file
    };
    fails(Checkpoint::default(), &["no tensor `encoder.conv1.weight`"])?;
    fails(
        without("projection.logvar.weight"),
        &["no tensor `projection.logvar.weight`", "[8, 64]"],
    )?;
    fails(
        without("projection.mu.weight"),
        &["projection.mu.weight", "projection.projection_head.3.weight"],
    )?;
    fails(
        without("encoder.layer3.1.bn2.running_var"),
        &["no tensor `encoder.layer3.1.bn2.running_var`", "[32]"],
    )?;
    fails(
        with("encoder.layer2.0.conv1.weight", &[16, 16, 3, 3]),
        &["encoder.layer2.0.conv1.weight", "[16, 16, 3, 3]", "[16, 8, 3, 3]"],
    )?;
    fails(with("encoder.conv1.weight", &[8, 3, 5, 5]), &["encoder.conv1.weight", "[8, 3, 5, 5]"])?;
    fails(with("encoder.conv1.weight", &[12, 3, 3, 3]), &["width 12"])?;
    fails(
        with("encoder.layer2.2.conv1.weight", &[1]),
        &["encoder.layer1", "[2, 3, 2, 2]", "Resnet34 [3, 4, 6, 3]"],
    )?;
    fails(with("decoder.layer1.0.conv3.weight", &[1]), &["decoder.layer1", "three convolutions"])?;
    fails(with("projection.mu.weight", &[8]), &["projection.mu.weight", "[8]"])?;
    let mut file = whole();
    file.tensors.insert("decoder.conv2.bias".into(), NamedTensor::f32(&[8], vec![f32::NAN; 8]));
    fails(file, &["`decoder.conv2.bias` holds NaN at [0]"])?;
    let mut file = whole();
    file.tensors = file.tensors.into_iter().map(|(name, t)| (format!("net.{name}"), t)).collect();
    fails(file, &["begin with `net.`", "`encoder.conv1.weight` and so on"])
}

/// What was asked for is not what the file holds.
fn other_than_asked() -> Result<(), Failed> {
    let none = ImportOptions::default();
    let ae = filled(&dict("reference/resnet18-w8-ae"), zeros);
    refused(
        whole(),
        &ImportOptions { method: Some(Method::Ae), ..none.clone() },
        &["projection.mu.weight", "vae or aavae", "--method ae"],
    )?;
    refused(
        ae,
        &ImportOptions { method: Some(Method::Vae), ..none.clone() },
        &["projection_head.3.weight", "--method vae"],
    )?;
    refused(
        whole(),
        &ImportOptions { stem: Some(Stem::Stl), ..none.clone() },
        &["3x3", "--stem stl"],
    )?;
    refused(whole(), &ImportOptions { image_size: Some(33), ..none }, &["image size 33"])
}

/// What may be missing or too much is said.
fn missing_and_extra() -> Result<(), Failed> {
    let mut file = without("log_scale");
    file.tensors.retain(|name, _| !name.ends_with("num_batches_tracked"));
    file.tensors.insert("classifier.weight".into(), NamedTensor::f32(&[10, 64], vec![0.0; 640]));
    let imported = import::understand(file, &ImportOptions::default())?;
    let same = described(&Checkpoint { tensors: imported.tensors, meta: BTreeMap::new() })
        == dict("reference/resnet18-w8");
    if !same
        || imported.extra != ["classifier.weight"]
        || !imported.notes.iter().any(|n| n.contains("log_scale"))
    {
        return Err(format!("extra {:?}, notes {:?}", imported.extra, imported.notes).into());
    }
    Ok(())
}

/// The command line from a foreign file to a run folder, and whether its network computes the
/// golden numbers.
fn imported_weights_compute_the_golden_numbers(case: &str, method: Method) -> Result<(), Failed> {
    let name = method.name();
    let network = format!("network_{name}_resnet18_w8.safetensors");
    let dir = folder();
    let (file, run) = (dir.path().join("reference.safetensors"), dir.path().join("run"));
    write_foreign(&filled(&dict(&format!("reference/{case}")), fill_parameter), &file);
    let line = format!(
        "import {} --out {} --method {name} --dataset shapes --json",
        file.display(),
        run.display()
    );
    let value = sh(&line).ok().json();
    assert_eq!(
        (&value["method"], &value["imported_from"]),
        (&name.into(), &"reference.safetensors".into()),
        "{value}"
    );

    let trained = Trained::open(&run)?;
    let golden = Tensors::open(&network);
    let manifest = golden::json("manifest.json");
    let suffix = manifest["files"][&network]["case"]["input_suffix"].as_str().ok_or("no suffix")?;
    let config = RunConfig { batch_size: 4, ..trained.config };
    let (n, side) = (config.batch_size, config.image_size);
    let model = training(
        &config.model([0.0; 3], [1.0; 3]),
        Training { views: Views::Given, update: false, ..Training::default() },
    );
    let mut session = Device::Cpu.open()?;
    let session = &mut session;
    session.allocate(&model.graph.layout);
    state::import(session, &model.graph.layout, &model.params, &trained.checkpoint, &[])?;
    let id = session.load(session.lower("train", &model.graph))?;
    let image = |name: &str| {
        pixels(&fill(&format!("input.{name}{suffix}"), n * 3 * side * side, 4.0, 0.0), n, side)
    };
    let eps = fill(&format!("input.eps{suffix}"), n * config.latent_dim, 2.0 * 3.0_f64.sqrt(), 0.0);
    for (name, data) in [("original", image("original")), ("view", image("view")), ("eps", eps)] {
        if let Some((i, _)) = session.plan(id).input(name) {
            session.upload(id, i, Data::F32(&data))?;
        }
    }
    session.run(id, &StepUniforms::default())?;
    let mut report = Report::new(name, 1e-4);
    for name in ["h", "z", "loss"] {
        report.tensor(name, &read(session, id, name)?, golden.get(&format!("out/{name}")));
    }
    let nhwc = read(session, id, "reconstruction")?;
    let area = side * side;
    let nchw: Vec<f64> = (0..n * 3 * area)
        .map(|i| nhwc[(i / (3 * area) * area + i % area) * 4 + i / area % 3])
        .collect();
    report.sample("reconstruction", &nchw, golden.get("out.sample/reconstruction"));
    report.finish()
}

/// An imported run is a run to every command that takes one.
fn imported_runs_are_runs() -> Result<(), Failed> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut weights = filled(&dict("reference/resnet18-w8"), fill_parameter);
    weights.tensors.insert("queue".into(), NamedTensor::f32(&[2], vec![0.0; 2]));
    write_foreign(&weights, Path::new(&at("reference.safetensors")));
    let import = format!("import {} --out {}", at("reference.safetensors"), at("run"));
    let ran = sh(&import).ok();
    assert!(
        ran.stdout.contains("aavae with a Resnet18 encoder and a Resnet18 decoder of width 8"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("warning: `queue` is no tensor")
            && ran.stderr.contains("note: weights of vae and aavae"),
        "{ran:?}"
    );
    sh(&import).fails(1, &["run is not empty"]).hints("--out");
    // CIFAR-10 is what 32 pixels are taken for; it needs its files.
    sh(&format!("knn {} --device cpu", at("run"))).fails(2, &["--data-dir"]);
    let shapes = "--device cpu --dataset shapes --limit-train 64 --batch-size 32 --json";
    assert_eq!(
        sh(&format!("knn {} {shapes}", at("run"))).ok().json()["knn"].as_array().map(Vec::len),
        Some(2)
    );
    assert!(
        sh(&format!("probe {} {shapes} --epochs 1", at("run"))).ok().json()["accuracy"].is_number()
    );
    sh(&format!("reconstruct {} {shapes} --count 2 --out {}", at("run"), at("grid.png"))).ok();
    sh(&format!("export {} --format folder --out {}", at("run"), at("export"))).ok();
    let summary = sh(&format!(
        "pretrain {TINY} --no-eval --max-steps 1 --latent-dim 8 --init-from {} --out {}",
        at("run/checkpoints/last.safetensors"),
        at("tuned")
    ));
    digest(&summary.ok().json());
    let compared = sh(&format!("compare {} --json", at("run"))).ok().json();
    assert_eq!(compared["runs"][0]["state"], "imported", "{compared}");
    sh(&format!("compare {} --out {}", at("run"), at("c.png"))).fails(1, &["no run has a curve"]);
    assert!(sh(&format!("watch {} --once", at("run"))).ok().stdout.contains("imported"));
    sh(&format!("import {} --out {}", at("grid.png"), at("b")))
        .fails(1, &["grid.png", "not a safetensors file"]);
    sh(&format!("import {} --out {}", at("tuned/config.toml"), at("b"))).fails(1, &["config.toml"]);
    sh(&format!("import {} --out {} --method ae", at("reference.safetensors"), at("b")))
        .fails(1, &["--method ae"])
        .hints("flag");
    sh(&format!("import {} --out {}/run", at("reference.safetensors"), at("tuned/config.toml")))
        .fails(1, &["cannot create", "config.toml"]);
    assert!(!dir.path().join("b").exists() && dir.path().join("tuned/config.toml").is_file());
    Ok(())
}

/// `watch` in a terminal: it follows the run, and gives the screen back however it ends.
fn watch_gives_the_terminal_back() -> Result<(), Failed> {
    let dir = folder();
    let run = dir.path().join("run");
    support::pretrain(&run, "--max-steps 4 --log-every 2");
    let script = format!("{}/tests/terminal.py", env!("CARGO_MANIFEST_DIR"));
    let output =
        Command::new("python3").args([&script, env!("CARGO_BIN_EXE_aavae")]).arg(&run).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("terminal.py ended with {}:\n{text}", output.status).into())
    }
}

fn torchvision_trials() -> Vec<Trial> {
    let networks = [
        (Depth::Resnet18, Stem::Cifar),
        (Depth::Resnet34, Stem::Cifar),
        (Depth::Resnet50, Stem::Cifar),
        (Depth::Resnet18, Stem::Stl),
        (Depth::Resnet50, Stem::Imagenet),
    ];
    networks
        .map(|(depth, stem)| {
            let name = format!("torchvision/{depth:?}/{stem:?}").to_lowercase();
            Trial::test(name, move || torchvision_names(depth, stem))
        })
        .into()
}

/// Which configuration is read off which file.
fn understood() -> Vec<Trial> {
    let base =
        RunConfig { dataset: DataKind::Cifar10, width: 8, latent_dim: 8, ..RunConfig::default() };
    let paper = RunConfig {
        dataset: DataKind::Cifar10,
        encoder: Depth::Resnet50,
        decoder: Depth::Resnet50,
        ..RunConfig::default()
    };
    let stl = RunConfig {
        dataset: DataKind::Stl10,
        encoder: Depth::Resnet34,
        stem: Stem::Stl,
        image_size: 96,
        width: 8,
        ..RunConfig::default()
    };
    let asked = ImportOptions {
        method: Some(Method::Vae),
        dataset: Some(DataKind::Shapes),
        ..ImportOptions::default()
    };
    let imagenet = ImportOptions {
        stem: Some(Stem::Imagenet),
        image_size: Some(64),
        ..ImportOptions::default()
    };
    let cases = [
        ("resnet18-w8", ImportOptions::default(), base.clone()),
        (
            "resnet18-w8",
            asked,
            RunConfig { method: Method::Vae, dataset: DataKind::Shapes, ..base.clone() },
        ),
        (
            "resnet18-w8-ae",
            ImportOptions::default(),
            RunConfig { method: Method::Ae, ..base.clone() },
        ),
        (
            "resnet18-w8-ae",
            ImportOptions { method: Some(Method::Aaae), ..ImportOptions::default() },
            RunConfig { method: Method::Aaae, ..base },
        ),
        ("resnet34-resnet18-w8-stl", ImportOptions::default(), stl.clone()),
        (
            "resnet34-resnet18-w8-stl",
            imagenet,
            RunConfig { stem: Stem::Imagenet, image_size: 64, dataset: DataKind::Folder, ..stl },
        ),
        ("resnet50-w64", ImportOptions::default(), paper),
    ];
    cases
        .into_iter()
        .map(|(case, options, want)| {
            let name = format!("import/{case}/{}/{:?}", want.method.name(), want.stem);
            Trial::test(name.to_lowercase(), move || understands(case, &options, &want))
        })
        .collect()
}

/// A trial for which `python3` must have something; without that it is ignored.
fn python_trial(name: &str, has: bool, required: &str, test: fn() -> Result<(), Failed>) -> Trial {
    Trial::test(name, test).with_ignored_flag(!has && std::env::var_os(required).is_none())
}

fn python_runs(args: &[&str]) -> bool {
    Command::new("python3").args(args).output().is_ok_and(|o| o.status.success())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = torchvision_trials();
    trials.extend(understood());
    trials.push(Trial::test("import/misfits", misfits));
    trials.push(Trial::test("import/other than asked", other_than_asked));
    trials.push(Trial::test("import/missing and extra", missing_and_extra));
    for (case, method) in [
        ("resnet18-w8", Method::Aavae),
        ("resnet18-w8", Method::Vae),
        ("resnet18-w8-ae", Method::Ae),
    ] {
        let test = move || imported_weights_compute_the_golden_numbers(case, method);
        trials.push(Trial::test(format!("import/golden numbers/{}", method.name()), test));
    }
    trials.push(Trial::test("import/a run to every command", imported_runs_are_runs));
    trials.extend(export::trials());
    let find = "import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in \
        ('torch', 'torchvision', 'safetensors', 'PIL')))";
    let torch = python_runs(&["-c", find]);
    let name = if torch { "export/README snippet" } else { "export/README snippet (no torch)" };
    trials.push(python_trial(name, torch, "REQUIRE_TORCH", export::the_readme_snippet_loads));
    let python = cfg!(unix) && python_runs(&["--version"]);
    let watch = watch_gives_the_terminal_back;
    trials.push(python_trial("watch/terminal", python, "REQUIRE_PYTHON", watch));
    libtest_mimic::run(&args, trials).exit_code()
}

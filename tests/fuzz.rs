//! No file and no command line reaches a panic: whatever is read is mutated, and read again.
//!
//! The same inputs every time: `PROPTEST_CASES` asks for more of them (CONTRIBUTING.md, "Fuzzing"),
//! `PROPTEST_RNG_SEED` for others. A failure prints its smallest input and keeps the seed in
//! `tests/fuzz.proptest-regressions`, which is tried first from then on. What costs more is tried
//! on fewer: each property says by which factor.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aavae::data::folder::Folder;
use aavae::data::{Cifar10, Dataset, Stl10, cifar10, jpeg};
use aavae::device::DeviceSpec;
use aavae::interop::import;
use aavae::method::{Training, training};
use aavae::monitor::compare::Comparison;
use aavae::monitor::dashboard;
use aavae::monitor::run::RunView;
use aavae::reproduce::cells::Overrides;
use aavae::reproduce::folder::Identity;
use aavae::reproduce::results::Results;
use aavae::reproduce::{Experiment, GridScale, Setup, cells, folder, report};
use aavae::run::checkpoint::{Checkpoint, NamedTensor};
use aavae::run::metrics::{self, MetricsLog, MetricsRecord};
use aavae::run::settings::{DataKind, RunConfig};
use aavae::run::trained::{config_text, normalisation, open_data, read_config};
use aavae::train::progress::LogEnd;
use image::{ImageFormat, Rgb, RgbImage};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use serde_json::{Value, json};

/// Inputs of a property that costs `cost` times what the cheapest does.
fn inputs(cost: u32) -> Config {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let mut config = Config::default();
    config.cases = (if asked { config.cases } else { 256 } / cost).max(1);
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(7);
    }
    config.max_shrink_iters = 2000;
    config
}

/// A change of a string of bytes: what, where, how far, with what.
type Change = (u8, u32, u16, u8);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(any::<Change>(), 1..8)
}

/// Bytes that mean something somewhere.
const TELLING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, b'"', b'{', b'\n', b'9', b'-', 0xd9];

/// Bytes after some changes.
fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(what, at, far, with) in changes {
        let at = at as usize % (bytes.len() + 1);
        let end = (at + usize::from(far) % 64).min(bytes.len());
        match what % 8 {
            0 if at < bytes.len() => bytes[at] = with,
            1 if at < bytes.len() => bytes[at] ^= 1 << (with % 8),
            2 if at < bytes.len() => bytes[at] = TELLING[usize::from(with) % TELLING.len()],
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                let to = usize::from(far) * 7 % (bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            5 => bytes.truncate(at),
            6 => bytes.insert(at, TELLING[usize::from(with) % TELLING.len()]),
            _ => bytes[at..end].fill(with),
        }
    }
    bytes
}

/// Values that no program writes where a number or a text is expected.
fn nasty(which: u8) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(-1e308),
        json!(5e-324),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("é猫é猫é猫é猫"),
        json!("\u{1b}[2J\u{0}|`<a>"),
        json!([]),
        json!({}),
        json!([[1e300, -1e300]]),
        json!(0.5),
    ];
    values[usize::from(which) % values.len()].clone()
}

/// The leaves and branches of a value, by number.
fn part<'a>(value: &'a mut Value, number: &mut usize) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| part(item, number)),
        Value::Object(items) => items.values_mut().find_map(|item| part(item, number)),
        _ => None,
    }
}

/// A value of which some parts are others.
fn edited(value: &Value, edits: &[(u16, u8)]) -> Value {
    let mut value = value.clone();
    for &(number, which) in edits {
        if let Some(part) = part(&mut value, &mut usize::from(number)) {
            *part = nasty(which);
        }
    }
    value
}

fn edits() -> impl Strategy<Value = Vec<(u16, u8)>> {
    prop::collection::vec((0u16..60, any::<u8>()), 1..5)
}

/// A folder of a property, the same for all of its inputs: they write the same files.
fn place(property: &str) -> PathBuf {
    static ALL: LazyLock<tempfile::TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("a folder"));
    let folder = ALL.path().join(property);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn written(path: &Path, bytes: &[u8]) -> PathBuf {
    fs::write(path, bytes).expect("a file");
    path.to_owned()
}

// ---- Configurations and command lines ----

const CONFIG: &str = "dataset = \"folder\"\ndata_dir = \"/data/ü\"\nmethod = \"simclr\"\n\
    encoder = \"resnet18\"\nstem = \"cifar\"\nwidth = 64\nlatent_dim = 128\nimage_size = 32\n\
    epochs = 400\nmax_steps = 7\nbatch_size = 256\naccumulate = 1\noptimizer = \"lars\"\n\
    weight_decay = 1e-6\nlearning_rate = 0.00025\nwarmup_epochs = 10\nschedule = \"cosine\"\n\
    log_scale = -0.5\ntemperature = 0.5\n\
    seed = 18446744073709551615\nmilestones = [1, 2, 30]\nkeep = 3\nshuffle = true\n";

const FLAGS: [&str; 26] = [
    "--width",
    "--latent-dim",
    "--epochs",
    "--max-steps",
    "--batch-size",
    "--accumulate",
    "--learning-rate",
    "--weight-decay",
    "--warmup-epochs",
    "--kl-coeff",
    "--log-scale",
    "--temperature",
    "--limit-train",
    "--seed",
    "--milestones",
    "--log-every",
    "--eval-every",
    "--importance-samples",
    "--view-metrics-every",
    "--probe-epochs",
    "--probe-batch-size",
    "--image-size",
    "--method",
    "--stem",
    "--encoder",
    "--device",
];

const VALUES: [&str; 24] = [
    "0",
    "1",
    "2",
    "8",
    "16",
    "64",
    "-1",
    "1e308",
    "-0.0",
    "nan",
    "inf",
    "18446744073709551615",
    "99999999999999999999",
    "4294967296",
    "1048576",
    "",
    "é",
    "1,2,3",
    "3,2",
    "simclr",
    "vae",
    "resnet50",
    "imagenet",
    "wgpu:é",
];

proptest! {
    #![proptest_config(inputs(1))]

    #[test]
    fn configuration_files(changes in changes()) {
        let dir = place("configuration_files");
        let path = written(&dir.join("config.toml"), &changed(CONFIG.as_bytes(), &changes));
        if let Ok(config) = read_config(&path) {
            let valid = config.validate().is_ok();
            // What is read is written, and read again as the same.
            let text = config_text(&config).expect("a configuration from a file is text");
            let again = read_config(&written(&path, text.as_bytes())).expect("its own text");
            prop_assert!(
                again.differences(&config).is_empty() && again.validate().is_ok() == valid
            );
        }
        let training =
            json!({ "training": serde_json::to_value(RunConfig::default()).expect("a table") })
                .to_string();
        read_config(&written(&dir.join("config.json"), &changed(training.as_bytes(), &changes)))
            .ok();
    }

    #[test]
    fn command_lines(
        command in 0usize..8,
        words in prop::collection::vec((0usize..26, 0usize..24), 0..6),
        odd in ".{0,12}",
    ) {
        let commands =
            ["pretrain", "probe", "plan", "bench", "reproduce", "watch", "knn", "compare"];
        let words = words.into_iter().flat_map(|(flag, value)| [FLAGS[flag], VALUES[value]]);
        let line: Vec<OsString> = ["aavae", commands[command]]
            .into_iter()
            .chain(words)
            .chain([odd.as_str()])
            .map(Into::into)
            .collect();
        aavae::cli::understands(line.clone());
        aavae::cli::understands(line[..line.len() - 1].to_vec());
        odd.parse::<DeviceSpec>().ok();
    }
}

proptest! {
    #![proptest_config(inputs(16))]

    /// What `validate` lets pass is a network that can be built.
    #[test]
    fn valid_configurations_have_networks(
        changes in changes(),
        stem in 0usize..3,
        sizes in prop::array::uniform4(0usize..24),
    ) {
        let text = String::from_utf8_lossy(&changed(CONFIG.as_bytes(), &changes)).into_owned();
        let stem = ["cifar", "stl", "imagenet"][stem];
        let small = format!(
            "stem = \"{stem}\"\nwidth = {}\nlatent_dim = {}\nimage_size = {}\nbatch_size = {}\n",
            sizes[0] * 8,
            sizes[1] * 4,
            sizes[2] * 8,
            sizes[3]
        );
        for text in [text, small] {
            if let Ok(config) = toml::from_str::<RunConfig>(&text)
                && config.validate_network().is_ok()
                && config.batch_size > 1
            {
                let (mean, std) = normalisation(&config);
                training(&config.model(mean, std), Training::default());
            }
        }
    }
}

// ---- Weights ----

static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let tensors = BTreeMap::from([
        ("encoder.conv1.weight".to_owned(), NamedTensor::f32(&[2, 3, 1, 1], vec![0.5; 6])),
        ("steps".to_owned(), NamedTensor::i64(&[], vec![3])),
    ]);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.safetensors");
    Checkpoint { tensors, meta: [("config".to_owned(), CONFIG.to_owned())].into() }
        .save(&path)
        .expect("a file");
    fs::read(path).expect("a file")
});

proptest! {
    #![proptest_config(inputs(1))]

    #[test]
    fn safetensors(changes in changes(), within_header in any::<bool>()) {
        let dir = place("safetensors");
        let bytes = &*WEIGHTS;
        // With an intact length the header itself is read; a digest is left out, or nothing would
        // get past it.
        let bytes = if within_header {
            let end = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
            let header = String::from_utf8(changed(&bytes[8..end], &changes))
                .unwrap_or_default()
                .replace("sha256", "sha");
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[end..]].concat()
        } else {
            changed(bytes, &changes)
        };
        let path = written(&dir.join("x.safetensors"), &bytes);
        if let Ok(file) = Checkpoint::load(&path) {
            import::understand(file, &import::ImportOptions::default()).ok();
        }
        import::open(&path, &import::ImportOptions::default()).ok();
    }

    #[test]
    fn state_dicts(
        shapes in prop::collection::vec((0usize..9, prop::collection::vec(0usize..70, 0..5)), 1..9),
        prefix in 0usize..4,
    ) {
        let names = [
            "encoder.conv1.weight",
            "projection.mu.weight",
            "projection.projection_head.3.weight",
            "log_scale",
            "encoder.layer1.0.conv3.weight",
            "encoder.layer1.1.conv1.weight",
            "encoder.layer4.18446744073709551615.x",
            "decoder.layer2.0.conv1.weight",
            "criterion.weight",
        ];
        let prefix = ["", "module.", "model._orig_mod.", "net."][prefix];
        let tensor = |(name, shape): (usize, Vec<usize>)| {
            let shape =
                if name == 0 { vec![shape.iter().sum::<usize>() * 4, 3, 3, 3] } else { shape };
            let elements = shape.iter().product::<usize>();
            (
                format!("{prefix}{}", names[name]),
                NamedTensor::f32(&shape, vec![0.1; elements.min(1 << 20)]),
            )
        };
        let file =
            Checkpoint { tensors: shapes.into_iter().map(tensor).collect(), meta: BTreeMap::new() };
        import::understand(file, &import::ImportOptions::default()).ok();
    }
}

// ---- What runs leave ----

const METRICS: &str = "{\"step\":3,\"epoch\":0,\"split\":\"train\",\"loss\":4397.25,\"knn20\":0.5,\
    \"images_per_second\":30.5}\n\
    {\"step\":3,\"epoch\":0,\"split\":\"val\",\"loss\":4400.0,\"bits_per_dim_elbo\":6.5}\n\
    {\"step\":6,\"epoch\":1,\"split\":\"train\",\"loss\":null,\"bits_per_dim_elbo\":1e30}\n";

const LOG: &str =
    "2026-01-01T00:00:00Z step 6/12 epoch 1 loss 2.0\n2026-01-01T00:00:09Z 6 steps in 0:09\n";

fn summary() -> Value {
    json!({
        "run": "x", "method": "aavae", "seed": 0, "steps": 6, "resumed_at": 0, "seconds": 1.5,
            "images_per_second": 800.0,
        "device": "cpu (2 threads)", "sha256": "0123456789abcdef".repeat(4),
            "finished": "2026-01-01T00:00:00Z", "interrupted": false,
        "train": { "loss": 1.0 }, "evaluation_seconds": 2.0,
        "probe": { "accuracy": 0.5, "train_accuracy": 0.6, "epochs": 4 },
        "knn": [{ "k": 20, "temperature": 0.07, "accuracy": 0.3 },
            { "k": 200, "temperature": 0.1, "accuracy": 0.2 }],
        "milestones": [{ "epoch": 1, "step": 3, "probe": { "accuracy": 0.4, "epochs": 4 },
            "knn": [{ "k": 20, "temperature": 0.07, "accuracy": 0.3 }] }],
    })
}

proptest! {
    #![proptest_config(inputs(1))]

    #[test]
    fn metrics_files(changes in changes(), step in 0u64..8) {
        let dir = place("metrics_files");
        let bytes = changed(METRICS.as_bytes(), &changes);
        bytes.split(|byte| *byte == b'\n').for_each(|line| drop(MetricsRecord::parse(line)));
        LogEnd::of(&String::from_utf8_lossy(&bytes));
        let path = written(&dir.join("metrics.jsonl"), &bytes);
        metrics::read(&path).ok();
        if let Ok(mut log) = MetricsLog::resume(&path, step) {
            log.write(&MetricsRecord::new(step + 1, 0, "train")).expect("a line");
            prop_assert!(metrics::read(&path).is_ok(), "a file that was resumed is whole");
        }
    }

    /// A run folder with any of its files changed is looked at.
    #[test]
    fn run_folders(which in 0usize..4, changes in changes(), edits in edits()) {
        let dir = place("run_folders");
        let texts = [
            ("config.toml", CONFIG.replace("simclr", "aavae").replace("temperature = 0.5\n", "")),
            ("metrics.jsonl", METRICS.into()),
            ("train.log", LOG.into()),
            ("summary.json", edited(&summary(), if which == 3 { &edits } else { &[] }).to_string()),
        ];
        for (i, (name, text)) in texts.iter().enumerate() {
            let bytes = if i == which && i < 3 {
                changed(text.as_bytes(), &changes)
            } else {
                text.clone().into_bytes()
            };
            written(&dir.join(name), &bytes);
        }
        if let Ok(view) = RunView::open(&dir) {
            let area = ratatui::layout::Rect::new(0, 0, 80, 30);
            dashboard::draw(&view, Err("none"), area, &mut ratatui::buffer::Buffer::empty(area));
            dashboard::snapshot(&view);
            let comparison = Comparison::open(&[dir.clone(), dir.clone()]).expect("a run");
            comparison.text();
            serde_json::to_string(&comparison.json()).expect("JSON");
        }
    }
}

proptest! {
    #![proptest_config(inputs(64))]

    /// A report is written of whatever the runs of a grid say.
    #[test]
    fn reports(
        experiment in 0usize..6,
        edits in edits(),
        changes in changes(),
        run in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let setup = Setup {
            experiment: Experiment::ALL[experiment],
            scale: GridScale::Smoke,
            dataset: DataKind::Shapes,
            data_dir: None,
            seeds: 2,
            overrides: Overrides::default(),
        };
        let cells = cells(&setup, 2000);
        let splits = open_data(&RunConfig { limit_train: Some(64), ..RunConfig::default() })
            .expect("embedded images");
        let names: Vec<String> =
            (0..2).flat_map(|seed| cells.iter().map(move |cell| cell.folder(seed))).collect();
        let chosen = run.index(names.len());
        for (i, name) in names.iter().enumerate() {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("a folder");
            let mut value = summary();
            value["probe"]["epochs"] = json!(cells[i % cells.len()].config(0).probe_epochs);
            if i == chosen {
                value = edited(&value, &edits);
                written(&path.join("metrics.jsonl"), &changed(METRICS.as_bytes(), &changes));
                written(
                    &path.join("views.json"),
                    &changed(
                        b"[{\"of\":\"h\",\"matrix\":[0.5],\"within\":1e308,\"across\":-1e308}]",
                        &changes,
                    ),
                );
                written(
                    &path.join("failure.json"),
                    edited(&json!({ "error": "é", "hint": null }), &edits).to_string().as_bytes(),
                );
            }
            written(&path.join("summary.json"), value.to_string().as_bytes());
        }
        let identity = json!({ "experiment": "fig2", "scale": "smoke", "dataset": "shapes",
            "version": "0.1.0", "seeds": 2, "runs": names,
            "command": "aavae reproduce" });
        let mut known: Identity = serde_json::from_value(identity.clone()).expect("an identity");
        written(&dir.path().join(folder::FILE), edited(&identity, &edits).to_string().as_bytes());
        if let Ok(Some(read)) = folder::read(dir.path()) {
            known = read;
        }
        let results = Results::read(&setup, &cells, &splits, &[], dir.path());
        report::write(&results, &known, dir.path()).expect("a report");
        results.table();
    }
}

// ---- Images and binary files ----

fn picture(format: ImageFormat) -> Vec<u8> {
    let image =
        RgbImage::from_fn(20, 12, |x, y| Rgb([(x * 12) as u8, (y * 20) as u8, (x * y) as u8]));
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, format).expect("an encoder");
    file.into_inner()
}

/// Changes near the start of a file, where its headers are, or anywhere.
fn in_header(bytes: &[u8], changes: &[Change], header: usize) -> Vec<u8> {
    let (head, rest) = bytes.split_at(header.min(bytes.len()));
    [&changed(head, changes)[..], rest].concat()
}

proptest! {
    #![proptest_config(inputs(1))]

    #[test]
    fn jpegs(changes in changes(), progressive in any::<bool>(), header in any::<bool>()) {
        let whole = if progressive {
            include_bytes!("data/progressive.jpg").to_vec()
        } else {
            picture(ImageFormat::Jpeg)
        };
        let bytes =
            if header { in_header(&whole, &changes, 200) } else { changed(&whole, &changes) };
        jpeg::decode(&bytes).ok();
        // It ends as a file must, so that more than the search for the end is tried.
        jpeg::decode(&[&bytes[..], &[0xff, 0xd9]].concat()).ok();
    }

    #[test]
    fn images(changes in changes(), format in 0usize..4, header in any::<bool>()) {
        let dir = place("images");
        let format =
            [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff][format];
        let whole = picture(format);
        let bytes =
            if header { in_header(&whole, &changes, 60) } else { changed(&whole, &changes) };
        fs::create_dir_all(dir.join("class")).expect("a folder");
        written(&dir.join("class/a.png"), &bytes);
        let set = Folder::open(&dir, 8, 0).expect("a file");
        set.read(0, &mut [0; 192]).ok();
    }

    #[test]
    fn cifar_and_stl_files(changes in changes(), records in 1usize..4, names in ".{0,40}") {
        let dir = place("cifar_and_stl_files");
        let whole: Vec<u8> =
            (0..records).flat_map(|r| std::iter::once(r as u8).chain([7; 3072])).collect();
        let path = written(&dir.join("a.bin"), &changed(&whole, &changes));
        if let Ok(set) = Cifar10::from_files(&[path], records, Cifar10::class_names()) {
            prop_assert!((0..set.len()).all(|i| set.label(i) < 10));
        }
        for name in cifar10::TRAIN_FILES {
            written(&dir.join(name), &[]);
        }
        written(&dir.join(cifar10::META_FILE), names.as_bytes());
        prop_assert!(Cifar10::open(&dir).is_err());
        let images = 1 + usize::from(changes[0].0) % 2;
        for part in ["train", "test", "unlabeled"] {
            let labels = changed(&vec![1; images], &changes[..1]);
            written(
                &dir.join(format!("{part}_X.bin")),
                &vec![9; images * 27_648 - usize::from(changes[0].3 % 16 == 0)],
            );
            written(&dir.join(format!("{part}_y.bin")), &labels);
        }
        if let Ok(sets) = Stl10::open(&dir) {
            prop_assert!((0..sets.train.len()).all(|i| sets.train.label(i) < 10));
            sets.test.read(0, &mut vec![0; 27_648]).expect("an image");
        }
    }
}

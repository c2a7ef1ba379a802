//! `aavae probe`, `knn`, `embed`, `reconstruct`: a trained model on a data set.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::flags::{Flags, Selection};
use super::pretrain::SHAPES_HAS_NO_FILES;
use super::{Failure, Outcome, choice, print_json, print_text, say, usage};
use crate::data::{Splits, Subset};
use crate::device;
use crate::eval::features::Evaluator;
use crate::eval::knn::{KNN, knn_left_out, knn_table};
use crate::interop::import;
use crate::ops::StepUniforms;
use crate::run::checkpoint::{Checkpoint, NamedTensor, TensorData};
use crate::run::folder::{refuse_inside_data, refuse_output};
use crate::run::settings::{DataKind, RunConfig, Setting};
use crate::run::summary::KnnScore;
use crate::run::trained::{model_config, open_data, write_whole};
use crate::run::{RunError, precision};
use crate::text::{self, json_names};
use crate::train::experiment::probe_view;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Split {
    Train,
    Val,
    Test,
}

/// The settings that say which images there are; a run has its own.
#[derive(Debug)]
struct OfData;

impl Selection for OfData {
    fn takes(setting: &Setting) -> bool {
        ["dataset", "data_dir", "limit_train"].contains(&setting.key)
    }
    fn default(_: &Setting) -> Option<String> {
        Some("the run's".into())
    }
}

/// What every evaluation takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// Run folder, a checkpoint of one, or weights that `import` would take
    #[arg(value_name = "RUN_OR_FILE")]
    model: PathBuf,
    #[command(flatten)]
    settings: Flags<OfData>,
    /// Part of the data set to evaluate on
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    /// Images per step
    #[arg(long)]
    batch_size: Option<usize>,
    /// Evaluate the randomly initialised network instead of the trained weights
    #[arg(long)]
    random_init: bool,
    /// Seed of a random network, of the probe and of the views (default: the run's)
    #[arg(long)]
    seed: Option<u64>,
    /// auto, cpu, wgpu, wgpu:NAME or cuda
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

struct Opened {
    config: RunConfig,
    splits: Splits,
    evaluator: Evaluator,
}

impl Common {
    /// What is evaluated, by a device. The place `out` of what comes out is looked at first.
    fn open(&self, out: Option<&Path>) -> Result<Opened, Failure> {
        out.map_or(Ok(()), |out| refuse_output(out, &self.model))?;
        let choice = choice(&self.device)?;
        let options = import::ImportOptions {
            dataset: self.settings.dataset,
            data_dir: self.settings.data_dir.clone().flatten(),
            ..import::ImportOptions::default()
        };
        let (trained, notes) = import::open(&self.model, &options)?;
        notes.iter().for_each(|note| say(&format!("note: {note}")));
        for error in &trained.skipped {
            say(&format!("warning: skipped a checkpoint: {error}"));
        }
        let mut config = trained.config.clone();
        self.settings.apply(&mut config);
        if self.settings.data_dir.is_some() && config.dataset == DataKind::Shapes {
            return Err(usage(SHAPES_HAS_NO_FILES, None));
        }
        config.batch_size = self.batch_size.unwrap_or(config.probe_batch());
        if let Some(seed) = self.seed {
            config.seed = seed;
        }
        config.validate().map_err(|message| usage(message, None))?;
        if let Some(out) = out {
            refuse_inside_data(out, config.dataset, config.data_dir.as_deref())?;
        }
        let splits = open_data(&config)?;
        splits.notes.iter().for_each(|note| say(&format!("note: {note}")));
        let (mut session, why) = device::open(&choice)?;
        let half = config.half();
        if let (Some(half), None) = (half, precision::evaluate(&mut session, half)) {
            let half = half.name();
            say(&format!(
                "note: this device cannot store {half}, in which the run was trained: it takes f32"
            ));
        }
        let weights =
            if self.random_init { "random".into() } else { text::name(&trained.path).to_string() };
        say(&format!("device: {} ({why}); weights: {weights}", session.device()));
        let evaluator = Evaluator::new(
            session,
            model_config(&config, &splits),
            config.protocol(),
            splits.labelled_train.dataset.classes().len(),
            (!self.random_init).then_some(&trained),
            config.seed,
        )?;
        Ok(Opened { config, splits, evaluator })
    }
}

impl Opened {
    /// The images with labels, or those of pretraining.
    fn view(&self, split: Split, labelled: bool) -> Result<Subset, Failure> {
        let s = &self.splits;
        let view = match (split, labelled) {
            (Split::Train, true) => s.labelled_train.clone(),
            (Split::Val, true) => s.labelled_val.clone(),
            (Split::Train, false) => s.train.clone(),
            (Split::Val, false) => s.val.clone(),
            (Split::Test, _) => s.test.clone(),
        };
        if view.is_empty() {
            return Err(RunError::config(
                format!("the {split:?} split is empty").to_lowercase(),
                Some("--split train and --split test always exist"),
            )
            .into());
        }
        Ok(view)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ProbeArgs {
    #[command(flatten)]
    common: Common,
    /// Passes over the training images
    #[arg(long, default_value_t = 90)]
    epochs: usize,
    /// Write the JSON to a file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn probe(args: &ProbeArgs) -> Outcome {
    if args.epochs == 0 {
        return Err(usage("--epochs is 0; it must be positive", None));
    }
    let mut o = args.common.open(args.out.as_deref())?;
    let view = o.view(args.common.split, true)?;
    let test = o.evaluator.features(&view, |_| ())?;
    let train = o.splits.labelled_train.clone();
    let result =
        probe_view(&mut o.evaluator, o.config.seed, args.epochs, &train, &test, &mut |line| {
            say(line)
        })?;
    let value = json!({
        "accuracy": result.test,
        "train_accuracy": result.train,
        "epochs": args.epochs,
        "seed": o.config.seed,
        "train_images": train.len(),
        "test_images": view.len(),
        "random_init": args.common.random_init,
    });
    report(&value, args.common.json, args.out.as_ref(), &format!("accuracy {:.4}", result.test))
}

#[derive(Debug, clap::Args)]
pub(super) struct KnnArgs {
    #[command(flatten)]
    common: Common,
    /// Write the JSON to a file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn knn(args: &KnnArgs) -> Outcome {
    let mut o = args.common.open(args.out.as_deref())?;
    let view = o.view(args.common.split, true)?;
    let train_view = o.splits.labelled_train.clone();
    let train = o.evaluator.features(&train_view, |_| ())?;
    let test = o.evaluator.features(&view, |_| ())?;
    let table = knn_table(&train, &test, view.dataset.classes().len())?;
    if table.is_empty() {
        let message = format!(
            "kNN needs at least {} training images, the set has {}",
            KNN[0].0,
            train_view.len()
        );
        let hint = o.config.limit_train.map(|_| "raise --limit-train");
        return Err(RunError::config(message, hint).into());
    }
    knn_left_out(train_view.len()).inspect(|text| say(&format!("note: {text}")));
    let text: Vec<_> = table
        .iter()
        .map(|(k, t, a)| format!("k {k:3}  temperature {t:.2}  accuracy {a:.4}"))
        .collect();
    let value = json!({
        "knn": KnnScore::rows(&table),
        "train_images": train_view.len(),
        "test_images": view.len(),
        "random_init": args.common.random_init,
    });
    report(&value, args.common.json, args.out.as_ref(), &text.join("\n"))
}

#[derive(Debug, clap::Args)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    common: Common,
    /// File to write
    #[arg(long, value_name = "FILE", default_value = "features.safetensors")]
    out: PathBuf,
}

pub(super) fn embed(args: &EmbedArgs) -> Outcome {
    let mut o = args.common.open(Some(&args.out))?;
    // File order, whatever order training used: of the whole training file unless a part was asked
    // for.
    let view = match (args.common.split, args.common.settings.limit_train) {
        (Split::Train, None) => Subset::full(o.splits.labelled_train.dataset.clone()),
        (split, _) => {
            let mut view = o.view(split, true)?;
            let mut indices = view.indices.to_vec();
            indices.sort_unstable();
            view.indices = indices.into();
            view
        }
    };
    let features = o.evaluator.features(&view, |_| ())?;
    let rows = features.labels.len();
    let labels = features.labels.iter().map(|&l| i64::from(l)).collect();
    let tensors = BTreeMap::from([
        (
            "features".to_owned(),
            NamedTensor { shape: vec![rows, features.dim], data: TensorData::F32(features.data) },
        ),
        ("labels".to_owned(), NamedTensor { shape: vec![rows], data: TensorData::I64(labels) }),
    ]);
    let meta =
        names(&view).inspect_err(|note| say(&format!("warning: {note}"))).unwrap_or_default();
    Checkpoint { tensors, meta }.save(&args.out)?;
    let file = text::path(&args.out);
    let value = json!({ "file": file, "images": rows, "features": features.dim });
    report(
        &value,
        args.common.json,
        None,
        &format!("{rows} x {} features in {}", features.dim, text::name(&args.out)),
    )
}

/// What the rows of an embedding are: `classes`, by label, and `files`, by row, where images have
/// files, each an array of JSON as [`json_names`] writes it. Files are relative to the folder of
/// the data set.
fn names(view: &Subset) -> Result<BTreeMap<String, String>, String> {
    /// Most bytes of names: with quotes and backslashes escaped they fit in a header, which has 100
    /// MB.
    const MOST: usize = 45_000_000;
    let files: Option<Vec<PathBuf>> =
        view.indices.iter().map(|&index| view.dataset.file(index as usize)).collect();
    let mut names = BTreeMap::from([(
        "classes",
        json_names(view.dataset.classes().iter().map(OsString::as_os_str)),
    )]);
    names.extend(
        files.map(|files| ("files", json_names(files.iter().map(|file| file.as_os_str())))),
    );
    match names.values().map(String::len).sum::<usize>() {
        bytes if bytes > MOST => Err(format!(
            "{bytes} bytes of names are too many for a safetensors file; they are left out"
        )),
        _ => Ok(names.into_iter().map(|(key, names)| (key.to_owned(), names)).collect()),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ReconstructArgs {
    #[command(flatten)]
    common: Common,
    /// How many images to draw
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// PNG to write
    #[arg(long, value_name = "FILE", default_value = "reconstruction.png")]
    out: PathBuf,
}

pub(super) fn reconstruct(args: &ReconstructArgs) -> Outcome {
    if args.count == 0 {
        return Err(usage("--count is 0; it must be positive", None));
    }
    let mut o = args.common.open(Some(&args.out))?;
    let view = o.view(args.common.split, false)?;
    let step = StepUniforms::evaluation(o.config.seed, 0);
    let png = o.evaluator.reconstruct(&view, args.count, &step)?;
    write_whole(&args.out, &png.bytes)?;
    let value = json!({
        "file": text::path(&args.out),
        "images": args.count.min(view.len()),
        "width": png.width,
        "height": png.height,
    });
    report(
        &value,
        args.common.json,
        None,
        &format!("{} ({}x{})", text::name(&args.out), png.width, png.height),
    )
}

fn report(value: &serde_json::Value, as_json: bool, out: Option<&PathBuf>, text: &str) -> Outcome {
    if let Some(path) = out {
        write_whole(path, format!("{value}\n").as_bytes())?;
    }
    if as_json {
        print_json(value)?;
    } else {
        print_text(text)?;
    }
    Ok(ExitCode::SUCCESS)
}

//! Runs from the authors' checkpoints: a PyTorch state dict as safetensors, names `encoder.*`,
//! `projection.*`, `decoder.*` and `log_scale`. What network it is follows from names and shapes;
//! what they do not say is asked for, or taken as the paper has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::new_folder;
use crate::method::{self, Method, Training};
use crate::model::{Depth, Stem};
use crate::run::RunError;
use crate::run::checkpoint::{Checkpoint, NamedTensor, TensorData};
use crate::run::foreign;
use crate::run::settings::{DataKind, RunConfig};
use crate::run::state;
use crate::run::store::LAST;
use crate::run::summary::RunSummary;
use crate::run::trained::{Trained, config_text, normalisation, write_config};
use crate::text;

/// What a state dict does not say.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// VAE or AAVAE, AE or AAAE (default: AAVAE, AE).
    pub method: Option<Method>,
    /// STL or ImageNet stem, both 7x7 (default: STL).
    pub stem: Option<Stem>,
    /// Side of the images (default: 32, or 96 behind a 7x7 stem).
    pub image_size: Option<usize>,
    /// Data set that the run's commands take (default: CIFAR-10 for 32 pixels, STL-10 for 96,
    /// otherwise a folder).
    pub dataset: Option<DataKind>,
    /// Folder of the data set's files.
    pub data_dir: Option<PathBuf>,
}

/// A state dict that has been understood.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The network; the training is not known and has its defaults.
    pub config: RunConfig,
    /// The model's tensors.
    pub tensors: BTreeMap<String, NamedTensor>,
    /// Tensors of the file that the model does not have.
    pub extra: Vec<String>,
    /// What the file left open, and how it was decided.
    pub notes: Vec<String>,
}

const NAMES: &str = "the names and shapes are those of the authors' state dict: encoder.*, \
    projection.*, decoder.*, log_scale";

/// Reads a state dict.
///
/// # Errors
/// If it is no such network: the message names the tensor and the shapes. If it holds weights that
/// no training makes.
pub fn read(path: &Path, options: &ImportOptions) -> Result<Imported, RunError> {
    named(path, Checkpoint::load(path)?, options)
}

/// Opens a run folder or a checkpoint of one, or else weights that say nothing of their network,
/// which is then found as [`read`] finds it. The notes say what was decided; there are none of a
/// run.
///
/// # Errors
/// If it is none of these.
pub fn open(path: &Path, options: &ImportOptions) -> Result<(Trained, Vec<String>), RunError> {
    if !path.is_file() {
        return Ok((Trained::open(path)?, vec![]));
    }
    let file = Checkpoint::load(path)?;
    if file.meta.contains_key("config") {
        return Ok((Trained::of_checkpoint(path, file)?, vec![]));
    }
    let meta = file.meta.clone();
    let Imported { config, tensors, extra, mut notes } = named(path, file, options)?;
    notes.insert(
        0,
        "the weights do not say of which network they are; `aavae import` may be told more".into(),
    );
    if !extra.is_empty() {
        notes.push(format!(
            "{} tensors are not of this network, such as `{}`",
            extra.len(),
            extra[0]
        ));
    }
    Ok((
        Trained {
            config,
            checkpoint: Checkpoint { tensors, meta },
            path: path.into(),
            skipped: vec![],
        },
        notes,
    ))
}

fn named(path: &Path, file: Checkpoint, options: &ImportOptions) -> Result<Imported, RunError> {
    understand(file, options).map_err(|error| match error {
        RunError::Config { message, hint } => {
            RunError::Config { message: format!("`{}`: {message}", crate::text::name(path)), hint }
        }
        other => other.of_file(path),
    })
}

/// Finds the network whose state dict this is.
///
/// # Errors
/// What does not fit: the tensor and the shapes. A tensor of the network that holds what no
/// training makes.
pub fn understand(mut file: Checkpoint, options: &ImportOptions) -> Result<Imported, RunError> {
    let (config, notes) = network(&mut file, options).map_err(unknown)?;
    let (mean, std) = normalisation(&config);
    let params = method::training(&config.model(mean, std), Training::default()).params;
    let tensors = state::select(&file, &params).map_err(|error| match error {
        RunError::Architecture { message } => unknown(message),
        other => other,
    })?;
    let extra = file.tensors.keys().filter(|name| !tensors.contains_key(*name)).cloned().collect();
    Ok(Imported { config, tensors, extra, notes })
}

/// Names or shapes that are of no network of the authors'.
fn unknown(message: String) -> RunError {
    let hint = if message.contains("--") { "without the flag the file decides" } else { NAMES };
    RunError::config(message, Some(hint))
}

/// The network, and what the file left open.
fn network(
    file: &mut Checkpoint,
    options: &ImportOptions,
) -> Result<(RunConfig, Vec<String>), String> {
    let mut notes = Vec::new();
    if let Some(prefix) = foreign::unwrap(file)? {
        notes.push(format!("the names of the weights began with `{prefix}`, which was taken off"));
    }
    let (stem, width) = stem(file, options.stem, &mut notes)?;
    let (samples, head) = match ["projection.mu.weight", "projection.projection_head.3.weight"]
        .map(|name| file.tensors.contains_key(name))
    {
        [true, _] => (true, "projection.mu.weight"),
        [false, true] => (false, "projection.projection_head.3.weight"),
        [false, false] => {
            return Err(
                "no tensor `projection.mu.weight` and no `projection.projection_head.3.weight`"
                    .into(),
            );
        }
    };
    let method = method_of(head, samples, options.method, &mut notes)?;
    let latent_dim = match shape(file, head)? {
        [latent, _] => *latent,
        other => return Err(format!("`{head}` has shape {other:?}, expected [latent, features]")),
    };
    let log_scale = match file.tensors.get("log_scale").map(|t| &t.data) {
        Some(TensorData::F32(x)) if samples && x.len() == 1 => x[0],
        None if samples => {
            notes.push("no tensor `log_scale`: taken as 0".to_owned());
            file.tensors.insert("log_scale".into(), NamedTensor::f32(&[1], vec![0.0]));
            0.0
        }
        _ => 0.0,
    };
    let small = stem == Stem::Cifar;
    let image_size = options.image_size.unwrap_or(if small { 32 } else { 96 });
    let config = RunConfig {
        dataset: options.dataset.unwrap_or(match image_size {
            32 => DataKind::Cifar10,
            96 => DataKind::Stl10,
            _ => DataKind::Folder,
        }),
        data_dir: options.data_dir.clone(),
        method,
        encoder: depth(file, "encoder", Depth::encoder_blocks)?,
        decoder: depth(file, "decoder", Depth::decoder_blocks)?,
        stem,
        width,
        latent_dim,
        image_size,
        log_scale,
        ..RunConfig::default()
    };
    config.validate_network()?;
    Ok((config, notes))
}

/// The stem and its width. `asked` may say which of the two 7x7 stems it is, which have the same
/// weights.
fn stem(
    file: &Checkpoint,
    asked: Option<Stem>,
    notes: &mut Vec<String>,
) -> Result<(Stem, usize), String> {
    const NAME: &str = "encoder.conv1.weight";
    let (width, kernel) = match shape(file, NAME)? {
        [width, 3, kernel @ (3 | 7), same] if kernel == same => (*width, *kernel),
        other => {
            return Err(format!(
                "`{NAME}` has shape {other:?}; a stem has [width, 3, 3, 3] or [width, 3, 7, 7]"
            ));
        }
    };
    let stem = match (kernel, asked) {
        (3, None | Some(Stem::Cifar)) => Stem::Cifar,
        (7, Some(stem @ (Stem::Stl | Stem::Imagenet))) => stem,
        (7, None) => {
            notes.push(
                "a 7x7 stem: taken as STL's, without max pooling; --stem imagenet is the one with \
                 it"
                .to_owned(),
            );
            Stem::Stl
        }
        (_, Some(stem)) => {
            return Err(
                format!("`{NAME}` is {kernel}x{kernel}, --stem {stem:?} is not").to_lowercase()
            );
        }
        _ => unreachable!("a kernel of 3 or 7"),
    };
    Ok((stem, width))
}

/// The method of weights with this head, which `asked` may say: of those that reconstruct, several
/// have the same networks.
fn method_of(
    head: &str,
    samples: bool,
    asked: Option<Method>,
    notes: &mut Vec<String>,
) -> Result<Method, String> {
    let alike: Vec<Method> = Method::ALL
        .iter()
        .copied()
        .filter(|method| method.reconstructs() && method.samples() == samples)
        .collect();
    let names = |methods: &[Method], word: &str| {
        methods.iter().map(|method| method.name()).collect::<Vec<_>>().join(word)
    };
    match asked {
        Some(method) if alike.contains(&method) => Ok(method),
        Some(method) => Err(format!(
            "`{head}` is of {}, not of --method {}",
            names(&alike, " or "),
            method.name()
        )),
        None => {
            // The crate's default where it is one of them.
            let default = RunConfig::default().method;
            let taken = if alike.contains(&default) { default } else { alike[0] };
            let others: Vec<Method> = alike.iter().copied().filter(|m| *m != taken).collect();
            notes.push(format!(
                "weights of {} look alike: taken as {}; --method {} is the other",
                names(&alike, " and "),
                taken.name(),
                names(&others, " or ")
            ));
            Ok(taken)
        }
    }
}

fn shape<'a>(file: &'a Checkpoint, name: &str) -> Result<&'a [usize], String> {
    file.tensors
        .get(name)
        .map(|tensor| &tensor.shape[..])
        .ok_or_else(|| format!("no tensor `{name}`"))
}

/// The network whose stages have the blocks that the names count.
fn depth(
    file: &Checkpoint,
    part: &str,
    blocks: impl Fn(Depth) -> [usize; 4],
) -> Result<Depth, String> {
    let count = |stage: usize| {
        let prefix = format!("{part}.layer{stage}.");
        let block =
            |name: &String| name.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok();
        file.tensors.keys().filter_map(block).max().map_or(0, |last| last.saturating_add(1))
    };
    let found = [1, 2, 3, 4].map(count);
    let bottleneck = file.tensors.contains_key(&format!("{part}.layer1.0.conv3.weight"));
    let depths = [Depth::Resnet18, Depth::Resnet34, Depth::Resnet50];
    depths
        .into_iter()
        .find(|d| blocks(*d) == found && (d.expansion() > 1) == bottleneck)
        .ok_or_else(|| {
            let known: Vec<_> = depths.iter().map(|d| format!("{d:?} {:?}", blocks(*d))).collect();
            let kind = if bottleneck { "three convolutions" } else { "two convolutions" };
            format!(
                "`{part}.layer1` to `4` have {found:?} blocks of {kind}; known are {}",
                known.join(", ")
            )
        })
}

/// Writes the run folder that `probe`, `knn`, `embed`, `reconstruct` and `export` take: all of it
/// or nothing. Returns its summary.
///
/// # Errors
/// If `out` holds anything already, or cannot be written.
pub fn write(imported: Imported, from: &Path, out: &Path) -> Result<RunSummary, RunError> {
    const FOLDER: &str = "checkpoints";
    let Imported { config, tensors, .. } = imported;
    let source = text::name(from.file_name().unwrap_or(from.as_os_str())).to_string();
    let meta = [
        ("config", config_text(&config)?),
        ("imported_from", source.clone()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ];
    let checkpoint =
        Checkpoint { tensors, meta: meta.map(|(key, value)| (key.to_owned(), value)).into() };
    let summary = RunSummary {
        run: Some(text::path(out)),
        method: Some(config.method.name().into()),
        dataset: Some(config.dataset.name()),
        imported_from: Some(source),
        checkpoint: Some(text::path(&out.join(FOLDER).join(LAST))),
        sha256: Some(checkpoint.digest()),
        interrupted: Some(false),
        ..RunSummary::default()
    };
    new_folder(out, |out| {
        let folder = out.join(FOLDER);
        std::fs::create_dir(&folder).map_err(RunError::io("create", &folder))?;
        checkpoint.save(folder.join(LAST))?;
        summary.write(out)?;
        write_config(&out.join("config.toml"), &config)
    })?;
    Ok(summary)
}

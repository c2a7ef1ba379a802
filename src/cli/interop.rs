//! `aavae export`, `import`: weights for and from other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::pretrain::SHAPES_HAS_NO_FILES;
use super::{Outcome, print_json, print_text, say, usage};
use crate::disk::is_there;
use crate::interop::{bf16, folder, import, torchvision};
use crate::method::Method;
use crate::model::Stem;
use crate::run::RunError;
use crate::run::folder::refuse_inside_data;
use crate::run::settings::DataKind;
use crate::run::trained::{Trained, normalisation};
use crate::text;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A safetensors file: the encoder as torchvision's ResNet names it (width 64)
    Torchvision,
    /// A folder to publish: config.json, model.safetensors, README.md
    Folder,
    /// A safetensors file: the whole network, half as large, for --init-from
    Bf16,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Run folder, or a checkpoint of one
    #[arg(value_name = "RUN_OR_FILE")]
    model: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// File or folder to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn export(args: &ExportArgs) -> Outcome {
    let trained = Trained::open(&args.model)?;
    for error in &trained.skipped {
        say(&format!("warning: skipped a checkpoint: {error}"));
    }
    say(&format!("weights: {}", text::name(&trained.path)));
    let (mean, std) = normalisation(&trained.config);
    let data = &trained.config;
    refuse_inside_data(&args.out, data.dataset, data.data_dir.as_deref())?;
    if args.format != Format::Folder && is_there(&args.out) {
        let message = format!("{} is there already", text::name(&args.out));
        return Err(
            RunError::config(message, Some("remove it, or name another file with --out")).into()
        );
    }
    let (value, text) = match args.format {
        Format::Torchvision => {
            let file = torchvision::state_dict(&trained)?;
            file.save(&args.out)?;
            let normalise =
                format!("images are normalised with mean {mean:?} and deviation {std:?}");
            let text =
                format!("{} tensors in {}; {normalise}", file.tensors.len(), text::name(&args.out));
            (
                json!({
                    "file": text::path(&args.out),
                    "tensors": file.tensors.len(),
                    "metadata": file.meta,
                }),
                text,
            )
        }
        Format::Folder => {
            let results = folder::write(&trained, &args.out)?;
            if results.is_none() {
                say("warning: no summary.json is about these weights; the model card states no \
                     results");
            }
            (
                json!({
                    "folder": text::path(&args.out),
                    "results": results.is_some(),
                }),
                text::name(&args.out).to_string(),
            )
        }
        Format::Bf16 => {
            let tensors = bf16::write(&trained, &args.out)?;
            (
                json!({ "file": text::path(&args.out), "tensors": tensors }),
                format!("{tensors} tensors in {}", text::name(&args.out)),
            )
        }
    };
    if args.json {
        print_json(&value)?;
    } else {
        print_text(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// State dict of the reference implementation, as safetensors
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Run folder to write
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Method, where weights of two look alike (default: aavae, or ae)
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Stem, where the first convolution is 7x7 (default: stl)
    #[arg(long, value_enum)]
    stem: Option<Stem>,
    /// Side of the images (default: 32, or 96 behind a 7x7 stem)
    #[arg(long)]
    image_size: Option<usize>,
    /// Data set of the run (default: by the size of the images: cifar10, stl10 or folder)
    #[arg(long, value_enum)]
    dataset: Option<DataKind>,
    /// Folder of the data set
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Extra tensors that are named one by one.
const NAMED: usize = 8;

pub(super) fn import(args: &ImportArgs) -> Outcome {
    if args.dataset == Some(DataKind::Shapes) && args.data_dir.is_some() {
        return Err(usage(SHAPES_HAS_NO_FILES, None));
    }
    let options = import::ImportOptions {
        method: args.method,
        stem: args.stem,
        image_size: args.image_size,
        dataset: args.dataset,
        data_dir: args.data_dir.clone(),
    };
    let imported = import::read(&args.file, &options)?;
    for note in &imported.notes {
        say(&format!("note: {note}"));
    }
    let (named, more) = imported.extra.split_at(imported.extra.len().min(NAMED));
    for name in named {
        say(&format!("warning: `{name}` is no tensor of this network; it is left out"));
    }
    if !more.is_empty() {
        say(&format!("warning: {} more tensors are left out", more.len()));
    }
    let (config, extra) = (imported.config.clone(), imported.extra.clone());
    refuse_inside_data(&args.out, config.dataset, config.data_dir.as_deref())?;
    let mut value = import::write(imported, &args.file, &args.out)?.to_json();
    value["extra"] = json!(extra);
    let text = format!(
        "{}: {} with a {:?} encoder and a {:?} decoder of width {}, {:?} stem, {} latent \
         dimensions",
        text::name(&args.out),
        config.method.name(),
        config.encoder,
        config.decoder,
        config.width,
        config.stem,
        config.latent_dim
    );
    if args.json {
        print_json(&value)?;
    } else {
        print_text(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

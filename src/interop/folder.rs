//! A folder to publish: `config.json`, `model.safetensors`, and a model card in `README.md`.
//!
//! `model.safetensors` is a checkpoint without the optimiser's tensors: every command that takes a
//! checkpoint takes it. The card's command trains the same weights again, from the configuration in
//! `config.json`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{card, new_folder};
use crate::method::{self, Training};
use crate::run::RunError;
use crate::run::checkpoint::Checkpoint;
use crate::run::settings::RunConfig;
use crate::run::state;
use crate::run::summary::RunSummary;
use crate::run::trained::{Trained, config_text, normalisation, write_whole};

/// Writes the folder: all of it or nothing. Returns the results that the card states, if there are
/// any.
///
/// # Errors
/// If `out` holds anything already, or cannot be written.
pub fn write(trained: &Trained, out: &Path) -> Result<Option<RunSummary>, RunError> {
    let config = public(&trained.config);
    let (mean, std) = normalisation(&config);
    let params = method::training(&config.model(mean, std), Training::default()).params;
    state::select(&trained.checkpoint, &params).map_err(|e| e.of_file(&trained.path))?;
    // An online probe stays with the network that it was trained along.
    let mut tensors = trained.checkpoint.tensors.clone();
    tensors.retain(|name, _| !name.starts_with("optim."));
    let mut meta = trained.checkpoint.meta.clone();
    // What only a run that is resumed needs.
    meta.retain(|key, _| !["window", "data", "device"].contains(&key.as_str()));
    meta.insert("config".into(), config_text(&config)?);
    let results = results(trained)?;
    let settings = settings(&config)?;

    let imported = meta.get("imported_from").cloned();
    let card = card::text(&config, params.count(), imported.as_deref(), results.as_ref());
    new_folder(out, |out| {
        write_whole(&out.join("config.json"), format!("{settings:#}\n").as_bytes())?;
        write_whole(&out.join("README.md"), card.as_bytes())?;
        Checkpoint { tensors, meta }.save(out.join("model.safetensors"))?;
        Ok(())
    })?;
    Ok(results)
}

/// Without the folders of the machine that trained it.
fn public(config: &RunConfig) -> RunConfig {
    let name = |path: &PathBuf| path.file_name().map(PathBuf::from);
    RunConfig {
        data_dir: None,
        init_from: config.init_from.as_ref().and_then(name),
        ..config.clone()
    }
}

/// `config.json`: what the network is, and all that trained it.
fn settings(config: &RunConfig) -> Result<Value, RunError> {
    // By way of text: f32 0.1 stays 0.1.
    let json = |value: serde_json::Result<String>| {
        value.and_then(|text| serde_json::from_str::<Value>(&text))
    };
    let failed = |e| RunError::config(format!("the configuration cannot be written: {e}"), None);
    let training = json(serde_json::to_string(config)).map_err(failed)?;
    let (mean, std) = normalisation(config);
    let (mean, std) = (
        json(serde_json::to_string(&mean)).map_err(failed)?,
        json(serde_json::to_string(&std)).map_err(failed)?,
    );
    let shape: serde_json::Map<String, Value> =
        ["method", "encoder", "decoder", "stem", "width", "latent_dim", "image_size"]
            .into_iter()
            .filter(|key| *key != "decoder" || config.method.reconstructs())
            .map(|key| (key.to_owned(), training[key].clone()))
            .chain([("features".to_owned(), json!(config.net().features()))])
            .collect();
    Ok(json!({
        "library": "aavae", "version": env!("CARGO_PKG_VERSION"),
        "architecture": shape, "normalisation": { "mean": mean, "std": std }, "training": training,
    }))
}

/// `summary.json` of the run that the weights are from, if it is about these weights.
fn results(trained: &Trained) -> Result<Option<RunSummary>, RunError> {
    let run = trained.path.parent().and_then(Path::parent);
    let Some(summary) = run.map(RunSummary::read).transpose()?.flatten() else { return Ok(None) };
    // An imported run has a summary, but nothing was measured.
    let measured = summary.seed.is_some();
    Ok((measured && summary.sha256 == Some(trained.checkpoint.digest())).then_some(summary))
}

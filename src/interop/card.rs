//! The model card of an exported folder.

use crate::run::metrics::MetricsRecord;
use crate::run::settings::{DataKind, RunConfig};
use crate::run::summary::RunSummary;
use crate::text::markdown_code;

/// What the encoder is of, and what its training minimises.
fn method(config: &RunConfig) -> String {
    let (method, loss) = (config.method.definition(), config.objective().loss());
    let (title, arxiv) = (method.title, method.arxiv);
    format!(
        "The encoder of {title}, [arXiv {arxiv}](https://arxiv.org/abs/{arxiv}). It minimises \
         {loss}."
    )
}

/// The command that trains these weights: on the device they were trained on its result is the same
/// to the bit.
fn command(config: &RunConfig, results: Option<&RunSummary>) -> String {
    let plain =
        |device: &&str| device.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.".contains(c));
    let device = results
        .and_then(|r| r.device.as_deref())
        .and_then(|text| text.split(' ').next())
        .filter(plain)
        .unwrap_or("auto");
    let data = if config.dataset == DataKind::Shapes { "" } else { " --data-dir DIR" };
    let evaluation =
        if results.is_some_and(|r| r.measured.probe.is_some()) { "" } else { " --no-eval" };
    format!("aavae pretrain --config config.json --device {device}{data}{evaluation} --out run")
}

/// A number of a summary, where it says one.
fn or_unknown(number: Option<impl ToString>) -> String {
    number.map_or("unknown".into(), |number| number.to_string())
}

/// Rows of the table of results: what was measured, and the value.
fn rows(results: &RunSummary) -> Vec<(String, String)> {
    let loss = |record: &Option<MetricsRecord>| record.as_ref()?.get("loss").map(f64::from);
    let measured = &results.measured;
    let mut rows = vec![
        ("loss, training".into(), loss(&results.train)),
        ("loss, held out".into(), loss(&results.validation)),
    ];
    rows.extend(measured.probe.map(|probe| {
        let epochs = or_unknown(probe.epochs);
        (format!("linear probe, {epochs} epochs, test accuracy"), probe.accuracy)
    }));
    rows.extend(measured.knn.iter().flatten().map(|row| {
        let (k, temperature) = (or_unknown(row.k), or_unknown(row.temperature));
        (format!("kNN, k = {k}, temperature {temperature}, test accuracy"), row.accuracy)
    }));
    let number = |value: f64| value.is_finite().then(|| format!("{value:.4}"));
    rows.into_iter().filter_map(|(name, value)| Some((name, number(value?)?))).collect()
}

/// Rows of the card about the images and the training.
fn trained(config: &RunConfig, results: Option<&RunSummary>) -> String {
    let images =
        config.limit_train.map_or("all training images".into(), |n| format!("{n} training images"));
    let steps = results
        .and_then(|r| r.steps)
        .map_or(String::new(), |steps| format!(", {steps} steps in all"));
    format!(
        "| images | {dataset}, {side} x {side}, {images} |\n| training | {epochs} epochs of batch \
         {batch}, {optimizer}, learning rate {rate}, seed {seed}{steps} |",
        dataset = config.dataset.name(),
        side = config.image_size,
        epochs = config.epochs,
        batch = config.images_per_step(),
        optimizer = config.optimizer.name(),
        rate = config.learning_rate,
        seed = config.seed,
    )
}

/// What was measured of a run, as a table.
fn results_section(results: &RunSummary) -> String {
    let table: String =
        rows(results).into_iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
    let device = markdown_code(results.device.as_deref().unwrap_or("unknown"));
    let seed = or_unknown(results.seed);
    format!("n = 1 run (seed {seed}) on {device}.\n\n| measured | value |\n|---|---|\n{table}")
        .trim_end()
        .to_owned()
}

/// The card, as Markdown with the header that model hubs read. The licence is the user's to choose.
///
/// Of weights that were imported only the network is known, not what trained it.
pub(super) fn text(
    config: &RunConfig,
    parameters: usize,
    imported: Option<&str>,
    results: Option<&RunSummary>,
) -> String {
    let encoder = format!("{:?}", config.encoder);
    let head = match config.method.reconstructs() {
        true => {
            format!("| decoder | {:?}, {} latent dimensions |", config.decoder, config.latent_dim)
        }
        false => format!("| projection | {} dimensions |", config.latent_dim),
    };
    let dataset = config.dataset.name();
    let (training, again) = match imported {
        None => (
            trained(config, results),
            format!("## Training it again\n\n```sh\n{}\n```", command(config, results)),
        ),
        Some(file) => (
            format!("| training | imported from {}, which does not say |", markdown_code(file)),
            "## Training it again\n\nHow these weights were trained is not known here; `training` \
             in `config.json` holds defaults."
                .into(),
        ),
    };
    let results_text =
        results.map_or_else(|| "The run left none for these weights.".to_owned(), results_section);
    format!(
        "---\n\
         library_name: aavae\n\
         tags: [self-supervised-learning, {method_name}]\n\
         datasets: [{dataset}]\n\
         # license: fill in before publishing\n\
         ---\n\
         \n\
         # {upper} {encoder}, width {width}, {dataset}\n\
         \n\
         {method}\n\
         \n\
         | | |\n\
         |---|---|\n\
         | encoder | {encoder}, width {width}, {stem} stem, {features} features |\n\
         {head}\n\
         | parameters | {parameters} |\n\
         {training}\n\
         \n\
         ## Results\n\
         \n\
         {results_text}\n\
         \n\
         ## Use\n\
         \n\
         `aavae embed model.safetensors`, `aavae probe model.safetensors` and `aavae reconstruct\n\
         model.safetensors` take the weights as they are. In PyTorch,\n\
         `safetensors.torch.load_file(\"model.safetensors\")` is the state dict; `config.json`\n\
         has the architecture and the normalisation of the images.\n\
         \n\
         {again}\n\
         \n\
         ## Licence\n\
         \n\
         Not chosen yet. The data set has terms of its own.\n",
        method_name = config.method.name(),
        upper = config.method.name().to_uppercase(),
        method = method(config),
        width = config.width,
        stem = format!("{:?}", config.stem).to_lowercase(),
        features = config.net().features(),
    )
}

//! Figure 5: cosine similarity of what an encoder makes of several views of several images.

use std::path::Path;

use crate::device::{self, DeviceSpec};
use crate::eval::embed::Similarity;
use crate::eval::features::Evaluator;
use crate::eval::grid;
use crate::ops::StepUniforms;
use crate::run::RunError;
use crate::run::settings::RunConfig;
use crate::run::trained::{Trained, model_config, open_data, read_json, write_whole};
use crate::text;

/// Images, the first of the test set.
pub const IMAGES: usize = 8;
/// Views of each.
pub const VIEWS: usize = 8;

/// File of an image's views in a run folder: the original and its views, three in a row.
pub fn picture(image: usize) -> String {
    format!("images/views-{image}.png")
}

/// Name of the file with the similarities in a run folder.
const FILE: &str = "views.json";

/// Measures the similarities of a run and writes them and the views into its folder.
///
/// # Errors
/// If data or device fail, or a file cannot be written.
pub fn measure(config: &RunConfig, choice: &DeviceSpec, out: &Path) -> Result<(), RunError> {
    let splits = open_data(config)?;
    let trained = Trained::open(out)?;
    let (session, _) = device::open(choice)?;
    let mut evaluator = Evaluator::new(
        session,
        model_config(config, &splits),
        config.protocol(),
        splits.labelled_train.dataset.classes().len(),
        Some(&trained),
        config.seed,
    )?;
    let step = StepUniforms::evaluation(config.seed, 0);
    let embedded = evaluator.embed_views(&splits.test, IMAGES, VIEWS, &step)?;
    for (i, (original, views)) in embedded.originals.iter().zip(&embedded.views).enumerate() {
        let all: Vec<&[u8]> = std::iter::once(original).chain(views).map(Vec::as_slice).collect();
        let rows: Vec<Vec<&[u8]>> = all.chunks(3).map(<[_]>::to_vec).collect();
        write_whole(&out.join(picture(i)), &grid::grid_png(&rows, config.image_size, 1))?;
    }
    let found: Vec<Similarity> =
        embedded.vectors.iter().map(|(name, vectors)| Similarity::new(name, vectors)).collect();
    let text = serde_json::to_string(&found)
        .map_err(|e| RunError::config(format!("the similarities cannot be written: {e}"), None))?;
    write_whole(&out.join(FILE), text.as_bytes())
}

/// The similarities of a run folder; `None` if none were measured.
///
/// # Errors
/// If their file cannot be read, or is damaged.
pub fn read(out: &Path) -> Result<Option<Vec<Similarity>>, RunError> {
    let path = out.join(FILE);
    let found: Option<Vec<Similarity>> = read_json(&path)?;
    let pairs = (IMAGES * VIEWS).pow(2);
    match found.iter().flatten().find(|s| s.matrix.len() != pairs) {
        None => Ok(found),
        Some(of) => {
            let path = text::name(&path);
            let message = format!("{path} holds {} similarities, not {pairs}", of.matrix.len());
            Err(RunError::config(message, None))
        }
    }
}

//! What a page asks of a run besides steps: pictures, neighbours, measurements.

use serde_json::json;

use super::run::{Run, gpu};
use super::{Command, post, post_with, show, what};
use crate::eval::probe::ProbeConfig;
use crate::run::RunError;

/// Alterations of one image.
const VIEWS: usize = 23;
/// Neighbours of one image.
const NEIGHBOURS: usize = 10;
/// Runs of views whose similarities are measured.
const SIMILARITY: usize = 4;

impl Run<'_> {
    /// Answers a command that takes no step. What cannot be answered is said, and the run goes on;
    /// what ends it is returned.
    pub(super) fn look(&mut self, command: &Command) -> Result<(), RunError> {
        let ends = |error: &RunError| matches!(what(error), "lost" | "adapter" | "diverged");
        match self.answer(command) {
            Err(error) if !ends(&error) => {
                let (what, message) = (what(&error), error.to_string());
                post("refused", &json!({ "what": what, "message": message, "hint": error.hint() }));
                Ok(())
            }
            answered => answered,
        }
    }

    fn answer(&mut self, command: &Command) -> Result<(), RunError> {
        let step = self.steps;
        match *command {
            Command::Picture { ref of } if of == "views" => {
                if let Some(picture) = self.trainer.picture_views(&|| false)? {
                    show("views", step, &picture, json!({}));
                }
            }
            Command::Picture { .. } => {
                if let Some(picture) = self.trainer.picture_reconstructions(&|| false)? {
                    show("reconstructions", step, &picture, json!({}));
                }
            }
            Command::Views { image, draw } => {
                let picture = self.trainer.views_of(image, draw, VIEWS)?;
                let more = json!({ "image": image, "draw": draw, "count": VIEWS + 1 });
                show("many", step, &picture, more);
            }
            Command::Neighbours { image, among } => {
                let found = self.trainer.neighbours(image, NEIGHBOURS, among, step)?;
                let cosines: Vec<f32> = found.0.iter().map(|near| near.similarity).collect();
                // By their numbers in the data set, which are the rows of `aavae embed`.
                let train = &self.splits.labelled_train.indices;
                let rows: Vec<u32> = found.0.iter().map(|near| train[near.row]).collect();
                let row = self.trainer.shown().indices[image];
                let more = json!({ "row": row, "cosines": cosines, "rows": rows });
                show("neighbours", step, &found.1, more);
            }
            Command::Walk { from, to } => {
                let picture = self.trainer.walk(from, to)?;
                show("walk", step, &picture, json!({ "from": from, "to": to }));
            }
            Command::Similarity => {
                for found in self.trainer.similarities(SIMILARITY)? {
                    let bytes: Vec<u8> = found.matrix.iter().copied().map(shade).collect();
                    let text = json!({
                        "step": step, "of": found.of, "within": found.within as f32,
                        "across": found.across as f32, "side": found.matrix.len().isqrt(),
                    });
                    post_with("similarity", &text, Some(&bytes));
                }
            }
            Command::Probe { epochs } => {
                let config = ProbeConfig { epochs, seed: self.config.seed };
                let say = |epoch, train| {
                    post("probing", &json!({ "epoch": epoch, "of": epochs, "train": train }));
                };
                let found = self.trainer.probe(gpu()?, config, step, say)?;
                let text = json!({ "step": step, "test": found.test, "train": found.train });
                post("probed", &text);
            }
            Command::Measure => self.measure()?,
            Command::Plan => post("plan", &json!({ "text": self.trainer.plan().to_string() })),
            _ => unreachable!("the run sees to it"),
        }
        Ok(())
    }

    /// Measures the held-out images now: records as at the end of an epoch.
    fn measure(&mut self) -> Result<(), RunError> {
        let epoch = self.steps / self.timetable.per_epoch;
        for (split, values) in [
            ("val", self.trainer.validate(self.steps, &|| false)?.unwrap_or_default()),
            ("eval", self.trainer.evaluate(&|| false)?),
        ] {
            let values: serde_json::Map<_, _> =
                values.into_iter().map(|(name, value)| (name, value.into())).collect();
            post(
                "measured",
                &json!({
                    "step": self.steps, "epoch": epoch, "split": split, "values": values,
                }),
            );
        }
        Ok(())
    }
}

/// A cosine as a byte: -1 is 0, 1 is 255.
fn shade(cosine: f64) -> u8 {
    ((cosine + 1.0) * 127.5).round() as u8
}

//! `summary.json`: what a run did, and what was measured of its encoder.
//!
//! People edit files, and versions differ in what they write: a key whose value is not of its type
//! reads as one that is missing, and what is missing is `None`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::RunError;
use super::metrics::MetricsRecord;
use super::trained::write_whole;
use crate::data::open_regular;

/// Name of the file.
pub const FILE: &str = "summary.json";

/// What `summary.json` says, in the order in which it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSummary {
    /// The run folder, as it was named.
    pub run: Option<String>,
    /// Name of the method.
    pub method: Option<String>,
    /// Whether the encoder is as it was initialised: nothing was trained.
    pub random_init: Option<bool>,
    /// Name of the data set.
    pub dataset: Option<String>,
    /// Name of the file that the weights were imported from.
    pub imported_from: Option<String>,
    /// Seed of the run.
    pub seed: Option<u64>,
    /// Device of the last session, for people.
    pub device: Option<String>,
    /// Steps taken in all.
    pub steps: Option<u64>,
    /// Step from which the last session continued; 0 if it began the run, `None` if there was no
    /// training.
    pub resumed_at: Option<u64>,
    /// Seconds of the last session, to a tenth.
    pub seconds: Option<f64>,
    /// Images per second over the last session's steps, to a tenth.
    pub images_per_second: Option<f64>,
    /// Last record of the batches that were trained on.
    pub train: Option<MetricsRecord>,
    /// Last record of the held-out images.
    pub validation: Option<MetricsRecord>,
    /// Last record of the likelihood and of kNN on the way.
    pub evaluation: Option<MetricsRecord>,
    /// Path of the checkpoint with the final weights.
    pub checkpoint: Option<String>,
    /// SHA-256 of the final weights and optimiser state, in hexadecimal digits.
    pub sha256: Option<String>,
    /// When it was written: a time of UTC as in RFC 3339.
    pub finished: Option<String>,
    /// Whether the last session was stopped before its end.
    pub interrupted: Option<bool>,
    /// Evaluations of the weights of milestones, by epoch.
    #[serde(deserialize_with = "rows", skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<Milestone>,
    /// The evaluation of the final weights.
    #[serde(flatten)]
    pub measured: Evaluation,
}

/// The evaluation of the weights of a milestone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Milestone {
    /// Epochs after which it was saved, from 1.
    pub epoch: u64,
    /// Steps that had been taken then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// What was measured.
    #[serde(flatten)]
    pub measured: Evaluation,
}

/// What was measured of a frozen encoder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// The linear probe.
    #[serde(deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeScore>,
    /// kNN, at every number of neighbours and temperature of the table.
    #[serde(deserialize_with = "list", skip_serializing_if = "Option::is_none")]
    pub knn: Option<Vec<KnnScore>>,
    /// Seconds that both took, to a tenth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation_seconds: Option<f64>,
}

/// A linear classifier on the features of a frozen encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeScore {
    /// Fraction of the test images that it gets right, in [0, 1].
    pub accuracy: Option<f64>,
    /// Fraction of the last epoch's training images, as they were augmented.
    pub train_accuracy: Option<f64>,
    /// Epochs that it was trained for.
    pub epochs: Option<u64>,
}

/// A vote of the nearest neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KnnScore {
    /// KnnScore that vote.
    pub k: Option<u64>,
    /// Temperature of the votes' weights.
    pub temperature: Option<f64>,
    /// Fraction of the test images that they get right, in [0, 1].
    pub accuracy: Option<f64>,
}

impl KnnScore {
    /// The rows of a table of neighbours, temperatures and accuracies.
    pub fn rows(table: &[(usize, f32, f32)]) -> Vec<Self> {
        /// The number that the shortest text of an f32 stands for: .07, not .07000000029802322.
        fn short(x: f32) -> Option<f64> {
            Some(x.to_string().parse().unwrap_or(f64::from(x)))
        }
        let row = |&(k, temperature, accuracy): &(usize, f32, f32)| Self {
            k: Some(k as u64),
            temperature: short(temperature),
            accuracy: short(accuracy),
        };
        table.iter().map(row).collect()
    }
}

impl Evaluation {
    /// Whether it is whole, with a probe of so many epochs.
    pub fn is_whole(&self, probe_epochs: usize) -> bool {
        let probed = self.probe.is_some_and(|probe| {
            probe.epochs == Some(probe_epochs as u64) && probe.accuracy.is_some()
        });
        probed && self.knn.is_some()
    }

    /// Test accuracy of the linear probe.
    pub fn probe_accuracy(&self) -> Option<f64> {
        self.probe?.accuracy
    }

    /// Test accuracy of the first row of the kNN table that is wanted.
    pub fn knn_accuracy(&self, wanted: impl Fn(&KnnScore) -> bool) -> Option<f64> {
        self.knn.iter().flatten().find(|row| wanted(row))?.accuracy
    }
}

impl RunSummary {
    /// The summary of a run folder; `None` if there is none that is whole.
    ///
    /// # Errors
    /// If there is one that cannot be read: the run might be done, or not.
    pub fn read(folder: &Path) -> Result<Option<Self>, RunError> {
        /// Far more than any summary has, and soon read.
        const MOST: u64 = 1 << 24;
        let mut bytes = Vec::new();
        let path = folder.join(FILE);
        let file: File = match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(RunError::io("read", &path))?,
        };
        file.take(MOST).read_to_end(&mut bytes).map_err(RunError::io("read", &path))?;
        Ok(serde_json::from_slice(&bytes).ok().and_then(Self::of_json))
    }

    /// A summary from its JSON; `None` if it is no object.
    pub fn of_json(value: Value) -> Option<Self> {
        sound(value)
    }

    /// As it is written, but for the layout.
    ///
    /// # Panics
    /// Never: numbers and texts are JSON.
    pub fn to_json(&self) -> Value {
        /// What a training says of itself also where there is none, as `null`.
        const OF_TRAINING: [&str; 4] = ["images_per_second", "train", "validation", "evaluation"];
        // This goes by way of text, so that 0.1 as f32 stays 0.1.
        let text = serde_json::to_string(self).expect("numbers and texts");
        let mut map: Map<String, Value> = serde_json::from_str(&text).expect("its own text");
        let trained = self.resumed_at.is_some();
        map.retain(|key, value| !value.is_null() || trained && OF_TRAINING.contains(&key.as_str()));
        map.into()
    }

    /// Writes it to a run folder.
    ///
    /// # Errors
    /// If that is not possible; the file is then what it was.
    pub fn write(&self, folder: &Path) -> Result<(), RunError> {
        write_whole(&folder.join(FILE), format!("{:#}\n", self.to_json()).as_bytes())
            .map_err(RunError::of_run)
    }

    /// The evaluation of a milestone's weights.
    pub fn milestone(&self, epoch: usize) -> Option<&Evaluation> {
        let row = self.milestones.iter().find(|row| row.epoch == epoch as u64)?;
        Some(&row.measured)
    }

    /// Whether its times are those of the whole run: it was trained in one session.
    pub fn is_of_one_session(&self) -> bool {
        self.resumed_at.unwrap_or(0) == 0
    }
}

/// Rounds a measured time or rate to a tenth.
pub fn tenth(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

/// A structure from an object, without those of its keys that are not of their type.
fn sound<T: DeserializeOwned>(value: Value) -> Option<T> {
    let Value::Object(mut map) = value else { return None };
    map.retain(|key, value| {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        T::deserialize(Value::from(alone)).is_ok()
    });
    T::deserialize(Value::from(map)).ok()
}

fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Value::deserialize(from).map(sound)
}

/// The elements of a list that are objects; `None` if there is no list.
fn list<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Array(values) => Some(values.into_iter().filter_map(sound).collect()),
        _ => None,
    })
}

fn rows<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    list(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(RunSummary::read(dir.path()).expect("none"), None);
        fs::create_dir(dir.path().join(FILE)).expect("a folder");
        let error = RunSummary::read(dir.path()).expect_err("no file").to_string();
        assert!(error.contains("summary.json`: it is a folder, not a file"), "{error}");
        fs::remove_dir(dir.path().join(FILE)).expect("a folder");
        RunSummary { steps: Some(3), ..RunSummary::default() }.write(dir.path()).expect("written");
        let read = RunSummary::read(dir.path()).expect("read");
        assert_eq!(read.and_then(|summary| summary.steps), Some(3));
    }

    fn whole() -> Value {
        json!({
            "run": "runs/x", "method": "aavae", "dataset": "shapes", "seed": u64::MAX,
            "device": "cpu", "steps": 6, "resumed_at": 0, "seconds": 1.5,
            "images_per_second": null,
            "train": { "step": 6, "epoch": 1, "split": "train", "loss": 0.1, "kl": null },
            "validation": null, "evaluation": null,
            "checkpoint": "runs/x/checkpoints/last.safetensors", "sha256": "0123",
            "finished": "2026-01-01T00:00:00Z", "interrupted": false,
            "milestones": [{
                "epoch": 1, "step": 3,
                "probe": { "accuracy": 0.4, "train_accuracy": 0.5, "epochs": 4 },
                "knn": [{ "k": 20, "temperature": 0.07, "accuracy": 0.3 }],
                "evaluation_seconds": 0.5,
            }],
            "probe": { "accuracy": 0.5, "train_accuracy": 0.6, "epochs": 4 },
            "knn": [{ "k": 20, "temperature": 0.07, "accuracy": 0.25 }],
            "evaluation_seconds": 2.0,
        })
    }

    /// What is read is written again, in the same order and with the same digits.
    #[test]
    fn a_summary_is_its_text() {
        let summary = RunSummary::of_json(whole()).expect("a summary");
        assert_eq!(format!("{:#}", summary.to_json()), format!("{:#}", whole()));
        assert!(summary.measured.is_whole(4) && !summary.measured.is_whole(5));
        assert!(summary.milestone(1).is_some_and(|m| m.is_whole(4)));
        // Of what was not trained nothing is said of training.
        let untrained = json!({ "run": "x", "random_init": true, "steps": 0, "seconds": 0.0 });
        let read = RunSummary::of_json(untrained.clone()).expect("a summary");
        assert_eq!(read.to_json().to_string(), untrained.to_string());
        let rows = KnnScore::rows(&[(20, 0.07, 0.3)]);
        assert_eq!(
            serde_json::to_string(&rows).expect("JSON"),
            r#"[{"k":20,"temperature":0.07,"accuracy":0.3}]"#
        );
    }

    /// A value that is not of its key's type is missing, and nothing else is.
    #[test]
    fn damaged_keys_are_missing() {
        let good = RunSummary::of_json(whole()).expect("a summary");
        let read = |pointer: &str, value: Value| {
            let mut damaged = whole();
            *damaged.pointer_mut(pointer).expect("it is there") = value;
            RunSummary::of_json(damaged).expect("a summary")
        };
        let steps = read("/steps", json!(-1));
        // By their text: a `kl` that is no number is not equal to itself.
        assert_eq!(steps.to_json(), RunSummary { steps: None, ..good }.to_json());
        assert_eq!(read("/train", json!({ "loss": 1.0 })).train, None, "no record");
        let epochs = read("/probe/epochs", json!("four")).measured;
        assert_eq!((epochs.probe_accuracy(), epochs.is_whole(4)), (Some(0.5), false));
        assert!(!read("/probe", Value::Null).measured.is_whole(4));
        assert!(!read("/knn", json!("none")).measured.is_whole(4));
        assert_eq!(read("/knn/0/accuracy", json!([])).measured.knn_accuracy(|_| true), None);
        assert_eq!(read("/milestones/0", json!(1)).milestone(1), None);
        assert_eq!(
            read("/milestones/0/probe", json!([0.5])).milestone(1).map(|m| m.probe),
            Some(None)
        );
        for other in [json!([]), json!("x"), Value::Null] {
            assert_eq!(RunSummary::of_json(other), None);
        }
    }
}

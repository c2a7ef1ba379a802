//! `summary.json`: what a run did, and what was measured of its encoder.
//!
//! Versions differ in what they write: what is missing is `None`, and keys that are unknown are
//! passed over. A file that is damaged is an error where it is read ([`RunSummary::read`]): it is
//! neither a run without a summary nor one whose measurements are those that are left.

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
use crate::text;

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
    /// The summary of a run folder; `None` if there is none.
    ///
    /// # Errors
    /// If there is one that cannot be read or is damaged: it is no JSON object, lacks what every
    /// summary has, or a value is not of its type. The run might be done, or not.
    pub fn read(folder: &Path) -> Result<Option<Self>, RunError> {
        /// Far more than any summary has, and soon read.
        const MOST: u64 = 1 << 24;
        let mut bytes = Vec::new();
        let path = folder.join(FILE);
        let damaged = |why: String| {
            let message = format!("{} is damaged: {why}", text::name(&path));
            let hint = "remove it: `pretrain --resume` writes that of a run anew from the last \
                checkpoint";
            RunError::config(message, Some(hint))
        };
        let file: File = match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(RunError::io("read", &path))?,
        };
        file.take(MOST).read_to_end(&mut bytes).map_err(RunError::io("read", &path))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let summary = Self::of_json(value.clone()).ok_or_else(|| damaged("no object".into()))?;
        match summary.fault(&value) {
            None => Ok(Some(summary)),
            Some(why) => Err(damaged(why)),
        }
    }

    /// What is wrong with the JSON that this was read from, in words.
    fn fault(&self, from: &Value) -> Option<String> {
        lost(from, &self.to_json())
            .map(|key| format!("`{key}` is not of its type"))
            .or_else(|| missing(from).map(|key| format!("it has no `{key}`")))
    }

    /// A summary from its JSON; `None` if it is no object. A value that is not of its key's type is
    /// left out.
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

/// Keys of a summary and of what is in it. Others are of other versions.
const KEYS: [&str; 29] = [
    "run",
    "method",
    "random_init",
    "dataset",
    "imported_from",
    "seed",
    "device",
    "steps",
    "resumed_at",
    "seconds",
    "images_per_second",
    "train",
    "validation",
    "evaluation",
    "checkpoint",
    "sha256",
    "finished",
    "interrupted",
    "milestones",
    "probe",
    "knn",
    "evaluation_seconds",
    "epoch",
    "step",
    "accuracy",
    "train_accuracy",
    "epochs",
    "k",
    "temperature",
];

/// The first key whose value is not in what was read of it.
fn lost(from: &Value, read: &Value) -> Option<String> {
    match (from, read) {
        (Value::Object(from), Value::Object(read)) => from.iter().find_map(|(key, value)| {
            match (value, read.get(key).unwrap_or(&Value::Null)) {
                (Value::Null, _) => None,
                (_, Value::Null) => KEYS.contains(&key.as_str()).then(|| key.clone()),
                (value, read) if !alike(value, read) => Some(key.clone()),
                (value, read) => lost(value, read).map(|inner| format!("{key}.{inner}")),
            }
        }),
        (Value::Array(from), Value::Array(read)) => {
            from.iter().zip(read).find_map(|(from, read)| lost(from, read))
        }
        _ => None,
    }
}

/// Whether two values may be one, read and written again.
fn alike(from: &Value, read: &Value) -> bool {
    match (from, read) {
        (Value::Array(from), Value::Array(read)) => from.len() == read.len(),
        // Of measurements f32 are kept.
        (Value::Number(from), Value::Number(read)) => {
            let (from, read) = (from.as_f64().unwrap_or(0.0), read.as_f64().unwrap_or(0.0));
            (from - read).abs() <= 1e-6 * from.abs()
        }
        (from, read) => std::mem::discriminant(from) == std::mem::discriminant(read),
    }
}

/// The first key that a summary lacks and every one has.
fn missing(from: &Value) -> Option<String> {
    let lacks = |object: &Value, keys: &[&str]| {
        let key = keys.iter().find(|key| object.get(key).is_none_or(Value::is_null))?;
        Some((*key).to_owned())
    };
    let measured = |of: &Value| {
        let probe = of.get("probe").filter(|probe| !probe.is_null());
        let probe = probe.and_then(|probe| lacks(probe, &["accuracy", "epochs"]));
        let mut rows = of["knn"].as_array().into_iter().flatten();
        let mut knn = || rows.find_map(|row| lacks(row, &["k", "temperature", "accuracy"]));
        probe.map(|key| format!("probe.{key}")).or_else(|| Some(format!("knn.{}", knn()?)))
    };
    let of_training: &[&str] = if from["imported_from"].is_null() { &["steps"] } else { &[] };
    let mut milestones = from["milestones"].as_array().into_iter().flatten();
    let of_milestones = || {
        let key = milestones.find_map(|row| lacks(row, &["epoch"]).or_else(|| measured(row)))?;
        Some(format!("milestones.{key}"))
    };
    lacks(from, &["run", "method", "interrupted"])
        .or_else(|| lacks(from, of_training))
        .or_else(|| measured(from))
        .or_else(of_milestones)
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
    fn times_are_rounded_to_tenths() {
        assert_eq!([12.34, 0.06, 0.0].map(tenth), [12.3, 0.1, 0.0]);
    }

    /// A report gives no rate of a run that was resumed: its seconds are those of the last session.
    #[test]
    fn one_session_is_one_that_began_at_the_first_step() {
        let of = |resumed_at| RunSummary { resumed_at, ..RunSummary::default() };
        let found = [None, Some(0), Some(1), Some(500)].map(|at| of(at).is_of_one_session());
        assert_eq!(found, [true, true, false, false]);
    }

    #[test]
    fn a_summary_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(RunSummary::read(dir.path()).expect("none"), None);
        fs::create_dir(dir.path().join(FILE)).expect("a folder");
        let error = RunSummary::read(dir.path()).expect_err("no file").to_string();
        assert!(error.contains("summary.json`: it is a folder, not a file"), "{error}");
        fs::remove_dir(dir.path().join(FILE)).expect("a folder");
        fs::write(dir.path().join(FILE), whole().to_string()).expect("a file");
        let read = RunSummary::read(dir.path()).expect("read");
        assert_eq!(read.and_then(|summary| summary.steps), Some(6));
    }

    /// Whatever is wrong with the file is said, by its name and the key.
    #[test]
    fn a_damaged_summary_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let read = |text: &str| {
            fs::write(dir.path().join(FILE), text).expect("a file");
            RunSummary::read(dir.path())
        };
        let refused = |text: &str, says: &str| {
            let error = read(text).expect_err(says).to_string();
            assert!(error.contains("summary.json is damaged: ") && error.contains(says), "{error}");
        };
        let text = whole().to_string();
        for cut in (0..text.len()).step_by(7) {
            refused(&text[..cut], "EOF");
        }
        for other in ["[]", "3", "null", "{} {}"] {
            refused(other, if other == "{} {}" { "trailing" } else { "no object" });
        }
        for (pointer, key) in [
            ("/run", "run"),
            ("/method", "method"),
            ("/steps", "steps"),
            ("/interrupted", "interrupted"),
            ("/probe/accuracy", "probe.accuracy"),
            ("/probe/epochs", "probe.epochs"),
            ("/knn/0/k", "knn.k"),
            ("/milestones/0/epoch", "milestones.epoch"),
            ("/milestones/0/probe/accuracy", "milestones.probe.accuracy"),
            ("/milestones/0/knn/0/accuracy", "milestones.knn.accuracy"),
        ] {
            let mut damaged = whole();
            *damaged.pointer_mut(pointer).expect("it is there") = Value::Null;
            refused(&damaged.to_string(), &format!("it has no `{key}`"));
            for other in [json!([1]), json!({ "a": 1 })] {
                *damaged.pointer_mut(pointer).expect("it is there") = other;
                refused(&damaged.to_string(), &format!("`{key}` is not of its type"));
            }
        }
        for (pointer, key) in [
            ("/seed", "seed"),
            ("/train", "train"),
            ("/probe", "probe"),
            ("/knn", "knn"),
            ("/knn/0", "knn"),
            ("/milestones", "milestones"),
            ("/milestones/0", "milestones"),
            ("/milestones/0/knn", "milestones.knn"),
        ] {
            let mut damaged = whole();
            *damaged.pointer_mut(pointer).expect("it is there") = json!(-0.5);
            refused(&damaged.to_string(), &format!("`{key}` is not of its type"));
        }
        // Another version's keys are no damage, nor is a run whose weights came from elsewhere.
        let mut newer = whole();
        newer["mood"] = json!("good");
        assert!(read(&newer.to_string()).is_ok_and(|read| read.is_some()));
        let imported =
            json!({ "run": "x", "method": "vae", "imported_from": "a", "interrupted": false });
        assert!(read(&imported.to_string()).is_ok_and(|read| read.is_some()));
    }

    #[test]
    fn the_keys_are_those_that_are_written() {
        let mut untrained = whole();
        untrained["random_init"] = json!(true);
        untrained["imported_from"] = json!("a.safetensors");
        let rows =
            [&untrained, &untrained["probe"], &untrained["knn"][0], &untrained["milestones"][0]];
        let written: std::collections::BTreeSet<&String> =
            rows.iter().filter_map(|row| row.as_object()).flat_map(Map::keys).collect();
        assert!(written.iter().all(|key| KEYS.contains(&key.as_str())), "{written:?}");
        assert_eq!(written.len(), KEYS.len());
        let again = RunSummary::of_json(untrained.clone()).expect("a summary").to_json();
        assert_eq!(again.as_object().map(Map::len), untrained.as_object().map(Map::len));
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

//! Several runs side by side: what they reached, in which settings they differ, their curves over
//! each other.

use std::path::PathBuf;

use ratatui::style::Color;
use ratatui::symbols::Marker;
use serde_json::{Value, json};

use super::chart::{self, Curve, number};
use super::run::{RunState, RunView};
use crate::disk::is_there;
use crate::run::RunError;
use crate::text;

/// Step and value, by step.
pub type Points = Vec<(f64, f64)>;

/// Runs, each with a letter.
#[derive(Debug)]
pub struct Comparison {
    runs: Vec<RunView>,
    /// What else was named, and what it is.
    pub skipped: Vec<String>,
    /// What is wrong with summaries of the runs, and which files these are.
    pub damage: Vec<String>,
}

impl RunState {
    /// The state as tables and screens word it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Training => "training",
            Self::Interrupted => "interrupted",
            Self::Trained => "trained",
            Self::Evaluated => "evaluated",
            Self::Imported => "imported",
            Self::Unclear => "unclear",
        }
    }
}

/// The letter of a run; they repeat after 26.
fn letter(index: usize) -> char {
    char::from(b'a' + (index % 26) as u8)
}

impl Comparison {
    /// Reads run folders. What is there and is no run folder is skipped: `runs/*` names whatever
    /// lies beside them.
    ///
    /// # Errors
    /// If one is missing or cannot be read, or if there is none.
    pub fn open(paths: &[PathBuf]) -> Result<Self, RunError> {
        let mut found = Self { runs: Vec::new(), skipped: Vec::new(), damage: Vec::new() };
        let mut first = None;
        for path in paths {
            match RunView::open(path) {
                Ok(run) => {
                    found.damage.extend(run.damage.clone());
                    found.runs.push(run);
                }
                Err(error) if is_there(path) && !is_there(&path.join("config.toml")) => {
                    found.skipped.push(error.to_string());
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match first {
            Some(error) if found.runs.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// Settings that differ: the key, and its value in each run.
    pub fn differences(&self) -> Vec<(String, Vec<String>)> {
        let Some(first) = self.runs.first() else { return vec![] };
        let differences: Vec<_> =
            self.runs.iter().map(|run| run.config.differences(&first.config)).collect();
        let mut keys: Vec<_> =
            differences.iter().flatten().map(|d| (d.key.clone(), d.there.clone())).collect();
        keys.sort_unstable();
        keys.dedup();
        let value = |key: &str, same: &String, of: usize| {
            differences[of]
                .iter()
                .find(|d| d.key == key)
                .map_or_else(|| same.clone(), |d| d.here.clone())
        };
        let row = |(key, same): (String, String)| {
            let values = (0..self.runs.len()).map(|of| value(&key, &same, of)).collect();
            (key, values)
        };
        keys.into_iter().map(row).collect()
    }

    /// The table as JSON.
    pub fn json(&self) -> Value {
        let row = |(index, run): (usize, &RunView)| {
            let loss = |split| run.last(split).and_then(|r| r.get("loss")).and_then(short);
            json!({
                "letter": letter(index),
                "run": text::path(&run.dir),
                "state": run.state().name(),
                "method": run.config.method.name(),
                "dataset": run.config.dataset.name(),
                "seed": run.config.seed,
                "steps": run.steps(),
                "loss": loss("train"),
                "validation_loss": loss("val"),
                "probe": run.probe(),
                "knn20": run.knn(20),
                "knn200": run.knn(200),
                "images_per_second": run.images_per_second(),
            })
        };
        let differ = |(key, values): (String, Vec<String>)| {
            // "unset" is null
            let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!(null));
            json!({ "key": key, "values": values.iter().map(value).collect::<Vec<Value>>() })
        };
        json!({
            "runs": self.runs.iter().enumerate().map(row).collect::<Vec<_>>(),
            "differ": self.differences().into_iter().map(differ).collect::<Vec<_>>(),
        })
    }

    /// Training and held-out losses of the runs of each method, over each other: losses of
    /// different methods are different quantities. A title, and the points of each run by its
    /// place.
    pub fn overlays(&self) -> Vec<(String, Vec<(usize, Points)>)> {
        let mut methods: Vec<&str> = Vec::new();
        for run in &self.runs {
            let name = run.config.method.name();
            if !methods.contains(&name) {
                methods.push(name);
            }
        }
        let mut overlays = Vec::new();
        for method in methods {
            for (split, title) in [("train", "loss"), ("val", "held-out loss")] {
                let of_method = self
                    .runs
                    .iter()
                    .enumerate()
                    .filter(|(_, run)| run.config.method.name() == method);
                let points = of_method.map(|(place, run)| (place, run.curve(split, "loss")));
                let curves: Vec<_> = points.filter(|(_, points)| !points.is_empty()).collect();
                if !curves.is_empty() {
                    overlays.push((format!("{method}: {title}"), curves));
                }
            }
        }
        overlays
    }

    /// The letter and the folder of a run.
    pub fn label(&self, place: usize) -> String {
        let folder = crate::text::name(self.runs[place].dir.file_name().unwrap_or_default());
        format!("{} {folder}", letter(place))
    }

    /// What the runs have reached: a head, and a row for each.
    pub fn table(&self) -> Vec<Vec<String>> {
        let head = [
            "", "run", "state", "method", "dataset", "seed", "steps", "loss", "held-out", "probe",
            "kNN-20", "kNN-200", "images/s",
        ];
        let mut table = vec![head.map(str::to_owned).to_vec()];
        for (index, run) in self.runs.iter().enumerate() {
            let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
            let loss = |split| cell(run.last(split).and_then(|r| r.get("loss")).map(f64::from));
            table.push(vec![
                letter(index).to_string(),
                crate::text::name(&run.dir).to_string(),
                run.state().name().to_owned(),
                run.config.method.name().to_owned(),
                run.config.dataset.name(),
                run.config.seed.to_string(),
                run.steps().to_string(),
                loss("train"),
                loss("val"),
                cell(run.probe()),
                cell(run.knn(20)),
                cell(run.knn(200)),
                cell(run.images_per_second()),
            ]);
        }
        table
    }

    /// The settings that differ: a head, and a row for each. Empty if none does.
    pub fn settings(&self) -> Vec<Vec<String>> {
        let differences = self.differences();
        if differences.is_empty() {
            return vec![];
        }
        let letters = (0..self.runs.len()).map(|run| letter(run).to_string());
        let mut table = vec![std::iter::once("differ in".to_owned()).chain(letters).collect()];
        table.extend(
            differences
                .into_iter()
                .map(|(key, values)| std::iter::once(key).chain(values).collect()),
        );
        table
    }

    /// Tables and curves as text.
    pub fn text(&self) -> String {
        const COLOURS: [Color; 6] =
            [Color::Blue, Color::Red, Color::Green, Color::Magenta, Color::Yellow, Color::Cyan];
        let mut text = aligned(&self.table());
        let settings = self.settings();
        if !settings.is_empty() {
            text += &format!("\n{}", aligned(&settings));
        }
        for (title, curves) in self.overlays() {
            let curve = |(run, points)| Curve {
                name: String::new(),
                marker: Marker::Custom(letter(run)),
                colour: COLOURS[run % COLOURS.len()],
                points,
            };
            text += &format!(
                "\n{}",
                chart::text(&title, &curves.into_iter().map(curve).collect::<Vec<_>>())
            );
        }
        text
    }
}

/// The number that the shortest text of an f32 stands for; none for a NaN.
fn short(x: f32) -> Option<f64> {
    x.to_string().parse().ok().filter(|x: &f64| x.is_finite())
}

/// Rows with columns as wide as their widest cell, two blanks between.
fn aligned(table: &[Vec<String>]) -> String {
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let line = |row: &Vec<String>| -> String {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(i, cell)| format!("{cell:<0$}", width(i))).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    table.iter().map(line).collect()
}

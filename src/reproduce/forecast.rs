//! What a grid costs: floating-point operations and memory from the plans, seconds from a short
//! measurement.

use std::time::Instant;

use serde_json::{Value, json};

use super::cells::Weights;
use super::folder::{Run, State};
use super::{Cell, Setup};
use crate::data::Splits;
use crate::device::{self, Data, DeviceSpec, Session};
use crate::eval;
use crate::method::{self, ModelConfig, Training};
use crate::ops::StepUniforms;
use crate::plan::Plan;
use crate::rng::{Philox, Stream};
use crate::run::trained::model_config;
use crate::run::{RunError, state};
use crate::train::measure::{IMPORTANCE_IMAGES, KNN_IMAGES};
use crate::train::{plans, schedule};

/// What a run costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Steps of pretraining.
    pub steps: u64,
    /// Floating-point operations of pretraining, and of what it measures on the way.
    pub train_flops: f64,
    /// Floating-point operations of the evaluations: features, and a probe's steps.
    pub evaluation_flops: f64,
    /// Bytes of device memory at the most.
    pub peak_bytes: usize,
}

impl Cost {
    /// Floating-point operations of the run.
    pub fn flops(&self) -> f64 {
        self.train_flops + self.evaluation_flops
    }

    /// The cost of a cell's run on the images of `splits`.
    ///
    /// # Errors
    /// If no batch fits in the training images, or the device has no room for a plan.
    pub fn new(cell: &Cell, splits: &Splits, session: &Session) -> Result<Self, RunError> {
        let config = cell.config(0);
        let model = model_config(&config, splits);
        let plans = plans::plan(session, &config, &model, splits.val.len())?;
        let sizes = plans::Sizes::new(&config, model.batch, splits.val.len());
        let each = |plan: &Plan, batch: usize| plan.flops() as f64 / batch as f64;

        // At the end, and at the milestones, of which the last may be the end.
        let labelled = splits.labelled_train.len();
        let batch = config.probe_batch().min(labelled);
        let classes = splits.labelled_train.dataset.classes().len();
        let graphs = eval::graphs(&ModelConfig { batch, ..model }, config.protocol(), classes);
        let loaded = graphs.map(|(name, graph)| session.lower(name, &graph));
        let [features, probe, _] = &loaded;
        let milestones = schedule::milestones(&config, splits)?;
        let encoded = labelled + splits.test.len();
        let evaluation = encoded as f64 * each(features, batch)
            + (labelled * config.probe_epochs) as f64 * each(probe, batch);
        let evaluations = milestones.len().max(1);
        let evaluation_flops = evaluation * evaluations as f64;
        let evaluation_bytes = plans::device_bytes(session, &loaded);
        if cell.weights == Weights::Initial {
            return Ok(Self {
                steps: 0,
                train_flops: 0.0,
                evaluation_flops,
                peak_bytes: evaluation_bytes,
            });
        }

        // What a run loads, and what it measures on the way: validation every epoch, likelihood and
        // kNN where they are asked for.
        let steps = schedule::total_steps(&config, splits)?;
        let mut train_flops = plans.train.flops() as f64 * steps as f64;
        let epochs = steps as f64 / (splits.train.len() / model.batch).max(1) as f64;
        let asked =
            if config.eval_every == 0 { 1.0 } else { (epochs / config.eval_every as f64).ceil() };
        if let Some(plan) = &plans.validation {
            train_flops +=
                plan.flops() as f64 * (splits.val.len() / sizes.validation) as f64 * epochs.ceil();
        }
        if let Some(plan) = &plans.importance {
            let images = splits.val.len().min(IMPORTANCE_IMAGES) as f64;
            train_flops += each(plan, sizes.sampled) * images * asked;
        }
        if let Some(plan) = &plans.features {
            let images = labelled.min(KNN_IMAGES) + splits.labelled_val.len();
            train_flops += each(plan, model.batch) * images as f64 * asked;
        }
        let all: Vec<Plan> = plans.iter().map(|(_, plan)| plan.clone()).collect();
        let peak_bytes = plans::device_bytes(session, &all).max(evaluation_bytes);
        Ok(Self { steps, train_flops, evaluation_flops, peak_bytes })
    }
}

/// Measures how fast a device trains a model: floating-point operations a second, the batch grown
/// until a step takes long enough.
///
/// # Errors
/// If the device fails.
pub fn measure(choice: &DeviceSpec, model: &ModelConfig) -> Result<f64, RunError> {
    /// Seconds that a step must take to say something.
    const LONG: f64 = 0.2;
    let mut batch = model.batch.min(8);
    loop {
        let (mut session, _) = device::open(choice)?;
        let session = &mut session;
        let training = method::training(&ModelConfig { batch, ..*model }, Training::default());
        session.allocate(&training.graph.layout);
        let plan = session.load(session.lower("train", &training.graph))?;
        state::initialise(session, &training.graph.layout, &training.params, 0)?;
        let rng = Philox::new(0, Stream::Test);
        let pixels: Vec<u32> = (0..batch * model.net.image.pow(2))
            .map(|i| rng.words(0, 0, i as u32)[0] & 0x00ff_ffff)
            .collect();
        session.upload(plan, 0, Data::U32(&pixels))?;
        let mut step = |step: u32| -> Result<f64, RunError> {
            let began = Instant::now();
            session.run(
                plan,
                &StepUniforms {
                    step,
                    learning_rate: 1e-4,
                    bias1: 1.0,
                    bias2: 1.0,
                    ..StepUniforms::default()
                },
            )?;
            session.drain(plan)?;
            Ok(began.elapsed().as_secs_f64())
        };
        step(0)?;
        let mut seconds = [step(1)?, step(2)?, step(3)?];
        seconds.sort_by(f64::total_cmp);
        if seconds[1] >= LONG || batch == model.batch {
            return Ok(session.plan(plan).flops() as f64 / seconds[1]);
        }
        batch = model.batch.min((batch as f64 * (1.5 * LONG / seconds[1]).max(2.0)) as usize);
    }
}

/// Time left, from what the runs so far took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    flops: f64,
    seconds: f64,
}

impl Speed {
    /// Adds a run that was not resumed.
    pub fn add(&mut self, flops: f64, seconds: f64) {
        self.flops += flops;
        self.seconds += seconds;
    }

    /// Seconds that so many operations will take; `None` before the first run.
    pub fn seconds(&self, flops: f64) -> Option<f64> {
        (self.flops > 0.0).then(|| flops / self.flops * self.seconds)
    }
}

/// The grid with its predicted hours and memory, without running it.
///
/// # Errors
/// If the device fails or has no room.
pub fn forecast(
    setup: &Setup,
    cells: &[&Cell],
    splits: &Splits,
    choice: &DeviceSpec,
    state: impl Fn(&Run<'_>) -> State,
) -> Result<Value, RunError> {
    let (session, why) = device::open(choice)?;
    // A cell that the device has no room for is a row of its own.
    let costs: Vec<Result<Cost, RunError>> =
        cells.iter().map(|cell| Cost::new(cell, splits, &session)).collect();
    let device = format!("{} ({why})", session.device());
    drop(session);
    // All cells by the rate of the costliest: they differ in a layer or two.
    let known =
        cells.iter().zip(&costs).filter_map(|(cell, cost)| Some((cell, cost.as_ref().ok()?)));
    let Some((costliest, _)) = known.max_by(|a, b| a.1.flops().total_cmp(&b.1.flops())) else {
        let first = costs.into_iter().find_map(Result::err);
        return Err(first.unwrap_or_else(|| RunError::config("the grid is empty", None)));
    };
    let config = costliest.config(0);
    let rate = measure(choice, &model_config(&config, splits))?;
    let mut rows = Vec::new();
    let (mut hours, mut left) = (0.0, 0.0);
    for (cell, cost) in cells.iter().zip(&costs) {
        let cost = match cost {
            Ok(cost) => cost,
            Err(error) => {
                rows.push(json!({ "cell": cell.name, "runs": setup.seeds, "error": error.to_string(), "hint": error.hint() }));
                continue;
            }
        };
        let each = cost.flops() / rate / 3600.0;
        let done = (0..setup.seeds as u64)
            .filter(|seed| matches!(state(&Run { cell, seed: *seed }), State::Done(_)))
            .count();
        hours += each * setup.seeds as f64;
        left += each * (setup.seeds - done) as f64;
        rows.push(json!({
            "cell": cell.name, "runs": setup.seeds, "done": done, "steps": cost.steps, "train_gflop": cost.train_flops / 1e9,
            "evaluation_gflop": cost.evaluation_flops / 1e9, "hours": each, "peak_bytes": cost.peak_bytes,
        }));
    }
    let peak = costs.iter().flatten().map(|cost| cost.peak_bytes).max();
    Ok(json!({
        "experiment": setup.experiment.name(), "scale": setup.scale.name(), "dataset": setup.dataset.name(), "device": device,
        "gflops": rate / 1e9, "cells": rows, "hours": hours, "hours_left": left, "peak_bytes": peak,
    }))
}

/// A forecast as a table.
pub fn text(forecast: &Value) -> String {
    let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    let mut out = format!(
        "{} at scale {} on {}, {}, {:.1} GFLOP/s\n  runs  done    steps   TFLOP each  hours each  \
         memory MB  cell\n",
        forecast["experiment"].as_str().unwrap_or(""),
        forecast["scale"].as_str().unwrap_or(""),
        forecast["dataset"].as_str().unwrap_or(""),
        forecast["device"].as_str().unwrap_or(""),
        number(&forecast["gflops"])
    );
    for row in forecast["cells"].as_array().map_or(&[][..], Vec::as_slice) {
        if let Some(error) = row["error"].as_str() {
            out += &format!(
                "{:6}  {} does not fit: {error}\n",
                number(&row["runs"]),
                row["cell"].as_str().unwrap_or("")
            );
            continue;
        }
        out += &format!(
            "{:6} {:5} {:8} {:12.1} {:11.2} {:10.0}  {}\n",
            number(&row["runs"]),
            number(&row["done"]),
            number(&row["steps"]),
            (number(&row["train_gflop"]) + number(&row["evaluation_gflop"])) / 1e3,
            number(&row["hours"]),
            number(&row["peak_bytes"]) / 1e6,
            row["cell"].as_str().unwrap_or("")
        );
    }
    out + &format!(
        "{:.2} hours in all, {:.2} left; {:.0} MB of memory at the most",
        number(&forecast["hours"]),
        number(&forecast["hours_left"]),
        number(&forecast["peak_bytes"]) / 1e6
    )
}

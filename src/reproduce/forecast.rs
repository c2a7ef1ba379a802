//! What a grid costs: floating-point operations and memory from the plans, seconds from a short
//! measurement.

use std::time::Instant;

use serde::Serialize;

use super::cells::Weights;
use super::folder::{CellRun, CellState};
use super::{Cell, Setup};
use crate::data::Splits;
use crate::device::{self, Data, DeviceSpec, Session};
use crate::eval;
use crate::method::ModelConfig;
use crate::ops::StepUniforms;
use crate::plan::Plan;
use crate::rng::{Philox, Stream};
use crate::run::settings::RunConfig;
use crate::run::trained::model_config;
use crate::run::{RunError, resident, state};
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
        let shown = (labelled / batch * batch * config.probe_epochs) as u64;
        let evaluation_bytes = evaluation_bytes
            + resident::bytes(session, &splits.labelled_train, shown, evaluation_bytes);
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
        let bytes = plans::device_bytes(session, &all);
        let seen = steps * config.images_per_step() as u64;
        let bytes = bytes + resident::bytes(session, &splits.train, seen, bytes);
        let peak_bytes = bytes.max(evaluation_bytes);
        Ok(Self { steps, train_flops, evaluation_flops, peak_bytes })
    }
}

/// Measures how fast a device takes the training steps of a run: floating-point operations a
/// second. The batch grows until a step takes long enough to be timed.
///
/// # Errors
/// If the device fails.
pub fn measure(
    choice: &DeviceSpec,
    config: &RunConfig,
    model: &ModelConfig,
) -> Result<f64, RunError> {
    /// Seconds that a step must take to say something.
    const LONG: f64 = 0.2;
    let mut batch = model.batch.min(8);
    loop {
        let (mut session, _) = device::open(choice)?;
        let session = &mut session;
        let sizes = plans::Sizes::new(config, batch, 0);
        let (graphs, params) = plans::graphs(config, model, sizes);
        let layout = &graphs.train.layout;
        session.allocate(layout);
        let plan = session.load(session.lower("train", &graphs.train))?;
        state::initialise(session, layout, &params, 0)?;
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

/// What a grid is predicted to cost.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Name of the experiment.
    pub experiment: &'static str,
    /// Name of the scale.
    pub scale: &'static str,
    /// Name of the data set.
    pub dataset: String,
    /// Device, and why it was chosen.
    pub device: String,
    /// Measured rate of the costliest cell's training, in 10^9 operations a second.
    pub gflops: f64,
    /// Its cells, in the grid's order.
    pub cells: Vec<CellForecast>,
    /// Hours of all runs of the cells that fit.
    pub hours: f64,
    /// Hours of those that are not done.
    pub hours_left: f64,
    /// Bytes of device memory at the most; `None` if no cell fits.
    pub peak_bytes: Option<usize>,
}

/// What the runs of a cell are predicted to cost.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum CellForecast {
    /// The device has room for them.
    Fits {
        /// Name of the cell.
        cell: String,
        /// Its runs, one for each seed.
        runs: usize,
        /// Those that are done.
        done: usize,
        /// Steps of each.
        steps: u64,
        /// 10^9 operations of each one's training, and of what it measures on the way.
        train_gflop: f64,
        /// 10^9 operations of each one's evaluations.
        evaluation_gflop: f64,
        /// Hours of each.
        hours: f64,
        /// Bytes of device memory at the most.
        peak_bytes: usize,
    },
    /// The device has none.
    DoesNotFit {
        /// Name of the cell.
        cell: String,
        /// Its runs, one for each seed.
        runs: usize,
        /// What there is no room for.
        error: String,
        /// What would fit.
        hint: Option<String>,
    },
}

/// The grid with its predicted hours and memory, without running it. All cells are timed by the
/// rate of the costliest: they differ in a layer or two.
///
/// # Errors
/// If the device fails, or has no room for any cell.
pub fn forecast(
    setup: &Setup,
    cells: &[&Cell],
    splits: &Splits,
    choice: &DeviceSpec,
    state: impl Fn(&CellRun<'_>) -> CellState,
) -> Result<Forecast, RunError> {
    let (session, why) = device::open(choice)?;
    let costs: Vec<Result<Cost, RunError>> =
        cells.iter().map(|cell| Cost::new(cell, splits, &session)).collect();
    let device = format!("{} ({why})", session.device());
    drop(session);
    let known =
        cells.iter().zip(&costs).filter_map(|(cell, cost)| Some((cell, cost.as_ref().ok()?)));
    let Some((costliest, _)) = known.max_by(|a, b| a.1.flops().total_cmp(&b.1.flops())) else {
        let first = costs.into_iter().find_map(Result::err);
        return Err(first.unwrap_or_else(|| RunError::config("the grid is empty", None)));
    };
    let config = costliest.config(0);
    let rate = measure(choice, &config, &model_config(&config, splits))?;
    let mut forecast = Forecast {
        experiment: setup.experiment.name(),
        scale: setup.scale.name(),
        dataset: setup.dataset.name(),
        device,
        gflops: rate / 1e9,
        cells: Vec::new(),
        hours: 0.0,
        hours_left: 0.0,
        peak_bytes: costs.iter().flatten().map(|cost| cost.peak_bytes).max(),
    };
    let runs = setup.seeds;
    for (cell, cost) in cells.iter().zip(costs) {
        let name = cell.name.clone();
        forecast.cells.push(match cost {
            // A cell that the device has no room for is a row of its own.
            Err(error) => CellForecast::DoesNotFit {
                cell: name,
                runs,
                error: error.to_string(),
                hint: error.hint(),
            },
            Ok(cost) => {
                let hours = cost.flops() / rate / 3600.0;
                let done = (0..runs as u64)
                    .filter(|seed| {
                        matches!(state(&CellRun { cell, seed: *seed }), CellState::Done(_))
                    })
                    .count();
                forecast.hours += hours * runs as f64;
                forecast.hours_left += hours * (runs - done) as f64;
                CellForecast::Fits {
                    cell: name,
                    runs,
                    done,
                    steps: cost.steps,
                    train_gflop: cost.train_flops / 1e9,
                    evaluation_gflop: cost.evaluation_flops / 1e9,
                    hours,
                    peak_bytes: cost.peak_bytes,
                }
            }
        });
    }
    Ok(forecast)
}

/// A forecast as a table.
pub fn text(forecast: &Forecast) -> String {
    let Forecast { experiment, scale, dataset, device, gflops, .. } = forecast;
    let mut out = format!(
        "{experiment} at scale {scale} on {dataset}, {device}, {gflops:.1} GFLOP/s\n  \
         runs  done    steps   TFLOP each  hours each  memory MB  cell\n",
    );
    for row in &forecast.cells {
        out += &match row {
            CellForecast::DoesNotFit { cell, runs, error, .. } => {
                format!("{runs:6}  {cell} does not fit: {error}\n")
            }
            CellForecast::Fits {
                cell,
                runs,
                done,
                steps,
                train_gflop,
                evaluation_gflop,
                hours,
                peak_bytes,
            } => format!(
                "{runs:6} {done:5} {steps:8} {:12.1} {hours:11.2} {:10.0}  {cell}\n",
                (train_gflop + evaluation_gflop) / 1e3,
                *peak_bytes as f64 / 1e6,
            ),
        };
    }
    out + &format!(
        "{:.2} hours in all, {:.2} left; {:.0} MB of memory at the most",
        forecast.hours,
        forecast.hours_left,
        forecast.peak_bytes.map_or(f64::NAN, |bytes| bytes as f64 / 1e6)
    )
}

//! Every number of a grid, one a line:
//! `experiment,scale,dataset,cell,seed,state,epoch,metric,value`. A run that is not done has one
//! line without a metric.

use crate::reproduce::folder::CellState;
use crate::reproduce::results::{Measure, Results};

/// `results.csv`: one row for each number that was measured.
pub(super) fn text(results: &Results) -> String {
    let setup = &results.setup;
    let mut text = String::from("experiment,scale,dataset,cell,seed,state,epoch,metric,value\n");
    for run in &results.runs {
        let state = match run.state {
            CellState::Done(_) => "done",
            CellState::Failed(_) => "failed",
            CellState::Open => "open",
        };
        // No name holds a comma or a quote.
        let cell = &results.cells[run.cell].name;
        let head = format!(
            "{},{},{},{cell},{},{state}",
            setup.experiment.name(),
            setup.scale.name(),
            setup.dataset.name(),
            run.seed
        );
        let Some(summary) = run.summary() else {
            text += &format!("{head},,,\n");
            continue;
        };
        let mut line = |epoch: &str, metric: &str, value: f64| {
            text += &format!("{head},{epoch},{metric},{value}\n")
        };
        for measure in Measure::ALL {
            for (epoch, value) in run.milestones(measure) {
                line(&epoch.to_string(), measure.name(), value);
            }
            if let Some(value) = measure.of(&summary.measured) {
                line("", measure.name(), value);
            }
        }
        for bits in run.bits.iter().flatten() {
            let epoch = bits.epoch.to_string();
            line(&epoch, "train_bits_per_dim_elbo", bits.train);
            line(&epoch, "val_bits_per_dim_elbo", bits.val);
            if let Some(sampled) = bits.sampled {
                line(&epoch, "val_bits_per_dim", sampled);
            }
        }
        for s in &run.similarities {
            for (metric, value) in [("within", s.within), ("across", s.across), ("gap", s.gap())] {
                line("", &format!("{}_{metric}", s.of), value);
            }
        }
        // Of a run that was resumed the summary has the last session's times.
        let one = summary.is_of_one_session();
        for (key, value) in [
            ("steps", summary.steps.map(|steps| steps as f64)),
            ("seconds", summary.seconds.filter(|_| one)),
            ("images_per_second", summary.images_per_second.filter(|_| one)),
        ] {
            if let Some(value) = value {
                line("", key, value);
            }
        }
    }
    text
}

//! The plots of each experiment.

use std::io;

use maud::{Markup, html};

use super::chart::{Axis, Mark, Panel, Point, Series, chart, n};
use super::heat;
use crate::data::read_regular;
use crate::model::Depth;
use crate::reproduce::cells::Varies;
use crate::reproduce::findings::similarity;
use crate::reproduce::results::{Bits, Measure, Results, RunResult, Stat};
use crate::reproduce::views::{IMAGES, VIEWS, picture};
use crate::reproduce::{Cell, Experiment, GridScale, paper};
use crate::run::settings::RunConfig;

/// A plot of a report.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Name of its PNG, without the extension.
    pub name: &'static str,
    /// What it shows.
    pub caption: String,
    /// The plot as an SVG element.
    pub svg: Markup,
}

/// The plots that the finished runs are enough for.
pub(super) fn figures(results: &Results) -> Vec<Figure> {
    if results.done().next().is_none() {
        return Vec::new();
    }
    match results.setup.experiment {
        Experiment::Table1 => vec![table1(results)],
        Experiment::Fig2 => vec![bits(results), accuracy(results)],
        Experiment::Fig3 => vec![fig3(results)],
        Experiment::Fig4 => vec![fig4(results)],
        Experiment::Fig5 => fig5(results).into_iter().collect(),
        Experiment::Duration => vec![duration(results)],
    }
}

const ACCURACY: &str = "test accuracy, %";

fn percent(x: f64, stat: Stat) -> Point {
    Point { x, y: stat.mean * 100.0, sd: stat.sd.map(|sd| sd * 100.0) }
}

/// Probe and kNN of cells at given places.
fn measures(
    results: &Results,
    cells: &[(f64, usize)],
    mark: impl Fn(usize) -> Mark,
) -> Vec<Series> {
    let series = |(i, (measure, name)): (usize, (Measure, &str))| {
        // Dots stand side by side, or error bars would hide each other.
        let aside = if mark(i) == Mark::Dots(i) { 0.16 * i as f64 - 0.08 } else { 0.0 };
        let points = cells
            .iter()
            .filter_map(|(x, cell)| {
                results.stat(*cell, measure).map(|stat| percent(x + aside, stat))
            })
            .collect();
        Series { name: name.into(), points, mark: mark(i) }
    };
    [(Measure::Probe, "linear probe"), (Measure::Knn20, "kNN, k = 20")]
        .into_iter()
        .enumerate()
        .map(series)
        .collect()
}

/// AAVAE of the paper's Table 1, where the scale makes it comparable; elsewhere it would squeeze
/// our values into a corner.
fn theirs(results: &Results, x: f64) -> Option<Series> {
    let value = paper::table1("aavae", results.setup.dataset)
        .filter(|_| results.setup.scale == GridScale::Paper)?;
    let name = format!("the paper's AAVAE ({})", paper::dataset(results.setup.dataset));
    Some(Series { name, points: vec![Point { x, y: value, sd: None }], mark: Mark::Theirs })
}

fn table1(results: &Results) -> Figure {
    let places: Vec<(f64, usize)> = (0..results.cells.len()).map(|i| (i as f64, i)).collect();
    let mut series = measures(results, &places, Mark::Dots);
    let dataset = results.setup.dataset;
    let theirs = results.cells.iter().enumerate();
    let theirs = theirs
        .filter_map(|(i, cell)| {
            Some(Point { x: i as f64, y: paper::table1(&cell.name, dataset)?, sd: None })
        })
        .collect();
    series.push(Series {
        name: format!("the paper's probe ({})", paper::dataset(dataset)),
        points: theirs,
        mark: Mark::Theirs,
    });
    let axis = Axis::Names(results.cells.iter().map(|cell| cell.tick.clone()).collect());
    let panel = Panel { title: ACCURACY.into(), x_label: String::new(), axis, series };
    let caption = "Accuracy by method: means over seeds with their standard deviation. Diamonds \
        are the paper's.";
    Figure { name: "table1", caption: caption.into(), svg: chart(&[panel], 1, caption) }
}

/// Means over the seeds of what a cell's runs have at each epoch.
fn by_epoch(
    results: &Results,
    cell: usize,
    of: impl Fn(&RunResult) -> Vec<(f64, f64)>,
    scale: f64,
) -> Vec<Point> {
    let curves: Vec<Vec<(f64, f64)>> =
        results.done().filter(|(run, _)| run.cell == cell).map(|(run, _)| of(run)).collect();
    let Some(longest) = curves.iter().max_by_key(|curve| curve.len()) else { return Vec::new() };
    let point = |(epoch, _): &(f64, f64)| {
        let values: Vec<f64> = curves
            .iter()
            .flat_map(|c| c.iter().filter(|(e, _)| e == epoch).map(|(_, v)| v * scale))
            .collect();
        Stat::of(&values).map(|stat| Point { x: *epoch, y: stat.mean, sd: stat.sd })
    };
    longest.iter().filter_map(point).collect()
}

fn bits(results: &Results) -> Figure {
    let panel = |(i, cell): (usize, &Cell)| {
        let series = |name: &str, mark, of: fn(&Bits) -> Option<f64>| {
            let curve = |run: &RunResult| {
                run.bits.iter().flatten().filter_map(|b| Some((b.epoch, of(b)?))).collect()
            };
            Series { name: name.into(), points: by_epoch(results, i, curve, 1.0), mark }
        };
        let series = vec![
            series("training", Mark::Line(0), |b| Some(b.train)),
            series("held out", Mark::Line(1), |b| Some(b.val)),
            series("log p(x)", Mark::Dashed(2), |b| b.sampled),
        ];
        Panel {
            title: format!("{}, bits per dimension", cell.label),
            x_label: "epoch".into(),
            axis: Axis::Numbers,
            series,
        }
    };
    let panels: Vec<Panel> = results.cells.iter().enumerate().map(panel).collect();
    let caption = "Bits per dimension of the 8-bit pixels over epochs: by the evidence lower bound \
        (log p(x|z) minus KL) of the batches that were trained on and of the held-out images, and \
        by importance-sampled log p(x) of the held-out images; bars are standard deviations over \
        seeds.";
    Figure { name: "bits", caption: caption.into(), svg: chart(&panels, columns(&panels), caption) }
}

fn columns(panels: &[Panel]) -> usize {
    if panels.len() > 1 { 2 } else { 1 }
}

/// Probe and kNN over epochs, a panel for each cell.
fn accuracy(results: &Results) -> Figure {
    let panel = |(i, cell): (usize, &Cell)| {
        let series = |(k, (measure, name)): (usize, (Measure, &str))| Series {
            name: name.into(),
            points: by_epoch(results, i, |run| run.milestones(measure), 100.0),
            mark: Mark::Line(2 * k),
        };
        let series = [(Measure::Probe, "linear probe"), (Measure::Knn20, "kNN, k = 20")]
            .into_iter()
            .enumerate()
            .map(series)
            .collect();
        Panel {
            title: format!("{}, {ACCURACY}", cell.label),
            x_label: "epoch".into(),
            axis: Axis::Numbers,
            series,
        }
    };
    let panels: Vec<Panel> = results.cells.iter().enumerate().map(panel).collect();
    let caption = "Accuracy over epochs, from the weights that were kept; means over seeds with \
        their standard deviation.";
    Figure {
        name: "accuracy",
        caption: caption.into(),
        svg: chart(&panels, columns(&panels), caption),
    }
}

/// The cells over epochs, a panel for probe and kNN each.
fn duration(results: &Results) -> Figure {
    let panel = |(measure, name): (Measure, &str)| {
        let series = |(i, cell): (usize, &Cell)| Series {
            name: cell.label.clone(),
            points: by_epoch(results, i, |run| run.milestones(measure), 100.0),
            mark: Mark::Line(i),
        };
        let mut series: Vec<Series> = results.cells.iter().enumerate().map(series).collect();
        if measure == Measure::Probe {
            series.extend(theirs(results, results.setup.budget().epochs as f64));
        }
        Panel {
            title: format!("{name}, {ACCURACY}"),
            x_label: "epoch".into(),
            axis: Axis::Numbers,
            series,
        }
    };
    let panels = [(Measure::Probe, "linear probe"), (Measure::Knn20, "kNN, k = 20")].map(panel);
    let caption = "Accuracy over epochs, from the weights that were kept; means over seeds with \
        their standard deviation.";
    Figure { name: "duration", caption: caption.into(), svg: chart(&panels, 2, caption) }
}

fn fig3(results: &Results) -> Figure {
    let places: Vec<(f64, usize)> = (0..results.cells.len()).map(|i| (i as f64, i)).collect();
    let axis = Axis::Names(results.cells.iter().map(|cell| cell.tick.clone()).collect());
    let mut series = measures(results, &places, Mark::Line);
    series.extend(theirs(results, 0.0));
    let panel =
        Panel { title: ACCURACY.into(), x_label: "weight β of the KL term".into(), axis, series };
    let caption =
        "Accuracy by the weight of the KL term: means over seeds with their standard deviation.";
    Figure { name: "fig3", caption: caption.into(), svg: chart(&[panel], 1, caption) }
}

fn fig4(results: &Results) -> Figure {
    let depth = |depth: Depth| match depth {
        Depth::Resnet18 => 18.0,
        Depth::Resnet34 => 34.0,
        Depth::Resnet50 => 50.0,
    };
    let panel = |title: &str, label: &str, varies: Varies, x: &dyn Fn(&RunConfig) -> f64| {
        let mine = results
            .cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.varies == varies || cell.varies == Varies::Base);
        let mut cells: Vec<(f64, usize)> = mine.map(|(i, cell)| (x(&cell.config(0)), i)).collect();
        cells.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (axis, places) = if varies == Varies::LogScale {
            (Axis::Numbers, cells)
        } else {
            let names = cells.iter().map(|(x, _)| n(*x)).collect();
            (
                Axis::Names(names),
                cells.iter().enumerate().map(|(i, (_, cell))| (i as f64, *cell)).collect(),
            )
        };
        let base = places.iter().find(|(_, cell)| results.cells[*cell].varies == Varies::Base);
        let mut series = measures(results, &places, Mark::Line);
        series.extend(base.and_then(|(x, _)| theirs(results, *x)));
        Panel { title: title.into(), x_label: label.into(), axis, series }
    };
    let panels = [
        panel("(a) accuracy, %", "batch size", Varies::Batch, &|c| c.batch_size as f64),
        panel("(b) accuracy, %", "latent size", Varies::Latent, &|c| c.latent_dim as f64),
        panel("(c) accuracy, %", "decoder ResNet", Varies::Decoder, &|c| depth(c.decoder)),
        panel("(d) accuracy, %", "log-scale", Varies::LogScale, &|c| f64::from(c.log_scale)),
    ];
    let caption = "Accuracy by batch size (learning rate and warm-up scaled linearly), latent \
        size, decoder, and the logarithm of the likelihood's variance; one is varied, the others \
        are the base's.";
    Figure { name: "fig4", caption: caption.into(), svg: chart(&panels, 2, caption) }
}

/// Heat maps of the first seed that is done in all cells: a column for each model, a row for
/// features and latents.
fn fig5(results: &Results) -> Option<Figure> {
    let of = |seed: u64| -> Option<Vec<&RunResult>> {
        let run = |i: usize| {
            results
                .runs
                .iter()
                .find(|run| run.cell == i && run.seed == seed && !run.similarities.is_empty())
        };
        (0..results.cells.len()).map(run).collect()
    };
    let runs = (0..results.setup.seeds as u64).find_map(of)?;
    let read = |i| read_regular(&results.out.join(&runs[0].name).join(picture(i)));
    let images = if results.show_images { IMAGES } else { 0 };
    let (pictures, lost) = match (0..images).map(read).collect::<io::Result<Vec<_>>>() {
        Ok(pictures) => (pictures, String::new()),
        Err(error) => (vec![], format!(" The views cannot be shown: {error}.")),
    };
    let images = pictures.len();
    let kinds = [("h", "features h"), ("z", "latent z")];
    let side = (IMAGES * VIEWS) as f64 * heat::CELL;
    let strip = heat::strip(images);
    let (step_x, step_y) = (strip + side + 28.0, strip + side + 62.0);
    let (w, h) = (step_x * runs.len() as f64 + 44.0, step_y * kinds.len() as f64);
    let caption = format!(
        "Cosine similarity between {VIEWS} views of each of {IMAGES} test images, seed {}.{} One \
         warm block an image on the diagonal means that views of an image are alike and images \
         differ.{lost}",
        runs[0].seed,
        if images > 0 {
            " Beside each group of rows and above each group of columns: the image and its views."
        } else {
            ""
        }
    );
    let svg = html! {
        svg class="chart" xmlns="http://www.w3.org/2000/svg"
            xmlns:xlink="http://www.w3.org/1999/xlink"
            viewBox={ "0 0 " (n(w)) " " (n(h)) } width=(n(w)) height=(n(h))
            role="img" aria-label="similarity of views" {
            defs {
                @for (i, png) in pictures.iter().enumerate() {
                    @let side = n(heat::STRIP - 4.0);
                    @let picture = super::data_uri(png);
                    image id={ "views-" (i) } width=(side) height=(side) xlink:href=(picture) {}
                }
            }
            @for (column, run) in runs.iter().enumerate() {
                @for (row, (kind, name)) in kinds.iter().enumerate() {
                    @if let Some(found) = similarity(run, kind) {
                        @let left = n(column as f64 * step_x);
                        @let top = n(row as f64 * step_y);
                        @let label = &results.cells[run.cell].label;
                        g transform={ "translate(" (left) " " (top) ")" } {
                            text class="title" x=(n(strip)) y="18" { (label) ", " (name) }
                            text class="faint" x=(n(strip)) y="36" {
                                "within " (format!("{:.3}", found.within))
                                ", across " (format!("{:.3}", found.across))
                                ", gap " (format!("{:.3}", found.gap()))
                            }
                            g transform="translate(0 44)" { (heat::map(&found.matrix, images)) }
                        }
                    }
                }
            }
            @let right = n(step_x * runs.len() as f64 - 8.0);
            g transform={ "translate(" (right) " " (n(44.0 + strip)) ")" } { (heat::legend(side)) }
        }
    };
    Some(Figure { name: "fig5", caption, svg })
}

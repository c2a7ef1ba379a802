//! A comparison as a file: the curves as SVG or PNG, or a page with the tables too.

use std::path::Path;

use maud::Markup;

use super::compare::{Comparison, Points};
use crate::reproduce::report::chart::{self, Axis, Mark, Panel, Point, Series};
use crate::reproduce::report::{Block, Figure, Section, Table, html};
use crate::run::RunError;

/// Colours that a chart has.
const COLOURS: usize = 4;
/// Columns of the table that are words.
const WORDS: usize = 6;

/// Kinds of files that curves are drawn to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The curves as vectors.
    Svg,
    /// The curves as pixels.
    Png,
    /// Tables and curves, in one file.
    Html,
}

impl Format {
    /// The kind of a file by its extension.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "svg" => Some(Self::Svg),
            "png" => Some(Self::Png),
            "html" => Some(Self::Html),
            _ => None,
        }
    }
}

/// The bytes of a file.
///
/// # Errors
/// If no run has logged a loss that could be drawn.
pub fn file(comparison: &Comparison, kind: Format) -> Result<Vec<u8>, RunError> {
    let svg = curves(comparison);
    let nothing = || {
        RunError::config("no run has a curve to draw", Some("without --out the table is printed"))
    };
    Ok(match kind {
        Format::Svg => chart::document(&svg.ok_or_else(nothing)?).into_bytes(),
        Format::Png => {
            let failed = |e| RunError::config(format!("the curves cannot be drawn: {e}"), None);
            chart::png(&svg.ok_or_else(nothing)?).map_err(failed)?
        }
        Format::Html => {
            let table = |mut rows: Vec<Vec<String>>, words| {
                Block::Table(Table { head: rows.remove(0), rows, words })
            };
            let mut sections =
                vec![Section { title: "Runs", blocks: vec![table(comparison.table(), WORDS)] }];
            let settings = comparison.settings();
            if !settings.is_empty() {
                let columns = settings[0].len();
                sections
                    .push(Section { title: "Settings", blocks: vec![table(settings, columns)] });
            }
            if let Some(svg) = svg {
                let caption = "Losses of different methods are different quantities.".to_owned();
                sections.push(Section {
                    title: "Curves",
                    blocks: vec![Block::Figure(Figure { name: "curves", caption, svg })],
                });
            }
            html::page("Runs compared", &sections).into_bytes()
        }
    })
}

/// A panel for each method and split. A run has one colour in all of them; from the fifth on the
/// lines are dashed. One point is a dot.
fn curves(comparison: &Comparison) -> Option<Markup> {
    let mark = |place: usize, points: usize| match place % COLOURS {
        colour if points == 1 => Mark::Dots(colour),
        colour if (place / COLOURS).is_multiple_of(2) => Mark::Curve(colour),
        colour => Mark::Dashed(colour),
    };
    let series = |(place, points): (usize, Points)| Series {
        name: comparison.label(place),
        mark: mark(place, points.len()),
        points: points.into_iter().map(|(x, y)| Point { x, y, sd: None }).collect(),
    };
    let panel = |(title, curves): (String, Vec<(usize, Points)>)| {
        let mut series: Vec<Series> = curves.into_iter().map(series).collect();
        // One curve has no legend; where the folders do not fit, their letters do.
        let title = if series.len() == 1 { format!("{title} ({})", series[0].name) } else { title };
        if !chart::legend_fits(&series) {
            series.iter_mut().for_each(|s| s.name.truncate(1));
        }
        Panel { title, x_label: "step".into(), axis: Axis::Numbers, series }
    };
    let panels: Vec<Panel> = comparison.overlays().into_iter().map(panel).collect();
    (!panels.is_empty()).then(|| chart::chart(&panels, 1, "loss curves of the runs"))
}

//! The report of a grid: `report.html` (one file), `report.md`, `results.csv`, `plots/*.png`. All
//! are written from what the runs left on disk, by way of one list of [`Section`]s, so that they
//! say the same.

pub mod chart;
mod content;
mod csv;
mod figures;
mod heat;
pub mod html;
mod markdown;

use std::path::{Path, PathBuf};

pub use content::{Block, Section, Table, quoted, sections};
pub use figures::Figure;

use super::folder::Identity;
use super::results::Results;
use crate::run::RunError;
use crate::run::trained::write_whole;

/// Writes the report into the grid's folder; returns the path of the page.
///
/// # Errors
/// If a file cannot be written.
pub fn write(results: &Results, identity: &Identity, out: &Path) -> Result<PathBuf, RunError> {
    let figures = figures::figures(results);
    let plots = out.join("plots");
    std::fs::create_dir_all(&plots).map_err(RunError::io("create", &plots))?;
    for figure in &figures {
        let png = chart::png(&figure.svg).map_err(|e| {
            RunError::config(format!("the plot `{}` cannot be drawn: {e}", figure.name), None)
        })?;
        write_whole(&plots.join(format!("{}.png", figure.name)), &png)?;
    }
    let sections = sections(results, identity, figures);
    let title = results.setup.experiment.title();
    write_whole(&out.join("results.csv"), csv::text(results).as_bytes())?;
    write_whole(&out.join("report.md"), markdown::text(title, &sections).as_bytes())?;
    let page = out.join("report.html");
    write_whole(&page, html::page(title, &sections).as_bytes())?;
    Ok(page)
}

/// A PNG as an address that needs no file.
fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(png))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let quad = |chunk: &[u8]| {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        let digit = |i: usize| {
            if i <= chunk.len() {
                char::from(DIGITS[(word >> (18 - 6 * i) & 63) as usize])
            } else {
                '='
            }
        };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(quad).collect()
}

#[cfg(test)]
mod tests;

//! What [`super::watch`] shows: as a screen of a terminal, or once as plain text.

use image::RgbImage;
use image::imageops::{self, FilterType};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{LineGauge, Paragraph, Widget, Wrap};

use super::chart::{self, Curve, number};
use super::run::{RunState, RunView};
use crate::run::metrics::MetricsRecord;
use crate::text::{clean, name};
use crate::train::progress::clock;

/// Rows of the picture, at most: 12 half-blocks for each of three rows of images.
const PICTURE: u16 = 18;

fn headline(view: &RunView) -> String {
    let c = &view.config;
    let (dataset, encoder) = (c.dataset.name(), format!("{:?}", c.encoder).to_lowercase());
    format!(
        "{}: {} on {dataset}, {encoder} of width {}, batch {}, seed {}",
        name(&view.dir),
        c.method.name(),
        c.width,
        c.batch_size,
        c.seed
    )
}

fn status(view: &RunView) -> String {
    let total = view.total.map_or(String::new(), |total| format!("/{total}"));
    let mut parts = vec![format!("{}: step {}{total}", view.state().name(), view.steps())];
    parts.extend(view.last("train").map(|record| format!("epoch {}", record.epoch)));
    parts.extend(view.images_per_second().map(|rate| format!("{} images/s", number(rate))));
    if matches!(view.state(), RunState::Training | RunState::Starting) {
        parts.extend(view.seconds_left().map(|seconds| format!("{} left", clock(seconds))));
        parts.extend(view.age.map(|age| format!("last record {} ago", clock(age.as_secs_f64()))));
    }
    if view.state() == RunState::Trained {
        parts.push("not evaluated so far".into());
    }
    if view.damaged() > 0 {
        parts.push(format!("{} lines of metrics.jsonl are no records", view.damaged()));
    }
    parts.extend(view.damage.clone());
    parts.join(", ")
}

/// The newest values: training, held out, accuracies.
fn numbers(view: &RunView) -> Vec<String> {
    let values = |record: &MetricsRecord| {
        record
            .values
            .iter()
            .map(|(key, x)| format!("{key} {}", number(f64::from(*x))))
            .collect::<Vec<_>>()
            .join("  ")
    };
    let mut lines = Vec::new();
    lines.extend(view.last("train").map(|record| format!("training  {}", values(record))));
    lines.extend(view.last("val").map(|record| format!("held out  {}", values(record))));
    let measured = [("probe", view.probe()), ("kNN-20", view.knn(20)), ("kNN-200", view.knn(200))];
    let measured: Vec<_> = measured
        .into_iter()
        .filter_map(|(name, x)| Some(format!("{name} {}", number(x?))))
        .collect();
    if !measured.is_empty() {
        lines.push(format!("test      {}", measured.join("  ")));
    }
    // Keys are text from a file.
    lines.iter().map(|line| clean(line).into_owned()).collect()
}

/// Loss, and the accuracies that were measured on the way.
fn charts(view: &RunView, markers: [Marker; 2]) -> Vec<(&'static str, Vec<Curve>)> {
    let curve = |name: &str, at: usize, points| Curve {
        name: clean(name).into_owned(),
        marker: markers[at % 2],
        colour: [Color::Cyan, Color::Yellow, Color::Magenta, Color::Green][at % 4],
        points,
    };
    let losses = [("training", "train"), ("held out", "val")];
    let losses = losses
        .into_iter()
        .enumerate()
        .map(|(i, (name, split))| curve(name, i, view.curve(split, "loss")));
    let mut charts =
        vec![("loss", losses.filter(|curve| !curve.points.is_empty()).collect::<Vec<_>>())];
    let mut names: Vec<(&str, &str)> = Vec::new();
    for record in view.records() {
        for (key, _) in record
            .values
            .iter()
            .filter(|(key, _)| key.starts_with("knn") || key.contains("accuracy"))
        {
            if !names.contains(&(&record.split, key)) {
                names.push((&record.split, key));
            }
        }
    }
    if !names.is_empty() {
        let curves = names
            .into_iter()
            .enumerate()
            .map(|(i, (split, key))| curve(&format!("{key} ({split})"), i, view.curve(split, key)));
        charts.push(("accuracy", curves.collect()));
    }
    charts
}

/// Draws the dashboard. `picture` is the newest reconstruction, or why it is not shown.
pub fn draw(view: &RunView, picture: Result<&RgbImage, &str>, area: Rect, buffer: &mut Buffer) {
    let numbers = numbers(view);
    let rows = if picture.is_ok() { (area.height / 3).min(PICTURE) } else { 1 };
    let parts = [1, 1, 1, numbers.len() as u16].map(Constraint::Length);
    let parts = parts.into_iter().chain([
        Constraint::Min(6),
        Constraint::Length(rows),
        Constraint::Length(1),
    ]);
    let [head, state, gauge, values, curves, images, foot] = Layout::vertical(parts).areas(area);

    Line::from(headline(view)).bold().render(head, buffer);
    Line::from(status(view)).render(state, buffer);
    if let Some(total) = view.total.filter(|total| *total > 0) {
        let ratio = (view.steps() as f64 / total as f64).clamp(0.0, 1.0);
        LineGauge::default().ratio(ratio).filled_style(Style::new().cyan()).render(gauge, buffer);
    }
    Paragraph::new(numbers.into_iter().map(Line::from).collect::<Vec<_>>())
        .wrap(Wrap { trim: false })
        .render(values, buffer);
    let charts = charts(view, [Marker::Braille, Marker::Dot]);
    let columns = Layout::horizontal(charts.iter().map(|_| Constraint::Fill(1))).split(curves);
    for ((title, curves), area) in charts.iter().zip(columns.iter()) {
        chart::draw(title, curves, *area, buffer);
    }
    match picture {
        Ok(picture) => half_blocks(picture, images, buffer),
        Err(why) => Line::from(why).dim().render(images, buffer),
    }
    Line::from("q or Esc leaves; the run goes on").dim().render(foot, buffer);
}

/// Draws a picture with two pixels a cell, as high as the area; what is too wide for it is cut off.
fn half_blocks(picture: &RgbImage, area: Rect, buffer: &mut Buffer) {
    let (width, height) = picture.dimensions();
    if area.is_empty() || width == 0 || height == 0 {
        return;
    }
    let high = u32::from(area.height) * 2;
    let shown = width.min((u32::from(area.width) * height / high).max(1));
    let wide = (shown * high / height).clamp(1, u32::from(area.width));
    let small = imageops::resize(
        &imageops::crop_imm(picture, 0, 0, shown, height).to_image(),
        wide,
        high,
        FilterType::Triangle,
    );
    let colour = |x: u32, y: u32| {
        let [r, g, b] = small.get_pixel(x, y).0;
        Color::Rgb(r, g, b)
    };
    for y in 0..area.height {
        for x in 0..wide as u16 {
            let (column, row) = (u32::from(x), u32::from(y) * 2);
            buffer[(area.x + x, area.y + y)]
                .set_char('▀')
                .set_fg(colour(column, row))
                .set_bg(colour(column, row + 1));
        }
    }
}

/// The dashboard as plain text.
pub fn snapshot(view: &RunView) -> String {
    let mut text = format!("{}\n{}\n", headline(view), status(view));
    for line in numbers(view) {
        text += &format!("{line}\n");
    }
    for (title, curves) in charts(view, [Marker::Custom('.'), Marker::Custom('o')]) {
        if !curves.is_empty() {
            text += &format!("\n{}", chart::text(title, &curves));
        }
    }
    if let Some(path) = &view.picture {
        text += &format!("\nnewest reconstruction: {}\n", name(path));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    /// A run of 12 steps of which 8 are taken.
    fn run() -> (tempfile::TempDir, RunView) {
        let dir = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
        put("config.toml", "width = 8\nbatch_size = 16\nseed = 5\n");
        put("train.log", "2026-01-01T00:00:00Z step 8/12 epoch 1 loss 2.0\n");
        let record = |step: u64, split: &str, loss: f32, more: &str| {
            format!(
                "{{\"step\":{step},\"epoch\":{},\"split\":\"{split}\",\"loss\":{loss}{more}}}\n",
                (step - 1) / 4
            )
        };
        let lines = [
            record(4, "train", 4.0, ",\"images_per_second\":30.0"),
            record(4, "val", 5.0, ",\"knn20\":0.25"),
            record(8, "train", 2.0, ",\"images_per_second\":32.0"),
            record(8, "val", 3.0, ",\"knn20\":0.5"),
        ];
        put("metrics.jsonl", &lines.concat());
        let view = RunView::open(dir.path()).expect("a run");
        (dir, view)
    }

    fn screen(view: &RunView, picture: Result<&RgbImage, &str>, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal
            .draw(|frame| draw(view, picture, frame.area(), frame.buffer_mut()))
            .expect("a frame");
        terminal.backend().buffer().clone()
    }

    #[test]
    fn a_screen_says_how_far_the_run_is() {
        let (_dir, view) = run();
        let text = chart::plain(&screen(&view, Err("no true colour here"), 120, 40));
        for part in [
            "aavae on shapes, resnet18 of width 8, batch 16, seed 5",
            "training: step 8/12, epoch 1, 32.0 images/s, 0:02 left, last record 0:0",
            "67%",
            "training  loss 2.0000  images_per_second 32.0",
            "held out  loss 3.0000  knn20 0.5000",
            " loss ",
            " accuracy ",
            "step 8",
            "no true colour here",
            "q or Esc leaves",
        ] {
            assert!(text.contains(part), "`{part}` is missing:\n{text}");
        }
        // Both curves are drawn: the legend has them, and there are dots of each kind.
        assert!(
            text.contains("held out")
                && text.contains('•')
                && text.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)),
            "{text}"
        );
    }

    #[test]
    fn every_size_of_terminal_is_drawn() {
        let (_dir, view) = run();
        let picture = RgbImage::new(100, 30);
        for (width, height) in [(1, 1), (7, 3), (20, 200), (300, 5), (80, 24)] {
            screen(&view, Ok(&picture), width, height);
            screen(&view, Err("none"), width, height);
        }
    }

    #[test]
    fn a_picture_is_two_pixels_a_cell() {
        let (_dir, view) = run();
        // Left half red over blue, right half green; as wide as 4 of its heights.
        let picture = RgbImage::from_fn(160, 40, |x, y| {
            image::Rgb(if x >= 80 {
                [0, 255, 0]
            } else if y < 20 {
                [255, 0, 0]
            } else {
                [0, 0, 255]
            })
        });
        let buffer = screen(&view, Ok(&picture), 120, 36);
        // 12 rows of cells above the last line: 24 pixels high, 96 wide.
        let cell = |x: u16, y: u16| {
            (
                buffer[(x, 23 + y)].symbol().to_owned(),
                buffer[(x, 23 + y)].fg,
                buffer[(x, 23 + y)].bg,
            )
        };
        let half = "▀".to_owned();
        assert_eq!(cell(3, 0), (half.clone(), Color::Rgb(255, 0, 0), Color::Rgb(255, 0, 0)));
        assert_eq!(cell(3, 11), (half.clone(), Color::Rgb(0, 0, 255), Color::Rgb(0, 0, 255)));
        assert_eq!(cell(90, 5), (half.clone(), Color::Rgb(0, 255, 0), Color::Rgb(0, 255, 0)));
        assert_ne!(cell(97, 5).0, half, "nothing beyond the picture");
        // A narrow terminal cuts it and keeps its proportions.
        let buffer = screen(&view, Ok(&picture), 40, 36);
        assert_eq!(buffer[(38, 25)].fg, Color::Rgb(255, 0, 0));
    }

    #[test]
    fn a_snapshot_is_plain() {
        let (dir, mut view) = run();
        fs::create_dir(dir.path().join("images")).expect("a folder");
        fs::write(dir.path().join("images/reconstruction-000008.png"), "").expect("a file");
        view.refresh().expect("a run");
        let text = snapshot(&view);
        assert!(
            text.contains("step 8/12")
                && text.contains("reconstruction-000008.png")
                && text.contains('o'),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

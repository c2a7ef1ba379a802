//! Curves drawn with characters: in the dashboard, and as plain text, where letters tell the curves
//! apart.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Widget};

/// A curve of a chart: its name and its points.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Name in the legend; none if empty.
    pub name: String,
    /// What it is drawn with.
    pub marker: Marker,
    /// Colour on a terminal.
    pub colour: Color,
    /// Step and value, by step.
    pub points: Vec<(f64, f64)>,
}

/// Size of a chart of plain text.
const TEXT: Rect = Rect { x: 0, y: 0, width: 100, height: 18 };

/// Draws curves over the steps.
pub fn draw(title: &str, curves: &[Curve], area: Rect, buffer: &mut Buffer) {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let (mut low, mut high) = all()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, y)| {
            (low.min(*y), high.max(*y))
        });
    if low > high {
        (low, high) = (0.0, 1.0); // nothing to draw
    }
    let margin = if low < high { (high - low) * 0.02 } else { low.abs().max(1.0) * 0.1 };
    (low, high) = (low - margin, high + margin);
    let end = all().fold(1.0f64, |end, (x, _)| end.max(*x));
    let datasets = curves.iter().map(|curve| {
        let dataset = Dataset::default()
            .marker(curve.marker)
            .graph_type(GraphType::Line)
            .fg(curve.colour)
            .data(&curve.points);
        if curve.name.is_empty() { dataset } else { dataset.name(curve.name.as_str()) }
    });
    let (middle, faint) = (f64::midpoint(low, high), Style::new().dark_gray());
    // As many digits as tell the labels apart.
    let digits = (1.0 - (middle - low).log10().floor()).clamp(0.0, 9.0) as usize;
    Chart::new(datasets.collect())
        .block(
            Block::bordered()
                .border_style(faint)
                .title(Line::from(format!(" {title} ")).style(Style::reset())),
        )
        .x_axis(
            Axis::default()
                .style(faint)
                .bounds([0.0, end])
                .labels(["0".to_owned(), format!("step {end:.0}")]),
        )
        .y_axis(
            Axis::default()
                .style(faint)
                .bounds([low, high])
                .labels([low, middle, high].map(|y| format!("{y:.digits$}"))),
        )
        .render(area, buffer);
}

/// A chart as lines of text.
pub fn text(title: &str, curves: &[Curve]) -> String {
    let mut buffer = Buffer::empty(TEXT);
    draw(title, curves, TEXT, &mut buffer);
    plain(&buffer)
}

/// A buffer's characters, without what is blank at the ends of lines.
pub fn plain(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width.max(1));
    let line = |cells: &[ratatui::buffer::Cell]| {
        cells.iter().map(|cell| cell.symbol()).collect::<String>()
    };
    buffer.content.chunks(width).map(|cells| format!("{}\n", line(cells).trim_end())).collect()
}

/// A number of four digits or so.
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if size < 0.01 => format!("{x:.2e}"),
        size if size >= 1000.0 => format!("{x:.0}"),
        size if size >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(marker: char, points: &[(f64, f64)]) -> Curve {
        Curve {
            name: String::new(),
            marker: Marker::Custom(marker),
            colour: Color::Reset,
            points: points.to_vec(),
        }
    }

    #[test]
    fn curves_are_where_their_values_are() {
        let drawn = text(
            "loss",
            &[curve('a', &[(0.0, 10.0), (100.0, 20.0)]), curve('b', &[(0.0, 20.0), (100.0, 10.0)])],
        );
        let rows: Vec<&str> = drawn.lines().collect();
        assert_eq!(rows.len(), 18);
        assert!(rows[0].contains(" loss ") && drawn.contains("step 100"), "{drawn}");
        // One rises from the lower left to the upper right, the other falls.
        let row = |last: char, from_left: bool| {
            let place = |row: &&str| if from_left { row.find(last) } else { row.rfind(last) };
            let rows = rows.iter().enumerate().filter_map(|(i, row)| Some((i, place(row)?)));
            if from_left { rows.min_by_key(|(_, at)| *at) } else { rows.max_by_key(|(_, at)| *at) }
                .expect("the curve is drawn")
                .0
        };
        assert!(row('a', true) > 10 && row('a', false) < 4, "{drawn}");
        assert!(row('b', true) < 4 && row('b', false) > 10, "{drawn}");
        for value in ["9.8", "15.0", "20.2"] {
            assert!(drawn.contains(value), "{value}: {drawn}");
        }
    }

    #[test]
    fn no_values_and_one_value_are_drawn() {
        assert!(text("loss", &[]).contains("loss"));
        assert!(text("loss", &[curve('a', &[(1.0, 3.0)])]).contains('a'));
        assert_eq!(
            [0.12345, 12.34, 2413.5, -0.5, 2.5e-4, 0.0].map(number),
            ["0.1235", "12.3", "2414", "-0.5000", "2.50e-4", "0"]
        );
        // Labels differ however narrow the range is.
        let narrow = text("loss", &[curve('a', &[(0.0, 4397.25), (1.0, 4397.75)])]);
        assert!(
            ["4397.24", "4397.50", "4397.76"].iter().all(|label| narrow.contains(label)),
            "{narrow}"
        );
    }
}

//! Plots as SVG: panels with points, lines and error bars. Elements carry classes, not colours, so
//! that a page can show them dark or light; [`document`] makes a file of its own with light
//! colours, and [`png`] a picture of that.

use maud::{Markup, PreEscaped, html};

/// Names of the colours in [`STYLE`], light and dark. Okabe and Ito's, which colour-blind readers
/// tell apart.
pub const COLOURS: [(&str, &str, &str); 9] = [
    ("--ink", "#1b1f24", "#e6e8eb"),
    ("--faint", "#5c6670", "#a0a8b0"),
    ("--rule", "#d9dde1", "#3a4149"),
    ("--paper", "#ffffff", "#14171a"),
    ("--c0", "#0072b2", "#56b4e9"),
    ("--c1", "#d55e00", "#f2803a"),
    ("--c2", "#00805e", "#2fc79a"),
    ("--c3", "#b0528a", "#e08fc0"),
    ("--theirs", "#7a6a00", "#d8c24a"),
];

/// How the classes look.
pub const STYLE: &str = "
.chart text{font-family:Roboto,system-ui,sans-serif;font-size:12px;fill:var(--ink)}
.chart .faint{fill:var(--faint)}
.chart .title{font-size:14px}
.chart .grid{stroke:var(--rule);stroke-width:1}
.chart .axis{stroke:var(--faint);stroke-width:1}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
.chart .bar{stroke-width:1.5}
.chart .dash{stroke-dasharray:5 4}
.chart .s0{stroke:var(--c0)} .chart .f0{fill:var(--c0)}
.chart .s1{stroke:var(--c1)} .chart .f1{fill:var(--c1)}
.chart .s2{stroke:var(--c2)} .chart .f2{fill:var(--c2)}
.chart .s3{stroke:var(--c3)} .chart .f3{fill:var(--c3)}
.chart .theirs{fill:none;stroke:var(--theirs);stroke-width:2}
";

/// A value with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Place: a number, or the position of a name.
    pub x: f64,
    /// Height, in the units of the vertical axis.
    pub y: f64,
    /// Half the length of its error bar.
    pub sd: Option<f64>,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Dots alone, in the colour of this number.
    Dots(usize),
    /// A line with dots.
    Line(usize),
    /// A line through many points.
    Curve(usize),
    /// A dashed line.
    Dashed(usize),
    /// The paper's values: open diamonds.
    Theirs,
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points, by x.
    pub points: Vec<Point>,
    /// How they are drawn.
    pub mark: Mark,
}

/// What stands below a panel.
#[derive(Clone, Debug)]
pub enum Axis {
    /// Numbers, evenly spaced.
    Numbers,
    /// Names, at 0, 1, 2, ….
    Names(Vec<String>),
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Title above the panel.
    pub title: String,
    /// Name of the horizontal axis, below the panel.
    pub x_label: String,
    /// Places on it.
    pub axis: Axis,
    /// What is drawn; empty series are left out.
    pub series: Vec<Series>,
}

/// Inner size of a panel and what is around it.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 54.0;
const BOTTOM: f64 = 48.0;
/// A value above which an axis may be logarithmic: no accuracy, and no count of bits that means
/// anything.
const LOGARITHMIC: f64 = 1000.0;
/// Ratio of the greatest to the least value from which on it is: two decades have two ticks at
/// least.
const DECADES: f64 = 100.0;

/// Panels in rows of `columns`; the more columns, the narrower each.
pub fn chart(panels: &[Panel], columns: usize, label: &str) -> Markup {
    let inner = if columns > 1 { (WIDTH - LEFT - RIGHT) / columns as f64 + 40.0 } else { WIDTH };
    let (width, height) = (LEFT + inner + RIGHT, TOP + HEIGHT + BOTTOM);
    let rows = panels.len().div_ceil(columns);
    let (w, h) = (width * columns.min(panels.len()) as f64, height * rows as f64);
    html! {
        svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (n(w)) " " (n(h)) }
            width=(n(w)) height=(n(h)) role="img" aria-label=(label) {
            @for (i, panel) in panels.iter().enumerate() {
                @let left = n((i % columns) as f64 * width + LEFT);
                @let top = n((i / columns) as f64 * height + TOP);
                g transform={ "translate(" (left) " " (top) ")" } {
                    (panel_body(panel, inner))
                }
            }
        }
    }
}

/// A number of an attribute: two digits after the point are finer than a screen.
pub fn n(x: f64) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A value beyond this is no measurement, and the differences of such need not be numbers.
const MOST: f64 = 1e100;

/// The points of a series that can be drawn.
fn drawable(series: &Series) -> Series {
    let number = |value: f64| value.abs() <= MOST;
    let points =
        series.points.iter().filter(|p| number(p.x) && number(p.y) && p.sd.is_none_or(number));
    Series { points: points.copied().collect(), ..series.clone() }
}

fn panel_body(panel: &Panel, width: f64) -> Markup {
    let series: Vec<Series> =
        panel.series.iter().map(drawable).filter(|s| !s.points.is_empty()).collect();
    let all = || series.iter().flat_map(|s| &s.points);
    // What explodes is shown by its order of magnitude.
    let (least, greatest) = range(all().map(|p| p.y));
    let log = least > 0.0 && greatest > LOGARITHMIC && greatest / least >= DECADES;
    let level = |value: f64| if log { value.max(least).log10() } else { value };
    let (low, high) =
        range(all().flat_map(|p| [-1.0, 1.0].map(|side| level(p.y + side * p.sd.unwrap_or(0.0)))));
    let mut y_ticks = ticks(low, high, 5.0);
    if log {
        y_ticks.retain(|tick| tick.fract() == 0.0);
    }
    let (low, high) = (y_ticks[0].min(low), y_ticks[y_ticks.len() - 1].max(high));
    let y = |value: f64| HEIGHT * (high - level(value)) / (high - low);
    let digits = digits(&y_ticks);
    let y_ticks: Vec<(f64, String)> = y_ticks
        .into_iter()
        .map(|tick| {
            if log {
                (10f64.powf(tick), format!("1e{tick}"))
            } else {
                (tick, format!("{tick:.digits$}"))
            }
        })
        .collect();
    let (x_low, x_high, x_ticks): (f64, f64, Vec<(f64, String)>) = match &panel.axis {
        Axis::Names(names) => (
            -0.5,
            names.len() as f64 - 0.5,
            names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect(),
        ),
        Axis::Numbers => {
            let (low, high) = range(all().map(|p| p.x));
            let places = ticks(low, high, if width > 400.0 { 8.0 } else { 5.0 });
            let digits = self::digits(&places);
            let inside = places
                .into_iter()
                .filter(|x| (low..=high).contains(x))
                .map(|x| (x, format!("{x:.digits$}")))
                .collect();
            let margin = (high - low) * 0.03;
            (low - margin, high + margin, inside)
        }
    };
    let x = |value: f64| width * (value - x_low) / (x_high - x_low);
    html! {
        text class="title" x="0" y="-34" { (panel.title) }
        (legend(&series))
        @for (tick, name) in &y_ticks {
            line class="grid" x1="0" x2=(n(width)) y1=(n(y(*tick))) y2=(n(y(*tick))) {}
            text class="faint" x="-8" y=(n(y(*tick) + 4.0)) text-anchor="end" { (name) }
        }
        line class="axis" x1="0" x2=(n(width)) y1=(n(HEIGHT)) y2=(n(HEIGHT)) {}
        @for (place, name) in &x_ticks {
            @let at = n(x(*place));
            line class="axis" x1=(at) x2=(at) y1=(n(HEIGHT)) y2=(n(HEIGHT + 4.0)) {}
            text class="faint" x=(at) y=(n(HEIGHT + 18.0)) text-anchor="middle" { (name) }
        }
        text class="faint" x=(n(width / 2.0)) y=(n(HEIGHT + 37.0)) text-anchor="middle" {
            (panel.x_label)
        }
        @for s in &series {
            (series_body(s, &x, &y))
        }
    }
}

fn series_body(s: &Series, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> Markup {
    let path = || {
        s.points
            .iter()
            .map(|p| format!("{},{}", n(x(p.x)), n(y(p.y))))
            .collect::<Vec<_>>()
            .join(" ")
    };
    html! {
        @match s.mark {
            Mark::Line(colour) | Mark::Curve(colour) => {
                polyline class={ "line s" (colour) } points=(path()) {}
            }
            Mark::Dashed(colour) => {
                polyline class={ "line dash s" (colour) } points=(path()) {}
            }
            Mark::Dots(_) | Mark::Theirs => {}
        }
        @for p in &s.points {
            @match s.mark {
                Mark::Theirs => {
                    @let top = n(y(p.y) - 6.0);
                    path class="theirs" d={ "M" (n(x(p.x))) " " (top) "l6 6l-6 6l-6 -6z" } {}
                }
                Mark::Dots(colour)
                | Mark::Line(colour)
                | Mark::Curve(colour)
                | Mark::Dashed(colour) => {
                    @if let Some(sd) = p.sd {
                        @let (at, low, high) = (n(x(p.x)), n(y(p.y - sd)), n(y(p.y + sd)));
                        line class={ "bar s" (colour) } x1=(at) x2=(at) y1=(low) y2=(high) {}
                    }
                    @if matches!(s.mark, Mark::Dots(_) | Mark::Line(_)) {
                        circle class={ "f" (colour) } cx=(n(x(p.x))) cy=(n(y(p.y))) r="4" {}
                    }
                }
            }
        }
    }
}

/// Width of a series in the legend: enough for the widest of common fonts.
fn legend_width(s: &Series) -> f64 {
    30.0 + 7.0 * s.name.chars().count() as f64
}

/// Whether the legend is no wider than a panel that has a row of its own.
pub fn legend_fits(series: &[Series]) -> bool {
    series.iter().map(legend_width).sum::<f64>() <= WIDTH
}

/// One line above the panel, where there is more than one series.
fn legend(series: &[Series]) -> Markup {
    if series.len() < 2 {
        return html! {};
    }
    let starts =
        series.iter().scan(0.0, |at, s| Some(std::mem::replace(at, *at + legend_width(s))));
    html! {
        @for (s, start) in series.iter().zip(starts) {
            g transform={ "translate(" (n(start)) " -16)" } {
                @match s.mark {
                    Mark::Theirs => { path class="theirs" d="M8 -10l6 6l-6 6l-6 -6z" {} }
                    Mark::Dots(colour) => { circle class={ "f" (colour) } cx="8" cy="-4" r="4" {} }
                    Mark::Line(colour) => {
                        line class={ "line s" (colour) } x1="0" x2="16" y1="-4" y2="-4" {}
                        circle class={ "f" (colour) } cx="8" cy="-4" r="4" {}
                    }
                    Mark::Curve(colour) => {
                        line class={ "line s" (colour) } x1="0" x2="16" y1="-4" y2="-4" {}
                    }
                    Mark::Dashed(colour) => {
                        line class={ "line dash s" (colour) } x1="0" x2="16" y1="-4" y2="-4" {}
                    }
                }
                text x="22" y="0" { (s.name) }
            }
        }
    }
}

/// Least and greatest, apart from each other.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match high - low {
        width if width > 1.0 / MOST => (low, high),
        _ if low.is_finite() => (low - 0.5, high + 0.5),
        _ => (0.0, 1.0),
    }
}

/// About `count` steps of 1, 2 or 5 times a power of ten that enclose a range.
fn ticks(low: f64, high: f64, count: f64) -> Vec<f64> {
    let raw = (high - low) / count;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= raw)
        .unwrap_or(10.0 * power);
    // Beyond the range by less than a rounding error is within it.
    let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
}

/// Digits after the point that tell ticks apart.
fn digits(ticks: &[f64]) -> usize {
    let step = ticks.get(1).map_or(1.0, |second| second - ticks[0]);
    (-(step + step * 1e-9).log10().floor()).clamp(0.0, 6.0) as usize
}

/// An SVG file of its own, in light colours.
pub fn document(svg: &Markup) -> String {
    let style = COLOURS.iter().fold(STYLE.to_owned(), |style, (name, light, _)| {
        style.replace(&format!("var({name})"), light)
    });
    let text = svg.clone().into_string();
    match text.find('>') {
        Some(end) => {
            let (head, rest) = (PreEscaped(&text[..=end]), PreEscaped(&text[end + 1..]));
            html! { (head) style { (PreEscaped(style)) } (rest) }.into_string()
        }
        None => text,
    }
}

/// A picture of an SVG, twice its size, on white.
///
/// # Errors
/// What is wrong with the SVG.
pub fn png(svg: &Markup) -> Result<Vec<u8>, String> {
    use resvg::{tiny_skia, usvg};
    let mut options = usvg::Options { font_family: "Roboto".into(), ..usvg::Options::default() };
    options
        .fontdb_mut()
        .load_font_data(include_bytes!("../../../assets/fonts/Roboto-Regular.ttf").to_vec());
    options.fontdb_mut().set_sans_serif_family("Roboto");
    let tree = usvg::Tree::from_str(&document(svg), &options).map_err(|e| e.to_string())?;
    let size = tree.size().to_int_size().scale_by(2.0).ok_or("an SVG without a size")?;
    let mut picture =
        tiny_skia::Pixmap::new(size.width(), size.height()).ok_or("an SVG without a size")?;
    picture.fill(tiny_skia::Color::WHITE);
    resvg::render(&tree, tiny_skia::Transform::from_scale(2.0, 2.0), &mut picture.as_mut());
    picture.encode_png().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_enclose_and_are_round() {
        assert_eq!(ticks(0.0, 1.0, 5.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(23.0, 87.0, 5.0), [20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-5.0, 2.0, 5.0), [-6.0, -4.0, -2.0, 0.0, 2.0]);
        assert_eq!((digits(&[0.0, 0.2]), digits(&[0.0, 20.0]), digits(&[1.0, 1.05])), (1, 0, 2));
        assert_eq!(range([3.0].into_iter()), (2.5, 3.5));
        assert_eq!(range(std::iter::empty()), (0.0, 1.0));
    }

    #[test]
    fn a_chart_is_drawn_where_its_values_are() {
        let point = |x: f64, y: f64| Point { x, y, sd: Some(1.0) };
        let series = vec![
            Series {
                name: "ours".into(),
                points: vec![point(0.0, 10.0), point(1.0, 30.0)],
                mark: Mark::Line(0),
            },
            Series {
                name: "the paper's".into(),
                points: vec![Point { sd: None, ..point(1.0, 50.0) }],
                mark: Mark::Theirs,
            },
            Series { name: "nothing".into(), points: vec![], mark: Mark::Dots(1) },
        ];
        let axis = Axis::Names(vec!["a".into(), "b<c".into()]);
        let svg = chart(
            &[Panel { title: "accuracy".into(), x_label: "method".into(), axis, series }],
            1,
            "a chart",
        );
        let text = svg.clone().into_string();
        // Ticks 0, 10 … 50: 30 is two fifths from the top; two names share the width.
        let expected = [
            format!("cx=\"{}\" cy=\"{}\"", n(WIDTH * 0.75), n(HEIGHT * 0.4)),
            "b&lt;c".into(),
            "M450 -6l6".into(),
        ];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        assert!(!text.contains("nothing") && !text.contains("NaN"), "{text}");
        let picture =
            image::load_from_memory(&png(&svg).expect("a picture")).expect("a PNG").to_rgb8();
        let (w, h) = ((LEFT + WIDTH + RIGHT) as u32, (TOP + HEIGHT + BOTTOM) as u32);
        assert_eq!(picture.dimensions(), (2 * w, 2 * h));
        let at = |x: f64, y: f64| {
            picture.get_pixel((2.0 * (LEFT + x)) as u32, (2.0 * (TOP + y)) as u32).0
        };
        assert_eq!(at(WIDTH * 0.75, HEIGHT * 0.4), [0x00, 0x72, 0xb2]);
        // The title is there: some of its pixels are dark.
        let title =
            (0..100).flat_map(|x| (0..14).map(move |y| (f64::from(x), -46.0 + f64::from(y))));
        assert!(title.filter(|(x, y)| at(*x, *y)[0] < 128).count() > 20, "no text was drawn");
    }

    #[test]
    fn a_chart_leaves_out_what_no_axis_can_show() {
        let point = |x: f64, y: f64| Point { x, y, sd: Some(1.0) };
        let wild = |y| Series {
            name: "wild".into(),
            points: vec![point(0.0, 1.0), point(1.0, y)],
            mark: Mark::Line(0),
        };
        for y in [1e308, -1e200, f64::INFINITY, f64::NAN] {
            let panel = Panel {
                title: String::new(),
                x_label: String::new(),
                axis: Axis::Numbers,
                series: vec![wild(y)],
            };
            let text = chart(&[panel], 1, "").into_string();
            assert!(
                text.matches("<circle").count() == 1
                    && !text.contains("NaN")
                    && !text.contains("inf"),
                "{text}"
            );
        }
        let panel = Panel {
            title: String::new(),
            x_label: String::new(),
            axis: Axis::Numbers,
            series: vec![wild(1e18)],
        };
        let text = chart(&[panel], 1, "").into_string();
        assert!(text.contains(">1e15<") && !text.contains("000000"), "{text}");
        // Losses: thousands within a decade, or of both signs, are no explosion.
        for (first, last, tick) in [(4400.0, 3900.0, ">4200<"), (12000.0, -8000.0, ">-5000<")] {
            let series = Series {
                name: String::new(),
                points: vec![point(0.0, first), point(1.0, last)],
                mark: Mark::Curve(0),
            };
            let panel = Panel {
                title: String::new(),
                x_label: String::new(),
                axis: Axis::Numbers,
                series: vec![series],
            };
            let text = chart(&[panel], 1, "").into_string();
            assert!(text.contains(tick) && !text.contains(">1e"), "{text}");
        }
    }
}

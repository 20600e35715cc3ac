//! Draws a chart as SVG. Colours are variables of the page's style, so that one drawing serves light and dark.
//!
//! A module of our own rather than a plotting library: those fix colours in the drawing and measure text,
//! for which they want fonts; a legend in HTML needs neither.

use std::fmt::Write as _;

/// How values are laid along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0, evenly.
    Linear,
    /// By powers of ten.
    Log,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Without gaps.
    Solid,
    /// Long strokes.
    Dashed,
    /// Dots.
    Dotted,
}

/// An axis.
pub struct Axis {
    /// What it measures; empty where the chart's title says it.
    pub title: String,
    /// How values are laid along it.
    pub scale: Scale,
    /// How a tick is written.
    pub show: Box<dyn Fn(f64) -> String>,
}

/// One line.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its place in the palette, 0 to 6.
    pub colour: usize,
    /// How it is drawn.
    pub shape: Shape,
    /// Whether each point is marked.
    pub marks: bool,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
pub struct Chart {
    /// Its name in links and files.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the side.
    pub y: Axis,
    /// Its lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// The colours of lines and the style of drawings, light and dark.
pub const STYLE: &str = "\
:root{--ink:#1b1f24;--soft:#5d6670;--rule:#d9dee4;--ground:#fff;--good:#18794e;--bad:#c4320a;\
--c0:#1f6feb;--c1:#0b8f8f;--c2:#7a4fd0;--c3:#c9410f;--c4:#b3186b;--c5:#7a6a00;--c6:#5d6670}\
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#98a2ad;--rule:#323a43;--ground:#14181d;\
--good:#4cc38a;--bad:#ff8b5c;--c0:#6aa9ff;--c1:#3cc9c0;--c2:#b79cff;--c3:#ff8f5a;--c4:#ff7ab8;--c5:#d9c233;--c6:#98a2ad}}\
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}\
svg .grid{stroke:var(--rule);stroke-width:1}svg .line{fill:none;stroke-width:2;stroke-linejoin:round}\
svg .mark{stroke:var(--ground);stroke-width:1.5}";

/// The drawing, to stand in a page that has [`STYLE`]; the legend is [`legend`].
#[must_use]
pub fn svg(chart: &Chart) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">",
        escape(&chart.title)
    );
    draw(&mut svg, chart);
    svg + "</svg>"
}

/// The drawing as a file of its own, with title, legend and ground.
#[must_use]
pub fn standalone(chart: &Chart) -> String {
    let rows = chart.series.len().div_ceil(3) as f64;
    let (head, height) = (34.0 + rows * 20.0, HEIGHT + 34.0 + rows * 20.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><style>{STYLE}</style>\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"var(--ground)\"/>\
         <text x=\"14\" y=\"24\" style=\"font-weight:600;font-size:14px;fill:var(--ink)\">{}</text>",
        escape(&chart.title)
    );
    for (index, series) in chart.series.iter().enumerate() {
        let (x, y) = (14.0 + (index % 3) as f64 * 182.0, 46.0 + (index / 3) as f64 * 20.0);
        let name = escape(&series.name);
        let _ = write!(
            svg,
            "<path class=\"line\" d=\"M{x},{y}h22\" {}/><text x=\"{}\" y=\"{}\">{name}</text>",
            stroke(series),
            x + 28.0,
            y + 4.0
        );
    }
    let _ = write!(svg, "<g transform=\"translate(0,{head})\">");
    draw(&mut svg, chart);
    svg + "</g></svg>\n"
}

/// The names of the lines, as HTML.
#[must_use]
pub fn legend(chart: &Chart) -> String {
    let entry = |series: &Series| {
        let line = format!(
            "<svg viewBox=\"0 0 24 8\"><path class=\"line\" d=\"M1,4h22\" {}/></svg>",
            stroke(series)
        );
        format!("<li>{line}{}</li>", escape(&series.name))
    };
    format!("<ul class=\"legend\">{}</ul>", chart.series.iter().map(entry).collect::<String>())
}

/// Text as it stands in HTML and SVG.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn draw(svg: &mut String, chart: &Chart) {
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let x = Span::over(points().map(|point| point.0), chart.x.scale, LEFT, WIDTH - RIGHT, false);
    let y = Span::over(points().map(|point| point.1), chart.y.scale, HEIGHT - BOTTOM, TOP, true);
    for tick in y.ticks() {
        let at = y.place(tick);
        let text = escape(&(chart.y.show)(tick));
        let (right, beside) = (WIDTH - RIGHT, LEFT - 8.0);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT},{at:.1}H{right}\"/>\
             <text x=\"{beside}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            at + 4.0
        );
    }
    let foot = HEIGHT - BOTTOM;
    let places = points().map(|point| point.0);
    let ticks = match chart.x.scale {
        Scale::Linear => x.ticks(),
        Scale::Log => x.among(places.collect()),
    };
    for tick in ticks {
        let (at, below) = (x.place(tick), foot + 18.0);
        let text = escape(&(chart.x.show)(tick));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1},{foot}v4\"/>\
             <text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{text}</text>"
        );
    }
    let (middle, below, title) = (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 6.0, escape(&chart.x.title));
    let _ = write!(svg, "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{title}</text>");
    for series in &chart.series {
        line(svg, chart, series, |(px, py)| (x.place(px), y.place(py)));
    }
}

fn line(svg: &mut String, chart: &Chart, series: &Series, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let places = series.points.iter().map(|point| place(*point));
    let path: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(svg, "<path class=\"line\" d=\"M{}\" {}/>", path.join("L"), stroke(series));
    for point in series.points.iter().filter(|_| series.marks) {
        let (x, y) = place(*point);
        let told = escape(&format!(
            "{}, {} {}: {}",
            series.name,
            (chart.x.show)(point.0),
            chart.x.title,
            (chart.y.show)(point.1)
        ));
        let colour = series.colour;
        let _ = write!(
            svg,
            "<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" style=\"fill:var(--c{colour})\"><title>{told}</title></circle>"
        );
    }
}

fn stroke(series: &Series) -> String {
    let dash = match series.shape {
        Shape::Solid => "",
        Shape::Dashed => ";stroke-dasharray:7 4",
        Shape::Dotted => ";stroke-dasharray:2 3",
    };
    format!("style=\"stroke:var(--c{}){dash}\"", series.colour)
}

/// The part of an axis that is shown, and where it lies in the drawing.
struct Span {
    low: f64,
    high: f64,
    scale: Scale,
    from: f64,
    to: f64,
    /// Whether the ends are taken out to the next tick.
    wide: bool,
}

impl Span {
    fn over(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64, wide: bool) -> Self {
        let values: Vec<f64> =
            values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0)).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = match scale {
            _ if values.is_empty() => (1.0, 10.0),
            Scale::Linear => (0.0, most.max(f64::MIN_POSITIVE)),
            Scale::Log => (least, most),
        };
        let mut span = Self { low, high, scale, from, to, wide };
        match scale {
            Scale::Linear if wide => span.high = (high / span.step()).ceil() * span.step(),
            Scale::Linear => {}
            Scale::Log if wide => {
                span.low = round(low, false);
                span.high = round(high, true).max(span.low * 2.0);
            }
            // A single value stands in the middle.
            Scale::Log if high <= low => (span.low, span.high) = (low / 2.0, high * 2.0),
            Scale::Log => {}
        }
        span
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// 1, 2 or 5 times a power of ten, so that there are four to eight of them.
    fn step(&self) -> f64 {
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= rough).unwrap_or(10.0);
        // Along the bottom, linear means nines, of which there are only whole ones.
        if self.wide { step * power } else { (step * power).max(1.0) }
    }

    /// Of the places that were measured, those that have room for their names.
    fn among(&self, mut values: Vec<f64>) -> Vec<f64> {
        const ROOM: f64 = 46.0;
        values.sort_by(f64::total_cmp);
        values.dedup();
        let mut kept: Vec<f64> = Vec::new();
        // From the right: the largest counts most.
        for value in values.into_iter().rev() {
            if kept.last().is_none_or(|last| self.place(*last) - self.place(value) >= ROOM) {
                kept.push(value);
            }
        }
        kept
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let count = ((self.high - self.low) / self.step() + 1e-9).floor() as u32;
                (0..=count).map(|index| self.low + f64::from(index) * self.step()).collect()
            }
            Scale::Log => {
                let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
                let powers = (first..=last).map(|power| 10_f64.powi(power));
                let few = self.high / self.low < 300.0;
                let all = powers
                    .flat_map(|power| if few { vec![power, 2.0 * power, 5.0 * power] } else { vec![power] });
                let mut ticks: Vec<f64> =
                    all.filter(|tick| *tick >= self.low * 0.999 && *tick <= self.high * 1.001).collect();
                if ticks.is_empty() {
                    ticks.push((self.low * self.high).sqrt());
                }
                ticks
            }
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten, up or down.
fn round(value: f64, up: bool) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let found = match up {
        true => steps.into_iter().find(|step| *step >= value * 0.999),
        false => steps.into_iter().rev().find(|step| *step <= value * 1.001),
    };
    found.unwrap_or(value)
}

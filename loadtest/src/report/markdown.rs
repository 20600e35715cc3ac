//! A report as Markdown, for `docs/benchmarks.md`: the tables, and plots as files beside it.

use std::fmt::Write as _;

use super::grid::{self, Cell, Grid, Tone};
use super::summary::summarise;
use super::{Report, charts, plot};

/// A report as Markdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markdown {
    /// The text; headings begin at the second level.
    pub text: String,
    /// Names and contents of the plots, which the text looks for in the directory that it was told.
    pub plots: Vec<(String, String)>,
}

/// The report; its plots are expected in `plots_dir`, relative to the text.
#[must_use]
pub fn render(report: &Report, plots_dir: &str) -> Markdown {
    let summaries = summarise(&report.runs);
    let mut text = String::from("## The machine\n\n| | |\n|---|---|\n");
    for (name, value) in grid::machine(report) {
        let _ = writeln!(text, "| {name} | {} |", escaped(&value));
    }
    let _ = write!(text, "\n## Figures and targets\n\n{}", table(&grid::targets(&summaries)));
    let mut plots = Vec::new();
    let charts = charts::charts(&summaries);
    if !charts.is_empty() {
        text.push_str("\n## How it grows\n");
    }
    for chart in charts {
        let name = format!("{}.svg", chart.id);
        let _ = write!(text, "\n![{}]({plots_dir}/{name})\n", chart.title);
        plots.push((name, plot::standalone(&chart)));
    }
    for grid in grid::scenarios(&summaries) {
        let _ = write!(text, "\n## `{}`: {}\n\n{}", grid.title, grid.about, table(&grid));
    }
    if !report.notes.is_empty() {
        text.push_str("\n## Notes\n\n");
    }
    for note in &report.notes {
        let _ = writeln!(text, "- {note}");
    }
    Markdown { text, plots }
}

/// One table.
#[must_use]
pub fn table(grid: &Grid) -> String {
    let heads: Vec<&str> = grid.columns.iter().map(|head| head.title.as_str()).collect();
    let rules: Vec<&str> = grid.columns.iter().map(|head| if head.number { "--:" } else { "---" }).collect();
    let mut text = format!("| {} |\n|{}|\n", heads.join(" | "), rules.join("|"));
    for row in &grid.rows {
        let cells: Vec<String> = row.iter().map(cell).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn cell(cell: &Cell) -> String {
    let text = escaped(&cell.text);
    match (&cell.ratio, cell.tone) {
        (Some(ratio), _) => format!("{text} ({ratio})"),
        (None, Tone::Bad) => format!("**{text}**"),
        (None, _) => text,
    }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

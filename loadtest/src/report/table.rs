//! A report for a terminal: plain text in columns. No colour, so that it can be piped and pasted.

use super::Report;
use super::grid::{self, Cell, Grid, Tone};
use super::summary::summarise;

/// The whole report.
#[must_use]
pub fn render(report: &Report) -> String {
    let summaries = summarise(&report.runs);
    let facts = grid::machine(report).into_iter().map(|(name, value)| format!("{name:<12} {value}\n"));
    let mut text: String = facts.collect();
    let mut targets = grid::targets(&summaries);
    let all = targets.rows.len();
    targets.rows.retain(|row| row.last().is_none_or(|verdict| verdict.tone != Tone::Faint));
    for grid in grid::scenarios(&summaries).iter().chain([&targets]) {
        text.push('\n');
        text.push_str(&table(grid));
    }
    if targets.rows.len() < all {
        text.push_str(&format!("  {} more take other runs\n", all - targets.rows.len()));
    }
    for note in &report.notes {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

/// One table.
#[must_use]
pub fn table(grid: &Grid) -> String {
    let rows: Vec<Vec<String>> = grid.rows.iter().map(|row| row.iter().map(plain).collect()).collect();
    let width = |index: usize, title: &str| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
        cells.chain([title.chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> =
        grid.columns.iter().enumerate().map(|(index, head)| width(index, &head.title)).collect();
    let line = |cells: Vec<&str>| {
        let cells =
            cells.iter().zip(&grid.columns).zip(&widths).map(|((cell, head), width)| match head.number {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned() + "\n"
    };
    let mut text = format!("{}: {}\n", grid.title, grid.about);
    text.push_str(&line(grid.columns.iter().map(|head| head.title.as_str()).collect()));
    for row in &rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

fn plain(cell: &Cell) -> String {
    match &cell.ratio {
        Some(ratio) => format!("{} ({ratio})", cell.text),
        None => cell.text.clone(),
    }
}

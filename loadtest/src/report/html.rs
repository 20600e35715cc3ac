//! A report as one HTML page that needs nothing else: no script, no font, nothing fetched.

use std::fmt::Write as _;

use super::grid::{self, Cell, Grid, Tone};
use super::plot::{self, escape};
use super::summary::summarise;
use super::targets::{self, Verdict};
use super::{Report, charts};

const STYLE: &str = "\
*{box-sizing:border-box}html{color-scheme:light dark}\
body{margin:0 auto;max-width:76rem;padding:1.5rem 1.25rem 4rem;background:var(--ground);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.5rem 0 .2rem}p{margin:.2rem 0 .6rem;color:var(--soft)}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1.2rem;margin:1rem 0}dt{color:var(--soft)}dd{margin:0}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.28rem .9rem .28rem 0;text-align:left;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:top}\
th{font-weight:600;color:var(--soft);font-size:.85rem;vertical-align:bottom}.n{text-align:right}\
td.t{white-space:normal;min-width:16rem}\
.Good{color:var(--good)}.Bad{color:var(--bad);font-weight:600}.Faint,small{color:var(--soft)}small{display:block}\
code{font-size:.92em}\
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(30rem,100%),1fr));gap:1.6rem 2.2rem;margin-top:1rem}\
figure{margin:0}figcaption{font-weight:600}figure>svg{width:100%;height:auto;display:block}\
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:.2rem 0 .4rem;padding:0;font-size:.85rem;\
color:var(--soft)}.legend svg{width:24px;height:8px;margin-right:.4rem;vertical-align:middle}";

/// The whole page.
#[must_use]
pub fn render(report: &Report) -> String {
    let summaries = summarise(&report.runs);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>walcast load test</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{}{STYLE}</style>\
         <h1>walcast load test</h1><p>{}</p><dl>",
        plot::STYLE,
        escape(&verdict(&targets::judge(&summaries)))
    );
    for (name, value) in grid::machine(report) {
        let _ = write!(page, "<dt>{}<dd>{}", escape(&name), escape(&value));
    }
    page.push_str("</dl>");
    for note in &report.notes {
        let _ = write!(page, "<p>Note: {}</p>", escape(note));
    }
    table(&mut page, &grid::targets(&summaries));
    let charts = charts::charts(&summaries);
    if !charts.is_empty() {
        page.push_str("<h2>plots</h2><p>solid: walcast; dashed: peers</p><div class=\"plots\">");
        for chart in &charts {
            let (title, legend, svg) = (escape(&chart.title), plot::legend(chart), plot::svg(chart));
            let _ = write!(
                page,
                "<figure id=\"{}\"><figcaption>{title}</figcaption>{legend}{svg}</figure>",
                chart.id
            );
        }
        page.push_str("</div>");
    }
    for grid in grid::scenarios(&summaries) {
        table(&mut page, &grid);
    }
    page.push_str("</html>\n");
    page
}

fn verdict(outcomes: &[targets::Outcome]) -> String {
    let count =
        |wanted: fn(Verdict) -> bool| outcomes.iter().filter(|outcome| wanted(outcome.verdict)).count();
    format!(
        "{} figures within their targets, {} beyond, {} not measured",
        count(|verdict| verdict == Verdict::Held),
        count(|verdict| matches!(verdict, Verdict::Missed(_))),
        count(|verdict| verdict == Verdict::Unmeasured)
    )
}

fn table(page: &mut String, grid: &Grid) {
    let (title, about) = (escape(&grid.title), escape(&grid.about));
    let _ = write!(page, "<h2 id=\"{title}\">{title}</h2><p>{about}</p><div class=\"wide\"><table><tr>");
    for head in &grid.columns {
        let _ = write!(page, "<th{}>{}", if head.number { " class=\"n\"" } else { "" }, escape(&head.title));
    }
    for row in &grid.rows {
        page.push_str("<tr>");
        for (index, (cell, head)) in row.iter().zip(&grid.columns).enumerate() {
            write_cell(page, cell, head.number, index == 0);
        }
    }
    page.push_str("</table></div>");
}

fn write_cell(page: &mut String, cell: &Cell, number: bool, first: bool) {
    let mut classes = Vec::new();
    if number {
        classes.push("n");
    } else if first {
        classes.push("t");
    }
    match cell.tone {
        Tone::Plain => {}
        Tone::Good => classes.push("Good"),
        Tone::Bad => classes.push("Bad"),
        Tone::Faint => classes.push("Faint"),
    }
    let _ = write!(page, "<td class=\"{}\">{}", classes.join(" "), code(&cell.text));
    if let Some(ratio) = &cell.ratio {
        let _ = write!(page, "<small>{}</small>", escape(ratio));
    }
}

/// Text whose back-quoted parts are code.
fn code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(
            |(index, part)| {
                if index % 2 == 1 { format!("<code>{}</code>", escape(part)) } else { escape(part) }
            },
        )
        .collect()
}

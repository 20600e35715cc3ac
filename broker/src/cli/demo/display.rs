//! The live summary: a few lines on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ledger::Ledger;

/// Below the first line's text.
const INDENT: &str = "\n       ";

/// Lines that renew themselves; nothing is drawn where standard error is no terminal.
#[derive(Debug)]
pub struct Display(ProgressBar);

impl Display {
    /// Lines on standard error.
    #[must_use]
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>3}  {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// A display that draws nothing.
    #[must_use]
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// What is being done before there are figures.
    pub fn say(&self, what: &str) {
        self.0.enable_steady_tick(Duration::from_millis(200));
        self.0.set_message(what.to_owned());
    }

    /// How it goes.
    pub fn show(&self, ledger: &Ledger) {
        self.0.set_message(ledger.lines().join(INDENT));
        self.0.tick();
    }

    /// Removes the lines.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

//! The files that a report is written to.
//!
//! They are opened before anything is played, and what is in them stays until there is something to write.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::args::Args;
use crate::report::{Report, html, markdown};

/// A file that can be written.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
    /// It was not there before; without a report it goes again.
    fresh: bool,
}

impl Output {
    fn open(path: &Path) -> Result<Self, Error> {
        let fresh = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| Error::usage(format!("cannot write {}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), file, fresh })
    }

    fn write(&mut self, text: &str) -> Result<(), Error> {
        // What is no file has nothing in it.
        let is_file = self.file.metadata().is_ok_and(|metadata| metadata.is_file());
        let emptied = if is_file { self.file.set_len(0) } else { Ok(()) };
        let written = emptied.and_then(|()| self.file.write_all(text.as_bytes()));
        written.map_err(Error::of(&format!("cannot write {}", self.path.display())))?;
        self.fresh = false;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.fresh {
            // An empty file that stays hurts nobody.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// All of them.
#[derive(Debug)]
pub struct Outputs {
    json: Option<Output>,
    html: Option<Output>,
    markdown: Option<Output>,
    /// Where the plots of the Markdown go.
    plots: Option<PathBuf>,
}

impl Outputs {
    /// Opens what the arguments name.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn open(args: &Args) -> Result<Self, Error> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        let plots =
            args.markdown.as_ref().map(|path| path.with_file_name(path.file_stem().unwrap_or_default()));
        if let Some(dir) = &plots {
            fs::create_dir_all(dir)
                .map_err(|error| Error::usage(format!("cannot make {}: {error}", dir.display())))?;
        }
        Ok(Self { json: open(&args.json)?, html: open(&args.html)?, markdown: open(&args.markdown)?, plots })
    }

    /// Writes the report to all of them.
    ///
    /// # Errors
    /// One could not be written.
    pub fn write(mut self, report: &Report) -> Result<(), Error> {
        if let Some(output) = &mut self.json {
            output.write(&(report.to_json() + "\n"))?;
        }
        if let Some(output) = &mut self.html {
            output.write(&html::render(report))?;
        }
        if let (Some(output), Some(dir)) = (&mut self.markdown, &self.plots) {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let markdown = markdown::render(report, &name);
            for (name, plot) in markdown.plots {
                let path = dir.join(name);
                fs::write(&path, plot).map_err(Error::of(&format!("cannot write {}", path.display())))?;
            }
            output.write(&markdown.text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::lab::process::make_dir;

    fn args(line: &str) -> Args {
        Args::try_parse_from(std::iter::once("walcast-loadtest").chain(line.split_whitespace())).unwrap()
    }

    #[test]
    fn what_was_there_stays_until_there_is_a_report() {
        let dir = make_dir().unwrap();
        let (old, new) = (dir.join("old.json"), dir.join("new.html"));
        fs::write(&old, "what was found last week, which was long").unwrap();
        let args = args(&format!("report --json {} --html {}", old.display(), new.display()));
        drop(Outputs::open(&args).unwrap());
        assert!(fs::read_to_string(&old).unwrap().ends_with("long") && !new.exists());
        Outputs::open(&args).unwrap().write(&Report::default()).unwrap();
        assert_eq!(Report::from_json(&fs::read_to_string(&old).unwrap()).unwrap(), Report::default());
        assert!(fs::read_to_string(&new).unwrap().starts_with("<!doctype html>"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = make_dir().unwrap();
        let path = dir.join("none/x.json");
        let error = Outputs::open(&args(&format!("wake --json {}", path.display()))).unwrap_err();
        assert!(error.exit_code() == 64 && error.message.contains("none/x.json"), "{error}");
    }
}

//! `weir check FILE...`: what is wrong with node files, before an agent reads them.

use std::{error::Error, io::Write, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{Answer, Exit, error::CliError, look::count, write_json};
use crate::{
    config::{self, LoadError, Report},
    policy::Problem,
};

/// Say what is wrong with node files, without an agent
///
/// Each problem is a line: file, line and column, what is wrong, and what was expected. Errors are
/// things written that would not take effect; warnings take effect, but perhaps not as meant.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Node files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    answer: Answer,
}

/// What was found in a file.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    errors: usize,
    warnings: usize,
    problems: Vec<Problem>,
    /// Why the file could not be read at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

impl Checked {
    fn new(path: &std::path::Path) -> Self {
        let file = path.display().to_string();
        match config::load(path) {
            Ok(text) => {
                let report = config::check(&text, &file);
                let (errors, warnings) = (report.errors(), report.warnings());
                let Report { problems } = report;
                Self { file, errors, warnings, problems, unreadable: None }
            }
            Err(error) => {
                let unreadable = Some(because(&error));
                Self { file, errors: 1, warnings: 0, problems: Vec::new(), unreadable }
            }
        }
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for problem in &self.problems {
            writeln!(out, "{problem}")?;
        }
        if let Some(unreadable) = &self.unreadable {
            return writeln!(out, "{unreadable}");
        }
        let mut found = Vec::new();
        if self.errors > 0 {
            found.push(count(self.errors as u64, "error", "errors"));
        }
        if self.warnings > 0 {
            found.push(count(self.warnings as u64, "warning", "warnings"));
        }
        let found = if found.is_empty() { "ok".to_owned() } else { found.join(", ") };
        writeln!(out, "{}: {found}", self.file)
    }
}

fn because(error: &LoadError) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

impl Check {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let checked: Vec<_> = self.files.iter().map(|path| Checked::new(path)).collect();
        if self.answer.is_json() {
            write_json(out, &checked)?;
        } else {
            checked.iter().try_for_each(|checked| checked.write(out))?;
        }
        Ok(Exit::ok_if(checked.iter().all(|checked| checked.errors == 0)))
    }
}

//! `weir check FILE...`: what is wrong with node files and quota files, before an agent reads them.

use std::{io::Write, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{Answer, Exit, error::CliError, look::count, write_json};
use crate::{
    causes::with_causes,
    config::{self, LoadError, Report},
    policy::{Place, Problem},
    quota::{
        Settings,
        config::{Overlays, Source, check, is_quota_file},
    },
};

/// Say what is wrong with node files and quota files, without an agent
///
/// Each problem is a line: file, line and column, what is wrong, and what was expected. Errors are
/// things written that would not take effect; warnings take effect, but perhaps not as meant. Quota
/// files are those with a `domain`; name them and their overlays together.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Node files and quota files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Several quota files may describe one domain
    #[arg(long)]
    merge_domains: bool,
    /// Domains come from a management server, so quota files are overlays of them
    #[arg(long, conflicts_with = "merge_domains")]
    xds: bool,
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
    fn new(file: String, problems: Vec<Problem>) -> Self {
        let errors = problems.iter().filter(|problem| problem.is_error()).count();
        let warnings = problems.len() - errors;
        Self { file, errors, warnings, problems, unreadable: None }
    }

    fn unreadable(file: String, error: &LoadError) -> Self {
        Self { unreadable: Some(with_causes(error)), errors: 1, ..Self::new(file, Vec::new()) }
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

/// Checks node files one by one, and quota files together: domains are written once among them, and
/// overlays add to others.
fn checked(files: &[PathBuf], merge_domains: bool, xds: bool) -> Vec<Checked> {
    let texts: Vec<_> =
        files.iter().map(|path| (path.display().to_string(), config::load(path))).collect();
    let quotas: Vec<_> = texts
        .iter()
        .filter_map(|(file, text)| text.as_ref().ok().map(|text| (file, text)))
        .filter(|(_, text)| is_quota_file(text))
        .map(|(file, text)| Source { file: file.clone(), text: text.clone() })
        .collect();
    // Whether there is a store is written elsewhere.
    let settings = Settings { merge_domains, store: true, ..Settings::default() };
    let found = match xds {
        true => Overlays::read(&quotas).err().unwrap_or_default(),
        false => check(&quotas, settings),
    };
    let is_of = |problem: &Problem, name: &str| match &problem.place {
        Place::File { file, .. } => file == name,
        Place::BuiltIn | Place::Annotation { .. } | Place::Resource { .. } => false,
    };
    let checked = |(file, text): (String, Result<String, LoadError>)| match text {
        Err(error) => Checked::unreadable(file, &error),
        Ok(_) if quotas.iter().any(|source| source.file == file) => {
            let problems = found.iter().filter(|problem| is_of(problem, &file)).cloned();
            Checked::new(file.clone(), problems.collect())
        }
        Ok(text) => {
            let Report { problems } = config::check(&text, &file);
            Checked::new(file, problems)
        }
    };
    texts.into_iter().map(checked).collect()
}

impl Check {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let checked = checked(&self.files, self.merge_domains, self.xds);
        if self.answer.is_json() {
            write_json(out, &checked)?;
        } else {
            checked.iter().try_for_each(|checked| checked.write(out))?;
        }
        Ok(Exit::ok_if(checked.iter().all(|checked| checked.errors == 0)))
    }
}

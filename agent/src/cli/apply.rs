//! `weir apply` and `weir confirm`: a new node file that takes itself back unless it is wanted.

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Args;

use super::{Asked, Exit, client::Question, error::CliError, look::Look, pause::Time};
use crate::{
    app::{trial, view::Status},
    config,
};

/// How long an agent may take to read a file: it looks four times a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Try a node file: it holds for a while, and stays only if you confirm it
///
/// For machines that you reach through what you limit. A file with errors is refused. Until `weir
/// confirm` the node file itself is not touched; without it, it holds again when the time is over,
/// or after a restart of the machine.
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The new node file
    file: PathBuf,
    /// How long it holds without `weir confirm`: 90s, 15m, 2h; at most 24h
    #[arg(long, value_name = "TIME")]
    confirm: Time,
    #[command(flatten)]
    asked: Asked,
}

/// Keep the node file that is on trial
#[derive(Debug, Args)]
pub(super) struct Confirm {
    #[command(flatten)]
    asked: Asked,
}

impl Apply {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let text = config::load(&self.file).context("nothing was changed")?;
        let report = config::check(&text, &self.file.display().to_string());
        for problem in &report.problems {
            writeln!(out, "{problem}")?;
        }
        if report.problems.iter().any(|problem| problem.is_error()) {
            writeln!(out, "{} has errors: nothing was changed", self.file.display())?;
            return Ok(Exit::NotOk);
        }
        let agent = self.asked.agent();
        let status = || agent.ask::<Status>(&Question::get("/status")).map(|answer| answer.value);
        let before = status()?;
        let until = SystemTime::now() + self.confirm.duration();
        let path = trial::path(&self.asked.socket);
        replace(&path, &text, 0o600, Some(until))?;
        let patience = Instant::now() + PATIENCE;
        while status()?.reloads == before.reloads {
            if Instant::now() > patience {
                // What nobody reads must not come into force later.
                let _ = fs::remove_file(&path);
                return Err(anyhow::anyhow!(
                    "the agent did not read {}; nothing was changed",
                    path.display()
                )
                .into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        let seconds = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let when = (Look::of_stdout().local)(seconds);
        writeln!(
            out,
            "{} holds on trial until {when}: keep it with `weir confirm`, or {} holds again",
            self.file.display(),
            before.node_file
        )?;
        Ok(Exit::Ok)
    }
}

impl Confirm {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let path = trial::path(&self.asked.socket);
        if trial::end(&path).is_none_or(|end| end <= SystemTime::now()) {
            writeln!(out, "nothing is on trial")?;
            return Ok(Exit::NotOk);
        }
        let text = config::load(&path).context("the trial cannot be read")?;
        let status = self.asked.agent().ask::<Status>(&Question::get("/status"))?.value;
        replace(Path::new(&status.node_file), &text, 0o644, None)?;
        // First the node file, then the end of the trial: what holds is the same all the while.
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        writeln!(out, "{} holds, and stays", status.node_file)?;
        Ok(Exit::Ok)
    }
}

/// Replaces a file in one step, and perhaps sets its time of change.
fn replace(path: &Path, text: &str, mode: u32, changed: Option<SystemTime>) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        if let Some(changed) = changed {
            file.set_times(FileTimes::new().set_modified(changed))?;
        }
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

//! `weir apply` and `weir confirm`: a new node file that takes itself back unless it is wanted.

use std::{
    fs::{self, FileTimes, Metadata, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use clap::Args;

use super::{Asked, Exit, client::Question, error::CliError, look::Look, pause::Time};
use crate::{
    app::{
        trial::{self, Trial},
        view::{Status, TrialStatus},
    },
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
        // Whoever is not there must not find a trial later.
        status()?;
        let path = trial::path(&self.asked.socket);
        let trial = Trial { path, ends: SystemTime::now() + self.confirm.duration() };
        replace(&trial.path, &text, &Like::Trial(trial.ends))?;
        let patience = Instant::now() + PATIENCE;
        let status = loop {
            let status = status()?;
            let is_ours = |seen: &TrialStatus| (seen.ends - trial.ends_seconds()).abs() < 0.001;
            match status.trial.filter(is_ours) {
                Some(seen) if seen.holds => break status,
                None if Instant::now() < patience => thread::sleep(Duration::from_millis(50)),
                seen => {
                    // What nobody reads must not come into force later.
                    let _ = fs::remove_file(&trial.path);
                    let did = if seen.is_some() { "understand" } else { "read" };
                    let path = trial.path.display();
                    let error = format!("the agent did not {did} {path}; nothing was changed");
                    return Err(anyhow::Error::msg(error).into());
                }
            }
        };
        let when = (Look::of_stdout().local)(trial.ends_seconds());
        writeln!(
            out,
            "{} holds on trial until {when}: keep it with `weir confirm`, or {} holds again",
            self.file.display(),
            status.node_file
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
        // A link stays one: what it leads to is replaced.
        let node_file = Path::new(&status.node_file);
        let node_file = fs::canonicalize(node_file).unwrap_or_else(|_| node_file.to_owned());
        let like = fs::metadata(&node_file).map_or(Like::New, |before| Like::Before(before.into()));
        replace(&node_file, &text, &like)?;
        // First the node file, then the end of the trial: what holds is the same all the while.
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        writeln!(out, "{} holds, and stays", status.node_file)?;
        Ok(Exit::Ok)
    }
}

/// What a file that replaces another is to be like.
enum Like {
    /// A trial that ends then: for root alone.
    Trial(SystemTime),
    /// The file that it replaces.
    Before(Rights),
    /// A file that was not there.
    New,
}

/// Who may read and write a file.
struct Rights {
    mode: u32,
    user: u32,
    group: u32,
}

impl From<Metadata> for Rights {
    fn from(file: Metadata) -> Self {
        Self { mode: file.mode() & 0o7777, user: file.uid(), group: file.gid() }
    }
}

/// Replaces a file in one step.
fn replace(path: &Path, text: &str, like: &Like) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        // Nobody else's until it is whole, whatever was left there.
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        match like {
            Like::Trial(ends) => file.set_times(FileTimes::new().set_modified(*ends))?,
            Like::Before(Rights { mode, user, group }) => {
                fchown(&file, Some(*user), Some(*group))?;
                file.set_permissions(Permissions::from_mode(*mode))?;
            }
            Like::New => file.set_permissions(Permissions::from_mode(0o644))?,
        }
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

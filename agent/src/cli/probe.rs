//! `weir probe`: one question of health, for kubelets and scripts.

use std::{io::Write, path::PathBuf};

use clap::{Args, ValueEnum};

use super::{DEFAULT_SOCKET, Exit, client::Agent, error::CliError};

/// Ask whether an agent is well; the answer is the exit code
///
/// For probes of a container, where HTTP over TCP would not do: two agents of one node share its
/// addresses while one takes over from the other. Each answers at its own --standby socket.
#[derive(Debug, Args)]
pub(super) struct Probe {
    /// What to ask: /healthz, whether it lives; /readyz, whether every workload is decided, or it
    /// only waits for another agent to end
    #[arg(value_enum)]
    question: Question,
    /// The socket to ask at: that of `weir agent --standby`, or the admin socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Question {
    #[value(name = "/healthz")]
    Healthz,
    #[value(name = "/readyz")]
    Readyz,
}

impl Probe {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let path = match self.question {
            Question::Healthz => "/healthz",
            Question::Readyz => "/readyz",
        };
        let (yes, said) = Agent::new(self.socket).probe(path)?;
        writeln!(out, "{}", said.trim_end())?;
        Ok(Exit::ok_if(yes))
    }
}

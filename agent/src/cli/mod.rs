//! The command line: one file for each command.
//!
//! It owns arguments, tables and exit codes. All it knows of a running agent is what the admin
//! socket answers.

mod admission;
mod agent;
mod apply;
mod check;
mod client;
mod cluster;
mod demo;
mod error;
mod explain;
mod explain_domain;
mod fleet;
mod history;
mod log;
mod look;
mod pause;
mod probe;
mod refusals;
mod resume;
mod status;
mod suggest;
mod table;
mod time;
mod top;
mod trace;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use self::{client::Agent, error::CliError};
use crate::causes::with_causes;

/// Where an agent answers unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weir/weir.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0  yes, and all is well
  1  no: a file has errors, something is not enforced, a request was refused, a step failed
  2  the command line was not understood
  3  no agent could be asked: nobody listens, no permission, no answer, or another version
  4  `weir demo` alone: fewer connections than predicted, and nowhere more

Answers are for people; `-o json` is for programs, with the fields that the admin socket sends.";

/// Limits new connections in the kernel, for every workload of a node.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(Box<agent::Agent>),
    Check(check::Check),
    Apply(apply::Apply),
    Confirm(apply::Confirm),
    Admission(admission::Admission),
    Status(status::Status),
    Top(top::Top),
    Explain(explain::Explain),
    History(history::History),
    Trace(trace::Trace),
    Suggest(suggest::Suggest),
    Pause(pause::Pause),
    Probe(probe::Probe),
    Resume(resume::Resume),
    Log(log::Log),
    Demo(demo::Demo),
}

impl Command {
    fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        match self {
            Self::Agent(command) => command.run(out),
            Self::Check(command) => command.run(out),
            Self::Apply(command) => command.run(out),
            Self::Confirm(command) => command.run(out),
            Self::Admission(command) => command.run(out),
            Self::Status(command) => command.run(out),
            Self::Top(command) => command.run(out),
            Self::Explain(command) => command.run(out),
            Self::History(command) => command.run(out),
            Self::Trace(command) => command.run(out),
            Self::Suggest(command) => command.run(out),
            Self::Pause(command) => command.run(out),
            Self::Probe(command) => command.run(out),
            Self::Resume(command) => command.run(out),
            Self::Log(command) => command.run(out),
            Self::Demo(command) => command.run(out),
        }
    }
}

/// How a command ended that did what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Yes.
    Ok,
    /// No.
    NotOk,
    /// As another program says.
    Code(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Ok => Self::SUCCESS,
            Exit::NotOk => Self::from(1),
            Exit::Code(code) => Self::from(code),
        }
    }
}

impl Exit {
    const fn ok_if(yes: bool) -> Self {
        if yes { Self::Ok } else { Self::NotOk }
    }
}

/// Which agent is asked.
#[derive(Clone, Debug, Args)]
struct Asked {
    /// The agent's admin socket
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl Asked {
    fn agent(&self) -> Agent {
        Agent::new(self.socket.clone())
    }
}

/// For whom the answer is.
#[derive(Clone, Copy, Debug, Args)]
struct Answer {
    /// Who reads it: `table` for people, `json` for programs
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Answer {
    const fn is_json(self) -> bool {
        matches!(self.output, Output::Json)
    }
}

/// Writes a value as indented JSON.
fn write_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    Ok(writeln!(out, "{text}")?)
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let mut out = io::stdout();
    let done = command.run(&mut out).and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match done {
        Ok(exit) => exit.into(),
        // Whoever read, as `head` does, has seen enough.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Standard error may be closed too, and then there is nobody to tell.
            let _ = writeln!(io::stderr(), "weir: {}", with_causes(&error));
            error.exit_code().into()
        }
    }
}

#[cfg(test)]
mod tests;

//! `weir demo`: everything at once, in network namespaces of its own.

use std::io::Write;

use anyhow::Error;
use clap::Args;

use super::{Exit, error::CliError};
use crate::demo::{self, ChildAgent, DemoError, Options};

/// See it at work: a lab of network namespaces, an agent, real load
///
/// Needs root and leaves nothing behind. The exit code is 0 when every limit admitted what it
/// predicted, 1 when one admitted more or a step failed, 4 when one admitted fewer, as on a host too
/// busy for its own clients, and 130 after Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Keep everything up until Ctrl-C, and say what to try
    #[arg(long)]
    hold: bool,
    /// How long the load lasts
    #[arg(
        long,
        value_name = "N",
        default_value_t = Options::default().seconds,
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    seconds: u64,
}

impl Demo {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let options = Options { seconds: self.seconds, hold: self.hold };
        let ending = ChildAgent::this_binary().and_then(|agent| demo::run(&options, &agent, out));
        match ending {
            Ok(ending) => Ok(Exit::Code(ending.exit_code())),
            Err(DemoError::Print(error)) => Err(CliError::Output(error)),
            Err(error) => Err(CliError::Failed(Error::new(error))),
        }
    }
}

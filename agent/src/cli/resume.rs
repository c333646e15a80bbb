//! `weir resume`: the end of a pause.

use std::io::Write;

use clap::Args;

use super::{Answer, Asked, Exit, error::CliError, pause};

/// End a pause: enforce again
#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    target: pause::Target,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

impl Resume {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        pause::set(&self.asked, self.answer, self.target, 0, out, |names| {
            format!("resumed {names}: what the policy says holds again")
        })
    }
}

//! `weir log`: the level of a running agent's log.

use std::io::Write;

use clap::Args;

use super::{
    Answer, Asked, Exit,
    client::{Question, encode},
    error::CliError,
    look::clean,
    write_json,
};
use crate::{app::view::LogLevel, telemetry::Levels};

/// Show or change what a running agent logs
#[derive(Debug, Args)]
pub(super) struct Log {
    /// From now on: off, error, warn, info, debug, trace, or a list like info,weir::datapath=debug
    level: Option<Levels>,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    answer: Answer,
}

impl Log {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        let question = match &self.level {
            Some(level) => Question::put(format!("/log?level={}", encode(&level.to_string()))),
            None => Question::get("/log"),
        };
        let answered = self.asked.agent().ask::<LogLevel>(&question)?;
        if self.answer.is_json() {
            write_json(out, &answered.raw)?;
        } else {
            writeln!(out, "the agent logs {}", clean(&answered.value.level))?;
        }
        Ok(Exit::Ok)
    }
}

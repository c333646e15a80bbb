//! Why a command could not do what it was asked, and what the shell is told.

use std::{error::Error, io};

use super::{Exit, client::ClientError};

/// The code of a command that found no agent to ask.
const UNREACHABLE: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The agent was not reached, or refused.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// Nobody reads any more, or the disk is full.
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
    /// A part of Weir failed.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl CliError {
    pub(super) fn exit_code(&self) -> Exit {
        match self {
            Self::Agent(error) if !error.is_refusal() => Exit::Code(UNREACHABLE),
            _ => Exit::NotOk,
        }
    }

    /// In one line, with its causes.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let more = error.to_string();
            // Some errors say what their cause says.
            if !text.ends_with(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = anyhow!("the disk is full").context("cannot write x").context("cannot save");
        let text = CliError::from(error).with_causes();
        assert_eq!(text, "cannot save: cannot write x: the disk is full");
        let error = io::Error::other("gone");
        assert_eq!(CliError::from(error).with_causes(), "cannot write the answer: gone");
    }
}

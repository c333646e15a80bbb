//! Why a command could not do what it was asked, and what the shell is told.

use std::io;

use super::{Exit, client::ClientError, cluster::ClusterError};

/// The code of a command that found no agent to ask.
const UNREACHABLE: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The agent was not reached, or refused.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The agent of another node was not reached, or refused.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
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
            Self::Cluster(error) if !error.is_refusal() => Exit::Code(UNREACHABLE),
            _ => Exit::NotOk,
        }
    }
}

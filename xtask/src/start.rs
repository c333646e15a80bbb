//! Starts what was built in place of xtask, so that signals and exit codes are its own.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Error, Result};

use crate::{
    say,
    workspace::{Workspace, shown},
};

/// Becomes `weir demo`.
pub(crate) fn demo(workspace: &Workspace, args: &[String]) -> Result<()> {
    let mut command = Command::new(workspace.weir());
    command.arg("demo").args(args);
    become_command(command)
}

/// Becomes the agent.
pub(crate) fn agent(
    workspace: &Workspace,
    node_file: Option<&Path>,
    args: &[String],
) -> Result<()> {
    let mut command = Command::new(workspace.weir());
    command.arg("agent");
    if let Some(node_file) = node_file {
        command.arg("--node-file").arg(node_file);
    }
    command.args(args);
    become_command(command)
}

/// Becomes the bench.
pub(crate) fn bench(workspace: &Workspace, args: &[String]) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["run", "--release", "--package", "weir-tests", "--bin", "bench", "--"]);
    command.args(args);
    become_command(command)
}

fn become_command(mut command: Command) -> Result<()> {
    say::step("run", shown(&command));
    let error = command.exec();
    Err(Error::new(error).context(format!("cannot start {}", shown(&command))))
}

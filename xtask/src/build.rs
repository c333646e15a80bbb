//! Builds the BPF object, then the agent, which embeds it.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    measure, say, setup,
    workspace::{Workspace, run},
};

/// The BPF object, measured against the budget.
pub(crate) fn ebpf(workspace: &Workspace) -> Result<()> {
    let compiler = setup::compiler()?;
    say::step("build", format!("BPF programs, by {}", compiler.describe()));
    run(&mut compiler.build_command(workspace)).context("the BPF programs did not compile")?;
    measure::measure(&workspace.ebpf_object())
}

/// The agent's binary, in release.
pub(crate) fn weir(workspace: &Workspace) -> Result<()> {
    say::step("build", format!("weir, by {}", host_rustc()));
    run(workspace.cargo().args(["build", "--release", "--package", "weir"]))
        .context("weir did not compile")
}

/// The agent's binary as the tests start it, in the profile that they are built in.
pub(crate) fn weir_for_tests(workspace: &Workspace) -> Result<()> {
    say::step("build", format!("weir for tests, by {}", host_rustc()));
    run(workspace.cargo().args(["build", "--package", "weir"])).context("weir did not compile")
}

/// Both.
pub(crate) fn all(workspace: &Workspace) -> Result<()> {
    ebpf(workspace)?;
    weir(workspace)
}

/// The compiler of everything but the BPF programs, in its own words.
pub(crate) fn host_rustc() -> String {
    let rustc = env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    crate::workspace::read(Command::new(rustc).arg("--version"))
        .map_or_else(|_| "rustc".to_owned(), |version| version.trim().to_owned())
}

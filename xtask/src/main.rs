//! Weir's own commands: `cargo xtask setup`, `build`, `demo`, `run`, `test`, `bench`, `dist`,
//! `install`, `uninstall`, `ci`. Each finds or installs what it needs, and says so first.
//!
//! This file names the commands and their order of steps; every step is a module. None of them
//! depends on the workspace's other crates, so xtask builds before anything else does.

#![forbid(unsafe_code)]

mod bpf_compiler;
mod build;
mod check;
mod dist;
mod envoy;
mod files;
mod glibc;
mod host;
mod image;
mod install;
mod kube_tools;
mod licence;
mod manifests;
mod measure;
mod packages;
mod say;
mod setup;
mod stack;
mod start;
mod suite;
mod summary;
mod vm;
mod wheel;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    install::Place,
    packages::Need,
    setup::{Consent, Wants},
    suite::Selection,
    workspace::Workspace,
};

/// Weir's own commands
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(flatten)]
    consent: Consent,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building and testing need
    Setup,
    /// Build the BPF programs and weir; print what the verifier thinks of the programs
    Build {
        /// The BPF programs alone
        #[arg(long)]
        ebpf: bool,
    },
    /// Build, then show it at work on a lab of network namespaces
    Demo {
        /// For `weir demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build, then run the agent on this host
    Run {
        /// What to protect, and how
        #[arg(long)]
        node_file: Option<PathBuf>,
        /// For `weir agent`, after `--`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Build, then run all tests
    Test {
        /// Leave out those that boot another kernel in QEMU
        #[arg(long)]
        no_vm: bool,
        /// For the test runner: filters and options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build, then measure: all benches, or those named
    Bench {
        /// For the bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build a tarball and a Debian package into dist/
    Dist,
    /// Build a container image into dist/
    Image {
        /// Put this program into it, instead of building one
        #[arg(long)]
        weir: Option<PathBuf>,
    },
    /// Render the chart into the kustomizations
    Manifests,
    /// Build, then install weir as a service of this host
    Install {
        #[command(flatten)]
        place: Place,
        /// Install what was built before
        #[arg(long)]
        no_build: bool,
    },
    /// Remove the service; the node file stays
    Uninstall {
        #[command(flatten)]
        place: Place,
    },
    /// What CI runs: formatting, lints, licences of dependencies, then the tests
    Ci {
        /// Leave out the tests that boot another kernel in QEMU
        #[arg(long)]
        no_vm: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        // Whoever found it has said it: a failed test is no error of xtask's.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { consent, task }: Cli) -> Result<bool> {
    let workspace = Workspace::find()?;
    let workspace = &workspace;
    let want = |packages: &[&[Need]], bpffs| {
        setup::setup(workspace, consent, Wants { compiler: true, packages, bpffs })
    };
    match task {
        Task::Setup => {
            want(&[packages::TEST], true)?;
            say::step("setup", format!("BPF programs: {}", setup::compiler()?.describe()));
            say::step("setup", format!("all else: {}", build::host_rustc()));
            // Only some tests need it, and they can do without.
            match envoy::prepare(consent) {
                Ok(program) => say::step("setup", format!("Envoy: {}", program.display())),
                Err(error) => say::step("setup", format!("no Envoy: {error:#}")),
            }
            match kube_tools::prepare(consent) {
                Ok(tools) => say::step("setup", format!("helm: {}", tools.helm.display())),
                Err(error) => say::step("setup", format!("no helm: {error:#}")),
            }
        }
        Task::Build { ebpf } => {
            want(&[], false)?;
            if ebpf { build::ebpf(workspace)? } else { build::all(workspace)? }
        }
        Task::Demo { args } => {
            want(&[], true)?;
            build::all(workspace)?;
            start::demo(workspace, &args)?;
        }
        Task::Run { node_file, args } => {
            want(&[], true)?;
            build::all(workspace)?;
            start::agent(workspace, node_file.as_deref(), &args)?;
        }
        Task::Test { no_vm, args } => {
            return test(workspace, consent, &Selection { no_vm, args }, || Ok(()));
        }
        Task::Bench { args } => {
            want(&[packages::BENCH], true)?;
            build::all(workspace)?;
            start::bench(workspace, &args)?;
        }
        Task::Dist => {
            want(&[], false)?;
            build::ebpf(workspace)?;
            dist::dist(workspace)?;
        }
        Task::Image { weir } => {
            let weir = match weir {
                Some(weir) => weir,
                None => {
                    want(&[], false)?;
                    build::ebpf(workspace)?;
                    dist::build(workspace)?
                }
            };
            image::image(workspace, &weir)?;
        }
        Task::Manifests => manifests::render(workspace, &kube_tools::prepare(consent)?)?,
        Task::Install { place, no_build } => {
            if !no_build {
                want(&[], false)?;
                build::all(workspace)?;
            }
            install::install(workspace, &place)?;
        }
        Task::Uninstall { place } => install::uninstall(&place)?,
        Task::Ci { no_vm } => {
            let selection = Selection { no_vm, args: Vec::new() };
            return test(workspace, consent, &selection, || check::all(workspace));
        }
    }
    Ok(true)
}

/// The tests, after a build; `before` runs in between, where the agent's crate can be compiled.
fn test(
    workspace: &Workspace,
    consent: Consent,
    selection: &Selection,
    before: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let wants = Wants { compiler: true, packages: &[packages::TEST], bpffs: true };
    setup::setup(workspace, consent, wants)?;
    build::ebpf(workspace)?;
    // The tests and the agent they start share all dependencies in this profile.
    build::weir_for_tests(workspace)?;
    before()?;
    suite::run(workspace, consent, selection)
}

//! `weir agent`: runs the agent, or removes what it left in the kernel.

use std::{io::Write, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use nix::sys::signal::{SigSet, Signal};

use super::{DEFAULT_SOCKET, Exit, error::CliError};
use crate::{
    app,
    datapath::{DEFAULT_PIN_ROOT, Datapath},
    telemetry::{self, Format, Levels},
    workload::DEFAULT_CGROUP_ROOT,
};

/// Run the agent of this node
///
/// It makes the kernel hold what the node file says, and goes on until it is told to stop (SIGTERM,
/// SIGINT). What it attached stays and enforces: the next agent takes it over. SIGHUP reads the
/// node file again, which happens by itself when the file changes.
#[derive(Debug, Args)]
pub(super) struct Agent {
    /// What to protect, and how
    #[arg(long, value_name = "FILE", required_unless_present = "uninstall")]
    node_file: Option<PathBuf>,
    /// Where programs and maps are pinned, on a BPF file system
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_PIN_ROOT)]
    pin_dir: PathBuf,
    /// Where the agent answers; its folder also keeps the last good policy
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Where metrics and health are served over TCP, instead of `admin.listen` of the node file
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Answer `GET /explain/NAMESPACE/POD` over TCP as well, for `weir explain --cluster`: the
    /// pod's policy, and addresses of clients that were refused. Whoever reaches the port may ask
    #[arg(long, conflicts_with = "uninstall")]
    explain_over_tcp: bool,
    /// Protect the pods of this node too, as the API server tells them: by KUBECONFIG or
    /// ~/.kube/config, or by the service account of the agent's own pod
    #[arg(long, requires = "node_name")]
    kubernetes: bool,
    /// The node's name in Kubernetes
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Where the host's cgroups are mounted
    #[arg(long, value_name = "FOLDER", env = "WEIR_CGROUP_ROOT", default_value = DEFAULT_CGROUP_ROOT)]
    cgroup_root: PathBuf,
    /// Remove taints of this key from the node once the agent is ready, so that no pod starts there
    /// without limits. Needs the right to patch nodes
    #[arg(long, value_name = "KEY", requires = "kubernetes", value_parser = NonEmptyStringValueParser::new())]
    startup_taint: Option<String>,
    /// Set the condition weir.dev/enforced of pods that name it among their readiness gates. Needs the
    /// right to patch pods/status
    #[arg(long, requires = "kubernetes")]
    readiness_gate: bool,
    /// What is logged: off, error, warn, info, debug, trace, or a list like
    /// info,weir::datapath=debug
    #[arg(long, value_name = "LEVEL", env = "WEIR_LOG", default_value = "info")]
    log: Levels,
    /// How it is logged
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,
    /// What the programs in the kernel log, to find out what they do: each line costs them time
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    bpf_log: BpfLog,
    /// Wait for another agent of this node to end, instead of giving up, and answer `weir probe` at
    /// this socket from the start. For updates that start the successor first
    #[arg(long, value_name = "PATH")]
    standby: Option<PathBuf>,
    /// Load nothing into the kernel and limit nothing there: only answer rate limit requests, as
    /// `rls` of the node file says
    #[arg(long, conflicts_with_all = ["uninstall", "standby", "kubernetes", "bpf_log", "pin_dir"])]
    no_datapath: bool,
    /// Remove all programs, pins and maps below --pin-dir; then nothing is limited any more
    #[arg(long, conflicts_with_all = ["node_file", "kubernetes", "listen", "bpf_log", "standby"])]
    uninstall: bool,
    /// After --uninstall, stay until told to stop: pods of a DaemonSet must not end
    #[arg(long, requires = "uninstall")]
    stay: bool,
}

/// What the programs in the kernel log.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum BpfLog {
    #[default]
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl BpfLog {
    const fn number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Error => 1,
            Self::Warn => 2,
            Self::Info => 3,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

impl Agent {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<Exit, CliError> {
        // The command line wants one or the other.
        let Some(node_file) = self.node_file else {
            let removed = uninstall(&self.pin_dir, out)?;
            if self.stay {
                until_told().context("cannot wait for a signal")?;
            }
            return Ok(removed);
        };
        // Others ask for it from elsewhere: `weir confirm` writes it.
        let node_file = std::path::absolute(node_file).context("where is the node file?")?;
        let level = telemetry::init(&self.log, self.log_format).context("cannot start the log")?;
        let node = self.node_name.filter(|_| self.kubernetes);
        let kubernetes = node.map(|node| app::Kubernetes {
            node,
            cgroups: self.cgroup_root,
            startup_taint: self.startup_taint,
            readiness_gate: self.readiness_gate,
        });
        app::run(app::Options {
            kubernetes,
            node_file,
            pin_dir: self.pin_dir,
            socket: self.socket,
            listen: self.listen,
            explain_over_tcp: self.explain_over_tcp,
            bpf_log: self.bpf_log.number(),
            standby: self.standby,
            level,
            no_datapath: self.no_datapath,
        })?;
        Ok(Exit::Ok)
    }
}

/// Waits for SIGTERM or SIGINT.
fn until_told() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Blocked, so that they end the wait and not the process.
    signals.thread_block()?;
    signals.wait().map(drop)
}

fn uninstall(pin_dir: &std::path::Path, out: &mut dyn Write) -> Result<Exit, CliError> {
    let removed = Datapath::uninstall(pin_dir).context("cannot remove everything")?;
    if removed.is_empty() {
        writeln!(out, "nothing of Weir is below {}", pin_dir.display())?;
    }
    for what in removed {
        writeln!(out, "removed {what}")?;
    }
    Ok(Exit::Ok)
}

//! Where things are in this workspace, and how to start its cargo. Decides nothing.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The target triple of the BPF programs: maps are shared with the host, so its byte order counts.
pub(crate) const BPF_TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// The workspace on disk.
pub(crate) struct Workspace {
    /// The folder of the workspace's Cargo.toml.
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds for this host.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the workspace that this xtask belongs to.
    pub(crate) fn find() -> Result<Self> {
        // `cargo run` sets the variable, so a moved checkout is found without a rebuild.
        let own = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = own.parent().context("xtask has no parent folder")?.to_owned();
        let mut metadata = Command::new(cargo());
        metadata.current_dir(&root).args(["metadata", "--no-deps", "--format-version", "1"]);
        let metadata: serde_json::Value = serde_json::from_str(&read(&mut metadata)?)
            .context("`cargo metadata` did not print JSON")?;
        let target = metadata
            .get("target_directory")
            .and_then(serde_json::Value::as_str)
            .context("`cargo metadata` named no target_directory")?;
        Ok(Self { root, target: PathBuf::from(target) })
    }

    /// cargo of the host's toolchain, at the workspace's root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root);
        command
    }

    /// The target directory of the BPF build. It does not follow `CARGO_TARGET_DIR`: the agent's
    /// build script looks for the object here.
    pub(crate) fn ebpf_target(&self) -> PathBuf {
        self.root.join("target/ebpf")
    }

    /// The BPF object, once built.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.ebpf_target().join(BPF_TARGET).join("release/weir-ebpf")
    }

    /// The agent, once built.
    pub(crate) fn weir(&self) -> PathBuf {
        self.target.join("release/weir")
    }

    /// The agent as the tests start it, once built.
    pub(crate) fn weir_for_tests(&self) -> PathBuf {
        self.target.join("debug/weir")
    }
}

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs a command to its end, its output shown; fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed on stdout; fails when it does, with its stderr.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status}): {}", shown(command), String::from_utf8_lossy(&stderr).trim());
    }
    String::from_utf8(stdout).with_context(|| format!("{} printed no UTF-8", shown(command)))
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.display().to_string()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    format!("`{}`", words.join(" "))
}

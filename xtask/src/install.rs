//! Puts weir on this host as a service, and takes it away again. `--root` does the same in a
//! folder that stands for the host's root, and there touches neither systemd nor the kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    files::{self, Sources, relative},
    host, say,
    workspace::{Workspace, run},
};

/// Where to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// The folder whose `bin` gets the program
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
    /// A folder that stands for the host's root
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

impl Place {
    /// Whether this is the host itself.
    fn is_host(&self) -> bool {
        self.root == Path::new("/")
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative(path.as_ref()))
    }

    fn check(&self) -> Result<()> {
        if !self.prefix.is_absolute() {
            bail!("--prefix {} is relative; the unit needs a full path", self.prefix.display());
        }
        if self.is_host() && !host::is_root() {
            bail!("only root may change this host; with --root DIR everything goes to a folder");
        }
        Ok(())
    }
}

/// Installs what was built. Starts nothing: what to limit is the administrator's to write.
pub(crate) fn install(workspace: &Workspace, place: &Place) -> Result<()> {
    place.check()?;
    let weir = workspace.weir();
    let sources = Sources { root: &workspace.root, weir: &weir };
    let node_file = place.at(files::NODE_FILE);
    let items = sources.host(&place.prefix, node_file.exists())?;
    files::place(&items, &place.root, None)?;
    for item in &items {
        say::step("install", place.root.join(&item.to).display());
    }
    if node_file.exists() {
        say::note(format!("{} is yours and stays as it is", node_file.display()));
    }
    if place.is_host() {
        reload_systemd()?;
        advise(node_file.exists());
    }
    Ok(())
}

fn advise(has_node_file: bool) {
    let node_file = files::NODE_FILE;
    if has_node_file {
        say::note("systemctl restart weir   # the new program adopts what the old one enforced");
    } else {
        say::note("nothing is limited yet:");
        say::note(format!("cp /{} /{node_file}   # and edit it", files::SAMPLE));
        say::note(format!("weir check /{node_file}"));
        say::note("systemctl enable --now weir");
    }
}

/// Removes weir: first its programs from the kernel, then its files, never the node file.
pub(crate) fn uninstall(place: &Place) -> Result<()> {
    place.check()?;
    let program = place.at(files::program(&place.prefix));
    if place.is_host() {
        if systemd_runs() && place.at(files::UNIT).exists() {
            say::step("uninstall", "systemctl disable --now weir");
            run(Command::new("systemctl").args(["disable", "--now", "weir.service"]))?;
        }
        if program.exists() {
            say::step("uninstall", "weir agent --uninstall");
            run(Command::new(&program).args(["agent", "--uninstall"]))
                .context("programs may still be in the kernel, so no file was removed")?;
        }
    }
    for file in [program, place.at(files::UNIT), place.at(files::SAMPLE)] {
        if remove(&file)? {
            say::step("uninstall", format!("removed {}", file.display()));
        }
    }
    let node_file = place.at(files::NODE_FILE);
    if node_file.exists() {
        say::note(format!("{} is yours and stays", node_file.display()));
    } else if let Some(folder) = node_file.parent() {
        // Fails, as it should, when something else is in it.
        let _ = fs::remove_dir(folder);
    }
    if place.is_host() {
        reload_systemd()?;
    }
    Ok(())
}

fn remove(file: &Path) -> Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", file.display())),
    }
}

/// Whether systemd is this host's init, by the test of sd_booted(3).
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn reload_systemd() -> Result<()> {
    if systemd_runs() {
        return run(Command::new("systemctl").arg("daemon-reload"));
    }
    say::note("systemd does not run here: nothing to reload");
    Ok(())
}

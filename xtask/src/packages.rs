//! Which packages a task needs and why, and how apt brings them. Knows nothing of who asks, nor
//! of consent.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    host, say,
    workspace::{read, run},
};

/// How to tell that something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// A command, wherever it came from.
    Command(&'static str),
    /// The Debian package itself: libraries and sources which no command betrays.
    Package,
}

/// A package, how to see it, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) package: &'static str,
    pub(crate) probe: Probe,
    pub(crate) why: &'static str,
}

const fn need(package: &'static str, probe: Probe, why: &'static str) -> Need {
    Need { package, probe, why }
}

/// Debian's Rust with the source of `core`, which the BPF target is built from.
pub(crate) const BPF_RUST: &[Need] = &[
    need("rustc-web", Probe::Package, "a Rust compiler with a BPF target"),
    need("cargo-web", Probe::Package, "the cargo of that compiler"),
    need("libstd-rust-web-dev-bpf", Probe::Package, "its library for BPF"),
    need("rust-web-src", Probe::Package, "the source of `core`, compiled for BPF"),
];

/// What bpf-linker is compiled against; the LLVM is that of `BPF_RUST`.
pub(crate) const BPF_LINKER: &[Need] = &[
    need("llvm-22-dev", Probe::Package, "LLVM, which bpf-linker is made of"),
    need("zlib1g-dev", Probe::Package, "a library that LLVM uses"),
    need("libzstd-dev", Probe::Package, "a library that LLVM uses"),
];

/// What the test suites start.
pub(crate) const TEST: &[Need] = &[
    need("iproute2", Probe::Command("ip"), "namespaces, veth pairs and foreign TC programs"),
    need("nftables", Probe::Command("nft"), "the lab's DNAT rules"),
    need("redis-server", Probe::Command("redis-server"), "the store of a fleet's quotas"),
];

/// What the benches compare with.
pub(crate) const BENCH: &[Need] = &[
    need("iproute2", Probe::Command("ip"), "namespaces and veth pairs"),
    need("nftables", Probe::Command("nft"), "the equal rule to compare with"),
    need("iperf3", Probe::Command("iperf3"), "bulk traffic"),
];

/// How long apt may fetch: lists, or one package with what it depends on.
const PATIENCE: Duration = Duration::from_secs(300);

/// Of the needs, those not met; each once, in order.
pub(crate) fn missing(needs: &[Need], is_met: impl Fn(&Need) -> bool) -> Vec<Need> {
    let mut seen = BTreeSet::new();
    needs.iter().filter(|need| seen.insert(need.package) && !is_met(need)).copied().collect()
}

/// Looks at this machine for one need.
pub(crate) fn is_met(need: &Need) -> bool {
    match need.probe {
        Probe::Command(command) => host::has_command(command),
        Probe::Package => is_installed(need.package),
    }
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]);
    read(&mut query).is_ok_and(|status| status == "installed")
}

/// The command line that installs the packages, as an administrator would type it.
pub(crate) fn apt_line(needs: &[Need]) -> String {
    let names: Vec<&str> = needs.iter().map(|need| need.package).collect();
    format!("apt-get install --no-install-recommends {}", names.join(" "))
}

/// Installs the packages; fetches the package lists first if they do not know them, and once
/// more if the mirror no longer has what they name.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    let names: Vec<&str> = needs.iter().map(|need| need.package).collect();
    let mut fresh = false;
    if !all_known(&names)? {
        update()?;
        fresh = true;
    }
    let first = read(&mut install_command(&names));
    if first.is_err() && !fresh {
        update()?;
        read(&mut install_command(&names))?;
        return Ok(());
    }
    first.map(drop)
}

fn apt_get() -> Command {
    with_options(Command::new("apt-get"))
}

/// For what only fetches, and so may be broken off. apt gives up on a mirror that says nothing,
/// and not on one that says a byte now and then.
fn apt_get_in_time() -> Command {
    let mut command = Command::new("timeout");
    // In the foreground, or Ctrl-C would not reach it.
    command.args(["--foreground", "--verbose", "--kill-after=10"]);
    command.arg(PATIENCE.as_secs().to_string()).arg("apt-get");
    with_options(command)
}

fn with_options(mut command: Command) -> Command {
    // Another xtask, or unattended-upgrades, may hold the lock.
    command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

fn apt_cache() -> Command {
    let mut command = Command::new("apt-cache");
    command.env("LC_ALL", "C");
    command
}

fn install_command(names: &[&str]) -> Command {
    let mut command = apt_get();
    // Never take away what the owner of the machine installed: a conflict is theirs to solve.
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(names);
    command
}

/// Fetches the package lists. The lists' lock has no timeout of its own in apt, so waiting for
/// another apt is done here.
pub(crate) fn update() -> Result<()> {
    say::note("apt-get update");
    let patience = Instant::now() + Duration::from_secs(120);
    loop {
        match read(apt_get_in_time().arg("update")) {
            Ok(_) => return Ok(()),
            Err(error)
                if error.to_string().contains("Could not get lock")
                    && Instant::now() < patience =>
            {
                thread::sleep(Duration::from_secs(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn all_known(names: &[&str]) -> Result<bool> {
    if fs::read_dir("/var/lib/apt/lists").is_err() {
        return Ok(false);
    }
    Ok(candidates(&read(apt_cache().arg("policy").args(names))?) == names.len())
}

/// How many packages of `apt-cache policy` can be installed.
fn candidates(policy: &str) -> usize {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|candidate| *candidate != "(none)")
        .count()
}

/// The package that a meta package stands for: the first dependency which `wanted` accepts.
pub(crate) fn resolve_meta(meta: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    if !all_known(&[meta])? {
        update()?;
    }
    let depends = read(apt_cache().args(["depends", "--important", meta]))?;
    match first_dependency(&depends, wanted) {
        Some(package) => Ok(package),
        None => bail!("the package {meta} depends on nothing of that kind: {}", depends.trim()),
    }
}

fn first_dependency(depends: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| wanted(package))
        .map(str::to_owned)
}

/// What to bring when a package is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closure {
    /// It alone.
    Alone,
    /// And those that it depends on and that this machine does not have.
    WithDependencies,
}

/// Fetches a package and unpacks it into a folder. Nothing is installed, so nothing conflicts.
pub(crate) fn unpack(package: &str, closure: Closure, folder: &Path) -> Result<()> {
    let debs = folder.join("debs");
    fs::create_dir_all(debs.join("partial"))
        .with_context(|| format!("cannot create {}", debs.display()))?;
    let fetch = || {
        let mut command = apt_get_in_time();
        // As root apt fetches as the user _apt, who may not write to a checkout. No lock, because
        // apt's own state is not written.
        command.current_dir(&debs).args(["-o", "APT::Sandbox::User=root"]);
        command.args(["-o", "Debug::NoLocking=true"]);
        match closure {
            Closure::Alone => command.args(["download", package]),
            Closure::WithDependencies => command
                .args(["install", "--download-only", "--yes", "--no-install-recommends"])
                .arg("-o")
                .arg(format!("Dir::Cache::archives={}", debs.display()))
                .arg(package),
        };
        read(&mut command)
    };
    if !all_known(&[package])? || fetch().is_err() {
        update()?;
        fetch()?;
    }
    for entry in fs::read_dir(&debs)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(folder))?;
        }
    }
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed_and_only_once() {
        let needs = [TEST, BENCH].concat();
        let names: Vec<&str> =
            missing(&needs, |need| need.package == "nftables").iter().map(|n| n.package).collect();
        assert_eq!(names, ["iproute2", "redis-server", "iperf3"]);
        assert!(missing(&needs, |_| true).is_empty());
    }

    #[test]
    fn a_package_without_candidate_asks_for_fresh_lists() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n  Version table:\n\
                      cargo-web:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), 1);
    }

    #[test]
    fn a_meta_package_leads_to_the_kernel_it_names() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            first_dependency(depends, |name| name.starts_with("linux-image-")).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(first_dependency("x\n", |_| true), None);
    }
}

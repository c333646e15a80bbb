//! Finds what a task needs, says what is missing and why, and installs it if it may. The decision
//! is a plain function of facts; apt, cargo and mount are started only after it.

use std::{
    fs,
    io::{self, Write as _},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf_compiler::{self, Compiler, Lack},
    host::Host,
    packages::{self, Need},
    say,
    workspace::{Workspace, run},
};

const BPFFS: &str = "/sys/fs/bpf";

/// What the user said about installing.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Consent {
    /// Install what is missing without asking
    #[arg(long, short, global = true, conflicts_with = "no_install")]
    pub(crate) yes: bool,
    /// Install nothing: stop and say what is missing
    #[arg(long, global = true)]
    pub(crate) no_install: bool,
}

/// What a task needs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wants<'a> {
    /// A compiler for the BPF programs.
    pub(crate) compiler: bool,
    /// Packages, by the groups of `packages`.
    pub(crate) packages: &'a [&'a [Need]],
    /// The file system that pins live in.
    pub(crate) bpffs: bool,
}

/// What is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Missing {
    packages: Vec<Need>,
    rust: bool,
    linker: bool,
    bpffs: bool,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Nothing,
    Install,
    Ask,
    /// The reason, and what to do by hand.
    Refuse(String, Vec<String>),
}

/// Makes sure of what the task needs.
pub(crate) fn setup(workspace: &Workspace, consent: Consent, wants: Wants<'_>) -> Result<()> {
    let host = Host::look();
    let lack = if wants.compiler { bpf_compiler::find().err() } else { None };
    let bpffs = wants.bpffs && host.root && !bpffs_is_mounted();
    let missing = look(&host, lack, wants.packages, bpffs);
    match decide(&missing, &host, consent) {
        Decision::Nothing => {
            say::step("setup", "nothing is missing");
            return Ok(());
        }
        Decision::Refuse(reason, by_hand) => {
            announce(&missing);
            bail!("{reason}; to do it by hand:\n  {}", by_hand.join("\n  "));
        }
        Decision::Install => announce(&missing),
        Decision::Ask => {
            announce(&missing);
            if !ask()? {
                bail!(
                    "nothing was installed; to do it by hand:\n  {}",
                    by_hand(&missing, &host).join("\n  ")
                );
            }
        }
    }
    act(workspace, &missing)
}

fn look(host: &Host, lack: Option<Lack>, groups: &[&[Need]], bpffs: bool) -> Missing {
    let lack = lack.unwrap_or(Lack { rust: false, linker: false });
    let mut needs = groups.concat();
    if host.debian {
        if lack.rust {
            needs.extend(packages::BPF_RUST);
        }
        if lack.linker {
            needs.extend(packages::BPF_LINKER);
        }
    }
    // A compiler that is there and too old is met as a package, and missing all the same.
    let is_met =
        |need: &Need| packages::is_met(need) && !(lack.rust && packages::BPF_RUST.contains(need));
    Missing {
        packages: packages::missing(&needs, is_met),
        rust: lack.rust,
        linker: lack.linker,
        bpffs,
    }
}

fn decide(missing: &Missing, host: &Host, consent: Consent) -> Decision {
    if *missing == Missing::default() {
        return Decision::Nothing;
    }
    let by_apt = !missing.packages.is_empty() || missing.rust;
    let refuse = |reason: String| Decision::Refuse(reason, by_hand(missing, host));
    if consent.no_install {
        refuse("something is missing, and --no-install was given".to_owned())
    } else if (by_apt || missing.linker) && !host.debian {
        refuse(format!("something is missing, and setup installs on Debian, not on {}", host.name))
    } else if by_apt && !host.root {
        refuse("something is missing, and only root may install packages".to_owned())
    } else if host.terminal && !consent.yes {
        Decision::Ask
    } else {
        Decision::Install
    }
}

fn by_hand(missing: &Missing, host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    if !missing.packages.is_empty() {
        if host.debian {
            lines.push(packages::apt_line(&missing.packages));
        } else {
            for need in &missing.packages {
                lines.push(format!("install what Debian calls {} ({})", need.package, need.why));
            }
        }
    }
    if missing.rust || missing.linker {
        if host.debian {
            lines.push(format!(
                "cargo xtask setup   # compiles bpf-linker {} once the packages are there",
                bpf_compiler::LINKER_VERSION
            ));
        } else {
            lines.extend(bpf_compiler::by_hand());
        }
    }
    if missing.bpffs {
        lines.push(format!("mount -t bpf bpf {BPFFS}"));
    }
    lines
}

fn announce(missing: &Missing) {
    say::step("setup", "missing:");
    let mut rows: Vec<(String, String)> = missing
        .packages
        .iter()
        .map(|need| (need.package.to_owned(), need.why.to_owned()))
        .collect();
    if missing.rust && rows.is_empty() {
        rows.push(("rustc for BPF".to_owned(), "compiles the BPF programs".to_owned()));
    }
    if missing.linker {
        let why = format!("links the BPF programs; into {}", bpf_compiler::linker_root().display());
        rows.push((format!("bpf-linker {}", bpf_compiler::LINKER_VERSION), why));
    }
    if missing.bpffs {
        rows.push((format!("bpffs at {BPFFS}"), "keeps programs and maps pinned".to_owned()));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, why) in rows {
        say::note(format!("{name:<width$}  {why}"));
    }
}

fn ask() -> Result<bool> {
    eprint!("Install this? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn act(workspace: &Workspace, missing: &Missing) -> Result<()> {
    if !missing.packages.is_empty() {
        let names: Vec<&str> = missing.packages.iter().map(|need| need.package).collect();
        say::step("setup", format!("apt-get install {}", names.join(" ")));
        packages::install(&missing.packages)?;
    }
    if missing.linker {
        bpf_compiler::compile_linker(workspace)?;
    }
    if missing.bpffs {
        say::step("setup", format!("mount -t bpf bpf {BPFFS}"));
        // Another xtask may have been faster: what counts is that it is there.
        let mounted = run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]));
        if !bpffs_is_mounted() {
            mounted.context("the kernel did not mount bpffs; was it built with BPF?")?;
        }
    }
    Ok(())
}

/// Finds the BPF compiler that setup made sure of.
pub(crate) fn compiler() -> Result<Compiler> {
    bpf_compiler::find_now()
}

fn bpffs_is_mounted() -> bool {
    fs::read_to_string("/proc/mounts").is_ok_and(|mounts| has_bpffs(&mounts))
}

fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: &[Need] = packages::TEST;

    fn host(debian: bool, root: bool, terminal: bool) -> Host {
        Host { debian, name: "Testix 1".to_owned(), root, terminal }
    }

    fn consent(yes: bool, no_install: bool) -> Consent {
        Consent { yes, no_install }
    }

    fn packages_missing() -> Missing {
        Missing { packages: NFT.to_vec(), ..Missing::default() }
    }

    fn refusal(decision: Decision) -> (String, String) {
        match decision {
            Decision::Refuse(reason, by_hand) => (reason, by_hand.join("\n")),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_complete_machine_is_left_alone_whatever_was_said() {
        for no_install in [false, true] {
            let decision =
                decide(&Missing::default(), &host(false, false, false), consent(false, no_install));
            assert_eq!(decision, Decision::Nothing);
        }
    }

    #[test]
    fn root_on_debian_is_asked_on_a_terminal_only() {
        let missing = packages_missing();
        let debian = |terminal| host(true, true, terminal);
        assert_eq!(decide(&missing, &debian(true), consent(false, false)), Decision::Ask);
        assert_eq!(decide(&missing, &debian(true), consent(true, false)), Decision::Install);
        assert_eq!(decide(&missing, &debian(false), consent(false, false)), Decision::Install);
    }

    #[test]
    fn no_install_refuses_with_the_exact_list() {
        let (reason, by_hand) =
            refusal(decide(&packages_missing(), &host(true, true, false), consent(false, true)));
        assert!(reason.contains("--no-install"));
        assert_eq!(
            by_hand,
            "apt-get install --no-install-recommends iproute2 nftables redis-server"
        );
    }

    #[test]
    fn a_user_on_debian_is_told_what_root_should_type() {
        let (reason, by_hand) =
            refusal(decide(&packages_missing(), &host(true, false, true), consent(true, false)));
        assert!(reason.contains("only root"));
        assert!(by_hand.starts_with("apt-get install"));
    }

    #[test]
    fn elsewhere_the_ways_of_rustup_and_of_the_packages_are_printed() {
        let missing = Missing { rust: true, linker: true, bpffs: true, ..packages_missing() };
        let (reason, by_hand) =
            refusal(decide(&missing, &host(false, true, false), consent(true, false)));
        assert!(reason.contains("Testix 1"));
        for expected in
            ["nftables", "rust-src", "cargo install bpf-linker", "mount -t bpf bpf /sys/fs/bpf"]
        {
            assert!(by_hand.contains(expected), "{expected} is not in {by_hand}");
        }
    }

    #[test]
    fn a_linker_alone_needs_no_root() {
        let missing = Missing { linker: true, ..Missing::default() };
        assert_eq!(
            decide(&missing, &host(true, false, false), consent(false, false)),
            Decision::Install
        );
    }

    #[test]
    fn bpffs_is_seen_where_it_belongs() {
        assert!(has_bpffs("proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"));
        assert!(!has_bpffs("bpf /mnt/bpf bpf rw 0 0\nsysfs /sys sysfs rw 0 0\n"));
    }

    #[test]
    fn only_yes_is_yes() {
        assert!(is_yes("y\n") && is_yes("Yes"));
        assert!(!is_yes("\n") && !is_yes("no") && !is_yes(""));
    }
}

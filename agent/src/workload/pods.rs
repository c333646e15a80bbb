//! The network namespaces of a node's pods: found by their processes, and held open from then on.
//!
//! Nobody is asked but the kernel: a process in the pod's cgroup is in the pod's network. A
//! namespace that is held stays the same one whatever happens to the processes, so what was found
//! once is only compared, and is given up for another when all the pod's processes are in that one
//! (kubelet makes a new one when the pod's sandbox died).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    cgroup::{self, Cgroups},
    interfaces::{self, Interface},
    netns::NetNs,
};

/// A pod's network.
#[derive(Debug)]
pub struct PodNetwork {
    /// The namespace.
    pub netns: NetNs,
    inode: u64,
    /// When the process by which it was found had started (CLOCK_BOOTTIME, ns).
    pub since_ns: u64,
    /// Its interfaces, as they were last listed.
    pub(super) interfaces: Option<Vec<Interface>>,
    /// Whether packets reach it past the host's ends: once seen, it stays so.
    pub(super) is_bypassed: bool,
}

/// The networks of a node's pods, by the UIDs that their cgroups have.
#[derive(Debug)]
pub struct PodNetworks {
    root: PathBuf,
    found: BTreeMap<String, PodNetwork>,
    /// Why others were not found, where that is more than "not there".
    problems: BTreeMap<String, String>,
}

impl PodNetworks {
    /// Nothing found yet, below this mount point of cgroups.
    pub const fn new(root: PathBuf) -> Self {
        Self { root, found: BTreeMap::new(), problems: BTreeMap::new() }
    }

    /// Looks for the pods that were not found yet, and forgets those that nobody wants any more.
    /// Whether anything changed.
    pub fn look_for(&mut self, wanted: &BTreeSet<String>) -> bool {
        let changed = self.forget(|uid| !wanted.contains(uid));
        if wanted.iter().all(|uid| self.found.contains_key(uid)) {
            return changed;
        }
        self.find_all(wanted, &Cgroups::look(&self.root)) || changed
    }

    /// The same after cgroups came or went: those that are gone are forgotten, too.
    pub fn look_at_cgroups(&mut self, wanted: &BTreeSet<String>, cgroups: &Cgroups) -> bool {
        // kubelet removes a pod's cgroup when all of it has ended. To hold its namespace any longer
        // would keep its interfaces there. Where there are no cgroups at all, nothing is known.
        let is_gone = |uid: &str| !cgroups.above.is_empty() && !cgroups.pods.contains_key(uid);
        let changed = self.forget(|uid| !wanted.contains(uid) || is_gone(uid));
        self.find_all(wanted, cgroups) || changed
    }

    fn forget(&mut self, is_unwanted: impl Fn(&str) -> bool) -> bool {
        let before = self.found.len();
        self.found.retain(|uid, _| !is_unwanted(uid));
        self.problems.retain(|uid, _| !is_unwanted(uid));
        self.found.len() != before
    }

    fn find_all(&mut self, wanted: &BTreeSet<String>, cgroups: &Cgroups) -> bool {
        let mut changed = false;
        for uid in wanted {
            if let Some(paths) = cgroups.pods.get(uid)
                && !self.found.contains_key(uid)
            {
                changed |= self.find(uid, paths);
            }
        }
        changed
    }

    /// The cgroups of the moment.
    pub fn cgroups(&self) -> Cgroups {
        Cgroups::look(&self.root)
    }

    /// Their interfaces may be others by now: lists them anew. What cannot be listed is tried again when
    /// it is needed.
    pub fn list_again(&mut self) {
        for network in self.found.values_mut() {
            network.interfaces = network.netns.run(interfaces::list).and_then(|list| list).ok();
        }
    }

    /// Looks at all of them once more: they may have other namespaces.
    pub fn look_again(&mut self, wanted: &BTreeSet<String>, cgroups: &Cgroups) -> bool {
        if wanted.is_empty() {
            return self.forget(|_| true);
        }
        let mut changed = false;
        for (uid, paths) in &cgroups.pods {
            let Some(known) = self.found.get(uid) else { continue };
            let mut inodes = paths
                .iter()
                .flat_map(|path| cgroup::processes(path))
                .filter_map(|process| fs::metadata(namespace_of(process)).ok())
                .map(|metadata| metadata.ino())
                .peekable();
            let inode = known.inode;
            if inodes.peek().is_some() && !inodes.any(|other| other == inode) {
                changed |= self.find(uid, paths);
            }
        }
        self.look_at_cgroups(wanted, cgroups) || changed
    }

    /// Finds the namespace of a pod with these cgroups.
    fn find(&mut self, uid: &str, cgroups: &[PathBuf]) -> bool {
        match cgroups.iter().find_map(|path| search(path).transpose()) {
            Some(Ok(network)) => {
                self.problems.remove(uid);
                self.found.insert(uid.to_owned(), network);
                true
            }
            Some(Err(problem)) => {
                self.problems.insert(uid.to_owned(), problem.to_string());
                false
            }
            None => false,
        }
    }

    /// The network of a pod.
    pub fn get(&self, uid: &str) -> Option<&PodNetwork> {
        self.found.get(uid)
    }

    pub(super) fn get_mut(&mut self, uid: &str) -> Result<&mut PodNetwork, Option<String>> {
        let Self { found, problems, .. } = self;
        found.get_mut(uid).ok_or_else(|| problems.get(uid).cloned())
    }
}

fn namespace_of(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/ns/net"))
}

/// The network of the processes in a cgroup; `None` without any.
///
/// A container's process is in its cgroup before it enters the pod's network, and until then it is
/// in the node's: that one is never a pod's.
fn search(cgroup: &Path) -> io::Result<Option<PodNetwork>> {
    let own = fs::metadata("/proc/self/ns/net")?.ino();
    let host = fs::metadata(namespace_of(1)).map(|metadata| metadata.ino()).ok();
    let mut problem = None;
    for process in cgroup::processes(cgroup) {
        let path = namespace_of(process);
        let opened = fs::metadata(&path).and_then(|metadata| {
            let inode = metadata.ino();
            let is_pods = inode != own && Some(inode) != host;
            is_pods
                .then(|| NetNs::open(&path.to_string_lossy()).map(|netns| (netns, inode)))
                .transpose()
        });
        match opened {
            Ok(Some((netns, inode))) => {
                let since_ns = started_ns(process).unwrap_or_default();
                // If the process is gone, another may have had its number when the file was opened.
                if cgroup::processes(cgroup).contains(&process) && netns.inode() == inode {
                    return Ok(Some(PodNetwork {
                        netns,
                        inode,
                        since_ns,
                        interfaces: None,
                        is_bypassed: false,
                    }));
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                let hint = "does the agent have CAP_SYS_PTRACE and CAP_SYS_ADMIN?";
                problem = Some(io::Error::other(format!("{path}: {error}; {hint}")));
            }
        }
    }
    problem.map_or(Ok(None), Err)
}

/// When a process started (CLOCK_BOOTTIME, ns), to the clock tick: field 22 of proc_pid_stat(5).
fn started_ns(process: u32) -> Option<u64> {
    const TICKS_PER_SECOND: u64 = 100; // USER_HZ, which the kernel's interface fixes.
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let ticks: u64 = text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(ticks * (1_000_000_000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_started_before_now_and_after_boot() {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        let started = started_ns(std::process::id()).unwrap();
        assert!(
            started > 0 && started <= now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
        );
    }
}

//! The cgroups that kubelet makes for pods: which pods have processes, by names alone.
//!
//! kubelet names a pod's cgroup after its UID, below `kubepods` and a directory for the class of
//! service. With the systemd driver that is
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _ for ->.slice`, with
//! cgroupfs `kubepods/burstable/pod<uid>`; a pod of class Guaranteed lies directly below the first.
//! A node whose kubelet has a cgroup root of its own (kind) puts `kubelet` before all of it. The
//! containers' cgroups, and those that they make, lie in the pod's
//! (kubernetes/pkg/kubelet/cm/{pod_container_manager,cgroup_manager}_linux.go). All of it is the
//! same in the hierarchies of cgroup v1 and in v2.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Where the hierarchies are mounted unless told otherwise.
pub const DEFAULT_CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Of a node with several hierarchies, those to look in: kubelet or systemd is in one of them.
const HIERARCHIES: [&str; 3] = ["unified", "systemd", "memory"];
/// The file that makes a directory a cgroup.
const PROCESSES: &str = "cgroup.procs";
/// How deep pods may lie, and processes in them.
const DEEPEST: usize = 6;

/// The pods' cgroups of a moment.
#[derive(Debug, Default)]
pub struct Cgroups {
    /// By UID; a pod has one in each hierarchy.
    pub pods: BTreeMap<String, Vec<PathBuf>>,
    /// The directories in which pods' cgroups appear, or their parents do.
    pub above: Vec<PathBuf>,
}

impl Cgroups {
    /// Looks below a mount point, which is a hierarchy or has several in it.
    pub fn look(root: &Path) -> Self {
        let mut found = Self::default();
        for hierarchy in hierarchies(root) {
            found.descend(&hierarchy, 0);
        }
        found
    }

    fn descend(&mut self, directory: &Path, depth: usize) {
        self.above.push(directory.to_owned());
        for (name, path) in directories(directory) {
            if let Some(uid) = pod_uid(&name) {
                self.pods.entry(uid).or_default().push(path);
            } else if leads_to_pods(&name) && depth < DEEPEST {
                self.descend(&path, depth + 1);
            }
        }
    }
}

/// The processes in a pod's cgroup and those below it: nearest first, then by number.
///
/// What runs deeper than a container was started by one, perhaps in a namespace of its own.
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut level = vec![cgroup.to_owned()];
    for _ in 0..DEEPEST {
        let mut here: Vec<u32> = level.iter().flat_map(|path| members(path)).collect();
        here.sort_unstable();
        found.append(&mut here);
        level = level.iter().flat_map(|path| directories(path)).map(|(_, path)| path).collect();
    }
    found
}

fn members(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join(PROCESSES)).unwrap_or_default();
    // 0 stands for a process that the agent's namespace of processes does not have.
    text.lines().filter_map(|line| line.parse().ok()).filter(|process| *process != 0).collect()
}

fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if root.join(PROCESSES).exists() {
        return vec![root.to_owned()];
    }
    let paths = HIERARCHIES.iter().map(|name| root.join(name));
    paths.filter(|path| path.join(PROCESSES).exists()).collect()
}

fn directories(path: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(io::Result::ok);
    entries
        .filter(is_directory)
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

/// The UID that a cgroup's name says, if it is a pod's.
fn pod_uid(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.rsplit_once("pod")?;
    let is_pod = (before.is_empty() || before.ends_with('-')) && !uid.is_empty();
    is_pod.then(|| uid.replace('_', "-"))
}

fn leads_to_pods(name: &str) -> bool {
    name.starts_with("kube") || matches!(name, "burstable" | "besteffort")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f4a4cd5-0b4e-4a0e-9a1c-5f6f0c0a7b11";

    #[test]
    fn every_driver_and_class_names_the_pod() {
        let slice = UID.replace('-', "_");
        for name in [
            format!("pod{UID}"),
            format!("kubepods-pod{slice}.slice"),
            format!("kubepods-burstable-pod{slice}.slice"),
            format!("kubelet-kubepods-besteffort-pod{slice}.slice"),
        ] {
            assert_eq!(pod_uid(&name).as_deref(), Some(UID), "{name}");
        }
        for name in ["kubepods", "kubepods.slice", "kubepods-burstable.slice", "pod", "burstable"] {
            assert_eq!(pod_uid(name), None, "{name}");
            assert!(leads_to_pods(name) || name == "pod", "{name}");
        }
        // The hash that names a static pod.
        let hash = "5dbf2b1f5a2a4f7a2a0d4f64ab3f0bd9";
        assert_eq!(pod_uid(&format!("pod{hash}")).as_deref(), Some(hash));
    }

    #[test]
    fn pods_are_found_in_a_tree_and_others_are_not_entered() {
        let root = std::env::temp_dir().join(format!("weir-cgroup-{}", std::process::id()));
        let make = |path: &str, processes: &str| {
            let path = root.join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(PROCESSES), processes).unwrap();
        };
        make("unified", "1\n");
        make("unified/system.slice/podman.service", "7\n");
        make("unified/kubepods/burstable", "");
        let pod = format!("unified/kubepods/burstable/pod{UID}");
        make(&pod, "");
        make(&format!("{pod}/web"), "0\n12\n11\n");
        make(&format!("{pod}/web/nested"), "10\n");
        make(&format!("systemd/kubepods.slice/kubepods-pod{}.slice", "a_b"), "");
        make("systemd", "");
        let found = Cgroups::look(&root);
        assert_eq!(found.pods.keys().collect::<Vec<_>>(), [UID, "a-b"]);
        assert_eq!(processes(&found.pods[UID][0]), [11, 12, 10]);
        assert!(found.above.contains(&root.join("unified/kubepods/burstable")));
        assert!(!found.above.contains(&root.join("unified/system.slice")));
        // A hierarchy itself will do, too.
        assert_eq!(Cgroups::look(&root.join("unified")).pods.len(), 1);
        fs::remove_dir_all(&root).unwrap();
    }
}

//! What kubelet and a container runtime do for a pod, without them: cgroups with kubelet's names,
//! and in them a process that enters the pod's network namespace as a runtime's does, after it came
//! into the cgroup.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weir::lab::{Host, Lab, Namespace, Process};

use crate::agent::PATIENCE;

/// The name of the node that a test's pods are on.
pub const NODE: &str = "node-1";

/// How kubelet names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_with_underscores>.slice`
    Systemd,
    /// `kubepods/burstable/pod<uid>`
    Cgroupfs,
}

/// A part of a cgroup hierarchy that is one test's own.
#[derive(Debug)]
pub struct Kubelet {
    root: PathBuf,
    driver: Driver,
}

impl Kubelet {
    /// In the hierarchy that is mounted here; `None` where there is none.
    pub fn new(lab: &Lab, hierarchy: &str, driver: Driver) -> Option<Self> {
        let hierarchy = Path::new(hierarchy);
        if !hierarchy.join("cgroup.procs").exists() {
            return None;
        }
        sweep(hierarchy);
        let kubelet = Self { root: hierarchy.join(lab.id()), driver };
        fs::create_dir_all(kubelet.class()).expect("make cgroups");
        Some(kubelet)
    }

    /// In cgroup v2, with systemd's names, wherever it is mounted here.
    pub fn usual(lab: &Lab) -> Self {
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .iter()
            .find_map(|root| Self::new(lab, root, Driver::Systemd))
            .expect("cgroup v2 is mounted")
    }

    /// Where the agent is to look.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn class(&self) -> PathBuf {
        match self.driver {
            Driver::Systemd => self.root.join("kubepods.slice/kubepods-burstable.slice"),
            Driver::Cgroupfs => self.root.join("kubepods/burstable"),
        }
    }

    fn pod(&self, uid: &str) -> PathBuf {
        self.class().join(match self.driver {
            Driver::Systemd => {
                format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"))
            }
            Driver::Cgroupfs => format!("pod{uid}"),
        })
    }

    /// Starts a container of a pod: on the node, and then in the pod's network.
    pub fn run(&self, uid: &str, node: &Namespace, network: &Namespace) -> Container {
        let pod = self.pod(uid);
        let mut number = 0;
        let cgroup = loop {
            number += 1;
            let cgroup = pod.join(format!("container-{number}"));
            if !cgroup.exists() {
                break cgroup;
            }
        };
        fs::create_dir_all(&cgroup).expect("make a pod's cgroup");
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg("echo $$ > \"$0/cgroup.procs\" && exec nsenter --net=\"$1\" sleep 1000000")
            .arg(&cgroup)
            .arg(network.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = node.spawn(command).expect("start a container");
        Container { process: Some(process), cgroup, pod }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        remove(&self.root);
    }
}

/// A process in a pod's cgroup. It ends with its handle, and its cgroup goes with it; the pod's
/// goes with its last container.
#[derive(Debug)]
pub struct Container {
    process: Option<Process>,
    cgroup: PathBuf,
    pod: PathBuf,
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.process.take());
        // A process that was killed leaves its cgroup a moment later.
        let start = Instant::now();
        while fs::remove_dir(&self.cgroup).is_err() && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(2));
        }
        let _ = fs::remove_dir(&self.pod);
    }
}

/// A pod's object, running on [`NODE`].
pub fn pod(name: &str, uid: &str, address: &str, annotations: Value) -> Value {
    let (namespace, name) = name.split_once('/').expect("NAMESPACE/POD");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "uid": uid,
            "labels": {"app": name}, "annotations": annotations,
        },
        "spec": {
            "nodeName": NODE,
            "containers": [{
                "name": "main", "image": "none",
                "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
            }],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// The same, of a host in the lab.
pub fn pod_of(host: &Host, uid: &str, annotations: Value) -> Value {
    pod(&format!("shop/{}", host.name()), uid, &host.ipv4().to_string(), annotations)
}

/// A namespace's object.
pub fn namespace(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "annotations": annotations},
    })
}

/// A UID like those that Kubernetes gives.
pub fn uid(number: u32) -> String {
    format!("{number:08x}-1111-4222-8333-{:012x}", std::process::id())
}

/// Removes what runs that were killed have left.
fn sweep(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().filter_map(io::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix("weirlab-") else { continue };
        let owner: String = owner.chars().take_while(char::is_ascii_digit).collect();
        if !Path::new("/proc").join(owner).exists() {
            remove(&entry.path());
        }
    }
}

/// Removes a cgroup with those below it.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().filter_map(io::Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

//! Audits: which workloads are due, and what looks at their sockets showed.

use super::Engine;
use crate::{
    audit::{Looked, LookedAgain, Missing, Network, Subject, Unconfirmed, Untracked},
    config::{Location, PodLocation},
    datapath::Adopted,
};

impl Engine {
    /// The workloads whose connections are to be compared with their sockets now. Looking at them
    /// needs no engine, and takes its time.
    pub fn audits_due(&mut self) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for known in &self.workloads {
            let Some((ifindex, addresses)) = known.seen_at.clone() else { continue };
            let network = match &known.location {
                Location::Host { .. } | Location::Pod(PodLocation::Node) => None,
                Location::Namespace { netns, .. } => Some(Network::File(netns.path())),
                Location::Pod(PodLocation::Cgroup(uid)) => match self.pods.networks.get(uid) {
                    Some(network) => Some(Network::Open(network.netns.clone())),
                    None => continue,
                },
            };
            let (workload, name) = (known.identity, known.name.clone());
            subjects.push(Subject { workload, name, network, ifindex, addresses });
        }
        let now = self.clock.monotonic_ns();
        self.auditor.due(subjects, &self.datapath, now)
    }

    /// Whether there is something to audit without a look at sockets.
    pub fn audit_is_due(&self) -> bool {
        self.auditor.is_due(self.clock.monotonic_ns())
    }

    /// Takes in what looks at sockets showed. What is not tracked is to be looked at again,
    pub fn audit(&mut self, looked: Vec<Looked>) -> Vec<Untracked> {
        let now = self.clock.monotonic_ns();
        self.auditor.audit(looked, &self.datapath, now)
    }

    /// and then adopted, to be looked at once more,
    pub fn adopt(&mut self, again: Vec<LookedAgain<Missing>>) -> Vec<Unconfirmed> {
        let now = self.clock.monotonic_ns();
        self.auditor.adopt(again, &self.datapath, now)
    }

    /// and confirmed.
    pub fn confirm(&mut self, again: Vec<LookedAgain<(Missing, Adopted)>>) {
        let now = self.clock.monotonic_ns();
        self.auditor.confirm(again, &self.datapath, now);
    }
}

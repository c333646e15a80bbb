//! Pods: workloads that come and go by Kubernetes' word, and whose networks have to be found.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::Engine;
use crate::{
    config::{Location, PodLocation, Workload, evaluate_all},
    workload::PodNetworks,
};

/// The pods of this node.
#[derive(Debug)]
pub(super) struct Pods {
    /// `None` while nobody could say which there are.
    known: Option<Vec<Arc<Workload>>>,
    pub(super) networks: PodNetworks,
}

impl Default for Pods {
    /// A node without Kubernetes: it is known that there are none.
    fn default() -> Self {
        Self { known: Some(Vec::new()), networks: PodNetworks::new(PathBuf::new()) }
    }
}

impl Pods {
    pub(super) fn workloads(&self) -> Vec<Arc<Workload>> {
        self.known.clone().unwrap_or_default()
    }

    pub(super) const fn are_known(&self) -> bool {
        self.known.is_some()
    }

    /// The UIDs by which networks are found.
    fn wanted(&self) -> BTreeSet<String> {
        let pods = self.known.iter().flatten();
        let uid = |pod: &Arc<Workload>| match &pod.location {
            Location::Pod(PodLocation::Cgroup(uid)) => Some(uid.clone()),
            _ => None,
        };
        pods.filter_map(uid).collect()
    }
}

impl Engine {
    /// There are pods to come on this node, whose cgroups lie below this mount point. Until
    /// somebody says which, nothing changes in the kernel.
    #[must_use]
    pub fn with_pods(mut self, cgroups: PathBuf) -> Self {
        self.pods = Pods { known: None, networks: PodNetworks::new(cgroups) };
        self
    }

    /// These are the pods, before the first reload.
    pub fn expect_pods(&mut self, pods: Option<Vec<Arc<Workload>>>) {
        self.pods.known = pods;
        self.pods.networks.look_for(&self.pods.wanted());
    }

    /// These are the pods now.
    pub fn take_pods(&mut self, pods: Vec<Arc<Workload>>) {
        let was_known = self.pods.known.replace(pods).is_some();
        let found = self.pods.networks.look_for(&self.pods.wanted());
        let file = self.file.clone();
        let pods = self.pods.workloads();
        let workloads = file.workloads.iter().chain(pods.iter().map(Arc::as_ref));
        let evaluated = evaluate_all(&file.administrator, workloads, &self.last_good);
        let compiled = self.compile(&evaluated);
        let moved = self.hold(evaluated, compiled.tables, &compiled.overflows);
        if moved || found || !was_known {
            self.reconcile();
        } else {
            self.note_states();
        }
    }

    /// Processes have come or gone in pods: their networks may be found now, or be others.
    pub fn find_pods(&mut self) {
        self.pods.networks.look_again(&self.pods.wanted());
        self.reconcile();
    }

    /// Looks for the pods without a network, if there are any.
    pub fn find_missing_pods(&mut self) {
        if self.pods.networks.look_for(&self.pods.wanted()) {
            self.reconcile();
        }
    }
}

//! Pods: workloads that come and go by Kubernetes' word, whose networks have to be found, and whose
//! owners look at events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use weir_common::{breaker::Phase, verdict::Reason};

use super::{Engine, Known, releases::Doors};
use crate::{
    app::{Kubernetes, timing::Timing, view},
    compile::Identity,
    config::{Location, PodLocation, Workload},
    datapath::Doubt,
    kube::{Cause, Cluster, Notice, Notices, Object, Snapshot},
    policy::Place,
    workload::{PodNetworks, cgroup::Cgroups},
};

/// The pods of this node.
#[derive(Debug)]
pub(super) struct Pods {
    /// `None` on a machine without Kubernetes.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// `None` while nobody could say which there are.
    known: Option<Vec<Arc<Workload>>>,
    /// The node's labels.
    pub(super) node_labels: BTreeMap<String, String>,
    pub(super) networks: PodNetworks,
    pub(super) notices: Notices,
    /// Breakers that were seen open: their pod and their name.
    open: BTreeMap<Identity, (Object, String)>,
    /// The words that somebody may wait for.
    pub(super) doors: Doors,
    /// From the arrival of a change to the kernel.
    policies: Timing,
    /// From a pod's first process to its programs.
    attachments: Timing,
}

impl Default for Pods {
    /// A node without Kubernetes: it is known that there are none.
    fn default() -> Self {
        Self {
            cluster: None,
            known: Some(Vec::new()),
            node_labels: BTreeMap::new(),
            networks: PodNetworks::new(PathBuf::new()),
            notices: Notices::default(),
            open: BTreeMap::new(),
            doors: Doors::default(),
            policies: Timing::default(),
            attachments: Timing::default(),
        }
    }
}

impl Pods {
    pub(super) fn workloads(&self) -> Vec<Arc<Workload>> {
        self.known.clone().unwrap_or_default()
    }

    pub(super) const fn are_known(&self) -> bool {
        self.known.is_some()
    }

    /// Whether all of them were listed since the agent began.
    pub(super) fn are_complete(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.health().synced)
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

    /// Whether there may be pods on this node.
    pub(super) const fn may_come(&self) -> bool {
        self.cluster.is_some()
    }

    pub(super) fn status(&self) -> Option<view::KubernetesStatus> {
        let cluster = self.cluster.as_ref()?;
        let health = cluster.health();
        let posted = cluster.posted();
        Some(view::KubernetesStatus {
            node: health.node,
            pods: health.pods as u64,
            synced: health.synced,
            failure: health.failure,
            relists: health.relists,
            errors: health.errors,
            events_sent: posted.sent.load(Ordering::Relaxed),
            events_lost: posted.lost.load(Ordering::Relaxed) + self.notices.withheld,
            policy_seconds: self.policies.view(),
            attach_seconds: self.attachments.view(),
        })
    }

    /// A pod's programs are attached, which was not so before.
    pub(super) fn note_attached(&mut self, location: &Location, began_ns: u64, now_ns: u64) {
        let Location::Pod(PodLocation::Cgroup(uid)) = location else { return };
        let Some(since) = self.networks.get(uid).map(|network| network.since_ns) else { return };
        // Of others, nobody knows what this agent would have needed.
        if since >= began_ns {
            self.attachments.add(Duration::from_nanos(now_ns.saturating_sub(since)));
        }
    }
}

impl Engine {
    /// There are pods on this node. Until somebody says which, nothing changes in the kernel.
    #[must_use]
    pub fn with_pods(mut self, cluster: Arc<Cluster>, kubernetes: &Kubernetes) -> Self {
        let Snapshot { pods: known, node_labels, .. } = cluster.take();
        let networks = PodNetworks::new(kubernetes.cgroups.clone());
        let (cluster, doors) = (Some(cluster), Doors::of(kubernetes));
        self.pods = Pods { cluster, known, node_labels, networks, doors, ..Pods::default() };
        self.pods.networks.look_for(&self.pods.wanted());
        self
    }

    /// Takes in what is known of pods by now.
    pub fn take_pods(&mut self) {
        let Some(snapshot) = self.pods.cluster.as_ref().map(|cluster| cluster.take()) else {
            return;
        };
        let Some(pods) = snapshot.pods else { return };
        let was_known = self.pods.known.replace(pods).is_some();
        self.pods.node_labels = snapshot.node_labels;
        let found = self.pods.networks.look_for(&self.pods.wanted());
        let file = self.file.clone();
        let pods = self.pods.workloads();
        let evaluated = self.evaluate(&file, &pods);
        let compiled = self.compile(&evaluated);
        let moved = self.hold(evaluated, compiled);
        if let Some(since) = snapshot.since {
            self.pods.policies.add(since.elapsed());
        }
        if moved || found || !was_known {
            self.reconcile();
        } else {
            self.note_states();
        }
    }

    /// Processes have come or gone in pods: networks may be found now, or be gone.
    pub fn find_pods(&mut self, cgroups: &Cgroups) {
        let wanted = self.pods.wanted();
        // One whose network is another by now has lost the interface that was found.
        let is_lost = |known: &Known| match &known.location {
            Location::Pod(PodLocation::Cgroup(uid)) => {
                known.attached.is_err() && self.pods.networks.get(uid).is_some()
            }
            _ => false,
        };
        let changed = match self.workloads.iter().any(is_lost) {
            true => self.pods.networks.look_again(&wanted, cgroups),
            false => self.pods.networks.look_at_cgroups(&wanted, cgroups),
        };
        if changed {
            self.reconcile();
        }
    }

    /// Pods may have other networks, and other interfaces there, without anybody having said so.
    pub fn check_pods(&mut self) {
        self.datapath.doubt(Doubt::All);
        let cgroups = self.pods.networks.cgroups();
        self.pods.networks.look_again(&self.pods.wanted(), &cgroups);
        self.pods.networks.list_again();
        self.reconcile();
    }

    /// Looks for the pods without a network, if there are any.
    pub fn find_missing_pods(&mut self) {
        // What an agent before this one knew will do, when the API server does not answer in time.
        if !self.pods.are_known() {
            self.take_pods();
        }
        if self.pods.networks.look_for(&self.pods.wanted()) {
            self.reconcile();
        }
    }

    /// Says on the objects what is wrong with their annotations.
    pub(super) fn note_bad_values(&mut self) {
        let now = self.clock.monotonic_ns();
        for known in &self.workloads {
            let Some(pod) = object(known) else { continue };
            for problem in known.problems.iter().filter(|problem| problem.is_error()) {
                let Place::Annotation { object, .. } = &problem.place else { continue };
                let about = match object.strip_prefix("namespace ") {
                    Some(name) => Object::Namespace { name: name.to_owned() },
                    None => pod.clone(),
                };
                let (cause, topic) =
                    (Cause::BadValue, format!("{}: {}", problem.place, problem.what));
                self.pods.notices.say(about, cause, &topic, now, || problem.to_string());
            }
        }
    }

    /// Says on a pod that it refuses connections, or would.
    pub(super) fn note_refusal(&mut self, workload: Identity, refusal: &view::Refusal, cell: u32) {
        let Some(known) = self.workloads.iter().find(|known| known.identity == workload) else {
            return;
        };
        let Some(pod) = object(known) else { return };
        let now = self.clock.monotonic_ns();
        let view::Refusal { limit, value, source, destination, verdict, .. } = refusal;
        let refuses = if verdict == "shadow" { "would refuse" } else { "refuses" };
        let is = |reason: Reason| refusal.reason == reason.name();
        if is(Reason::BreakerOpen) || is(Reason::BreakerProbing) {
            let Some(identity) = self.datapath.limit_of_cell(cell) else { return };
            let opened = self.pods.open.insert(identity, (pod.clone(), limit.clone())).is_none();
            let cause = Cause::BreakerOpened;
            if opened {
                self.pods.notices.say(pod, cause, limit, now, || {
                    format!("`{limit}: {value}` is open and {refuses} connections, like {source} to {destination}")
                });
            }
            return;
        }
        self.pods.notices.say(pod, Cause::LimitReached, limit, now, || {
            format!("`{limit}: {value}` {refuses} connections, like {source} to {destination}; said once an hour")
        });
    }

    /// Says which breakers have closed, and hands out what is to be said.
    pub fn notices(&mut self) -> VecDeque<Notice> {
        let now = self.clock.monotonic_ns();
        let datapath = &self.datapath;
        let mut closed = Vec::new();
        self.pods.open.retain(|identity, what| {
            let Some(cell) = datapath.cell(*identity) else { return false };
            let is_closed = cell.breaker.is_some_and(|breaker| breaker.phase == Phase::Closed);
            if is_closed {
                closed.push(what.clone());
            }
            !is_closed
        });
        for (pod, limit) in closed {
            let note = || format!("`{limit}` is closed again: connections pass");
            self.pods.notices.say(pod, Cause::BreakerClosed, &limit, now, note);
        }
        self.pods.notices.take()
    }
}

/// The object of a pod.
pub(super) fn object(known: &Known) -> Option<Object> {
    let is_pod = matches!(known.location, Location::Pod(_));
    let (namespace, name) = known.name.split_once('/').filter(|_| is_pod)?;
    let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), known.key.clone());
    Some(Object::Pod { namespace, name, uid })
}

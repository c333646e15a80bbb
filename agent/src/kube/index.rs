//! Pods and namespaces of a moment, and the workloads that they are: pure.
//!
//! Lists and changes come in as they come from the API server, [`Step`] by step: a list replaces what
//! was known as a whole, single changes come in between. Until a list is complete, what was known
//! before stands.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    facts::{NamespaceFacts, NodeFacts, PodFacts},
    release::{Gate, Gated, Taints},
};
use crate::config::{Namespace, Workload};

/// Objects of one kind, by a key that no two of them ever share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct List<T> {
    known: BTreeMap<String, T>,
    /// A list that is not complete yet.
    #[serde(skip)]
    arriving: Option<BTreeMap<String, T>>,
    /// Whether what is known came from a complete list of this process's time.
    #[serde(skip)]
    listed: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), arriving: None, listed: false }
    }
}

/// What the API server says of objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// A list begins.
    Begin,
    /// An item of it, with its key.
    Item(String, T),
    /// The list is complete.
    End,
    /// An object is like this now.
    Set(String, T),
    /// An object is gone.
    Remove(String),
    /// It is not about anything that is known here.
    Nothing,
}

impl<T: PartialEq> List<T> {
    /// Takes a step; the keys of what it changes.
    fn step(&mut self, step: Step<T>) -> Vec<String> {
        let changed = |key: String, is_news: bool| if is_news { vec![key] } else { Vec::new() };
        match step {
            Step::Begin => self.arriving = Some(BTreeMap::new()),
            Step::Item(key, value) => {
                self.arriving.get_or_insert_default().insert(key, value);
            }
            Step::End => return self.end(),
            Step::Set(key, value) => {
                let is_news = self.known.get(&key) != Some(&value);
                self.known.insert(key.clone(), value);
                return changed(key, is_news);
            }
            Step::Remove(key) => {
                let is_news = self.known.remove(&key).is_some();
                return changed(key, is_news);
            }
            Step::Nothing => {}
        }
        Vec::new()
    }

    fn end(&mut self) -> Vec<String> {
        let arrived = self.arriving.take().unwrap_or_default();
        self.listed = true;
        let before = std::mem::replace(&mut self.known, arrived);
        let differs = |key: &&String| before.get(*key) != self.known.get(*key);
        let new = self.known.keys().filter(|key| !before.contains_key(*key));
        before.keys().chain(new).filter(differs).cloned().collect()
    }
}

/// All that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Index {
    /// By UID.
    pods: List<PodFacts>,
    /// By name.
    namespaces: List<NamespaceFacts>,
    /// By name: this node, and no other.
    nodes: List<NodeFacts>,
    /// What is made of them, by UID.
    #[serde(skip)]
    workloads: BTreeMap<String, Arc<Workload>>,
}

impl Index {
    /// Takes in what is said of pods, by UID; whether that changes any workload.
    pub(super) fn pods(&mut self, step: Step<PodFacts>) -> bool {
        // Who was ready once has been ready, whatever it is now.
        let known = |uid: &str| self.pods.known.get(uid).is_some_and(|pod| pod.was_ready);
        let since = |uid: &str, pod: PodFacts| {
            let was_ready = pod.was_ready || known(uid);
            PodFacts { was_ready, ..pod }
        };
        let step = match step {
            Step::Item(uid, pod) => Step::Item(uid.clone(), since(&uid, pod)),
            Step::Set(uid, pod) => Step::Set(uid.clone(), since(&uid, pod)),
            step => step,
        };
        let changed = self.pods.step(step);
        changed.iter().for_each(|uid| self.make(uid));
        !changed.is_empty()
    }

    /// Takes in what is said of namespaces, by name; whether that changes any workload.
    pub(super) fn namespaces(&mut self, step: Step<NamespaceFacts>) -> bool {
        let changed = self.namespaces.step(step);
        let is_in = |pod: &&PodFacts| changed.contains(&pod.namespace);
        let pods: Vec<String> =
            self.pods.known.values().filter(is_in).map(|pod| pod.uid.clone()).collect();
        pods.iter().for_each(|uid| self.make(uid));
        !pods.is_empty()
    }

    /// Takes in what is said of the node, by name; whether that may change any workload.
    pub(super) fn nodes(&mut self, step: Step<NodeFacts>) -> bool {
        let labels = self.node_labels();
        self.nodes.step(step);
        self.node_labels() != labels
    }

    /// The labels of the node.
    pub(super) fn node_labels(&self) -> BTreeMap<String, String> {
        self.nodes.known.values().next().map(|node| node.labels.clone()).unwrap_or_default()
    }

    /// The taints of the node.
    pub(super) fn taints(&self) -> Option<&Taints> {
        self.nodes.known.values().next().map(|node| &node.taints)
    }

    /// The pods that wait for the agent's word.
    pub(super) fn gated(&self) -> Vec<Gated> {
        let gated = |pod: &PodFacts| {
            let gate = pod.gate.clone().filter(|gate| *gate != Gate::Passed)?;
            let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
            Some(Gated { namespace, name, uid: pod.uid.clone(), gate })
        };
        self.pods.known.values().filter_map(gated).collect()
    }

    /// Makes all workloads anew, after the index was read from a file.
    pub(super) fn restore(&mut self) {
        let pods: Vec<String> = self.pods.known.keys().cloned().collect();
        pods.iter().for_each(|uid| self.make(uid));
    }

    fn make(&mut self, uid: &str) {
        let Some(pod) = self.pods.known.get(uid) else {
            self.workloads.remove(uid);
            return;
        };
        // One of the same namespace has its words read already, if they are the same.
        let layer = self.namespaces.known.get(&pod.namespace).map(NamespaceFacts::layer);
        let shared = layer.map(|layer| self.shared(layer));
        self.workloads.insert(uid.to_owned(), Arc::new(pod.workload(shared)));
    }

    fn shared(&self, layer: Namespace) -> Arc<Namespace> {
        let known = self.workloads.values().filter_map(|workload| workload.namespace.as_ref());
        let same = known.into_iter().find(|known| ***known == layer).cloned();
        same.unwrap_or_else(|| Arc::new(layer))
    }

    /// Whether everything was listed since this process began.
    pub(super) const fn is_complete(&self) -> bool {
        self.pods.listed && self.namespaces.listed && self.nodes.listed
    }

    /// How many pods there are.
    pub(super) fn len(&self) -> usize {
        self.workloads.len()
    }

    /// The workloads, by name.
    pub(super) fn workloads(&self) -> Vec<Arc<Workload>> {
        let mut all: Vec<_> = self.workloads.values().cloned().collect();
        all.sort_by(|a, b| (&a.name, &a.identity).cmp(&(&b.name, &b.identity)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str, limit: &str) -> PodFacts {
        PodFacts {
            uid: uid.to_owned(),
            cgroup: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            annotations: [("weir.dev/connections".to_owned(), limit.to_owned())].into(),
            ..PodFacts::default()
        }
    }

    fn set(index: &mut Index, pod: PodFacts) -> bool {
        index.pods(Step::Set(pod.uid.clone(), pod))
    }

    fn list(index: &mut Index, pods: Vec<PodFacts>) -> bool {
        assert!(!index.pods(Step::Begin));
        for pod in pods {
            assert!(!index.pods(Step::Item(pod.uid.clone(), pod)));
        }
        index.pods(Step::End)
    }

    fn told(index: &Index) -> Vec<(String, String)> {
        let all = index.workloads();
        all.iter().map(|it| (it.name.clone(), it.policy[0].text.clone())).collect()
    }

    fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
        rows.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_list_replaces_what_was_known_when_it_is_complete() {
        let mut index = Index::default();
        assert!(list(&mut index, vec![pod("1", "web", "1/s"), pod("2", "db", "2/s")]));
        assert!(!list(&mut index, vec![pod("1", "web", "1/s"), pod("2", "db", "2/s")]));
        // A relist that breaks off changes nothing.
        index.pods(Step::Begin);
        index.pods(Step::Item("3".to_owned(), pod("3", "api", "3/s")));
        assert_eq!(told(&index), pairs(&[("shop/db", "2/s"), ("shop/web", "1/s")]));
        assert!(list(&mut index, vec![pod("2", "db", "9/s")]));
        assert_eq!(told(&index), pairs(&[("shop/db", "9/s")]));
    }

    #[test]
    fn a_recreated_pod_is_another_one() {
        let mut index = Index::default();
        assert!(set(&mut index, pod("1", "web-0", "1/s")));
        assert!(!set(&mut index, pod("1", "web-0", "1/s")));
        let before = index.workloads()[0].identity.clone();
        assert!(index.pods(Step::Remove("1".to_owned())));
        assert!(set(&mut index, pod("2", "web-0", "1/s")));
        assert_ne!(index.workloads()[0].identity, before);
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn a_pod_that_was_ready_has_been_ready() {
        let mut index = Index::default();
        let ready = PodFacts { was_ready: true, ..pod("1", "web", "1/s") };
        let is_armed = |index: &Index| index.workloads()[0].is_armed;
        set(&mut index, pod("1", "web", "1/s"));
        assert!(!is_armed(&index));
        assert!(set(&mut index, ready));
        assert!(!set(&mut index, pod("1", "web", "1/s")));
        assert!(!list(&mut index, vec![pod("1", "web", "1/s")]));
        assert!(is_armed(&index));
        // The next one of this name is another pod.
        list(&mut index, vec![pod("2", "web", "1/s")]);
        assert!(!is_armed(&index));
    }

    #[test]
    fn a_namespaces_words_reach_its_pods_and_no_others() {
        let mut index = Index::default();
        let other = PodFacts { namespace: "bank".to_owned(), ..pod("2", "db", "2/s") };
        list(&mut index, vec![pod("1", "web", "1/s"), other]);
        let shop = |value: &str| {
            let annotations = [("weir.dev/mode".to_owned(), value.to_owned())].into();
            Step::Set("shop".to_owned(), NamespaceFacts { name: "shop".to_owned(), annotations })
        };
        assert!(index.namespaces(shop("shadow")));
        assert!(!index.namespaces(shop("shadow")));
        let words = |index: &Index| -> Vec<usize> {
            let all = index.workloads();
            all.iter().map(|it| it.namespace.as_ref().unwrap().policy.len()).collect()
        };
        assert_eq!(words(&index), [0, 1], "bank/db, shop/web");
        // A pod that comes later has them, too.
        set(&mut index, pod("3", "api", "3/s"));
        assert_eq!(words(&index), [0, 1, 1]);
        assert!(!index.is_complete(), "namespaces were not listed");
    }

    #[test]
    fn the_nodes_labels_are_known_and_its_heartbeats_are_no_news() {
        let mut index = Index::default();
        let node = |zone: &str| NodeFacts {
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            ..NodeFacts::default()
        };
        assert!(index.node_labels().is_empty());
        assert!(index.nodes(Step::Set("node-1".to_owned(), node("a"))));
        assert!(!index.nodes(Step::Set("node-1".to_owned(), node("a"))));
        assert!(index.nodes(Step::Set("node-1".to_owned(), node("b"))));
        assert_eq!(index.node_labels(), node("b").labels);
    }

    #[test]
    fn what_was_kept_is_the_same_after_a_restart() {
        let mut index = Index::default();
        list(&mut index, vec![pod("1", "web", "1/s")]);
        let text = serde_json::to_vec(&index).unwrap();
        let mut after: Index = serde_json::from_slice(&text).unwrap();
        assert_eq!(after.len(), 0);
        after.restore();
        assert_eq!(told(&after), told(&index));
        assert!(!after.is_complete(), "nobody has asked the API server yet");
    }
}

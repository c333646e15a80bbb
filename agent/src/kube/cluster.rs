//! The index between those who feed it and the engine that takes from it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tracing::warn;

use super::{
    index::Index,
    post::Posted,
    release::{Gated, Taints},
};
use crate::{
    app::memory::{self, Keeper},
    config::Workload,
};

/// A watch that fails is tried again within a minute. One that has not failed for longer stands,
/// though nothing may have happened since that it could tell of.
const RECOVERED: Duration = Duration::from_secs(90);

/// For so long what an agent before this one knew is not acted upon: the API server mostly answers
/// first. A pod that came after that was written is not among it, and has limits and counts in the
/// kernel all the same. Who went by the file would take them away.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// What is known of the pods, and how.
#[derive(Debug)]
pub struct Cluster {
    node: String,
    file: Mutex<Keeper>,
    state: Mutex<State>,
    changed: Notify,
    posted: Arc<Posted>,
}

#[derive(Debug)]
struct State {
    index: Index,
    known: Known,
    /// When the first change arrived that the engine has not taken.
    since: Option<Instant>,
    /// Whether the index is newer than its file.
    is_newer: bool,
    relists: u64,
    errors: u64,
    /// Why what is watched was not heard last, and when.
    failures: BTreeMap<&'static str, (Instant, String)>,
}

/// Whether the index says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nobody has said anything.
    Nothing,
    /// It was kept by an agent before; this one has asked since then.
    Kept(Instant),
    /// It was listed.
    Listed,
}

/// What the engine takes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The pods; `None` while nothing is known of them that could be acted upon.
    pub pods: Option<Vec<Arc<Workload>>>,
    /// The labels of the node.
    pub node_labels: BTreeMap<String, String>,
    /// When the first of the changes arrived, if any did.
    pub since: Option<Instant>,
}

/// How it stands with the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The node.
    pub node: String,
    /// Pods of this node.
    pub pods: usize,
    /// Whether all pods and namespaces were listed since the agent began.
    pub synced: bool,
    /// Lists after the first: the API server had forgotten what was last seen (410), mostly.
    pub relists: u64,
    /// Requests that failed, and watches that broke.
    pub errors: u64,
    /// Why the API server cannot be asked now, if it cannot.
    pub failure: Option<String>,
}

impl Cluster {
    /// What an agent before this one knew of the node's pods, from the file where it kept it.
    pub fn remembered(node: String, path: PathBuf) -> Self {
        let (index, known) = match memory::load::<Index>(&path) {
            Ok(Some(mut index)) => {
                index.restore();
                (index, Known::Kept(Instant::now()))
            }
            Ok(None) => (Index::default(), Known::Nothing),
            Err(problem) => {
                warn!(path = %path.display(), error = %problem, "the pods that were known last are not known any more");
                (Index::default(), Known::Nothing)
            }
        };
        let state = State {
            index,
            known,
            since: None,
            is_newer: false,
            relists: 0,
            errors: 0,
            failures: BTreeMap::new(),
        };
        Self {
            node,
            file: Mutex::new(Keeper::new(path)),
            state: Mutex::new(state),
            changed: Notify::new(),
            posted: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node whose pods these are.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What became of notices.
    pub const fn posted(&self) -> &Arc<Posted> {
        &self.posted
    }

    /// Waits for a change that was not taken yet.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what is known now.
    pub fn take(&self) -> Snapshot {
        let mut state = self.state();
        let is_known = match state.known {
            Known::Nothing => false,
            Known::Kept(since) => since.elapsed() >= FIRST_ANSWER,
            Known::Listed => true,
        };
        Snapshot {
            since: if is_known { state.since.take() } else { None },
            pods: is_known.then(|| state.index.workloads()),
            node_labels: state.index.node_labels(),
        }
    }

    /// What the node is tainted with, and which of its pods wait for the agent's word.
    pub fn waiting(&self) -> (Taints, Vec<Gated>) {
        let state = self.state();
        (state.index.taints().cloned().unwrap_or_default(), state.index.gated())
    }

    /// Changes the index by what the API server said. `change` tells whether that changes any
    /// workload.
    pub(super) fn update(&self, change: impl FnOnce(&mut Index) -> bool) {
        let mut state = self.state();
        let mut is_news = change(&mut state.index);
        if state.index.is_complete() && state.known != Known::Listed {
            (state.known, is_news) = (Known::Listed, true);
        }
        if is_news {
            state.since.get_or_insert_with(Instant::now);
            state.is_newer = true;
            self.changed.notify_one();
        }
    }

    /// The API server has told something of this.
    pub(super) fn heard(&self, what: &str) {
        self.state().failures.remove(what);
    }

    pub(super) fn listed_again(&self) {
        self.state().relists += 1;
    }

    pub(super) fn failed(&self, what: &'static str, why: String) {
        let mut state = self.state();
        state.errors += 1;
        state.failures.insert(what, (Instant::now(), why));
    }

    /// How it stands with the API server.
    pub fn health(&self) -> Health {
        let state = self.state();
        let failures = state.failures.iter().filter(|(_, (at, _))| at.elapsed() < RECOVERED);
        let failures: Vec<_> = failures.map(|(what, (_, why))| format!("{what}: {why}")).collect();
        Health {
            node: self.node.clone(),
            pods: state.index.len(),
            synced: state.index.is_complete(),
            relists: state.relists,
            errors: state.errors,
            failure: (!failures.is_empty()).then(|| failures.join("; ")),
        }
    }

    /// Keeps what is known for the next agent, if it is news.
    pub fn keep(&self) {
        let index = {
            let mut state = self.state();
            if !std::mem::take(&mut state.is_newer) || state.known == Known::Nothing {
                return;
            }
            state.index.clone()
        };
        let is_kept = self.file.lock().unwrap_or_else(PoisonError::into_inner).keep(&index);
        if !is_kept {
            self.state().is_newer = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_watch_hears_says_nothing_of_another() {
        let cluster = Cluster::remembered("node-1".to_owned(), PathBuf::from("/nonexistent/pods"));
        cluster.failed("pods", "forbidden".to_owned());
        cluster.failed("namespaces", "refused".to_owned());
        cluster.heard("namespaces");
        assert_eq!(cluster.health().failure.as_deref(), Some("pods: forbidden"));
        assert_eq!(cluster.health().errors, 2);
        cluster.heard("pods");
        assert_eq!(cluster.health().failure, None);
    }
}

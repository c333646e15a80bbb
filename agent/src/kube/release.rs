//! Who waits for the agent before work begins, and its word that lets them go: a node with the
//! startup taint, and pods that name [`GATE`] among their readiness gates.
//!
//! What is wanted is said again and again, and what the API server shows is compared with it: nothing
//! has to be remembered over a restart. [`Releases`] is pure; [`Releaser`] asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node, NodeSpec, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::cluster::Cluster;
use crate::causes::with_causes;

/// The condition of pods that says whether their policy holds.
pub const GATE: &str = "weir.dev/enforced";

/// How long until what was asked is asked again, if nothing has come of it.
const AGAIN: Duration = Duration::from_secs(10);
/// For so long a pod is not enforced before that is said: at first, each of them is.
const HELD: Duration = Duration::from_secs(3);
/// Words that wait for the API server. What finds no room is asked again.
const WAITING: usize = 256;

/// A node's taints as they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taints {
    /// The node's `resourceVersion`: who removes the taint removes it from this one alone.
    version: String,
    /// All taints, as the API server has them.
    all: Vec<Value>,
}

impl Taints {
    /// What a node is tainted with.
    pub(super) fn of(node: &Node) -> Self {
        let all = node.spec.as_ref().and_then(|NodeSpec { taints, .. }| taints.as_ref());
        let all: Vec<Value> = all.into_iter().flatten().flat_map(serde_json::to_value).collect();
        // Without any the version does not matter.
        let version = if all.is_empty() { None } else { node.metadata.resource_version.clone() };
        Self { version: version.unwrap_or_default(), all }
    }

    /// Whether one has this key.
    pub fn has(&self, key: &str) -> bool {
        self.all.iter().any(|taint| taint["key"] == key)
    }

    /// A change of the node to one without them, if it is still the node that was seen.
    fn without(&self, key: &str) -> Value {
        let rest: Vec<_> = self.all.iter().filter(|taint| taint["key"] != key).collect();
        json!({"metadata": {"resourceVersion": self.version}, "spec": {"taints": rest}})
    }
}

/// How a pod's gate stands, as the API server shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Nobody has said anything.
    Unset,
    /// It is not enforced, for this reason.
    Held(String),
    /// It was let go.
    Passed,
}

impl Gate {
    /// The gate of a pod; `None` when it names none.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let gates = pod.spec.as_ref()?.readiness_gates.as_deref().unwrap_or_default();
        gates.iter().find(|gate| gate.condition_type == GATE)?;
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        Some(match conditions.iter().find(|condition| condition.type_ == GATE) {
            None => Self::Unset,
            Some(condition) if condition.status == "True" => Self::Passed,
            Some(condition) => Self::Held(condition.message.clone().unwrap_or_default()),
        })
    }
}

/// A pod whose gate is not passed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// How its gate stands.
    pub gate: Gate,
}

/// The agent's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The node has no startup taint any more.
    Node(Taints),
    /// A pod's policy holds, or not.
    Pod {
        /// The pod.
        pod: Gated,
        /// Why, in one word of the API's form: `Enforced`, `NoPolicy`.
        reason: String,
        /// Why it does not; `None` when it does.
        held: Option<String>,
    },
}

impl Release {
    fn key(&self) -> &str {
        match self {
            // No UID.
            Self::Node(_) => "",
            Self::Pod { pod, .. } => &pod.uid,
        }
    }
}

/// What was asked lately.
#[derive(Debug, Default)]
pub struct Releases {
    asked: BTreeMap<String, Asked>,
}

#[derive(Debug)]
struct Asked {
    what: Release,
    since_ns: u64,
    asked_ns: Option<u64>,
}

impl Releases {
    /// Of what is wanted, what is to be asked now.
    pub fn due(&mut self, wanted: Vec<Release>, now_ns: u64) -> Vec<Release> {
        let keys: BTreeSet<&str> = wanted.iter().map(Release::key).collect();
        self.asked.retain(|key, _| keys.contains(key.as_str()));
        let mut due = Vec::new();
        for what in wanted {
            let asked = self.asked.entry(what.key().to_owned()).or_insert_with(|| Asked {
                what: what.clone(),
                since_ns: now_ns,
                asked_ns: None,
            });
            if asked.what != what {
                *asked = Asked { what: what.clone(), since_ns: now_ns, asked_ns: None };
            }
            let lasts = |since_ns: u64, time: Duration| {
                now_ns.saturating_sub(since_ns) >= time.as_nanos() as u64
            };
            let is_known = match &what {
                Release::Pod { pod, held: Some(why), .. } => {
                    pod.gate == Gate::Held(why.clone()) || !lasts(asked.since_ns, HELD)
                }
                Release::Pod { held: None, .. } | Release::Node(_) => false,
            };
            if is_known || asked.asked_ns.is_some_and(|asked_ns| !lasts(asked_ns, AGAIN)) {
                continue;
            }
            asked.asked_ns = Some(now_ns);
            due.push(what);
        }
        due
    }
}

/// Where words go.
#[derive(Clone, Debug)]
pub struct Releaser {
    queue: mpsc::Sender<Release>,
}

impl Releaser {
    /// Asks in the name of a node's agent. `taint` is the startup taint's key.
    pub fn start(client: Client, cluster: Arc<Cluster>, taint: Option<String>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(client, cluster, taint.unwrap_or_default(), waiting));
        Self { queue }
    }

    /// Asks for it, soon; if too much is waiting, it is wanted again later.
    pub fn ask(&self, release: Release) {
        let _ = self.queue.try_send(release);
    }
}

async fn run(
    client: Client,
    cluster: Arc<Cluster>,
    taint: String,
    mut waiting: mpsc::Receiver<Release>,
) {
    let params = PatchParams::default();
    while let Some(release) = waiting.recv().await {
        let (what, result) = match &release {
            Release::Node(taints) => {
                let nodes: Api<Node> = Api::all(client.clone());
                let patch = Patch::Merge(taints.without(&taint));
                let result = nodes.patch(cluster.node(), &params, &patch).await;
                ("the startup taint", result.map(drop))
            }
            Release::Pod { pod, reason, held } => {
                let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
                let patch = Patch::Strategic(condition(&pod.uid, reason, held.as_deref()));
                (
                    "a pod's readiness gate",
                    pods.patch_status(&pod.name, &params, &patch).await.map(drop),
                )
            }
        };
        match result {
            Ok(()) => {
                cluster.heard(what);
                match release {
                    Release::Node(_) => info!(taint, "removed the node's startup taint"),
                    Release::Pod { pod, reason, .. } => {
                        info!(
                            namespace = pod.namespace,
                            pod = pod.name,
                            reason,
                            "said whether the pod's policy holds"
                        );
                    }
                }
            }
            // It has changed meanwhile, or is gone: what is so now is heard by the watch.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
            Err(error) => {
                let why = with_causes(&error);
                warn!(what, error = why, "not written; it is tried again");
                cluster.failed(what, why);
            }
        }
    }
}

/// A pod with the condition, if it is still the one of this UID.
fn condition(uid: &str, reason: &str, held: Option<&str>) -> Value {
    json!({
        "metadata": {"uid": uid},
        "status": {"conditions": [{
            "type": GATE,
            "status": if held.is_none() { "True" } else { "False" },
            "reason": reason,
            "message": held.unwrap_or_default(),
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn pod(gate: Gate) -> Gated {
        let text = str::to_owned;
        Gated { namespace: text("shop"), name: text("web"), uid: text("u-1"), gate }
    }

    fn passed(gate: Gate) -> Release {
        Release::Pod { pod: pod(gate), reason: "Enforced".to_owned(), held: None }
    }

    fn held(gate: Gate, why: &str) -> Release {
        let (reason, held) = ("NotEnforced".to_owned(), Some(why.to_owned()));
        Release::Pod { pod: pod(gate), reason, held }
    }

    #[test]
    fn what_holds_is_said_at_once_and_again_until_it_is_seen() {
        let mut releases = Releases::default();
        let mut due = |second: u64| releases.due(vec![passed(Gate::Unset)], second * SECOND).len();
        assert_eq!([1, 2, 10, 11, 12, 21].map(&mut due), [1, 0, 0, 1, 0, 1]);
        assert_eq!(releases.due(Vec::new(), 22 * SECOND), []);
        assert!(releases.asked.is_empty());
    }

    #[test]
    fn what_does_not_hold_is_said_when_it_lasts_and_once() {
        let mut releases = Releases::default();
        let mut due =
            |release: Release, second: u64| releases.due(vec![release], second * SECOND).len();
        assert_eq!(due(held(Gate::Unset, "no process"), 1), 0);
        assert_eq!(due(held(Gate::Unset, "no process"), 3), 0);
        assert_eq!(due(held(Gate::Unset, "no process"), 4), 1);
        let seen = || Gate::Held("no process".to_owned());
        assert_eq!(
            [due(held(seen(), "no process"), 20), due(held(seen(), "no process"), 40)],
            [0, 0]
        );
        assert_eq!(due(held(seen(), "no interface"), 41), 0);
        assert_eq!(due(held(seen(), "no interface"), 44), 1);
        assert_eq!(due(passed(seen()), 45), 1);
    }

    #[test]
    fn other_taints_stay_and_a_node_that_has_changed_is_not_written() {
        let node = json!({
            "metadata": {"name": "node-1", "resourceVersion": "7"},
            "spec": {"taints": [
                {"key": "a", "effect": "NoSchedule"},
                {"key": "wait", "effect": "NoSchedule"},
                {"key": "wait", "effect": "NoExecute"},
            ]},
        });
        let taints = Taints::of(&serde_json::from_value(node).unwrap());
        assert!(taints.has("wait") && !taints.has("b"));
        let patch = taints.without("wait");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["spec"]["taints"], json!([{"key": "a", "effect": "NoSchedule"}]));
    }

    #[test]
    fn only_pods_that_name_the_gate_wait() {
        let gate = |spec: Value, conditions: Value| {
            let pod = json!({"spec": spec, "status": {"conditions": conditions}});
            Gate::of(&serde_json::from_value(pod).unwrap())
        };
        let named = || json!({"containers": [], "readinessGates": [{"conditionType": GATE}]});
        let said = |status: &str| json!([{"type": GATE, "status": status, "message": "why"}]);
        assert_eq!(gate(json!({"containers": []}), said("True")), None);
        assert_eq!(gate(named(), json!([])), Some(Gate::Unset));
        assert_eq!(gate(named(), said("False")), Some(Gate::Held("why".to_owned())));
        assert_eq!(gate(named(), said("True")), Some(Gate::Passed));
    }
}

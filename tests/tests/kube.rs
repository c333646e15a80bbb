//! Pods of Kubernetes: annotations, identities, conditions and events, over an API server and a
//! kubelet of the tests' own ([`weir_tests::apiserver`], [`weir_tests::kubelet`]). Kernel, sockets
//! and cgroups are real.
//!
//! Needs root, and the agent that `WEIR_BIN` names (else the release build).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

#[macro_use(lab)]
extern crate weir_tests;

#[path = "kube/conditions.rs"]
mod conditions;
#[path = "kube/doors.rs"]
mod doors;
#[path = "kube/explain.rs"]
mod explain;
#[path = "kube/identity.rs"]
mod identity;
#[path = "kube/many.rs"]
mod many;
#[path = "kube/policy.rs"]
mod policy;
#[path = "kube/readiness.rs"]
mod readiness;
#[path = "kube/server.rs"]
mod server;
#[path = "kube/shapers.rs"]
mod shapers;

use std::net::SocketAddr;

use serde_json::{Value, json};
use weir::lab::{Host, Lab, Namespace, Node};
use weir_tests::{
    agent::{Agent, eventually},
    apiserver::ApiServer,
    kubelet::{Container, Kubelet, pod_of},
    site::ask,
};

/// A node file that says nothing.
const NOTHING: &str = "mode: enforce\n";

fn at(host: &Host) -> SocketAddr {
    SocketAddr::new(host.ipv4().into(), 80)
}

/// A node, its kubelet and the API server that knows its pods.
struct Cluster {
    node: Node,
    kubelet: Kubelet,
    server: ApiServer,
}

impl Cluster {
    fn new(lab: &Lab) -> Self {
        Self::with(lab, Kubelet::usual(lab))
    }

    fn with(lab: &Lab, kubelet: Kubelet) -> Self {
        let node = lab.node("node").unwrap();
        let server = ApiServer::start(node.namespace(), lab.directory());
        server.put("namespaces", weir_tests::kubelet::namespace("shop", json!({})));
        Self { node, kubelet, server }
    }

    /// Starts a host of the lab as a pod of the namespace `shop`.
    fn start(&self, host: &Host, uid: &str, annotations: Value) -> Container {
        self.server.put("pods", pod_of(host, uid, annotations));
        self.kubelet.run(uid, self.node.namespace(), host.namespace())
    }

    fn agent<'a>(&'a self, lab: &Lab, node_file: &str) -> Agent<'a> {
        let agent = Agent::new(lab, self.node.namespace(), node_file);
        let mut agent = agent.with_pods(&self.server, &self.kubelet);
        agent.launch();
        agent.await_ready();
        agent
    }
}

/// What a pod's only limit is, or nothing.
fn limit(agent: &Agent<'_>, pod: &str) -> Option<String> {
    let workloads = agent.status().workloads;
    let workload = workloads.into_iter().find(|workload| workload.name == pod)?;
    workload.limits.into_iter().next().map(|limit| limit.value)
}

fn await_limit(agent: &Agent<'_>, pod: &str, value: Option<&str>) {
    let look = || limit(agent, pod);
    eventually(&format!("{pod} has {value:?}"), look, |seen| seen.as_deref() == value);
}

fn await_attached(agent: &Agent<'_>, pod: &str) {
    let look = || agent.status().workloads.into_iter().find(|workload| workload.name == pod);
    eventually(&format!("{pod} is attached"), look, |seen| {
        seen.as_ref().is_some_and(|workload| workload.attached.is_some())
    });
}

fn await_gone(agent: &Agent<'_>, pod: &str) {
    let look = || agent.status().workloads.into_iter().any(|workload| workload.name == pod);
    eventually(&format!("{pod} is gone"), look, |is_there| !is_there);
}

fn codes(from: &Namespace, to: &Host, attempts: u64) -> String {
    ask(from, at(to), attempts).codes()
}

fn name(host: &Host) -> String {
    format!("shop/{}", host.name())
}

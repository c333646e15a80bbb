//! Asking the agent of a pod's node from anywhere, through the API server.
//!
//! The request goes by the proxy of pods: one GET, for which whoever asks needs `get` of
//! `pods/proxy`. Agents use their node's network, so that right opens the ports of the node's address;
//! forwarding ports would open its loopback as well, where more is listening that trusts everybody.

use std::time::Duration;

use anyhow::Context as _;
use axum::http::{Request, StatusCode, header};
use clap::Args;
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams, client::Body};
use tokio::{runtime, time::timeout};

use super::{
    client::{Answered, encode},
    error::CliError,
};
use crate::{
    app::view::{Explanation, Failure},
    causes::with_causes,
};

/// How agents' pods are labelled.
const AGENTS: &str = "app.kubernetes.io/name=weir";
/// The name of the program as a plugin of `kubectl`, which runs what is called so for `kubectl weir`.
const PLUGIN: &str = "kubectl-weir";
/// An agent behind the API server may be out of reach.
const PATIENCE: Duration = Duration::from_secs(20);
/// More of an answer is not read.
const LONGEST_ANSWER: usize = 16 << 20;

/// Why no agent was asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    /// Not a pod's name.
    #[error("`{name}` is no pod of a cluster; expected NAMESPACE/POD")]
    Name { name: String },
    /// The API server was not reached, or refused.
    #[error("the API server does not say {what}")]
    ApiServer { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// No node, no agent.
    #[error("{pod} is on no node yet: nothing limits it")]
    NotScheduled { pod: String },
    /// Nobody there to ask.
    #[error(
        "no agent runs on {node}, the node of {pod}: there is no pod {AGENTS} of the namespace `{namespace}` there; --agents names another namespace"
    )]
    NoAgent { pod: String, node: String, namespace: String },
    /// Not an answer.
    #[error("the agent {agent} on {node} could not be asked: {why}")]
    Unasked { agent: String, node: String, why: String },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

impl ClusterError {
    /// Whether the agent understood the question and refused.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// Whether the agent of a pod's node is asked, and how it is found.
#[derive(Clone, Debug, Args)]
pub(super) struct Through {
    /// Ask the agent of the pod's node through the API server, by KUBECONFIG or ~/.kube/config; as
    /// `kubectl weir` always does
    #[arg(long)]
    cluster: bool,
    /// The namespace of the agents
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-system")]
    agents: String,
    /// The port at which the agents serve metrics
    #[arg(long, value_name = "PORT", default_value_t = 9464)]
    agents_port: u16,
}

impl Through {
    /// Whether it is to be asked at all.
    pub(super) fn is_wanted(&self) -> bool {
        let program = std::env::args_os().next().unwrap_or_default();
        let name = std::path::Path::new(&program).file_name();
        self.cluster || name.is_some_and(|name| name == PLUGIN)
    }

    /// Asks about a pod.
    pub(super) fn explain(&self, pod: &str) -> Result<Answered<Explanation>, CliError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime")?;
        runtime.block_on(async {
            let client = crate::kube::connect_once().await?;
            let answer = timeout(PATIENCE, self.ask(&client, pod)).await;
            let answer = answer.unwrap_or_else(|_| {
                let what = format!("anything within {} s", PATIENCE.as_secs());
                Err(ClusterError::ApiServer { what, source: "it is busy or out of reach".into() })
            });
            Ok(answer?)
        })
    }

    async fn ask(
        &self,
        client: &Client,
        name: &str,
    ) -> Result<Answered<Explanation>, ClusterError> {
        let (namespace, pod) = name
            .split_once('/')
            .filter(|(namespace, pod)| !namespace.is_empty() && !pod.is_empty())
            .ok_or_else(|| ClusterError::Name { name: name.to_owned() })?;
        let silent = |what: String| {
            |source: kube::Error| ClusterError::ApiServer { what, source: Box::new(source) }
        };
        let found = Api::<Pod>::namespaced(client.clone(), namespace).get(pod).await;
        let found = found.map_err(silent(format!("where {name} is")))?;
        let node = found.spec.and_then(|spec| spec.node_name);
        let node = node.ok_or_else(|| ClusterError::NotScheduled { pod: name.to_owned() })?;
        let there = ListParams::default().labels(AGENTS).fields(&format!("spec.nodeName={node}"));
        let agents = Api::<Pod>::namespaced(client.clone(), &self.agents).list(&there).await;
        let agents = agents.map_err(silent(format!("which agent runs on {node}")))?;
        let mut failed = ClusterError::NoAgent {
            pod: name.to_owned(),
            node: node.clone(),
            namespace: self.agents.clone(),
        };
        // During an update there are two, of which one answers.
        for agent in agents.items.into_iter().filter_map(|agent| agent.metadata.name) {
            match self.ask_one(client, &agent, namespace, pod).await {
                Err(Failed::No(why)) => return Err(ClusterError::Refused(why)),
                Err(Failed::Unasked(why)) => {
                    failed = ClusterError::Unasked { agent, node: node.clone(), why };
                }
                Ok(answered) => return Ok(answered),
            }
        }
        Err(failed)
    }

    async fn ask_one(
        &self,
        client: &Client,
        agent: &str,
        namespace: &str,
        pod: &str,
    ) -> Result<Answered<Explanation>, Failed> {
        let unasked = |why: &dyn std::error::Error| Failed::Unasked(with_causes(why));
        // In two segments: a proxy may turn an encoded slash into one.
        let path = format!(
            "/api/v1/namespaces/{}/pods/{agent}:{}/proxy/explain/{}/{}",
            self.agents,
            self.agents_port,
            encode(namespace),
            encode(pod),
        );
        let request = Request::get(path).body(Body::empty()).map_err(|error| unasked(&error))?;
        let response = client.send(request).await.map_err(|error| unasked(&error))?;
        let status = response.status();
        let server = response.headers().get(header::SERVER).cloned();
        let is_agents = server.is_some_and(|server| server.as_bytes().starts_with(b"weir/"));
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| Failed::Unasked(error.to_string()))?.to_bytes();
        if status.is_success() {
            let raw: serde_json::Value =
                serde_json::from_slice(&body).map_err(|error| unasked(&error))?;
            let value = serde_json::from_value(raw.clone()).map_err(|error| unasked(&error))?;
            return Ok(Answered { raw, value });
        }
        let failure = serde_json::from_slice::<Failure>(&body).ok();
        Err(match (is_agents, failure) {
            (true, Some(failure)) if !failure.routes.is_empty() => Failed::Unasked(
                "it does not explain over the network; start it with --explain-over-tcp \
                 (`explain.enabled` of the chart)"
                    .to_owned(),
            ),
            (true, Some(failure)) => Failed::No(failure.error),
            _ if status == StatusCode::FORBIDDEN => {
                Failed::Unasked("you may not `get` its `pods/proxy`".to_owned())
            }
            _ => Failed::Unasked(said(status, &body)),
        })
    }
}

/// Why one agent's answer is none.
enum Failed {
    /// It has said no.
    No(String),
    /// Another may be asked.
    Unasked(String),
}

/// What somebody between says: a `Status` of Kubernetes, mostly.
fn said(status: StatusCode, body: &[u8]) -> String {
    let message = serde_json::from_slice::<serde_json::Value>(body).ok();
    let message = message.and_then(|status| Some(status.get("message")?.as_str()?.to_owned()));
    message.unwrap_or_else(|| format!("the API server says {status}"))
}

//! Feeds the index from the API server: lists and watches, for as long as the agent runs.

use std::{pin::pin, sync::Arc};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client, Config,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tracing::{info, warn};

use super::{
    cluster::Cluster,
    facts::{NamespaceFacts, NodeFacts, PodFacts},
    index::{Index, Step},
};
use crate::causes::with_causes;

/// A client as `kubectl` would be one: by `KUBECONFIG`, by `~/.kube/config`, or by the service
/// account of the pod that this runs in. Nothing is asked yet.
pub async fn connect() -> anyhow::Result<Client> {
    client(true).await
}

/// The same for somebody who waits for one answer: what fails is not tried again.
pub async fn connect_once() -> anyhow::Result<Client> {
    client(false).await
}

async fn client(default_retry: bool) -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context(
        "cannot find out where the API server is; expected KUBECONFIG, ~/.kube/config, or a pod's \
         service account",
    )?;
    info!(server = %config.cluster_url, "the API server");
    config.default_retry = default_retry;
    Client::try_from(config).context("cannot use what is known of the API server")
}

/// Watches this node, its pods and all namespaces. It never ends: what fails is tried again after
/// 0.8 s, and at most 30 s later and later; what is known stays meanwhile.
pub async fn watch(client: Client, cluster: Arc<Cluster>) {
    let on_node = format!("spec.nodeName={}", cluster.node());
    let pods =
        watcher(Api::<Pod>::all(client.clone()), watcher::Config::default().fields(&on_node));
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    let this = format!("metadata.name={}", cluster.node());
    let nodes = watcher(Api::<Node>::all(client), watcher::Config::default().fields(&this));
    let pods = follow(pods, "pods", &cluster, pod, Index::pods);
    let nodes = follow(nodes, "nodes", &cluster, node, Index::nodes);
    let namespaces = follow(namespaces, "namespaces", &cluster, namespace, Index::namespaces);
    tokio::join!(pods, namespaces, nodes);
}

fn pod(pod: &Pod) -> (String, Option<PodFacts>) {
    (pod.metadata.uid.clone().unwrap_or_default(), PodFacts::of(pod))
}

fn node(node: &Node) -> (String, Option<NodeFacts>) {
    (node.metadata.name.clone().unwrap_or_default(), Some(NodeFacts::of(node)))
}

fn namespace(namespace: &Namespace) -> (String, Option<NamespaceFacts>) {
    (namespace.metadata.name.clone().unwrap_or_default(), NamespaceFacts::of(namespace))
}

/// Takes what a watch tells into a list of the index.
async fn follow<K, T>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    what: &'static str,
    cluster: &Cluster,
    facts: fn(&K) -> (String, Option<T>),
    apply: fn(&mut Index, Step<T>) -> bool,
) {
    let mut stream = pin!(stream.default_backoff());
    let mut is_first = true;
    // A watch of kube-runtime does not end.
    while let Some(event) = stream.next().await {
        let step = match event {
            Err(error) => {
                let why = with_causes(&error);
                warn!(what, error = why, "the API server was not heard; what is known stays");
                cluster.failed(what, why);
                continue;
            }
            // It is said before anything is asked.
            Ok(Event::Init) => {
                cluster.update(|index| apply(index, Step::Begin));
                continue;
            }
            Ok(Event::InitApply(object)) => match facts(&object) {
                (key, Some(facts)) => Step::Item(key, facts),
                (_, None) => Step::Nothing,
            },
            Ok(Event::InitDone) => {
                if !std::mem::take(&mut is_first) {
                    info!(what, "listed again");
                    cluster.listed_again();
                }
                Step::End
            }
            Ok(Event::Apply(object)) => match facts(&object) {
                (key, Some(facts)) => Step::Set(key, facts),
                (key, None) => Step::Remove(key),
            },
            Ok(Event::Delete(object)) => Step::Remove(facts(&object).0),
        };
        cluster.heard(what);
        cluster.update(|index| apply(index, step));
    }
}

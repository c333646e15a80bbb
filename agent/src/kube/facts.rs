//! What of a pod and of a namespace matters to limits: small, comparable, and kept over a restart.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, Namespace, Node, Pod, PodSpec, PodStatus, Probe},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use serde::{Deserialize, Serialize};

use super::release::{Gate, Taints};
use crate::{
    config::{self, Location, PodLocation, Workload},
    policy::{
        ANNOTATION_PREFIX, KUBERNETES_BANDWIDTH, Place, Port, PortName, Ports, Probes, RESETS,
        annotations, kubernetes_annotations,
    },
};

/// The annotation by which a static pod's object names the UID that kubelet gave the pod itself.
const STATIC_POD: &str = "kubernetes.io/config.hash";
/// The annotation by which Istio says that a pod's traffic goes through the node's ztunnel.
const AMBIENT: (&str, &str) = ("ambient.istio.io/redirection", "enabled");
/// Containers that stand between a pod's application and the network.
const SIDECARS: [&str; 2] = ["istio-proxy", "linkerd-proxy"];

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodFacts {
    /// Its UID.
    pub uid: String,
    /// The UID that its cgroup has: another one for static pods.
    pub cgroup: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: ours, and Kubernetes' that limit bytes.
    pub annotations: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The names of its containers' TCP ports.
    pub ports: BTreeMap<String, u16>,
    /// The ports that kubelet probes.
    pub probes: Vec<u16>,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// What changes the meaning of its connections.
    pub mesh: Option<Mesh>,
    /// Whether it has been ready since it began, as far as anybody saw. Its server may not listen
    /// before, which is no failure.
    #[serde(default)]
    pub was_ready: bool,
    /// Whether it waits for the agent's word before it is ready, and what was said.
    #[serde(default)]
    pub gate: Option<Gate>,
}

/// What stands between a pod's application and the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mesh {
    /// A proxy in the pod, in the container of this name.
    Sidecar(String),
    /// Istio's ztunnel, in the pod's network namespace.
    Ambient,
}

impl Mesh {
    /// What that means for limits.
    fn remark(&self) -> String {
        match self {
            Self::Sidecar(container) => format!(
                "its sidecar `{container}` ends every connection: inbound ones are those of \
                 clients' proxies, which keep them and share them between requests; outbound \
                 ones go to endpoints, not to the service's address"
            ),
            Self::Ambient => "ambient mesh: connections of the mesh arrive as tunnels at port \
                 15008, and limits for other ports see only clients outside the mesh"
                .to_owned(),
        }
    }
}

impl PodFacts {
    /// What matters of a pod; `None` when nothing of it runs any more, or it is no pod at all.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let ObjectMeta { uid, name, namespace, labels, annotations, .. } = &pod.metadata;
        let (uid, spec) = (uid.clone()?, pod.spec.as_ref()?);
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let written = annotations.clone().unwrap_or_default();
        let addresses = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
        let containers: Vec<&Container> = containers(spec).collect();
        let ambient = written.get(AMBIENT.0).is_some_and(|value| value == AMBIENT.1);
        let sidecar = containers.iter().find(|it| SIDECARS.contains(&it.name.as_str()));
        let mesh = match sidecar {
            Some(container) => Some(Mesh::Sidecar(container.name.clone())),
            None => ambient.then_some(Mesh::Ambient),
        };
        Some(Self {
            cgroup: written.get(STATIC_POD).unwrap_or(&uid).clone(),
            uid,
            namespace: namespace.clone()?,
            name: name.clone()?,
            labels: labels.clone().unwrap_or_default(),
            annotations: ours(annotations.as_ref()),
            addresses: addresses.iter().filter_map(|address| address.ip.parse().ok()).collect(),
            ports: containers.iter().flat_map(|container| named_ports(container)).collect(),
            probes: probed_ports(&containers),
            host_network: spec.host_network.unwrap_or_default(),
            mesh,
            was_ready: is_ready(status),
            gate: Gate::of(pod),
        })
    }

    /// The workload that it is.
    pub(super) fn workload(&self, namespace: Option<Arc<config::Namespace>>) -> Workload {
        let name = format!("{}/{}", self.namespace, self.name);
        let object = format!("pod {name}");
        let number = |port: &u16| Port::new(*port);
        let ports: Ports = self
            .ports
            .iter()
            .filter_map(|(name, port)| Some((PortName::parse(name)?, number(port)?)))
            .collect();
        let probed: Vec<Port> = self.probes.iter().filter_map(number).collect();
        let probes = (!probed.is_empty()).then_some(Probes {
            from: None,
            ports: probed,
            bucket: Probes::BUCKET,
        });
        let location = if self.host_network {
            PodLocation::Node
        } else {
            PodLocation::Cgroup(self.cgroup.clone())
        };
        let nameless =
            || Arc::new(config::Namespace { name: self.namespace.clone(), policy: vec![] });
        Workload {
            name,
            identity: self.uid.clone(),
            place: Place::Annotation {
                object: object.clone(),
                key: format!("{ANNOTATION_PREFIX}*"),
            },
            location: Location::Pod(location),
            addresses: self.addresses.clone(),
            labels: self.labels.clone(),
            ports,
            probes,
            resets: RESETS,
            pace: None,
            include_management: false,
            namespace: Some(namespace.unwrap_or_else(nameless)),
            policy: self.policy(&object),
            is_armed: self.was_ready,
            remarks: self.mesh.iter().map(Mesh::remark).collect(),
        }
    }
}

impl PodFacts {
    /// What its annotations say.
    fn policy(&self, object: &str) -> crate::policy::Entries {
        let written = |key: &str| self.annotations.get(key).map(String::as_str);
        let mut entries = read(object, &self.annotations);
        entries.extend(kubernetes_annotations(object, written));
        entries
    }
}

/// What is known of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    #[serde(default)]
    pub taints: Taints,
}

impl NodeFacts {
    /// What matters of a node.
    pub(super) fn of(node: &Node) -> Self {
        Self { labels: node.metadata.labels.clone().unwrap_or_default(), taints: Taints::of(node) }
    }
}

/// What is known of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceFacts {
    /// Its name.
    pub name: String,
    /// Its annotations, of ours alone.
    pub annotations: BTreeMap<String, String>,
}

impl NamespaceFacts {
    /// What matters of a namespace.
    pub(super) fn of(namespace: &Namespace) -> Option<Self> {
        let ObjectMeta { name, annotations, .. } = &namespace.metadata;
        Some(Self { name: name.clone()?, annotations: ours(annotations.as_ref()) })
    }

    /// The layer that it is.
    pub(super) fn layer(&self) -> config::Namespace {
        let policy = read(&format!("namespace {}", self.name), &self.annotations);
        config::Namespace { name: self.name.clone(), policy }
    }
}

fn read(object: &str, written: &BTreeMap<String, String>) -> crate::policy::Entries {
    annotations(object, written.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

fn ours(annotations: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let annotations = annotations.into_iter().flatten();
    let is_ours = |(key, _): &(&String, &String)| {
        let bandwidth = || KUBERNETES_BANDWIDTH.iter().any(|(annotation, _)| key == annotation);
        key.starts_with(ANNOTATION_PREFIX) || bandwidth()
    };
    annotations.filter(is_ours).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The containers that run beside each other: init containers are among them that are restarted.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let lasting = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().filter(lasting);
    spec.containers.iter().chain(init)
}

fn is_ready(status: Option<&PodStatus>) -> bool {
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn named_ports(container: &Container) -> impl Iterator<Item = (String, u16)> + '_ {
    let tcp = container.ports.iter().flatten();
    let tcp = tcp.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
}

fn probed_ports(containers: &[&Container]) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    for container in containers {
        let named: BTreeMap<String, u16> = named_ports(container).collect();
        let Container { liveness_probe, readiness_probe, startup_probe, .. } = container;
        let probes = [liveness_probe, readiness_probe, startup_probe].into_iter().flatten();
        ports.extend(probes.filter_map(|probe| probed_port(probe, &named)));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn probed_port(probe: &Probe, named: &BTreeMap<String, u16>) -> Option<u16> {
    let number = |port: i32| u16::try_from(port).ok();
    let port = |port: &IntOrString| match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => named.get(name).copied(),
    };
    match (&probe.http_get, &probe.tcp_socket, &probe.grpc) {
        (Some(http), _, _) => port(&http.port),
        (_, Some(tcp), _) => port(&tcp.port),
        (_, _, Some(grpc)) => number(grpc.port),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value, annotations: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "uid": "u-1", "name": "web-1", "namespace": "shop",
                "labels": {"app": "web"}, "annotations": annotations,
            },
            "spec": spec,
            "status": {"phase": "Running", "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_what_its_object_says() {
        let spec = json!({"containers": [{
            "name": "web",
            "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"containerPort": 9000},
            ],
            "livenessProbe": {"httpGet": {"port": "http"}},
            "readinessProbe": {"tcpSocket": {"port": 8081}},
            "startupProbe": {"exec": {"command": ["true"]}},
        }]});
        let written = json!({"weir.dev/connections.http": "5/s", "other/key": "x"});
        let facts = PodFacts::of(&pod(spec, written)).unwrap();
        assert_eq!(facts.ports, [("http".to_owned(), 8080)].into());
        assert_eq!(facts.probes, [8080, 8081]);
        assert_eq!(facts.annotations.len(), 1);
        assert_eq!(facts.mesh, None);
        let workload = facts.workload(None);
        assert_eq!((workload.name.as_str(), workload.identity.as_str()), ("shop/web-1", "u-1"));
        assert_eq!(workload.location, Location::Pod(PodLocation::Cgroup("u-1".to_owned())));
        assert_eq!(workload.addresses.len(), 2);
        assert_eq!(workload.namespace.unwrap().name, "shop");
        assert_eq!(
            workload.policy[0].place.to_string(),
            "pod shop/web-1, annotation weir.dev/connections.http"
        );
    }

    #[test]
    fn what_is_between_a_pod_and_its_clients_is_known() {
        let mesh = |spec, written| PodFacts::of(&pod(spec, written)).unwrap().mesh;
        let plain = || json!({"containers": [{"name": "web"}]});
        assert_eq!(
            mesh(plain(), json!({"ambient.istio.io/redirection": "enabled"})),
            Some(Mesh::Ambient)
        );
        let sidecar = json!({"containers": [{"name": "web"}, {"name": "istio-proxy"}]});
        assert_eq!(mesh(sidecar, json!({})), Some(Mesh::Sidecar("istio-proxy".to_owned())));
        let native = json!({
            "containers": [{"name": "web"}],
            "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}],
        });
        assert_eq!(mesh(native, json!({})), Some(Mesh::Sidecar("istio-proxy".to_owned())));
        let gone = json!({
            "containers": [{"name": "web"}], "initContainers": [{"name": "istio-proxy"}],
        });
        assert_eq!(mesh(gone, json!({})), None, "it ran before the others, and ended");
    }

    #[test]
    fn static_pods_have_the_cgroup_of_their_file() {
        let spec = || json!({"containers": [], "hostNetwork": true});
        let facts =
            PodFacts::of(&pod(spec(), json!({"kubernetes.io/config.hash": "abc"}))).unwrap();
        assert_eq!((facts.uid.as_str(), facts.cgroup.as_str()), ("u-1", "abc"));
        assert_eq!(facts.workload(None).location, Location::Pod(PodLocation::Node));
    }

    #[test]
    fn what_has_ended_is_no_pod() {
        let mut ended = pod(json!({"containers": []}), json!({}));
        ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        assert_eq!(PodFacts::of(&ended), None);
    }
}

//! The node file's model: what it says, with its defaults, and every place kept that somebody may
//! want to be told.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    policy::{Administrator, Bucket, Entries, Place, Ports, Probes},
    rls,
};

/// What a node file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFile {
    /// Where metrics and health are served over TCP, if anywhere.
    pub listen: Option<SocketAddr>,
    /// The administrator's words: mode, exempt peers, policies.
    pub administrator: Administrator,
    /// Interfaces to the outside.
    pub uplinks: Vec<Uplink>,
    /// When XDP refuses early at the host's ends of pods.
    pub shield: Shield,
    /// What byte limits do with what is too much, for every workload that does not say otherwise.
    pub pace: Pace,
    /// The workloads, no two with one name or one interface.
    pub workloads: Vec<Workload>,
    /// How Envoy's rate limit service is offered, if it is.
    pub rls: Option<rls::Settings>,
}

impl NodeFile {
    /// The workload of this name.
    pub fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|workload| workload.name == name)
    }
}

/// An interface to the outside, where refusals may come early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// Its name.
    pub interface: String,
    /// How the early program is attached.
    pub xdp: XdpMode,
    /// Where it stands in the file.
    pub place: Place,
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// In the driver; an error where it cannot.
    #[default]
    Native,
    /// In the stack, for drivers that cannot: it saves little and costs every packet something.
    Generic,
    /// Not at all.
    Off,
}

impl XdpMode {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("native", Self::Native), ("generic", Self::Generic), ("off", Self::Off)];
}

/// When the host's end of a workload's veth refuses early, by XDP, what the workload sends to others of
/// the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Shield {
    /// At all.
    pub xdp: ShieldMode,
    /// From so many refused SYNs per second on.
    pub above: NonZeroU32,
    /// Until there were clearly fewer for so long.
    pub calm: Duration,
}

impl Default for Shield {
    fn default() -> Self {
        const ABOVE: NonZeroU32 = NonZeroU32::new(20_000).unwrap();
        Self { xdp: ShieldMode::default(), above: ABOVE, calm: Duration::from_secs(30) }
    }
}

/// When XDP runs at the host's ends of workloads' veths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShieldMode {
    /// While the workload floods.
    #[default]
    Auto,
    /// At all times, at the price of segmentation offload.
    Always,
    /// Never.
    Off,
}

impl ShieldMode {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("auto", Self::Auto), ("always", Self::Always), ("off", Self::Off)];
}

/// What byte limits do with what is too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Delay it where an `fq` is found, else drop it.
    #[default]
    Auto,
    /// Delay it; put an `fq` on the workload's interface where nobody chose a queue.
    Fq,
    /// Drop it.
    Off,
}

impl Pace {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("auto", Self::Auto), ("fq", Self::Fq), ("off", Self::Off)];
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name for people: a pod's is `NAMESPACE/POD`.
    pub name: String,
    /// What tells it from all others for as long as it lives: its name in a file, a pod's UID.
    pub identity: String,
    /// Where it stands in the file; nowhere, if it does not.
    pub place: Place,
    /// Where its packets are seen.
    pub location: Location,
    /// Its addresses, for the early program on uplinks; empty when they are to be found out.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Names of its ports.
    pub ports: Ports,
    /// Its health probes.
    pub probes: Option<Probes>,
    /// Its budget for resets.
    pub resets: Bucket,
    /// What its byte limits do with what is too much; `None` for what holds for the node.
    pub pace: Option<Pace>,
    /// Limits for all ports may hold on the host's own interface, management included.
    pub include_management: bool,
    /// The Kubernetes namespace that it is in, if it is a pod.
    pub namespace: Option<Arc<Namespace>>,
    /// Its own layer.
    pub policy: Entries,
    /// Whether its own failures may eject it: of a pod, once it was ready.
    pub is_armed: bool,
    /// What else to know about its connections.
    pub remarks: Vec<String>,
}

/// A Kubernetes namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its layer.
    pub policy: Entries,
}

impl Workload {
    /// Whether it is an interface of the host itself, by which the host is also managed.
    pub const fn is_host(&self) -> bool {
        matches!(self.location, Location::Host { .. })
    }
}

/// Where a workload's packets are seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Location {
    /// An interface of the host.
    Host {
        /// Its name.
        interface: String,
    },
    /// An interface in a network namespace.
    Namespace {
        /// The namespace.
        netns: Netns,
        /// The interface's name inside.
        interface: String,
        /// On which side of it.
        attach: Attach,
    },
    /// All interfaces of a pod.
    Pod(PodLocation),
}

/// Which network a pod has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodLocation {
    /// The node's own.
    Node,
    /// The one of the processes in the cgroup that kubelet made for this UID. It is the pod's own
    /// UID but for static pods.
    Cgroup(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { interface } => write!(f, "{interface}"),
            Self::Namespace { netns, interface, .. } => write!(f, "{interface} in {netns}"),
            Self::Pod(PodLocation::Node) => write!(f, "the node's network"),
            Self::Pod(PodLocation::Cgroup(uid)) => write!(f, "pod {uid}"),
        }
    }
}

/// On which side of a namespace's interface programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// The host's end of a veth where there is one, else inside.
    #[default]
    Auto,
    /// The host's end of a veth.
    Host,
    /// Inside the namespace.
    Pod,
}

impl Attach {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("auto", Self::Auto), ("host", Self::Host), ("pod", Self::Pod)];
}

/// A network namespace, by the name that `ip netns` gives it or by its path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Netns {
    /// As `ip netns` lists it.
    Name(String),
    /// Any file that is one, like `/proc/PID/ns/net`.
    Path(PathBuf),
}

impl Netns {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Name(name) => PathBuf::from("/run/netns").join(name),
            Self::Path(path) => path.clone(),
        }
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

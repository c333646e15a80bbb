//! The sets of labels, one type for each family of metrics that has labels.

use prometheus_client::encoding::EncodeLabelSet;
use weir_common::verdict::Reason;

use crate::app::view::{LimitStatus, WorkloadStatus};

/// The program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Build {
    pub(super) version: String,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Outcome {
    pub(super) result: &'static str,
}

/// A node of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Node {
    pub(super) node: String,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Workload {
    pub(super) workload: String,
}

/// A workload and what may be said of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Condition {
    pub(super) workload: String,
    pub(super) condition: String,
}

/// A workload and a way of attaching to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Attached {
    pub(super) workload: String,
    pub(super) kind: String,
}

/// An uplink and a way of attaching to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Uplink {
    pub(super) interface: String,
    pub(super) kind: String,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Limit {
    workload: String,
    limit: String,
    port: String,
    to: String,
    beside: bool,
}

impl Limit {
    pub(super) fn new(workload: &WorkloadStatus, limit: &LimitStatus) -> Self {
        Self {
            workload: workload.name.clone(),
            limit: limit.kind.clone(),
            port: limit.port.clone(),
            to: limit.to.clone(),
            beside: limit.beside,
        }
    }
}

/// What became of bytes and packets at a limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Volume {
    #[prometheus(flatten)]
    pub(super) limit: Limit,
    pub(super) verdict: &'static str,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Decision {
    pub(super) workload: String,
    pub(super) hook: String,
    pub(super) direction: String,
    pub(super) verdict: String,
    pub(super) reason: String,
}

/// What went otherwise than decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Fault {
    pub(super) workload: String,
    pub(super) hook: String,
    pub(super) direction: String,
    pub(super) reason: String,
}

/// A breaker's change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Edge {
    pub(super) workload: String,
    pub(super) hook: String,
    pub(super) direction: String,
    /// The reason without its `breaker_`.
    pub(super) change: String,
}

/// What a reason is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Why a packet got its verdict: each packet has one such reason.
    Decision,
    /// Something beside the decision, which is counted with its own reason too. In one sum with
    /// the decisions the packet would count twice.
    Fault,
    /// No packet's fate: an event was lost.
    LostEvent,
    /// No packet's fate: a breaker changed.
    Edge,
    /// A packet whose fate is counted for another workload, which it was addressed to.
    Shielded,
}

/// What the reason of this name is counted as.
pub(crate) fn kind_of(name: &str) -> Kind {
    let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
    reason.map_or(Kind::Decision, |&reason| kind(reason))
}

const fn kind(reason: Reason) -> Kind {
    // No wildcard: whoever adds a reason decides what it is.
    match reason {
        Reason::ResetLimited
        | Reason::NotRemembered
        | Reason::RewriteFailed
        | Reason::HandshakeDisplaced
        | Reason::QuotaAsked => Kind::Fault,
        Reason::EventLost => Kind::LostEvent,
        Reason::Shielded => Kind::Shielded,
        Reason::BreakerTripped
        | Reason::BreakerReopened
        | Reason::BreakerHalfOpened
        | Reason::BreakerClosed => Kind::Edge,
        Reason::Admitted
        | Reason::Retransmission
        | Reason::Exempt
        | Reason::Probe
        | Reason::NoRule
        | Reason::Fragment
        | Reason::Malformed
        | Reason::ConnectionRate
        | Reason::SourceRate
        | Reason::SourceCrowded
        | Reason::OutboundRate
        | Reason::ProbeRate
        | Reason::Contended
        | Reason::TinyFragment
        | Reason::HeaderChain
        | Reason::MaxConnections
        | Reason::MaxHandshakes
        | Reason::MaxConnectionsPerSource
        | Reason::BreakerOpen
        | Reason::BreakerProbing
        | Reason::TableFull
        | Reason::Unaudited
        | Reason::ConnectionBandwidth
        | Reason::ConnectionCrowded
        | Reason::IngressBandwidth
        | Reason::EgressBandwidth
        | Reason::PacketRate
        | Reason::Marked
        | Reason::EjectionSpared
        | Reason::Quota => Kind::Decision,
    }
}

/// A quota: two levels of its descriptors, as the original's exporter has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Quota {
    pub(super) domain: String,
    pub(super) key1: String,
    pub(super) key2: String,
}

/// A gRPC method.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Method {
    pub(super) grpc_method: &'static str,
}

/// Why a rate limit request got no decision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct ErrorType {
    pub(super) err_type: &'static str,
}

/// What became of a rate limit request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Question {
    pub(super) outcome: String,
}

/// Somebody who may not ask about a domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct Denied {
    pub(super) domain: String,
    pub(super) caller: String,
}

//! What a configuration says, whoever said it: files and xDS both become this tree.
//!
//! The first half is envoyproxy/ratelimit's (`src/config/config_impl.go`), the second Weir's own keys.

use envoy_types::pb::google::protobuf::Struct;

use crate::policy::{Cidr, Place};

use super::{unit::Unit, wildcard::Wildcard};

/// All domains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// In the order of the files.
    pub domains: Vec<Domain>,
}

/// A domain: a name space for descriptors.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// The first level.
    pub descriptors: Vec<Descriptor>,
    /// Who may use it, and how.
    pub access: Access,
}

/// A level of descriptors: a key, perhaps a value, a limit, and what lies below.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor {
    /// Where it stands.
    pub place: Place,
    /// The entry's key. Never empty.
    pub key: String,
    /// The entry's value; empty for any.
    pub value: String,
    /// What holds for requests that end here.
    pub limit: Option<Limit>,
    /// The next level.
    pub descriptors: Vec<Descriptor>,
    /// Counted and reported, not enforced.
    pub shadow_mode: bool,
    /// May be over its limit as long as another quota of the request is not.
    pub quota_mode: bool,
    /// Metrics for each value.
    pub detailed_metric: bool,
    /// The value of this level in the metric's name.
    pub value_to_metric: bool,
    /// One count for all values that match the wildcard.
    pub share_threshold: bool,
    /// For the response's dynamic metadata.
    pub metadata: Option<Struct>,
    /// Weir's own keys.
    pub own: Own,
    /// Where those stand: here, or in an overlay.
    pub own_place: Place,
}

impl Descriptor {
    /// What the original compares: `key`, or `key_value`.
    pub fn composite(&self) -> String {
        if self.value.is_empty() {
            self.key.clone()
        } else {
            format!("{}_{}", self.key, self.value)
        }
    }
}

/// A descriptor's `rate_limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much.
    pub amount: Amount,
    /// Its name; empty for none.
    pub name: String,
    /// Names of limits that do not count beside this one.
    pub replaces: Vec<String>,
}

/// How much a limit admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Everything.
    Unlimited,
    /// So many in each window.
    PerUnit {
        /// May be 0, which refuses everything.
        requests: u32,
        /// The window.
        unit: Unit,
    },
}

/// Who may use a domain. Without callers and owners: everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Who may ask beside the owners.
    pub callers: Vec<CallerRule>,
    /// Namespaces whose workloads may ask for it and name it.
    pub owners: Vec<String>,
    /// The most hits that one descriptor may add.
    pub max_hits_addend: Option<u64>,
}

/// Somebody who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallerRule {
    /// Workloads of a namespace.
    Namespace(String),
    /// Workloads by `namespace/name`.
    Workload(Wildcard),
    /// The name in a client certificate.
    TlsName(Wildcard),
    /// The address of the peer.
    Address(Cidr),
    /// The user of the peer of a unix socket.
    Uid(u32),
}

/// Weir's own keys of a descriptor. The default is what the original does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// How hits count.
    pub algorithm: Algorithm,
    /// The size of a bucket, in hits.
    pub burst: Option<u32>,
    /// Windows of this many units; `None` for 1.
    pub unit_multiplier: Option<u32>,
    /// Who shares the count.
    pub scope: Scope,
    /// What a fleet quota is without a store.
    pub storeless: Option<Storeless>,
    /// How exact a fleet quota is.
    pub consistency: Consistency,
    /// What holds while the store does not answer.
    pub on_store_failure: OnStoreFailure,
    /// More limits on the same descriptor.
    pub limits: Vec<Further>,
}

/// One more limit on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Further {
    /// May be 0.
    pub requests: u32,
    /// The window.
    pub unit: Unit,
    /// Windows of this many units; `None` for 1.
    pub unit_multiplier: Option<u32>,
    /// How hits count.
    pub algorithm: Algorithm,
    /// The size of a bucket, in hits.
    pub burst: Option<u32>,
}

/// How hits count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Windows aligned to the epoch. Refused hits count too.
    #[default]
    FixedWindow,
    /// As many in any period, by estimate. Refused hits do not count.
    SlidingWindow,
    /// Refills smoothly, starts full; the burst is what a unit brings.
    TokenBucket,
    /// Drains smoothly; the burst is 1, so hits are spaced evenly.
    LeakyBucket,
}

/// Who shares a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Each calling workload has its own.
    Workload,
    /// All callers of this node.
    #[default]
    Node,
    /// All nodes, through the store.
    Fleet,
}

/// What a fleet quota is without a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storeless {
    /// Each node has the whole limit.
    Node,
    /// Each node has its part of the limit.
    Divide,
}

/// How exact a fleet quota is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// Nodes spend what they leased.
    #[default]
    Leased,
    /// The store is asked each time.
    Strict,
}

/// What holds while the store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnStoreFailure {
    /// The node's share.
    #[default]
    Local,
    /// Everything is admitted.
    Allow,
    /// Nothing is admitted beyond what is leased.
    Deny,
}

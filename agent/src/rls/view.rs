//! What the service tells of itself: `GET /rls` of the admin socket, as both sides know it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The rate limit service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rls {
    /// Where gRPC is served.
    pub listen: Vec<String>,
    /// Whether health checks pass.
    pub healthy: bool,
    /// When the quotas that hold were read, seconds since 1970; 0 before the first.
    pub loaded_at: f64,
    /// What is wrong with the quotas that were read last; then what was read before holds.
    pub problems: Vec<String>,
    /// Names of the domains.
    pub domains: Vec<String>,
    /// Questions, by what became of them.
    pub outcomes: BTreeMap<String, u64>,
    /// How long decisions took, in seconds.
    pub took: Took,
    /// What was counted beside the limits, by the name of the original's statistic.
    pub service: BTreeMap<String, u64>,
    /// Questions of callers who may not ask them.
    pub denied: Vec<Denied>,
    /// What was counted for each limit.
    pub series: Vec<Series>,
    /// Counts that live now, and how many can.
    pub live_counts: u64,
    /// See `live_counts`.
    pub live_counts_capacity: u64,
}

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Took {
    /// Of all, in seconds.
    pub sum_seconds: f64,
    /// Upper bound in seconds, and how many were in this bucket alone. The last has no bound.
    pub buckets: Vec<(Option<f64>, u64)>,
}

/// Questions that somebody may not ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Denied {
    /// The domain.
    pub domain: String,
    /// Who asked.
    pub caller: String,
    /// How often.
    pub count: u64,
}

/// What was counted for a limit, or for all that share a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// The domain.
    pub domain: String,
    /// One text for each level of descriptors: `key` or `key_value`.
    pub levels: Vec<String>,
    /// By the name of the original's statistic.
    pub counts: BTreeMap<String, u64>,
}

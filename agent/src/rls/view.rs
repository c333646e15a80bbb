//! What the service tells of itself: `GET /rls` of the admin socket, as both sides know it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{fleet::Figures, quota::Explained};

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
    /// Why certificates cannot be used, as they are written now; then those of before hold.
    pub certificates: Option<String>,
    /// Who sends the quotas, if somebody does.
    pub xds: Option<Xds>,
    /// Quotas of the fleet, if there is a store.
    pub fleet: Option<Fleet>,
}

/// A management server that sends quotas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Xds {
    /// Its address.
    pub server: String,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Its name for what was taken last; empty before the first.
    pub version: String,
    /// Why the last connection ended, if there is none.
    pub error: Option<String>,
}

/// How the fleet's quotas do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fleet {
    /// `up`, `late` or `down`.
    pub store: String,
    /// Commands sent to the store.
    pub commands: u64,
    /// Batches and connections that failed.
    pub failures: u64,
    /// Quotas that this node spends from.
    pub quotas: u64,
    /// Hits leased whose window ended before they were spent.
    pub stranded: u64,
    /// Hits admitted without the store that turned out to exceed their limit.
    pub overshoot: u64,
    /// Hits admitted without the store.
    pub assumed: u64,
    /// What this node may admit in a window without the store, over all quotas.
    pub assumed_share: u64,
    /// Age of the oldest lease that is not spent, in seconds.
    pub lease_age: f64,
}

impl From<Figures> for Fleet {
    fn from(figures: Figures) -> Self {
        Self {
            store: figures.health.name().to_owned(),
            commands: figures.commands,
            failures: figures.failures,
            quotas: figures.quotas,
            stranded: figures.stranded,
            overshoot: figures.overshoot,
            assumed: figures.assumed,
            assumed_share: figures.assumed_share,
            lease_age: figures.lease_age.as_secs_f64(),
        }
    }
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

/// A descriptor that is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offender {
    /// The domain.
    pub domain: String,
    /// Its entries, like `user=mallory, path=/`. What is long is cut.
    pub descriptor: String,
    /// Who asked about it last.
    pub caller: String,
    /// How often it was refused, at most.
    pub refused: u64,
    /// So many of these may be others'.
    pub error: u64,
    /// When it was refused last, seconds since 1970.
    pub last: f64,
}

/// A domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// In the order of the configuration.
    pub rules: Vec<Explained>,
    /// The most refused first.
    pub refused: Vec<Offender>,
    /// Callers who may not ask.
    pub denied: Vec<Denied>,
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

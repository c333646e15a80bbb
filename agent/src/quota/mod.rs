//! Quotas: limits by domain and descriptors, as Envoy's RateLimitService asks for them.
//!
//! ```text
//!  files ─► config ─┐                    ┌─► slab (counts on this node)
//!  xDS ─────────────┴► model ─► rules ───┤                             ├─► answer ─► response
//!                             (compiled) └─► store (counts of a fleet) ┘
//! ```
//!
//! [`Quotas`] is what a server needs: [`Quotas::apply`] exchanges the rules and keeps the counts,
//! [`Quotas::decide`] answers a request. Both follow envoyproxy/ratelimit; where not, `docs/quotas.md`
//! says so. Nothing here knows sockets, files or clocks: texts and times come as arguments.

use std::time::Duration;

mod ahead;
mod answer;
pub mod caller;
pub mod config;
pub mod decide;
mod dump;
pub mod engine;
mod explain;
pub mod identity;
mod metadata;
pub mod model;
mod overflow;
mod quotas;
pub mod refused;
pub mod rules;
pub mod series;
pub mod settings;
pub mod shared;
pub mod slab;
pub mod store;
mod table;
mod tally;
mod tariffs;
pub mod unit;
pub mod wildcard;
pub mod xds;

pub use self::{
    caller::{Caller, Credentials, Workload},
    decide::{Decision, Waiting},
    explain::{Explained, Spent},
    model::Configuration,
    quotas::{Quotas, Service},
    refused::Refused,
    series::Series,
    settings::{Bounds, HeaderNames, Settings},
};

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC in nanoseconds: buckets live by it.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970: windows are aligned to it.
    pub realtime_ns: u64,
}

impl Now {
    /// So many seconds before.
    #[must_use]
    pub const fn earlier(self, seconds: u64) -> Self {
        let ns = seconds * 1_000_000_000;
        Self {
            monotonic_ns: self.monotonic_ns.saturating_sub(ns),
            realtime_ns: self.realtime_ns.saturating_sub(ns),
        }
    }

    /// Whole seconds since 1970.
    pub const fn realtime_s(self) -> u64 {
        self.realtime_ns / Duration::from_secs(1).as_nanos() as u64
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;

//! The agent's state as Prometheus metrics, built anew for each scrape from what the admin socket
//! tells everybody. `docs/metrics.md` explains every one of them.
//!
//! It keeps no numbers: counters are the kernel's. Label values come from the node file (names of
//! workloads and interfaces, lines of policies) and from fixed lists, never from packets, so the
//! number of series is bounded by what an administrator wrote, and a series goes with its workload.

mod exposition;
mod labels;
mod requests;

use std::fmt;

use prometheus_client::{encoding::text, registry::Registry};

pub(crate) use self::labels::{Kind, kind_of};
use self::{exposition::Exposition, requests::Requests};
use crate::{app::view::Status, rls::view::Rls};

/// The format of [`render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin socket knows of its streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Streams that are open.
    pub open: u64,
    /// Refusals that their readers were too slow for.
    pub skipped: u64,
}

/// Writes everything in the text format of OpenMetrics 1.0; of rate limit requests only where they
/// are answered.
pub fn render(status: Status, traces: Traces, rls: Option<Rls>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition::new(status, traces)));
    if let Some(rls) = rls {
        registry.register_collector(Box::new(Requests::new(rls)));
    }
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests;

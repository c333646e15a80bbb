//! Quotas of the whole fleet on real Redis servers.
//!
//! Several agents' worth of quotas run in this process, each with its own connection, clock reading
//! and leases; what they share is the server. Windows are told from the time that each decision was
//! made with, so a slow machine changes how much is asked, and nothing else.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

#[macro_use(redis_or_skip)]
extern crate weir_tests;

#[path = "fleet/clocks.rs"]
mod clocks;
#[path = "fleet/conformance.rs"]
mod conformance;
#[path = "fleet/faults.rs"]
mod faults;
#[path = "fleet/pools.rs"]
mod pools;
#[path = "fleet/scenarios.rs"]
mod scenarios;
#[path = "fleet/sets.rs"]
mod sets;
#[path = "fleet/sharing.rs"]
mod sharing;
#[path = "fleet/site.rs"]
mod site;
#[path = "fleet/survey.rs"]
mod survey;
#[path = "fleet/ways.rs"]
mod ways;

//! Beside others: their programs on the same hooks, shortcuts around ours, and the early program
//! of the uplinks.
//!
//! Needs root, and the agent that `WEIR_BIN` names (else the release build).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

#[macro_use(lab)]
extern crate weir_tests;

#[path = "coexist/bypass.rs"]
mod bypass;
#[path = "coexist/tc.rs"]
mod tc;
#[path = "coexist/uplink.rs"]
mod uplink;

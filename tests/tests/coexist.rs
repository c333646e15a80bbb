//! Beside others: their programs on the same hooks, shortcuts around ours, and the early program
//! of the uplinks.
//!
//! Needs root, and the agent that `WEIR_BIN` names (else the release build).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

/// A lab; ends the test, counted as skipped, where that cannot be.
macro_rules! lab {
    () => {{
        fn here() {}
        let test = std::any::type_name_of_val(&here).trim_end_matches("::here");
        match weir_tests::agent::lab_or_skip(test) {
            Some(lab) => lab,
            None => return,
        }
    }};
}

#[path = "coexist/bypass.rs"]
mod bypass;
#[path = "coexist/tc.rs"]
mod tc;
#[path = "coexist/uplink.rs"]
mod uplink;

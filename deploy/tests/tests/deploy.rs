//! What is shipped to install Weir by says what the program knows: manifests, chart, alerts,
//! dashboard.
//!
//! No cluster is asked. Manifests are read by the types of the Kubernetes API, and the chart and the
//! kustomizations by the real `helm` and `kubectl`, where `cargo xtask test` could bring them.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

/// Ends the test, counted as skipped, where a program is missing.
macro_rules! needs {
    ($tool:expr) => {{
        fn here() {}
        let test = std::any::type_name_of_val(&here).trim_end_matches("::here");
        match $tool {
            Ok(program) => program,
            Err(reason) => {
                crate::files::skip(test, &reason);
                return;
            }
        }
    }};
}

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/files.rs"]
mod files;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/queries.rs"]
mod queries;
#[path = "deploy/unit.rs"]
mod unit;

//! Limits in the lab: real agents, real connections between network namespaces, counted on both
//! ends.
//!
//! Needs root, and the agent that `WEIR_BIN` names (else the release build).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests may panic as tests do"
)]

#[macro_use(lab)]
extern crate weir_tests;

/// One story, on each side of attachment.
macro_rules! on_each_side {
    ($($story:ident)*) => {$(
        mod $story {
            use weir_tests::site::Side;

            #[test]
            fn on_the_host_side() {
                super::$story(&lab!(), Side::Host);
            }

            #[test]
            fn inside_the_pod() {
                super::$story(&lab!(), Side::Pod);
            }

            #[test]
            fn on_a_machines_own_interface() {
                super::$story(&lab!(), Side::Own);
            }
        }
    )*};
}

#[path = "netns/appearing.rs"]
mod appearing;
#[path = "netns/audit.rs"]
mod audit;
#[path = "netns/bandwidth.rs"]
mod bandwidth;
#[path = "netns/breakers.rs"]
mod breakers;
#[path = "netns/calls.rs"]
mod calls;
#[path = "netns/connections.rs"]
mod connections;
#[path = "netns/evidence.rs"]
mod evidence;
#[path = "netns/files.rs"]
mod files;
#[path = "netns/handover.rs"]
mod handover;
#[path = "netns/handshakes.rs"]
mod handshakes;
#[path = "netns/leases.rs"]
mod leases;
#[path = "netns/limits.rs"]
mod limits;
#[path = "netns/peers.rs"]
mod peers;
#[path = "netns/quotas.rs"]
mod quotas;
#[path = "netns/refusals.rs"]
mod refusals;
#[path = "netns/reloads.rs"]
mod reloads;
#[path = "netns/rights.rs"]
mod rights;
#[path = "netns/shadow.rs"]
mod shadow;
#[path = "netns/shields.rs"]
mod shields;
#[path = "netns/trial.rs"]
mod trial;
#[path = "netns/uninstall.rs"]
mod uninstall;

//! What the programs do with given packets and tables, by `BPF_PROG_TEST_RUN`.
//!
//! `rows` is a table of packets, each run on every program under every kind of policy; the other
//! modules are about state: what one packet changes for the next.
//!
//! Needs CAP_BPF and CAP_NET_ADMIN, and no interface.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

/// The programs in a private copy; ends the test, counted as skipped, where that cannot be.
macro_rules! programs {
    () => {
        programs!(weir_tests::testrun::Globals::default())
    };
    ($globals:expr) => {{
        match weir_tests::testrun::load_or_skip(weir_tests::this_test!(), $globals) {
            Some(programs) => programs,
            None => return,
        }
    }};
}

#[path = "fixtures/breakers.rs"]
mod breakers;
#[path = "fixtures/bytes.rs"]
mod bytes;
#[path = "fixtures/concurrency.rs"]
mod concurrency;
#[path = "fixtures/connections.rs"]
mod connections;
#[path = "fixtures/events.rs"]
mod events;
#[path = "fixtures/find.rs"]
mod find;
#[path = "fixtures/handshakes.rs"]
mod handshakes;
#[path = "fixtures/pacing.rs"]
mod pacing;
#[path = "fixtures/random.rs"]
mod random;
#[path = "fixtures/resets.rs"]
mod resets;
#[path = "fixtures/rows.rs"]
mod rows;
#[path = "fixtures/rules.rs"]
mod rules;
#[path = "fixtures/sources.rs"]
mod sources;
#[path = "fixtures/uplink.rs"]
mod uplink;

use std::net::{Ipv4Addr, Ipv6Addr};

use weir_tests::{
    packet::Packet,
    testrun::{LOOPBACK, Policy, Programs},
    vm,
};

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 7);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9);
/// The workload of tests that need only one.
const WEB: u32 = 1;

fn v4() -> Packet {
    Packet::syn(CLIENT_V4, SERVER_V4)
}

fn v6() -> Packet {
    Packet::syn(CLIENT_V6, SERVER_V6)
}

/// A SYN of another connection for each number.
fn nth(number: u32) -> Packet {
    v4().with(|packet| {
        packet.source_port = 1024 + (number % 60_000) as u16;
        packet.sequence = packet.sequence.wrapping_add(number / 60_000 * 1_000_003);
    })
}

/// Puts a workload at the loopback and at both server addresses.
fn serve(programs: &mut Programs, policy: &Policy) {
    serve_at(programs, WEB, policy);
}

fn serve_at(programs: &mut Programs, slot: u32, policy: &Policy) {
    programs.serve(slot, policy);
    programs.at_interface(LOOPBACK, slot);
    programs.at_address(SERVER_V4, slot);
    programs.at_address(SERVER_V6, slot);
}

/// All of the above on Linux 6.1: its verifier, its compiler, its helpers.
#[test]
fn the_oldest_kernel_decides_the_same() {
    vm::all_others_inside(weir_tests::this_test!());
}

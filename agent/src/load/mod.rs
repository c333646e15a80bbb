//! A load tool for TCP connections: servers that count what they accept, clients that record how
//! each attempt ended and how long it took.
//!
//! It owns sockets and a thread per server or client, and refuses to know namespaces and limits:
//! both run wherever they are started, and tell only what they saw.
//!
//! The client is open-loop by default: attempts leave on a schedule that answers cannot delay, so
//! a refusal or a slow peer never makes the load gentler ([`Pace::PerSecond`]).

mod client;
mod outcome;
mod server;
mod stats;
mod table;
mod talk;

pub use self::{
    client::{Client, Pace, Plan, Report, Span},
    outcome::{Attempt, Outcome},
    server::Server,
    stats::{Latency, Stats},
    table::{Header, Row},
    talk::Talk,
};

#[cfg(test)]
mod tests;

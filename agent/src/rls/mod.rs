//! Envoy's rate limit service: gRPC, HTTP and the files behind them.
//!
//! It owns listeners, connections, who is at their other end, and when files are read. What they
//! say and what is answered is decided by [`crate::quota`]. What is wrong with a question, or with
//! us, is a gRPC status; an answer without a decision (`overall_code: UNKNOWN`) would let Envoy pass
//! the request, and is never given.

mod answers;
mod caller;
mod connection;
mod denied;
mod files;
mod histogram;
mod http;
mod json;
mod listen;
mod offenders;
mod reflection;
mod running;
mod sent;
mod server;
mod service;
mod settings;
mod state;
mod statsd;
mod tls;
pub mod view;
mod xds;

use crate::app::memory;

pub use self::{
    answers::{Answers, Outcome},
    caller::Workloads,
    listen::ListenError,
    running::Running,
    server::{Health, Server, StartError},
    settings::{Bounds, Headers, Modes, Settings, Statsd, Tls, Xds, XdsTls},
    state::{Loaded, State},
    tls::TlsError,
};

#[cfg(test)]
mod tests;

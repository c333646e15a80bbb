//! Envoy's rate limit service: gRPC, HTTP and the files behind them.
//!
//! It owns listeners, connections and who is at their other end. It decides nothing: whoever can be
//! asked is a [`Decide`], and both gRPC and `/json` ask through [`Answers`], which counts and times
//! what comes out. What is wrong with a question, or with us, is a gRPC status; an answer without
//! a decision (`overall_code: UNKNOWN`) would let Envoy pass the request, and is never given.

mod answers;
mod caller;
mod connection;
mod histogram;
mod listen;
mod server;
mod service;
mod settings;

pub use self::{
    answers::{Answers, Decide, Refused},
    caller::{Caller, Credentials, Workload, Workloads},
    listen::ListenError,
    server::{Server, StartError},
    settings::{Bounds, Headers, Modes, Settings, Tls, Xds},
};

#[cfg(test)]
mod tests;

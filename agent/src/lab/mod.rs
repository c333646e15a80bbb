//! A node in network namespaces: what the demo and the tests run traffic through.
//!
//! ```text
//!  client "polite" ─ eth0 ══ up-polite ┐                  ┌ veth-web ══ eth0 ─ pod "web"
//!                                      ├─ node (router) ──┤
//!  client "greedy" ─ eth0 ══ up-greedy ┘                  └ veth-db  ══ eth0 ─ pod "db"
//! ```
//!
//! Every box is a network namespace of its own, the node too: nothing is changed in the machine's
//! own namespace and no packet can leave the lab. The lab owns the namespaces, their interfaces,
//! one directory below `/run` with a bpffs of its own, and the processes started inside; each is
//! a guard that removes itself on drop, hence also on panic. What a killed run left behind is
//! found by the process id in its name and removed by the next run.
//!
//! It refuses to know what runs in it: no agent, no policy, no load.
//!
//! The caller's thread never changes its namespace. Work goes in as a closure
//! ([`Namespace::run`]), on a thread made for it, so a failing test cannot leave another one in
//! the wrong place. Threads and sockets made by the closure stay in the namespace.

mod error;
mod impair;
mod links;
mod namespace;
mod node;
mod offload;
mod process;
mod scope;
mod skip;

pub use self::{
    error::LabError,
    impair::{choose_queue, impair, shape},
    links::{End, Prefix, Route, add_address, add_route, delete_link, link_index, veth},
    namespace::Namespace,
    node::{CLIENTS_V4, CLIENTS_V6, Host, Node, PODS_V4, PODS_V6, Role},
    offload::{Offload, has_offload, set_mtu, set_offload},
    process::Process,
    scope::{Lab, remains},
    skip::{privileged, skip},
};

#[cfg(test)]
mod tests;

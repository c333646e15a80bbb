//! What Kubernetes says about this node: its pods and their namespaces, watched and remembered.
//!
//! `facts` are what of a pod matters here, the `index` turns facts into the
//! workloads that the engine holds, [`watch`] feeds it from the API server. It decides nothing
//! about limits: a pod becomes a [`Workload`](crate::config::Workload) with its annotations as it
//! wrote them, and goes the way of those of a node file from there.

mod access;
mod admission;
mod cluster;
mod facts;
mod index;
mod notices;
mod post;
mod release;
mod watch;

pub use self::{
    access::{ACCESS, Access, READINESS_GATE, STARTUP_TAINT},
    admission::admission_policies,
    cluster::{Cluster, Snapshot},
    notices::{Cause, Notice, Notices, Object},
    post::Poster,
    release::{GATE, Gate, Gated, Release, Releaser, Releases, Taints},
    watch::{connect, connect_once, watch},
};

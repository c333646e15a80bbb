//! Weir, a node-level limiter: new connections are limited in the kernel, for every workload of a
//! node.
//!
//! `policy` and `config` read what people want, `compile` turns it into tables, `datapath` makes
//! the kernel hold them, `workload` finds the interfaces, `kube` watches a node's pods, `audit`
//! compares tracked connections with sockets, `quota` decides by domain and descriptors, `rls` asks
//! it for Envoy, `app` wires these together. `lab`, `load` and `demo` show it at work.

pub mod admin;
#[cfg(test)]
mod allocations;
pub mod app;
pub mod audit;
pub mod causes;
pub mod cli;
pub mod clock;
pub mod compile;
pub mod config;
pub mod datapath;
pub mod demo;
pub mod fleet;
pub mod kube;
pub mod lab;
pub mod load;
pub mod metrics;
pub mod policy;
pub mod quota;
pub mod rls;
pub mod telemetry;
pub mod workload;

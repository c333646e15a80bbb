//! Lab, packets and models for the suites in `tests/`.

pub mod ads;
pub mod agent;
pub mod apiserver;
pub mod bpf;
pub mod counters;
pub mod envoy;
pub mod filters;
pub mod http;
pub mod kubelet;
pub mod needs;
pub mod open;
pub mod packet;
pub mod raw;
pub mod redis;
pub mod rls;
pub mod site;
pub mod tap;
pub mod testrun;
pub mod traffic;
pub mod vm;

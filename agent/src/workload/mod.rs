//! From a workload's location to the interface where its packets are seen.
//!
//! It asks the kernel, never the CNI: the namespace's own list of interfaces names the peer of a
//! veth, and the host's end must point back.

pub mod interfaces;
pub mod netns;
mod resolve;

pub use self::{
    interfaces::{Interface, node_addresses},
    resolve::{Missing, resolve, resolve_uplink},
};

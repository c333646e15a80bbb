//! From a workload's location to the interface where its packets are seen.
//!
//! It asks the kernel, never the CNI: the namespace's own list of interfaces names the peer of a
//! veth, and the host's end must point back. A pod's namespace is that of the processes in its cgroup.

pub mod cgroup;
mod cgroup_events;
pub mod interfaces;
pub mod netns;
mod pods;
mod resolve;

pub use self::{
    cgroup::DEFAULT_CGROUP_ROOT,
    cgroup_events::CgroupEvents,
    interfaces::{Interface, node_addresses},
    pods::{PodNetwork, PodNetworks},
    resolve::{Missing, Resolved, resolve, resolve_uplink},
};

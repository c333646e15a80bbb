//! Quotas of the whole fleet: every node leases slices of a window from a store that all share, and
//! decides from its lease without asking.
//!
//! `terms` says what a quota is and how it is named in the store. `leaser` is one quota's state
//! machine on one node and `node` all of them: events in, commands out, no sockets and no clock.
//! `store` is the other side: what a command means, in memory and in Redis. `driver` runs the one
//! against the other; `service` is what decisions ask. The words that decisions are made from are
//! `weir_common::lease`.

mod alarm;
mod directory;
mod driver;
#[cfg(test)]
mod held_tests;
pub mod leaser;
pub mod node;
mod registry;
mod service;
#[cfg(test)]
mod simulation;
pub mod store;
mod survey;
pub mod terms;

pub use self::{
    driver::Health,
    registry::Member,
    service::{Figures, Fleet, FleetSettings},
    survey::{Spending, Survey},
};

//! Health probes: what the node may open to a workload whatever its limits say.

use serde::Serialize;

use super::{
    key::Port,
    peer::Cidr,
    rate::{Bucket, Period, Rate},
};

/// Who probes which ports, and how much that may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// The probing addresses; `None` for the node's own.
    pub from: Option<Vec<Cidr>>,
    /// The probed ports.
    pub ports: Vec<Port>,
    /// The bucket that probes spend from, instead of the workload's limits.
    pub bucket: Bucket,
}

impl Probes {
    /// The bucket when nothing is written: more than any health check needs, and less than a flood.
    pub const BUCKET: Bucket = Bucket::of(match Rate::new(100, Period::SECOND) {
        Some(rate) => rate,
        None => panic!("100/s is a rate"),
    });
}

/// The budget for resets when nothing is written. What comes above is dropped in silence.
pub const RESETS: Bucket = Bucket::of(match Rate::new(1000, Period::SECOND) {
    Some(rate) => rate,
    None => panic!("1000/s is a rate"),
});

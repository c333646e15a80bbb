//! Attaching programs, keeping them attached, and leaving nothing behind.
//!
//! Where a workload has limits of bytes or packets, a second program stands behind the first, at the
//! same hook.
//!
//! The first TC program goes first in TCX order, the second right behind it; where the kernel has no TCX (before 6.6) it becomes a
//! clsact filter of priority 1, the second one of priority 2. Each attachment has one pin whose name says what it is; a starting
//! agent finds it by that name and swaps the program without a gap. The order is: write the map
//! entry, attach; detach, delete the entry. Foreign programs are left alone.

mod leftovers;
mod links;
mod tc;
mod xdp;

use std::{collections::BTreeSet, net::IpAddr};

use serde::Serialize;
use weir_common::layout::Direction;

use self::xdp::Early;
pub(super) use self::{
    leftovers::uninstall,
    links::{Links, paced},
};
use super::queue::{Pace, Pacing};
use crate::{compile::Identity, workload::netns::NetNs};

/// In both directions.
pub const BOTH_WAYS: [bool; 2] = [true; 2];

/// The program of one direction at one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    In,
    Out,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Which of the programs at one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Decides about connections.
    First,
    /// Limits bytes and packets.
    Volumes,
}

/// One program of an attachment.
struct Place {
    way: Way,
    rank: Rank,
    program: &'static str,
    /// The name of its pin, which says all that is needed to find the program again.
    pin: String,
}

/// Where a workload's packets are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The host's end of a veth pair.
    Host,
    /// An interface of the node itself.
    Own,
    /// An interface inside the workload's network namespace.
    Pod,
}

/// How XDP runs on an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkMode {
    /// In the driver.
    Native,
    /// In the stack, for drivers without XDP.
    Generic,
}

impl UplinkMode {
    /// As [`Attached::kind`] calls it.
    const fn kind(self) -> &'static str {
        match self {
            Self::Native => "xdp",
            Self::Generic => "xdp-generic",
        }
    }
}

impl Side {
    /// The direction of a workload's packets that a queue can delay: where its hook is at egress.
    pub const fn paced(self) -> Direction {
        match self {
            Self::Host => Direction::Ingress,
            Self::Own | Self::Pod => Direction::Egress,
        }
    }
}

/// Whose attachments may be others than they were left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Those at these interfaces of the agent's namespace, and those in other namespaces.
    Of(BTreeSet<u32>),
    /// All.
    All,
}

impl Doubt {
    /// Of either.
    pub fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Of(indexes), Self::Of(others)) => indexes.extend(others),
            _ => *self = Self::All,
        }
    }

    fn is_of(&self, attachment: &Attachment) -> bool {
        match self {
            Self::All => true,
            Self::Of(indexes) if attachment.cookie().is_some() => !indexes.is_empty(),
            Self::Of(indexes) => indexes.contains(&attachment.ifindex),
        }
    }
}

/// What programs are attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The two TC programs of a workload.
    Workload {
        /// The workload.
        workload: Identity,
        /// Where.
        side: Side,
        /// The network namespace, for [`Side::Pod`].
        netns: Option<NetNs>,
        /// Addresses by which uplinks know the workload.
        addresses: Vec<IpAddr>,
    },
    /// The same at the host's end of a veth of which nobody has said yet whose it is. Everything
    /// passes there. The kernel takes tens of milliseconds to attach, during which it keeps other
    /// changes of interfaces waiting; to name a workload is one write to a map.
    Unclaimed,
    /// The XDP program of an uplink.
    Uplink(UplinkMode),
    /// The XDP program of the host's end of a veth whose workload floods others.
    Shield,
}

/// One interface and what is to run there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface's name, in its namespace.
    pub interface: String,
    /// Its index, in its namespace.
    pub ifindex: u32,
    /// Whether its packets start with an Ethernet header.
    pub ethernet: bool,
    /// Whether programs run for what goes towards the workload, and for what comes from it.
    pub ways: [bool; 2],
    /// Whether the programs that limit bytes and packets run there too.
    pub volumes: bool,
    /// What they are to do with what is too much.
    pub pace: Pace,
    /// What runs there.
    pub target: Target,
}

/// How it is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// `tcx`, `clsact`, `xdp` or `xdp-generic`.
    pub kind: &'static str,
    /// Programs of others that run before ours, by name.
    pub before: Vec<String>,
    /// Whether limits of bytes and packets delay, in the one direction in which a queue can; `None`
    /// where there are none.
    pub pacing: Option<(Direction, Pacing)>,
}

impl Attachment {
    /// Whether its programs find the workload by ifindex.
    const fn is_found_by_interface(&self) -> bool {
        matches!(self.side(), Some(Side::Host | Side::Own))
    }

    /// Where its TC programs are, if it has any.
    const fn side(&self) -> Option<Side> {
        match &self.target {
            Target::Workload { side, .. } => Some(*side),
            Target::Unclaimed => Some(Side::Host),
            Target::Uplink(_) | Target::Shield => None,
        }
    }

    /// Whether its ifindex is one of another network namespace.
    pub fn is_in_another_namespace(&self) -> bool {
        self.cookie().is_some()
    }

    fn cookie(&self) -> Option<u64> {
        match &self.target {
            Target::Workload { side: Side::Pod, netns: Some(netns), .. } => Some(netns.cookie()),
            _ => None,
        }
    }

    /// Its TC programs, the first at each hook before the second.
    fn places(&self) -> Vec<Place> {
        let index = self.ifindex;
        let Some(side) = self.side() else { return Vec::new() };
        let (site, first) = match (side, self.cookie()) {
            (Side::Host, _) => (format!("host-{index}"), ["weir_host_in", "weir_host_out"]),
            (Side::Own, _) => (format!("own-{index}"), ["weir_own_in", "weir_own_out"]),
            (Side::Pod, cookie) => {
                let site = format!("pod-{index}-{}", cookie.unwrap_or(0));
                (site, ["weir_own_in", "weir_own_out"])
            }
        };
        let both = |programs: [&'static str; 2]| {
            let all = [Way::In, Way::Out].into_iter().zip(programs).zip(self.ways);
            all.filter(|(_, runs)| *runs).map(|(place, _)| place)
        };
        let mut places: Vec<Place> = both(first)
            .map(|(way, program)| Place {
                way,
                rank: Rank::First,
                program,
                pin: format!("{site}-{}", way.name()),
            })
            .collect();
        if self.volumes {
            places.extend(both(VOLUME_PROGRAMS).map(|(way, program)| Place {
                way,
                rank: Rank::Volumes,
                program,
                pin: format!("{site}-{}-bytes", way.name()),
            }));
        }
        places
    }

    /// The names of its pins.
    fn pins(&self) -> Vec<String> {
        match &self.target {
            Target::Uplink(mode) => vec![Early::Uplink(*mode).pin(self.ifindex)],
            Target::Shield => vec![Early::Shield.pin(self.ifindex)],
            Target::Workload { .. } | Target::Unclaimed => {
                self.places().into_iter().map(|place| place.pin).collect()
            }
        }
    }
}

/// The programs that limit bytes and packets, on whichever side.
const VOLUME_PROGRAMS: [&str; 2] = ["weir_bytes_in", "weir_bytes_out"];

//! The tables: what the kernel is to know, before it has numbers for slots, cells and blocks.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use weir_common::{
    layout::{Direction, MAX_RULES},
    verdict::Reason,
};

use super::cells::{Cell, CellKind, Identity};
use crate::policy::{Cidr, Group, LimitKind, Port, Slot};

/// All workloads, by identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tables {
    /// By the workload's identity (see [`super::Subject::identity`]).
    pub workloads: BTreeMap<String, WorkloadTable>,
}

/// What holds for one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkloadTable {
    /// The name for people.
    pub name: String,
    /// Its identity in the kernel.
    pub identity: Identity,
    /// The cell of the budget for resets; it is among `cells`.
    pub resets: Identity,
    /// All cells that rules name.
    pub cells: BTreeMap<Identity, Cell>,
    /// Rules towards the workload.
    pub ingress: Blocks,
    /// Rules from the workload.
    pub egress: Blocks,
    /// Limits of bytes and packets, towards and from the workload.
    pub volumes: [Blocks; 2],
}

/// Which programs judge by a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Those that decide about connections; a port is the one that is called.
    Connections,
    /// Those that limit bytes and packets; a port is the workload's own.
    Volumes,
}

impl Stage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Connections, Self::Volumes];
}

impl WorkloadTable {
    /// Whether connections of the workload must be tracked.
    pub fn is_tracked(&self) -> bool {
        let blocks = [&self.ingress, &self.egress].into_iter();
        blocks.flat_map(|blocks| blocks.ports.values().chain([&blocks.any])).any(Block::is_tracked)
    }

    /// Whether bytes or packets of the workload are limited.
    pub fn limits_volumes(&self) -> bool {
        self.volumes.iter().any(|blocks| *blocks != Blocks::default())
    }

    /// Whether something is judged by what goes towards the workload, and by what comes from it. Where
    /// connections are followed, both directions tell of them; and bytes are counted by programs that
    /// stand behind others.
    pub fn judges(&self) -> [bool; 2] {
        let both = self.is_tracked() || self.limits_volumes();
        [&self.ingress, &self.egress].map(|blocks| both || *blocks != Blocks::default())
    }

    /// The blocks of a stage and direction.
    pub const fn blocks(&self, stage: Stage, direction: Direction) -> &Blocks {
        let [towards, from] = &self.volumes;
        match (stage, direction) {
            (Stage::Connections, Direction::Ingress) => &self.ingress,
            (Stage::Connections, Direction::Egress) => &self.egress,
            (Stage::Volumes, Direction::Ingress) => towards,
            (Stage::Volumes, Direction::Egress) => from,
        }
    }

    pub(super) const fn blocks_mut(&mut self, stage: Stage, direction: Direction) -> &mut Blocks {
        let [towards, from] = &mut self.volumes;
        match (stage, direction) {
            (Stage::Connections, Direction::Ingress) => &mut self.ingress,
            (Stage::Connections, Direction::Egress) => &mut self.egress,
            (Stage::Volumes, Direction::Ingress) => towards,
            (Stage::Volumes, Direction::Egress) => from,
        }
    }
}

/// The blocks of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// For every port that has no block of its own; empty when nothing holds there.
    pub any: Block,
    /// For single ports.
    pub ports: BTreeMap<Port, Block>,
}

/// The rules for a port, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Block {
    /// At most [`MAX_RULES`].
    pub rules: Vec<Rule>,
}

impl Block {
    /// Most rules in a block.
    pub const MAX: usize = MAX_RULES;

    /// Whether connections that pass these rules must be tracked.
    pub fn is_tracked(&self) -> bool {
        self.rules.iter().any(|rule| rule.kind.is_tracked())
    }
}

/// One rule: for these peers, this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The peers (source of ingress, destination of egress); `None` for all.
    pub peer: Option<Cidr>,
    /// What happens.
    pub kind: RuleKind,
    /// Counted and reported, not refused.
    pub shadow: bool,
    /// Refused in silence rather than by a RST.
    pub drop: bool,
    /// The line of the policy it comes from.
    pub line: LineRef,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleKind {
    /// Admits at once; nothing is spent.
    Exempt,
    /// Decides by this cell alone.
    Probe(Identity),
    /// Spends from the source's bucket.
    Source {
        /// The cell.
        cell: Identity,
        /// How sources are told apart.
        group: Group,
    },
    /// Spends from this cell.
    Limit(Identity),
    /// Counts connections and handshakes in this cell.
    Load(Identity),
    /// Counts the connections of the source.
    SourceLoad {
        /// The cell.
        cell: Identity,
        /// How sources are told apart.
        group: Group,
    },
    /// Asks the breaker in this cell.
    Breaker {
        /// The cell.
        cell: Identity,
        /// Whether it reads responses of HTTP/1.
        http1: bool,
        /// The others of its service, if not all of them may be ejected at once.
        #[serde(skip_serializing_if = "Option::is_none")]
        among: Option<Among>,
    },
    /// Spends bytes from this cell.
    Bandwidth(Identity),
    /// Spends packets from this cell.
    Packets(Identity),
    /// Spends bytes from the bucket of a connection's direction.
    ConnectionBandwidth(Identity),
    /// Spends from a quota's cell.
    Quota {
        /// The cell.
        cell: Identity,
        /// How it counts: a bucket, a window or a lease.
        counts: CellKind,
    },
}

/// Breakers of one block that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Among {
    /// Tells them from others of the block.
    pub number: u8,
    /// How many of them may be ejected at once.
    pub at_most: u8,
}

impl RuleKind {
    /// The cell, unless nothing is spent.
    pub const fn cell(self) -> Option<Identity> {
        match self {
            Self::Exempt => None,
            Self::Probe(cell)
            | Self::Source { cell, .. }
            | Self::Limit(cell)
            | Self::Load(cell)
            | Self::SourceLoad { cell, .. }
            | Self::Breaker { cell, .. }
            | Self::Bandwidth(cell)
            | Self::Packets(cell)
            | Self::ConnectionBandwidth(cell)
            | Self::Quota { cell, .. } => Some(cell),
        }
    }

    /// Whether it must know what becomes of a connection.
    pub const fn is_tracked(self) -> bool {
        matches!(self, Self::Load(_) | Self::SourceLoad { .. } | Self::Breaker { .. })
    }
}

/// The line of the effective policy that a rule or a cell comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineRef {
    /// A limit; its slot names the line.
    Limit(Slot),
    /// `max-connections` and `max-handshakes` of one port, which are one limit in the kernel.
    Load(LoadRef),
    /// An exempt peer.
    Exempt(Cidr),
    /// The bucket for health probes.
    Probe,
    /// The budget for resets.
    Resets,
}

/// The lines whose limits one load holds; one of them at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct LoadRef {
    /// At which port; `None` for all ports together.
    pub port: Option<Port>,
    /// It only counts, and another for the same port is enforced.
    pub beside: bool,
    /// The line of `max-connections`.
    pub connections: Option<Slot>,
    /// The line of `max-handshakes`.
    pub handshakes: Option<Slot>,
}

impl LineRef {
    /// The word for it in metrics and for people: the key without its port.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exempt(_) => "exempt",
            Self::Probe => "probes",
            Self::Resets => "resets",
            Self::Limit(_) | Self::Load(_) => {
                self.slots().next().map_or("load", |slot| slot.kind.name())
            }
        }
    }

    /// The lines, by their slots: none but of limits.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let slots = match *self {
            Self::Limit(slot) => [Some(slot), None],
            Self::Load(load) => [load.connections, load.handshakes],
            Self::Exempt(_) | Self::Probe | Self::Resets => [None, None],
        };
        slots.into_iter().flatten()
    }

    /// Of these lines the one that refused with this reason.
    pub fn refused_by(&self, reason: Option<Reason>) -> Option<Slot> {
        let is_to_blame = |slot: &Slot| match reason {
            Some(Reason::MaxHandshakes) => slot.kind == LimitKind::MaxHandshakes,
            _ => true,
        };
        self.slots().find(is_to_blame)
    }

    /// The limit's kind, if it is one limit.
    pub const fn limit(&self) -> Option<LimitKind> {
        match self {
            Self::Limit(slot) => Some(slot.kind),
            _ => None,
        }
    }
}

impl fmt::Display for LineRef {
    /// The key with its port and destination, like `outbound-connections.443 to=10.0.0.0/8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(_) | Self::Load(_) => {
                for (index, slot) in self.slots().enumerate() {
                    f.write_str(if index == 0 { "" } else { " and " })?;
                    f.write_str(&slot.key())?;
                    if let Some(to) = slot.to {
                        write!(f, " to={to}")?;
                    }
                    f.write_str(if slot.beside { " (shadow)" } else { "" })?;
                }
                Ok(())
            }
            Self::Exempt(peer) => write!(f, "exempt {peer}"),
            Self::Probe | Self::Resets => f.write_str(self.name()),
        }
    }
}

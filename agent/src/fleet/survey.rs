//! What a node knows of its fleet: who belongs to it, and what it spends from together with whom.

use serde::{Deserialize, Serialize};

use super::{driver::Health, leaser::Leaser, registry::Member};

/// Quotas that are told of.
const QUOTAS: usize = 1000;

/// The fleet, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Survey {
    /// The cluster of the node that was asked.
    pub cluster: String,
    /// Its name there.
    pub node: String,
    /// Where the store is, without secrets.
    pub servers: String,
    /// `up`, `late` or `down`.
    pub store: String,
    /// Who belongs to the fleet, by name.
    pub members: Vec<Member>,
    /// Why nobody could say who does.
    pub problem: Option<String>,
    /// What this node spends from, most granted first.
    pub quotas: Vec<Spending>,
    /// Quotas that are not among them, because there are too many.
    pub more: u64,
}

/// A quota, as one node spends from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spending {
    /// Domain, keys and values: what its counters' names begin with.
    pub quota: String,
    /// Hits that the fleet may spend in a window.
    pub limit: u32,
    /// Seconds of a window.
    pub window: u32,
    /// Nodes that spend from it, this one among them; 0 before one has asked.
    pub spenders: u32,
    /// The part of the limit that is this node's own when the store does not answer.
    pub share: u32,
    /// Hits of this window that the node was granted.
    pub granted: u32,
    /// Hits of those that it has not spent.
    pub left: u32,
    /// Hits of this window that it admitted without the store.
    pub assumed: u32,
}

impl Spending {
    fn of(leaser: &Leaser, wall_ns: u64) -> Self {
        let (terms, cell) = (leaser.terms(), leaser.line().cell());
        let window = terms.window(wall_ns);
        let (share, spenders) = leaser.share();
        Self {
            quota: terms.stem.trim_end_matches('_').to_owned(),
            limit: terms.limit,
            window: terms.unit_s,
            spenders,
            share,
            granted: cell.granted(window),
            left: cell.left(window),
            assumed: cell.assumed(window),
        }
    }
}

impl Survey {
    /// What these quotas are spent like; the number of those that there is no room for.
    pub(super) fn spending<'a>(
        leasers: impl Iterator<Item = &'a Leaser>,
        wall_ns: u64,
    ) -> (Vec<Spending>, u64) {
        let mut all: Vec<_> = leasers.map(|leaser| Spending::of(leaser, wall_ns)).collect();
        all.sort_by(|one, other| {
            other.granted.cmp(&one.granted).then_with(|| one.quota.cmp(&other.quota))
        });
        let more = all.len().saturating_sub(QUOTAS) as u64;
        all.truncate(QUOTAS);
        (all, more)
    }
}

impl Health {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Late => "late",
            Self::Down => "down",
        }
    }
}

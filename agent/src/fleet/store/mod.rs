//! The store that a fleet shares: what can be asked of it, and what each question means.
//!
//! Every store keeps the same list of behaviours (`conformance`). None of them repeats a request:
//! whoever asked decides what silence means.

pub mod memory;
pub mod pool;
pub mod redis;

use self::pool::{Drawn, Pool};

/// One request. Requests of one batch are done in order, each on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Adds to a counter, which begins at 0. Answered by [`Reply::Counted`].
    Add {
        /// The counter.
        key: String,
        /// How many.
        hits: u32,
        /// Seconds after which the counter may be forgotten, if that is to be set.
        expire_s: Option<u32>,
    },
    /// Says anew when a counter may be forgotten. Answered by [`Reply::Done`].
    Expire {
        /// The counter.
        key: String,
        /// Seconds from now.
        expire_s: u32,
    },
    /// Takes from a counter what was added and not spent: never below 0, and nothing if the counter
    /// is not there. Answered by [`Reply::Done`].
    GiveBack {
        /// The counter.
        key: String,
        /// How many.
        hits: u32,
    },
    /// Draws from a bucket or a sliding window. Answered by [`Reply::Drawn`].
    Draw {
        /// Its key.
        key: String,
        /// What it is.
        pool: Pool,
        /// How many; below 0 they are given back, and 0 only asks.
        hits: i64,
    },
    /// Says that a node spends from a quota, and asks for its share. Answered by [`Reply::Joined`].
    Join {
        /// The quota's list of spenders.
        key: String,
        /// Who.
        node: String,
        /// The window of the quota in which it spends.
        window: u32,
        /// The quota's limit.
        limit: u32,
        /// The share that the node was told before.
        held: u32,
        /// Hits that it wants of a window.
        weight: u32,
        /// Seconds after which the list may be forgotten.
        expire_s: u32,
    },
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The counter with what was added.
    Counted(u64),
    /// It is done.
    Done,
    /// What came of it.
    Drawn(Drawn),
    /// Who spends.
    Joined {
        /// Nodes that joined in the last three windows, this one among them.
        spenders: u32,
        /// What this node may hold as its share. The shares of all never exceed the limit.
        share: u32,
    },
}

/// What a node's share should be: half of the limit is divided by heads, half by what each wants.
pub fn fair_share(limit: u32, spenders: u32, weight: u32, weights: u64) -> u32 {
    let limit = u64::from(limit);
    let half = limit / 2;
    let by_heads = (limit - half) / u64::from(spenders.max(1));
    // The product is below 2^63.
    let by_weight = half * u64::from(weight) / weights.max(1);
    u32::try_from(by_heads + by_weight).unwrap_or(u32::MAX)
}

/// Windows after which a node that does not join again is no spender any more.
pub const SPENDS_FOR: u32 = 3;

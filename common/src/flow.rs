//! Byte buckets of single connections: as many as send at once, in memory that never grows.
//!
//! A bucket is a [way](crate::way) in debt mode (see [`crate::debt`]): a connection that was idle for as
//! long as its bucket takes to fill has a full one, which equals an absent one, so its way is free for
//! the next. Nobody has to know when a connection begins or ends. Each direction of a connection is
//! placed by a keyed hash of its addresses and ports, so each has a bucket of its own. When seven live
//! ones crowd a line, the next share the eighth word and are reported as such.
//!
//! A way counts in ticks of 64 ns, which is longer than a small packet takes at 10 Gbit/s. So a charge
//! is rounded up or down at random, by as much as makes it exact on average: a million packets are off
//! by some 20 µs together.
//!
//! Two CPUs that meet a connection's first packets at once, while a lower way of its line falls idle
//! between their looks, can open two buckets for it. From then on the fuller one counts, so what the
//! other was charged is lost: one packet at most, whenever that happens. As with sources, two
//! connections of one line share a bucket with probability 2^-20 per pair.

use crate::{
    gcra::Q8,
    nh::{self, Secret},
    source,
    way::{self, Found, LINE, Line, TICK_NS, Tick},
    word::Word,
};

/// Ways for connections in a line; the last word is the shared one.
pub const WAYS: usize = source::WAYS;

/// Bits between 1/256 ns and a tick of 64 ns.
const TICK_BITS: u32 = 14;
const _: () = assert!(TICK_NS << 8 == 1 << TICK_BITS);

/// How old a time may be that a CPU brings along, in ticks: 4.3 s, as for [`crate::source`].
const SKEW: u64 = 1 << 26;

/// A time in ticks, rounded up or down so that it is exact on average over all values of `random`.
#[inline(always)]
pub const fn ticks(time: Q8, random: u32) -> u64 {
    let time = time + (random as u64 & ((1 << TICK_BITS) - 1));
    let ticks = time >> TICK_BITS;
    // What is further ahead than this is not ahead any more; a packet's debt may be longer.
    if ticks > MAX_CHARGE { MAX_CHARGE } else { ticks }
}

/// A number of ticks as a time.
#[inline(always)]
pub const fn time(ticks: u64) -> Q8 {
    ticks << TICK_BITS
}

/// Most that one packet is charged, in ticks: 19 hours. An hour of burst and this are within what a
/// way can be ahead.
const MAX_CHARGE: u64 = way::MAX_AHEAD / 4;

/// The keyed hash of what a connection's direction has in common: who sends, from where, to whom.
#[inline(always)]
pub fn hash(secret: &Secret, source: [u64; 2], destination: [u64; 2], ports: u32) -> u64 {
    let words = [source[0], source[1], destination[0], destination[1], ports as u64];
    nh::hash(secret, words)
}

/// The hash under one rule: each has buckets of its own.
#[inline(always)]
pub fn of_rule(secret: &Secret, flow: u64, cell: u32) -> u64 {
    nh::hash(secret, [flow, cell as u64])
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Spent {
    /// It is charged; so many ticks were spent before.
    Admitted(u64),
    /// As much as the bound was spent already.
    Denied,
    /// Somebody else changed the line meanwhile; nothing was charged.
    Contended,
}

/// The way of a connection, [`WAYS`] for the shared word. Writes nothing.
#[inline(always)]
pub fn way_for<L: Line>(line: &L, tag: u64, now: Tick) -> usize {
    match way::find(line, WAYS, tag, now) {
        Found::Present(index, _) | Found::Free(index, _) => index,
        Found::Crowded => WAYS,
    }
}

/// How a packet is charged, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// What it costs.
    pub ticks: u64,
    /// It is denied when so much is spent; one that must pass adds up to so much.
    pub bound: u64,
    /// The most that can be owed: what lies further ahead is of another tariff, and brought back.
    pub longest: u64,
    /// It must pass.
    pub forced: bool,
}

/// One attempt to charge a packet to that way.
#[inline(always)]
pub fn attempt<L: Line>(line: &L, way: usize, tag: u64, now: Tick, charge: Charge) -> Spent {
    // The shared word has no tag of its own: any constant will do.
    let owner = if way == WAYS { 1 } else { tag };
    let place = line.word(way & (LINE - 1));
    let word = place.load();
    let is_mine = way::has_tag(word, owner);
    let mut ahead = way::ahead(word, now);
    if !is_mine {
        if ahead > 0 && way != WAYS {
            return Spent::Contended;
        }
        // Only the place is taken over.
        ahead = 0;
    }
    let Charge { ticks, bound, longest, forced } = charge;
    let wanted = ahead.wrapping_add(ticks);
    let next = if forced {
        if wanted <= bound {
            wanted
        } else if ahead > bound {
            ahead
        } else {
            bound
        }
    } else if ahead < bound {
        wanted
    } else if ahead > bound + longest + SKEW {
        bound
    } else {
        return Spent::Denied;
    };
    match place.compare_exchange(word, way::pack(owner, now.after(next))) {
        Ok(_) if forced || ahead < bound => Spent::Admitted(ahead),
        Ok(_) => Spent::Denied,
        Err(_) => Spent::Contended,
    }
}

/// One attempt to give a charge back; `false` when somebody else changed the word meanwhile.
#[inline(always)]
pub fn attempt_refund<L: Line>(line: &L, way: usize, tag: u64, now: Tick, ticks: u64) -> bool {
    let owner = if way == WAYS { 1 } else { tag };
    let place = line.word(way & (LINE - 1));
    let word = place.load();
    let ahead = way::ahead(word, now);
    // Full again, or taken over by another: nothing to give back to.
    if !way::has_tag(word, owner) || ahead == 0 {
        return true;
    }
    let left = ahead.saturating_sub(ticks);
    place.compare_exchange(word, way::pack(owner, now.after(left))).is_ok()
}

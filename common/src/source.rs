//! Token buckets per source: as many as clients come, in memory that never grows.
//!
//! A bucket is a [way](crate::way) whose time is its theoretical arrival time: an idle source has
//! a full bucket, which equals an absent one, so its way is free for the next. Finding a way and
//! taking the first token from it is one compare-and-swap. When seven live sources crowd a line,
//! the next ones share the eighth word as one bucket and are reported as such.
//!
//! Exactness: the 20-bit tag makes two clients of one line share a bucket with probability 2^-20
//! per pair. Two CPUs that meet a new source at once, while a lower way of its line falls idle
//! between their looks, can open two buckets for it. So whoever takes a token looks at the other ways
//! afterwards, and takes it back and tries again if another bucket of the source is not full: of two
//! that do this at once the later sees the other's token, so all that was admitted stands in one
//! bucket. A token that cannot be taken back in [`TRIES`] rounds is lost, and a refund that meets such
//! a moment may be: both err on the side of the limit.

use crate::{
    gcra::{Refill, Taken},
    way::{self, Found, LINE, Line, TICK_NS, Tick},
    word::{TRIES, Word},
};

/// Ways for sources in a line; the last word is the shared one.
pub const WAYS: usize = LINE - 1;

/// What a source's bucket admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceParams {
    /// Ticks that one token is worth.
    pub cost: u64,
    /// Ticks that a full bucket is worth.
    pub burst: u64,
    /// Refill comes in steps of this many ticks; 0 for smooth refill.
    pub step: u64,
}

/// The longest time a source's bucket may take to fill, and the longest step: 36 hours, which leaves
/// room for rounding above the day that a policy may ask for.
pub const MAX_WINDOW_NS: u64 = 36 * 3_600_000_000_000;
const _: () = assert!(2 * MAX_WINDOW_NS / TICK_NS < way::MAX_AHEAD);

/// How old a time may be that a CPU brings along, in ticks: 4.3 s, as for [`crate::gcra`]'s words.
const SKEW: u64 = 1 << 26;

impl SourceParams {
    /// A bucket of `burst` tokens that refills by `tokens` every `period_ns`, rounded up to
    /// ticks of 64 ns. `None` when a number is 0 or filling would take longer than
    /// [`MAX_WINDOW_NS`].
    pub const fn new(tokens: u64, period_ns: u64, burst: u64, refill: Refill) -> Option<Self> {
        if tokens == 0 || period_ns == 0 || burst == 0 {
            return None;
        }
        let Some(ticks) = TICK_NS.checked_mul(tokens) else { return None };
        let cost = period_ns.div_ceil(ticks);
        let Some(window) = cost.checked_mul(burst) else { return None };
        let Some(step) = cost.checked_mul(tokens) else { return None };
        if window > MAX_WINDOW_NS / TICK_NS || step > MAX_WINDOW_NS / TICK_NS {
            return None;
        }
        let step = if matches!(refill, Refill::Step) { step } else { 0 };
        Some(Self { cost, burst: window, step })
    }

    /// The time from which this limit's ways count.
    ///
    /// With stepped refill that is the end of the current step: nothing comes back before, and to
    /// limits with another clock, or none, the way is live until then.
    #[inline(always)]
    fn origin(&self, now_ns: u64) -> Tick {
        let ticks = now_ns / TICK_NS;
        // Rounded before the reduction to 44 bits, so that steps keep their phase across the wrap.
        let ticks = if self.step == 0 { ticks } else { ticks - ticks % self.step + self.step };
        Tick::from_ns(ticks * TICK_NS)
    }

    /// The word after one token more, or `None` when that is more than the burst.
    #[inline(always)]
    fn charge(&self, word: u64, tag: u64, origin: Tick) -> Option<u64> {
        let ahead = way::ahead(word, origin);
        let ahead = if ahead > self.burst { self.burst } else { ahead };
        let next = ahead + self.cost;
        if next > self.burst { None } else { Some(way::pack(tag, origin.after(next))) }
    }

    /// The word of an empty bucket, if this one lies further ahead than it can (the limit was wider
    /// before): it would deny for as long as the old window.
    #[inline(always)]
    fn clamp(&self, word: u64, tag: u64, origin: Tick) -> Option<u64> {
        if way::ahead(word, origin) > self.burst + self.step + SKEW {
            Some(way::pack(tag, origin.after(self.burst)))
        } else {
            None
        }
    }

    /// The word after one token less, or `None` when the bucket is full.
    #[inline(always)]
    fn discharge(&self, word: u64, tag: u64, origin: Tick) -> Option<u64> {
        match way::ahead(word, origin) {
            0 => None,
            ahead => Some(way::pack(tag, origin.after(ahead.saturating_sub(self.cost)))),
        }
    }
}

/// What a take from a source's bucket did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct SourceTaken {
    /// The outcome.
    pub taken: Taken,
    /// It was the line's shared bucket that decided.
    pub crowded: bool,
}

/// Takes one token for the source with this tag.
#[inline(always)]
pub fn take<L: Line>(line: &L, tag: u64, now_ns: u64, params: &SourceParams) -> SourceTaken {
    for _ in 0..TRIES {
        let attempt = attempt(line, tag, now_ns, params);
        if attempt.taken != Taken::Contended {
            return attempt;
        }
    }
    SourceTaken { taken: Taken::Contended, crowded: false }
}

/// One attempt of a take; `Contended` when somebody else changed the line meanwhile.
#[inline(always)]
pub fn attempt<L: Line>(line: &L, tag: u64, now_ns: u64, params: &SourceParams) -> SourceTaken {
    let way = way_for(line, tag, now_ns);
    let taken = take_from(line, way, tag, now_ns, params);
    let rival = taken == Taken::Admitted && has_rival(line, way, tag, now_ns, params);
    if rival {
        let _ = (0..TRIES).any(|_| try_take_back(line, way, tag, now_ns, params));
    }
    SourceTaken { taken: if rival { Taken::Contended } else { taken }, crowded: way == WAYS }
}

/// The first step of an attempt: the way to take from, [`WAYS`] for the shared word. Writes nothing.
///
/// In the kernel each step is a function of its own: verified once, and not once for each way.
#[inline(always)]
pub fn way_for<L: Line>(line: &L, tag: u64, now_ns: u64) -> usize {
    match way::find(line, WAYS, tag, Tick::from_ns(now_ns)) {
        Found::Present(index, _) | Found::Free(index, _) => index,
        Found::Crowded => WAYS,
    }
}

/// The second step: takes a token from that way.
#[inline(always)]
pub fn take_from<L: Line>(
    line: &L,
    way: usize,
    tag: u64,
    now_ns: u64,
    params: &SourceParams,
) -> Taken {
    let origin = params.origin(now_ns);
    // The shared word has no tag of its own: any constant will do.
    let owner = if way == WAYS { 1 } else { tag };
    let word = line.word(way).load();
    // A free way carries somebody else's past: only its place is taken over.
    let current = if way::has_tag(word, owner) { word } else { 0 };
    if current == 0 && way != WAYS && way::ahead(word, Tick::from_ns(now_ns)) > 0 {
        return Taken::Contended;
    }
    let Some(next) = params.charge(current, owner, origin) else {
        if let Some(empty) = params.clamp(current, owner, origin) {
            // Whoever was faster has clamped it, or will be clamped by the next.
            let _ = line.word(way).compare_exchange(word, empty);
        }
        return Taken::Denied;
    };
    match line.word(way).compare_exchange(word, next) {
        Ok(_) => Taken::Admitted,
        Err(_) => Taken::Contended,
    }
}

/// The third step, after a token was taken from a way: whether another bucket of the source has tokens
/// spent. Then it must be [taken back](try_take_back).
#[inline(always)]
pub fn has_rival<L: Line>(
    line: &L,
    way: usize,
    tag: u64,
    now_ns: u64,
    params: &SourceParams,
) -> bool {
    way != WAYS && has_twin(line, way, tag, params.origin(now_ns))
}

/// The fourth step, tried until it is done: takes back the token that was taken from a way that must
/// not count.
#[inline(always)]
pub fn try_take_back<L: Line>(
    line: &L,
    way: usize,
    tag: u64,
    now_ns: u64,
    params: &SourceParams,
) -> bool {
    let origin = params.origin(now_ns);
    let word = line.word(way).load();
    if !way::has_tag(word, tag) {
        return true;
    }
    let ahead = way::ahead(word, origin);
    // A full bucket is free for others, whatever its step.
    let next =
        if ahead > params.cost { way::pack(tag, origin.after(ahead - params.cost)) } else { 0 };
    line.word(way).compare_exchange(word, next).is_ok()
}

/// Whether tokens of this source's are spent in another way.
#[inline(always)]
fn has_twin<L: Line>(line: &L, mine: usize, tag: u64, origin: Tick) -> bool {
    let mut twin = false;
    for index in 0..WAYS {
        let word = line.word(index).load();
        twin |= index != mine && way::has_tag(word, tag) && way::ahead(word, origin) > 0;
    }
    twin
}

/// Whether a take would be denied. Writes nothing.
#[inline(always)]
pub fn would_deny<L: Line>(line: &L, tag: u64, now_ns: u64, params: &SourceParams) -> bool {
    let now = Tick::from_ns(now_ns);
    let origin = params.origin(now_ns);
    let (word, owner) = match way::find(line, WAYS, tag, now) {
        Found::Present(_, word) => (word, tag),
        Found::Free(..) => return false,
        Found::Crowded => (line.word(WAYS).load(), 1),
    };
    params.charge(word, owner, origin).is_none()
}

/// Gives one token back, after an outer limit refused what this bucket had admitted.
#[inline(always)]
pub fn refund<L: Line>(line: &L, tag: u64, crowded: bool, now_ns: u64, params: &SourceParams) {
    for _ in 0..TRIES {
        if attempt_refund(line, tag, crowded, now_ns, params) {
            return;
        }
    }
}

/// One attempt of a refund; `false` when somebody else changed the word meanwhile.
#[inline(always)]
pub fn attempt_refund<L: Line>(
    line: &L,
    tag: u64,
    crowded: bool,
    now_ns: u64,
    params: &SourceParams,
) -> bool {
    let now = Tick::from_ns(now_ns);
    let origin = params.origin(now_ns);
    let (index, word) = if crowded {
        (WAYS, line.word(WAYS).load())
    } else {
        match way::find(line, WAYS, tag, now) {
            Found::Present(index, word) => (index, word),
            // Full again and taken over by another: nothing to give back to.
            Found::Free(..) | Found::Crowded => return true,
        }
    };
    let owner = if crowded { 1 } else { tag };
    let Some(next) = params.discharge(word, owner, origin) else { return true };
    line.word(index).compare_exchange(word, next).is_ok()
}

//! A token bucket in one word: the generic cell rate algorithm.
//!
//! The word is the *theoretical arrival time* (TAT): the moment at which the bucket will be full
//! again. A full bucket has its TAT in the past; each token taken moves it `cost` further; a take
//! that would move it more than `burst` ahead of now is denied. One word means one
//! compare-and-swap, so any number of CPUs and callers stay exact without a lock.
//!
//! Time is CLOCK_MONOTONIC in units of 1/256 ns. Only the signed difference to `now` has a
//! meaning, so the word may wrap (every 2.3 years). The word 0 means "never used", a full bucket:
//! without it a fresh cell would look far in the future on a machine up for more than 1.1 years.

use crate::word::{TRIES, Word};

/// A point in time, or a duration, in 1/256 ns of CLOCK_MONOTONIC.
pub type Q8 = u64;

/// Converts nanoseconds to the bucket's unit.
#[inline(always)]
pub const fn q8(ns: u64) -> Q8 {
    ns << 8
}

/// The longest time a bucket may take to fill: 2^61 units, about 104 days.
///
/// It keeps every sum of the arithmetic below the 2^63 at which "ahead" turns into "behind".
pub const MAX_WINDOW: Q8 = 1 << 61;

/// How old a time may be that a CPU brings along: 4.3 s, because a virtual CPU may be stopped between
/// reading the clock and changing the word.
///
/// A word that is further ahead by less than this was written by a CPU with a newer time: to bring it
/// back would hand out that time twice.
pub(crate) const SKEW: Q8 = 1 << 40;

/// How tokens come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "user", serde(rename_all = "kebab-case"))]
pub enum Refill {
    /// One by one, evenly spread over the period.
    Smooth,
    /// All `tokens` of a period at its end, as older Envoys do.
    Step,
}

/// What a bucket admits. The fields are what the hot path needs and nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Params {
    /// Time that one token is worth, 1/256 ns.
    pub cost: Q8,
    /// Time that a full bucket is worth (burst × cost), 1/256 ns.
    pub burst: Q8,
    /// Refill comes in steps of this length, 1/256 ns; 0 for smooth refill.
    pub step: Q8,
}

impl Params {
    /// A bucket of `burst` tokens that refills by `tokens` every `period_ns`.
    ///
    /// The cost is rounded up, so that no rounding ever admits more than was written; the period
    /// grows by less than `tokens` / 256 ns. `None` when a number is 0 or the bucket would take
    /// longer than [`MAX_WINDOW`] to fill.
    pub const fn new(tokens: u64, period_ns: u64, burst: u64, refill: Refill) -> Option<Self> {
        if tokens == 0 || period_ns == 0 || burst == 0 || period_ns >= MAX_WINDOW >> 8 {
            return None;
        }
        let cost = q8(period_ns).div_ceil(tokens);
        let window = match cost.checked_mul(burst) {
            Some(window) if window <= MAX_WINDOW => window,
            _ => return None,
        };
        let step = match refill {
            Refill::Smooth => 0,
            Refill::Step => match cost.checked_mul(tokens) {
                Some(step) if step <= MAX_WINDOW => step,
                _ => return None,
            },
        };
        Some(Self { cost, burst: window, step })
    }

    /// Steps are time rounded down: between two steps nothing comes back.
    #[inline(always)]
    fn clock(&self, now: Q8) -> Q8 {
        if self.step == 0 { now } else { now - now % self.step }
    }
}

/// What a take would do to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Admit, and store this.
    Admit(u64),
    /// Deny, and store nothing.
    Deny,
    /// Deny, and store this: the word lay further ahead than this bucket allows (its burst was
    /// lowered) and is brought back to "empty", or it would deny for as long as the old burst.
    DenyClamped(u64),
}

/// What a take did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Taken {
    /// A token was there and is spent.
    Admitted,
    /// The bucket is empty.
    Denied,
    /// Too many others changed the word at once; nothing was spent.
    Contended,
}

/// The transition for one token at time `now`.
#[inline(always)]
pub fn step(word: u64, now: Q8, params: &Params) -> Step {
    let now = params.clock(now);
    let ahead = word.wrapping_sub(now) as i64;
    let base = if word == 0 || ahead < 0 {
        now
    } else if ahead as u64 > params.burst + params.step + SKEW {
        return Step::DenyClamped(used(now.wrapping_add(params.burst)));
    } else {
        word
    };
    let next = base.wrapping_add(params.cost);
    if next.wrapping_sub(now) > params.burst { Step::Deny } else { Step::Admit(used(next)) }
}

/// Keeps a computed time from being taken for "never used".
#[inline(always)]
pub(crate) const fn used(word: u64) -> u64 {
    if word == 0 { 1 } else { word }
}

/// Takes one token.
#[inline(always)]
pub fn take<W: Word>(cell: &W, now: Q8, params: &Params) -> Taken {
    let mut word = cell.load();
    for _ in 0..TRIES {
        let (next, taken) = match step(word, now, params) {
            Step::Admit(next) => (next, Taken::Admitted),
            Step::Deny => return Taken::Denied,
            Step::DenyClamped(next) => (next, Taken::Denied),
        };
        match cell.compare_exchange(word, next) {
            Ok(_) => return taken,
            Err(seen) => word = seen,
        }
    }
    Taken::Contended
}

/// Whether a take at `now` would be denied. Writes nothing.
#[inline(always)]
pub fn would_deny(word: u64, now: Q8, params: &Params) -> bool {
    !matches!(step(word, now, params), Step::Admit(_))
}

/// Gives one token back, after an outer limit refused what this one had admitted.
///
/// A bucket that has become full meanwhile stays full: a TAT further in the past says no more.
/// Losing the race 16 times loses one token, which errs on the side of the limit.
#[inline(always)]
pub fn refund<W: Word>(cell: &W, params: &Params) {
    let mut word = cell.load();
    for _ in 0..TRIES {
        if word == 0 {
            return;
        }
        match cell.compare_exchange(word, used(word.wrapping_sub(params.cost))) {
            Ok(_) => return,
            Err(seen) => word = seen,
        }
    }
}

/// The word for a bucket whose parameters change from `old` to `new`: it holds as many tokens as
/// before, or as many as fit.
///
/// Neither an equal part nor a full bucket: if a change of parameters gave tokens, whoever may change
/// them could have any number. A larger burst is there when the new rate has filled it.
pub fn rescale(word: u64, now: Q8, old: &Params, new: &Params) -> u64 {
    let left = old.burst - spent(word, now, old);
    // u128: a window of up to 2^61 is multiplied. Rounded down: never fuller than before.
    let left = u128::from(left) * u128::from(new.cost) / u128::from(old.cost);
    let left = u64::try_from(left).unwrap_or(u64::MAX).min(new.burst);
    if left == new.burst {
        return 0;
    }
    used(new.clock(now).wrapping_add(new.burst - left))
}

/// How much of the bucket is spent at `now`: 0 when full, `burst` when empty, 1/256 ns.
pub fn spent(word: u64, now: Q8, params: &Params) -> Q8 {
    let ahead = word.wrapping_sub(params.clock(now)) as i64;
    if word == 0 || ahead < 0 { 0 } else { (ahead as u64).min(params.burst) }
}

/// Whole tokens that could be taken at `now`.
pub fn tokens_left(word: u64, now: Q8, params: &Params) -> u64 {
    (params.burst - spent(word, now, params)) / params.cost
}

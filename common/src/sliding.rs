//! A sliding window in one word: what was admitted in this window and in the one before.
//!
//! The part of the window before that still lies within one period of now is estimated by assuming
//! that its hits were spread evenly. So the budget does not come back at once at the edge of a
//! window, and nobody gets two of them in a moment. Only what was admitted counts: who keeps asking
//! is not kept out by asking.
//!
//! The word is `number:24 | previous:20 | current:20`; windows are those of [`crate::window`], and a
//! clock that is stepped is treated as there. Numbers of windows of a second come round after 194
//! days.

use crate::window::SKEW_SECONDS;

const COUNT_BITS: u32 = 20;
const NUMBER_BITS: u32 = 24;

/// The highest limit.
pub const MAX_LIMIT: u64 = (1 << COUNT_BITS) - 1;

/// A moment of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    number: u64,
    slack: u64,
    /// What is left of the window.
    left_ns: u64,
    period_ns: u64,
}

/// What a word says at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Read {
    number: u64,
    previous: u64,
    current: u64,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What to store.
    pub word: u64,
    /// Whether the hits were admitted.
    pub admitted: bool,
    /// How many counted before, by estimate.
    pub before: u64,
}

impl Moment {
    /// The moment of a time, with windows of `period_s` seconds (1 or more).
    pub const fn at(realtime_ns: u64, period_s: u64) -> Self {
        let period_ns = period_s.saturating_mul(1_000_000_000);
        Self {
            number: (realtime_ns / period_ns) & mask(NUMBER_BITS),
            slack: 1 + SKEW_SECONDS.div_ceil(period_s),
            left_ns: period_ns - realtime_ns % period_ns,
            period_ns,
        }
    }

    const fn read(self, word: u64) -> Read {
        let number = word >> (2 * COUNT_BITS);
        let previous = word >> COUNT_BITS & mask(COUNT_BITS);
        let current = word & mask(COUNT_BITS);
        let ahead = number.wrapping_sub(self.number) & mask(NUMBER_BITS);
        if ahead == mask(NUMBER_BITS) {
            Read { number: self.number, previous: current, current: 0 }
        } else if ahead >= 1 << (NUMBER_BITS - 1) {
            Read { number: self.number, previous: 0, current: 0 }
        } else if ahead <= self.slack && previous + current > 0 {
            Read { number, previous, current }
        } else {
            Read { number: self.number, previous, current }
        }
    }

    /// How many count at this moment, rounded up.
    pub const fn count(self, word: u64) -> u64 {
        let Read { number, previous, current } = self.read(word);
        // A word that stands ahead is read as at the start of its window.
        let left = if number == self.number { self.left_ns } else { self.period_ns };
        // 20 bits of hits times 55 bits of nanoseconds.
        let weighted = (previous as u128 * left as u128).div_ceil(self.period_ns as u128);
        current + weighted as u64
    }

    /// Whether the word says nothing any more.
    pub const fn is_over(self, word: u64) -> bool {
        let Read { previous, current, .. } = self.read(word);
        previous + current == 0
    }

    /// Admits `hits` if at most `limit` count with them.
    pub const fn step(self, word: u64, hits: u64, limit: u64) -> Asked {
        let before = self.count(word);
        let limit = if limit < MAX_LIMIT { limit } else { MAX_LIMIT };
        let Some(after) = before.checked_add(hits) else {
            return Asked { word, admitted: false, before };
        };
        if after > limit {
            return Asked { word, admitted: false, before };
        }
        let Read { number, previous, current } = self.read(word);
        let word = number << (2 * COUNT_BITS) | previous << COUNT_BITS | (current + hits);
        Asked { word, admitted: true, before }
    }

    /// Gives hits of this window back, down to 0.
    pub const fn step_back(self, word: u64, hits: u64) -> u64 {
        let Read { number, previous, current } = self.read(word);
        number << (2 * COUNT_BITS) | previous << COUNT_BITS | current.saturating_sub(hits)
    }
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

//! A fixed window in one word: how many hits there were since it began.
//!
//! Windows are as long as the limit's unit and aligned to the epoch of the realtime clock, as
//! envoyproxy/ratelimit has them (`src/limiter/cache_key.go`): window `n` of a minute begins at second
//! `60 n` of the epoch. Every hit counts, admitted or not, so the word says how many were asked for;
//! whoever asks compares it with a limit. Several limits may judge one word.
//!
//! The word is `number:28 | count:36`. The count saturates above every 32-bit limit, so that a limit
//! of 2³²−1 still ends. Numbers are compared around the corner: for windows of a second they come
//! round after 8.5 years, and a word that was idle for just as long shows its last count once more.
//!
//! # A clock that is stepped
//!
//! Realtime is not monotonic, so a word may stand ahead of who reads it. By a little
//! ([`SKEW_SECONDS`], and one window): its writer had a newer clock, or the clock went back by a
//! moment; the word stays in its window, for a window that went back would be given out twice. By
//! more: the clock was set back, and waiting for it would refuse everybody for as long; the count
//! moves to the window of the clock, so that nothing is given out by the step itself.

use crate::word::{TRIES, Word};

const COUNT_BITS: u32 = 36;
const NUMBER_BITS: u32 = 28;

/// The highest count; it means "as many or more".
pub const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;

/// How old a time may be that a CPU brings along: a virtual CPU may be stopped between reading the
/// clock and changing the word.
pub const SKEW_SECONDS: u64 = 5;

/// The window of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    number: u64,
    /// How many windows ahead a word may stand.
    slack: u64,
}

impl Window {
    /// The window of `period_s` seconds (1 or more) at a second of the epoch.
    #[inline(always)]
    pub const fn at(realtime_s: u64, period_s: u64) -> Self {
        Self {
            number: (realtime_s / period_s) & mask(NUMBER_BITS),
            slack: 1 + SKEW_SECONDS.div_ceil(period_s),
        }
    }

    /// The word's count, and the number of the window that it stands for.
    #[inline(always)]
    const fn read(self, word: u64) -> (u64, u64) {
        let (number, count) = (word >> COUNT_BITS, word & MAX_COUNT);
        let ahead = number.wrapping_sub(self.number) & mask(NUMBER_BITS);
        if ahead == 0 {
            (self.number, count)
        } else if ahead >= 1 << (NUMBER_BITS - 1) {
            (self.number, 0)
        } else if ahead <= self.slack && count > 0 {
            (number, count)
        } else {
            (self.number, count)
        }
    }

    /// Hits in this window so far.
    #[inline(always)]
    pub const fn count(self, word: u64) -> u64 {
        self.read(word).1
    }

    /// Whether the word says nothing any more: its window is over.
    #[inline(always)]
    pub const fn is_over(self, word: u64) -> bool {
        self.read(word).1 == 0
    }

    /// The word after `hits` more.
    #[inline(always)]
    pub const fn step(self, word: u64, hits: u64) -> Counted {
        let (number, before) = self.read(word);
        let room = MAX_COUNT - before;
        let after = if hits < room { before + hits } else { MAX_COUNT };
        Counted { word: number << COUNT_BITS | after, before, after }
    }

    /// The word after `hits` were given back: never below 0.
    #[inline(always)]
    pub const fn step_back(self, word: u64, hits: u64) -> Counted {
        let (number, before) = self.read(word);
        let after = before.saturating_sub(hits);
        Counted { word: number << COUNT_BITS | after, before, after }
    }
}

#[inline(always)]
const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// What hits made of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The word to store.
    pub word: u64,
    /// The count before these hits.
    pub before: u64,
    /// The count with them.
    pub after: u64,
}

/// Counts hits. `None` if too many others changed the word at once; then nothing was counted.
#[inline(always)]
pub fn hit<W: Word>(cell: &W, window: Window, hits: u64) -> Option<Counted> {
    let mut word = cell.load();
    for _ in 0..TRIES {
        let counted = window.step(word, hits);
        match cell.compare_exchange(word, counted.word) {
            Ok(_) => return Some(counted),
            Err(seen) => word = seen,
        }
    }
    None
}

/// Gives hits back, down to 0. Losing the race 16 times gives nothing back, which errs on the side of
/// the limit.
#[inline(always)]
pub fn give_back<W: Word>(cell: &W, window: Window, hits: u64) {
    let mut word = cell.load();
    for _ in 0..TRIES {
        let counted = window.step_back(word, hits);
        match cell.compare_exchange(word, counted.word) {
            Ok(_) => return,
            Err(seen) => word = seen,
        }
    }
}

//! What a node may spend of a fleet's quota without asking, in the eight words of one cell.
//!
//! A quota of the fleet is counted in windows (of a second, a minute, …) by a store that all nodes
//! share. A node takes slices of a window from the store and spends them here. Each word is
//! `window:32 | number:32` and means something in its window only, so that a word of a window that is
//! over needs nobody to clear it. There are two words of a kind, for the even and the odd window: the
//! next window's lease can lie ready while this one's is spent.
//!
//! | words | number | written by |
//! |---|---|---|
//! | 0, 1 | leased and not spent | the agent adds, whoever decides takes |
//! | 2, 3 | admitted without the store's word | whoever decides |
//! | 4, 5 | granted by the store, spent or not | the agent |
//! | 6 | the store's counter when it last spoke of the window | the agent |
//! | 7 | `poked:1`: the agent was woken; `low:31`: wake it below so many; `allowance:32`: what may be admitted without the store | the agent, the bit also whoever decides |
//!
//! Everything is compare-and-swap over single words, so the kernel and the agent can decide from the
//! same cell.

use crate::{
    way::{self, Line},
    word::{TRIES, Word},
};

/// Words of a cell: a cache line.
pub const WORDS: usize = way::LINE;
/// An allowance without end.
pub const UNLIMITED: u32 = u32::MAX;

const ASSUMED: usize = 2;
const GRANTED: usize = 4;
const SEEN: usize = 6;
const MARKS: usize = 7;
/// In the marks: the agent was woken, and has not looked yet.
const POKED: u64 = 1 << 63;
const MAX_LOW: u32 = u32::MAX >> 1;

/// The number of a window: Unix time divided by the window's length.
pub type Window = u32;

/// A word's two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered {
    window: Window,
    number: u32,
}

impl Numbered {
    #[inline(always)]
    const fn read(word: u64) -> Self {
        Self { window: (word >> 32) as u32, number: word as u32 }
    }

    #[inline(always)]
    const fn word(self) -> u64 {
        (self.window as u64) << 32 | self.number as u64
    }

    /// The number in a window; 0 in any other.
    #[inline(always)]
    const fn of(self, window: Window) -> u32 {
        if self.window == window { self.number } else { 0 }
    }
}

/// How much of a request for `hits` the store grants, when its counter stands at `after` with them.
///
/// Each request owns the stretch of the counter that it added. What of that lies below the limit is
/// granted, so whatever is granted in a window never exceeds the limit, whoever else counts on the key.
#[inline(always)]
pub const fn grant(limit: u32, after: u64, hits: u32) -> u32 {
    let before = after.saturating_sub(hits as u64);
    let room = (limit as u64).saturating_sub(before);
    if room < hits as u64 { room as u32 } else { hits }
}

/// What came of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Taken {
    /// Admitted from the lease.
    Admitted {
        /// What is left of it.
        left: u32,
        /// The agent should be woken, to renew it.
        low: bool,
    },
    /// The window's limit is used up, as the store said.
    Exhausted,
    /// The lease does not suffice, and the store may have more.
    Short,
    /// Too many others changed the word at once; nothing was spent.
    Contended,
}

/// What came of a decision without the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Assumed {
    /// Admitted, and noted for the store.
    Admitted,
    /// More than this node may admit on its own.
    Refused,
}

/// One quota's words.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a, L>(pub &'a L);

impl<L: Line> Cell<'_, L> {
    #[inline(always)]
    fn at(&self, base: usize, window: Window) -> L::Word<'_> {
        self.0.word(base + (window & 1) as usize)
    }

    #[inline(always)]
    fn marks(&self) -> u64 {
        self.0.word(MARKS).load()
    }

    #[inline(always)]
    fn seen(&self) -> Numbered {
        Numbered::read(self.0.word(SEEN).load())
    }

    /// Spends `hits` of the lease on `window`. A request for 0 hits only looks.
    #[inline(always)]
    pub fn take(&self, window: Window, limit: u32, hits: u32) -> Taken {
        let cell = self.at(0, window);
        for _ in 0..TRIES {
            let word = cell.load();
            let lease = Numbered::read(word);
            if lease.window != window || lease.number < hits {
                return if self.is_exhausted(window, limit) {
                    Taken::Exhausted
                } else {
                    Taken::Short
                };
            }
            let left = lease.number - hits;
            if cell.compare_exchange(word, Numbered { window, number: left }.word()).is_ok() {
                let low = left < (self.marks() >> 32) as u32 & MAX_LOW;
                return Taken::Admitted { left, low };
            }
        }
        Taken::Contended
    }

    /// Admits `hits` without the store, as far as this node may: the allowance less what the store
    /// granted, and never more than the limit leaves beyond what the store has counted.
    #[inline(always)]
    pub fn assume(&self, window: Window, limit: u32, hits: u32) -> Assumed {
        let allowance = self.marks() as u32;
        let seen = self.seen().of(window);
        let granted = Numbered::read(self.at(GRANTED, window).load()).of(window);
        let rest = limit.saturating_sub(seen);
        let budget = if allowance == UNLIMITED {
            if rest == 0 { 0 } else { UNLIMITED }
        } else {
            let own = allowance.saturating_sub(granted);
            if own < rest { own } else { rest }
        };
        let cell = self.at(ASSUMED, window);
        for _ in 0..TRIES {
            let word = cell.load();
            let assumed = Numbered::read(word).of(window);
            let Some(number) = assumed.checked_add(hits) else { return Assumed::Refused };
            if number > budget {
                return Assumed::Refused;
            }
            if cell.compare_exchange(word, Numbered { window, number }.word()).is_ok() {
                return Assumed::Admitted;
            }
        }
        Assumed::Refused
    }

    /// Whether the store said that the window's limit is used up.
    #[inline(always)]
    pub fn is_exhausted(&self, window: Window, limit: u32) -> bool {
        let seen = self.seen();
        seen.window == window && seen.number >= limit
    }

    /// What the window has left for everybody, as far as this node knows: an estimate.
    #[inline(always)]
    pub fn remaining(&self, window: Window, limit: u32) -> u32 {
        let unclaimed = limit.saturating_sub(self.seen().of(window));
        let left = unclaimed.saturating_add(self.left(window));
        let assumed = self.assumed(window);
        if left < limit { left.saturating_sub(assumed) } else { limit.saturating_sub(assumed) }
    }

    /// Leased on a window and not spent.
    #[inline(always)]
    pub fn left(&self, window: Window) -> u32 {
        Numbered::read(self.at(0, window).load()).of(window)
    }

    /// Admitted in a window without the store.
    #[inline(always)]
    pub fn assumed(&self, window: Window) -> u32 {
        Numbered::read(self.at(ASSUMED, window).load()).of(window)
    }

    /// Granted in a window by the store.
    #[inline(always)]
    pub fn granted(&self, window: Window) -> u32 {
        Numbered::read(self.at(GRANTED, window).load()).of(window)
    }

    /// What may be admitted without the store in a window.
    #[inline(always)]
    pub fn allowance(&self) -> u32 {
        self.marks() as u32
    }

    /// Gives back a hit that was taken from the lease, if its window still lies there.
    #[inline(always)]
    pub fn put_back(&self, window: Window) {
        let cell = self.at(0, window);
        for _ in 0..TRIES {
            let word = cell.load();
            let lease = Numbered::read(word);
            let number = lease.number.wrapping_add(1);
            if lease.window != window
                || number == 0
                || cell.compare_exchange(word, Numbered { window, number }.word()).is_ok()
            {
                return;
            }
        }
    }

    /// Notes that the agent is to be woken; whether nobody did so before.
    #[inline(always)]
    pub fn poke(&self) -> bool {
        let marks = self.marks();
        marks & POKED == 0 && self.0.word(MARKS).compare_exchange(marks, marks | POKED).is_ok()
    }

    /// From now on the agent may be woken again.
    pub fn unpoke(&self) {
        update(&self.0.word(MARKS), |marks| marks & !POKED);
    }

    /// Makes the cell hold a window, with nothing leased. Returns what was left of the window that
    /// stood there: nobody can spend it any more. For the agent alone.
    pub fn open(&self, window: Window) -> u32 {
        let cell = self.at(0, window);
        let mut word = cell.load();
        loop {
            let lease = Numbered::read(word);
            if lease.window == window {
                return 0;
            }
            match cell.compare_exchange(word, Numbered { window, number: 0 }.word()) {
                Ok(_) => return lease.number,
                Err(now) => word = now,
            }
        }
    }

    /// Adds what the store granted, if the cell still holds that window. For the agent alone.
    pub fn credit(&self, window: Window, hits: u32) -> bool {
        let cell = self.at(0, window);
        let mut word = cell.load();
        loop {
            let lease = Numbered::read(word);
            if lease.window != window {
                return false;
            }
            // Noted first: who admits without the store must not count the same hits once more.
            self.note_granted(window, self.granted(window).saturating_add(hits));
            let number = lease.number.saturating_add(hits);
            match cell.compare_exchange(word, Numbered { window, number }.word()) {
                Ok(_) => return true,
                Err(now) => {
                    self.note_granted(window, self.granted(window).saturating_sub(hits));
                    word = now;
                }
            }
        }
    }

    /// Takes out of the lease what exceeds `keep`, to give it back. For the agent alone.
    pub fn withdraw(&self, window: Window, keep: u32) -> u32 {
        let cell = self.at(0, window);
        let mut word = cell.load();
        loop {
            let lease = Numbered::read(word);
            if lease.window != window || lease.number <= keep {
                return 0;
            }
            match cell.compare_exchange(word, Numbered { window, number: keep }.word()) {
                Ok(_) => {
                    let hits = lease.number - keep;
                    self.note_granted(window, self.granted(window).saturating_sub(hits));
                    return hits;
                }
                Err(now) => word = now,
            }
        }
    }

    fn note_granted(&self, window: Window, number: u32) {
        update(&self.at(GRANTED, window), |_| Numbered { window, number }.word());
    }

    /// Notes the store's counter. For the agent alone.
    pub fn note_seen(&self, window: Window, counter: u64) {
        let number = if counter > u32::MAX as u64 { u32::MAX } else { counter as u32 };
        update(&self.0.word(SEEN), |_| Numbered { window, number }.word());
    }

    /// Sets below how many the agent is woken, and what may be admitted without the store.
    pub fn mark(&self, low: u32, allowance: u32) {
        let low = if low < MAX_LOW { low } else { MAX_LOW };
        let marked = (low as u64) << 32 | allowance as u64;
        update(&self.0.word(MARKS), |marks| marks & POKED | marked);
    }
}

/// Changes a word until it holds what it should. For the agent alone: there is no bound.
fn update<W: Word>(cell: &W, change: impl Fn(u64) -> u64) {
    let mut word = cell.load();
    while word != change(word) {
        match cell.compare_exchange(word, change(word)) {
            Ok(_) => return,
            Err(now) => word = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    fn words() -> [AtomicU64; WORDS] {
        [const { AtomicU64::new(0) }; WORDS]
    }

    #[test]
    fn a_grant_is_what_lies_below_the_limit() {
        assert_eq!(grant(100, 30, 30), 30);
        assert_eq!(grant(100, 110, 30), 20);
        assert_eq!(grant(100, 130, 30), 0);
        assert_eq!(grant(100, 500, 30), 0);
        // A counter that was given back below what we asked for.
        assert_eq!(grant(100, 10, 30), 30);
        assert_eq!(grant(0, 1, 1), 0);
        assert_eq!(grant(u32::MAX, u64::MAX, u32::MAX), 0);
    }

    #[test]
    fn a_lease_is_spent_in_its_window_only() {
        let words = words();
        let cell = Cell(&words);
        cell.mark(1, 0);
        assert_eq!(cell.take(7, 100, 1), Taken::Short);
        assert!(!cell.credit(7, 5), "the cell does not hold the window");
        assert_eq!(cell.open(7), 0);
        assert!(cell.credit(7, 5));
        assert_eq!(cell.take(7, 100, 2), Taken::Admitted { left: 3, low: false });
        assert_eq!(cell.take(7, 100, 4), Taken::Short);
        assert_eq!(cell.take(9, 100, 1), Taken::Short);
        assert_eq!(cell.open(8), 0);
        assert!(cell.credit(8, 1), "the next window lies ready");
        assert_eq!(cell.take(7, 100, 3), Taken::Admitted { left: 0, low: true });
        assert_eq!(cell.take(8, 100, 1), Taken::Admitted { left: 0, low: true });
        assert!(cell.credit(7, 2));
        assert_eq!(cell.open(9), 2, "what was not spent of window 7 is lost");
        assert!(!cell.credit(7, 1));
    }

    #[test]
    fn exhaustion_is_remembered_for_its_window() {
        let words = words();
        let cell = Cell(&words);
        cell.open(7);
        cell.note_seen(7, 105);
        assert!(cell.credit(7, 1));
        assert_eq!(cell.take(7, 100, 1), Taken::Admitted { left: 0, low: false });
        assert_eq!(cell.take(7, 100, 1), Taken::Exhausted);
        assert_eq!(cell.take(8, 100, 1), Taken::Short);
        assert_eq!(cell.assume(7, 100, 1), Assumed::Refused);
    }

    #[test]
    fn without_the_store_a_node_spends_its_allowance_less_what_was_granted() {
        let words = words();
        let cell = Cell(&words);
        cell.mark(0, 10);
        cell.open(7);
        assert!(cell.credit(7, 4));
        assert_eq!(cell.assume(7, 100, 6), Assumed::Admitted);
        assert_eq!(cell.assume(7, 100, 1), Assumed::Refused);
        assert_eq!(cell.assumed(7), 6);
        assert_eq!(cell.assume(8, 100, 10), Assumed::Admitted, "a new window begins anew");
        assert_eq!(cell.assume(9, 3, 4), Assumed::Refused, "never above the limit");
        cell.mark(0, UNLIMITED);
        assert_eq!(cell.assume(9, 3, 400), Assumed::Admitted);
        cell.mark(0, 0);
        assert_eq!(cell.assume(11, 100, 1), Assumed::Refused);
    }

    #[test]
    fn the_agent_is_woken_once_until_it_looked() {
        let words = words();
        let cell = Cell(&words);
        cell.mark(u32::MAX, 5);
        assert!(cell.poke());
        assert!(!cell.poke());
        cell.mark(3, 7);
        assert!(!cell.poke(), "new marks are no look");
        assert_eq!(cell.allowance(), 7);
        cell.unpoke();
        assert!(cell.poke());
        cell.open(7);
        assert!(cell.credit(7, 4));
        assert_eq!(cell.take(7, 100, 1), Taken::Admitted { left: 3, low: false });
        assert_eq!(cell.take(7, 100, 1), Taken::Admitted { left: 2, low: true });
    }

    #[test]
    fn a_hit_that_is_put_back_can_be_spent_in_its_window_alone() {
        let words = words();
        let cell = Cell(&words);
        cell.open(7);
        assert!(cell.credit(7, 1));
        assert_eq!(cell.take(7, 100, 1), Taken::Admitted { left: 0, low: false });
        cell.put_back(9);
        assert_eq!(cell.left(9), 0);
        cell.put_back(7);
        assert_eq!((cell.left(7), cell.granted(7)), (1, 1));
        cell.open(9);
        cell.put_back(7);
        assert_eq!((cell.left(7), cell.left(9)), (0, 0));
    }

    #[test]
    fn what_is_given_back_cannot_be_spent() {
        let words = words();
        let cell = Cell(&words);
        cell.open(7);
        assert!(cell.credit(7, 9));
        assert_eq!(cell.withdraw(7, 2), 7);
        assert_eq!((cell.left(7), cell.granted(7)), (2, 2));
        assert_eq!(cell.withdraw(7, 2), 0);
        assert_eq!(cell.withdraw(9, 0), 0);
    }

    #[test]
    fn spenders_and_the_agent_never_make_a_hit_out_of_nothing() {
        const GRANTED: u32 = 20_000;
        let words = words();
        let cell = Cell(&words);
        cell.open(7);
        let done = AtomicBool::new(false);
        let spent: u32 = thread::scope(|scope| {
            let spenders: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut spent = 0;
                        while !done.load(Ordering::SeqCst) || cell.left(7) > 0 {
                            if matches!(cell.take(7, u32::MAX, 1), Taken::Admitted { .. }) {
                                spent += 1;
                            }
                        }
                        spent
                    })
                })
                .collect();
            for _ in 0..GRANTED / 10 {
                assert!(cell.credit(7, 10));
            }
            done.store(true, Ordering::SeqCst);
            spenders.into_iter().map(|spender| spender.join().unwrap_or(0)).sum()
        });
        assert_eq!(spent, GRANTED);
    }
}

//! Counts by identity, in a bounded table.
//!
//! The table is lines of eight ways. A count lives in one of two lines that its identity names; a new
//! one goes into the emptier of them. Finding one reads one or two lines of tags and one word, and
//! changing it is a compare-and-swap: no lock, however many threads decide. Making a new one locks
//! its two lines against others who do the same.
//!
//! **Expiry.** A count whose window is over, or whose bucket is full, equals an absent one. A while
//! later ([`SKEW_SECONDS`]: somebody may still decide with an older clock) its way is taken by the next
//! count that needs one. Nobody sweeps.
//!
//! **The bound.** What lives is never evicted: an attacker who makes up values could forget everybody's
//! counts. When both lines are full of what lives, there is no place, and the caller decides by a
//! count that all crowded ones of the rule share.
//!
//! **Taking over a way.** The word is changed to [`BUSY`] first, by a compare-and-swap from what was
//! found to be over; then tags and mark are written, then the new word. Who uses a way reads tags,
//! word, and tags again, and then swaps the word. If the way was taken over between, the word is
//! another: it was over when it was taken, and words of later windows are different words. A bucket's
//! word is brought to other parameters in the same way.
//!
//! Memory: 32 bytes a way. The table is zeroed pages of the kernel, so what was never used costs nothing.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use weir_common::window::SKEW_SECONDS;

use super::{
    Now, ahead,
    engine::{Step, Taken},
    identity::Identity,
    tariffs::{BUSY, Mark, Tariffs},
};

/// Ways of a line.
const WAYS: usize = 8;

/// Locks for making counts: two lines share one with many others.
const LOCKS: usize = 256;

/// Eight counts. The tags of a line are one cache line.
#[repr(C, align(64))]
struct Line {
    tags: [AtomicU64; WAYS],
    ways: [Way; WAYS],
}

/// A count. It is there when its mark is not 0.
#[repr(C)]
struct Way {
    high: AtomicU64,
    word: AtomicU64,
    mark: AtomicU64,
}

/// The table.
pub struct Slab {
    lines: Box<[Line]>,
    locks: Box<[Mutex<()>]>,
    tariffs: Tariffs,
}

/// There is no place for a new count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded;

/// How full the table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Ways that hold something that is not over.
    pub live: usize,
    /// Ways that were ever used.
    pub used: usize,
    /// All ways.
    pub ways: usize,
}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slab").field("ways", &(self.lines.len() * WAYS)).finish_non_exhaustive()
    }
}

impl Slab {
    /// A table for `counts` live counts. It has half as many ways more, so that the two lines of a
    /// count are practically never both full before so many live.
    pub fn new(counts: usize) -> Self {
        let lines = (counts.saturating_add(counts / 2).div_ceil(WAYS)).max(2);
        let lines = Box::<[Line]>::new_zeroed_slice(lines);
        // SAFETY: a line is `AtomicU64`s and nothing else, for which zero is a value.
        let lines = unsafe { lines.assume_init() };
        let locks = (0..LOCKS).map(|_| Mutex::new(())).collect();
        Self { lines, locks, tariffs: Tariffs::default() }
    }

    /// Changes a count by a step, which is given the count's word, or 0 if there is none. It may be
    /// called several times; what its last call says holds.
    pub fn update(
        &self,
        identity: Identity,
        mark: Mark,
        now: Now,
        mut step: impl FnMut(u64) -> Step,
    ) -> Result<Taken, Crowded> {
        let pair = self.pair(identity);
        self.fetch(pair, identity);
        loop {
            let Some((line, way)) = self.find(pair, identity) else {
                match self.create(pair, identity, mark, now, &mut step) {
                    Made::Taken(taken) => return Ok(taken),
                    Made::Crowded => return Err(Crowded),
                    // Somebody else made it meanwhile.
                    Made::Exists => continue,
                }
            };
            let word = way.word.load(Ordering::Acquire);
            if word == BUSY || !is(line, way, identity) {
                // Somebody is taking the way over, and may have been stopped in the middle of it.
                thread::yield_now();
                continue;
            }
            let stepped = self.tariffs.step((&way.word, word), &way.mark, (mark, now), &mut step);
            let Some(Step { store, taken }) = stepped else { continue };
            let Some(next) = store else { return Ok(taken) };
            let swapped =
                way.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed);
            if swapped.is_ok() {
                return Ok(taken);
            }
        }
    }

    /// A count's word, if there is one, as it is under this mark.
    pub fn word(&self, identity: Identity, mark: Mark) -> Option<u64> {
        let (line, way) = self.find(self.pair(identity), identity)?;
        let word = way.word.load(Ordering::Acquire);
        let before = Mark::decode(way.mark.load(Ordering::Acquire));
        let is_there = word != BUSY && is(line, way, identity);
        is_there.then(|| self.tariffs.renewed(word, before, mark))
    }

    /// What buckets' words were written under.
    pub(super) const fn tariffs(&self) -> &Tariffs {
        &self.tariffs
    }

    /// Counts what lives. It reads the whole table: not for a decision.
    pub fn fill(&self, now: Now) -> Fill {
        let mut fill = Fill { ways: self.lines.len() * WAYS, ..Fill::default() };
        for way in self.lines.iter().flat_map(|line| &line.ways) {
            let word = way.word.load(Ordering::Acquire);
            if let Some(kind) = Mark::kind(way.mark.load(Ordering::Acquire)) {
                fill.used += 1;
                fill.live += usize::from(!kind.is_over(word, now));
            }
        }
        fill
    }

    /// The two lines of an identity.
    fn pair(&self, identity: Identity) -> [usize; 2] {
        let lines = self.lines.len() as u64;
        let reduce = |hash: u64| ((u128::from(hash) * u128::from(lines)) >> 64) as usize;
        let first = reduce(identity.high);
        // The low half is the tag; turned, it chooses independently enough of it.
        let second = reduce(identity.low.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        [first, if second == first { (first + 1) % self.lines.len() } else { second }]
    }

    /// Brings along both lines' tags and the ways that a count rather takes, all at once.
    fn fetch(&self, pair: [usize; 2], identity: Identity) {
        for line in pair.into_iter().filter_map(|index| self.line(index)) {
            ahead::fetch(&line.tags);
            if let Some(way) = line.ways.get(preferred(identity)) {
                ahead::fetch(&way.word);
            }
        }
    }

    fn line(&self, index: usize) -> Option<&Line> {
        self.lines.get(index)
    }

    fn find(&self, pair: [usize; 2], identity: Identity) -> Option<(&AtomicU64, &Way)> {
        pair.into_iter().filter_map(|index| self.line(index)).find_map(|line| {
            line.tags.iter().zip(&line.ways).find(|(tag, way)| is(tag, way, identity))
        })
    }

    fn create(
        &self,
        pair: [usize; 2],
        identity: Identity,
        mark: Mark,
        now: Now,
        step: &mut impl FnMut(u64) -> Step,
    ) -> Made {
        // Whoever else could make this count has the same pair, so they wait for the same lock; but
        // others may take over the same ways under another lock, which the swap to BUSY decides.
        let lock = self.locks.get(pair[0].min(pair[1]) % LOCKS);
        let _guard = lock.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        if self.find(pair, identity).is_some() {
            return Made::Exists;
        }
        let Step { store, taken } = step(0);
        let Some(word) = store else { return Made::Taken(taken) };
        loop {
            let Some(Free { tag, way, old, .. }) = self.free(pair, identity, now) else {
                return Made::Crowded;
            };
            if way.word.compare_exchange(old, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            way.mark.store(mark.encode(), Ordering::Relaxed);
            way.high.store(identity.high, Ordering::Release);
            tag.store(identity.low, Ordering::Release);
            way.word.store(word, Ordering::Release);
            return Made::Taken(taken);
        }
    }

    /// A way that nobody needs, in the line that has more of them.
    fn free(&self, pair: [usize; 2], identity: Identity, now: Now) -> Option<Free<'_>> {
        let free = |index| self.line(index).and_then(|line| free(line, preferred(identity), now));
        let [first, second] = pair.map(free);
        match (first, second) {
            (Some(first), Some(second)) if second.count > first.count => Some(second),
            (first, second) => first.or(second),
        }
    }
}

/// Whether a way is an identity's.
fn is(tag: &AtomicU64, way: &Way, identity: Identity) -> bool {
    tag.load(Ordering::Acquire) == identity.low && way.high.load(Ordering::Acquire) == identity.high
}

/// A way that nobody needs, with its word, and how many of them the line has.
struct Free<'a> {
    tag: &'a AtomicU64,
    way: &'a Way,
    old: u64,
    count: usize,
}

/// The way that a count takes if it can: mostly it is found there, and so it can be fetched together with
/// the tags that say so.
fn preferred(identity: Identity) -> usize {
    identity.low as usize % WAYS
}

fn free(line: &Line, preferred: usize, now: Now) -> Option<Free<'_>> {
    let then = now.earlier(SKEW_SECONDS);
    let mut found: Option<Free<'_>> = None;
    for (index, (tag, way)) in line.tags.iter().zip(&line.ways).enumerate() {
        let old = way.word.load(Ordering::Acquire);
        let kind = Mark::kind(way.mark.load(Ordering::Acquire));
        if old == BUSY || kind.is_some_and(|kind| !kind.is_over(old, then)) {
            continue;
        }
        let count = found.as_ref().map_or(0, |found| found.count) + 1;
        found = match found {
            Some(found) if index != preferred => Some(Free { count, ..found }),
            _ => Some(Free { tag, way, old, count }),
        };
    }
    found
}

/// What came of making a count.
enum Made {
    /// It is there now, or need not be.
    Taken(Taken),
    /// It was there already.
    Exists,
    /// There is no place.
    Crowded,
}

const _: () = assert!(size_of::<Line>() == 32 * WAYS);

#[cfg(test)]
#[path = "slab_tests.rs"]
mod tests;

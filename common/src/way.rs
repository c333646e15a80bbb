//! A line of tagged ways: a small associative set in one 64-byte cache line.
//!
//! Each way is one word, `tag:20 | until:44`. The tag is part of a keyed hash of what the way
//! stands for; `until` is the time until which it matters, in ticks of 64 ns. A way whose time has
//! passed equals an absent one, so it can be taken over by one compare-and-swap and nothing is
//! ever evicted, freed or swept for correctness. A flood of keys can fill a line, never grow it.
//!
//! A tick counter of 44 bits comes round every 13 days. A way counts as live while `until` is
//! ahead by less than a quarter of that, so a forgotten way could come alive again 9.8 days after
//! its end; the agent clears old ways daily. Without an agent for that long a few clients meet a
//! stricter limit for a while.

use crate::word::Word;

/// Words in a line.
pub const LINE: usize = 8;

/// Bits of a way that hold the time.
pub const TIME_BITS: u32 = 44;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
const TAG_BITS: u32 = 64 - TIME_BITS;

/// A point in time in ticks of 64 ns, modulo 2^44.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(pub u64);

/// Nanoseconds in a tick.
pub const TICK_NS: u64 = 64;

/// Furthest that a way may lie ahead: a quarter of the counter, 3.2 days.
pub const MAX_AHEAD: u64 = 1 << (TIME_BITS - 2);

impl Tick {
    /// The tick of a monotonic time.
    #[inline(always)]
    pub const fn from_ns(ns: u64) -> Self {
        Self((ns / TICK_NS) & TIME_MASK)
    }

    /// This tick and `ticks` more.
    #[inline(always)]
    pub const fn after(self, ticks: u64) -> Self {
        Self(self.0.wrapping_add(ticks) & TIME_MASK)
    }

    /// This tick less `ticks`.
    #[inline(always)]
    pub const fn before(self, ticks: u64) -> Self {
        Self(self.0.wrapping_sub(ticks) & TIME_MASK)
    }
}

/// The tag bits of a hash, never 0, so that a used way is never the word 0.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    let tag = hash >> TIME_BITS;
    if tag == 0 { 1 } else { tag }
}

/// The line that a hash belongs to, among `lines` (a power of two).
#[inline(always)]
pub const fn line_of(hash: u64, lines: u32) -> u32 {
    // Other bits than the tag's, or ways of one line would differ in fewer tag bits.
    const { assert!(TAG_BITS + 32 <= 64) };
    hash as u32 & (lines - 1)
}

/// A way's word.
#[inline(always)]
pub const fn pack(tag: u64, until: Tick) -> u64 {
    tag << TIME_BITS | until.0
}

/// Whether the way holds this tag, live or not.
#[inline(always)]
pub const fn has_tag(word: u64, tag: u64) -> bool {
    word >> TIME_BITS == tag
}

/// The way's time.
#[inline(always)]
pub const fn until(word: u64) -> Tick {
    Tick(word & TIME_MASK)
}

/// Ticks for which the way still matters; 0 when it equals an absent one.
#[inline(always)]
pub const fn ahead(word: u64, now: Tick) -> u64 {
    let ahead = until(word).0.wrapping_sub(now.0) & TIME_MASK;
    if word == 0 || ahead > MAX_AHEAD { 0 } else { ahead }
}

/// A line of ways.
pub trait Line {
    /// A word of this memory.
    type Word<'line>: Word
    where
        Self: 'line;

    /// Word `index` of the line, `index < LINE`.
    fn word(&self, index: usize) -> Self::Word<'_>;
}

impl<W: Word> Line for [W; LINE] {
    type Word<'line>
        = &'line W
    where
        W: 'line;

    fn word(&self, index: usize) -> &W {
        &self[index]
    }
}

/// Where a tag stands in the first `ways` words of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Here, with this word.
    Present(usize, u64),
    /// Nowhere, but this way with this word is free.
    Free(usize, u64),
    /// Nowhere, and all ways are live.
    Crowded,
}

/// Looks for `tag` in the first `ways` words. Of several ways with the tag, the one that matters for
/// longest is it.
#[inline(always)]
pub fn find<L: Line>(line: &L, ways: usize, tag: u64, now: Tick) -> Found {
    let mut found = Found::Crowded;
    let mut longest = 0;
    for index in 0..ways {
        let word = line.word(index).load();
        let ahead = ahead(word, now);
        if has_tag(word, tag) {
            if !matches!(found, Found::Present(..)) || ahead > longest {
                (found, longest) = (Found::Present(index, word), ahead);
            }
        } else if matches!(found, Found::Crowded) && ahead == 0 {
            found = Found::Free(index, word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_absent_before_use_at_its_time_and_long_after() {
        let now = Tick::from_ns(1_000_000_000);
        let word = pack(7, now.after(100));
        assert_eq!(ahead(0, now), 0);
        assert_eq!(ahead(word, now), 100);
        assert_eq!(ahead(word, now.after(100)), 0);
        assert_eq!(ahead(word, now.after(100 + (1 << 43))), 0);
    }

    #[test]
    fn time_wraps_without_a_gap() {
        let now = Tick(TIME_MASK - 10);
        assert_eq!(ahead(pack(7, now.after(100)), now), 100);
        assert_eq!(ahead(pack(7, now.after(100)), now.after(60)), 40);
    }

    #[test]
    fn a_tag_is_never_zero() {
        assert_eq!(tag(0), 1);
        assert_eq!(tag(u64::MAX), (1 << TAG_BITS) - 1);
    }
}

//! Remembered handshakes: a SYN that repeats an admitted one costs nothing.
//!
//! A handshake is one word, `tag:45 | repeats:3 | until:16`, in the line of eight that a keyed hash
//! of (workload, direction, addresses, ports, ISN) selects. The tag is of a second hash of the same,
//! and is all that is compared: a stranger's SYN passes for free once in 2^45 words that it meets,
//! whoever chose it. So whoever judges a SYN touches one cache line of half a mebibyte, and
//! remembering one is one compare-and-swap.
//!
//! Expiry needs nobody: a word whose time has passed is free for the next. How long to remember
//! follows the client's back-off. RFC 6298 §5.5 doubles the timeout after each retransmission, so
//! each repetition doubles the memory. An answered handshake is thus forgotten after 4 s, while one
//! that is retried for two minutes stays free.
//!
//! The time comes round every 73 minutes. A word counts as live while its time is ahead by no more
//! than the longest memory, so one that nobody took over would be taken for live for 6 % of the time,
//! and would fill a place, not admit anybody. The agent clears old words.

use crate::{
    way::{LINE, Line},
    word::Word,
};

/// Bits of a word that hold the time.
const TIME_BITS: u32 = 16;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
/// Bits of a word that count repetitions.
const REPEATS_BITS: u32 = 3;
const REPEATS_MASK: u64 = (1 << REPEATS_BITS) - 1;
const TAG_BITS: u32 = 64 - TIME_BITS - REPEATS_BITS;

/// Nanoseconds in a tick: 2^26, 67 ms.
pub const TICK_NS: u64 = 1 << 26;

/// Ticks for which a SYN is remembered that was not repeated yet: 4 s, the largest initial timeout
/// in use (3 s, RFC 6298 §5.7) and a second for timers and queues.
pub const FIRST: u64 = 60;

/// The repetition after which the memory doubles no more, at 257 s. Linux gives up 127 s after the
/// first SYN by default.
pub const MAX_REPEATS: u64 = 6;

/// Ticks for which a SYN is remembered after so many repetitions.
#[inline(always)]
pub const fn lifetime(repeats: u64) -> u64 {
    FIRST << if repeats < MAX_REPEATS { repeats } else { MAX_REPEATS }
}

/// The longest memory, in ticks.
const MAX_AHEAD: u64 = lifetime(MAX_REPEATS);

/// The tag of a hash, never 0, so that a used word is never 0.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    let tag = hash >> (64 - TAG_BITS);
    if tag == 0 { 1 } else { tag }
}

/// A remembered handshake's word.
#[inline(always)]
const fn pack(tag: u64, repeats: u64, now_ns: u64) -> u64 {
    // Rounded up: never shorter than said.
    let until = now_ns / TICK_NS + 1 + lifetime(repeats);
    tag << (64 - TAG_BITS) | repeats << TIME_BITS | until & TIME_MASK
}

#[inline(always)]
const fn has_tag(word: u64, tag: u64) -> bool {
    word >> (64 - TAG_BITS) == tag
}

#[inline(always)]
const fn repeats(word: u64) -> u64 {
    word >> TIME_BITS & REPEATS_MASK
}

/// Ticks for which a word is still remembered; 0 when it equals an absent one.
#[inline(always)]
pub const fn ahead(word: u64, now_ns: u64) -> u64 {
    let ahead = (word & TIME_MASK).wrapping_sub(now_ns / TICK_NS) & TIME_MASK;
    if word == 0 || ahead > MAX_AHEAD + 1 { 0 } else { ahead }
}

/// What a line knows of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was admitted, and this word remembers it.
    Live(usize, u64),
    /// It is not remembered; there is room here.
    Free(usize),
    /// It is not remembered, and there is no room.
    Crowded,
}

/// Looks for a handshake. Writes nothing.
#[inline(always)]
pub fn look<L: Line>(line: &L, tag: u64, now_ns: u64) -> Known {
    let mut known = Known::Crowded;
    for index in 0..LINE {
        let word = line.word(index).load();
        let live = ahead(word, now_ns) > 0;
        if live && has_tag(word, tag) {
            return Known::Live(index, word);
        }
        if !live && matches!(known, Known::Crowded) {
            known = Known::Free(index);
        }
    }
    known
}

/// Claims the place that [`look`] found for a handshake that was just admitted; `false` when another
/// was faster.
#[inline(always)]
pub fn claim<L: Line>(line: &L, index: usize, tag: u64, now_ns: u64) -> bool {
    let word = line.word(index).load();
    ahead(word, now_ns) == 0
        && line.word(index).compare_exchange(word, pack(tag, 0, now_ns)).is_ok()
}

/// Remembers a repeated handshake for as long as its next repetition may take.
///
/// `false` when it is no longer the word that was found: it must not be believed. What is repeated
/// within an eighth of its time is no timeout's doing (a network may double packets), and changes
/// nothing.
#[inline(always)]
pub fn extend<L: Line>(line: &L, index: usize, word: u64, tag: u64, now_ns: u64) -> bool {
    let before = repeats(word);
    let lifetime = lifetime(before);
    if ahead(word, now_ns) > lifetime - lifetime / 8 {
        return true;
    }
    let repeats = if before < MAX_REPEATS { before + 1 } else { before };
    line.word(index).compare_exchange(word, pack(tag, repeats, now_ns)).is_ok()
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn admit(line: &[AtomicU64; LINE], tag: u64, now: u64) -> bool {
        match look(line, tag, now) {
            Known::Free(index) => claim(line, index, tag, now),
            Known::Live(..) | Known::Crowded => false,
        }
    }

    #[test]
    fn six_retransmissions_of_one_syn_stay_remembered() {
        let line: [AtomicU64; LINE] = Default::default();
        let start = 1_000 * SECOND;
        assert!(admit(&line, 9, start));
        // Linux: 1 s, doubled each time.
        for after in [1, 3, 7, 15, 31, 63] {
            let now = start + after * SECOND;
            let Known::Live(index, word) = look(&line, 9, now) else {
                panic!("forgotten after {after} s");
            };
            assert!(extend(&line, index, word, 9, now));
        }
    }

    #[test]
    fn an_answered_handshake_is_forgotten_after_four_seconds() {
        let line: [AtomicU64; LINE] = Default::default();
        assert!(admit(&line, 9, 5 * SECOND));
        assert!(matches!(look(&line, 9, 9 * SECOND), Known::Live(..)));
        assert!(matches!(look(&line, 9, 9 * SECOND + SECOND / 4), Known::Free(_)));
    }

    #[test]
    fn what_is_repeated_at_once_is_remembered_no_longer() {
        let line: [AtomicU64; LINE] = Default::default();
        assert!(admit(&line, 9, 5 * SECOND));
        for _ in 0..10 {
            let Known::Live(index, word) = look(&line, 9, 5 * SECOND + 1) else {
                panic!("forgotten at once");
            };
            assert!(extend(&line, index, word, 9, 5 * SECOND + 1));
        }
        assert!(matches!(look(&line, 9, 9 * SECOND + SECOND / 4), Known::Free(_)));
    }

    #[test]
    fn a_full_line_refuses_to_remember_and_recovers_by_time_alone() {
        let line: [AtomicU64; LINE] = Default::default();
        for tag in 1..=LINE as u64 {
            assert!(admit(&line, tag, 1_000));
        }
        assert!(!admit(&line, 99, 1_000));
        assert!(admit(&line, 99, 1_000 + (FIRST + 1) * TICK_NS));
    }

    #[test]
    fn a_place_that_another_took_meanwhile_is_not_claimed() {
        let line: [AtomicU64; LINE] = Default::default();
        let Known::Free(index) = look(&line, 9, 1_000) else { panic!("an empty line has room") };
        assert!(claim(&line, index, 8, 1_000));
        assert!(!claim(&line, index, 9, 1_000));
    }
}

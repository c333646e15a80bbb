//! Remembered handshakes: a SYN that repeats an admitted one costs nothing.
//!
//! A handshake stands in the [line](crate::way) that the keyed hash of (workload, direction,
//! addresses, ports, ISN) selects. The way says until when it is remembered; the [slot](crate::layout::Slot)
//! with the same number holds the whole key, because a tag alone could let a stranger's SYN
//! through for free. Expiry needs nobody: a way whose time has passed is free for the next.
//!
//! How long to remember follows the client's back-off. RFC 6298 §5.5 doubles the timeout after
//! each retransmission, so a client that repeated its SYN `d` after the first comes back at about
//! `2 d`: each repetition extends the memory to `2 d` and one initial timeout more. An answered
//! handshake is thus forgotten after 4 s, while one that is retried for two minutes stays free.

use crate::{
    layout::Slot,
    way::{self, Found, LINE, Line, TICK_NS, Tick},
    word::Word,
};

/// How long a SYN is remembered that was not repeated yet: the largest initial timeout in use
/// (3 s, RFC 6298 §5.7), and a second for timers and queues.
pub const FIRST_NS: u64 = 4_000_000_000;

/// The longest memory; Linux gives up 127 s after the first SYN by default.
pub const MAX_NS: u64 = 300_000_000_000;

/// How long after a repetition, `since_first_ns` after the first SYN, the next is expected.
#[inline(always)]
pub const fn lifetime_ns(since_first_ns: u64) -> u64 {
    if since_first_ns > MAX_NS / 4 { MAX_NS } else { 2 * since_first_ns + FIRST_NS }
}

/// What a line knows of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// This way, with this word, may be its: the caller compares the slot.
    Live(usize, u64),
    /// It is not remembered; there is room here.
    Free(usize),
    /// It is not remembered, and there is no room.
    Crowded,
}

/// Looks for a handshake.
#[inline(always)]
pub fn look<L: Line>(line: &L, tag: u64, now_ns: u64) -> Known {
    let now = Tick::from_ns(now_ns);
    match way::find(line, LINE, tag, now) {
        Found::Present(index, word) if way::ahead(word, now) > 0 => Known::Live(index, word),
        Found::Present(index, _) | Found::Free(index, _) => Known::Free(index),
        Found::Crowded => Known::Crowded,
    }
}

/// Claims the way that [`look`] found for a handshake that was just admitted; `false` when another
/// CPU was faster.
///
/// The caller writes the slot afterwards. A reader that comes between compares with the slot's
/// old content, finds another key and charges the SYN: an error on the side of the limit.
#[inline(always)]
pub fn claim<L: Line>(line: &L, index: usize, tag: u64, now_ns: u64) -> bool {
    let now = Tick::from_ns(now_ns);
    let word = line.word(index).load();
    if !way::has_tag(word, tag) && way::ahead(word, now) > 0 {
        return false;
    }
    let until = now.after(FIRST_NS / TICK_NS);
    line.word(index).compare_exchange(word, way::pack(tag, until)).is_ok()
}

/// Remembers a repeated handshake for as long as its next repetition may take.
///
/// `false` when the way is no longer what was compared: it must not be believed.
#[inline(always)]
pub fn extend<L: Line>(
    line: &L,
    index: usize,
    word: u64,
    tag: u64,
    slot: &Slot,
    now_ns: u64,
) -> bool {
    let lifetime = lifetime_ns(now_ns.saturating_sub(slot.first_ns));
    let until = Tick::from_ns(now_ns).after(lifetime / TICK_NS);
    line.word(index).compare_exchange(word, way::pack(tag, until)).is_ok()
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    fn admit(line: &[AtomicU64; LINE], tag: u64, now: u64) -> bool {
        match look(line, tag, now) {
            Known::Free(index) | Known::Live(index, _) => claim(line, index, tag, now),
            Known::Crowded => false,
        }
    }

    #[test]
    fn six_retransmissions_of_one_syn_stay_remembered() {
        let line: [AtomicU64; LINE] = Default::default();
        let start = 1_000_000_000_000;
        let slot = Slot { first_ns: start, ..Slot::default() };
        assert!(admit(&line, 9, start));
        // Linux: 1 s, doubled each time.
        for after in [1, 3, 7, 15, 31, 63] {
            let now = start + after * 1_000_000_000;
            let Known::Live(index, word) = look(&line, 9, now) else {
                panic!("forgotten after {after} s");
            };
            assert!(extend(&line, index, word, 9, &slot, now));
        }
    }

    #[test]
    fn an_answered_handshake_is_forgotten_after_four_seconds() {
        let line: [AtomicU64; LINE] = Default::default();
        assert!(admit(&line, 9, 5_000_000_000));
        assert!(matches!(look(&line, 9, 8_900_000_000), Known::Live(..)));
        assert!(matches!(look(&line, 9, 9_100_000_000), Known::Free(_)));
    }

    #[test]
    fn a_full_line_refuses_to_remember_and_recovers_by_time_alone() {
        let line: [AtomicU64; LINE] = Default::default();
        for tag in 1..=LINE as u64 {
            assert!(admit(&line, tag, 1_000));
        }
        assert!(!admit(&line, 99, 1_000));
        assert!(admit(&line, 99, 1_000 + FIRST_NS + TICK_NS));
    }

    #[test]
    fn a_way_that_another_took_meanwhile_is_not_claimed() {
        let line: [AtomicU64; LINE] = Default::default();
        let Known::Free(index) = look(&line, 9, 1_000) else { panic!("an empty line has room") };
        assert!(claim(&line, index, 8, 1_000));
        assert!(!claim(&line, index, 9, 1_000));
    }
}

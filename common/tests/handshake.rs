//! A remembered handshake is free for as long as its client may repeat it, and for no one else.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/memory.rs"]
mod memory;

use std::sync::atomic::{AtomicU64, Ordering};

use memory::{candidate, claim};

use proptest::prelude::*;
use weir_common::{
    handshake::{FIRST_NS, MAX_NS, extend, lifetime_ns},
    layout::Slot,
    way::{self, LINE, TICK_NS, Tick},
};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
const START: u64 = 1_000_000 * SECOND;

/// Repeats a SYN at these times after the first; returns how many repetitions were free.
fn free_repetitions(after_ns: &[u64]) -> usize {
    let line: [AtomicU64; LINE] = Default::default();
    let slot = Slot { first_ns: START, ..Slot::default() };
    assert!(claim(&line, 9, START).is_some());
    after_ns
        .iter()
        .take_while(|&&after| {
            let now = START + after;
            candidate(&line, 9, now)
                .is_some_and(|(index, word)| extend(&line, index, word, 9, &slot, now))
        })
        .count()
}

/// The times of repetitions by a client that doubles its timeout, each late by as much.
fn doubling(first_ns: u64, late_ns: u64, repetitions: u32) -> Vec<u64> {
    let mut after = 0;
    (0..repetitions)
        .map(|repetition| {
            after += (first_ns << repetition) + late_ns;
            after
        })
        .collect()
}

#[test]
fn a_client_that_starts_with_one_second_is_free_each_time() {
    for late in [0, MILLISECOND, 200 * MILLISECOND] {
        assert_eq!(free_repetitions(&doubling(SECOND, late, 6)), 6);
    }
}

#[test]
fn a_client_that_starts_with_three_seconds_is_free_each_time() {
    for late in [0, MILLISECOND, 200 * MILLISECOND] {
        assert_eq!(free_repetitions(&doubling(3 * SECOND, late, 4)), 4);
    }
}

#[test]
fn a_client_that_starts_with_three_seconds_is_free_once_it_was_seen_to_repeat() {
    let line: [AtomicU64; LINE] = Default::default();
    let slot = Slot { first_ns: START, ..Slot::default() };
    assert!(claim(&line, 9, START).is_some());
    let (index, word) = candidate(&line, 9, START + FIRST_NS - TICK_NS).expect("remembered");
    assert!(extend(&line, index, word, 9, &slot, START + 3 * SECOND + MILLISECOND));
    assert!(candidate(&line, 9, START + 9 * SECOND + MILLISECOND).is_some());
}

#[test]
fn a_client_that_repeats_each_second_is_free_for_as_long_as_it_does() {
    let seconds: Vec<_> = (1..=600).map(|second| second * SECOND).collect();
    assert_eq!(free_repetitions(&seconds), 600);
}

#[test]
fn a_client_that_stays_away_for_longer_than_the_memory_pays_again() {
    assert_eq!(free_repetitions(&[FIRST_NS]), 0);
    assert_eq!(free_repetitions(&[SECOND, SECOND + lifetime_ns(SECOND) - TICK_NS]), 2);
    assert_eq!(free_repetitions(&[SECOND, SECOND + lifetime_ns(SECOND)]), 1);
}

#[test]
fn another_handshake_of_the_line_is_not_taken_for_this_one() {
    let line: [AtomicU64; LINE] = Default::default();
    let first = claim(&line, 1, START).expect("an empty line");
    let second = claim(&line, 2, START).expect("room for two");
    assert_ne!(first, second);
    assert_eq!(candidate(&line, 1, START).map(|found| found.0), Some(first));
    assert_eq!(candidate(&line, 2, START).map(|found| found.0), Some(second));
    assert_eq!(candidate(&line, 3, START), None);
}

#[test]
fn the_memory_crosses_the_end_of_the_ticks() {
    let end = TICK_NS << way::TIME_BITS;
    let line: [AtomicU64; LINE] = Default::default();
    assert!(claim(&line, 9, end - SECOND).is_some());
    assert!(candidate(&line, 9, end - 1).is_some());
    assert!(candidate(&line, 9, end + SECOND).is_some());
    assert!(candidate(&line, 9, end - SECOND + FIRST_NS + SECOND).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_memory_lasts_until_the_next_repetition_and_never_beyond_the_limit(since_ns: u64) {
        let lifetime = lifetime_ns(since_ns);
        prop_assert!(lifetime <= MAX_NS);
        prop_assert!(lifetime >= MAX_NS.min(since_ns.saturating_mul(2)).min(MAX_NS / 2));
    }

    #[test]
    fn only_the_word_that_was_compared_is_extended(
        tag in 1..1_u64 << 20,
        other in 1..1_u64 << 20,
        since_ns in 0..2 * MAX_NS,
    ) {
        let line: [AtomicU64; LINE] = Default::default();
        let now = START + since_ns;
        let slot = Slot { first_ns: START, ..Slot::default() };
        let word = way::pack(tag, Tick::from_ns(now).after(5));
        let foreign = way::pack(other, Tick::from_ns(now).after(6));
        line[2].store(foreign, Ordering::Relaxed);
        prop_assert!(!extend(&line, 2, word, tag, &slot, now));
        prop_assert_eq!(line[2].load(Ordering::Relaxed), foreign);
        line[2].store(word, Ordering::Relaxed);
        prop_assert!(extend(&line, 2, word, tag, &slot, now));
        let extended = line[2].load(Ordering::Relaxed);
        prop_assert!(way::has_tag(extended, tag));
        let until = way::ahead(extended, Tick::from_ns(now));
        prop_assert_eq!(until, lifetime_ns(since_ns) / TICK_NS);
    }
}

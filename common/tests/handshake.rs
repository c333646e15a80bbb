//! A remembered handshake is free for as long as its client may repeat it, and for no one else.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/memory.rs"]
mod memory;

use std::sync::atomic::{AtomicU64, Ordering};

use memory::{candidate, claim};

use proptest::{collection::vec, prelude::*};
use weir_common::{
    handshake::{FIRST, MAX_REPEATS, TICK_NS, ahead, extend, lifetime, tag},
    way::LINE,
};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
const START: u64 = 1_000_000 * SECOND;

/// Repeats a SYN at these times after the first; returns how many repetitions were free.
fn free_repetitions(after_ns: &[u64]) -> usize {
    let line: [AtomicU64; LINE] = Default::default();
    assert!(claim(&line, 9, START).is_some());
    after_ns
        .iter()
        .take_while(|&&after| {
            let now = START + after;
            candidate(&line, 9, now).is_some_and(|(index, word)| extend(&line, index, word, 9, now))
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
fn a_client_that_doubles_its_timeout_is_free_each_time() {
    for first in [200 * MILLISECOND, 500 * MILLISECOND, SECOND, 2 * SECOND, 3 * SECOND] {
        for late in [0, MILLISECOND, 200 * MILLISECOND] {
            let repetitions = doubling(first, late, 6);
            assert_eq!(free_repetitions(&repetitions), 6, "{first} ns, {late} ns late");
        }
    }
}

#[test]
fn a_client_that_repeats_each_second_is_free_for_as_long_as_it_does() {
    let seconds: Vec<_> = (1..=600).map(|second| second * SECOND).collect();
    assert_eq!(free_repetitions(&seconds), 600);
}

#[test]
fn a_client_that_stays_away_for_longer_than_the_memory_pays_again() {
    let first = FIRST * TICK_NS;
    assert_eq!(free_repetitions(&[first + 2 * TICK_NS]), 0);
    assert_eq!(free_repetitions(&[SECOND, SECOND + lifetime(1) * TICK_NS]), 2);
    assert_eq!(free_repetitions(&[SECOND, SECOND + (lifetime(1) + 2) * TICK_NS]), 1);
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
    let end = TICK_NS << 16;
    let line: [AtomicU64; LINE] = Default::default();
    assert!(claim(&line, 9, end - SECOND).is_some());
    assert!(candidate(&line, 9, end - 1).is_some());
    assert!(candidate(&line, 9, end + SECOND).is_some());
    assert!(candidate(&line, 9, end + 4 * SECOND).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_memory_lasts_as_long_as_it_says(now_ns in 0..u64::MAX / 2, tag: u64, within in 0..60u64) {
        let line: [AtomicU64; LINE] = Default::default();
        let tag = weir_common::handshake::tag(tag);
        prop_assert!(claim(&line, tag, now_ns).is_some());
        prop_assert!(candidate(&line, tag, now_ns + within * TICK_NS).is_some());
        prop_assert!(candidate(&line, tag, now_ns + (FIRST + 2) * TICK_NS).is_none());
    }

    #[test]
    fn only_the_word_that_was_found_is_extended(one: u64, other: u64, ticks in 10..FIRST) {
        let (one, other) = (tag(one), tag(other));
        let now = START + ticks * TICK_NS;
        let line: [AtomicU64; LINE] = Default::default();
        prop_assert!(claim(&line, one, START).is_some());
        let (index, word) = candidate(&line, one, now).expect("remembered");
        // Somebody else has the place meanwhile.
        let elsewhere: [AtomicU64; LINE] = Default::default();
        let there = claim(&elsewhere, other, now).expect("an empty line");
        let foreign = elsewhere[there].load(Ordering::Relaxed);
        line[index].store(foreign, Ordering::Relaxed);
        prop_assert!(!extend(&line, index, word, one, now));
        prop_assert_eq!(line[index].load(Ordering::Relaxed), foreign);
        line[index].store(word, Ordering::Relaxed);
        prop_assert!(extend(&line, index, word, one, now));
        let extended = line[index].load(Ordering::Relaxed);
        prop_assert_eq!(ahead(extended, now), lifetime(1) + 1);
    }

    #[test]
    fn no_repetition_is_remembered_for_longer_than_the_longest(waits in vec(1..400u64, 0..30)) {
        let line: [AtomicU64; LINE] = Default::default();
        prop_assert!(claim(&line, 9, START).is_some());
        let mut now = START;
        for wait in waits {
            now += wait * TICK_NS;
            let Some((index, word)) = candidate(&line, 9, now) else { break };
            prop_assert!(extend(&line, index, word, 9, now));
            let left = ahead(line[index].load(Ordering::Relaxed), now);
            prop_assert!(left <= lifetime(MAX_REPEATS) + 1);
        }
    }
}

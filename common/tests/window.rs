//! Fixed and sliding windows against exact models, with clocks that are stepped.

use proptest::prelude::*;
use weir_common::{
    sliding::{self, Moment},
    window::{self, MAX_COUNT, SKEW_SECONDS, Window},
};

/// What a window should be: which one it is and what was counted, without any bits.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    number: u64,
    count: u64,
}

impl Model {
    fn hit(&mut self, now: u64, period: u64, hits: u64) -> (u64, u64) {
        let current = now / period;
        let ahead = self.number.saturating_sub(current);
        if self.number < current || self.count == 0 {
            *self = Self { number: current, count: 0 };
        } else if ahead > 1 + SKEW_SECONDS.div_ceil(period) {
            self.number = current;
        }
        let before = self.count;
        self.count = (self.count + hits).min(MAX_COUNT);
        (before, self.count)
    }
}

/// Mostly forward, sometimes back by little or by much.
fn steps() -> impl Strategy<Value = Vec<(i64, u64)>> {
    let step = prop_oneof![4 => 0i64..5, 2 => -8i64..0, 1 => -100_000i64..100_000];
    proptest::collection::vec((step, 0u64..7), 1..200)
}

fn periods() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1u64), Just(2), Just(7), Just(60), Just(3600), Just(604_800)]
}

proptest! {
    #[test]
    fn a_window_counts_as_the_model_does_whatever_the_clock_does(
        period in periods(), steps in steps(),
    ) {
        let (mut word, mut model, mut now) = (0, Model::default(), 1_700_000_000u64);
        for (step, hits) in steps {
            now = now.saturating_add_signed(step).max(1);
            let window = Window::at(now, period);
            let counted = window.step(word, hits);
            prop_assert_eq!((counted.before, counted.after), model.hit(now, period, hits));
            prop_assert_eq!(window.count(counted.word), counted.after);
            prop_assert_eq!(window.is_over(counted.word), counted.after == 0);
            word = counted.word;
        }
    }

    #[test]
    fn no_step_of_the_clock_gives_anything_out(
        period in periods(), limit in 1u64..20, jumps in proptest::collection::vec(-1_000_000i64..0, 1..20),
    ) {
        // The window is used up; then the clock is only ever set back, without time passing.
        let mut now = 1_700_000_000u64;
        let mut word = Window::at(now, period).step(0, limit).word;
        for jump in jumps {
            now = now.saturating_add_signed(jump).max(1);
            let counted = Window::at(now, period).step(word, 1);
            prop_assert!(counted.after > limit);
            word = counted.word;
        }
    }

    #[test]
    fn after_any_step_back_the_next_window_but_one_is_new(
        period in 5u64..100_000, back in 0u64..1_000_000_000,
    ) {
        let now = 1_700_000_000u64;
        let word = Window::at(now, period).step(0, 1000).word;
        let now = now - back;
        // Somebody asks, which is when a count that stands far ahead is moved.
        let asked = Window::at(now, period).step(word, 1).word;
        prop_assert_eq!(Window::at(now + 3 * period, period).step(asked, 1).before, 0);
    }

    #[test]
    fn what_is_given_back_is_never_more_than_was_taken(hits in 0u64..100, back in 0u64..200) {
        let window = Window::at(1_700_000_000, 60);
        let word = window.step(0, hits).word;
        let counted = window.step_back(word, back);
        prop_assert_eq!(counted.after, hits.saturating_sub(back));
        let next = Window::at(1_700_000_060, 60);
        prop_assert_eq!(next.step_back(word, back).after, 0, "another window has nothing to give");
    }

    #[test]
    fn a_sliding_window_admits_what_the_exact_estimate_allows(
        period in periods(), limit in 0u64..50,
        steps in proptest::collection::vec((0u64..4_000_000_000, 0u64..5), 1..200),
    ) {
        let period_ns = period * 1_000_000_000;
        let (mut word, mut now) = (0, 1_700_000_000_000_000_000u64);
        let (mut number, mut previous, mut current) = (0u64, 0u64, 0u64);
        for (step, hits) in steps {
            now += step * period;
            if now / period_ns != number {
                previous = if now / period_ns == number + 1 { current } else { 0 };
                current = 0;
                number = now / period_ns;
            }
            let left = u128::from(period_ns - now % period_ns);
            let used = current + (u128::from(previous) * left).div_ceil(u128::from(period_ns)) as u64;
            let asked = Moment::at(now, period).step(word, hits, limit);
            prop_assert_eq!(asked.before, used);
            prop_assert_eq!(asked.admitted, used + hits <= limit);
            if asked.admitted {
                current += hits;
                word = asked.word;
            }
        }
    }

    #[test]
    fn a_sliding_window_keeps_its_fields_whatever_is_asked(
        words: [u64; 4], period in periods(), hits: u64, limit: u64, now: u64,
    ) {
        for word in words {
            let moment = Moment::at(now, period);
            let asked = moment.step(word, hits, limit);
            if asked.admitted {
                prop_assert!(moment.count(asked.word) <= limit.min(sliding::MAX_LIMIT));
                prop_assert_eq!(moment.count(asked.word), asked.before + hits);
            } else {
                prop_assert_eq!(asked.word, word);
            }
            prop_assert!(moment.count(moment.step_back(word, hits)) <= moment.count(word));
        }
    }
}

#[test]
fn a_sliding_window_that_stands_ahead_is_treated_as_a_fixed_one() {
    const SECOND: u64 = 1_000_000_000;
    let now = 1_700_000_000 * SECOND;
    let word = Moment::at(now, 1).step(0, 5, 5).word;
    assert!(!Moment::at(now - 3 * SECOND, 1).step(word, 1, 5).admitted, "a little: it stays");
    let set_back = now - 3600 * SECOND;
    assert!(!Moment::at(set_back, 1).step(word, 1, 5).admitted, "by much: nothing is given out");
}

#[test]
fn the_highest_limit_still_ends() {
    let window = Window::at(1_700_000_000, 60);
    let full = window.step(0, u64::from(u32::MAX)).word;
    assert!(window.step(full, 1).after > u64::from(u32::MAX));
    assert_eq!(window.step(full, u64::MAX).after, MAX_COUNT);
    assert_eq!(window.step(window.step(full, u64::MAX).word, 1).after, MAX_COUNT);
}

#[test]
fn words_are_changed_through_cells() {
    use std::sync::atomic::AtomicU64;
    let (cell, window) = (AtomicU64::new(0), Window::at(1_700_000_000, 60));
    assert_eq!(window::hit(&cell, window, 3).map(|counted| counted.after), Some(3));
    window::give_back(&cell, window, 2);
    assert_eq!(window::hit(&cell, window, 1).map(|counted| counted.before), Some(1));
}

//! Many CPUs, one word: what a schedule may and may not change.
//!
//! Buckets, buckets of sources and remembered handshakes. The words are a model checker's.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/memory.rs"]
mod memory;
#[path = "model/schedule.rs"]
mod schedule;

use std::sync::Arc;

use schedule::{Shared, SharedLine, explore, together};
use shuttle::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use weir_common::{
    gcra::{self, Params, Q8, Refill, Taken, q8},
    handshake,
    source::{self, SourceParams, SourceTaken, WAYS},
    way::{self, LINE, Line, TICK_NS, Tick},
    window::{self, Window},
    word::Word,
};

const SECOND: u64 = 1_000_000_000;
/// A machine that is up for a while, in whole ticks and seconds.
const NOW_NS: u64 = 1_000_000 * SECOND;
const NOW: Q8 = q8(NOW_NS);

/// Counts admissions; nobody in these tests has enough rivals to be contended.
fn admitted(taken: &[Taken]) -> u64 {
    assert!(!taken.contains(&Taken::Contended));
    taken.iter().filter(|&&taken| taken == Taken::Admitted).count() as u64
}

fn limit(tokens: u64, burst: u64) -> Params {
    Params::new(tokens, SECOND, burst, Refill::Smooth).expect("valid parameters")
}

#[test]
fn threads_that_take_from_one_word_get_exactly_one_burst() {
    explore(|| {
        let params = limit(10, 4);
        let word = Arc::new(Shared::new(0));
        let taken = together([2, 3, 2], {
            let word = Arc::clone(&word);
            move |takes| (0..takes).map(|_| gcra::take(&*word, NOW, &params)).collect::<Vec<_>>()
        });
        assert_eq!(admitted(&taken.concat()), 4);
        assert_eq!(gcra::spent(word.load(), NOW, &params), params.burst);
    });
}

#[test]
fn fewer_takes_than_tokens_all_succeed() {
    explore(|| {
        let params = limit(10, 8);
        let word = Arc::new(Shared::new(0));
        let taken = together([2, 3, 2], {
            let word = Arc::clone(&word);
            move |takes| (0..takes).map(|_| gcra::take(&*word, NOW, &params)).collect::<Vec<_>>()
        });
        assert_eq!(admitted(&taken.concat()), 7);
        assert_eq!(gcra::tokens_left(word.load(), NOW, &params), 1);
    });
}

#[test]
fn threads_that_read_the_clock_at_their_own_pace_get_no_more_than_its_time_allows() {
    explore(|| {
        // A token comes back with every tick of this clock, to a bucket of two.
        let params = Params { cost: 256, burst: 512, step: 0 };
        let word = Arc::new(Shared::new(0));
        let clock = Arc::new(AtomicU64::new(NOW));
        let taken = together([3, 3, 3], {
            let word = Arc::clone(&word);
            let clock = Arc::clone(&clock);
            move |takes| {
                let take = |_| {
                    let now = clock.fetch_add(128, Ordering::SeqCst);
                    gcra::take(&*word, now, &params)
                };
                (0..takes).map(take).collect::<Vec<_>>()
            }
        });
        let end = clock.load(Ordering::SeqCst) - 128;
        let admitted = admitted(&taken.concat());
        assert!(admitted * params.cost <= end - NOW + params.burst, "{admitted} admitted");
        // Nobody was charged without being admitted.
        assert!(gcra::spent(word.load(), end, &params) <= admitted * params.cost);
    });
}

#[test]
fn threads_on_one_window_admit_exactly_its_limit_and_lose_no_hit() {
    explore(|| {
        let word = Arc::new(Shared::new(0));
        let window = Window::at(1_700_000_000, 60);
        let admitted = together([2, 3, 2], {
            let word = Arc::clone(&word);
            move |hits| {
                let hit =
                    |_: &u64| window::hit(&*word, window, 1).expect("three threads").after <= 4;
                (0..hits).filter(hit).count()
            }
        });
        assert_eq!(admitted.iter().sum::<usize>(), 4);
        assert_eq!(window.count(word.load()), 7);
    });
}

#[test]
fn threads_on_both_sides_of_an_edge_share_the_later_window() {
    explore(|| {
        let word = Arc::new(Shared::new(0));
        let clock = Arc::new(AtomicU64::new(1_700_000_038));
        let admitted = together([3, 3, 3], {
            let word = Arc::clone(&word);
            let clock = Arc::clone(&clock);
            move |hits| {
                let hit = |_: &u64| {
                    // The minute ends at 1700000040; some read the clock before and hit after.
                    let window = Window::at(clock.fetch_add(1, Ordering::SeqCst) / 2 * 2, 60);
                    window::hit(&*word, window, 1).expect("three threads").after <= 2
                };
                (0..hits).filter(hit).count()
            }
        });
        // Two windows, two each: who comes late counts in the later one.
        assert!(admitted.iter().sum::<usize>() <= 4, "{admitted:?}");
    });
}

#[test]
fn an_inner_bucket_keeps_only_what_the_outer_one_admitted() {
    explore(|| {
        let (inner, outer) = (limit(10, 5), limit(20, 3));
        let words = Arc::new([Shared::new(0), Shared::new(0)]);
        let admitted = together([2, 1, 2], {
            let words = Arc::clone(&words);
            move |takes| {
                let mut admitted = 0;
                for _ in 0..takes {
                    // Five takes: the inner bucket never is what refuses.
                    assert_eq!(gcra::take(&words[0], NOW, &inner), Taken::Admitted);
                    match gcra::take(&words[1], NOW, &outer) {
                        Taken::Admitted => admitted += 1,
                        Taken::Denied => gcra::refund(&words[0], &inner),
                        Taken::Contended => panic!("contended among three"),
                    }
                }
                admitted
            }
        });
        assert_eq!(admitted.iter().sum::<u64>(), 3);
        assert_eq!(gcra::tokens_left(words[1].load(), NOW, &outer), 0);
        assert_eq!(gcra::tokens_left(words[0].load(), NOW, &inner), 2);
    });
}

#[test]
fn a_refund_never_makes_room_for_two() {
    explore(|| {
        let params = limit(10, 2);
        let word = Arc::new(Shared::new(0));
        let kept = together([true, false, true], {
            let word = Arc::clone(&word);
            move |keeps| {
                let taken = gcra::take(&*word, NOW, &params);
                if taken == Taken::Admitted && !keeps {
                    gcra::refund(&*word, &params);
                    return 0;
                }
                u64::from(taken == Taken::Admitted)
            }
        });
        let kept: u64 = kept.iter().sum();
        assert!(kept <= 2);
        assert_eq!(gcra::tokens_left(word.load(), NOW, &params), 2 - kept);
    });
}

#[test]
fn a_new_rate_admits_what_was_left_and_what_was_on_its_way() {
    explore(|| {
        let (old, new) = (limit(10, 4), limit(25, 4));
        // The agent gives a limit with new parameters a new cell and turns the reference to it.
        let cells = Arc::new([Shared::new(0), Shared::new(u64::MAX)]);
        let reference = Arc::new(AtomicU64::new(0));
        // Counts takes from the old cell.
        let from_old = Arc::new(AtomicU64::new(0));
        let agent = thread::spawn({
            let (cells, reference, from_old) =
                (Arc::clone(&cells), Arc::clone(&reference), Arc::clone(&from_old));
            move || {
                let seen = from_old.load(Ordering::SeqCst);
                let word = gcra::rescale(cells[0].load(), NOW, &old, &new);
                cells[1].0.store(word, Ordering::SeqCst);
                reference.store(1, Ordering::SeqCst);
                (seen, gcra::tokens_left(word, NOW, &new))
            }
        });
        let taken = together([3, 3], {
            let (cells, reference, from_old) =
                (Arc::clone(&cells), Arc::clone(&reference), Arc::clone(&from_old));
            move |takes| {
                let take = |_| {
                    if reference.load(Ordering::SeqCst) == 0 {
                        let taken = gcra::take(&cells[0], NOW, &old);
                        if taken == Taken::Admitted {
                            from_old.fetch_add(1, Ordering::SeqCst);
                        }
                        taken
                    } else {
                        gcra::take(&cells[1], NOW, &new)
                    }
                };
                (0..takes).map(take).collect::<Vec<_>>()
            }
        });
        let (seen, left) = agent.join().expect("the agent");
        let late = from_old.load(Ordering::SeqCst) - seen;
        assert!(left <= 4 - seen, "a new rate is no new burst");
        let admitted = admitted(&taken.concat());
        assert!(admitted <= 4 + late, "{admitted} admitted, {late} of them late");
        assert!(admitted >= 4, "{admitted} admitted");
    });
}

fn source_limit(burst: u64) -> SourceParams {
    SourceParams::new(10, SECOND, burst, Refill::Smooth).expect("valid parameters")
}

fn own(taken: &[SourceTaken]) -> u64 {
    assert!(taken.iter().all(|taken| !taken.crowded));
    admitted(&taken.iter().map(|taken| taken.taken).collect::<Vec<_>>())
}

fn spend(line: &SharedLine, tag: u64, now_ns: u64, takes: u64, burst: u64) -> Vec<SourceTaken> {
    (0..takes).map(|_| source::take(line, tag, now_ns, &source_limit(burst))).collect()
}

#[test]
fn threads_that_meet_a_new_source_at_once_open_one_bucket() {
    for threads in [&[3, 3][..], &[2, 3, 2]] {
        explore(move || {
            let line = Arc::new(SharedLine::new([0; LINE]));
            let taken = together(threads.to_vec(), {
                let line = Arc::clone(&line);
                move |takes| spend(&line, 7, NOW_NS, takes, 4)
            });
            assert_eq!(own(&taken.concat()), 4);
            let places = (0..WAYS).filter(|&way| line.word(way).load() != 0).count();
            assert_eq!(places, 1);
        });
    }
}

/// A line in which the way `idle` falls idle at `NOW_NS`, `free` is free, and others are live.
fn line_with(idle: usize, free: usize) -> SharedLine {
    let now = Tick::from_ns(NOW_NS);
    SharedLine::new(std::array::from_fn(|way| match way {
        WAYS => 0,
        _ if way == free => 0,
        _ if way == idle => way::pack(100 + way as u64, now),
        _ => way::pack(100 + way as u64, now.after(SECOND)),
    }))
}

#[test]
fn a_source_that_opens_two_buckets_gets_one_burst() {
    for (idle, free) in [(1, 4), (4, 1)] {
        for threads in [
            // The first still sees the way as live, the others see it as idle.
            &[(TICK_NS, 3), (0, 3)][..],
            &[(TICK_NS, 2), (0, 2), (0, 3)],
            &[(TICK_NS, 2), (TICK_NS, 2), (0, 3)],
        ] {
            explore(move || {
                let line = Arc::new(line_with(idle, free));
                let taken = together(threads.to_vec(), {
                    let line = Arc::clone(&line);
                    move |(ago, takes)| spend(&line, 7, NOW_NS - ago, takes, 4)
                });
                let mut taken = taken.concat();
                taken.extend(spend(&line, 7, NOW_NS, 4, 4));
                assert!(taken.iter().all(|taken| !taken.crowded));
                let admitted = taken.iter().filter(|taken| taken.taken == Taken::Admitted).count();
                assert_eq!(admitted, 4);
            });
        }
    }
}

#[test]
fn a_second_bucket_that_nobody_met_is_taken_back() {
    for (idle, free) in [(1, 4), (4, 1)] {
        explore(move || {
            let line = Arc::new(line_with(idle, free));
            let taken = together([(TICK_NS, 1), (0, 1)], {
                let line = Arc::clone(&line);
                move |(ago, takes)| spend(&line, 7, NOW_NS - ago, takes, 4)
            });
            assert_eq!(own(&taken.concat()), 2);
            let ways = (0..WAYS).filter(|&way| way::has_tag(line.word(way).load(), 7)).count();
            assert_eq!(ways, 1);
            assert!(own(&spend(&line, 7, NOW_NS, 5, 4)) <= 2);
        });
    }
}

#[test]
fn two_new_sources_and_one_place_make_one_bucket_and_one_crowded_source() {
    explore(|| {
        let now = Tick::from_ns(NOW_NS);
        let line = Arc::new(SharedLine::new(std::array::from_fn(|way| match way {
            3 | WAYS => 0,
            _ => way::pack(100 + way as u64, now.after(SECOND)),
        })));
        let taken = together([7, 8, 8], {
            let line = Arc::clone(&line);
            move |tag| (tag, spend(&line, tag, NOW_NS, 2, 2))
        });
        let mut crowded = [0, 0];
        let mut admitted = [0, 0];
        for (tag, taken) in taken {
            for taken in taken {
                assert_ne!(taken.taken, Taken::Contended);
                let index = usize::from(tag == 8);
                crowded[index] += u64::from(taken.crowded);
                admitted[index] += u64::from(taken.taken == Taken::Admitted);
            }
        }
        assert_eq!(admitted, [2, 2]);
        assert!(crowded == [2, 0] || crowded == [0, 4], "{crowded:?}");
    });
}

#[test]
fn what_is_given_back_to_a_source_is_what_was_taken() {
    explore(|| {
        let line = Arc::new(SharedLine::new([0; LINE]));
        let params = source_limit(3);
        let kept = together([(2, true), (2, false), (1, true)], {
            let line = Arc::clone(&line);
            move |(takes, keeps)| {
                let mut kept = 0;
                for taken in spend(&line, 7, NOW_NS, takes, 3) {
                    if taken.taken != Taken::Admitted {
                        continue;
                    }
                    if keeps {
                        kept += 1;
                    } else {
                        source::refund(&*line, 7, taken.crowded, NOW_NS, &params);
                    }
                }
                kept
            }
        });
        let kept: u64 = kept.iter().sum();
        let left = spend(&line, 7, NOW_NS, 5, 3);
        assert_eq!(kept + own(&left), 3);
    });
}

#[test]
fn a_handshake_is_free_only_if_it_was_admitted_before() {
    explore(|| {
        let line = Arc::new(SharedLine::new([0; LINE]));
        let paid = Arc::new(std::array::from_fn::<_, 4, _>(|_| AtomicU64::new(0)));
        assert!(memory::claim(&*line, 1, NOW_NS).is_some());
        paid[1].store(1, Ordering::SeqCst);
        together([(2, true), (3, false), (1, true)], {
            let (line, paid) = (Arc::clone(&line), Arc::clone(&paid));
            move |(tag, pays): (u64, bool)| {
                for repetition in 0..2 {
                    let now_ns = NOW_NS + repetition * SECOND;
                    let repeats = memory::candidate(&*line, tag, now_ns)
                        .is_some_and(|(at, word)| handshake::extend(&*line, at, word, tag, now_ns));
                    if repeats {
                        assert_eq!(paid[tag as usize].load(Ordering::SeqCst), 1, "a free pass");
                    } else if pays {
                        paid[tag as usize].store(1, Ordering::SeqCst);
                        let _ = memory::claim(&*line, tag, now_ns);
                    }
                }
            }
        });
    });
}

#[test]
fn a_place_is_claimed_by_one_handshake_of_those_that_want_it() {
    explore(|| {
        let line = Arc::new(SharedLine::new([0; LINE]));
        for tag in 100..107 {
            assert!(memory::claim(&*line, tag, NOW_NS).is_some());
        }
        let claims = together([1, 2, 3], {
            let line = Arc::clone(&line);
            move |tag| memory::claim(&*line, tag, NOW_NS).map(|claimed| (tag, claimed))
        });
        let claims: Vec<_> = claims.into_iter().flatten().collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].1, 7);
        assert!(memory::candidate(&*line, claims[0].0, NOW_NS).is_some());
    });
}

#[test]
fn a_place_that_was_claimed_by_another_is_not_extended() {
    explore(|| {
        let line = Arc::new(SharedLine::new([0; LINE]));
        assert!(memory::claim(&*line, 1, NOW_NS).is_some());
        let (index, word) = memory::candidate(&*line, 1, NOW_NS).expect("just claimed");
        let last = NOW_NS + handshake::FIRST * handshake::TICK_NS;
        let expired = last + 2 * handshake::TICK_NS;
        let done = together([true, false], {
            let line = Arc::clone(&line);
            move |extends| {
                if extends {
                    handshake::extend(&*line, index, word, 1, last)
                } else {
                    memory::claim(&*line, 2, expired).is_some_and(|claimed| claimed == index)
                }
            }
        });
        // One of them has the place, and it is the one whose word stands there.
        assert!(done[0] != done[1]);
        let tag = if done[0] { 1 } else { 2 };
        assert!(memory::candidate(&*line, tag, last).is_some());
    });
}

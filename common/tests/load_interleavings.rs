//! Many CPUs, one load: what a schedule may and may not change.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/schedule.rs"]
mod schedule;

use std::sync::Arc;

use schedule::{Shared, SharedLine, explore, explore_some, together};
use shuttle::sync::atomic::{AtomicI64, Ordering};
use weir_common::{
    load::{
        Bounds, Change, EPOCH_SHIFT, Load, MAX_HANDSHAKES, Opened, SourceOpened, WAYS, change,
        change_source, open, open_source, read, read_source,
    },
    way::Line,
    word::{TRIES, Word},
};

const EPOCH: u64 = 1 << EPOCH_SHIFT;
const NOW: u64 = 100_000 * EPOCH;
const BOUND: u64 = 3;

fn bounds(connections: u64) -> Bounds {
    Bounds { connections, handshakes: MAX_HANDSHAKES }
}

#[test]
fn sixty_four_that_open_at_once_are_as_many_as_the_bound() {
    explore_some(60, || {
        let word = Arc::new(Shared::new(0));
        let opened = together(0..64, {
            let word = Arc::clone(&word);
            move |_| open(&*word, NOW, bounds(10))
        });
        let count = |what| opened.iter().filter(|&&opened| opened == what).count();
        assert_eq!((count(Opened::Opened), count(Opened::TooManyConnections)), (10, 54));
        assert_eq!(read(word.load(), NOW).connections(), 10);
    });
}

#[test]
fn handshakes_have_a_bound_of_their_own() {
    explore(|| {
        let word = Arc::new(Shared::new(0));
        let opened = together(0..5, {
            let word = Arc::clone(&word);
            move |_| open(&*word, NOW, Bounds { connections: 9, handshakes: 2 })
        });
        let count = |what| opened.iter().filter(|&&opened| opened == what).count();
        assert_eq!((count(Opened::Opened), count(Opened::TooManyHandshakes)), (2, 3));
    });
}

#[test]
fn what_is_closed_in_parallel_ends_at_the_truth() {
    explore(|| {
        let word = Arc::new(Shared::new(0));
        for _ in 0..4 {
            assert_eq!(open(&*word, NOW, bounds(4)), Opened::Opened);
        }
        together([0, 1, 2, 3], {
            let word = Arc::clone(&word);
            move |who| {
                // Some see the next epoch already.
                let now = NOW + who % 2 * EPOCH;
                if who == 3 {
                    assert!(change(&*word, Change::Abandoned, NOW, now));
                    return;
                }
                assert!(change(&*word, Change::Established, NOW, now));
                if who > 0 {
                    assert!(change(&*word, Change::Closed, NOW, now));
                }
            }
        });
        let expected = Load { previous: 0, current: 0, established: 1 };
        assert_eq!(read(word.load(), NOW + EPOCH), expected);
    });
}

#[test]
fn more_ends_than_connections_leave_none() {
    explore(|| {
        let word = Arc::new(Shared::new(0));
        for _ in 0..2 {
            assert!(change(&*word, Change::Reopened, NOW, NOW));
        }
        together([Change::Closed, Change::Closed, Change::Closed, Change::Abandoned], {
            let word = Arc::clone(&word);
            move |what| assert!(change(&*word, what, NOW, NOW))
        });
        assert_eq!(read(word.load(), NOW).connections(), 0);
    });
}

#[test]
fn a_bound_holds_across_the_end_of_an_epoch() {
    explore(|| {
        let word = Arc::new(Shared::new(0));
        let opened = together([NOW - 1, NOW, NOW - 1, NOW, NOW - 1], {
            let word = Arc::clone(&word);
            move |now| open(&*word, now, bounds(3))
        });
        assert_eq!(opened.iter().filter(|&&opened| opened == Opened::Opened).count(), 3);
        assert_eq!(read(word.load(), NOW).connections(), 3);
    });
}

/// Opens as the kernel does.
fn try_to_open(line: &SharedLine, tag: u64, now_ns: u64, bound: u64) -> SourceOpened {
    let mut opened = open_source(line, tag, now_ns, bound);
    for _ in 1..TRIES {
        if opened.opened != Opened::Contended {
            break;
        }
        opened = open_source(line, tag, now_ns, bound);
    }
    opened
}

/// A way of another source, with so many established connections.
fn established(tag: u64, connections: u64) -> u64 {
    tag << 44 | connections
}

/// Connections of a source in all ways.
fn all(line: &SharedLine, tag: u64) -> u64 {
    (0..WAYS)
        .filter_map(|way| read_source(line.word(way).load(), NOW))
        .filter(|&(owner, _)| owner == tag)
        .map(|(_, load)| load.connections())
        .sum()
}

/// A line full of others, but for the way `free`; another falls free meanwhile.
fn crowded_line(free: usize) -> Arc<SharedLine> {
    Arc::new(SharedLine::new(std::array::from_fn(|way| match way {
        WAYS => 0,
        _ if way == free => 0,
        _ => established(100 + way as u64, 1),
    })))
}

#[test]
fn a_source_with_two_ways_never_has_more_than_its_bound() {
    for (falls_free, free) in [(1, 4), (4, 1)] {
        for threads in [&[4, 4][..], &[2, 2, 2], &[1, 1, 2, 2]] {
            explore(move || {
                let line = crowded_line(free);
                let opened = together([&[0][..], threads].concat(), {
                    let line = Arc::clone(&line);
                    move |opens| {
                        if opens == 0 {
                            let (cell, owner) = (line.word(falls_free), 100 + falls_free as u64);
                            assert!(change_source(&cell, owner, Change::Closed, NOW, NOW));
                            return 0;
                        }
                        (0..opens)
                            .filter(|_| {
                                let opened = try_to_open(&line, 7, NOW, BOUND);
                                assert!(opened.way < WAYS);
                                opened.opened == Opened::Opened
                            })
                            .count() as u64
                    }
                });
                let opened: u64 = opened.iter().sum();
                assert!(opened <= BOUND, "{opened}");
                assert_eq!(all(&line, 7), opened);
                // What was taken back leaves its room.
                let more =
                    (0..4).filter(|_| try_to_open(&line, 7, NOW, BOUND).opened == Opened::Opened);
                assert_eq!(opened + more.count() as u64, BOUND);
            });
        }
    }
}

#[test]
fn at_no_moment_has_a_source_more_than_its_bound() {
    explore(|| {
        let line = crowded_line(4);
        let there = Arc::new(AtomicI64::new(0));
        together([false, true, true, true], {
            let (line, there) = (Arc::clone(&line), Arc::clone(&there));
            move |opens| {
                if !opens {
                    assert!(change_source(&line.word(1), 101, Change::Closed, NOW, NOW));
                    return;
                }
                for _ in 0..2 {
                    let SourceOpened { opened, way } = try_to_open(&line, 7, NOW, 2);
                    if opened != Opened::Opened {
                        continue;
                    }
                    assert!(there.fetch_add(1, Ordering::SeqCst) < 2);
                    let cell = line.word(way);
                    assert!(change_source(&cell, 7, Change::Established, NOW, NOW));
                    // Not there any more as soon as the line may know.
                    there.fetch_sub(1, Ordering::SeqCst);
                    assert!(change_source(&cell, 7, Change::Closed, NOW, NOW));
                }
            }
        });
        assert_eq!(all(&line, 7), 0);
    });
}

#[test]
fn two_new_sources_and_one_place_make_one_way_and_one_crowded_source() {
    explore(|| {
        let line = crowded_line(3);
        let opened = together([7, 8, 8], {
            let line = Arc::clone(&line);
            move |tag| (tag, try_to_open(&line, tag, NOW, 2))
        });
        let mut shared = [0, 0];
        for (tag, SourceOpened { opened, way }) in opened {
            assert_eq!(opened, Opened::Opened);
            shared[usize::from(tag == 8)] += u64::from(way == WAYS);
        }
        assert!(shared == [1, 0] || shared == [0, 2], "{shared:?}");
    });
}

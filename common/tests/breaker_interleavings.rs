//! Many CPUs, one breaker: what a schedule may and may not change.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/schedule.rs"]
mod schedule;

use std::sync::Arc;

use schedule::{SharedLine, explore, explore_some, together};
use shuttle::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use weir_common::{
    breaker::{
        Admission, Edge, Params, Phase, abandoned, admit, failed, failed_after_success, open, read,
        succeeded,
    },
    way::{LINE, Line},
    word::Word,
};

const SECOND: u64 = 1_000_000_000;
/// At the beginning of a period of the time-out, and of a window.
const NOW: u64 = 1_000_000 * SECOND;

const PARAMS: Params = Params {
    timeout_ms: 1000,
    ejection_ms: 5000,
    max_ejection_ms: 20_000,
    interval_ms: 10_000,
    errors: 2,
    error_ratio: 0,
    min_volume: 1,
    probes: 2,
};
/// One that only counts.
const NEVER: Params = Params { errors: 0, ..PARAMS };

fn line() -> Arc<SharedLine> {
    Arc::new(SharedLine::new([0; LINE]))
}

fn admitted(line: &SharedLine, params: &Params, now_ns: u64) -> u8 {
    match admit(line, params, now_ns) {
        (Admission::Admitted { epoch }, _) => epoch,
        (refused, edge) => panic!("{refused:?} {edge:?}"),
    }
}

/// A breaker that was tripped, and whose time is over at `NOW`.
fn over(params: &Params) -> Arc<SharedLine> {
    let line = line();
    let before = NOW - 6 * SECOND;
    for _ in 0..params.errors {
        let epoch = admitted(&line, params, before);
        let _ = failed(&*line, params, epoch, before, before);
    }
    assert_eq!(read(&*line, params, before).phase, Phase::Open);
    line
}

/// A half-open breaker with so many probes out.
fn half_open(params: &Params, probes: u32) -> (Arc<SharedLine>, u8) {
    let line = over(params);
    let mut epoch = 0;
    for _ in 0..probes {
        epoch = admitted(&line, params, NOW);
    }
    (line, epoch)
}

fn count(edges: &[Edge], edge: Edge) -> usize {
    edges.iter().filter(|&&seen| seen == edge).count()
}

fn tripped_once(line: &SharedLine, params: &Params, edges: &[Edge]) {
    assert_eq!(count(edges, Edge::Tripped), 1, "{edges:?}");
    assert_eq!(count(edges, Edge::None), edges.len() - 1);
    let view = read(line, params, NOW);
    assert_eq!((view.phase, view.ejections), (Phase::Open, 1));
}

#[test]
fn parallel_failures_are_one_trip() {
    for params in [
        PARAMS,
        Params { errors: 0, error_ratio: 100, min_volume: 3, ..PARAMS },
        // Both reasons at once.
        Params { error_ratio: 1, min_volume: 2, ..PARAMS },
    ] {
        explore(move || {
            let line = line();
            for _ in 0..4 {
                let _ = admitted(&line, &params, NOW);
            }
            let edges = together(0..4, {
                let line = Arc::clone(&line);
                move |_| failed(&*line, &params, 0, NOW, NOW)
            });
            tripped_once(&line, &params, &edges);
        });
    }
}

#[test]
fn a_hundred_parallel_failures_are_one_trip() {
    explore_some(40, || {
        let params = Params { errors: 5, ..PARAMS };
        let line = line();
        for _ in 0..100 {
            let _ = admitted(&line, &params, NOW);
        }
        let edges = together(0..100, {
            let line = Arc::clone(&line);
            move |_| failed(&*line, &params, 0, NOW, NOW)
        });
        tripped_once(&line, &params, &edges);
    });
}

#[test]
fn failures_of_two_windows_that_trip_together_are_not_missed() {
    explore(|| {
        let params = Params { errors: 0, error_ratio: 100, min_volume: 2, ..PARAMS };
        let line = line();
        let before = NOW - 1;
        for now in [before, NOW] {
            let _ = admitted(&line, &params, now);
        }
        let edges = together([before, NOW], {
            let line = Arc::clone(&line);
            move |now| failed(&*line, &params, 0, now, now)
        });
        tripped_once(&line, &params, &edges);
    });
}

#[test]
fn no_connection_is_admitted_after_the_trip() {
    explore(|| {
        let line = line();
        for _ in 0..2 {
            let _ = admitted(&line, &PARAMS, NOW);
        }
        let tripped = Arc::new(AtomicU64::new(0));
        together([true, true, false, false], {
            let (line, tripped) = (Arc::clone(&line), Arc::clone(&tripped));
            move |fails| {
                if fails {
                    if failed(&*line, &PARAMS, 0, NOW, NOW) == Edge::Tripped {
                        tripped.store(1, Ordering::SeqCst);
                    }
                    return;
                }
                for _ in 0..2 {
                    let late = tripped.load(Ordering::SeqCst) == 1;
                    let (admission, edge) = admit(&*line, &PARAMS, NOW);
                    assert_eq!(edge, Edge::None);
                    assert!(!late || admission == Admission::Open, "{admission:?}");
                }
            }
        });
    });
}

#[test]
fn who_notices_the_last_time_out_trips_it_and_is_refused() {
    explore(|| {
        let line = line();
        for _ in 0..2 {
            let _ = admitted(&line, &PARAMS, NOW);
        }
        let seen = together(0..3, {
            let line = Arc::clone(&line);
            move |_| admit(&*line, &PARAMS, NOW + 2 * SECOND)
        });
        let edges: Vec<_> = seen.iter().map(|seen| seen.1).collect();
        assert_eq!(count(&edges, Edge::Tripped), 1);
        for (admission, edge) in seen {
            assert!(edge == Edge::None || admission == Admission::Open);
        }
        assert_eq!(admit(&*line, &PARAMS, NOW + 2 * SECOND), (Admission::Open, Edge::None));
    });
}

#[test]
fn a_half_open_breaker_lets_exactly_its_probes_try() {
    for probes in [1, 2, 4] {
        explore(move || {
            let params = Params { probes, ..PARAMS };
            let line = over(&params);
            let seen = together(0..5, {
                let line = Arc::clone(&line);
                move |_| admit(&*line, &params, NOW)
            });
            let admitted =
                seen.iter().filter(|seen| matches!(seen.0, Admission::Admitted { .. })).count();
            assert_eq!(admitted, probes as usize);
            let refused = seen.iter().filter(|seen| seen.0 == Admission::Probing).count();
            assert_eq!(admitted + refused, 5);
            let edges: Vec<_> = seen.iter().map(|seen| seen.1).collect();
            assert_eq!((count(&edges, Edge::HalfOpened), count(&edges, Edge::None)), (1, 4));
        });
    }
}

#[test]
fn never_are_more_probes_out_than_permits() {
    explore(|| {
        let line = over(&PARAMS);
        let out = Arc::new(AtomicI64::new(0));
        let kept = together([true, false, false, true], {
            let (line, out) = (Arc::clone(&line), Arc::clone(&out));
            move |keeps| {
                let mut kept = 0;
                for _ in 0..2 {
                    let (Admission::Admitted { epoch }, _) = admit(&*line, &PARAMS, NOW) else {
                        continue;
                    };
                    assert!(out.fetch_add(1, Ordering::SeqCst) < 2);
                    if keeps {
                        kept += 1;
                    } else {
                        // Not out any more as soon as the breaker may know.
                        out.fetch_sub(1, Ordering::SeqCst);
                        assert_eq!(abandoned(&*line, &PARAMS, epoch, NOW, NOW), Edge::None);
                    }
                }
                kept
            }
        });
        let kept: u64 = kept.iter().sum();
        let view = read(&*line, &PARAMS, NOW);
        // What was given back is there, and what is lost comes back with its time-out.
        assert_eq!((view.phase, view.probes_out), (Phase::HalfOpen, kept));
        let later = NOW + 2 * SECOND;
        let (admission, edge) = admit(&*line, &PARAMS, later);
        if kept > 0 {
            assert_eq!((admission, edge), (Admission::Open, Edge::Reopened));
        } else {
            assert!(matches!(admission, Admission::Admitted { .. }));
        }
    });
}

#[test]
fn probes_that_succeed_together_close_it_once() {
    explore(|| {
        let params = Params { probes: 3, ..PARAMS };
        let (line, epoch) = half_open(&params, 3);
        let edges = together(0..3, {
            let line = Arc::clone(&line);
            move |_| succeeded(&*line, &params, epoch, NOW, NOW)
        });
        assert_eq!((count(&edges, Edge::Closed), count(&edges, Edge::None)), (1, 2));
        assert_eq!(read(&*line, &params, NOW).phase, Phase::Closed);
    });
}

#[test]
fn probes_of_which_one_fails_open_it_once_or_never_close_it() {
    explore(|| {
        let (line, epoch) = half_open(&PARAMS, 2);
        let edges = together([0, 1, 2, 3], {
            let line = Arc::clone(&line);
            move |who| match who {
                0 => succeeded(&*line, &PARAMS, epoch, NOW, NOW),
                1 => failed(&*line, &PARAMS, epoch, NOW, NOW),
                // It succeeded before: an end without an attempt.
                2 => failed_after_success(&*line, &PARAMS, epoch, NOW),
                _ => admit(&*line, &PARAMS, NOW + 2 * SECOND).1,
            }
        });
        assert_eq!((count(&edges, Edge::Reopened), count(&edges, Edge::None)), (1, 3));
        let view = read(&*line, &PARAMS, NOW);
        assert_eq!((view.phase, view.ejections), (Phase::Open, 2));
    });
}

#[test]
fn each_attempt_has_one_verdict_whatever_the_clocks_say() {
    explore(|| {
        let line = line();
        for _ in 0..3 {
            let _ = admitted(&line, &NEVER, NOW);
        }
        let later = NOW + 2 * SECOND;
        together([0, 1, 2, 3, 4], {
            let line = Arc::clone(&line);
            move |who| match who {
                // These still see the time at which the attempts may live.
                0 => assert_eq!(succeeded(&*line, &NEVER, 0, NOW, later - 1), Edge::None),
                1 => assert_eq!(failed(&*line, &NEVER, 0, NOW, later - 1), Edge::None),
                2 => assert_eq!(failed(&*line, &NEVER, 0, NOW, later), Edge::None),
                // These see that they timed out.
                _ => assert_eq!(admitted(&line, &NEVER, later), 0),
            }
        });
        let view = read(&*line, &NEVER, later);
        assert_eq!(view.ok + view.failed, 3, "{view:?}");
        assert!(view.ok <= 1);
        assert_eq!(view.attempts, 2);
    });
}

#[test]
fn all_that_was_counted_is_counted_at_the_end() {
    explore(|| {
        let line = line();
        together([0, 1, 2, 3], {
            let line = Arc::clone(&line);
            move |who| {
                for round in 0..2 {
                    let now = NOW + round * SECOND;
                    let epoch = admitted(&line, &NEVER, now);
                    let edge = match who {
                        0 => succeeded(&*line, &NEVER, epoch, now, now),
                        1 => failed(&*line, &NEVER, epoch, now, now),
                        2 => abandoned(&*line, &NEVER, epoch, now, now),
                        _ => Edge::None,
                    };
                    assert_eq!(edge, Edge::None);
                }
            }
        });
        let view = read(&*line, &NEVER, NOW + SECOND);
        assert_eq!((view.ok, view.failed, view.attempts), (2, 2, 2));
    });
}

#[test]
fn late_evidence_of_an_old_epoch_leaves_no_trace_in_the_new_one() {
    for late in 0..4 {
        explore(move || {
            // It closes at once when its time is over, after a millisecond.
            let params = Params { errors: 1, probes: 0, ejection_ms: 1, interval_ms: 1, ..PARAMS };
            // An even number of windows later: the same word.
            let later = NOW + SECOND / 250;
            let line = line();
            for _ in 0..3 {
                let _ = admitted(&line, &params, NOW);
            }
            together([false, true, true], {
                let line = Arc::clone(&line);
                move |slow| {
                    if slow {
                        // They read the words before the trip, and may write after it.
                        let _ = match late {
                            0 => succeeded(&*line, &params, 0, NOW, NOW),
                            1 => abandoned(&*line, &params, 0, NOW, NOW),
                            2 => failed_after_success(&*line, &params, 0, NOW),
                            _ => admit(&*line, &params, NOW).1,
                        };
                        return;
                    }
                    let _ = failed(&*line, &params, 0, NOW, NOW);
                    let (admission, edge) = admit(&*line, &params, later);
                    let Admission::Admitted { epoch } = admission else { panic!("{admission:?}") };
                    assert_eq!((epoch, edge), (2, Edge::Closed));
                    assert_eq!(admitted(&line, &params, later), 2);
                    assert_eq!(succeeded(&*line, &params, 2, later, later), Edge::None);
                }
            });
            let view = read(&*line, &params, later);
            assert_eq!(view.phase, Phase::Closed);
            // A slow admission may belong to the new epoch: it counts there as any other.
            let slow = if late == 3 { 0..=2 } else { 0..=0 };
            assert!(slow.contains(&(view.attempts - 1)), "{view:?}");
            assert_eq!((view.ok, view.failed), (1, 0));
        });
    }
}

#[test]
fn a_success_and_a_failure_that_race_leave_a_breaker_that_still_counts() {
    explore(|| {
        let line = line();
        for _ in 0..2 {
            let _ = admitted(&line, &PARAMS, NOW);
        }
        together([true, false], {
            let line = Arc::clone(&line);
            move |succeeds| {
                let edge = if succeeds {
                    succeeded(&*line, &PARAMS, 0, NOW, NOW)
                } else {
                    failed(&*line, &PARAMS, 0, NOW, NOW)
                };
                assert_eq!(edge, Edge::None);
            }
        });
        let view = read(&*line, &PARAMS, NOW);
        assert!(view.consecutive <= 1);
        assert_eq!((view.ok, view.failed, view.attempts), (1, 1, 0));
    });
}

#[test]
fn who_is_told_and_trips_opens_once() {
    explore(|| {
        let line = line();
        for _ in 0..2 {
            let _ = admitted(&line, &PARAMS, NOW);
        }
        let opened = together([0, 1, 2], {
            let line = Arc::clone(&line);
            move |who| match who {
                0 => (open(&*line, &PARAMS, NOW), false),
                _ => (false, failed(&*line, &PARAMS, 0, NOW, NOW) == Edge::Tripped),
            }
        });
        let view = read(&*line, &PARAMS, NOW);
        let (told, tripped) = opened.iter().fold((0, 0), |(told, tripped), it| {
            (told + u32::from(it.0), tripped + u32::from(it.1))
        });
        assert_eq!(told + tripped, 1);
        assert_eq!((view.phase, view.told, view.ejections), (Phase::Open, told == 1, 1));
        assert_eq!((4..LINE).map(|index| line.word(index).load()).sum::<u64>(), 0);
    });
}

use std::{collections::HashMap, sync::Barrier, thread};

use proptest::prelude::*;

use super::*;
use crate::quota::{
    engine::{Hits, Meter},
    identity::Keys,
};

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> Now {
    let ns = (1_700_000_000 + seconds) * SECOND;
    Now { monotonic_ns: ns, realtime_ns: ns }
}

fn identity(keys: &Keys, number: u64) -> Identity {
    let mut name = keys.start();
    name.bytes(&number.to_le_bytes());
    name.finish()
}

fn hit(slab: &Slab, meter: &Meter, identity: Identity, now: Now) -> Result<Taken, Crowded> {
    let kind = meter.kind();
    slab.update(identity.of_kind(kind), meter.mark(), now, |word| {
        meter.step(word, Hits::Add(1), now)
    })
}

#[test]
fn threads_together_get_no_more_than_each_limit_and_no_hit_is_lost() {
    let (slab, keys) = (Slab::new(64), Keys::default());
    let meter = Meter::fixed(100, 3600);
    let admitted = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|offset| {
                let (slab, keys, meter) = (&slab, &keys, &meter);
                scope.spawn(move || {
                    let mut admitted = 0;
                    for step in 0..16_000 {
                        let count = identity(keys, (step * 7 + offset) % 16);
                        admitted += u64::from(!hit(slab, meter, count, at(0)).unwrap().over);
                    }
                    admitted
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    assert_eq!(admitted, 16 * 100);
    // Every hit is counted, admitted or not: 4 000 for each of the 16.
    let look = |number| {
        let kind = meter.kind();
        let step = |word| meter.step(word, Hits::Add(0), at(0));
        slab.update(identity(&keys, number).of_kind(kind), meter.mark(), at(0), step).unwrap().after
    };
    assert_eq!((0..16).map(look).collect::<Vec<_>>(), [4000; 16]);
}

#[test]
fn counts_that_come_and_go_get_exactly_their_limit_in_each_window() {
    // Windows of a second, and counts that are asked for in three of them: far more than there are
    // ways. So ways are taken over all the time, while others look for theirs.
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 400;
    let (slab, keys, barrier) = (Slab::new(128), Keys::default(), Barrier::new(THREADS as usize));
    let meter = Meter::fixed(3, 1);
    let run = &|offset: u64| {
        let mut admitted: HashMap<(u64, u64), u64> = HashMap::new();
        for round in 0..ROUNDS {
            barrier.wait();
            for step in 0..60 {
                let number = round * 5 + (step + offset * 4) % 15;
                let taken = hit(&slab, &meter, identity(&keys, number), at(round)).unwrap();
                *admitted.entry((round, number)).or_default() += u64::from(!taken.over);
            }
        }
        admitted
    };
    let mut all: HashMap<(u64, u64), u64> = HashMap::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|offset| scope.spawn(move || run(offset))).collect();
        for thread in threads {
            for (key, admitted) in thread.join().unwrap() {
                *all.entry(key).or_default() += admitted;
            }
        }
    });
    assert_eq!(all.len() as u64, ROUNDS * 15);
    let wrong: Vec<_> = all.iter().filter(|(_, admitted)| **admitted != 3).collect();
    assert_eq!(wrong, []);
    assert!(slab.fill(at(ROUNDS)).used < 400, "taken over, not added");
}

#[test]
fn the_table_fills_to_its_bound_and_no_further_and_what_is_over_makes_place() {
    let (slab, keys) = (Slab::new(10_000), Keys::default());
    let meter = Meter::fixed(5, 60);
    let fill = |numbers: std::ops::Range<u64>, now| -> Vec<u64> {
        numbers.filter(|n| hit(&slab, &meter, identity(&keys, *n), now).is_ok()).collect()
    };
    // Keys differ in each run; once in hundreds of runs, one of the ten thousand is crowded.
    let placed = fill(0..10_000, at(0));
    assert!(placed.len() >= 9_990, "{}", placed.len());
    let more = fill(10_000..20_000, at(0));
    assert!(more.len() < 6_000, "{}", more.len());
    let keeps = |n: &u64| hit(&slab, &meter, identity(&keys, *n), at(1)).unwrap().before == 1;
    assert!(placed.iter().all(keeps), "nobody who was there lost anything");
    let crowded = slab.fill(at(1));
    assert!(crowded.live > 10_000 && crowded.live <= crowded.ways, "{crowded:?}");
    assert_eq!(slab.fill(at(60)).live, 0);
    let fresh = fill(50_000..60_000, at(60 + SKEW_SECONDS));
    assert!(fresh.len() >= 9_990, "{}", fresh.len());
}

#[test]
fn a_question_takes_no_place() {
    let (slab, keys) = (Slab::new(8), Keys::default());
    let meter = Meter::fixed(5, 60);
    for number in 0..1000 {
        let kind = meter.kind();
        let step = |word| meter.step(word, Hits::Add(0), at(0));
        let taken = slab.update(identity(&keys, number).of_kind(kind), meter.mark(), at(0), step);
        assert_eq!(taken.unwrap().after, 0);
    }
    assert_eq!(slab.fill(at(0)).used, 0);
}

proptest! {
    #[test]
    fn the_table_counts_as_a_map_would(
        hits in proptest::collection::vec((0u64..40, 0u64..5, 0u64..4), 1..300),
    ) {
        let (slab, keys) = (Slab::new(64), Keys::default());
        let meter = Meter::fixed(4, 60);
        let mut model: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut seconds = 0;
        for (number, step, hits) in hits {
            seconds += step * 7;
            let now = at(seconds);
            let window = now.realtime_s() / 60;
            let kind = meter.kind();
            let step = |word| meter.step(word, Hits::Add(hits), now);
            let taken = slab.update(identity(&keys, number).of_kind(kind), meter.mark(), now, step).unwrap();
            let known = model.entry(number).or_insert((window, 0));
            if known.0 != window {
                *known = (window, 0);
            }
            prop_assert_eq!(taken.before, known.1);
            known.1 += hits;
            prop_assert_eq!(taken.over, known.1 > 4);
        }
    }
}

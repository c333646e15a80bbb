//! Which endpoints of a service refuse: as a list that knows when each was ejected would have it.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use weir_common::{
    breaker::{
        Admission, Edge, Params, admit, ejected_for, failed, is_before, peek, read, succeeded,
    },
    way::LINE,
};

const MS: u64 = 1_000_000;
const DAY: u64 = 86_400_000 * MS;
const PARAMS: Params = Params {
    timeout_ms: 1_000_000,
    ejection_ms: 5000,
    max_ejection_ms: 12_000,
    interval_ms: 60_000,
    errors: 1,
    error_ratio: 0,
    min_volume: 1,
    probes: 1,
};

type Member = [AtomicU64; LINE];

/// Who refuses, of those that are ejected: as the kernel decides it for each alone.
fn refuses(members: &[Member], this: usize, at_most: u32, now_ns: u64) -> bool {
    let age = |member: &Member| ejected_for(member[0].load(Ordering::Relaxed), &PARAMS, now_ns);
    let Some(own) = age(&members[this]) else { return false };
    let before = members.iter().enumerate().filter(|(index, member)| {
        age(member).is_some_and(|age| is_before((age, *index as u32), (own, this as u32)))
    });
    (before.count() as u32) < at_most
}

/// What one knows who has watched all along: since when each was ejected, as the clock's ticks say it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    In,
    Open { since_ns: u64, until_ns: u64 },
    HalfOpen,
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody asks, and it fails, or succeeds.
    Asks {
        member: usize,
        succeeds: bool,
    },
    Waits {
        ms: u64,
    },
}

fn step(members: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..members, any::<bool>())
            .prop_map(|(member, succeeds)| Step::Asks { member, succeeds }),
        2 => (2..4000u64).prop_map(|ms| Step::Waits { ms }),
    ]
}

proptest! {
    #[test]
    fn those_refuse_that_were_ejected_first(
        count in 1..6usize,
        at_most in 1..4u32,
        steps in proptest::collection::vec(step(6), 1..60),
    ) {
        let members: Vec<Member> = (0..count).map(|_| Default::default()).collect();
        let mut known = vec![Known::In; count];
        let mut now_ns = DAY;
        for step in steps {
            match step {
                Step::Waits { ms } => now_ns += ms * MS,
                Step::Asks { member, .. } if member >= count => {}
                Step::Asks { member, succeeds } => {
                    let (line, state) = (&members[member], &mut known[member]);
                    let (admission, edge) = admit(line, &PARAMS, now_ns);
                    if edge == Edge::HalfOpened {
                        *state = Known::HalfOpen;
                    }
                    let Admission::Admitted { epoch } = admission else { continue };
                    let verdict = if succeeds { succeeded } else { failed };
                    match verdict(line, &PARAMS, epoch, now_ns, now_ns) {
                        Edge::Tripped | Edge::Reopened => {
                            // The so-manieth time in a row: the breaker's own test knows which.
                            let times = read(line, &PARAMS, now_ns).ejections;
                            let until_ns = now_ns + (5000 * times).min(12_000) * MS;
                            *state = Known::Open { since_ns: now_ns, until_ns };
                        }
                        Edge::Closed => *state = Known::In,
                        Edge::None | Edge::HalfOpened => {}
                    }
                }
            }
            // A tick is a little more than a millisecond: those within one are equal, and so is an end
            // that is not a tick away.
            let ticks = |ns: u64| (ns + (1 << 20) - 1) >> 20;
            let near_the_end = known.iter().any(|known| {
                matches!(known, Known::Open { until_ns, .. } if until_ns.abs_diff(now_ns) < 3 * MS)
            });
            if near_the_end {
                continue;
            }
            let since = |known: &Known| match *known {
                Known::In => None,
                Known::HalfOpen => Some(0),
                Known::Open { until_ns, .. } if until_ns <= now_ns => None,
                Known::Open { since_ns, .. } => Some(since_ns),
            };
            let mut ejected: Vec<(u64, usize)> = known
                .iter()
                .enumerate()
                .filter_map(|(index, known)| Some((since(known)?, index)))
                .collect();
            ejected.sort_unstable();
            let mut refusing = 0;
            for member in 0..count {
                let does = refuses(&members, member, at_most, now_ns);
                refusing += u32::from(does);
                let place = ejected.iter().position(|(_, index)| *index == member);
                let Some(place) = place else {
                    prop_assert!(!does);
                    continue;
                };
                // Of those that were ejected within two ticks of each other any may be the first.
                let own = ejected[place].0;
                let close = |other: u64| ticks(other).abs_diff(ticks(own)) <= 1;
                let sure = |places: &[(u64, usize)]| {
                    places.iter().filter(|(other, _)| !close(*other)).count() as u32
                };
                let surely_before = sure(&ejected[..place]);
                let surely_after = sure(&ejected[place + 1..]);
                if surely_before >= at_most {
                    prop_assert!(!does, "{member} of {ejected:?}");
                }
                if ejected.len() as u32 - 1 - surely_after < at_most {
                    prop_assert!(does, "{member} of {ejected:?}");
                }
            }
            prop_assert_eq!(refusing, at_most.min(ejected.len() as u32));
            // Who is not ejected would not refuse at all.
            for (index, state) in known.iter().enumerate() {
                if since(state).is_none() {
                    prop_assert_eq!(peek(&members[index], &PARAMS, now_ns), None);
                }
            }
        }
    }
}

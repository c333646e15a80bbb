//! Many CPUs, one tracked connection: FINs and RSTs that cross, and a place that gets another owner.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/schedule.rs"]
mod schedule;

use std::sync::Arc;

use schedule::{Shared, explore, together};
use weir_common::{
    layout::Slot,
    load::Change,
    track::{
        End::{self, Local, Remote},
        Phase, Segment, adopted, flag, next, phase, removed,
    },
    word::{TRIES, Word},
};

const NOW: u64 = 3_600_000_000_000_000;
const TAG: u64 = 77;
const HERS: u32 = 1000;
const OURS: u32 = 5000;

/// Both ends have sent all; what acknowledges it.
fn slot() -> Slot {
    Slot { acknowledged: [HERS, OURS], fins: [OURS + 1, HERS + 1], ..Slot::default() }
}

fn segment(from: End, flags: u8, is_last: bool) -> Segment {
    let (mine, other) = match from {
        Local => (OURS, HERS),
        Remote => (HERS, OURS),
    };
    let behind = u32::from(is_last);
    Segment { from, flags, sequence: mine, acknowledgment: other + behind, payload: 0 }
}

/// What became of a word, as the kernel changes it: only who wins counts.
fn apply(word: &Shared, slot: &Slot, segment: &Segment) -> i32 {
    for _ in 0..TRIES {
        let seen = word.load();
        let Some(step) = next(seen, slot, segment, NOW) else { return 0 };
        if word.compare_exchange(seen, step.word).is_ok() {
            return match step.event.change() {
                Some(Change::Closed) => -1,
                Some(Change::Reopened | Change::Established) => 1,
                Some(Change::Abandoned) | None => 0,
            };
        }
    }
    0
}

#[test]
fn fins_and_resets_of_both_ends_at_once_are_counted_once() {
    explore(|| {
        let word = Arc::new(Shared::new(adopted(0, TAG)));
        let changes = together(
            [
                segment(Local, flag::FIN | flag::ACK, false),
                segment(Remote, flag::FIN | flag::ACK, true),
                segment(Local, flag::ACK, true),
                segment(Remote, flag::RST, false),
                segment(Local, flag::RST, false),
            ],
            {
                let word = Arc::clone(&word);
                move |segment| apply(&word, &slot(), &segment)
            },
        );
        let open = 1 + changes.iter().sum::<i32>();
        assert_eq!(open, i32::from(phase(word.load()) == Phase::Established), "{changes:?}");
    });
}

#[test]
fn who_holds_the_word_of_one_that_is_gone_changes_nothing_of_the_next() {
    explore(|| {
        let first = adopted(0, TAG);
        let word = Arc::new(Shared::new(first));
        let changes = together([0, 1], {
            let word = Arc::clone(&word);
            move |who| {
                if who == 0 {
                    // It looked while the first connection lived, and a RST has come for it.
                    let late = segment(Remote, flag::RST, false);
                    let (seen, step) = (first, next(first, &slot(), &late, NOW));
                    return step.is_some_and(|step| word.compare_exchange(seen, step.word).is_ok());
                }
                // The first connection ends, and one with the same addresses and ports begins.
                loop {
                    let seen = word.load();
                    let gone = removed(seen, NOW).expect("it is somebody's");
                    if word.compare_exchange(seen, gone.word).is_ok() {
                        let next = adopted(gone.word, TAG);
                        assert!(word.compare_exchange(gone.word, next).is_ok());
                        return true;
                    }
                }
            }
        });
        assert!(changes[1]);
        assert_eq!(phase(word.load()), Phase::Established);
    });
}

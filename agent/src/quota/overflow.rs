//! Counts that everybody shares for whom there is no place in the table.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use super::{
    Now,
    engine::{Kind, Meter, Step, Taken},
    tariffs::{BUSY, Mark, Tariffs},
};

/// One word for each limit of a rule.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    words: Box<[(Kind, Shared)]>,
    /// For limits that are no rule's.
    other: Shared,
}

/// A word and its mark, 0 before the first hit.
#[derive(Debug, Default)]
struct Shared {
    word: AtomicU64,
    mark: AtomicU64,
}

impl Overflow {
    pub(super) fn new(meters: &[Meter]) -> Self {
        let words = meters.iter().map(|meter| (meter.kind(), Shared::default())).collect();
        Self { words, other: Shared::default() }
    }

    /// Whether it is for limits of these kinds.
    pub(super) fn fits(&self, meters: &[Meter]) -> bool {
        self.words.iter().map(|(kind, _)| *kind).eq(meters.iter().map(Meter::kind))
    }

    pub(super) fn update(
        &self,
        meter: &Meter,
        (tariffs, now): (&Tariffs, Now),
        step: impl Fn(u64) -> Step,
    ) -> Taken {
        let found = self.words.iter().find(|(kind, _)| *kind == meter.kind());
        found.map_or(&self.other, |(_, shared)| shared).update((meter.mark(), now), tariffs, step)
    }
}

impl Shared {
    fn update(
        &self,
        (mark, now): (Mark, Now),
        tariffs: &Tariffs,
        step: impl Fn(u64) -> Step,
    ) -> Taken {
        loop {
            let word = self.word.load(Ordering::Acquire);
            if word == BUSY {
                thread::yield_now();
                continue;
            }
            let stepped = tariffs.step((&self.word, word), &self.mark, (mark, now), &step);
            let Some(Step { store, taken }) = stepped else { continue };
            let Some(next) = store else { return taken };
            let swapped =
                self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed);
            if swapped.is_ok() {
                return taken;
            }
        }
    }
}

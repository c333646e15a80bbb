//! Counts that everybody shares for whom there is no place in the table.

use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::{Kind, Meter, Step, Taken};

/// One word for each limit of a rule.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    words: Box<[(u64, AtomicU64)]>,
    /// For limits that are no rule's.
    other: AtomicU64,
}

impl Overflow {
    pub(super) fn new(meters: &[Meter]) -> Self {
        let word = |meter: &Meter| (meter.kind().encode(), AtomicU64::new(0));
        Self { words: meters.iter().map(word).collect(), other: AtomicU64::new(0) }
    }

    /// Whether it is for limits of these kinds.
    pub(super) fn fits(&self, meters: &[Meter]) -> bool {
        let kinds = self.words.iter().map(|(kind, _)| *kind);
        kinds.eq(meters.iter().map(|meter| meter.kind().encode()))
    }

    pub(super) fn update(&self, kind: Kind, step: impl Fn(u64) -> Step) -> Taken {
        let found = self.words.iter().find(|(of, _)| *of == kind.encode());
        let word = found.map_or(&self.other, |(_, word)| word);
        let mut current = word.load(Ordering::Acquire);
        loop {
            let Step { store, taken } = step(current);
            let Some(next) = store else { return taken };
            match word.compare_exchange(current, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return taken,
                Err(seen) => current = seen,
            }
        }
    }
}

//! A node's first start: what judges is attached first, and what merely counts soon after.
//!
//! For each program the kernel waits until no CPU runs what was at the hook before (`tcx_entry_sync` in
//! `include/net/tcx.h`), one program after the other, because it holds the lock of all interfaces
//! meanwhile. With two programs for each of a hundred pods that takes seconds, and half of these programs
//! have nothing to refuse.

use std::collections::BTreeSet;

use crate::{compile::Identity, datapath::BOTH_WAYS};

/// So many workloads are completed at a time: others wait for the same lock.
const AT_ONCE: usize = 8;

/// How far it is.
#[derive(Debug)]
pub(super) enum Start {
    /// Nothing is attached yet.
    First,
    /// Of these only what judges is attached. Who came later has all of its programs.
    Late(BTreeSet<Identity>),
    /// All is attached as it is wanted, by an earlier agent or by this one.
    Over,
}

impl Start {
    /// These are to be attached. Few are attached at once.
    pub(super) fn know(&mut self, workloads: impl Iterator<Item = Identity>) {
        if matches!(self, Self::First) {
            let late: BTreeSet<Identity> = workloads.collect();
            *self = if late.len() > AT_ONCE { Self::Late(late) } else { Self::Over };
        }
    }

    /// Whether something is left for later.
    pub(super) const fn is_under_way(&self) -> bool {
        matches!(self, Self::Late(_))
    }

    /// In which directions a workload's programs run by now, if it judges in these. One that judges
    /// nothing is seen from one side at least.
    pub(super) fn ways(&self, workload: Identity, judges: [bool; 2]) -> [bool; 2] {
        match self {
            Self::Late(late) if late.contains(&workload) => match judges {
                [false, false] => [true, false],
                judges => judges,
            },
            _ => BOTH_WAYS,
        }
    }

    /// Completes some more of them; after the last the start is over.
    pub(super) fn go_on(&mut self) {
        let Self::Late(late) = self else { return };
        for _ in 0..AT_ONCE {
            late.pop_first();
        }
        if late.is_empty() {
            *self = Self::Over;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOWARDS: [bool; 2] = [true, false];

    fn workload(number: usize) -> Identity {
        Identity::workload(&number.to_string())
    }

    fn of(count: usize) -> Start {
        let mut start = Start::First;
        start.know((0..count).map(workload));
        start
    }

    #[test]
    fn what_judges_comes_first_and_all_in_the_end() {
        let all = 2 * AT_ONCE + 1;
        let mut start = of(all);
        assert_eq!(start.ways(workload(0), TOWARDS), TOWARDS);
        assert_eq!(start.ways(workload(0), [false, true]), [false, true]);
        assert_eq!(start.ways(workload(0), BOTH_WAYS), BOTH_WAYS);
        assert_eq!(start.ways(workload(0), [false; 2]), TOWARDS);
        let complete = |start: &Start| {
            (0..all).filter(|&number| start.ways(workload(number), TOWARDS) == BOTH_WAYS).count()
        };
        assert_eq!(complete(&start), 0);
        for (expected, under_way) in [(AT_ONCE, true), (2 * AT_ONCE, true), (all, false)] {
            start.go_on();
            assert_eq!((complete(&start), start.is_under_way()), (expected, under_way));
        }
    }

    #[test]
    fn who_comes_later_loses_nothing_that_was_attached() {
        let mut start = of(2 * AT_ONCE);
        start.know((0..100).map(workload));
        assert_eq!(start.ways(workload(50), TOWARDS), BOTH_WAYS);
    }

    #[test]
    fn few_are_attached_at_once_and_so_are_those_of_an_earlier_agent() {
        for start in [of(AT_ONCE), Start::Over] {
            assert!(!start.is_under_way());
            assert_eq!(start.ways(workload(0), TOWARDS), BOTH_WAYS);
        }
    }
}

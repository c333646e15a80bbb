//! Counters that hold another number than the connections that count there. Decides only.

use std::collections::BTreeMap;

use crate::datapath::{Counter, Recount};

/// So many recounts in a row must find the same difference. Between the two steps of an end (the
/// connection's word, then the counts) one recount may see it; three do not.
const TIMES: u32 = 3;

/// Differences that the last recounts found.
#[derive(Debug, Default)]
pub(super) struct Drifts(BTreeMap<Counter, (i64, u32)>);

impl Drifts {
    /// Takes in a recount; the counters that are wrong beyond doubt.
    pub(super) fn judge(&mut self, recounts: &[Recount]) -> Vec<Recount> {
        let before = std::mem::take(&mut self.0);
        let mut wrong = Vec::new();
        for recount in recounts.iter().filter(|recount| recount.drift() != 0) {
            let drift = recount.drift();
            let times = match before.get(&recount.counter) {
                Some((same, times)) if *same == drift => times + 1,
                _ => 1,
            };
            if times >= TIMES {
                wrong.push(*recount);
            } else {
                self.0.insert(recount.counter, (drift, times));
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recount(cell: u32, holds: u64, found: u64) -> Recount {
        Recount { counter: Counter::Load(cell), word: holds, holds, found }
    }

    #[test]
    fn a_counter_is_wrong_when_three_recounts_in_a_row_find_the_same_difference() {
        let mut drifts = Drifts::default();
        assert_eq!(drifts.judge(&[recount(1, 5, 3), recount(2, 4, 4)]), []);
        assert_eq!(drifts.judge(&[recount(1, 6, 4), recount(2, 4, 4)]), []);
        let third = [recount(1, 9, 7), recount(2, 5, 4)];
        assert_eq!(drifts.judge(&third), third[..1]);
        // From here on it is right, or counted anew.
        assert_eq!(drifts.judge(&third), []);
    }

    #[test]
    fn another_difference_or_a_counter_that_moved_begins_anew() {
        for between in [vec![recount(1, 5, 4)], vec![recount(1, 5, 5)], Vec::new()] {
            let mut drifts = Drifts::default();
            let wrong = recount(1, 5, 3);
            for _ in 1..TIMES {
                assert_eq!(drifts.judge(&[wrong]), []);
            }
            assert_eq!(drifts.judge(&between), []);
            assert_eq!(drifts.judge(&[wrong]), [], "{between:?}");
        }
    }

    #[test]
    fn too_low_is_wrong_as_well() {
        let mut drifts = Drifts::default();
        let low = recount(1, 2, 3);
        assert_eq!(low.drift(), -1);
        drifts.judge(&[low]);
        drifts.judge(&[low]);
        assert_eq!(drifts.judge(&[low]), [low]);
    }
}

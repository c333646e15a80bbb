//! What buckets' words were written under.
//!
//! A bucket's word is a time: how long the bucket takes until it is full. How many tokens that is depends
//! on what one costs, and a reload may change that. Whose counts a rule has made nobody knows: they are
//! hashes in a table. So beside each word stands the number of the parameters under which it was written,
//! and whoever finds it under older ones than his own rescales it first, as of the moment of each reload
//! since. It holds as many tokens as then, or as many as fit: a reload neither gives nor takes any.
//!
//! **A full bucket stays full**, also when it has become larger: it equals a count that is not there,
//! and nobody could tell the two apart.
//!
//! Numbers only grow, so words go from older parameters to newer ones and never back. Whoever still decides
//! by rules that were exchanged meanwhile reads and writes the word as the newer ones have it.

use std::{
    cmp::Ordering::{Equal, Greater, Less},
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use weir_common::gcra::{self, Params, Q8, q8};

use super::{
    Now,
    engine::{Engine, Kind, Step},
    rules::Rules,
};

/// Numbers that are given out. What was changed more often keeps, from then on, the time until it is
/// full in place of the tokens. At most 32 MiB, for limits that change a million times in one process.
const MOST: usize = 1 << 20;

/// A word that is being replaced together with what stands beside it. No engine writes it: it would be a
/// window number and a count that are both at their end, or a time of 2.3 years of uptime to the 256th of
/// a nanosecond.
pub(super) const BUSY: u64 = u64::MAX;

/// What stands beside a word: its kind and, for a bucket, the number of its parameters. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

/// Bits of a kind.
const KIND: u32 = 40;

impl Mark {
    /// A kind's number keeps below [`KIND`] bits, so both are one word.
    pub(super) const fn new(kind: Kind, tariff: u32) -> Self {
        Self(kind.encode() | (tariff as u64) << KIND)
    }

    /// As it stands beside the word.
    pub(super) const fn encode(self) -> u64 {
        self.0
    }

    /// From beside a word.
    pub(super) const fn decode(number: u64) -> Self {
        Self(number)
    }

    /// What kind of count it is; `None` beside what was never used.
    pub(super) const fn kind(number: u64) -> Option<Kind> {
        Kind::decode(number & ((1 << KIND) - 1))
    }

    const fn tariff(self) -> usize {
        (self.0 >> KIND) as usize
    }
}

/// One limit's parameters.
#[derive(Clone, Copy, Debug)]
struct Tariff {
    params: Params,
    /// When they began to hold.
    since: Q8,
    /// What the same limit had after them.
    next: Option<usize>,
}

/// All that held since this process began. Numbers begin with 1; 0 is none.
#[derive(Debug, Default)]
pub(super) struct Tariffs(RwLock<Vec<Tariff>>);

impl Tariffs {
    /// Numbers the buckets of rules that hold from now on, where `before` held.
    pub(super) fn number(&self, rules: &mut Rules, before: Option<&Rules>, now: Now) {
        let mut known: HashMap<(String, Kind), (usize, Params)> = HashMap::new();
        for rule in before.map(|rules| &*rules.rules).unwrap_or_default() {
            let numbered = rule.meters.iter().filter_map(|meter| match meter.engine {
                Engine::Bucket { params, tariff, .. } => {
                    Some(((rule.series.key(), meter.kind()), (tariff as usize, params)))
                }
                Engine::Fixed | Engine::Sliding => None,
            });
            known.extend(numbered);
        }
        let mut tariffs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for rule in &mut rules.rules {
            for meter in &mut rule.meters {
                let kind = meter.kind();
                let Engine::Bucket { params, tariff, .. } = &mut meter.engine else { continue };
                let before = known.get(&(rule.series.key(), kind)).copied();
                *tariff = match before {
                    Some((number, same)) if same == *params => number,
                    before => add(&mut tariffs, *params, before.map(|(number, _)| number), now),
                } as u32;
            }
        }
    }

    /// A word as it is under the parameters of `to`, if it was written under those of `from`, older ones.
    pub(super) fn renewed(&self, mut word: u64, from: Mark, to: Mark) -> u64 {
        let tariffs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (mut at, to) = (from.tariff(), to.tariff());
        while at < to {
            let Some(old) = get(&tariffs, at) else { return word };
            // Where another limit counts it now, its first word is as of that one's beginning.
            let next = old.next.filter(|next| *next <= to).unwrap_or(to);
            let Some(new) = get(&tariffs, next) else { return word };
            word = rescaled(word, new.since, old, new);
            at = next;
        }
        word
    }

    /// The step from `seen`, which `word` was; `None` if it has to be read again, because it was written
    /// under older parameters and is being brought to these.
    #[inline]
    pub(super) fn step(
        &self,
        (word, seen): (&AtomicU64, u64),
        beside: &AtomicU64,
        (mark, now): (Mark, Now),
        mut step: impl FnMut(u64) -> Step,
    ) -> Option<Step> {
        // Read after the word: if this is newer than the word, the word has changed, and no swap from it
        // succeeds.
        let before = Mark::decode(beside.load(Ordering::Acquire));
        match before.tariff().cmp(&mark.tariff()) {
            Equal => Some(step(seen)),
            Less => {
                let busy =
                    word.compare_exchange(seen, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok();
                if busy {
                    beside.store(mark.encode(), Ordering::Release);
                    word.store(self.renewed(seen, before, mark), Ordering::Release);
                }
                None
            }
            Greater => {
                let Step { store, taken } = step(self.converted(seen, before, mark, now));
                let store = store.map(|next| self.converted(next, mark, before, now));
                Some(Step { store, taken })
            }
        }
    }

    /// A word under other parameters, at a moment.
    fn converted(&self, word: u64, from: Mark, to: Mark, now: Now) -> u64 {
        let tariffs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match (get(&tariffs, from.tariff()), get(&tariffs, to.tariff())) {
            (Some(from), Some(to)) => rescaled(word, q8(now.monotonic_ns), from, to),
            _ => word,
        }
    }
}

fn get(tariffs: &[Tariff], number: usize) -> Option<&Tariff> {
    tariffs.get(number.checked_sub(1)?)
}

fn rescaled(word: u64, now: Q8, old: &Tariff, new: &Tariff) -> u64 {
    match gcra::spent(word, now, &old.params) {
        0 => word,
        _ => gcra::rescale(word, now, &old.params, &new.params),
    }
}

/// The number of new parameters; 0 if there are no more.
fn add(tariffs: &mut Vec<Tariff>, params: Params, before: Option<usize>, now: Now) -> usize {
    if tariffs.len() >= MOST {
        return 0;
    }
    tariffs.push(Tariff { params, since: q8(now.monotonic_ns), next: None });
    let number = tariffs.len();
    if let Some(before) = before.and_then(|before| tariffs.get_mut(before.checked_sub(1)?)) {
        before.next = Some(number);
    }
    number
}

const _: () = assert!(MOST < 1 << (u64::BITS - KIND));

#[cfg(test)]
#[path = "tariffs_tests.rs"]
mod tests;

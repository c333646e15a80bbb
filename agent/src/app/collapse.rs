//! Whether sources have collapsed into one: most of what a limit per source counts comes from one
//! address. Behind a gateway, a NAT, a proxy or another node there are many clients then, who share
//! one bucket, and the limit refuses them all for what each may do.
//!
//! The kernel keeps no address of those whom it admits, only keyed hashes. So this is said of sources
//! that the limit refuses, or would in shadow: the counts of the limit are exact, who is refused is
//! known from the kernel's sampled events, and whoever is refused has spent all that its own bucket
//! gave meanwhile. It has never heard of maps or pods: it is told counts, samples and the time.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use super::peaks::{Counter, Flow};
use crate::policy::{Cidr, Group};

/// So many looks, one a second, are kept.
const KEPT: usize = 60;
/// So many connections must have asked meanwhile.
const ASKED: u64 = 100;
/// So many sampled refusals must be known.
const SAMPLES: u64 = 20;
/// Sources that are remembered of one second. One of more than half is among the first few.
const SOURCES: usize = 16;
/// One source makes more than this part: the sources have collapsed.
const BEGINS: f64 = 0.5;
/// It makes less than this part: not any more. Below [`BEGINS`], so that it is not said again and again.
const ENDS: f64 = 0.4;

/// The source that makes most of what a limit counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Collapse {
    /// Its address, or the network that the limit counts as one source.
    pub(super) source: Cidr,
    /// Its part of the connections that asked, 0 to 1.
    pub(super) share: f64,
}

/// Since the look before.
#[derive(Debug, Default)]
struct Second {
    flow: Flow,
    samples: u64,
    sources: BTreeMap<Cidr, u64>,
}

/// The last minute of one limit, from the first refusal in it.
#[derive(Debug, Default)]
pub(super) struct Minute {
    counter: Counter,
    seconds: VecDeque<Second>,
    now: Second,
    collapse: Option<Collapse>,
}

impl Minute {
    /// A connection of this address was refused, or would have been.
    pub(super) fn sample(&mut self, source: IpAddr, group: Group) {
        let source = group.of(source);
        self.now.samples += 1;
        if let Some(count) = self.now.sources.get_mut(&source) {
            *count += 1;
        } else if self.now.sources.len() < SOURCES {
            self.now.sources.insert(source, 1);
        }
    }

    /// A second is over. `so_far` is what passed the limit and what it refused, or would have, since it
    /// is; `rate` is what one source may, per second, where that is known.
    pub(super) fn look(&mut self, so_far: Flow, rate: f64) {
        let mut second = std::mem::take(&mut self.now);
        second.flow = self.counter.look(so_far);
        if self.seconds.len() >= KEPT {
            self.seconds.pop_front();
        }
        self.seconds.push_back(second);
        // Most limits refuse nobody: of them nothing is kept.
        while self.seconds.front().is_some_and(|second| second.samples == 0) {
            self.seconds.pop_front();
        }
        let bound = if self.collapse.is_some() { ENDS } else { BEGINS };
        self.collapse = self.judge(rate).filter(|collapse| collapse.share > bound);
    }

    /// What the last look found.
    pub(super) const fn collapse(&self) -> Option<Collapse> {
        self.collapse
    }

    /// The source that is refused most, if enough is known.
    fn judge(&self, rate: f64) -> Option<Collapse> {
        let (mut passed, mut refused, mut samples) = (0, 0, 0);
        let mut sources: BTreeMap<Cidr, Seen> = BTreeMap::new();
        for (index, second) in self.seconds.iter().enumerate() {
            passed += second.flow.passed;
            refused += second.flow.refused;
            samples += second.samples;
            for (&source, &count) in &second.sources {
                let seen =
                    sources.entry(source).or_insert(Seen { first: index, last: index, count: 0 });
                (seen.last, seen.count) = (index, seen.count + count);
            }
        }
        let asked = passed + refused;
        let (source, seen) = sources.into_iter().max_by_key(|(_, seen)| seen.count)?;
        if asked < ASKED || samples < SAMPLES {
            return None;
        }
        let refused = refused as f64 * seen.count as f64 / samples as f64;
        // Its bucket was empty in the first of these seconds and in the last.
        let between = seen.last.saturating_sub(seen.first + 1) as f64;
        let passed = (rate * between).min(passed as f64);
        Some(Collapse { source, share: (refused + passed) / asked as f64 })
    }
}

/// When a source was refused, as places in the minute, and how often that was told.
struct Seen {
    first: usize,
    last: usize,
    count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: [u8; 4] = [10, 0, 0, 1];

    fn address(last: u8) -> IpAddr {
        [10, 0, 1, last].into()
    }

    /// Seconds in each of which so many pass and so many are refused, so many of the sampled ones from
    /// the gateway and so many from as many others.
    struct Told {
        minute: Minute,
        so_far: Flow,
    }

    impl Told {
        fn new() -> Self {
            let mut minute = Minute::default();
            minute.look(Flow::default(), 10.0);
            Self { minute, so_far: Flow::default() }
        }

        fn seconds(
            &mut self,
            number: usize,
            flow: Flow,
            gateway: u8,
            others: u8,
        ) -> Option<Collapse> {
            for _ in 0..number {
                (0..gateway).for_each(|_| self.minute.sample(GATEWAY.into(), Group::default()));
                (0..others).for_each(|it| self.minute.sample(address(it), Group::default()));
                self.so_far.passed += flow.passed;
                self.so_far.refused += flow.refused;
                self.minute.look(self.so_far, 10.0);
            }
            self.minute.collapse()
        }
    }

    const fn flow(passed: u64, refused: u64) -> Flow {
        Flow { passed, refused }
    }

    #[test]
    fn one_that_asks_for_most_is_found() {
        let collapse = Told::new().seconds(5, flow(10, 90), 10, 0).unwrap();
        assert_eq!(collapse.source.to_string(), "10.0.0.1");
        assert!((0.9..=1.0).contains(&collapse.share), "{collapse:?}");
    }

    #[test]
    fn what_it_was_admitted_counts_as_well() {
        // It asks for 18/s of 20/s and is refused 8 of them: less than half, alone.
        let collapse = Told::new().seconds(30, flow(12, 8), 5, 0).unwrap();
        assert!((0.8..=0.95).contains(&collapse.share), "{collapse:?}");
    }

    #[test]
    fn one_of_many_is_none() {
        assert_eq!(Told::new().seconds(10, flow(10, 90), 4, 6), None);
        // It is refused most of all, and asks for little of what is asked.
        assert_eq!(Told::new().seconds(10, flow(500, 5), 5, 0), None);
    }

    #[test]
    fn little_says_nothing() {
        assert_eq!(Told::new().seconds(5, flow(1, 9), 10, 0), None, "50 asked");
        assert_eq!(Told::new().seconds(3, flow(10, 90), 5, 0), None, "15 samples");
    }

    #[test]
    fn it_ends_with_the_minute_and_not_at_once() {
        let mut told = Told::new();
        assert!(told.seconds(30, flow(10, 90), 10, 0).is_some());
        assert!(told.seconds(29, flow(10, 90), 2, 8).is_some());
        assert_eq!(told.seconds(60, flow(10, 90), 2, 8), None);
        assert!(told.seconds(60, flow(10, 90), 10, 0).is_some());
        assert_eq!(told.seconds(60, flow(0, 0), 0, 0), None, "it is quiet");
    }

    #[test]
    fn sources_are_what_the_limit_counts_as_one() {
        let mut told = Told::new();
        let group = Group::new(24, 56).unwrap();
        for _ in 0..5 {
            (0..20).for_each(|it| told.minute.sample(address(it), group));
            told.so_far.refused += 90;
            told.minute.look(told.so_far, 10.0);
        }
        assert_eq!(told.minute.collapse().unwrap().source.to_string(), "10.0.1.0/24");
    }

    #[test]
    fn a_crowd_does_not_grow_what_is_kept() {
        let mut minute = Minute::default();
        for round in 0..200 {
            for number in 0..=255 {
                minute.sample(address(number), Group::default());
            }
            minute.look(flow(0, round * 1000), 1.0);
        }
        assert_eq!(minute.seconds.len(), KEPT);
        assert!(minute.seconds.iter().all(|second| second.sources.len() == SOURCES));
        assert_eq!(minute.collapse(), None);
    }
}

//! What breakers tell each other: those with `scope=node`.
//!
//! Each learns for itself, in the kernel. When breakers of two workloads have tripped over one
//! destination and refuse, those of the other workloads are opened, too. One workload alone opens no
//! other's: it may be what is broken. Without an agent each learns by itself as any breaker.

use std::collections::{BTreeMap, BTreeSet};

use tracing::info;
use weir_common::{
    breaker::{Params, Phase},
    layout::Event,
    verdict::Reason,
};

use super::Engine;
use crate::{
    compile::{Identity, LineRef},
    policy::{Cidr, Port, Scope, Terms, To},
};

/// So many workloads are believed.
const WITNESSES: usize = 2;

/// What a breaker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Destination {
    to: Cidr,
    /// As dialled; `None` for all ports together.
    port: Option<Port>,
}

/// A breaker at a time.
#[derive(Clone, Copy, Debug)]
struct Seen {
    workload: Identity,
    cell: Identity,
    params: Params,
    phase: Phase,
    /// It tripped by itself, and its time is not over.
    is_witness: bool,
}

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Who knows of a destination that fails: each is told once, and when its own probes closed it
    /// they know better. Over when fewer than two workloads' breakers are not closed.
    knowing: BTreeMap<Destination, BTreeSet<Identity>>,
    /// How often each breaker was opened.
    told: BTreeMap<Identity, u64>,
}

impl Evidence {
    /// The breakers that are to be opened.
    fn weigh(&mut self, destinations: &BTreeMap<Destination, Vec<Seen>>) -> Vec<Seen> {
        self.knowing.retain(|destination, _| destinations.contains_key(destination));
        // Pods come and go.
        let there: BTreeSet<Identity> = destinations.values().flatten().map(|it| it.cell).collect();
        self.told.retain(|cell, _| there.contains(cell));
        let mut tell = Vec::new();
        for (destination, seen) in destinations {
            let workloads = |which: fn(&Seen) -> bool| {
                let found = seen.iter().filter(|it| which(it)).map(|it| it.workload);
                found.collect::<BTreeSet<_>>().len()
            };
            if workloads(|it| it.phase != Phase::Closed) < WITNESSES {
                self.knowing.remove(destination);
            } else if workloads(|it| it.is_witness) >= WITNESSES {
                let knowing = self.knowing.entry(*destination).or_default();
                let news = seen.iter().filter(|it| knowing.insert(it.cell));
                tell.extend(news.filter(|it| it.phase == Phase::Closed));
            }
        }
        tell
    }

    /// How often a breaker was opened since the agent began.
    pub(super) fn told(&self, cell: Identity) -> u64 {
        self.told.get(&cell).copied().unwrap_or_default()
    }
}

impl Engine {
    /// Some breaker opened: it may be the second of its destination.
    pub(super) fn weigh_event(&mut self, event: &Event) {
        let reason = Reason::from_code(event.reason);
        if matches!(reason, Some(Reason::BreakerTripped | Reason::BreakerReopened)) {
            self.share_evidence();
        }
    }

    /// Opens the breakers of what two workloads of the node have found broken.
    pub(super) fn share_evidence(&mut self) {
        let destinations = self.shared_breakers();
        for Seen { cell, params, .. } in self.evidence.weigh(&destinations) {
            if !self.datapath.open_breaker(cell, &params) {
                continue;
            }
            *self.evidence.told.entry(cell).or_default() += 1;
            let told = self.workloads.iter().find_map(|known| {
                let line = self.line(&known.key, cell)?;
                Some((&known.name, line))
            });
            if let Some((workload, line)) = told {
                info!(workload, limit = %line, "opened: two workloads' breakers of this destination have tripped");
            }
        }
    }

    fn shared_breakers(&self) -> BTreeMap<Destination, Vec<Seen>> {
        let mut destinations: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for known in &self.workloads {
            for line in &known.effective.lines {
                let (Terms::Breaker(breaker), Some(To::Cidr(to))) =
                    (&line.limit.terms, line.slot.to)
                else {
                    continue;
                };
                if breaker.scope != Scope::Node {
                    continue;
                }
                let cell = Identity::cell(&known.key, &LineRef::Limit(line.slot));
                let Some(view) = self.datapath.cell(cell).and_then(|cell| cell.breaker) else {
                    continue;
                };
                let is_witness = view.phase == Phase::Open && view.remaining_ns > 0 && !view.told;
                let (workload, params) = (known.identity, breaker.params());
                let seen = Seen { workload, cell, params, phase: view.phase, is_witness };
                let destination = Destination { to, port: line.slot.port };
                destinations.entry(destination).or_default().push(seen);
            }
        }
        destinations
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_cidr;

    fn destination(to: &str) -> Destination {
        Destination { to: parse_cidr(to).unwrap(), port: Port::new(80) }
    }

    fn seen(workload: &str, phase: Phase, is_witness: bool) -> Seen {
        let identity = Identity::workload(workload);
        let params = Params::unpack([0; 3]);
        Seen { workload: identity, cell: identity, params, phase, is_witness }
    }

    fn tripped(workload: &str) -> Seen {
        seen(workload, Phase::Open, true)
    }

    fn closed(workload: &str) -> Seen {
        seen(workload, Phase::Closed, false)
    }

    /// Who is to be opened.
    fn told(evidence: &mut Evidence, breakers: &[Seen]) -> Vec<Identity> {
        let seen = BTreeMap::from([(destination("10.0.0.1"), breakers.to_vec())]);
        evidence.weigh(&seen).iter().map(|it| it.cell).collect()
    }

    fn cells(workloads: &[&str]) -> Vec<Identity> {
        workloads.iter().map(|name| Identity::workload(name)).collect()
    }

    #[test]
    fn two_workloads_are_believed_and_one_is_not() {
        let mut evidence = Evidence::default();
        assert_eq!(told(&mut evidence, &[tripped("a"), closed("b"), closed("c")]), []);
        // Two breakers of one workload are one witness.
        let same = Seen { cell: Identity::workload("other"), ..tripped("a") };
        assert_eq!(told(&mut evidence, &[tripped("a"), same, closed("c")]), []);
        let two = [tripped("a"), tripped("b"), closed("c"), closed("d")];
        assert_eq!(told(&mut evidence, &two), cells(&["c", "d"]));
    }

    #[test]
    fn who_was_told_is_no_witness() {
        let mut evidence = Evidence::default();
        let breakers = [tripped("a"), seen("b", Phase::Open, false), closed("c")];
        assert_eq!(told(&mut evidence, &breakers), []);
    }

    #[test]
    fn who_was_told_and_closed_knows_better_until_all_have_closed() {
        let mut evidence = Evidence::default();
        let two = [tripped("a"), tripped("b"), closed("c")];
        assert_eq!(told(&mut evidence, &two), cells(&["c"]));
        assert_eq!(told(&mut evidence, &two), []);
        // One that comes later is told, too.
        let more = [tripped("a"), tripped("b"), closed("c"), closed("d")];
        assert_eq!(told(&mut evidence, &more), cells(&["d"]));
        // Their probes fail: the same row of ejections.
        let trying = [seen("a", Phase::HalfOpen, false), tripped("b"), closed("c")];
        assert_eq!(told(&mut evidence, &trying), []);
        assert_eq!(told(&mut evidence, &two), []);
        // It begins again.
        assert_eq!(told(&mut evidence, &[closed("a"), tripped("b"), closed("c")]), []);
        assert_eq!(told(&mut evidence, &two), cells(&["c"]));
    }

    #[test]
    fn what_was_told_to_who_is_gone_is_forgotten() {
        let mut evidence = Evidence::default();
        let cell = Identity::workload("c");
        evidence.told.insert(cell, 1);
        told(&mut evidence, &[closed("c")]);
        assert_eq!(evidence.told(cell), 1);
        told(&mut evidence, &[closed("a")]);
        assert_eq!(evidence.told.len(), 0);
    }

    #[test]
    fn destinations_are_apart() {
        let mut evidence = Evidence::default();
        let apart = BTreeMap::from([
            (destination("10.0.0.1"), vec![tripped("a"), closed("c")]),
            (destination("10.0.0.2"), vec![tripped("b"), closed("c")]),
        ]);
        assert!(evidence.weigh(&apart).is_empty());
    }
}

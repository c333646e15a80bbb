//! Looks at the kernel's counters once a second: how fast limits are asked, and what workloads and
//! ports saw lately.
//!
//! It reads what `weir status` reads and keeps a [`Series`] for each [`Scope`]: three for each
//! workload and one for each port that a limit speaks of. What went has gone with the next look.

use std::collections::{BTreeMap, BTreeSet};

use weir_common::{
    layout::{Direction, Hook},
    verdict::{Reason, Verdict},
};

use super::peaks::{Counter, Flow, Series};
use crate::{
    compile::{Identity, LineRef, Tables},
    datapath::{Datapath, TallyView},
    policy::{LimitKind, Port},
};

/// Which connections of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// All, in both directions.
    All,
    /// All that a `connections` line would speak of: inbound, exempt peers and probes aside.
    Inbound,
    /// Inbound to ports that no limit speaks of.
    Unlimited,
    /// Inbound to a port that a limit speaks of.
    Port(Port),
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Observer {
    scopes: BTreeMap<(Identity, Scope), (Counter, Series)>,
    limits: BTreeMap<Identity, (Counter, f64)>,
    syns: BTreeMap<Identity, SynCounters>,
    last_ns: Option<u64>,
}

/// SYNs of one workload, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Syns {
    /// It sent, as far as TC saw.
    pub(super) sent: f64,
    /// It sent, and its shield refused.
    pub(super) shielded: f64,
    /// Were sent to it, and TC refused.
    pub(super) refused: f64,
}

#[derive(Debug, Default)]
struct SynCounters {
    at_tc: Counter,
    at_shield: Counter,
    now: Syns,
}

impl Observer {
    /// Looks at everything that the tables name.
    pub(super) fn look(&mut self, datapath: &Datapath, tables: &Tables, now_ns: u64) {
        let elapsed_ns = self.last_ns.map_or(0, |last_ns| now_ns.saturating_sub(last_ns));
        self.last_ns = Some(now_ns);
        let mut limits = BTreeSet::new();
        let mut scopes = BTreeSet::new();
        for table in tables.workloads.values() {
            let workload = table.identity;
            let mut ports: BTreeMap<Port, Flow> = BTreeMap::new();
            for (&limit, cell) in &table.cells {
                let Some(state) = datapath.cell(limit) else { continue };
                limits.insert(limit);
                let (counter, per_second) = self.limits.entry(limit).or_default();
                let counts = state.counts;
                let flow = counter.look(Flow {
                    passed: counts.admitted.wrapping_add(counts.shadowed),
                    refused: counts.refused,
                });
                *per_second = if elapsed_ns == 0 {
                    0.0
                } else {
                    flow.asked() as f64 * 1e9 / elapsed_ns as f64
                };
                if let Some(port) = inbound_port(cell.line) {
                    at_port(ports.entry(port).or_default(), flow);
                }
            }
            for (port, flow) in ports {
                let key = (workload, Scope::Port(port));
                self.scopes.entry(key).or_default().1.add(flow, now_ns);
                scopes.insert(key);
            }
            let tallies = tallies(datapath, workload);
            self.syns.entry(workload).or_default().look(&tallies, elapsed_ns);
            for scope in [Scope::All, Scope::Inbound, Scope::Unlimited] {
                let (counter, series) = self.scopes.entry((workload, scope)).or_default();
                series.add(counter.look(sum(&tallies, scope)), now_ns);
                scopes.insert((workload, scope));
            }
        }
        self.limits.retain(|limit, _| limits.contains(limit));
        self.syns.retain(|workload, _| scopes.contains(&(*workload, Scope::All)));
        self.scopes.retain(|key, _| scopes.contains(key));
    }

    /// How fast a limit was asked over the last second.
    pub(super) fn per_second(&self, limit: Identity) -> f64 {
        self.limits.get(&limit).map_or(0.0, |(_, per_second)| *per_second)
    }

    /// How many SYNs each workload sent and was spared over the last second.
    pub(super) fn syns(&self) -> impl Iterator<Item = (Identity, Syns)> {
        self.syns.iter().map(|(workload, counters)| (*workload, counters.now))
    }

    /// What was seen of a workload lately.
    pub(super) fn series(&self, workload: Identity, scope: Scope) -> Option<&Series> {
        self.scopes.get(&(workload, scope)).map(|(_, series)| series)
    }

    /// All connections of a workload so far, as the kernel has counted them now.
    pub(super) fn total(&self, datapath: &Datapath, workload: Identity) -> Flow {
        sum(&tallies(datapath, workload), Scope::All)
    }
}

impl SynCounters {
    fn look(&mut self, tallies: &[(Hook, TallyView)], elapsed_ns: u64) {
        let [at_tc, at_shield] = syns(tallies);
        let (at_tc, at_shield) = (self.at_tc.look(at_tc), self.at_shield.look(at_shield));
        let rate = |count: u64| match elapsed_ns {
            0 => 0.0,
            elapsed_ns => count as f64 * 1e9 / elapsed_ns as f64,
        };
        self.now = Syns {
            sent: rate(at_tc.passed),
            shielded: rate(at_shield.refused),
            refused: rate(at_tc.refused),
        };
    }
}

fn inbound_port(line: LineRef) -> Option<Port> {
    match line {
        LineRef::Limit(slot) if is_inbound_rate(slot.kind) => slot.port,
        _ => None,
    }
}

/// Whether limits of a kind count new connections towards the workload.
pub(super) const fn is_inbound_rate(kind: LimitKind) -> bool {
    matches!(kind, LimitKind::Connections | LimitKind::ConnectionsPerSource)
}

/// Adds what one limit saw to what its port saw.
///
/// A connection that goes on has passed every limit of its port; one that is refused was refused
/// by one of them, and the others had their tokens back.
fn at_port(port: &mut Flow, limit: Flow) {
    port.passed = port.passed.max(limit.passed);
    port.refused = port.refused.saturating_add(limit.refused);
}

fn tallies(datapath: &Datapath, workload: Identity) -> Vec<(Hook, TallyView)> {
    let Some(slot) = datapath.slot(workload) else { return Vec::new() };
    let tally = |hook| (hook, datapath.maps().tally(slot, hook).unwrap_or_default());
    Hook::ALL.map(tally).into()
}

/// SYNs so far. At TC, as passed those that the workload sent, whatever became of them, and as refused
/// those on their way to it that were. At its shield, as refused those that it sent.
fn syns(tallies: &[(Hook, TallyView)]) -> [Flow; 2] {
    use Reason::{Fragment, HeaderChain, Malformed, TinyFragment};
    let mut flows = [Flow::default(); 2];
    let [at_tc, at_shield] = &mut flows;
    for (hook, tally) in tallies {
        for &(verdict, reason, count) in tally {
            if reason == Reason::Shielded {
                at_shield.refused = at_shield.refused.saturating_add(count);
            }
            let is_syn = !matches!(reason, Fragment | HeaderChain | Malformed | TinyFragment);
            if !is_syn || reason.is_of_volume() || verdict == Verdict::Note {
                continue;
            }
            let is_refused = matches!(verdict, Verdict::Drop | Verdict::Reset);
            match hook {
                Hook::TcEgress => at_tc.passed = at_tc.passed.saturating_add(count),
                Hook::TcIngress if is_refused => {
                    at_tc.refused = at_tc.refused.saturating_add(count);
                }
                _ => {}
            }
        }
    }
    flows
}

/// The new connections of a scope. What was not a SYN, and what is no packet's fate, is none.
fn sum(tallies: &[(Hook, TallyView)], scope: Scope) -> Flow {
    let mut flow = Flow::default();
    for (hook, tally) in tallies {
        if scope != Scope::All && hook.direction() != Direction::Ingress {
            continue;
        }
        for &(verdict, reason, count) in tally {
            let is_unlimited = reason == Reason::NoRule;
            match verdict {
                _ if scope == Scope::Unlimited && !is_unlimited => {}
                _ if reason.is_of_volume() => {}
                _ if matches!(reason, Reason::TinyFragment | Reason::HeaderChain) => {}
                Verdict::Pass if is_unlimited || reason == Reason::Admitted => {
                    flow.passed = flow.passed.saturating_add(count);
                }
                Verdict::Pass if matches!(reason, Reason::Exempt | Reason::Probe) => {
                    if scope == Scope::All {
                        flow.passed = flow.passed.saturating_add(count);
                    }
                }
                Verdict::Shadow => flow.passed = flow.passed.saturating_add(count),
                Verdict::Drop | Verdict::Reset => {
                    flow.refused = flow.refused.saturating_add(count);
                }
                Verdict::Pass | Verdict::Note => {}
            }
        }
    }
    flow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_counts_its_own_connections() {
        use Reason::{
            Admitted, ConnectionRate, Exempt, HeaderChain, NoRule, OutboundRate, Probe,
            ResetLimited, Retransmission,
        };
        let tallies = [
            (
                Hook::TcIngress,
                vec![
                    (Verdict::Pass, Admitted, 1),
                    (Verdict::Pass, NoRule, 2),
                    (Verdict::Pass, Exempt, 4),
                    (Verdict::Pass, Probe, 8),
                    (Verdict::Pass, Retransmission, 1000),
                    (Verdict::Shadow, ConnectionRate, 16),
                    (Verdict::Reset, ConnectionRate, 32),
                    (Verdict::Drop, ConnectionRate, 64),
                    (Verdict::Drop, HeaderChain, 1000),
                    (Verdict::Drop, Reason::IngressBandwidth, 1000),
                    (Verdict::Note, ResetLimited, 1000),
                ],
            ),
            (
                Hook::TcEgress,
                vec![(Verdict::Pass, Admitted, 128), (Verdict::Reset, OutboundRate, 256)],
            ),
            (
                Hook::Xdp,
                vec![(Verdict::Drop, ConnectionRate, 512), (Verdict::Note, Reason::Shielded, 1024)],
            ),
        ];
        let flow = |passed, refused| Flow { passed, refused };
        assert_eq!(syns(&tallies), [flow(128 + 256, 32 + 64), flow(0, 1024)]);
        assert_eq!(sum(&tallies, Scope::All), flow(1 + 2 + 4 + 8 + 16 + 128, 32 + 64 + 256 + 512));
        assert_eq!(sum(&tallies, Scope::Inbound), flow(1 + 2 + 16, 32 + 64 + 512));
        assert_eq!(sum(&tallies, Scope::Unlimited), flow(2, 0));
    }

    #[test]
    fn a_connection_is_counted_once_at_its_port() {
        let mut port = Flow::default();
        // Ten asked: six passed both limits, three were refused by one and one by the other.
        for refused in [3, 1] {
            at_port(&mut port, Flow { passed: 6, refused });
        }
        assert_eq!(port, Flow { passed: 6, refused: 4 });
        assert_eq!(port.asked(), 10);
    }
}

//! From what holds to rules in blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::Serialize;
use weir_common::layout::Direction;

use super::{
    cells::{Cell, CellKind, Identity},
    tables::{Block, Blocks, LineRef, Rule, RuleKind, Tables, WorkloadTable},
};
use crate::policy::{Bucket, Cidr, Effective, LimitKind, Line, OnLimit, Port, Probes, Slot};

/// A workload to be compiled.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What tells it from all others, for as long as it lives: its name on a VM, a pod's UID.
    pub identity: &'a str,
    /// The name for people.
    pub name: &'a str,
    /// What holds for it.
    pub effective: &'a Effective,
    /// Its health probes.
    pub probes: Option<&'a Probes>,
    /// Its budget for resets.
    pub resets: Bucket,
}

/// What must be known of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's own addresses. Loopback and link-local ones never probe and are passed over.
    pub addresses: Vec<IpAddr>,
}

/// The tables, and what did not fit in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The tables.
    pub tables: Tables,
    /// Workloads whose policy could not be compiled as it is.
    pub overflows: Vec<Overflow>,
}

/// More rules for one port than a block holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Overflow {
    /// The workload's identity.
    pub workload: String,
    /// The direction.
    pub direction: Direction,
    /// The port; `None` for all that have no lines of their own.
    pub port: Option<Port>,
    /// All the rules, in order.
    pub lines: Vec<LineRef>,
    /// What was done about it.
    pub effect: OverflowEffect,
}

/// What was done about too many rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowEffect {
    /// The workload's tables stay as they were.
    KeptLast,
    /// There were none: the first rules hold, the others do not.
    Cut,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.lines.iter().map(ToString::to_string).collect();
        let (count, max) = (lines.len(), Block::MAX);
        let direction = match self.direction {
            Direction::Ingress => "inbound",
            Direction::Egress => "outbound",
        };
        write!(f, "workload {}: {count} {direction} rules for ", self.workload)?;
        match self.port {
            Some(port) => write!(f, "port {port}")?,
            None => f.write_str("any port")?,
        }
        write!(f, ", at most {max} fit: {}", lines.join(", "))?;
        match self.effect {
            OverflowEffect::KeptLast => f.write_str("; the last policy that fitted stays"),
            OverflowEffect::Cut => {
                write!(f, "; not enforced: {}", lines.get(max..).unwrap_or_default().join(", "))
            }
        }
    }
}

/// Compiles all workloads. One whose rules do not fit keeps its table from `previous`.
pub fn compile<'a>(
    subjects: impl IntoIterator<Item = Subject<'a>>,
    facts: &NodeFacts,
    previous: Option<&Tables>,
) -> Compiled {
    let mut compiled = Compiled::default();
    for subject in subjects {
        let mut workload = Workload::new(subject, facts);
        let mut table = workload.table();
        let before = previous.and_then(|tables| tables.workloads.get(subject.identity));
        if let (false, Some(before)) = (workload.overflows.is_empty(), before) {
            table = before.clone();
            for overflow in &mut workload.overflows {
                overflow.effect = OverflowEffect::KeptLast;
            }
        }
        compiled.overflows.append(&mut workload.overflows);
        compiled.tables.workloads.insert(subject.identity.to_owned(), table);
    }
    compiled
}

struct Workload<'a> {
    subject: Subject<'a>,
    probers: Vec<Cidr>,
    cells: BTreeMap<Identity, Cell>,
    overflows: Vec<Overflow>,
}

impl<'a> Workload<'a> {
    fn new(subject: Subject<'a>, facts: &NodeFacts) -> Self {
        let own = || facts.addresses.iter().copied().filter(probes).map(Cidr::host);
        let mut probers: Vec<_> = match subject.probes.map(|probes| &probes.from) {
            None => Vec::new(),
            Some(Some(from)) => from.clone(),
            Some(None) => own().collect(),
        };
        probers.sort();
        probers.dedup();
        Self { subject, probers, cells: BTreeMap::new(), overflows: Vec::new() }
    }

    fn table(&mut self) -> WorkloadTable {
        let ingress = self.blocks(Direction::Ingress);
        let egress = self.blocks(Direction::Egress);
        let identity = self.subject.identity;
        let resets = self.cell(CellKind::Bucket, self.subject.resets, LineRef::Resets);
        WorkloadTable {
            name: self.subject.name.to_owned(),
            identity: Identity::workload(identity),
            resets,
            cells: std::mem::take(&mut self.cells),
            ingress,
            egress,
        }
    }

    fn blocks(&mut self, direction: Direction) -> Blocks {
        let effective = self.subject.effective;
        let lines: Vec<&Line> = effective
            .lines
            .iter()
            .filter(|line| line.slot.kind.is_inbound() == (direction == Direction::Ingress))
            .collect();
        let any = self.block(direction, None, &lines);
        let mut ports: BTreeSet<Port> = lines.iter().filter_map(|line| line.slot.port).collect();
        ports.extend(effective.on_limit_ports.keys());
        if direction == Direction::Ingress {
            ports.extend(self.subject.probes.into_iter().flat_map(|probes| &probes.ports));
        }
        let ports = ports
            .into_iter()
            .map(|port| (port, self.block(direction, Some(port), &lines)))
            .filter(|(_, block)| *block != any)
            .collect();
        Blocks { any, ports }
    }

    /// The rules for one port: what is written for it and what is written for all.
    fn block(&mut self, direction: Direction, port: Option<Port>, lines: &[&Line]) -> Block {
        let mut lines: Vec<&Line> = lines
            .iter()
            .copied()
            .filter(|line| line.slot.port.is_none() || line.slot.port == port)
            .collect();
        // Nothing is limited here, so there is nothing to be exempt from either.
        if lines.is_empty() {
            return Block::default();
        }
        lines.sort_by_key(|line| order(&line.slot));

        let mut rules: Vec<Rule> = Vec::new();
        let exempt = self.subject.effective.exempt.iter().map(|peer| peer.value);
        rules.extend(exempt.map(|peer| Rule {
            peer: Some(peer),
            kind: RuleKind::Exempt,
            shadow: false,
            drop: false,
            line: LineRef::Exempt(peer),
        }));
        let drop = self.subject.effective.on_limit(port) == OnLimit::Drop;
        rules.extend(self.probe_rules(direction, port, drop));
        for line in lines {
            rules.push(self.limit_rule(line, drop));
        }
        if rules.len() > Block::MAX {
            let lines = rules.iter().map(|rule| rule.line).collect();
            let workload = self.subject.identity.to_owned();
            let effect = OverflowEffect::Cut;
            self.overflows.push(Overflow { workload, direction, port, lines, effect });
            rules.truncate(Block::MAX);
        }
        Block { rules }
    }

    fn probe_rules(&mut self, direction: Direction, port: Option<Port>, drop: bool) -> Vec<Rule> {
        let Some(probes) = self.subject.probes else {
            return Vec::new();
        };
        let is_probed = port.is_some_and(|port| probes.ports.contains(&port));
        if direction == Direction::Egress || !is_probed || self.probers.is_empty() {
            return Vec::new();
        }
        let cell = self.cell(CellKind::Bucket, probes.bucket, LineRef::Probe);
        let rule = |peer: &Cidr| Rule {
            peer: Some(*peer),
            kind: RuleKind::Probe(cell),
            shadow: false,
            drop,
            line: LineRef::Probe,
        };
        self.probers.iter().map(rule).collect()
    }

    fn limit_rule(&mut self, line: &Line, drop: bool) -> Rule {
        let reference = LineRef::Limit(line.slot);
        let bucket = line.limit.bucket;
        let kind = match line.slot.kind {
            LimitKind::ConnectionsPerSource => RuleKind::Source {
                cell: self.cell(CellKind::Source, bucket, reference),
                group: line.limit.group.unwrap_or_default(),
            },
            LimitKind::Connections | LimitKind::OutboundConnections => {
                RuleKind::Limit(self.cell(CellKind::Bucket, bucket, reference))
            }
        };
        Rule { peer: line.slot.to, kind, shadow: line.shadow.is_some(), drop, line: reference }
    }

    fn cell(&mut self, kind: CellKind, bucket: Bucket, line: LineRef) -> Identity {
        let identity = Identity::cell(self.subject.identity, &line);
        self.cells.insert(identity, Cell::new(kind, bucket, line));
        identity
    }
}

/// Inner limits first, so that an outer refusal gives back as little as possible: sources before
/// all, a port before all ports, narrow destinations before wide ones; shadow after what is
/// enforced.
fn order(slot: &Slot) -> impl Ord + use<> {
    let width = slot.to.map_or(u8::MAX, |to| u8::MAX - 1 - to.prefix());
    (slot.kind != LimitKind::ConnectionsPerSource, slot.port.is_none(), slot.beside, width, slot.to)
}

/// Whether a node probes its workloads from this address.
fn probes(address: &IpAddr) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !link_local
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

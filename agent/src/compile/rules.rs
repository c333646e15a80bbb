//! From what holds to rules in blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use serde::Serialize;
use weir_common::{
    layout::{Direction, MAX_BREAKERS, MAX_LOADS, MAX_SOURCE_LOADS},
    load::{Bounds, MAX_CONNECTIONS, MAX_HANDSHAKES},
};

use super::{
    cells::{Cell, CellKind, Identity},
    tables::{
        Among, Block, Blocks, LineRef, LoadRef, Rule, RuleKind, Stage, Tables, WorkloadTable,
    },
};
use crate::{
    policy::{
        Bucket, Cidr, Effective, LimitKind, Line, OnLimit, Port, Probes, Quota, ServiceName, Slot,
        Terms, To, Variables,
    },
    quota::{Quotas, shared::Named},
};

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
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's own addresses. Loopback and link-local ones never probe and are passed over.
    pub addresses: Vec<IpAddr>,
    /// Where the quotas that workloads name are found; without it nobody can say what they are.
    pub quotas: Option<Arc<Quotas>>,
}

/// The tables, and what did not fit in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The tables.
    pub tables: Tables,
    /// Workloads whose policy could not be compiled as it is.
    pub misfits: Vec<Misfit>,
    /// The quotas that workloads name, each with its cell.
    pub quotas: BTreeMap<Identity, Named>,
}

/// Something that a policy says and that cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(untagged)]
pub enum Misfit {
    /// Too many rules.
    #[error(transparent)]
    Overflow(#[from] Overflow),
    /// A quota that cannot be spent.
    #[error(transparent)]
    Quota(#[from] NoQuota),
}

impl Misfit {
    /// The workload's identity.
    pub fn workload(&self) -> &str {
        match self {
            Self::Overflow(Overflow { workload, .. }) | Self::Quota(NoQuota { workload, .. }) => {
                workload
            }
        }
    }
}

/// A quota that cannot be spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("workload {name}: {key}: {why}: `{quota}`; meanwhile it limits nothing")]
pub struct NoQuota {
    /// The workload's identity.
    pub workload: String,
    /// Its name for people.
    pub name: String,
    /// The key, with its port.
    pub key: String,
    /// The quota as written.
    pub quota: String,
    /// Why not.
    pub why: String,
}

/// More rules for one port than a block holds, or than a connection can be counted by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Overflow {
    /// The workload's identity.
    pub workload: String,
    /// Its name for people.
    pub name: String,
    /// The direction.
    pub direction: Direction,
    /// The port; `None` for all that have no lines of their own.
    pub port: Option<Port>,
    /// Which rules are too many.
    pub rules: RuleSet,
    /// All of these rules, in order.
    pub lines: Vec<LineRef>,
    /// What was done about it.
    pub effect: OverflowEffect,
}

/// Rules that share a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleSet {
    /// All rules of a block.
    All,
    /// Those that count connections.
    Loads,
    /// Those that count each source's connections.
    SourceLoads,
    /// Breakers.
    Breakers,
}

impl RuleSet {
    /// The special ones first: what they cut need not be cut again.
    const ALL: [Self; 4] = [Self::Loads, Self::SourceLoads, Self::Breakers, Self::All];

    const fn holds(self, kind: RuleKind) -> bool {
        match self {
            Self::All => true,
            Self::Loads => matches!(kind, RuleKind::Load(_)),
            Self::SourceLoads => matches!(kind, RuleKind::SourceLoad { .. }),
            Self::Breakers => matches!(kind, RuleKind::Breaker { .. }),
        }
    }

    /// Those of the set that share the bound: all, but of breakers the most that one connection can
    /// meet. Networks lie in each other or apart, so these meet where the narrowest of them is.
    fn most_at_once(self, rules: &[Rule]) -> Vec<Rule> {
        let of_set: Vec<Rule> =
            rules.iter().filter(|rule| self.holds(rule.kind)).copied().collect();
        if !matches!(self, Self::Breakers) {
            return of_set;
        }
        let meets = |narrow: &Rule| -> Vec<Rule> {
            let covers = |wide: &&Rule| match (wide.peer, narrow.peer) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(wide), Some(narrow)) => wide.covers(narrow),
            };
            of_set.iter().filter(covers).copied().collect()
        };
        of_set.iter().map(meets).max_by_key(Vec::len).unwrap_or_default()
    }

    const fn max(self) -> usize {
        match self {
            Self::All => Block::MAX,
            Self::Loads => MAX_LOADS,
            Self::SourceLoads => MAX_SOURCE_LOADS,
            Self::Breakers => MAX_BREAKERS,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::All => "rules",
            Self::Loads => "limits on what is open at once",
            Self::SourceLoads => "limits on what each source has open at once",
            Self::Breakers => "breakers",
        }
    }
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
        let (count, max, rules) = (lines.len(), self.rules.max(), self.rules.name());
        let direction = match self.direction {
            Direction::Ingress => "inbound",
            Direction::Egress => "outbound",
        };
        write!(f, "workload {}: {count} {direction} {rules} for ", self.name)?;
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
        compiled.misfits.extend(workload.overflows.into_iter().map(Misfit::from));
        compiled.misfits.extend(workload.no_quotas.into_iter().map(Misfit::from));
        compiled.quotas.append(&mut workload.quotas);
        compiled.tables.workloads.insert(subject.identity.to_owned(), table);
    }
    compiled
}

struct Workload<'a> {
    subject: Subject<'a>,
    probers: Vec<Cidr>,
    /// Where quotas are found.
    book: Option<&'a Quotas>,
    cells: BTreeMap<Identity, Cell>,
    quotas: BTreeMap<Identity, Named>,
    overflows: Vec<Overflow>,
    no_quotas: Vec<NoQuota>,
}

impl<'a> Workload<'a> {
    fn new(subject: Subject<'a>, facts: &'a NodeFacts) -> Self {
        let own = || facts.addresses.iter().copied().filter(probes).map(Cidr::host);
        let mut probers: Vec<_> = match subject.probes.map(|probes| &probes.from) {
            None => Vec::new(),
            Some(Some(from)) => from.clone(),
            Some(None) => own().collect(),
        };
        probers.sort();
        probers.dedup();
        Self {
            subject,
            probers,
            book: facts.quotas.as_deref(),
            cells: BTreeMap::new(),
            quotas: BTreeMap::new(),
            overflows: Vec::new(),
            no_quotas: Vec::new(),
        }
    }

    fn table(&mut self) -> WorkloadTable {
        let ingress = self.blocks(Stage::Connections, Direction::Ingress);
        let egress = self.blocks(Stage::Connections, Direction::Egress);
        let volumes =
            [Direction::Ingress, Direction::Egress].map(|way| self.blocks(Stage::Volumes, way));
        let identity = self.subject.identity;
        let resets = Cell::bucket(CellKind::Bucket, self.subject.resets, LineRef::Resets);
        let resets = self.cell(resets);
        WorkloadTable {
            name: self.subject.name.to_owned(),
            identity: Identity::workload(identity),
            resets,
            cells: std::mem::take(&mut self.cells),
            ingress,
            egress,
            volumes,
        }
    }

    fn blocks(&mut self, stage: Stage, direction: Direction) -> Blocks {
        let effective = self.subject.effective;
        let lines: Vec<&Line> = effective
            .lines
            .iter()
            .filter(|line| concerns(line.slot.kind, stage, direction))
            .collect();
        let any = self.block(stage, direction, None, &lines);
        let mut ports: BTreeSet<Port> = lines.iter().filter_map(|line| line.slot.port).collect();
        if stage == Stage::Connections {
            ports.extend(effective.on_limit_ports.keys());
        }
        if stage == Stage::Connections && direction == Direction::Ingress {
            ports.extend(self.subject.probes.into_iter().flat_map(|probes| &probes.ports));
        }
        let ports = ports
            .into_iter()
            .map(|port| (port, self.block(stage, direction, Some(port), &lines)))
            .filter(|(_, block)| *block != any)
            .collect();
        Blocks { any, ports }
    }

    /// The rules for one port: what is written for it and what is written for all.
    fn block(
        &mut self,
        stage: Stage,
        direction: Direction,
        port: Option<Port>,
        lines: &[&Line],
    ) -> Block {
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
        if stage == Stage::Connections {
            rules.extend(self.probe_rules(direction, port, drop));
        }
        // What refuses without spending comes first; what is counted is given back most easily.
        let mut services = Vec::new();
        for line in lines.iter().filter(|line| line.slot.kind.is_breaker()) {
            rules.extend(self.limit_rules(line, among(line, &mut services), drop));
        }
        rules.extend(self.load_rules(port, &lines, drop));
        for line in lines {
            if !line.slot.kind.is_breaker() && !is_load(line.slot.kind) {
                rules.extend(self.limit_rules(line, None, drop));
            }
        }
        for set in RuleSet::ALL {
            self.cut(set, direction, port, &mut rules);
        }
        Block { rules }
    }

    /// Leaves as many rules of a set as fit, and says so.
    fn cut(
        &mut self,
        set: RuleSet,
        direction: Direction,
        port: Option<Port>,
        rules: &mut Vec<Rule>,
    ) {
        let of_set = || set.most_at_once(rules).into_iter();
        if of_set().count() <= set.max() {
            return;
        }
        self.overflows.push(Overflow {
            workload: self.subject.identity.to_owned(),
            name: self.subject.name.to_owned(),
            direction,
            port,
            rules: set,
            lines: of_set().map(|rule| rule.line).collect(),
            effect: OverflowEffect::Cut,
        });
        let mut kept: Vec<Rule> = Vec::new();
        for rule in std::mem::take(rules) {
            kept.push(rule);
            if set.holds(rule.kind) && set.most_at_once(&kept).len() > set.max() {
                kept.pop();
            }
        }
        *rules = kept;
    }

    fn probe_rules(&mut self, direction: Direction, port: Option<Port>, drop: bool) -> Vec<Rule> {
        let Some(probes) = self.subject.probes else {
            return Vec::new();
        };
        let is_probed = port.is_some_and(|port| probes.ports.contains(&port));
        if direction == Direction::Egress || !is_probed || self.probers.is_empty() {
            return Vec::new();
        }
        let cell = Cell::bucket(CellKind::Bucket, probes.bucket, LineRef::Probe);
        let cell = self.cell(cell);
        let rule = |peer: &Cidr| Rule {
            peer: Some(*peer),
            kind: RuleKind::Probe(cell),
            shadow: false,
            drop,
            line: LineRef::Probe,
        };
        self.probers.iter().map(rule).collect()
    }

    /// One rule for each port and each of enforced and shadow, with what `max-connections` and
    /// `max-handshakes` say there: they count the same connections in one cell.
    fn load_rules(&mut self, port: Option<Port>, lines: &[&Line], drop: bool) -> Vec<Rule> {
        let scopes: BTreeSet<_> = [port, None].into();
        let mut rules = Vec::new();
        // The port before all ports.
        for port in scopes.into_iter().rev() {
            let line = |kind, shadow| {
                let mut of_port = lines.iter().filter(|line| line.slot.port == port);
                of_port
                    .find(|line| line.slot.kind == kind && line.shadow.is_some() == shadow)
                    .copied()
            };
            let mut beside = false;
            for shadow in [false, true] {
                let connections = line(LimitKind::MaxConnections, shadow);
                let handshakes = line(LimitKind::MaxHandshakes, shadow);
                if let (None, None) = (connections, handshakes) {
                    continue;
                }
                let number = |line: Option<&Line>, most| {
                    line.and_then(|line| line.limit.at_once()).map_or(most, |it| it.get().into())
                };
                let bounds = Bounds {
                    connections: number(connections, MAX_CONNECTIONS),
                    handshakes: number(handshakes, MAX_HANDSHAKES),
                };
                let slot = |line: Option<&Line>| line.map(|line| line.slot);
                let (connections, handshakes) = (slot(connections), slot(handshakes));
                let line = LineRef::Load(LoadRef { port, beside, connections, handshakes });
                let cell = self.cell(Cell::load(CellKind::Load, bounds, line));
                rules.push(Rule { peer: None, kind: RuleKind::Load(cell), shadow, drop, line });
                beside = true;
            }
        }
        rules
    }

    /// The rules of a line: one, but of a rate to a service one for each of its endpoints, which all
    /// spend from one bucket.
    fn limit_rules(&mut self, line: &Line, among: Option<Among>, drop: bool) -> Vec<Rule> {
        let reference = LineRef::Limit(line.slot);
        let per_source = line.limit.group;
        let kind = match (line.limit.terms, per_source) {
            (Terms::Bucket(bucket), _) if line.slot.kind == LimitKind::Packets => {
                RuleKind::Packets(self.cell(Cell::packets(bucket, reference)))
            }
            (Terms::Bucket(bucket), Some(group)) => RuleKind::Source {
                cell: self.cell(Cell::bucket(CellKind::Source, bucket, reference)),
                group,
            },
            (Terms::Bucket(bucket), None) => {
                RuleKind::Limit(self.cell(Cell::bucket(CellKind::Bucket, bucket, reference)))
            }
            (Terms::AtOnce(number), group) => {
                let bounds =
                    Bounds { connections: number.get().into(), handshakes: MAX_HANDSHAKES };
                RuleKind::SourceLoad {
                    cell: self.cell(Cell::load(CellKind::SourceLoad, bounds, reference)),
                    group: group.unwrap_or_default(),
                }
            }
            (Terms::Bandwidth(bandwidth), _)
                if line.slot.kind == LimitKind::ConnectionBandwidth =>
            {
                let cell = Cell::bandwidth(CellKind::Flow, bandwidth, reference);
                RuleKind::ConnectionBandwidth(self.cell(cell))
            }
            (Terms::Bandwidth(bandwidth), _) => {
                let cell = Cell::bandwidth(CellKind::Debt, bandwidth, reference);
                RuleKind::Bandwidth(self.cell(cell))
            }
            (Terms::Breaker(breaker), _) => {
                let cell = self.cell(Cell::breaker(&breaker, reference));
                RuleKind::Breaker { cell, http1: breaker.http1, among }
            }
            (Terms::Quota(quota), _) => match self.quota(line, &quota) {
                Some(kind) => kind,
                None => return Vec::new(),
            },
        };
        let rule = |peer| Rule { peer, kind, shadow: line.shadow.is_some(), drop, line: reference };
        match (line.slot.to, &line.service) {
            (None, _) => vec![rule(None)],
            (Some(To::Cidr(peer)), _) => vec![rule(Some(peer))],
            (Some(To::Service(_)), served) => {
                let endpoints = served.iter().flat_map(|served| &served.endpoints);
                endpoints.map(|endpoint| rule(Some(*endpoint))).collect()
            }
        }
    }

    /// The rule of a line that names a quota; none where it cannot be spent.
    fn quota(&mut self, line: &Line, quota: &Quota) -> Option<RuleKind> {
        let book = self.book?;
        // Pods are named `namespace/pod`.
        let name = self.subject.name;
        let (namespace, pod) = name.split_once('/').unwrap_or(("", name));
        let port = line.slot.port.map(|port| port.to_string()).unwrap_or_default();
        let entries = quota.entries(&Variables { namespace, pod, port: &port });
        let reference = LineRef::Limit(line.slot);
        let named = match book.named(&quota.domain(), &entries, namespace) {
            Ok(named) => named,
            Err(why) => {
                let key = line.slot.key();
                // A line without a port is met in the block of each port.
                if !self.no_quotas.iter().any(|known| known.key == key) {
                    self.no_quotas.push(NoQuota {
                        workload: self.subject.identity.to_owned(),
                        name: name.to_owned(),
                        key,
                        quota: quota.to_string(),
                        why: why.to_string(),
                    });
                }
                return None;
            }
        };
        let cell = Cell::quota(&named, reference)?;
        let counts = cell.kind;
        let identity = Identity::quota(&named);
        self.cells.insert(identity, cell);
        self.quotas.insert(identity, named);
        Some(RuleKind::Quota { cell: identity, counts })
    }

    fn cell(&mut self, cell: Cell) -> Identity {
        let identity = Identity::cell(self.subject.identity, &cell.line);
        self.cells.insert(identity, cell);
        identity
    }
}

/// The breakers that a line's belongs to, if only so many of them may be ejected at once. `services`
/// has those of the block so far.
fn among(line: &Line, services: &mut Vec<(ServiceName, Option<Port>, bool)>) -> Option<Among> {
    let served = line.service.as_ref()?;
    let at_most = served.ejectable.filter(|at_most| *at_most < served.endpoints.len())?;
    let key = (served.name, line.slot.port, line.shadow.is_some());
    let place = services.iter().position(|known| *known == key).unwrap_or_else(|| {
        services.push(key);
        services.len() - 1
    });
    // A block has no room for more than 15 rules.
    let fits = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Some(Among { number: fits(place + 1), at_most: fits(at_most) })
}

/// What is counted for all sources together, by [`Workload::load_rules`].
const fn is_load(kind: LimitKind) -> bool {
    matches!(kind, LimitKind::MaxConnections | LimitKind::MaxHandshakes)
}

/// Whether what a limit counts is judged at this stage, and goes this way.
const fn concerns(kind: LimitKind, stage: Stage, direction: Direction) -> bool {
    match stage {
        Stage::Connections if kind.is_volume() => false,
        Stage::Connections => matches!(direction, Direction::Egress) == kind.is_outbound(),
        Stage::Volumes => match kind {
            LimitKind::IngressBandwidth => matches!(direction, Direction::Ingress),
            LimitKind::EgressBandwidth => matches!(direction, Direction::Egress),
            _ => kind.is_volume(),
        },
    }
}

/// Inner limits first, so that an outer refusal gives back as little as possible: sources before
/// all, a port before all ports, narrow destinations before wide ones; shadow after what is
/// enforced.
fn order(slot: &Slot) -> impl Ord + use<> {
    let width = slot.to.map_or(u8::MAX, |to| match to {
        To::Cidr(network) => u8::MAX - 1 - network.prefix(),
        To::Service(_) => 0,
    });
    let is_inner = slot.kind.is_per_source() || slot.kind == LimitKind::ConnectionBandwidth;
    (!is_inner, slot.port.is_none(), slot.beside, width, slot.to)
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

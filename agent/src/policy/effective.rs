//! The merge: from what each party wrote to what holds for one workload.
//!
//! For each key the most specific layer's value stands: workload, namespace, administrator's
//! default. Then every `max` that matches clamps it, and where nobody set the key the `max`
//! itself holds. What is in shadow clamps nothing and replaces nothing that is enforced: it stands
//! beside it and is counted. So at most two lines remain for one kind, port and destination, one
//! enforced and one in shadow.
//!
//! A value that cannot be read never takes protection away: the last good value of the same layer
//! is used in its place, and without one the layer below holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU16,
};

use serde::Serialize;

use super::{
    breaker::Breaker,
    key::{KeyKind, LimitKind, Port},
    layer::{Administrator, Entry, Policy, Subject},
    peer::{Cidr, ServiceName, Services, To},
    place::{Layer, Origin, Problem, Sourced},
    reading::{Id, LastGood, Reader, Value, Values, meanwhile},
    value::{Limit, Mode, OnLimit, Setting, Terms},
};

/// What each party wrote, for one workload.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// The administrator's words.
    pub administrator: &'a Administrator,
    /// The namespace's.
    pub namespace: &'a [Entry],
    /// The workload's own.
    pub workload: &'a [Entry],
}

/// What holds for a workload, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The mode of the workload's own lines.
    pub mode: Sourced<Mode>,
    /// How connections are refused.
    pub on_limit: Sourced<OnLimit>,
    /// How they are refused at single ports.
    pub on_limit_ports: BTreeMap<Port, Sourced<OnLimit>>,
    /// Peers that no limit holds for.
    pub exempt: Vec<Sourced<Cidr>>,
    /// The limits, by slot.
    pub lines: Vec<Line>,
}

impl Effective {
    /// How a connection at this port is refused.
    pub fn on_limit(&self, port: Option<Port>) -> OnLimit {
        let of_port = port.and_then(|port| self.on_limit_ports.get(&port));
        of_port.unwrap_or(&self.on_limit).value
    }

    /// What enforces a key, for a problem's effect.
    pub(super) fn says(&self, kind: LimitKind, port: Option<Port>) -> String {
        let enforces = |line: &&Line| {
            line.slot.kind == kind && line.slot.port == port && line.shadow.is_none()
        };
        match self.lines.iter().find(enforces) {
            Some(line) => meanwhile(line.limit, &line.origin),
            None => "meanwhile nothing limits it".to_owned(),
        }
    }

    /// The line in this slot.
    pub fn line(&self, slot: &Slot) -> Option<&Line> {
        self.lines.iter().find(|line| line.slot == *slot)
    }
}

/// The place of a line: no two lines of a workload have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Slot {
    /// What is limited.
    pub kind: LimitKind,
    /// At which port; `None` for all ports together.
    pub port: Option<Port>,
    /// Towards which destinations; `None` for all.
    pub to: Option<To>,
    /// A line in shadow that stands beside an enforced one.
    pub beside: bool,
}

impl Slot {
    /// The key, with the port's number.
    pub fn key(&self) -> String {
        match self.port {
            Some(port) => format!("{}.{port}", self.kind),
            None => self.kind.to_string(),
        }
    }
}

/// One limit that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its place.
    pub slot: Slot,
    /// What holds, after clamping.
    pub limit: Limit,
    /// Why it is not enforced; `None` when it is.
    pub shadow: Option<Shadow>,
    /// The key as written.
    pub written_key: String,
    /// The entry as written, before clamping.
    pub written: String,
    /// Whose word it is.
    pub origin: Origin,
    /// It is the last good value; what stands there now cannot be read.
    pub kept: bool,
    /// What made it stricter than written.
    pub clamps: Vec<Clamp>,
    /// The service that it is about, or one of whose endpoints it is about.
    pub service: Option<Served>,
}

/// A service as a line is about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Served {
    /// Its name.
    pub name: ServiceName,
    /// All of its endpoints.
    pub endpoints: Vec<Cidr>,
    /// How many of them may be ejected at once; `None` for all.
    pub ejectable: Option<usize>,
}

/// Why a line is counted and not enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shadow {
    /// The line says `shadow`.
    Line,
    /// A `mode: shadow` does.
    Mode(Origin),
}

/// A maximum, or another line, that made a line stricter than written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clamp {
    /// Whose word that is.
    pub origin: Origin,
    /// What it says.
    pub bound: String,
    /// What it changed: `rate`, `burst`, `refill`, `number`, `probes`, `group`, `shadow`.
    pub changed: Vec<&'static str>,
}

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line => f.write_str("the line says `shadow`"),
            Self::Mode(origin) => write!(f, "`mode: shadow` ({origin})"),
        }
    }
}

impl fmt::Display for Clamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from `{}` ({})", self.changed.join(", "), self.bound, self.origin)
    }
}

/// What the merge found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What holds.
    pub effective: Effective,
    /// What to fall back on when the next merge cannot read a value.
    pub last_good: LastGood,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Merges what was written for one workload.
pub fn effective(
    subject: &Subject<'_>,
    layers: &Layers<'_>,
    last_good: Option<&LastGood>,
) -> Outcome {
    let administrator = layers.administrator;
    let services = &administrator.services;
    let mut reader = Reader { subject, services, last_good, problems: Vec::new() };
    let policies: Vec<&Policy> =
        administrator.policies.iter().filter(|policy| policy.matches.matches(subject)).collect();
    let allow = policies.iter().find_map(|policy| policy.allow.as_ref());

    let mut exempt = administrator.exempt.clone();
    let mut defaults = Values::new();
    for policy in &policies {
        for (id, values) in reader.read(Layer::Default, &policy.default, None) {
            exempt.extend(values.iter().flat_map(Value::exempt));
            // The first policy that fills a key fills it.
            defaults.entry(id).or_insert(values);
        }
    }
    let mut maxima = Values::new();
    for policy in &policies {
        for (id, values) in reader.read(Layer::Max, &policy.max, None) {
            maxima.entry(id).or_default().extend(values);
        }
    }
    let namespace = reader.read(Layer::Namespace, layers.namespace, None);
    let workload = reader.read(Layer::Workload, layers.workload, allow);

    let merge = Merge {
        node_mode: administrator.mode.as_ref(),
        services,
        layers: [&workload, &namespace, &defaults],
        maxima: &maxima,
    };
    let mut lines = merge.lines();
    let mut contradictions = fit_probes(&mut lines);
    let effective = Effective {
        mode: merge.mode(Layer::Workload),
        on_limit: merge
            .on_limit(None)
            .unwrap_or(Sourced { value: OnLimit::default(), origin: Origin::BUILT_IN }),
        on_limit_ports: merge.on_limit_ports(),
        exempt: distinct(exempt),
        lines,
    };
    let used = [&workload, &namespace, &defaults, &maxima].into_iter().flatten();
    let last_good =
        used.flat_map(|(id, values)| values.iter().map(|value| value.good(*id))).collect();
    for problem in &mut contradictions {
        problem.workload = Some(subject.name.to_owned());
    }
    let settled = reader.problems.into_iter().map(|pending| pending.settle(subject, &effective));
    let problems = settled.chain(contradictions).collect();
    Outcome { effective, last_good, problems }
}

fn distinct(peers: Vec<Sourced<Cidr>>) -> Vec<Sourced<Cidr>> {
    let mut seen = BTreeSet::new();
    peers.into_iter().filter(|peer| seen.insert(peer.value)).collect()
}

/// Decides between layers that have been read.
struct Merge<'a> {
    node_mode: Option<&'a Sourced<Mode>>,
    services: &'a Services,
    /// The most specific first: workload, namespace, administrator's default.
    layers: [&'a Values; 3],
    maxima: &'a Values,
}

impl Merge<'_> {
    /// The mode of the lines of a layer: its own word or that of a less specific one. Nobody
    /// shadows the lines of a less specific layer.
    fn mode(&self, layer: Layer) -> Sourced<Mode> {
        let skipped = match layer {
            Layer::Workload => 0,
            Layer::Namespace => 1,
            _ => 2,
        };
        let id = (KeyKind::Mode, None);
        let written =
            self.layers.iter().skip(skipped).find_map(|values| mode_of(values.get(&id)?.first()?));
        self.enforced_by_max()
            .or(written)
            .or_else(|| self.node_mode.cloned())
            .unwrap_or(Sourced { value: Mode::Enforce, origin: Origin::BUILT_IN })
    }

    /// A maximum of `mode: enforce`, the stricter of the two modes; `shadow` as a maximum is none.
    fn enforced_by_max(&self) -> Option<Sourced<Mode>> {
        let modes = self.maxima.get(&(KeyKind::Mode, None))?;
        modes.iter().filter_map(mode_of).find(|mode| mode.value == Mode::Enforce)
    }

    fn on_limit(&self, port: Option<Port>) -> Option<Sourced<OnLimit>> {
        let value =
            self.layers.iter().find_map(|values| values.get(&(KeyKind::OnLimit, port))?.first())?;
        match value.setting {
            Setting::OnLimit(on_limit) => Some(Sourced { value: on_limit, origin: value.origin() }),
            _ => None,
        }
    }

    fn on_limit_ports(&self) -> BTreeMap<Port, Sourced<OnLimit>> {
        let keys = self.layers.iter().flat_map(|values| values.keys());
        let ports =
            keys.filter(|(kind, _)| *kind == KeyKind::OnLimit).filter_map(|(_, port)| *port);
        ports.filter_map(|port| Some((port, self.on_limit(Some(port))?))).collect()
    }

    fn lines(&self) -> Vec<Line> {
        let is_limit = |(kind, port): &Id| match kind {
            KeyKind::Limit(kind) => Some((*kind, *port)),
            _ => None,
        };
        let written = self.layers.iter().chain([&self.maxima]).flat_map(|values| values.keys());
        let keys: BTreeSet<(LimitKind, Option<Port>)> = written.filter_map(is_limit).collect();
        keys.into_iter().flat_map(|(kind, port)| self.lines_of(kind, port)).collect()
    }

    /// The lines of one key.
    fn lines_of(&self, kind: LimitKind, port: Option<Port>) -> Vec<Line> {
        let id = (KeyKind::Limit(kind), port);
        let mut lines: Vec<Line> = Vec::new();
        let mut is_set = false;
        for values in self.layers {
            let found = self.candidates(values.get(&id), kind, port);
            let enforces = found.iter().any(|line| line.shadow.is_none());
            // What a more specific layer has only in shadow does not replace what is enforced.
            lines.extend(found.into_iter().filter(|line| !is_set || line.shadow.is_none()));
            if enforces {
                break;
            }
            is_set |= values.contains_key(&id);
        }
        lines.extend(self.candidates(self.maxima.get(&id), kind, port));
        settle_slots(lines)
    }

    fn candidates(
        &self,
        values: Option<&Vec<Value>>,
        kind: LimitKind,
        port: Option<Port>,
    ) -> Vec<Line> {
        let values = values.into_iter().flatten();
        values
            .flat_map(|value| value.limits().iter().map(move |limit| (value, limit)))
            .flat_map(|(value, limit)| self.candidates_of(value, limit, kind, port))
            .collect()
    }

    /// The lines of one entry: one, but of a breaker to a service one for each of its endpoints.
    fn candidates_of(
        &self,
        value: &Value,
        limit: &Limit,
        kind: LimitKind,
        port: Option<Port>,
    ) -> Vec<Line> {
        let Some(name) = limit.to.and_then(To::service) else {
            let slot = Slot { kind, port, to: limit.to, beside: false };
            return vec![self.candidate(value, limit, slot)];
        };
        // One that is not known has no endpoints, and was reported where it is read.
        let endpoints = self.services.get(&name).cloned().unwrap_or_default();
        let ejectable = limit.breaker().and_then(|breaker| breaker.ejectable(endpoints.len()));
        let slots: Vec<Option<To>> = if kind.is_breaker() {
            endpoints.iter().map(|endpoint| Some(To::Cidr(*endpoint))).collect()
        } else {
            vec![limit.to]
        };
        let line = |to| {
            let slot = Slot { kind, port, to, beside: false };
            let service = Some(Served { name, endpoints: endpoints.clone(), ejectable });
            Line { service, ..self.candidate(value, limit, slot) }
        };
        slots.into_iter().map(line).collect()
    }

    fn candidate(&self, value: &Value, limit: &Limit, slot: Slot) -> Line {
        let mode = self.mode(value.layer);
        let mut clamps = Vec::new();
        let forced = self.enforced_by_max().filter(|_| !value.layer.is_administrator());
        let shadow = match forced {
            Some(forced) if limit.shadow => {
                let bound = "mode enforce".to_owned();
                clamps.push(Clamp { origin: forced.origin, bound, changed: vec!["shadow"] });
                None
            }
            _ if limit.shadow => Some(Shadow::Line),
            _ if mode.value == Mode::Shadow => Some(Shadow::Mode(mode.origin)),
            _ => None,
        };
        Line {
            slot,
            limit: Limit { shadow: shadow.is_some(), ..*limit },
            shadow,
            written_key: value.written_key.clone(),
            written: limit.to_string(),
            origin: value.origin(),
            kept: value.kept,
            clamps,
            service: None,
        }
    }
}

fn mode_of(value: &Value) -> Option<Sourced<Mode>> {
    match value.setting {
        Setting::Mode(mode) => Some(Sourced { value: mode, origin: value.origin() }),
        _ => None,
    }
}

/// Leaves one line of those that share a destination and are enforced, and one of those in shadow.
fn settle_slots(lines: Vec<Line>) -> Vec<Line> {
    let mut settled: Vec<Line> = Vec::new();
    for line in lines {
        let same = |other: &&mut Line| {
            other.slot.to == line.slot.to && other.shadow.is_some() == line.shadow.is_some()
        };
        match settled.iter_mut().find(same) {
            Some(first) => first.clamp(&line),
            None => settled.push(line),
        }
    }
    let enforced: Vec<_> =
        settled.iter().filter(|line| line.shadow.is_none()).map(|line| line.slot.to).collect();
    for line in &mut settled {
        line.slot.beside = line.shadow.is_some() && enforced.contains(&line.slot.to);
    }
    settled.sort_by_key(|line| line.slot);
    settled
}

impl Line {
    /// Makes this line no looser than another, and notes what that changed.
    fn clamp(&mut self, bound: &Self) {
        let before = self.limit;
        let group = before.group.zip(bound.limit.group).map(|(a, b)| a.stricter(b));
        let terms = before.terms.stricter(bound.limit.terms);
        self.limit = Limit { terms, group: group.or(before.group), ..before };
        let mut changed = changed(before.terms, terms);
        if self.limit.group != before.group {
            changed.push("group");
        }
        if !changed.is_empty() {
            let (origin, bound) = (bound.origin.clone(), bound.written.clone());
            self.clamps.push(Clamp { origin, bound, changed });
        }
    }
}

/// What became stricter, by its name.
fn changed(before: Terms, now: Terms) -> Vec<&'static str> {
    let rows = match (before, now) {
        (Terms::Bucket(before), Terms::Bucket(now)) => vec![
            ("rate", now.rate() != before.rate()),
            ("burst", now.burst() != before.burst()),
            ("refill", now.refill() != before.refill()),
        ],
        (Terms::Bandwidth(before), Terms::Bandwidth(now)) => {
            vec![("rate", now.bits() != before.bits()), ("burst", now.burst() != before.burst())]
        }
        _ => vec![("number", now != before)],
    };
    rows.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// A breaker whose probes could never be out together, because `max-connections` lets fewer in,
/// might never close again: it gets as many as fit.
fn fit_probes(lines: &mut [Line]) -> Vec<Problem> {
    let bounds: Vec<Line> =
        lines.iter().filter(|line| line.slot.kind == LimitKind::MaxConnections).cloned().collect();
    let mut problems = Vec::new();
    for line in lines.iter_mut().filter(|line| line.slot.kind == LimitKind::Breaker) {
        let concerns = |bound: &&Line| {
            let port = bound.slot.port.is_none() || bound.slot.port == line.slot.port;
            // What only counts holds nobody back but what only counts too.
            port && (bound.shadow.is_none() || line.shadow.is_some())
        };
        let at_most = |bound: &&Line| bound.limit.at_once();
        let bound = bounds.iter().filter(concerns).min_by_key(at_most);
        let (Some(bound), Some(breaker)) = (bound, line.limit.breaker()) else { continue };
        let (Some(probes), Some(most)) = (breaker.probes, bound.limit.at_once()) else { continue };
        // More than 16 bits are more than any number of probes.
        let Some(fitting) = NonZeroU16::try_from(most).ok().filter(|most| *most < probes) else {
            continue;
        };
        let what = format!(
            "`{}`: probes={probes} is more than the {most} that `{}` lets in at once",
            line.written_key, bound.written_key
        );
        let problem = Problem::error(
            line.origin.place.clone(),
            what,
            format!("probes={fitting} or fewer, or a larger {}", LimitKind::MaxConnections),
        );
        problems.push(problem.effect(format!("it holds with probes={fitting}")));
        line.limit.terms = Terms::Breaker(Breaker { probes: Some(fitting), ..breaker });
        let bound_text = format!("{} {}", bound.written_key, bound.limit);
        line.clamps.push(Clamp {
            origin: bound.origin.clone(),
            bound: bound_text,
            changed: vec!["probes"],
        });
    }
    problems
}

#[cfg(test)]
#[path = "effective_tests.rs"]
mod tests;

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

use serde::{Deserialize, Serialize};

use super::{
    breaker::Breaker,
    key::{Key, KeyKind, LimitKind, Port},
    layer::{Administrator, Allow, BadKey, Entry, Policy, Subject},
    peer::{Cidr, ServiceName, Services, To},
    place::{Layer, Origin, Place, Problem, Sourced},
    suggest::nearest,
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
    fn says(&self, kind: LimitKind, port: Option<Port>) -> String {
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

/// The values that could be read, to be used when they no longer can.
///
/// They are kept as text: whoever stores them over a restart needs no second format, and they go
/// through the same reader again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LastGood {
    values: BTreeSet<GoodValue>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct GoodValue {
    layer: Layer,
    /// The key as written.
    key: String,
    /// What the key's port was, where it has one: its name may be gone by now.
    port: Option<u16>,
    text: String,
    place: Place,
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

/// A key with its port's number.
type Id = (KeyKind, Option<Port>);

/// A value in use.
#[derive(Clone, Debug)]
struct Value {
    layer: Layer,
    written_key: String,
    text: String,
    place: Place,
    setting: Setting,
    kept: bool,
}

/// A problem whose effect is known only when the merge is done.
struct Pending {
    problem: Problem,
    /// The key whose protection is at stake.
    at_stake: Option<Id>,
}

/// What one layer says, by key. A key has several values where a port was written by name and by
/// number; all of them hold.
type Values = BTreeMap<Id, Vec<Value>>;

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
    Outcome { effective, last_good: LastGood { values: last_good }, problems }
}

fn distinct(peers: Vec<Sourced<Cidr>>) -> Vec<Sourced<Cidr>> {
    let mut seen = BTreeSet::new();
    peers.into_iter().filter(|peer| seen.insert(peer.value)).collect()
}

impl Value {
    fn origin(&self) -> Origin {
        Origin { layer: self.layer, place: self.place.clone() }
    }

    fn good(&self, id: Id) -> GoodValue {
        GoodValue {
            layer: self.layer,
            key: self.written_key.clone(),
            port: id.1.map(Port::number),
            text: self.text.clone(),
            place: self.place.clone(),
        }
    }

    fn exempt(&self) -> Vec<Sourced<Cidr>> {
        let Setting::Exempt(peers) = &self.setting else {
            return Vec::new();
        };
        peers.iter().map(|peer| Sourced { value: *peer, origin: self.origin() }).collect()
    }

    fn limits(&self) -> &[Limit] {
        match &self.setting {
            Setting::Limits(limits) => limits,
            _ => &[],
        }
    }
}

impl Pending {
    fn settle(self, subject: &Subject<'_>, effective: &Effective) -> Problem {
        let Self { mut problem, at_stake } = self;
        problem.workload = Some(subject.name.to_owned());
        if let (Some((kind, port)), None) = (at_stake, &problem.effect) {
            problem.effect = match kind {
                KeyKind::Limit(kind) => Some(effective.says(kind, port)),
                KeyKind::Mode => Some(meanwhile(effective.mode.value, &effective.mode.origin)),
                KeyKind::OnLimit => {
                    let at_port = port.and_then(|port| effective.on_limit_ports.get(&port));
                    let on_limit = at_port.unwrap_or(&effective.on_limit);
                    Some(meanwhile(on_limit.value, &on_limit.origin))
                }
                KeyKind::Exempt => None,
            };
        }
        problem
    }
}

fn meanwhile(what: impl fmt::Display, origin: &Origin) -> String {
    format!("meanwhile `{what}` ({origin}) holds")
}

/// Reads layers: resolves ports, refuses what a layer may not say, falls back on the last good.
struct Reader<'a> {
    subject: &'a Subject<'a>,
    services: &'a Services,
    last_good: Option<&'a LastGood>,
    problems: Vec<Pending>,
}

impl Reader<'_> {
    fn read(&mut self, layer: Layer, entries: &[Entry], allow: Option<&Allow>) -> Values {
        let mut values = Values::new();
        // Misspelt keys count only where the right spelling is missing, so they wait for the end.
        let mut misspelt: Vec<(&BadKey, Id)> = Vec::new();
        for entry in entries {
            match &entry.key {
                Ok(key) => self.read_entry(layer, entry, key, allow, &mut values),
                Err(bad) => match bad.meant.as_ref().and_then(|meant| self.resolve(meant)) {
                    Some(id) => misspelt.push((bad, id)),
                    None => self.report(bad.problem.clone(), None),
                },
            }
        }
        for (bad, id) in misspelt {
            if values.contains_key(&id) {
                self.report(bad.problem.clone(), None);
            } else {
                self.fall_back(layer, bad.problem.clone(), Some(id), &mut values, |good| {
                    good.id() == Some(id)
                });
            }
        }
        values
    }

    fn read_entry(
        &mut self,
        layer: Layer,
        entry: &Entry,
        key: &Key,
        allow: Option<&Allow>,
        values: &mut Values,
    ) {
        if let Some(problem) = forbidden(layer, entry, key) {
            return self.report(problem, None);
        }
        let Some(id) = self.resolve(key) else {
            let problem = self.unknown_port(layer, entry, key);
            let same_key = |good: &GoodValue| good.key == entry.written;
            return self.fall_back(layer, problem, None, values, same_key);
        };
        if let Some(allow) = allow
            && !allow.permits(id.0, id.1, self.subject.ports)
        {
            let what = format!("`{}` may not be set by a workload", entry.written);
            let expected = format!("one of the keys that `allow` at {} lists", allow.place);
            return self.report(Problem::error(entry.place.clone(), what, expected), Some(id));
        }
        let setting = match &entry.value {
            Ok(setting) => setting.clone(),
            Err(problem) => {
                return self.fall_back(layer, problem.clone(), Some(id), values, |good| {
                    good.id() == Some(id)
                });
            }
        };
        if let Some(name) = unknown_service(&setting, self.services) {
            let problem = self.no_service(entry, name);
            return self.fall_back(layer, problem, Some(id), values, |good| good.id() == Some(id));
        }
        let present = values.entry(id).or_default();
        if let Some(first) = present.first() {
            let what =
                format!("`{}` sets the port of `{}` again", entry.written, first.written_key);
            let problem = Problem::error(entry.place.clone(), what, "one key for each port");
            let has_order = matches!(id.0, KeyKind::Limit(kind) if kind.has_order());
            let effect = if has_order {
                "both hold, so the stricter one decides"
            } else {
                "the first one holds"
            };
            self.problems.push(Pending { problem: problem.effect(effect), at_stake: None });
            if !has_order {
                return;
            }
        }
        present.push(Value {
            layer,
            written_key: entry.written.clone(),
            text: entry.text.clone(),
            place: entry.place.clone(),
            setting,
            kept: false,
        });
    }

    fn resolve(&self, key: &Key) -> Option<Id> {
        match &key.port {
            None => Some((key.kind, None)),
            Some(port) => port.resolve(self.subject.ports).map(|port| (key.kind, Some(port))),
        }
    }

    /// An administrator's policy may well speak of ports that not every workload has.
    fn unknown_port(&self, layer: Layer, entry: &Entry, key: &Key) -> Problem {
        let port = key.port.as_ref().map(ToString::to_string).unwrap_or_default();
        let what = format!("`{}`: this workload declares no port named `{port}`", entry.written);
        let names = || self.subject.ports.keys().map(|name| name.as_str());
        let expected = match nearest(&port, names()) {
            Some(meant) => format!("`{meant}`"),
            None if self.subject.ports.is_empty() => "a port number, or a declared name".to_owned(),
            None => format!("a port number, or one of {}", names().collect::<Vec<_>>().join(", ")),
        };
        if layer.is_administrator() {
            Problem::warning(entry.place.clone(), what, expected)
        } else {
            Problem::error(entry.place.clone(), what, expected)
        }
    }

    fn no_service(&self, entry: &Entry, name: ServiceName) -> Problem {
        let what = format!("`{}`: there is no service `{name}`", entry.written);
        let names = || self.services.keys().map(ServiceName::as_str);
        let expected = match nearest(name.as_str(), names()) {
            Some(meant) => format!("`{meant}`"),
            None if self.services.is_empty() => "its endpoints under `services`".to_owned(),
            None => format!("one of {}", names().collect::<Vec<_>>().join(", ")),
        };
        Problem::error(entry.place.clone(), what, expected)
    }

    /// Uses the last good values of this layer in place of one that cannot be read.
    fn fall_back(
        &mut self,
        layer: Layer,
        problem: Problem,
        at_stake: Option<Id>,
        values: &mut Values,
        is_its: impl Fn(&GoodValue) -> bool,
    ) {
        let candidates = self.last_good.into_iter().flat_map(|last_good| &last_good.values);
        let kept: Vec<(Id, Value)> = candidates
            .filter(|good| good.layer == layer && is_its(good))
            .filter_map(GoodValue::read)
            .filter(|(_, value)| unknown_service(&value.setting, self.services).is_none())
            .collect();
        let problem = match kept.as_slice() {
            [] if at_stake.is_none() => problem.effect("the line is not in force"),
            [] => problem,
            kept => {
                let texts: Vec<_> = kept.iter().map(|(_, value)| value.text.as_str()).collect();
                problem.effect(format!("the last good value `{}` stays", texts.join("`, `")))
            }
        };
        self.report(problem, at_stake);
        for (id, value) in kept {
            values.entry(id).or_default().push(value);
        }
    }

    fn report(&mut self, problem: Problem, at_stake: Option<Id>) {
        self.problems.push(Pending { problem, at_stake });
    }
}

impl GoodValue {
    fn id(&self) -> Option<Id> {
        let key = Key::parse(&self.key).ok()?;
        let port = self.port.and_then(Port::new);
        (key.port.is_some() == port.is_some()).then_some((key.kind, port))
    }

    /// Reads the value again. What another version wrote and this one does not know is no value.
    fn read(&self) -> Option<(Id, Value)> {
        let setting = Key::parse(&self.key).ok()?.parse_value(&self.text).ok()?;
        let value = Value {
            layer: self.layer,
            written_key: self.key.clone(),
            text: self.text.clone(),
            place: self.place.clone(),
            setting,
            kept: true,
        };
        Some((self.id()?, value))
    }
}

/// A service that a value names and nobody knows.
fn unknown_service(setting: &Setting, services: &Services) -> Option<ServiceName> {
    let Setting::Limits(limits) = setting else { return None };
    let mut named = limits.iter().filter_map(|limit| limit.to?.service());
    named.find(|name| !services.contains_key(name))
}

/// What a layer may not say at all.
fn forbidden(layer: Layer, entry: &Entry, key: &Key) -> Option<Problem> {
    let (what, expected) = match (key.kind, layer) {
        (KeyKind::Exempt, Layer::Namespace | Layer::Workload) => {
            ("only administrators may exempt peers", "`exempt` in the node file")
        }
        (KeyKind::Exempt, Layer::Max) => ("`exempt` has no maximum", "`exempt` under `default`"),
        (KeyKind::OnLimit, Layer::Max) => (
            "`on-limit` has no maximum: neither of its words is stricter",
            "`on-limit` under `default`, and an `allow` without it",
        ),
        (KeyKind::Limit(LimitKind::Quota), Layer::Max) => (
            "`quota` has no maximum: what it admits stands in the quota files",
            "`quota` under `default`, and an `allow` without it",
        ),
        (KeyKind::Limit(kind), Layer::Max) if kind.is_breaker() => (
            "a breaker has no maximum: of two, neither is stricter in all it does",
            "the breaker under `default`, and an `allow` without it",
        ),
        _ => return None,
    };
    Some(Problem::error(entry.place.clone(), what, expected))
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

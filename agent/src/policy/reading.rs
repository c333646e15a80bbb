//! What each layer says for one workload, as far as it can be read: ports by number, keys that a layer
//! may not set refused, and what cannot be read replaced by the last good value.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{
    effective::Effective,
    key::{Key, KeyKind, LimitKind, Port},
    layer::{Allow, BadKey, Entry, Subject},
    peer::{Cidr, ServiceName, Services},
    place::{Layer, Origin, Place, Problem, Sourced},
    suggest::nearest,
    value::{Limit, Setting},
};

/// The values that could be read, to be used when they no longer can.
///
/// They are kept as text: whoever stores them over a restart needs no second format, and they go
/// through the same reader again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LastGood {
    values: BTreeSet<GoodValue>,
}

impl FromIterator<GoodValue> for LastGood {
    fn from_iter<I: IntoIterator<Item = GoodValue>>(values: I) -> Self {
        Self { values: values.into_iter().collect() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct GoodValue {
    layer: Layer,
    /// The key as written.
    key: String,
    /// What the key's port was, where it has one: its name may be gone by now.
    port: Option<u16>,
    text: String,
    place: Place,
}

/// A key with its port's number.
pub(super) type Id = (KeyKind, Option<Port>);

/// A value in use.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) layer: Layer,
    pub(super) written_key: String,
    pub(super) text: String,
    pub(super) place: Place,
    pub(super) setting: Setting,
    pub(super) kept: bool,
}

/// A problem whose effect is known only when the merge is done.
pub(super) struct Pending {
    problem: Problem,
    /// The key whose protection is at stake.
    at_stake: Option<Id>,
}

/// What one layer says, by key. A key has several values where a port was written by name and by
/// number; all of them hold.
pub(super) type Values = BTreeMap<Id, Vec<Value>>;

impl Value {
    pub(super) fn origin(&self) -> Origin {
        Origin { layer: self.layer, place: self.place.clone() }
    }

    pub(super) fn good(&self, id: Id) -> GoodValue {
        GoodValue {
            layer: self.layer,
            key: self.written_key.clone(),
            port: id.1.map(Port::number),
            text: self.text.clone(),
            place: self.place.clone(),
        }
    }

    pub(super) fn exempt(&self) -> Vec<Sourced<Cidr>> {
        let Setting::Exempt(peers) = &self.setting else {
            return Vec::new();
        };
        peers.iter().map(|peer| Sourced { value: *peer, origin: self.origin() }).collect()
    }

    pub(super) fn limits(&self) -> &[Limit] {
        match &self.setting {
            Setting::Limits(limits) => limits,
            _ => &[],
        }
    }
}

impl Pending {
    pub(super) fn settle(self, subject: &Subject<'_>, effective: &Effective) -> Problem {
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

/// Reads layers: resolves ports, refuses what a layer may not say, falls back on the last good.
pub(super) struct Reader<'a> {
    pub(super) subject: &'a Subject<'a>,
    pub(super) services: &'a Services,
    pub(super) last_good: Option<&'a LastGood>,
    pub(super) problems: Vec<Pending>,
}

impl Reader<'_> {
    pub(super) fn read(
        &mut self,
        layer: Layer,
        entries: &[Entry],
        allow: Option<&Allow>,
    ) -> Values {
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

pub(super) fn meanwhile(what: impl fmt::Display, origin: &Origin) -> String {
    format!("meanwhile `{what}` ({origin}) holds")
}

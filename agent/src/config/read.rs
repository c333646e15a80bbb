//! From the file's text to its model.
//!
//! Everything wrong is noted, and everything else is read. What cannot be understood keeps what it
//! was in `previous`, the last file that was in force; so does a workload whose entry cannot be
//! told from others. A text that is no YAML at all has no reading: the caller keeps the previous
//! file as a whole.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    fields::{Field, Notes},
    node_file::{NodeFile, Pace, Shield, ShieldMode, Uplink, XdpMode},
    workloads,
    yaml::{self, Node, Scalar, Value},
};
use crate::policy::{
    Administrator, Allow, Cidr, Entries, Entry, Glob, Key, KeyKind, Layer, Match, Mode, Origin,
    Place, Policy, Problem, ServiceName, Services, Setting, Sourced, nearest, parse_cidr,
};

/// A file that was read, and what was wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What holds.
    pub file: NodeFile,
    /// What was wrong with the file's own keys, and with policy entries taken by themselves.
    /// [`super::evaluate`] tells of the latter again, with what holds in their place.
    pub problems: Vec<Problem>,
}

/// Reads a node file. `Err` when nothing in it can be understood.
pub fn read(text: &str, file: &str, previous: Option<&NodeFile>) -> Result<Reading, Box<Problem>> {
    let mut notes = Notes::new(file);
    let tree = yaml::read(text).map_err(|broken| {
        Box::new(Problem::error(notes.place(broken.at), broken.what, broken.expected))
    })?;
    for twice in &tree.duplicates {
        let first = notes.place(twice.first);
        let problem = Problem::error(
            notes.place(twice.at),
            format!("the key `{}` is written twice", twice.key),
            format!("it once: it stands at {first} already"),
        );
        notes.problems.push(problem.effect("the first one counts"));
    }
    const KEYS: &[&str] = &[
        "mode",
        "admin",
        "exempt",
        "pace",
        "services",
        "uplinks",
        "shield",
        "policies",
        "workloads",
        "rls",
    ];
    let Some(fields) = notes.fields("node file", &tree.root, KEYS, &["quotas"]) else {
        // A lone text or list is YAML, but says nothing.
        let problem = notes.problems.pop().unwrap_or_else(|| {
            Problem::error(Place::BuiltIn, "the node file says nothing", KEYS.join(", "))
        });
        return Err(Box::new(problem));
    };

    let before = previous.map(|file| &file.administrator);
    let mode = fields.read(&mut notes, "mode", read_mode);
    let mode = notes.settle(mode.map(Some), before.map(|before| &before.mode), || None);
    let listen = fields.read(&mut notes, "admin", read_admin);
    let listen = notes.settle(listen, previous.map(|file| &file.listen), || None);
    let exempt = fields.read_part(&mut notes, "exempt", read_exempt);
    let exempt = notes.settle(exempt, before.map(|before| &before.exempt), Vec::new);
    let services = fields.read(&mut notes, "services", read_services);
    let services = notes.settle(services, before.map(|before| &before.services), Services::default);
    let pace = fields.read(&mut notes, "pace", read_pace);
    let pace = notes.settle(pace, previous.map(|file| &file.pace), Pace::default);
    let uplinks = fields.read_part(&mut notes, "uplinks", read_uplinks);
    let uplinks = notes.settle(uplinks, previous.map(|file| &file.uplinks), Vec::new);
    let shield = fields.read(&mut notes, "shield", read_shield);
    let shield = notes.settle(shield, previous.map(|file| &file.shield), Shield::default);
    let policies = fields.read_part(&mut notes, "policies", read_policies);
    let policies = notes.settle(policies, before.map(|before| &before.policies), Vec::new);
    let workloads =
        fields.read(&mut notes, "workloads", |notes, node| workloads::read(notes, node, previous));
    let workloads = notes.settle(workloads, previous.map(|file| &file.workloads), Vec::new);

    let rls = fields.read(&mut notes, "rls", super::rls::read);
    let rls = notes.settle(rls.map(Some), previous.map(|file| &file.rls), || None);

    let administrator = Administrator { mode, exempt, services, policies };
    let file = NodeFile { listen, administrator, uplinks, shield, pace, workloads, rls };
    Ok(Reading { file, problems: notes.problems })
}

fn read_mode(notes: &mut Notes<'_>, node: &Node) -> Option<Sourced<Mode>> {
    let scalar = notes.text("mode", node, "`enforce` or `shadow`")?;
    let mode = match (Key { kind: KeyKind::Mode, port: None }).parse_value(&scalar.text) {
        Ok(Setting::Mode(mode)) => mode,
        Ok(_) => return None,
        Err(error) => {
            let place = notes.place(node.at);
            notes.problems.push(Problem::value(&place, "mode", &error, scalar.verbatim));
            return None;
        }
    };
    let origin = Origin { layer: Layer::Node, place: notes.place(node.at) };
    Some(Sourced { value: mode, origin })
}

fn read_admin(notes: &mut Notes<'_>, node: &Node) -> Option<Option<SocketAddr>> {
    let fields = notes.fields("admin", node, &["listen"], &[])?;
    let field = fields.read(notes, "listen", |notes, node| {
        let expected = "an address and a port like 127.0.0.1:9464";
        let scalar = notes.text("listen", node, expected)?;
        let address = scalar.text.parse::<SocketAddr>();
        if address.is_err() {
            let what = format!("`listen`: `{}` is no socket address", scalar.text);
            notes.error(node.at, what, expected);
        }
        address.ok()
    });
    match field {
        Field::Absent => Some(None),
        Field::Good(address) => Some(Some(address)),
        Field::Bad { .. } => None,
    }
}

/// Reads the items of a list. If some cannot be read, the others are a part of the list.
pub(super) fn items<T>(
    notes: &mut Notes<'_>,
    key: &str,
    node: &Node,
    expected: &str,
    mut read: impl FnMut(&mut Notes<'_>, &Node) -> Option<T>,
) -> List<T> {
    let items = notes.list(key, node, expected).ok_or(None)?;
    let read: Vec<T> = items.iter().filter_map(|item| read(notes, item)).collect();
    if read.len() == items.len() { Ok(read) } else { Err(Some(read)) }
}

pub(super) fn cidr(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Cidr> {
    let scalar = notes.text(key, node, "an address or a CIDR like 10.0.0.0/8")?;
    parse_cidr(&scalar.text)
        .map_err(|error| {
            let place = notes.place(node.at);
            notes.problems.push(Problem::value(&place, key, &error, scalar.verbatim));
        })
        .ok()
}

pub(super) type List<T> = Result<Vec<T>, Option<Vec<T>>>;

fn read_exempt(notes: &mut Notes<'_>, node: &Node) -> List<Sourced<Cidr>> {
    items(notes, "exempt", node, "a list of addresses or CIDRs", |notes, item| {
        let value = cidr(notes, "exempt", item)?;
        let origin = Origin { layer: Layer::Node, place: notes.place(item.at) };
        Some(Sourced { value, origin })
    })
}

/// Services and their endpoints. With one that is bad, the list stays as it was: half of it would be
/// another list.
fn read_services(notes: &mut Notes<'_>, node: &Node) -> Option<Services> {
    let pairs = notes.pairs("services", node, "names and lists of addresses")?;
    let mut services = Services::new();
    for (key, value) in pairs {
        let Some(name) = ServiceName::parse(&key.text) else {
            let expected = "up to 31 of a-z, 0-9 and `-`";
            notes.error(key.at, format!("`{}` cannot be a service's name", key.text), expected);
            continue;
        };
        let mut endpoints: Vec<Cidr> = Vec::new();
        let expected = "a list of addresses or CIDRs";
        let read = items(notes, &key.text, value, expected, |notes, item| {
            let endpoint = cidr(notes, &key.text, item)?;
            let meets = |other: &&Cidr| other.covers(endpoint) || endpoint.covers(**other);
            if let Some(other) = endpoints.iter().find(meets) {
                let what = format!("`{}`: {endpoint} and {other} are not apart", key.text);
                notes.error(item.at, what, "endpoints of which none lies in another");
                return None;
            }
            endpoints.push(endpoint);
            Some(endpoint)
        });
        match read {
            Ok(endpoints) if endpoints.is_empty() => {
                notes.error(value.at, format!("`{}` has no endpoints", key.text), expected);
            }
            Ok(endpoints) => _ = services.insert(name, endpoints),
            Err(_) => {}
        }
    }
    (services.len() == pairs.len()).then_some(services)
}

pub(super) fn interface(notes: &mut Notes<'_>, node: &Node) -> Option<String> {
    let expected = "the name of an interface, up to 15 letters without blanks and `/`";
    let text = &notes.text("interface", node, expected)?.text;
    // The kernel's own rule (dev_valid_name), and that of its name's length.
    let valid = (1..=15).contains(&text.len())
        && !matches!(text.as_str(), "." | "..")
        && text.chars().all(|letter| !letter.is_whitespace() && !"/:".contains(letter));
    if !valid {
        notes.error(node.at, format!("`interface`: `{text}` cannot be an interface"), expected);
    }
    valid.then(|| text.clone())
}

/// One of a few words.
pub(super) fn word<T: Copy>(
    notes: &mut Notes<'_>,
    key: &str,
    node: &Node,
    words: &[(&'static str, T)],
) -> Option<T> {
    let list: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let mut expected = list.join(" or ");
    let text = &notes.text(key, node, &expected)?.text;
    if let Some((_, value)) = words.iter().find(|(word, _)| word == text) {
        return Some(*value);
    }
    if let Some(near) = nearest(&text.to_lowercase(), words.iter().map(|(word, _)| *word)) {
        expected.push_str(&format!("; did you mean `{near}`?"));
    }
    notes.error(node.at, format!("`{key}`: `{text}` is not accepted here"), expected);
    None
}

pub(super) fn boolean(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<bool> {
    word(notes, key, node, &[("true", true), ("false", false)])
}

fn read_uplinks(notes: &mut Notes<'_>, node: &Node) -> List<Uplink> {
    let mut seen: BTreeMap<String, Place> = BTreeMap::new();
    items(notes, "uplinks", node, "a list of entries with `interface`", |notes, item| {
        let fields = notes.fields("uplinks", item, &["interface", "xdp"], &[])?;
        let name = fields.read(notes, "interface", interface);
        let xdp = fields.read(notes, "xdp", |notes, node| word(notes, "xdp", node, XdpMode::WORDS));
        if matches!(name, Field::Absent) {
            notes.error(item.at, "an uplink without `interface`", "the interface's name");
        }
        let Field::Good(interface) = name else { return None };
        let uplink =
            Uplink { interface, xdp: xdp.good(XdpMode::default)?, place: notes.place(item.at) };
        if let Some(first) = seen.get(&uplink.interface) {
            let what = format!("the uplink `{}` is listed twice", uplink.interface);
            let expected = format!("it once: it stands at {} already", first);
            notes.error(item.at, what, expected);
            return None;
        }
        seen.insert(uplink.interface.clone(), uplink.place.clone());
        Some(uplink)
    })
}

fn read_shield(notes: &mut Notes<'_>, node: &Node) -> Option<Shield> {
    let fields = notes.fields("shield", node, &["xdp", "above", "calm"], &[])?;
    let xdp = fields.read(notes, "xdp", |notes, node| word(notes, "xdp", node, ShieldMode::WORDS));
    let above = fields.read(notes, "above", |notes, node| {
        const EXPECTED: &str = "SYNs per second, a number from 1 to 4294967295";
        let text = &notes.text("above", node, EXPECTED)?.text;
        let number = text.parse().ok();
        if number.is_none() {
            notes.error(node.at, format!("`above`: `{text}` is no such number"), EXPECTED);
        }
        number
    });
    let calm = fields.read(notes, "calm", |notes, node| super::rls::duration(notes, "calm", node));
    let default = Shield::default();
    Some(Shield {
        xdp: xdp.good(|| default.xdp)?,
        above: above.good(|| default.above)?,
        calm: calm.good(|| default.calm)?,
    })
}

pub(super) fn read_pace(notes: &mut Notes<'_>, node: &Node) -> Option<Pace> {
    word(notes, "pace", node, Pace::WORDS)
}

fn read_policies(notes: &mut Notes<'_>, node: &Node) -> List<Policy> {
    items(notes, "policies", node, "a list of policies", read_policy)
}

fn read_policy(notes: &mut Notes<'_>, node: &Node) -> Option<Policy> {
    let fields = notes.fields("policies", node, &["match", "default", "max", "allow"], &[])?;
    let matches = fields.read(notes, "match", read_match);
    let default = fields.read(notes, "default", |notes, node| entries(notes, "default", node));
    let max = fields.read(notes, "max", |notes, node| entries(notes, "max", node));
    let allow = fields.read(notes, "allow", read_allow);
    if let (Field::Absent, Field::Absent, Field::Absent) = (&default, &max, &allow) {
        let expected = "`default`, `max` or `allow` beside `match`";
        notes.warning(node.at, "this policy says nothing", expected);
    }
    // A policy with a bad part is a bad policy: with half of its `match` it would be about others.
    Some(Policy {
        place: notes.place(node.at),
        matches: matches.good(Match::default)?,
        default: default.good(Vec::new)?,
        max: max.good(Vec::new)?,
        allow: allow.map(Some).good(|| None)?,
    })
}

fn read_match(notes: &mut Notes<'_>, node: &Node) -> Option<Match> {
    const KEYS: &[&str] = &["name", "namespace", "labels", "node-labels"];
    let fields = notes.fields("match", node, KEYS, &[])?;
    let mut pattern = |key| {
        fields.read(notes, key, |notes, node| {
            Some(Glob::new(&notes.text(key, node, "a pattern like `web-*`")?.text))
        })
    };
    let (name, namespace) = (pattern("name"), pattern("namespace"));
    let labels = fields.read(notes, "labels", read_labels);
    let node_labels = fields.read(notes, "node-labels", read_labels);
    // Without an unknown key, a `match` is about fewer workloads; with it ignored, about too many.
    let unknown = fields.has_unknown(KEYS);
    let matches = Match {
        name: name.map(Some).good(|| None)?,
        namespace: namespace.map(Some).good(|| None)?,
        labels: labels.good(BTreeMap::new)?,
        node_labels: node_labels.good(BTreeMap::new)?,
    };
    (!unknown).then_some(matches)
}

pub(super) fn read_labels(notes: &mut Notes<'_>, node: &Node) -> Option<BTreeMap<String, String>> {
    let pairs = notes.pairs("labels", node, "names and values")?;
    let mut labels = BTreeMap::new();
    for (key, value) in pairs {
        let text = &notes.text(&key.text, value, "the label's value, a text")?.text;
        labels.insert(key.text.clone(), text.clone());
    }
    Some(labels)
}

fn read_allow(notes: &mut Notes<'_>, node: &Node) -> Option<Allow> {
    let items = notes.list("allow", node, "a list of keys, like [connections, on-limit]")?;
    let keys = items.iter().filter_map(|item| {
        let text = &notes.text("allow", item, "a key")?.text;
        match Key::parse(text) {
            Ok(Key { kind: KeyKind::Exempt, .. }) => {
                let expected = "keys that workloads may set; `exempt` is the administrator's alone";
                notes.error(item.at, "`exempt` cannot be allowed", expected);
                None
            }
            Ok(key) => Some(key),
            Err(error) => {
                notes.problems.push(Problem::key(notes.place(item.at), &error));
                None
            }
        }
    });
    // What cannot be read is not allowed; the rest is.
    let keys = keys.collect();
    Some(Allow { place: notes.place(node.at), keys })
}

/// The entries of a layer. Bad ones stay in it as such: they have a last good value of their own.
pub(super) fn entries(notes: &mut Notes<'_>, name: &str, node: &Node) -> Option<Entries> {
    let pairs = notes.pairs(name, node, "keys like `connections` and their values")?;
    let entries: Entries = pairs
        .iter()
        .map(|(key, node)| {
            let at = notes.place(key.at);
            let (text, verbatim) = match &node.value {
                Value::Scalar(Scalar { text, verbatim, .. }) => (text.clone(), *verbatim),
                Value::Nothing => (String::new(), true),
                other => match texts(other).filter(|_| key.text == KeyKind::Exempt.name()) {
                    Some(peers) => (peers.join(", "), false),
                    None => {
                        let what = format!("`{}`: {} stands here", key.text, other.name());
                        let expected = "one text, like `100/s burst=200`";
                        let problem = Problem::error(notes.place(node.at), what, expected);
                        return Entry::without_text(&key.text, at, problem);
                    }
                },
            };
            Entry::read(&key.text, at, &text, &notes.place(node.at), verbatim)
        })
        .collect();
    notes.problems.extend(entries.iter().filter_map(Entry::problem).cloned());
    Some(entries)
}

/// The items of a list of texts.
fn texts(value: &Value) -> Option<Vec<&str>> {
    let Value::Sequence(items) = value else { return None };
    items
        .iter()
        .map(|item| match &item.value {
            Value::Scalar(scalar) => Some(scalar.text.as_str()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;

//! From the file's text to its model.
//!
//! Everything wrong is noted, and everything else is read. What cannot be understood keeps what it
//! was in `previous`, the last file that was in force; so does a workload whose entry cannot be
//! told from others. A text that is no YAML at all has no reading: the caller keeps the previous
//! file as a whole.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{
    fields::{Field, Fields, Notes},
    node_file::{
        Attach, Location, Netns, NodeFile, Pace, Shield, ShieldMode, Uplink, Workload, XdpMode,
    },
    yaml::{self, At, Node, Scalar, Value},
};
use crate::policy::{
    Administrator, Allow, Bucket, Cidr, Entries, Entry, Glob, Key, KeyKind, Layer, Match, Mode,
    Origin, Place, Policy, Port, PortName, Ports, Probes, Problem, RESETS, ServiceName, Services,
    Setting, Sourced, nearest, parse_bucket, parse_cidr,
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
        fields.read(&mut notes, "workloads", |notes, node| read_workloads(notes, node, previous));
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
fn items<T>(
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

fn cidr(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Cidr> {
    let scalar = notes.text(key, node, "an address or a CIDR like 10.0.0.0/8")?;
    parse_cidr(&scalar.text)
        .map_err(|error| {
            let place = notes.place(node.at);
            notes.problems.push(Problem::value(&place, key, &error, scalar.verbatim));
        })
        .ok()
}

type List<T> = Result<Vec<T>, Option<Vec<T>>>;

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

fn interface(notes: &mut Notes<'_>, node: &Node) -> Option<String> {
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

fn read_labels(notes: &mut Notes<'_>, node: &Node) -> Option<BTreeMap<String, String>> {
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
fn entries(notes: &mut Notes<'_>, name: &str, node: &Node) -> Option<Entries> {
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

fn read_workloads(
    notes: &mut Notes<'_>,
    node: &Node,
    previous: Option<&NodeFile>,
) -> Option<Vec<Workload>> {
    let items = notes.list("workloads", node, "a list of workloads")?;
    let previous: Vec<&Workload> = previous.iter().flat_map(|file| &file.workloads).collect();
    let before: BTreeMap<&str, &Workload> =
        previous.iter().map(|workload| (workload.name.as_str(), *workload)).collect();
    let mut workloads = Workloads::default();
    // The names in this file, those of workloads that could not be read included.
    let mut names: BTreeMap<String, At> = BTreeMap::new();
    let mut nameless: Option<usize> = None;
    for item in items {
        let first = notes.problems.len();
        let Some((fields, name)) = named(notes, item) else {
            nameless.get_or_insert(first);
            continue;
        };
        if let Some(at) = names.get(&name) {
            let expected = format!("another name: `{name}` stands at {} already", notes.place(*at));
            let problem = Problem::error(
                notes.place(item.at),
                format!("the workload `{name}` is there twice"),
                expected,
            );
            notes.problems.push(problem.effect("the first one counts"));
            continue;
        }
        names.insert(name.clone(), item.at);
        let before = before.get(name.as_str()).copied();
        if let Some(workload) = read_workload(notes, &fields, name, before)
            && workloads.has_room_for(notes, &workload, item.at)
        {
            workloads.add(workload);
        }
    }
    if let Some(note) = nameless {
        keep_the_missing(notes, note, &names, &previous, &mut workloads);
    }
    Some(workloads.list)
}

/// The workloads read so far, and whose packets they see.
#[derive(Default)]
struct Workloads {
    list: Vec<Workload>,
    /// Places and addresses, with the number of the workload that has them.
    places: BTreeMap<(Option<PathBuf>, String), usize>,
    addresses: BTreeMap<IpAddr, usize>,
}

impl Workloads {
    fn add(&mut self, workload: Workload) {
        let number = self.list.len();
        self.places.entry(place(&workload)).or_insert(number);
        for address in &workload.addresses {
            self.addresses.entry(*address).or_insert(number);
        }
        self.list.push(workload);
    }

    /// The workload that sees the same packets: one interface has one policy.
    fn at_place_of(&self, workload: &Workload) -> Option<&Workload> {
        self.list.get(*self.places.get(&place(workload))?)
    }

    /// The workload that has an address.
    fn with_address(&self, address: &IpAddr) -> Option<&Workload> {
        self.list.get(*self.addresses.get(address)?)
    }

    fn has_room_for(&self, notes: &mut Notes<'_>, workload: &Workload, at: At) -> bool {
        let name = &workload.name;
        if let Some(other) = self.at_place_of(workload) {
            let what =
                format!("`{name}` has the interface of `{}`: {}", other.name, other.location);
            let problem = Problem::error(notes.place(at), what, "one workload for each interface");
            notes.problems.push(problem.effect("the first one counts"));
            return false;
        }
        let shared = workload.addresses.iter().find_map(|address| {
            let other = self.with_address(address)?;
            Some(format!("`{name}` has the address of `{}`: {address}", other.name))
        });
        if let Some(what) = shared {
            let problem = Problem::error(notes.place(at), what, "one workload for each address");
            notes.problems.push(problem.effect("the first one counts"));
            return false;
        }
        true
    }
}

/// What tells where a workload's packets are: a namespace other than the host's, and an interface.
fn place(workload: &Workload) -> (Option<PathBuf>, String) {
    match &workload.location {
        Location::Host { interface } => (None, interface.clone()),
        Location::Namespace { netns, interface, .. } => (Some(netns.path()), interface.clone()),
        // No file names pods; each has a network of its own.
        Location::Pod(_) => (None, format!("pod {}", workload.identity)),
    }
}

/// One of the entries has no name, so it may be any of the workloads that are missing now.
fn keep_the_missing(
    notes: &mut Notes<'_>,
    note: usize,
    names: &BTreeMap<String, At>,
    previous: &[&Workload],
    workloads: &mut Workloads,
) {
    let mut kept = Vec::new();
    for &workload in previous {
        if !names.contains_key(&workload.name) && workloads.at_place_of(workload).is_none() {
            kept.push(workload.name.clone());
            workloads.add(workload.clone());
        }
    }
    if let (false, Some(problem)) = (kept.is_empty(), notes.problems.get_mut(note)) {
        let effect = format!("what the last file said of {} stays", kept.join(", "));
        problem.effect = Some(effect);
    }
}

/// The fields of a workload and its name.
fn named<'n>(notes: &mut Notes<'_>, item: &'n Node) -> Option<(Fields<'n>, String)> {
    const KEYS: &[&str] = &[
        "name",
        "interface",
        "netns",
        "attach",
        "addresses",
        "labels",
        "ports",
        "probes",
        "resets",
        "pace",
        "include-management",
        "policy",
    ];
    let fields = notes.fields("workloads", item, KEYS, &[])?;
    let name = fields.read(notes, "name", |notes, node| {
        let expected = "up to 63 letters, digits, `-`, `_` and `.`";
        let text = &notes.text("name", node, expected)?.text;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let valid = (1..=63).contains(&text.len()) && text.bytes().all(allowed);
        if !valid {
            notes.error(node.at, format!("`name`: `{text}` is no name"), expected);
        }
        valid.then(|| text.clone())
    });
    if matches!(name, Field::Absent) {
        notes.error(item.at, "a workload without `name`", "`name` in each workload");
    }
    let name = name.map(Some).good(|| None)??;
    Some((fields, name))
}

/// The rest of a workload; `None` when nobody can say where its packets are.
fn read_workload(
    notes: &mut Notes<'_>,
    fields: &Fields<'_>,
    name: String,
    before: Option<&Workload>,
) -> Option<Workload> {
    let location = match read_location(notes, fields) {
        Ok(location) => location,
        Err(noted) => {
            let effect = match before {
                Some(before) => format!("{} stays", before.location),
                None => format!("`{name}` is not limited at all"),
            };
            for note in noted {
                if let Some(problem) = notes.problems.get_mut(note) {
                    problem.effect = Some(effect.clone());
                }
            }
            before?.location.clone()
        }
    };
    let addresses = fields.read_part(notes, "addresses", read_addresses);
    let addresses = notes.settle(addresses, before.map(|before| &before.addresses), Vec::new);
    let labels = fields.read(notes, "labels", read_labels);
    let labels = notes.settle(labels, before.map(|before| &before.labels), BTreeMap::new);
    let ports = fields.read_part(notes, "ports", read_ports);
    let ports = notes.settle(ports, before.map(|before| &before.ports), Ports::new);
    let probes = fields.read(notes, "probes", |notes, node| read_probes(notes, node, &ports));
    let probes = notes.settle(probes.map(Some), before.map(|before| &before.probes), || None);
    let resets = fields.read(notes, "resets", |notes, node| bucket(notes, "resets", node));
    let resets = notes.settle(resets, before.map(|before| &before.resets), || RESETS);
    let pace = fields.read(notes, "pace", read_pace);
    let pace = notes.settle(pace.map(Some), before.map(|before| &before.pace), || None);
    let include = fields.read(notes, "include-management", |notes, node| {
        boolean(notes, "include-management", node)
    });
    let include_management =
        notes.settle(include, before.map(|before| &before.include_management), || false);
    let policy = fields.read(notes, "policy", |notes, node| entries(notes, "policy", node));
    let policy = notes.settle(policy, before.map(|before| &before.policy), Vec::new);
    Some(Workload {
        identity: name.clone(),
        name,
        namespace: None,
        remarks: Vec::new(),
        place: notes.place(fields.at),
        location,
        addresses,
        labels,
        ports,
        probes,
        resets,
        pace,
        include_management,
        policy,
        is_armed: true,
    })
}

/// Where the packets are, or the notes that say why nobody knows.
fn read_location(notes: &mut Notes<'_>, fields: &Fields<'_>) -> Result<Location, Vec<usize>> {
    let interface = fields.read(notes, "interface", interface);
    let netns = fields.read(notes, "netns", read_netns);
    let attach =
        fields.read(notes, "attach", |notes, node| word(notes, "attach", node, Attach::WORDS));
    if let (Field::Good(_), Field::Absent, Some(node)) = (&attach, &netns, fields.get("attach")) {
        let expected = "`attach` only beside `netns`";
        notes.warning(node.at, "`attach` says nothing about an interface of the host", expected);
    }
    if let (Field::Absent, Field::Absent) = (&interface, &netns) {
        let expected = "`interface`, or `netns`, or both";
        notes.error(fields.at, "nothing says where this workload's packets are", expected);
        return Err(vec![notes.problems.len() - 1]);
    }
    // A side that cannot be read is left to be found out: it changes no limit.
    let attach = attach.good(Attach::default).unwrap_or_default();
    match (interface, netns) {
        (Field::Good(interface), Field::Absent) => Ok(Location::Host { interface }),
        (Field::Good(interface), Field::Good(netns)) => {
            Ok(Location::Namespace { netns, interface, attach })
        }
        (Field::Absent, Field::Good(netns)) => {
            Ok(Location::Namespace { netns, interface: "eth0".to_owned(), attach })
        }
        (interface, netns) => Err(interface.notes().chain(netns.notes()).collect()),
    }
}

fn read_pace(notes: &mut Notes<'_>, node: &Node) -> Option<Pace> {
    word(notes, "pace", node, Pace::WORDS)
}

fn read_netns(notes: &mut Notes<'_>, node: &Node) -> Option<Netns> {
    let expected = "a name that `ip netns` lists, or an absolute path";
    let text = &notes.text("netns", node, expected)?.text;
    let named = !text.is_empty() && !text.contains('/') && text != "." && text != "..";
    if text.contains('\0') || !(named || text.starts_with('/')) {
        notes.error(node.at, format!("`netns`: `{text}` is no network namespace"), expected);
        return None;
    }
    Some(if named { Netns::Name(text.clone()) } else { Netns::Path(PathBuf::from(text)) })
}

fn read_addresses(notes: &mut Notes<'_>, node: &Node) -> List<IpAddr> {
    let expected = "an IP address";
    items(notes, "addresses", node, "a list of IP addresses", |notes, item| {
        let text = &notes.text("addresses", item, expected)?.text;
        let address = text.parse::<IpAddr>().ok();
        let valid = address
            .map(|address| address.to_canonical())
            .filter(|address| !address.is_unspecified() && !address.is_multicast());
        if valid.is_none() {
            notes.error(item.at, format!("`addresses`: `{text}` is no host's address"), expected);
        }
        valid
    })
}

fn read_ports(notes: &mut Notes<'_>, node: &Node) -> Result<Ports, Option<Ports>> {
    let pairs = notes.pairs("ports", node, "names and numbers, like {http: 80}").ok_or(None)?;
    let mut ports = Ports::new();
    for (key, value) in pairs {
        let Some(name) = PortName::parse(&key.text) else {
            let expected = "up to 15 of a-z, 0-9 and `-`, with a letter";
            notes.error(key.at, format!("`{}` cannot be a port's name", key.text), expected);
            continue;
        };
        let expected = "a port number from 1 to 65535";
        let Some(scalar) = notes.text(&key.text, value, expected) else { continue };
        match Port::parse(&scalar.text) {
            Some(port) => _ = ports.insert(name, port),
            None => {
                let what = format!("`{}`: `{}` is no port", key.text, scalar.text);
                notes.error(value.at, what, expected);
            }
        }
    }
    if ports.len() == pairs.len() { Ok(ports) } else { Err(Some(ports)) }
}

fn read_probes(notes: &mut Notes<'_>, node: &Node, ports: &Ports) -> Option<Probes> {
    let fields = notes.fields("probes", node, &["from", "ports", "rate"], &[])?;
    let from = fields.read_part(notes, "from", |notes, node| {
        items(notes, "from", node, "a list of addresses or CIDRs", |notes, item| {
            cidr(notes, "from", item)
        })
    });
    let probed = fields.read_part(notes, "ports", |notes, node| {
        items(notes, "ports", node, "a list of ports", |notes, item| probed(notes, item, ports))
    });
    let rate = fields.read(notes, "rate", |notes, node| bucket(notes, "rate", node));
    if matches!(probed, Field::Absent) {
        let expected = "`ports`, the ports that are probed";
        notes.error(node.at, "probes without ports", expected);
        return None;
    }
    Some(Probes {
        from: from.map(Some).good(|| None)?,
        ports: probed.good(Vec::new)?,
        bucket: rate.good(|| Probes::BUCKET)?,
    })
}

fn probed(notes: &mut Notes<'_>, node: &Node, ports: &Ports) -> Option<Port> {
    let expected = "a port number, or a name from this workload's `ports`";
    let text = &notes.text("ports", node, expected)?.text;
    let port = Port::parse(text).or_else(|| ports.get(text.as_str()).copied());
    if port.is_none() {
        notes.error(node.at, format!("`ports`: `{text}` is no port"), expected);
    }
    port
}

fn bucket(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<Bucket> {
    let scalar = notes.text(key, node, "a rate like `100/s burst=200`")?;
    parse_bucket(&scalar.text)
        .map_err(|error| {
            let place = notes.place(node.at);
            notes.problems.push(Problem::value(&place, key, &error, scalar.verbatim));
        })
        .ok()
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;

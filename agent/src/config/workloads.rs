//! The node file's `workloads:`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use super::{
    fields::{Field, Fields, Notes},
    node_file::{Attach, Location, Netns, NodeFile, Workload},
    read::{List, boolean, cidr, entries, interface, items, read_labels, read_pace, word},
    yaml::{At, Node},
};
use crate::policy::{Bucket, Port, PortName, Ports, Probes, Problem, RESETS, parse_bucket};

/// Reads `workloads`. What an entry does not say rightly is as in `previous`.
pub(super) fn read(
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

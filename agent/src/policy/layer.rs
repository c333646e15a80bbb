//! What each party wrote: entries, and the administrator's policies that match workloads.

use std::{collections::BTreeMap, fmt};

use super::{
    bandwidth::parse_kubernetes,
    fault::KeyError,
    key::{ANNOTATION_PREFIX, Key, KeyKind, Port, Ports},
    peer::{Cidr, Services},
    place::{Place, Problem, Sourced},
    value::{Mode, Setting},
};

/// One key and its value, read as far as they can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key as written.
    pub written: String,
    /// Where the key stands.
    pub place: Place,
    /// The key, or what is wrong with it.
    pub key: Result<Key, Box<BadKey>>,
    /// The value as written.
    pub text: String,
    /// The value, or what is wrong with it; only looked at when the key is good.
    pub value: Result<Setting, Problem>,
}

/// A key that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey {
    /// What is wrong with it.
    pub problem: Problem,
    /// The key that was probably meant.
    pub meant: Option<Key>,
}

impl Entry {
    /// Reads an entry. Without `verbatim`, the value's text differs from what stands at its place
    /// (escapes, folded lines).
    pub fn read(key: &str, key_at: Place, value: &str, value_at: &Place, verbatim: bool) -> Self {
        let parsed = Self::parse_key(key, &key_at);
        let setting = match &parsed {
            Ok(parsed) => parsed
                .parse_value(value)
                .map_err(|error| Problem::value(value_at, key, &error, verbatim)),
            Err(bad) => Err(bad.problem.clone()),
        };
        let (written, text) = (key.to_owned(), value.to_owned());
        Self { written, place: key_at, key: parsed, text, value: setting }
    }

    /// An entry whose value is no text at all.
    pub fn without_text(key: &str, key_at: Place, problem: Problem) -> Self {
        let parsed = Self::parse_key(key, &key_at);
        let (written, text) = (key.to_owned(), String::new());
        Self { written, place: key_at, key: parsed, text, value: Err(problem) }
    }

    fn parse_key(key: &str, place: &Place) -> Result<Key, Box<BadKey>> {
        Key::parse(key).map_err(|error| {
            let problem = Problem::key(place.clone(), &error);
            let meant = match error {
                KeyError::Unknown { meant, .. } => meant,
                _ => None,
            };
            Box::new(BadKey { problem, meant })
        })
    }

    /// Whether an annotation of Kubernetes said it.
    pub fn is_of_kubernetes(&self) -> bool {
        let is_its = |key: &str| KUBERNETES_BANDWIDTH.iter().any(|(name, _)| *name == key);
        matches!(&self.place, Place::Annotation { key, .. } if is_its(key))
    }

    /// What is wrong with the entry in itself, whoever wrote it.
    pub fn problem(&self) -> Option<&Problem> {
        match (&self.key, &self.value) {
            (Err(bad), _) => Some(&bad.problem),
            (Ok(_), Err(problem)) => Some(problem),
            (Ok(_), Ok(_)) => None,
        }
    }
}

/// What one party wrote, in order.
pub type Entries = Vec<Entry>;

/// What Kubernetes' own annotations are that limit bytes, and the keys that say the same.
pub const KUBERNETES_BANDWIDTH: [(&str, &str); 2] = [
    ("kubernetes.io/ingress-bandwidth", "ingress-bandwidth"),
    ("kubernetes.io/egress-bandwidth", "egress-bandwidth"),
];

/// Reads what a pod's own annotations of Kubernetes say of bytes. Where Weir's key stands beside one, that
/// counts.
pub fn kubernetes_annotations<'a>(
    object: &str,
    annotations: impl Fn(&str) -> Option<&'a str>,
) -> Entries {
    let entry = |(annotation, key): &(&str, &str)| {
        let text = annotations(annotation)?;
        if annotations(&format!("{ANNOTATION_PREFIX}{key}")).is_some() {
            return None;
        }
        let place = Place::Annotation { object: object.to_owned(), key: (*annotation).to_owned() };
        Some(match parse_kubernetes(text) {
            // As Weir's own key would say it: whoever keeps it for later reads it as such.
            Ok(bandwidth) => Entry::read(key, place.clone(), &bandwidth.to_string(), &place, false),
            Err(error) => {
                let problem = Problem::value(&place, annotation, &error, true);
                Entry { text: text.to_owned(), ..Entry::without_text(key, place, problem) }
            }
        })
    };
    KUBERNETES_BANDWIDTH.iter().filter_map(entry).collect()
}

/// Reads the annotations of an object that are Weir's; others are left alone.
pub fn annotations<'a>(
    object: &str,
    annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Entries {
    let ours =
        |(key, value): (&'a str, &'a str)| Some((key, key.strip_prefix(ANNOTATION_PREFIX)?, value));
    annotations
        .into_iter()
        .filter_map(ours)
        .map(|(whole, key, value)| {
            let place = Place::Annotation { object: object.to_owned(), key: whole.to_owned() };
            Entry::read(key, place.clone(), value, &place, true)
        })
        .collect()
}

/// What the administrator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Administrator {
    /// The mode of the whole node.
    pub mode: Option<Sourced<Mode>>,
    /// Peers that no limit holds for.
    pub exempt: Vec<Sourced<Cidr>>,
    /// What `to=service/NAME` stands for.
    pub services: Services,
    /// Policies, in order.
    pub policies: Vec<Policy>,
}

impl Administrator {
    /// What of it is said about workloads of a node with these labels.
    #[must_use]
    pub fn on_node(&self, labels: &BTreeMap<String, String>) -> Self {
        let is_meant = |policy: &Policy| {
            let mut wanted = policy.matches.node_labels.iter();
            wanted.all(|(key, value)| labels.get(key) == Some(value))
        };
        let mut here = self.clone();
        here.policies.retain(is_meant);
        here
    }
}

/// What the administrator says about the workloads that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Where it starts.
    pub place: Place,
    /// The workloads it is about.
    pub matches: Match,
    /// Fills what nobody else sets.
    pub default: Entries,
    /// What nobody may exceed.
    pub max: Entries,
    /// What workloads may set; everything when it says nothing.
    pub allow: Option<Allow>,
}

/// Which workloads a policy is about; an empty one is about all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Pattern for the name; of a pod, for its name without the namespace.
    pub name: Option<Glob>,
    /// Pattern for the Kubernetes namespace; what is in none has none that fits.
    pub namespace: Option<Glob>,
    /// Labels that the workload must have.
    pub labels: BTreeMap<String, String>,
    /// Labels that the Kubernetes node must have; a machine has none.
    pub node_labels: BTreeMap<String, String>,
}

impl Match {
    /// Whether the workload is meant.
    pub fn matches(&self, workload: &Subject<'_>) -> bool {
        let fits = |glob: &Glob| workload.namespace.is_some_and(|name| glob.matches(name));
        self.name.as_ref().is_none_or(|glob| glob.matches(workload.own_name()))
            && self.namespace.as_ref().is_none_or(fits)
            && self.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

/// The facts about a workload that policy depends on.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its name for people; of a pod `NAMESPACE/POD`.
    pub name: &'a str,
    /// The Kubernetes namespace that it is in, if it is a pod.
    pub namespace: Option<&'a str>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The ports it declares.
    pub ports: &'a Ports,
}

impl Subject<'_> {
    /// Its name without the namespace.
    fn own_name(&self) -> &str {
        let inside = |namespace| self.name.strip_prefix(namespace)?.strip_prefix('/');
        self.namespace.and_then(inside).unwrap_or(self.name)
    }
}

/// A pattern: `*` stands for any text, `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Every text is a pattern.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Whether the whole text fits.
    pub fn matches(&self, text: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let text: Vec<char> = text.chars().collect();
        let (mut p, mut t) = (0, 0);
        // The last `*`, and how much of the text it was given: on a mismatch it gets one more.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(letter) if *letter == '?' || *letter == text[t] => {
                    p += 1;
                    t += 1;
                }
                _ => match star {
                    Some((at, taken)) => {
                        star = Some((at, taken + 1));
                        p = at + 1;
                        t = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|letter| *letter == '*')
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys that workloads may set. A key without a port stands for all its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Where the list stands.
    pub place: Place,
    /// The keys.
    pub keys: Vec<Key>,
}

impl Allow {
    /// Whether a workload with these ports may set this.
    pub fn permits(&self, kind: KeyKind, port: Option<Port>, ports: &Ports) -> bool {
        self.keys.iter().filter(|key| key.kind == kind).any(|key| match &key.port {
            None => true,
            Some(allowed) => port.is_some() && allowed.resolve(ports) == port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "anything", true),
            ("web-*", "web-1", true),
            ("web-*", "web", false),
            ("*-db", "shop-db", true),
            ("*-db", "shop-db-2", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("web-?", "web-1", true),
            ("web-?", "web-12", false),
            ("", "", true),
            ("", "x", false),
            ("***x", "yyyx", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pod_is_matched_by_namespace_and_by_its_own_name() {
        let (labels, ports) = (BTreeMap::new(), Ports::new());
        let subject = |name, namespace| Subject { name, namespace, labels: &labels, ports: &ports };
        let pod = subject("shop/web-1", Some("shop"));
        let machine = subject("web-1", None);
        let glob = |pattern| Some(Glob::new(pattern));
        let matches = |name, namespace| Match { name, namespace, ..Match::default() };
        assert!(matches(glob("web-*"), None).matches(&pod));
        assert!(matches(glob("web-*"), glob("sh*")).matches(&pod));
        assert!(!matches(glob("web-*"), glob("bank")).matches(&pod));
        assert!(!matches(glob("shop*"), None).matches(&pod));
        assert!(matches(glob("web-*"), None).matches(&machine));
        assert!(!matches(None, glob("*")).matches(&machine), "a machine is in no namespace");
    }

    #[test]
    fn foreign_annotations_are_left_alone() {
        let read = annotations(
            "pod shop/web",
            [("example.com/connections", "5/s"), ("weir.dev/connections", "5/s")],
        );
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].written, "connections");
        assert_eq!(read[0].place.to_string(), "pod shop/web, annotation weir.dev/connections");
    }

    #[test]
    fn an_allowed_key_without_a_port_stands_for_all() {
        let place = Place::BuiltIn;
        let keys = vec![Key::parse("connections").unwrap(), Key::parse("on-limit.80").unwrap()];
        let allow = Allow { place, keys };
        let ports = Ports::new();
        let connections = Key::parse("connections.80").unwrap().kind;
        let on_limit = Key::parse("on-limit").unwrap().kind;
        let port = |number| Port::new(number);
        assert!(allow.permits(connections, port(80), &ports));
        assert!(allow.permits(connections, None, &ports));
        assert!(allow.permits(on_limit, port(80), &ports));
        assert!(!allow.permits(on_limit, port(81), &ports));
        assert!(!allow.permits(on_limit, None, &ports));
        assert!(!allow.permits(KeyKind::Mode, None, &ports));
    }
}

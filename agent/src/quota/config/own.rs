//! Weir's own keys: at a descriptor and at a domain.

use super::scalar;
use crate::{
    config::{
        fields::{Fields, Notes},
        yaml::{At, Node, Scalar, Value},
    },
    policy::{nearest, parse_cidr},
    quota::{
        model::{
            Access, Algorithm, CallerRule, Consistency, Further, OnStoreFailure, Own, Scope,
            Storeless,
        },
        unit::Unit,
        wildcard::Wildcard,
    },
};

/// The keys at a descriptor.
const KEYS: [&str; 8] = [
    "algorithm",
    "burst",
    "unit_multiplier",
    "scope",
    "storeless",
    "consistency",
    "on-store-failure",
    "limits",
];

const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("fixed_window", Algorithm::FixedWindow),
    ("sliding_window", Algorithm::SlidingWindow),
    ("token_bucket", Algorithm::TokenBucket),
    ("leaky_bucket", Algorithm::LeakyBucket),
];
const SCOPES: [(&str, Scope); 3] =
    [("workload", Scope::Workload), ("node", Scope::Node), ("fleet", Scope::Fleet)];
const STORELESS: [(&str, Storeless); 2] =
    [("node", Storeless::Node), ("divide", Storeless::Divide)];
const CONSISTENCIES: [(&str, Consistency); 2] =
    [("leased", Consistency::Leased), ("strict", Consistency::Strict)];
const FAILURES: [(&str, OnStoreFailure); 3] = [
    ("local", OnStoreFailure::Local),
    ("allow", OnStoreFailure::Allow),
    ("deny", OnStoreFailure::Deny),
];

/// The keys at a descriptor; `None` if none is written.
pub(super) fn at_descriptor(notes: &mut Notes<'_>, fields: &Fields<'_>) -> Option<Own> {
    KEYS.iter().find_map(|key| fields.get(key))?;
    let (algorithm, burst, unit_multiplier) = counting(notes, fields);
    let scope = word(notes, fields, "scope", &SCOPES);
    let storeless = word(notes, fields, "storeless", &STORELESS);
    let consistency = word(notes, fields, "consistency", &CONSISTENCIES);
    let on_store_failure = word(notes, fields, "on-store-failure", &FAILURES);
    let limits = fields.get("limits").map(|node| limits(notes, node)).unwrap_or_default();
    if scope.is_some_and(|scope| scope != Scope::Fleet) || fields.get("scope").is_none() {
        for key in ["storeless", "consistency", "on-store-failure"] {
            if let Some(node) = fields.get(key) {
                let what = format!("`{key}` has no meaning without a fleet");
                notes.error(node.at, what, "`scope: fleet` beside it");
            }
        }
    }
    Some(Own {
        algorithm,
        burst,
        unit_multiplier,
        scope: scope.unwrap_or_default(),
        storeless,
        consistency: consistency.unwrap_or_default(),
        on_store_failure: on_store_failure.unwrap_or_default(),
        limits,
    })
}

/// Algorithm, burst and multiplier.
fn counting(notes: &mut Notes<'_>, fields: &Fields<'_>) -> (Algorithm, Option<u32>, Option<u32>) {
    let algorithm = word(notes, fields, "algorithm", &ALGORITHMS).unwrap_or_default();
    let burst = fields.get("burst").and_then(|node| one_or_more(notes, "burst", node));
    let is_bucket = matches!(algorithm, Algorithm::TokenBucket | Algorithm::LeakyBucket);
    if let Some(node) = fields.get("burst").filter(|_| !is_bucket) {
        let expected = "`algorithm: token_bucket` or `leaky_bucket` beside it";
        notes.error(node.at, "`burst` has no meaning for a window", expected);
    }
    let multiplier = fields.get("unit_multiplier");
    let multiplier = multiplier.and_then(|node| one_or_more(notes, "unit_multiplier", node));
    (algorithm, burst, multiplier)
}

fn one_or_more(notes: &mut Notes<'_>, key: &str, node: &Node) -> Option<u32> {
    let number = scalar::number(notes, key, node)?;
    if number == 0 {
        notes.error(node.at, format!("`{key}` is 0"), "1 or more");
        return None;
    }
    Some(number)
}

fn word<T: Copy>(
    notes: &mut Notes<'_>,
    fields: &Fields<'_>,
    key: &str,
    words: &[(&'static str, T)],
) -> Option<T> {
    let node = fields.get(key)?;
    let names = || words.iter().map(|(name, _)| *name);
    let list = names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let scalar = notes.text(key, node, &format!("one of {list}"))?;
    let found = words.iter().find(|(name, _)| *name == scalar.text);
    if found.is_none() {
        let expected = match nearest(&scalar.text, names()) {
            Some(near) => format!("`{near}`"),
            None => format!("one of {list}"),
        };
        notes.error(node.at, format!("`{key}`: `{}` is unknown", scalar.text), expected);
    }
    found.map(|(_, value)| *value)
}

fn limits(notes: &mut Notes<'_>, node: &Node) -> Vec<Further> {
    const KEYS: &[&str] = &["unit", "requests_per_unit", "unit_multiplier", "algorithm", "burst"];
    let items = notes.list("limits", node, "a list of limits").unwrap_or_default();
    let mut limits = Vec::new();
    for item in items {
        let Some(fields) = notes.fields("limits", item, KEYS, &[]) else { continue };
        let (algorithm, burst, unit_multiplier) = counting(notes, &fields);
        let unit = fields.get("unit").and_then(|node| scalar::text(notes, "unit", node));
        let requests = fields.get("requests_per_unit");
        let requests = requests.and_then(|node| scalar::number(notes, "requests_per_unit", node));
        match (unit.as_deref().and_then(Unit::from_name), requests) {
            (Some(unit), Some(requests)) => {
                limits.push(Further { requests, unit, unit_multiplier, algorithm, burst });
            }
            _ => notes.error(
                item.at,
                "a limit needs a unit and a number",
                "`unit: day` and `requests_per_unit: 1000`",
            ),
        }
    }
    limits
}

/// The keys at a domain.
pub(super) fn at_domain(notes: &mut Notes<'_>, fields: &Fields<'_>) -> Access {
    Access {
        callers: fields.get("callers").map(|node| callers(notes, node)).unwrap_or_default(),
        owners: fields.get("owners").map(|node| owners(notes, node)).unwrap_or_default(),
        max_hits_addend: fields
            .get("max-hits-addend")
            .and_then(|node| one_or_more(notes, "max-hits-addend", node))
            .map(u64::from),
    }
}

fn owners(notes: &mut Notes<'_>, node: &Node) -> Vec<String> {
    let expected = "a list of namespaces";
    let items = notes.list("owners", node, expected).unwrap_or_default();
    if items.is_empty() {
        notes.error(node.at, "`owners` is empty", "a namespace, or no `owners` for everybody");
    }
    let name = |item| notes.text("owners", item, expected).map(|scalar| scalar.text.clone());
    items.iter().filter_map(name).collect()
}

fn callers(notes: &mut Notes<'_>, node: &Node) -> Vec<CallerRule> {
    const KINDS: &[&str] = &["namespace", "workload", "tls-name", "address", "uid"];
    let items = notes.list("callers", node, "a list like `- namespace: NAME`").unwrap_or_default();
    if items.is_empty() {
        notes.error(node.at, "`callers` is empty", "a caller, or no `callers` for everybody");
    }
    let mut callers = Vec::new();
    for item in items {
        if notes.fields("callers", item, KINDS, &[]).is_none() {
            continue;
        }
        let Value::Mapping(pairs) = &item.value else { continue };
        let [(key, node)] = pairs.as_slice() else {
            notes.error(item.at, "a caller is one fact", format!("one of {}", KINDS.join(", ")));
            continue;
        };
        if let Some(scalar) = notes.text(&key.text, node, "a text") {
            callers.extend(caller(notes, &key.text, node.at, scalar));
        }
    }
    callers
}

fn caller(notes: &mut Notes<'_>, kind: &str, at: At, scalar: &Scalar) -> Option<CallerRule> {
    let text = &scalar.text;
    match kind {
        "namespace" => Some(CallerRule::Namespace(text.clone())),
        "workload" if text.contains('/') => Some(CallerRule::Workload(Wildcard::new(text))),
        "workload" => {
            let what = format!("`workload`: `{text}` has no namespace");
            notes.error(at, what, "`NAMESPACE/NAME`, where `*` stands for anything");
            None
        }
        "tls-name" => Some(CallerRule::TlsName(Wildcard::new(text))),
        "address" => match parse_cidr(text) {
            Ok(cidr) => Some(CallerRule::Address(cidr)),
            Err(error) => {
                notes.error(at, format!("`address`: {}", error.what()), error.fault.expected());
                None
            }
        },
        "uid" => match text.parse() {
            Ok(uid) => Some(CallerRule::Uid(uid)),
            Err(_) => {
                notes.error(at, format!("`uid`: `{text}` is no user"), "a number like `1000`");
                None
            }
        },
        // `fields` told of it.
        _ => None,
    }
}

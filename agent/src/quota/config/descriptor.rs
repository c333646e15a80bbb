//! Descriptors of a quota file.

use std::collections::HashMap;

use envoy_types::pb::google::protobuf::{ListValue, NullValue, Struct, Value, value::Kind};

use super::{own, scalar};
use crate::{
    config::{
        fields::{Fields, Notes},
        yaml::{self, Node},
    },
    quota::{
        model::{Amount, Descriptor, Limit},
        unit::Unit,
    },
};

const KEYS: &[&str] = &[
    "key",
    "value",
    "descriptors",
    "rate_limit",
    "shadow_mode",
    "quota_mode",
    "detailed_metric",
    "value_to_metric",
    "share_threshold",
    "metadata",
];

/// The same with Weir's own keys.
const ALL_KEYS: &[&str] = &[
    "key",
    "value",
    "descriptors",
    "rate_limit",
    "shadow_mode",
    "quota_mode",
    "detailed_metric",
    "value_to_metric",
    "share_threshold",
    "metadata",
    "algorithm",
    "burst",
    "unit_multiplier",
    "scope",
    "storeless",
    "consistency",
    "on-store-failure",
    "limits",
];

const LIMIT_KEYS: &[&str] = &["unit", "requests_per_unit", "unlimited", "name", "replaces"];

const UNITS: &str = "one of second, minute, hour, day, week, month, year";

/// A level, with Weir's own keys or without.
pub(super) fn list(notes: &mut Notes<'_>, node: &Node, with_own: bool) -> Vec<Descriptor> {
    // The original reads `descriptors:` and nothing behind it as an empty list.
    if node.value == yaml::Value::Nothing {
        return Vec::new();
    }
    let items = notes.list("descriptors", node, "a list of descriptors").unwrap_or_default();
    items.iter().filter_map(|item| descriptor(notes, item, with_own)).collect()
}

fn descriptor(notes: &mut Notes<'_>, node: &Node, with_own: bool) -> Option<Descriptor> {
    let keys = if with_own { ALL_KEYS } else { KEYS };
    let fields = notes.fields("descriptors", node, keys, &[])?;
    let text = |notes: &mut Notes<'_>, key| {
        fields.get(key).map_or(Some(String::new()), |node| scalar::text(notes, key, node))
    };
    let (key, value) = (text(notes, "key"), text(notes, "value"));
    if key.as_ref().is_some_and(String::is_empty) {
        let at = fields.get("key").map_or(node.at, |node| node.at);
        notes.error(at, "the descriptor has no key", "`key: NAME`");
    }
    let flags = ["shadow_mode", "quota_mode", "detailed_metric", "value_to_metric"];
    let [shadow_mode, quota_mode, detailed_metric, value_to_metric] =
        flags.map(|key| flag(notes, &fields, key));
    let share_threshold = flag(notes, &fields, "share_threshold");
    let limit = fields.get("rate_limit").and_then(|node| limit(notes, node));
    let metadata = fields.get("metadata").and_then(|node| metadata(notes, node));
    let descriptors =
        fields.get("descriptors").map(|node| list(notes, node, with_own)).unwrap_or_default();
    let own = if with_own { own::at_descriptor(notes, &fields) } else { None };
    let descriptor = Descriptor {
        place: notes.place(node.at),
        key: key?,
        value: value?,
        limit,
        descriptors,
        shadow_mode,
        quota_mode,
        detailed_metric,
        value_to_metric,
        share_threshold,
        metadata,
        own: own.unwrap_or_default(),
        own_place: notes.place(node.at),
    };
    if share_threshold && !descriptor.composite().contains('*') {
        let at = fields.get("share_threshold").map_or(node.at, |node| node.at);
        let what =
            format!("`share_threshold` stands at `{}`, which has no `*`", descriptor.composite());
        notes.error(at, what, "a value with a `*`, or no `share_threshold`");
    }
    Some(descriptor)
}

fn flag(notes: &mut Notes<'_>, fields: &Fields<'_>, key: &str) -> bool {
    let node = fields.get(key).filter(|node| node.value != yaml::Value::Nothing);
    node.and_then(|node| scalar::truth(notes, key, node)).unwrap_or(false)
}

fn limit(notes: &mut Notes<'_>, node: &Node) -> Option<Limit> {
    if node.value == yaml::Value::Nothing {
        return None;
    }
    let fields = notes.fields("rate_limit", node, LIMIT_KEYS, &[])?;
    let unlimited = flag(notes, &fields, "unlimited");
    let requests = match fields.get("requests_per_unit") {
        Some(node) => scalar::number(notes, "requests_per_unit", node),
        // As the original: a limit of 0, which refuses everything.
        None => Some(0),
    };
    let word = match fields.get("unit") {
        Some(node) => scalar::text(notes, "unit", node),
        None => Some(String::new()),
    };
    let unit = word.as_deref().and_then(Unit::from_name);
    let at = fields.get("unit").map_or(node.at, |node| node.at);
    if unlimited && unit.is_some() {
        notes.error(at, "an unlimited `rate_limit` has a unit", "`unlimited: true` alone");
    }
    if !unlimited
        && unit.is_none()
        && let Some(word) = &word
    {
        let what = if word.is_empty() {
            "the `rate_limit` has no unit".to_owned()
        } else {
            format!("`unit`: `{word}` is no unit")
        };
        notes.error(at, what, UNITS);
    }
    let name = match fields.get("name") {
        Some(node) => scalar::text(notes, "name", node)?,
        None => String::new(),
    };
    let replaces =
        fields.get("replaces").map(|node| replaces(notes, node, &name)).unwrap_or_default();
    let amount = match (unlimited, requests, unit) {
        (true, ..) => Amount::Unlimited,
        (false, Some(requests), Some(unit)) => Amount::PerUnit { requests, unit },
        (false, ..) => return None,
    };
    Some(Limit { amount, name, replaces })
}

fn replaces(notes: &mut Notes<'_>, node: &Node, own: &str) -> Vec<String> {
    if node.value == yaml::Value::Nothing {
        return Vec::new();
    }
    let items = notes.list("replaces", node, "a list like `- name: NAME`").unwrap_or_default();
    let mut names = Vec::new();
    for item in items {
        let Some(fields) = notes.fields("replaces", item, &["name"], &[]) else { continue };
        let name = match fields.get("name") {
            Some(node) => scalar::text(notes, "name", node),
            None => Some(String::new()),
        };
        let Some(name) = name else { continue };
        if name.is_empty() {
            notes.error(item.at, "an entry of `replaces` has no name", "`name: NAME`");
        } else if name == own {
            let what = format!("the limit `{name}` replaces itself");
            notes.error(item.at, what, "the names of other limits");
        } else {
            names.push(name);
        }
    }
    names
}

fn metadata(notes: &mut Notes<'_>, node: &Node) -> Option<Struct> {
    if node.value == yaml::Value::Nothing {
        return None;
    }
    let pairs = notes.pairs("metadata", node, "keys and values")?;
    Some(structure(pairs))
}

fn structure(pairs: &[(yaml::Key, Node)]) -> Struct {
    let fields = pairs.iter().map(|(key, node)| (key.text.clone(), value(node)));
    Struct { fields: fields.collect::<HashMap<_, _>>() }
}

/// Anything, typed as YAML types it.
fn value(node: &Node) -> Value {
    let kind = match &node.value {
        yaml::Value::Nothing => Kind::NullValue(NullValue::NullValue as i32),
        yaml::Value::Scalar(scalar) if scalar.plain => plain(&scalar.text),
        yaml::Value::Scalar(scalar) => Kind::StringValue(scalar.text.clone()),
        yaml::Value::Sequence(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(value).collect() })
        }
        yaml::Value::Mapping(pairs) => Kind::StructValue(structure(pairs)),
    };
    Value { kind: Some(kind) }
}

fn plain(text: &str) -> Kind {
    if let Some(truth) = scalar::truth_of(text).filter(|_| text.len() > 1) {
        return Kind::BoolValue(truth);
    }
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    match number.filter(|_| scalar::is_float(text) || text.parse::<i64>().is_ok()) {
        Some(number) => Kind::NumberValue(number),
        None => Kind::StringValue(text.to_owned()),
    }
}

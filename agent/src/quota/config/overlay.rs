//! Overlays: Weir's own keys for a domain that another file, or xDS, describes.
//!
//! An overlay repeats the part of the tree that it adds to, so the quota file itself stays one that
//! the original reads: one unknown key makes it refuse everything, and a mixed fleet shares a file.

use std::collections::HashMap;

use super::{own, scalar};
use crate::{
    config::{
        fields::{Fields, Notes},
        yaml::{Node, Value},
    },
    policy::{Place, Problem},
    quota::model::{Access, Configuration, Descriptor, Own},
};

/// What one overlay says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Overlay {
    domain: String,
    place: Place,
    access: Access,
    levels: Vec<Level>,
}

#[derive(Clone, Debug, PartialEq)]
struct Level {
    place: Place,
    composite: String,
    own: Option<Own>,
    /// `scope` is one of its keys.
    says_scope: bool,
    levels: Vec<Level>,
}

pub(super) const KEYS: &[&str] =
    &["format", "domain", "descriptors", "callers", "owners", "max-hits-addend"];

pub(super) fn read(
    notes: &mut Notes<'_>,
    root: &Node,
    fields: &Fields<'_>,
    domain: String,
) -> Overlay {
    Overlay {
        domain,
        place: notes.place(root.at),
        access: own::at_domain(notes, fields),
        levels: fields.get("descriptors").map(|node| levels(notes, node)).unwrap_or_default(),
    }
}

fn levels(notes: &mut Notes<'_>, node: &Node) -> Vec<Level> {
    if node.value == Value::Nothing {
        return Vec::new();
    }
    let items = notes.list("descriptors", node, "a list of descriptors").unwrap_or_default();
    items.iter().filter_map(|item| level(notes, item)).collect()
}

fn level(notes: &mut Notes<'_>, node: &Node) -> Option<Level> {
    const KEYS: &[&str] = &[
        "key",
        "value",
        "descriptors",
        "algorithm",
        "burst",
        "unit_multiplier",
        "scope",
        "storeless",
        "consistency",
        "on-store-failure",
        "limits",
    ];
    let fields = notes.fields("descriptors", node, KEYS, &[])?;
    let mut text = |key| match fields.get(key) {
        Some(node) => scalar::text(notes, key, node),
        None => Some(String::new()),
    };
    let (key, value) = (text("key")?, text("value")?);
    if key.is_empty() {
        notes.error(node.at, "the descriptor has no key", "`key: NAME`");
        return None;
    }
    Some(Level {
        place: notes.place(node.at),
        composite: if value.is_empty() { key } else { format!("{key}_{value}") },
        own: own::at_descriptor(notes, &fields),
        says_scope: fields.get("scope").is_some(),
        levels: fields.get("descriptors").map(|node| levels(notes, node)).unwrap_or_default(),
    })
}

/// Which domains have two overlays.
pub(super) fn written_twice(overlays: &[Overlay]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut known: HashMap<&str, &Place> = HashMap::new();
    for overlay in overlays {
        if let Some(first) = known.insert(&overlay.domain, &overlay.place) {
            let what = format!("the domain `{}` has two overlays", overlay.domain);
            let expected = format!("one: it stands at {first} already");
            problems.push(Problem::error(overlay.place.clone(), what, expected));
        }
    }
    problems
}

/// Adds overlays to a configuration that a `source` described, each to a domain of its own. What names
/// nothing there is a problem.
pub(super) fn lay(
    configuration: &mut Configuration,
    overlays: &[Overlay],
    source: &str,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for overlay in overlays {
        let mut domains: Vec<_> = configuration
            .domains
            .iter_mut()
            .filter(|domain| domain.name == overlay.domain)
            .collect();
        if domains.is_empty() {
            let what = format!("no {source} describes the domain `{}`", overlay.domain);
            problems.push(Problem::error(
                overlay.place.clone(),
                what,
                "a domain that one describes",
            ));
        }
        // Of merged domains, the first one's access holds.
        for domain in &mut domains {
            domain.access = overlay.access.clone();
        }
        let roots = domains.into_iter().map(|domain| &mut domain.descriptors).collect();
        lay_levels(roots, &overlay.levels, &overlay.domain, source, &mut problems);
    }
    problems
}

fn lay_levels(
    mut bases: Vec<&mut Vec<Descriptor>>,
    levels: &[Level],
    path: &str,
    source: &str,
    problems: &mut Vec<Problem>,
) {
    for level in levels {
        let path = format!("{path}.{}", level.composite);
        let found: Vec<_> = bases
            .iter_mut()
            .flat_map(|base| base.iter_mut())
            .filter(|descriptor| descriptor.composite() == level.composite)
            .collect();
        if found.is_empty() {
            let what = format!("there is no descriptor `{path}`");
            let expected = format!("a descriptor of the domain's {source}");
            problems.push(Problem::error(level.place.clone(), what, expected));
            continue;
        }
        let mut below = Vec::new();
        for descriptor in found {
            if let Some(own) = &level.own {
                // What a source says for all its limits holds where nothing else is said.
                let scope = if level.says_scope { own.scope } else { descriptor.own.scope };
                descriptor.own = Own { scope, ..own.clone() };
                // Problems with these keys stand where they are written.
                descriptor.own_place = level.place.clone();
            }
            below.push(&mut descriptor.descriptors);
        }
        lay_levels(below, &level.levels, &path, source, problems);
    }
}

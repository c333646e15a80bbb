//! Matching, against a reference that follows the original's text: maps of glued keys.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::quota::model::{self, Amount, Configuration, Descriptor, Limit, Own};

/// A level as the original keeps it.
#[derive(Default)]
struct Reference {
    levels: BTreeMap<String, Reference>,
    wildcards: Vec<String>,
    limit: Option<u32>,
}

impl Reference {
    fn of(descriptors: &[Descriptor]) -> Self {
        let mut this = Self::default();
        for descriptor in descriptors {
            let glued = descriptor.composite();
            let mut below = Self::of(&descriptor.descriptors);
            below.limit = descriptor.limit.as_ref().map(|limit| match limit.amount {
                Amount::PerUnit { requests, .. } => requests,
                Amount::Unlimited => u32::MAX,
            });
            if glued.contains('*') {
                this.wildcards.push(glued.clone());
            }
            this.levels.insert(glued, below);
        }
        this
    }

    /// The number of the limit, and the values as they stand in the count's name.
    fn find(&self, entries: &[Entry]) -> Option<u32> {
        let (first, rest) = entries.split_first()?;
        let glued = format!("{}_{}", first.key, first.value);
        let next = self
            .levels
            .get(&glued)
            .or_else(|| {
                let wildcard = self.wildcards.iter().find(|wildcard| fits(wildcard, &glued))?;
                self.levels.get(wildcard)
            })
            .or_else(|| self.levels.get(&first.key))?;
        if rest.is_empty() { next.limit } else { next.find(rest) }
    }
}

/// Prefix, suffix, and what is between from left to right.
fn fits(pattern: &str, text: &str) -> bool {
    let parts: Vec<_> = pattern.split('*').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let literals: usize = parts.iter().map(|part| part.len()).sum();
    if literals > text.len() || !text.starts_with(first) || !text.ends_with(last) {
        return false;
    }
    let mut rest = &text[first.len()..text.len() - last.len()];
    for part in &parts[1..parts.len() - 1] {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

fn descriptor(
    key: String,
    value: String,
    limit: Option<u32>,
    below: Vec<Descriptor>,
) -> Descriptor {
    Descriptor {
        place: Place::BuiltIn,
        key,
        value,
        limit: limit.map(|requests| Limit {
            amount: Amount::PerUnit { requests, unit: Unit::Minute },
            name: String::new(),
            replaces: Vec::new(),
        }),
        descriptors: below,
        shadow_mode: false,
        quota_mode: false,
        detailed_metric: false,
        value_to_metric: false,
        share_threshold: false,
        metadata: None,
        own: Own::default(),
        own_place: Place::BuiltIn,
    }
}

/// Few letters, so that keys glue together in many ways.
fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    let one = |below: BoxedStrategy<Vec<Descriptor>>| {
        ("(a|b|a_b|a\\*)", "(|a|b|a_b|b_a|\\*|a\\*|\\*b|a\\*b)", any::<Option<u32>>(), below)
            .prop_map(|(key, value, limit, below)| descriptor(key, value, limit, below))
    };
    let unique = |level: Vec<Descriptor>| {
        let mut seen = std::collections::BTreeSet::new();
        level.into_iter().filter(|one| seen.insert(one.composite())).collect::<Vec<_>>()
    };
    let leaf = proptest::collection::vec(one(Just(Vec::new()).boxed()), 0..4).prop_map(unique);
    leaf.boxed().prop_recursive(2, 24, 5, move |below| {
        proptest::collection::vec(one(below.boxed()), 0..5).prop_map(unique)
    })
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = ("(a|b|a_b|a_b_a|c)", "(|a|b|ab|a_b|b_a|\\*|aab|c)")
        .prop_map(|(key, value)| Entry { key, value });
    proptest::collection::vec(entry, 0..4)
}

fn compiled(descriptors: Vec<Descriptor>) -> Rules {
    let domain = model::Domain {
        name: "d".to_owned(),
        place: Place::BuiltIn,
        descriptors,
        access: Access::default(),
    };
    compile(&Configuration { domains: vec![domain] }, Settings::default(), None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn finds_what_maps_of_glued_keys_find(descriptors in descriptors(), entries in entries()) {
        let expected = Reference::of(&descriptors).find(&entries);
        let rules = compiled(descriptors);
        let domain = rules.domain("d").unwrap();
        let found = rules.find(domain, &entries).and_then(|(id, _)| rules.rule(id));
        prop_assert_eq!(found.map(|rule| rule.limits[0].requests_per_unit), expected);
    }
}

#[test]
fn names_that_differ_are_different_domains() {
    let rules = compiled(Vec::new());
    assert!(rules.domain("d").is_some());
    assert!(rules.domain("").is_none() && rules.domain("dd").is_none());
}

#[test]
fn more_levels_than_can_be_walked_are_refused_when_compiled() {
    let nest = |levels| {
        let leaf = descriptor("k".to_owned(), String::new(), Some(1), Vec::new());
        (1..levels)
            .fold(leaf, |below, _| descriptor("k".to_owned(), String::new(), None, vec![below]))
    };
    let entry = Entry { key: "k".to_owned(), value: "v".to_owned() };
    let rules = compiled(vec![nest(DEEPEST)]);
    let domain = rules.domain("d").unwrap();
    assert!(rules.find(domain, &vec![entry.clone(); DEEPEST]).is_some());
    assert!(rules.find(domain, &vec![entry; DEEPEST + 1]).is_none());
    let domain = model::Domain {
        name: "d".to_owned(),
        place: Place::BuiltIn,
        descriptors: vec![nest(DEEPEST + 1)],
        access: Access::default(),
    };
    let configuration = Configuration { domains: vec![domain] };
    let problems = compile(&configuration, Settings::default(), None).unwrap_err();
    assert!(problems[0].what.contains("16 levels"), "{problems:?}");
}

//! A configuration, compiled: a table of nodes that a request walks without allocating.
//!
//! The original keeps a map from `key` or `key_value` to the next level in each level, and glues the
//! entries of each request into keys of these maps. Here all levels share one table whose hash reads
//! an entry piece by piece. Gluing has visible effects (the entry `a`, `b_c` finds the descriptor with
//! key `a_b` and value `c`), so what is compared is the glued text all the same.

mod compile;

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::service::ratelimit::v3::rate_limit_response::RateLimit, google::protobuf::Struct,
};

pub use self::compile::compile;
use super::{
    ahead,
    engine::Meter,
    model::{Access, Consistency, OnStoreFailure, Scope},
    overflow::Overflow,
    series::Series,
    settings::Settings,
    table::Table,
    unit::Unit,
    wildcard::{Parts, Wildcard, joined_is},
};
use crate::policy::Place;

/// Levels of descriptors: requests with more entries match nothing.
pub const DEEPEST: usize = 16;

/// All domains, compiled.
#[derive(Debug)]
pub struct Rules {
    pub(super) settings: Settings,
    pub(super) domains: Vec<Domain>,
    nodes: Vec<Node>,
    /// The nodes' names, one after another: nodes are small and stay in the caches.
    names: String,
    table: Table,
    /// The children with a `*` of each node, in the order of the file.
    wildcards: HashMap<NodeId, Vec<(Wildcard, NodeId)>>,
    /// In the order of the configuration.
    pub(super) rules: Vec<Rule>,
}

/// A domain.
#[derive(Debug)]
pub struct Domain {
    /// Its name.
    pub name: Box<str>,
    /// Who may ask.
    pub access: Access,
    /// What is counted when there is no series for it.
    pub(super) others: Arc<Series>,
    /// For limits in requests, by unit, when there is no place for their counts.
    pub(super) overflow: [Arc<Overflow>; Unit::ALL.len()],
    root: NodeId,
}

type NodeId = u32;

/// One level of descriptors.
#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// `key` or `key_value`: from where and to where in the names.
    composite: (u32, u32),
    /// Bytes of the key in it.
    key: u32,
    rule: Option<u32>,
    children: Children,
    share_threshold: bool,
    value_to_metric: bool,
}

/// What stands below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Children {
    None,
    /// The next level of most files, without a `*`. It stands right behind its parent, and so does its
    /// name: nothing has to be looked up in the table.
    One,
    /// They are in the table.
    Many,
    /// They are in the table, and those with a `*` among the wildcards, too.
    ManyWithWildcards,
}

/// What holds for a descriptor. What a decision reads stands first, in one cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Rule {
    /// The limits; none for "unlimited". The first is the descriptor's own, others are further ones.
    pub meters: Box<[Meter]>,
    /// The limits as responses tell them, one for each meter. An unlimited rule has one too, of which
    /// only the name means something.
    pub limits: Box<[RateLimit]>,
    /// Numbers of the names that it replaces.
    pub(super) replaces: Box<[u32]>,
    pub(super) series: Arc<Series>,
    /// Whether everything is admitted.
    pub unlimited: bool,
    /// Counted, not enforced.
    pub shadow_mode: bool,
    /// May be over while another quota is not.
    pub quota_mode: bool,
    /// The name of its series depends on the request.
    pub(super) is_named_by_values: bool,
    /// Who shares the count.
    pub scope: Scope,
    /// For `Scope::Fleet`: how exact.
    pub consistency: Consistency,
    /// For `Scope::Fleet`: what holds without an answer.
    pub on_store_failure: OnStoreFailure,
    pub(super) detailed_metric: bool,
    /// For counts that there is no place for, one word for each meter.
    pub(super) overflow: Arc<Overflow>,
    /// For dynamic metadata.
    pub metadata: Option<Struct>,
    /// Where it stands.
    pub place: Place,
    /// Number of its name, if it has one.
    pub(super) name: Option<u32>,
}

const _: () = assert!(std::mem::offset_of!(Rule, overflow) == 64);

impl Rule {
    /// Brings along what a decision reads of the rule, while it still hashes the name of its count.
    fn fetch(&self) {
        self.meters.iter().take(1).for_each(ahead::fetch);
        self.limits.iter().take(1).for_each(ahead::fetch);
        ahead::fetch(&self.series.counts);
    }
}

/// The way of a descriptor through the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Where it ends. The levels above are this one's parents.
    last: NodeId,
    how: [Matched; DEEPEST],
    length: u8,
}

impl Path {
    fn how(&self, index: usize) -> Option<Matched> {
        self.how.iter().take(self.length.into()).nth(index).copied()
    }
}

/// A level's key, and its value if it has one.
pub(super) type Level<'a> = (&'a str, Option<&'a str>);

/// How a level was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matched {
    Value,
    Wildcard,
    Key,
}

/// An entry of a request's descriptor.
pub(super) type Entry =
    envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;

impl Rules {
    /// The domain of a name.
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        let index = self.table.find(ROOT, [name, "", ""], |index| {
            self.domains.get(index as usize).map(|domain| (ROOT, &*domain.name))
        })?;
        self.domains.get(index as usize)
    }

    pub(super) fn rule(&self, id: u32) -> Option<&Rule> {
        self.rules.get(id as usize)
    }

    fn child(&self, parent: NodeId, children: Children, parts: Parts<'_>) -> Option<NodeId> {
        match children {
            Children::None => None,
            Children::One => {
                let id = parent + 1;
                joined_is(parts, self.composite(self.node(id)?)).then_some(id)
            }
            Children::Many | Children::ManyWithWildcards => self.table.find(parent, parts, |id| {
                self.node(id).map(|node| (node.parent, self.composite(node)))
            }),
        }
    }

    /// A node's `key` or `key_value`.
    fn composite(&self, node: &Node) -> &str {
        let (from, to) = node.composite;
        self.names.get(from as usize..to as usize).unwrap_or_default()
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// The rule for a descriptor, by the original's way of matching: at each level the entry's key
    /// and value, else the first wildcard that fits, else the key alone; never back; and the rule
    /// counts only if it stands where the descriptor ends.
    pub(super) fn find(&self, domain: &Domain, entries: &[Entry]) -> Option<(u32, Path)> {
        let mut path = Path { last: domain.root, how: [Matched::Key; DEEPEST], length: 0 };
        for entry in entries {
            let how = path.how.get_mut(usize::from(path.length))?;
            (path.last, *how) = self.next(path.last, entry)?;
            path.length += 1;
        }
        let id = self.node(path.last)?.rule?;
        self.rule(id)?.fetch();
        Some((id, path))
    }

    fn next(&self, parent: NodeId, entry: &Entry) -> Option<(NodeId, Matched)> {
        let composite = [&*entry.key, "_", &*entry.value];
        let children = self.node(parent)?.children;
        if let Some(id) = self.child(parent, children, composite) {
            return Some((id, Matched::Value));
        }
        if children == Children::ManyWithWildcards
            && let Some(wildcards) = self.wildcards.get(&parent)
            && let Some((_, id)) = wildcards.iter().find(|(pattern, _)| pattern.matches(composite))
        {
            return Some((*id, Matched::Wildcard));
        }
        self.child(parent, children, [&*entry.key, "", ""]).map(|id| (id, Matched::Key))
    }

    /// What stands in the count's name for the value of an entry: its value, or the pattern, if all
    /// that fits the pattern shares a count.
    pub(super) fn counted_value<'a>(
        &'a self,
        path: &Path,
        index: usize,
        entry: &'a Entry,
    ) -> &'a str {
        self.shared_pattern(path, index, entry).unwrap_or(&entry.value)
    }

    /// The rules of a domain, each with the keys and values that lead to it; `None` for any value.
    pub(super) fn of_domain<'a>(&'a self, domain: &Domain) -> Vec<(&'a Rule, Vec<Level<'a>>)> {
        let mut found = Vec::new();
        for node in &self.nodes {
            let Some(rule) = node.rule.and_then(|id| self.rule(id)) else { continue };
            let mut levels = Vec::new();
            let mut at = node;
            while at.parent != ROOT {
                let (key, rest) =
                    self.composite(at).split_at_checked(at.key as usize).unwrap_or_default();
                levels.push((key, rest.strip_prefix('_')));
                if at.parent == domain.root {
                    levels.reverse();
                    found.push((rule, levels));
                    break;
                }
                let Some(above) = self.node(at.parent) else { break };
                at = above;
            }
        }
        found
    }

    fn level(&self, path: &Path, index: usize) -> Option<&Node> {
        let mut node = self.node(path.last)?;
        for _ in index + 1..path.length.into() {
            node = self.node(node.parent)?;
        }
        Some(node)
    }

    fn shared_pattern<'a>(&'a self, path: &Path, index: usize, entry: &Entry) -> Option<&'a str> {
        if path.how(index) != Some(Matched::Wildcard) {
            return None;
        }
        let node = self.level(path, index)?;
        node.share_threshold.then(|| without_key(self.composite(node), &entry.key))
    }

    /// How a level of a rule's path stands in the name of its series, in pieces.
    pub(super) fn series_level<'a>(
        &'a self,
        rule: &Rule,
        path: &Path,
        index: usize,
        entry: &'a Entry,
    ) -> Parts<'a> {
        let with_value = |value: &'a str| {
            if value.is_empty() { [&*entry.key, "", ""] } else { [&*entry.key, "_", value] }
        };
        if let Some(pattern) = self.shared_pattern(path, index, entry) {
            return [&entry.key, "_", pattern];
        }
        if rule.detailed_metric {
            return with_value(&entry.value);
        }
        match self.level(path, index).zip(path.how(index)) {
            Some((_, Matched::Value)) => with_value(&entry.value),
            Some((node, _)) if node.value_to_metric => with_value(&entry.value),
            Some((node, Matched::Wildcard)) => {
                [&entry.key, "_", without_key(self.composite(node), &entry.key)]
            }
            _ => [&entry.key, "", ""],
        }
    }
}

/// `key_pattern` without `key_`. A pattern that spans the key stays whole.
fn without_key<'a>(composite: &'a str, key: &str) -> &'a str {
    composite.strip_prefix(key).and_then(|rest| rest.strip_prefix('_')).unwrap_or(composite)
}

/// A parent that no node has: what stands below it are domains.
const ROOT: NodeId = NodeId::MAX;

#[cfg(test)]
mod tests;

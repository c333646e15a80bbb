//! A configuration, compiled: a table of nodes that a request walks without allocating.
//!
//! The original keeps a map from `key` or `key_value` to the next level in each level, and glues the
//! entries of each request into keys of these maps. Here all levels share one table whose hash reads
//! an entry piece by piece. Gluing has visible effects (the entry `a`, `b_c` finds the descriptor with
//! key `a_b` and value `c`), so what is compared is the glued text all the same.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::service::ratelimit::v3::rate_limit_response::RateLimit, google::protobuf::Struct,
};

use super::{
    ahead,
    engine::{Impossible, Meter},
    model::{
        self, Access, Algorithm, Amount, Configuration, Consistency, OnStoreFailure, Scope,
        Storeless,
    },
    overflow::Overflow,
    series::Series,
    settings::Settings,
    table::{NONE, Table},
    unit::Unit,
    wildcard::{Parts, Wildcard, joined_is},
};
use crate::policy::{Place, Problem};

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

/// Compiles a configuration. What the rules before it counted, and the counts that there was no place
/// for, go on in the rules of the same name.
///
/// Errors are what only shows when all files are known: domains and descriptors written twice, limits
/// that cannot be counted, fleet quotas without a store.
pub fn compile(
    configuration: &Configuration,
    settings: Settings,
    before: Option<&Rules>,
) -> Result<Rules, Vec<Problem>> {
    let mut compiler = Compiler {
        before: before.map(Inherited::of).unwrap_or_default(),
        rules: Rules {
            settings,
            domains: Vec::new(),
            nodes: Vec::new(),
            names: String::new(),
            table: Table::default(),
            wildcards: HashMap::new(),
            rules: Vec::new(),
        },
        known: HashMap::new(),
        names: HashMap::new(),
        problems: Vec::new(),
    };
    for domain in &configuration.domains {
        compiler.domain(domain);
    }
    compiler.finish()
}

/// What outlives a reload, by name.
#[derive(Default)]
struct Inherited {
    series: HashMap<String, Arc<Series>>,
    rule_overflow: HashMap<String, Arc<Overflow>>,
    domain_overflow: HashMap<String, [Arc<Overflow>; Unit::ALL.len()]>,
}

impl Inherited {
    fn of(rules: &Rules) -> Self {
        let of_rules = rules.rules.iter().map(|rule| &rule.series);
        let others = rules.domains.iter().map(|domain| &domain.others);
        Self {
            series: of_rules.chain(others).map(|series| (series.key(), series.clone())).collect(),
            rule_overflow: rules
                .rules
                .iter()
                .map(|rule| (rule.series.key(), rule.overflow.clone()))
                .collect(),
            domain_overflow: rules
                .domains
                .iter()
                .map(|domain| (domain.name.to_string(), domain.overflow.clone()))
                .collect(),
        }
    }

    fn series(&self, domain: &str, levels: &[String]) -> Arc<Series> {
        let series = Series::new(domain, levels);
        self.series.get(&series.key()).cloned().unwrap_or_else(|| Arc::new(series))
    }
}

struct Compiler {
    before: Inherited,
    rules: Rules,
    /// Where each (parent, composite) stands.
    known: HashMap<(NodeId, String), Place>,
    names: HashMap<String, u32>,
    problems: Vec<Problem>,
}

impl Compiler {
    fn domain(&mut self, domain: &model::Domain) {
        let id = self.rules.domains.iter().position(|known| *known.name == domain.name);
        let root = match id.and_then(|id| self.rules.domains.get(id)) {
            Some(known) if self.rules.settings.merge_domains => {
                let root = known.root;
                // Who may ask must not depend on the order of files.
                if known.access != domain.access {
                    let what = format!(
                        "the files of the domain `{}` differ in `callers`, `owners` or \
                         `max-hits-addend`",
                        domain.name
                    );
                    let expected = "the same in all of them, or in an overlay";
                    self.problems.push(Problem::error(domain.place.clone(), what, expected));
                }
                root
            }
            Some(_) => {
                let first = self.known.get(&(ROOT, domain.name.clone()));
                let expected = match first {
                    Some(first) => format!("it once: it stands at {first} already"),
                    None => "it once".to_owned(),
                };
                let what = format!("the domain `{}` is written twice", domain.name);
                self.problems.push(Problem::error(domain.place.clone(), what, expected));
                return;
            }
            None => self.new_domain(domain),
        };
        let mut levels = Vec::new();
        self.level(domain, root, &domain.descriptors, &mut levels, false);
    }

    fn new_domain(&mut self, domain: &model::Domain) -> NodeId {
        let root = self.push(Node {
            parent: ROOT,
            composite: (0, 0),
            key: 0,
            rule: None,
            children: Children::None,
            share_threshold: false,
            value_to_metric: false,
        });
        self.known.insert((ROOT, domain.name.clone()), domain.place.clone());
        let overflow = self.before.domain_overflow.get(&domain.name).cloned();
        self.rules.domains.push(Domain {
            name: domain.name.as_str().into(),
            access: domain.access.clone(),
            others: self.before.series(&domain.name, &["others".to_owned()]),
            overflow: overflow.unwrap_or_default(),
            root,
        });
        root
    }

    fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId::try_from(self.rules.nodes.len()).unwrap_or(ROOT - 1);
        self.rules.nodes.push(node);
        id
    }

    fn level(
        &mut self,
        domain: &model::Domain,
        parent: NodeId,
        descriptors: &[model::Descriptor],
        levels: &mut Vec<String>,
        by_value: bool,
    ) {
        for descriptor in descriptors {
            if levels.len() >= DEEPEST {
                let what = format!("descriptors are nested deeper than {DEEPEST} levels");
                self.problems.push(Problem::error(descriptor.place.clone(), what, "fewer"));
                return;
            }
            let composite = descriptor.composite();
            levels.push(composite.clone());
            let path = format!("{}.{}", domain.name, levels.join("."));
            let key = (parent, composite.clone());
            if let Some(first) = self.known.get(&key) {
                let what = format!("the descriptor `{path}` is written twice");
                let expected = format!("it once: it stands at {first} already");
                self.problems.push(Problem::error(descriptor.place.clone(), what, expected));
            } else {
                self.known.insert(key, descriptor.place.clone());
                self.descriptor(domain, parent, descriptor, composite, levels, by_value);
            }
            levels.pop();
        }
    }

    fn descriptor(
        &mut self,
        domain: &model::Domain,
        parent: NodeId,
        descriptor: &model::Descriptor,
        composite: String,
        levels: &mut Vec<String>,
        by_value: bool,
    ) {
        let has_wildcard = composite.contains('*');
        let is_open = has_wildcard || descriptor.value.is_empty();
        let by_value = by_value || descriptor.value_to_metric && is_open;
        let rule = self.rule(domain, descriptor, levels, by_value);
        let from = position(&self.rules.names);
        self.rules.names.push_str(&composite);
        if position(&self.rules.names) == NONE {
            let what = "the keys and values before it take 4 GiB";
            self.problems.push(Problem::error(descriptor.place.clone(), what, "fewer"));
        }
        let id = self.push(Node {
            parent,
            composite: (from, position(&self.rules.names)),
            key: position(&descriptor.key),
            rule,
            children: Children::None,
            share_threshold: descriptor.share_threshold,
            value_to_metric: descriptor.value_to_metric,
        });
        if let Some(above) = self.rules.nodes.get_mut(parent as usize) {
            above.children = match above.children {
                _ if has_wildcard => Children::ManyWithWildcards,
                Children::None if id == parent + 1 => Children::One,
                Children::None | Children::One | Children::Many => Children::Many,
                Children::ManyWithWildcards => Children::ManyWithWildcards,
            };
        }
        if has_wildcard {
            let wildcards = self.rules.wildcards.entry(parent).or_default();
            wildcards.push((Wildcard::new(&composite), id));
        }
        self.level(domain, id, &descriptor.descriptors, levels, by_value);
    }

    fn rule(
        &mut self,
        domain: &model::Domain,
        descriptor: &model::Descriptor,
        levels: &[String],
        by_value: bool,
    ) -> Option<u32> {
        let own = &descriptor.own;
        let Some(limit) = &descriptor.limit else {
            if *own != model::Own::default() {
                let what = format!("`{}` has no `rate_limit` for these keys", levels.join("."));
                let expected = "a descriptor with a `rate_limit`";
                self.problems.push(Problem::error(descriptor.own_place.clone(), what, expected));
            }
            return None;
        };
        let (unlimited, requests, unit) = match limit.amount {
            Amount::Unlimited => (true, 0, None),
            Amount::PerUnit { requests, unit } => (false, requests, Some(unit)),
        };
        if unlimited && *own != model::Own::default() {
            let what = format!("`{}` is unlimited, so these keys mean nothing", levels.join("."));
            let problem = Problem::error(descriptor.own_place.clone(), what, "none of them");
            self.problems.push(problem);
        }
        let scope = self.scope(descriptor, unlimited);
        let share = match (own.scope, own.storeless) {
            (Scope::Fleet, Some(Storeless::Divide)) if scope != Scope::Fleet => {
                self.rules.settings.nodes.max(1)
            }
            _ => 1,
        };
        let told = |requests, unit: Option<Unit>| RateLimit {
            name: limit.name.clone(),
            requests_per_unit: requests,
            unit: unit.map_or(0, |unit| unit.proto() as i32),
        };
        let (mut meters, mut limits) = (Vec::<Meter>::new(), Vec::new());
        let first = unit.map(|unit| model::Further {
            requests,
            unit,
            unit_multiplier: own.unit_multiplier,
            algorithm: own.algorithm,
            burst: own.burst,
        });
        for further in first.iter().chain(&own.limits) {
            let mut error = |what: &dyn std::fmt::Display, expected| {
                let what = format!("`{}`: {what}", levels.join("."));
                let place = descriptor.own_place.clone();
                self.problems.push(Problem::error(place, what, expected));
            };
            if scope == Scope::Fleet
                && further.algorithm != Algorithm::FixedWindow
                && own.consistency != Consistency::Strict
            {
                error(
                    &"what the fleet leases are fixed windows",
                    "`consistency: strict` beside this algorithm, or `algorithm: fixed_window`",
                );
                continue;
            }
            match meter(further, share) {
                // They would be one count, and every hit would count twice.
                Ok(meter) if meters.iter().any(|known| known.kind() == meter.kind()) => error(
                    &"two limits have the same algorithm and the same window",
                    "limits that differ in one of them",
                ),
                Ok(meter) => {
                    meters.push(meter);
                    limits.push(told(further.requests, Some(further.unit)));
                }
                Err(impossible) => error(&impossible, ""),
            }
        }
        if unlimited {
            limits.push(told(0, None));
        }
        let names = &mut self.names;
        let mut number = |name: &str| {
            let next = u32::try_from(names.len()).unwrap_or(u32::MAX);
            *names.entry(name.to_owned()).or_insert(next)
        };
        let name = (!limit.name.is_empty()).then(|| number(&limit.name));
        let replaces = limit.replaces.iter().map(|name| number(name)).collect();
        let series = self.before.series(&domain.name, levels);
        let overflow = self.before.rule_overflow.get(&series.key()).cloned();
        let rule = Rule {
            limits: limits.into(),
            overflow: overflow
                .filter(|overflow| overflow.fits(&meters))
                .unwrap_or_else(|| Arc::new(Overflow::new(&meters))),
            meters: meters.into(),
            unlimited,
            scope,
            consistency: own.consistency,
            on_store_failure: own.on_store_failure,
            shadow_mode: descriptor.shadow_mode,
            quota_mode: descriptor.quota_mode,
            metadata: descriptor.metadata.clone(),
            place: descriptor.place.clone(),
            name,
            replaces,
            detailed_metric: descriptor.detailed_metric,
            is_named_by_values: by_value || descriptor.detailed_metric,
            series,
        };
        let id = u32::try_from(self.rules.rules.len()).ok()?;
        self.rules.rules.push(rule);
        Some(id)
    }

    fn scope(&mut self, descriptor: &model::Descriptor, unlimited: bool) -> Scope {
        let own = &descriptor.own;
        if own.scope != Scope::Fleet || self.rules.settings.store || unlimited {
            return own.scope;
        }
        if own.storeless.is_none() {
            let what = "`scope: fleet` needs a store, and none is configured";
            let expected = "a store, or `storeless: node` or `storeless: divide` beside it";
            self.problems.push(Problem::error(descriptor.own_place.clone(), what, expected));
        }
        Scope::Node
    }

    fn finish(mut self) -> Result<Rules, Vec<Problem>> {
        if !self.problems.is_empty() {
            self.problems.sort();
            return Err(self.problems);
        }
        let rules = &self.rules;
        let below = |node: &Node| node.parent != ROOT;
        let nodes = rules.nodes.iter().zip(0..).filter(|(node, _)| below(node));
        let nodes = nodes.map(|(node, id)| (node.parent, rules.composite(node), id));
        let domains = rules.domains.iter().zip(0..).map(|(domain, id)| (ROOT, &*domain.name, id));
        let entries: Vec<_> = nodes.chain(domains).collect();
        self.rules.table = Table::new(entries.into_iter());
        Ok(self.rules)
    }
}

/// A length as nodes keep it.
fn position(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(NONE)
}

/// A node's part of a limit is rounded down, but never to nothing: a limit of 0 is a ban.
fn meter(limit: &model::Further, share: u32) -> Result<Meter, Impossible> {
    let part = |whole: u32| if whole == 0 { 0 } else { (whole / share).max(1) };
    let period = limit.unit.seconds().checked_mul(limit.unit_multiplier.unwrap_or(1).max(1));
    let period = period.filter(|period| *period <= MAX_PERIOD_S).ok_or(Impossible::TooLong)?;
    Meter::new(part(limit.requests), period, limit.algorithm, limit.burst.map(part))
}

/// Ten years.
const MAX_PERIOD_S: u32 = 10 * 365 * 86_400;

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

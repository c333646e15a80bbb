//! From a configuration to [`Rules`]: what only shows when all files are known is found here, and what
//! the rules before counted is handed on.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::RateLimit;

use super::{Children, DEEPEST, Domain, Node, NodeId, ROOT, Rule, Rules};
use crate::{
    policy::{Place, Problem},
    quota::{
        engine::{Impossible, Meter},
        model::{self, Algorithm, Amount, Configuration, Consistency, Scope, Storeless},
        overflow::Overflow,
        series::Series,
        settings::Settings,
        table::{NONE, Table},
        unit::Unit,
        wildcard::Wildcard,
    },
};

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

//! A domain, for people: its rules, what was counted for each, and how much is spent now.

use serde::{Deserialize, Serialize};

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Caller, Now, Quotas,
    engine::{Engine, Hits, Meter},
    model::Scope,
    rules::{Domain, Entry, Level, Rule, Rules},
};

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explained {
    /// The descriptor, like `user=*, path=/checkout`.
    pub descriptor: String,
    /// Its limits, like `10 per 60s`; none for unlimited.
    pub limits: Vec<String>,
    /// Who shares a count: `workload`, `node` or `fleet`.
    pub scope: String,
    /// Counted, not enforced.
    pub shadow: bool,
    /// Where it stands.
    pub place: String,
    /// What was counted since the agent started, by the name of the original's statistic.
    pub counts: BTreeMap<String, u64>,
    /// How much is spent now of each limit, where the descriptor has one count on this node.
    pub spent: Vec<Spent>,
}

/// How much of a limit is spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spent {
    /// Hits that count.
    pub hits: u64,
    /// As many are admitted.
    pub limit: u64,
    /// Seconds until the window is over or the bucket is full.
    pub reset_seconds: u64,
}

impl Quotas {
    /// The rules of a domain in the order of the configuration; `None` if nobody knows it.
    pub fn explain(&self, domain: &str, now: Now) -> Option<Vec<Explained>> {
        let rules = self.rules.load();
        let rules = rules.as_ref()?;
        let domain = rules.domain(domain)?;
        let explain = |(rule, levels): (&Rule, Vec<Level<'_>>)| Explained {
            descriptor: descriptor(&levels),
            limits: rule.meters.iter().map(limit).collect(),
            scope: match rule.scope {
                Scope::Workload => "workload",
                Scope::Node => "node",
                Scope::Fleet => "fleet",
            }
            .to_owned(),
            shadow: rule.shadow_mode,
            place: rule.place.to_string(),
            counts: (rule.series.counts.all().iter())
                .map(|(name, counter)| ((*name).to_owned(), counter.get()))
                .collect(),
            spent: self.spent(rules, domain, rule, &levels, now),
        };
        Some(rules.of_domain(domain).into_iter().map(explain).collect())
    }

    /// Only a descriptor whose values are all written has one count.
    fn spent(
        &self,
        rules: &Rules,
        domain: &Domain,
        rule: &Rule,
        levels: &[Level<'_>],
        now: Now,
    ) -> Vec<Spent> {
        let entry = |(key, value): &Level<'_>| {
            let is_written = !key.contains('*') && value.is_some_and(|value| !value.contains('*'));
            let value = value.unwrap_or_default();
            is_written.then(|| Entry { key: (*key).to_owned(), value: value.to_owned() })
        };
        let entries: Option<Vec<Entry>> = levels.iter().map(entry).collect();
        let Some(entries) = entries.filter(|_| rule.scope == Scope::Node) else {
            return Vec::new();
        };
        let Some((_, path)) = rules.find(domain, &entries) else { return Vec::new() };
        let name = self.name_of(rules, domain, rule, &path, &entries, &Caller::default());
        let shared = self.shared.load();
        let spent = |meter: &Meter| {
            let identity = name.of_kind(meter.kind());
            let word = shared.as_ref().and_then(|shared| shared.word(identity));
            let word = word.or_else(|| self.slab.word(identity, meter.mark())).unwrap_or_default();
            let taken = meter.step(word, Hits::Add(0), now).taken;
            let (limit, reset) = (taken.limit.into(), taken.reset_s.into());
            Spent { hits: taken.before, limit, reset_seconds: reset }
        };
        rule.meters.iter().map(spent).collect()
    }
}

fn descriptor(levels: &[Level<'_>]) -> String {
    let level = |(key, value): &Level<'_>| format!("{key}={}", value.unwrap_or("*"));
    levels.iter().map(level).collect::<Vec<_>>().join(", ")
}

fn limit(meter: &Meter) -> String {
    let Meter { requests, period_s, engine } = meter;
    let mut text = format!("{requests} per {period_s}s");
    // Writing to a string does not fail.
    let _ = match engine {
        Engine::Fixed => Ok(()),
        Engine::Sliding => text.write_str(", sliding window"),
        Engine::Bucket { burst, .. } => write!(text, ", bucket of {burst}"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{Settings, config};
    use envoy_types::pb::envoy::{
        extensions::common::ratelimit::v3::RateLimitDescriptor,
        service::ratelimit::v3::RateLimitRequest,
    };

    #[test]
    fn a_rule_is_told_with_its_way_its_limits_and_what_is_spent() {
        let text = "format: weir\ndomain: shop\ndescriptors:\n  - key: path\n    value: /a\n    \
                    descriptors:\n      - key: user\n        value: me\n        \
                    rate_limit: {unit: hour, requests_per_unit: 5}\n        \
                    algorithm: token_bucket\n        burst: 3\n  - key: user\n    \
                    rate_limit: {unit: minute, requests_per_unit: 2}\n    shadow_mode: true\n";
        let source = config::Source { file: "shop.yaml".to_owned(), text: text.to_owned() };
        let quotas = Quotas::default();
        quotas.apply(&config::read(&[source]).unwrap(), Settings::default()).unwrap();
        let second = 1_000_000_000;
        let now = Now { monotonic_ns: 7200 * second, realtime_ns: 7200 * second };
        let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
        let request = RateLimitRequest {
            domain: "shop".to_owned(),
            descriptors: vec![RateLimitDescriptor {
                entries: vec![entry("path", "/a"), entry("user", "me")],
                ..RateLimitDescriptor::default()
            }],
            hits_addend: 2,
        };
        quotas.decide(&request, &Caller::default(), now).unwrap();
        assert_eq!(quotas.explain("other", now), None);
        let rules = quotas.explain("shop", now).unwrap();
        let told: Vec<_> = rules.iter().map(|rule| (&*rule.descriptor, &rule.limits[..])).collect();
        assert_eq!(told[0], ("path=/a, user=me", &["5 per 3600s, bucket of 3".to_owned()][..]));
        assert_eq!(told[1], ("user=*", &["2 per 60s".to_owned()][..]));
        assert_eq!((rules[0].spent[0].hits, rules[0].spent[0].limit), (2, 3));
        assert_eq!((rules[1].spent.len(), rules[1].shadow), (0, true));
        assert_eq!(rules[0].counts["total_hits"], 2);
        assert_eq!(rules[0].place, "shop.yaml:7:9");
    }
}

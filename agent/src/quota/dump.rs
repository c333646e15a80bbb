//! The rules as text, as the original's `/rlconfig` shows them.

use std::fmt;

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    RateLimit, rate_limit::Unit,
};

use super::rules::{Rule, Rules};

impl Rules {
    /// The names of the domains, in the order of the configuration.
    pub fn domain_names(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().map(|domain| &*domain.name)
    }
}

fn of(rule: &Rule) -> impl Iterator<Item = (&Rule, &RateLimit)> {
    rule.limits.iter().map(move |limit| (rule, limit))
}

impl fmt::Display for Rules {
    /// A line for each limit, in the order of the configuration; the original's order is by chance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rule, limit) in self.rules.iter().flat_map(of) {
            let unit = Unit::try_from(limit.unit).unwrap_or_default();
            writeln!(
                f,
                "{}: unit={} requests_per_unit={}, shadow_mode: {}, quota_mode: {}",
                rule.series.key(),
                unit.as_str_name(),
                limit.requests_per_unit,
                rule.shadow_mode,
                rule.quota_mode,
            )?;
        }
        Ok(())
    }
}

//! The rules as text, as the original's `/rlconfig` shows them.

use std::fmt;

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;

use super::rules::Rules;

impl Rules {
    /// The names of the domains, in the order of the configuration.
    pub fn domain_names(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().map(|domain| &*domain.name)
    }
}

impl fmt::Display for Rules {
    /// A line for each limit, in the order of the configuration; the original's order is by chance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            let unit = Unit::try_from(rule.limit.unit).unwrap_or_default();
            writeln!(
                f,
                "{}: unit={} requests_per_unit={}, shadow_mode: {}, quota_mode: {}",
                rule.series.key(),
                unit.as_str_name(),
                rule.limit.requests_per_unit,
                rule.shadow_mode,
                rule.quota_mode,
            )?;
        }
        Ok(())
    }
}

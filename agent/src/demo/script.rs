//! Who is in the demo, what they ask for, and what the policy says: data, and the node file
//! written from it.

use std::fmt::Write as _;

use super::DemoError;
use crate::{
    lab::{CLIENTS_V4, Host},
    load::Talk,
    policy::{Breaker, Bucket, Key, Limit as Parsed, Setting},
};

pub(super) const WEB_PORT: u16 = 8080;
pub(super) const DB_PORT: u16 = 3306;
pub(super) const HOOK_PORT: u16 = 9000;
pub(super) const API_PORT: u16 = 7000;

/// Attempts per second.
pub(super) const GREEDY: u64 = 100;
pub(super) const POLITE: u64 = 4;
pub(super) const TO_DB: u64 = 5;
pub(super) const FROM_DB: u64 = 50;

/// What is said on each port.
pub(super) const WEB_TALK: Talk = Talk::Http;
pub(super) const OTHER_TALK: Talk = Talk::Byte;

/// One line of policy, as the node file has it, and what it says.
#[derive(Clone, Debug)]
pub(super) struct Line<T> {
    pub key: String,
    pub value: String,
    pub says: T,
}

impl<T> Line<T> {
    /// Read by the grammar that the agent reads it with, so the prediction is about the same text.
    fn new(key: String, value: &str, says: fn(&Parsed) -> Option<T>) -> Result<Self, DemoError> {
        let fault =
            |problem: String| DemoError::Policy { line: format!("{key}: {value}"), problem };
        let parsed = Key::parse(&key).map_err(|error| fault(error.to_string()))?;
        let setting = parsed.parse_value(value).map_err(|error| fault(error.to_string()))?;
        let says = match &setting {
            Setting::Limits(limits) if limits.len() == 1 => says(&limits[0]),
            _ => return Err(fault("one limit was expected".to_owned())),
        };
        match says {
            Some(says) => Ok(Self { says, value: value.to_owned(), key }),
            None => Err(fault("another kind of limit was expected".to_owned())),
        }
    }

    /// As the node file has it.
    pub(super) fn text(&self) -> (&str, &str) {
        (&self.key, &self.value)
    }
}

/// A rate.
pub(super) type Limit = Line<Bucket>;

/// The four rates, and what the second act is about.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub web: Limit,
    pub web_per_source: Limit,
    pub db: Limit,
    pub db_outbound: Limit,
    pub api_breaker: Line<Breaker>,
    pub api_at_once: Line<u64>,
}

impl Limits {
    pub(super) fn new() -> Result<Self, DemoError> {
        let rate = |key: String, value: &str| Line::new(key, value, Parsed::bucket);
        let at_once = |limit: &Parsed| limit.at_once().map(|number| number.get().into());
        Ok(Self {
            web: rate(format!("connections.{WEB_PORT}"), "20/s burst=40")?,
            web_per_source: rate(format!("connections-per-source.{WEB_PORT}"), "10/s burst=20")?,
            db: rate(format!("connections.{DB_PORT}"), "1 per 60s")?,
            db_outbound: rate(
                format!("outbound-connections.{HOOK_PORT}"),
                &format!("10/s to={CLIENTS_V4}"),
            )?,
            api_breaker: Line::new(
                format!("breaker.{API_PORT}"),
                "errors=5 ejection=1s probes=3",
                Parsed::breaker,
            )?,
            api_at_once: Line::new(format!("max-connections.{API_PORT}"), "20", at_once)?,
        })
    }

    /// The node file that the agent gets.
    pub(super) fn node_file(&self, web: &Host, db: &Host, api: &Host) -> String {
        let mut text = String::from("mode: enforce\nworkloads:\n");
        let workloads = [
            (web, [self.web.text(), self.web_per_source.text()]),
            (db, [self.db.text(), self.db_outbound.text()]),
            (api, [self.api_breaker.text(), self.api_at_once.text()]),
        ];
        for (host, lines) in workloads {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  - name: {}", host.name());
            let _ = writeln!(text, "    netns: {}", host.namespace().name());
            let _ = writeln!(text, "    interface: {}", host.interface());
            let _ = writeln!(text, "    policy:");
            for (key, value) in lines {
                let _ = writeln!(text, "      {key}: \"{value}\"");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_speaks_the_agents_grammar() {
        let limits = Limits::new().unwrap();
        assert_eq!(limits.web.says.burst(), 40);
        // Without a burst, N of `N per T`.
        assert_eq!(limits.db.says.burst(), 1);
        assert_eq!(limits.db_outbound.says.burst(), 10);
        assert_eq!(limits.api_at_once.says, 20);
        assert_eq!(limits.api_breaker.says.to_string(), limits.api_breaker.value);
    }

    #[test]
    fn the_greedy_ask_for_more_and_the_polite_for_less_than_they_may() {
        let limits = Limits::new().unwrap();
        let rate = |limit: &Limit| limit.says.rate().per_second();
        assert!(GREEDY as f64 > 2.0 * rate(&limits.web_per_source));
        assert!((POLITE as f64) < rate(&limits.web_per_source));
        // What both get leaves the workload's own limit in peace, so nobody pays for the greedy.
        assert!(rate(&limits.web_per_source) + (POLITE as f64) < rate(&limits.web));
        assert!(TO_DB as f64 > 2.0 * rate(&limits.db));
        assert!(FROM_DB as f64 > 2.0 * rate(&limits.db_outbound));
    }
}

//! Who is in the demo, what they ask for, and what the policy says: data, and the node file
//! written from it.

use std::fmt::Write as _;

use super::DemoError;
use crate::{
    lab::{CLIENTS_V4, Host},
    load::Talk,
    policy::{Bucket, Key, Setting},
};

pub(super) const WEB_PORT: u16 = 8080;
pub(super) const DB_PORT: u16 = 3306;
pub(super) const HOOK_PORT: u16 = 9000;

/// Attempts per second.
pub(super) const GREEDY: u64 = 100;
pub(super) const POLITE: u64 = 4;
pub(super) const TO_DB: u64 = 5;
pub(super) const FROM_DB: u64 = 50;

/// What is said on each port.
pub(super) const WEB_TALK: Talk = Talk::Http;
pub(super) const OTHER_TALK: Talk = Talk::Byte;

/// One line of policy, as the node file has it, and its bucket.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub key: String,
    pub value: String,
    pub bucket: Bucket,
}

impl Limit {
    /// Read by the grammar that the agent reads it with, so the prediction is about the same text.
    fn new(key: String, value: &str) -> Result<Self, DemoError> {
        let fault =
            |problem: String| DemoError::Policy { line: format!("{key}: {value}"), problem };
        let parsed = Key::parse(&key).map_err(|error| fault(error.to_string()))?;
        let setting = parsed.parse_value(value).map_err(|error| fault(error.to_string()))?;
        match setting {
            Setting::Limits(limits) if limits.len() == 1 => match limits[0].bucket() {
                Some(bucket) => Ok(Self { bucket, value: value.to_owned(), key }),
                None => Err(fault("a rate was expected".to_owned())),
            },
            _ => Err(fault("one limit was expected".to_owned())),
        }
    }
}

/// The four limits.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub web: Limit,
    pub web_per_source: Limit,
    pub db: Limit,
    pub db_outbound: Limit,
}

impl Limits {
    pub(super) fn new() -> Result<Self, DemoError> {
        Ok(Self {
            web: Limit::new(format!("connections.{WEB_PORT}"), "20/s burst=40")?,
            web_per_source: Limit::new(
                format!("connections-per-source.{WEB_PORT}"),
                "10/s burst=20",
            )?,
            db: Limit::new(format!("connections.{DB_PORT}"), "1 per 60s")?,
            db_outbound: Limit::new(
                format!("outbound-connections.{HOOK_PORT}"),
                &format!("10/s to={CLIENTS_V4}"),
            )?,
        })
    }

    /// The node file that the agent gets.
    pub(super) fn node_file(&self, web: &Host, db: &Host) -> String {
        let mut text = String::from("mode: enforce\nworkloads:\n");
        let workloads =
            [(web, [&self.web, &self.web_per_source]), (db, [&self.db, &self.db_outbound])];
        for (host, limits) in workloads {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  - name: {}", host.name());
            let _ = writeln!(text, "    netns: {}", host.namespace().name());
            let _ = writeln!(text, "    interface: {}", host.interface());
            let _ = writeln!(text, "    policy:");
            for limit in limits {
                let _ = writeln!(text, "      {}: \"{}\"", limit.key, limit.value);
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
        assert_eq!(limits.web.bucket.burst(), 40);
        // Without a burst, N of `N per T`.
        assert_eq!(limits.db.bucket.burst(), 1);
        assert_eq!(limits.db_outbound.bucket.burst(), 10);
    }

    #[test]
    fn the_greedy_ask_for_more_and_the_polite_for_less_than_they_may() {
        let limits = Limits::new().unwrap();
        let rate = |limit: &Limit| limit.bucket.rate().per_second();
        assert!(GREEDY as f64 > 2.0 * rate(&limits.web_per_source));
        assert!((POLITE as f64) < rate(&limits.web_per_source));
        // What both get leaves the workload's own limit in peace, so nobody pays for the greedy.
        assert!(rate(&limits.web_per_source) + (POLITE as f64) < rate(&limits.web));
        assert!(TO_DB as f64 > 2.0 * rate(&limits.db));
        assert!(FROM_DB as f64 > 2.0 * rate(&limits.db_outbound));
    }
}

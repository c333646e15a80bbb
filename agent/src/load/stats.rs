//! Counts and latencies of attempts: pure, added up in any order.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::outcome::{Attempt, Outcome};

/// What is kept of many durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    count: u64,
    sum: Duration,
    range: Option<(Duration, Duration)>,
}

impl Latency {
    fn record(&mut self, duration: Duration) {
        self.merge(&Self { count: 1, sum: duration, range: Some((duration, duration)) });
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.range = match (self.range, other.range) {
            (Some((low, high)), Some((l, h))) => Some((low.min(l), high.max(h))),
            (one, other) => one.or(other),
        };
    }

    /// The shortest.
    pub fn shortest(&self) -> Option<Duration> {
        self.range.map(|(low, _)| low)
    }

    /// The longest.
    pub fn longest(&self) -> Option<Duration> {
        self.range.map(|(_, high)| high)
    }

    /// The mean.
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| self.sum.div_f64(self.count as f64))
    }
}

/// What became of many attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    counts: BTreeMap<Outcome, u64>,
    bytes: u64,
    connect: Latency,
    refusal: Latency,
}

impl Stats {
    /// Adds one attempt.
    pub fn record(&mut self, attempt: &Attempt) {
        *self.counts.entry(attempt.outcome).or_default() += 1;
        self.bytes += attempt.bytes;
        match attempt.outcome {
            Outcome::Ok => self.connect.record(attempt.connect),
            Outcome::Refused => self.refusal.record(attempt.connect),
            _ => {}
        }
    }

    /// Adds others' attempts.
    pub fn merge(&mut self, other: &Self) {
        for (outcome, count) in &other.counts {
            *self.counts.entry(*outcome).or_default() += count;
        }
        self.bytes += other.bytes;
        self.connect.merge(&other.connect);
        self.refusal.merge(&other.refusal);
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts.get(&outcome).copied().unwrap_or_default()
    }

    /// How many connected and got what they asked for.
    pub fn ok(&self) -> u64 {
        self.count(Outcome::Ok)
    }

    /// How many were refused by a RST.
    pub fn refused(&self) -> u64 {
        self.count(Outcome::Refused)
    }

    /// How many were neither: reset later, unanswered, or met an error.
    pub fn failed(&self) -> u64 {
        self.attempts() - self.ok() - self.refused()
    }

    /// How many there were.
    pub fn attempts(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Payload received.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long connecting took, of those that did.
    pub fn connect(&self) -> &Latency {
        &self.connect
    }

    /// How long it took to be refused.
    pub fn refusal(&self) -> &Latency {
        &self.refusal
    }

    /// Each outcome that occurred, with its count: `ok:20 refused:80`.
    pub fn codes(&self) -> String {
        let codes: Vec<_> = self
            .counts
            .iter()
            .map(|(outcome, count)| format!("{}:{count}", outcome.name()))
            .collect();
        codes.join(" ")
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} attempts: {} ok, {} refused, {} failed",
            self.attempts(),
            self.ok(),
            self.refused(),
            self.failed()
        )?;
        if self.failed() > 0 { write!(f, " ({})", self.codes()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(outcome: Outcome, micros: u64, bytes: u64) -> Attempt {
        Attempt { outcome, connect: Duration::from_micros(micros), bytes }
    }

    fn stats(attempts: &[Attempt]) -> Stats {
        let mut stats = Stats::default();
        attempts.iter().for_each(|attempt| stats.record(attempt));
        stats
    }

    #[test]
    fn every_attempt_is_ok_or_refused_or_failed() {
        let stats = stats(&[
            attempt(Outcome::Ok, 100, 2),
            attempt(Outcome::Ok, 300, 2),
            attempt(Outcome::Refused, 50, 0),
            attempt(Outcome::Reset, 70, 0),
            attempt(Outcome::Timeout, 1_000_000, 0),
            attempt(Outcome::Short, 60, 1),
            attempt(Outcome::Error(libc::EHOSTUNREACH), 10, 0),
        ]);
        assert_eq!((stats.ok(), stats.refused(), stats.failed()), (2, 1, 4));
        assert_eq!(stats.attempts(), 7);
        assert_eq!(stats.bytes(), 5);
        assert_eq!(stats.codes(), "ok:2 refused:1 reset:1 timeout:1 short:1 EHOSTUNREACH:1");
        assert_eq!(
            stats.to_string(),
            "7 attempts: 2 ok, 1 refused, 4 failed (ok:2 refused:1 reset:1 timeout:1 short:1 \
             EHOSTUNREACH:1)"
        );
    }

    #[test]
    fn latencies_are_those_of_connections_that_came_about() {
        let stats = stats(&[
            attempt(Outcome::Ok, 100, 0),
            attempt(Outcome::Ok, 300, 0),
            attempt(Outcome::Refused, 50, 0),
            attempt(Outcome::Timeout, 1_000_000, 0),
        ]);
        let micros = |duration: Option<Duration>| duration.map(|d| d.as_micros());
        assert_eq!(micros(stats.connect().shortest()), Some(100));
        assert_eq!(micros(stats.connect().longest()), Some(300));
        assert_eq!(micros(stats.connect().mean()), Some(200));
        assert_eq!(micros(stats.refusal().mean()), Some(50));
    }

    #[test]
    fn nothing_has_no_latency() {
        let stats = Stats::default();
        assert_eq!(stats.connect().mean(), None);
        assert_eq!(stats.connect().shortest(), None);
        assert_eq!(stats.codes(), "");
        assert_eq!(stats.to_string(), "0 attempts: 0 ok, 0 refused, 0 failed");
    }

    #[test]
    fn seconds_add_up_to_the_run_in_any_order() {
        let attempts = [
            attempt(Outcome::Ok, 100, 2),
            attempt(Outcome::Refused, 40, 0),
            attempt(Outcome::Ok, 20, 2),
            attempt(Outcome::Timeout, 9, 0),
        ];
        let whole = stats(&attempts);
        for split in 0..=attempts.len() {
            let (one, other) = attempts.split_at(split);
            let mut forward = stats(one);
            forward.merge(&stats(other));
            let mut backward = stats(other);
            backward.merge(&stats(one));
            assert_eq!(forward, whole);
            assert_eq!(backward, whole);
        }
    }
}

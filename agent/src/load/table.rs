//! The table that load tools print: a row per flow and second.

use std::{fmt, time::Duration};

use super::stats::Stats;

/// The table's first line.
#[derive(Clone, Copy, Debug)]
pub struct Header;

/// What happened on one flow in one interval.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Since the start; `None` repeats the row above.
    pub elapsed: Option<Duration>,
    /// From whom to whom.
    pub flow: &'a str,
    /// Attempts without an answer at the interval's end.
    pub in_flight: u64,
    /// How long the interval was.
    pub interval: Duration,
    /// What ended in the interval.
    pub stats: &'a Stats,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>4}  {:<19}{:>9} {:>5} {:>7} {:>6} {:>7} {:>8} {:>8} {:>8} {:>6}  codes",
            "time",
            "flow",
            "in flight",
            "ok",
            "refused",
            "failed",
            "ok/s",
            "longest",
            "shortest",
            "mean",
            "bytes",
        )
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elapsed = self
            .elapsed
            .map(|elapsed| format!("{:.0}s", elapsed.as_secs_f64()))
            .unwrap_or_default();
        let stats = self.stats;
        let seconds = self.interval.as_secs_f64();
        let rate = if seconds > 0.0 { stats.ok() as f64 / seconds } else { 0.0 };
        let latency = stats.connect();
        write!(
            f,
            "{elapsed:>4}  {:<19}{:>9} {:>5} {:>7} {:>6} {rate:>7.1} {:>8} {:>8} {:>8} {:>6}  {}",
            self.flow,
            self.in_flight,
            stats.ok(),
            stats.refused(),
            stats.failed(),
            short(latency.longest()),
            short(latency.shortest()),
            short(latency.mean()),
            stats.bytes(),
            stats.codes(),
        )
    }
}

/// A duration in seven characters.
fn short(duration: Option<Duration>) -> String {
    match duration {
        None => "-".to_owned(),
        Some(duration) if duration < Duration::from_millis(1) => {
            format!("{}us", duration.as_micros())
        }
        Some(duration) if duration < Duration::from_secs(1) => {
            format!("{:.1}ms", duration.as_secs_f64() * 1e3)
        }
        Some(duration) => format!("{:.2}s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Attempt, Outcome};

    #[test]
    fn a_row_stands_under_its_header() {
        let mut stats = Stats::default();
        for (outcome, micros) in [(Outcome::Ok, 150), (Outcome::Ok, 1500), (Outcome::Refused, 90)] {
            stats.record(&Attempt { outcome, connect: Duration::from_micros(micros), bytes: 3 });
        }
        let row = Row {
            elapsed: Some(Duration::from_secs(2)),
            flow: "greedy > web:8080",
            in_flight: 4,
            interval: Duration::from_millis(500),
            stats: &stats,
        };
        let lines = [Header.to_string(), row.to_string()];
        assert_eq!(
            lines,
            [
                "time  flow               in flight    ok refused failed    ok/s  longest shortest     mean  bytes  codes",
                "  2s  greedy > web:8080          4     2       1      0     4.0    1.5ms    150us    825us      9  ok:2 refused:1",
            ]
        );
    }

    #[test]
    fn durations_are_short() {
        for (nanos, expected) in
            [(999, "0us"), (999_999, "999us"), (1_000_000, "1.0ms"), (3_000_000_000, "3.00s")]
        {
            assert_eq!(short(Some(Duration::from_nanos(nanos))), expected);
        }
        assert_eq!(short(None), "-");
    }
}

//! What a limit admits of what was asked for: pure arithmetic over the policy's own words.
//!
//! It is computed a second time here, from the rate as written and the time as the clients saw
//! it, and shares no code with the data plane: two ways to one number.

use std::{cmp::Ordering, fmt, time::Duration};

use crate::{load::Span, policy::Bucket};

/// What clients asked of a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Attempts, spread evenly.
    pub attempts: u64,
    /// Time between the first and the last decision: at least ...
    pub at_least: Duration,
    /// ... and at most.
    pub at_most: Duration,
}

impl Asked {
    pub(super) fn new(attempts: u64, span: Option<Span>) -> Self {
        Self {
            attempts,
            at_least: span.map_or(Duration::ZERO, |span| span.at_least()),
            at_most: span.map_or(Duration::ZERO, |span| span.at_most()),
        }
    }
}

/// From a number to a number, both possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    low: u64,
    high: u64,
}

impl Interval {
    /// Where a number lies: `Less` is below, `Equal` within.
    pub(super) const fn place(self, seen: u64) -> Ordering {
        if seen < self.low {
            Ordering::Less
        } else if seen > self.high {
            Ordering::Greater
        } else {
            Ordering::Equal
        }
    }

    /// What two together come to.
    pub(super) const fn plus(self, other: Self) -> Self {
        Self { low: self.low + other.low, high: self.high + other.high }
    }

    /// What is left of it under a ceiling.
    pub(super) fn under(self, ceiling: Self) -> Self {
        Self { low: self.low.min(ceiling.low), high: self.high.min(ceiling.high) }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high {
            self.low.fmt(f)
        } else {
            // Padding belongs to the whole.
            format!("{}..{}", self.low, self.high).fmt(f)
        }
    }
}

/// What a full bucket admits: its burst, and what came back in the time; no more than was asked.
///
/// The lower bound needs clients that ask evenly and either more often than tokens come back, so
/// that none is wasted on a full bucket, or so seldom that none is ever refused.
pub(super) fn admits(bucket: Bucket, asked: &Asked) -> Interval {
    let in_time = |time: Duration| {
        let back = time.as_nanos() * u128::from(bucket.rate().tokens())
            / u128::from(bucket.rate().period().nanos());
        let total = u128::from(bucket.burst()) + back;
        u64::try_from(total).unwrap_or(u64::MAX).min(asked.attempts)
    };
    Interval { low: in_time(asked.at_least), high: in_time(asked.at_most) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_bucket;

    fn asked(attempts: u64, at_least: u64, at_most: u64) -> Asked {
        Asked {
            attempts,
            at_least: Duration::from_millis(at_least),
            at_most: Duration::from_millis(at_most),
        }
    }

    #[test]
    fn a_bucket_admits_its_burst_and_what_comes_back() {
        let bucket = parse_bucket("20/s burst=40").unwrap();
        let admitted = admits(bucket, &asked(1000, 4000, 4060));
        assert_eq!(admitted, Interval { low: 120, high: 121 });
        assert_eq!(admitted.to_string(), "120..121");
        let places = [119, 120, 121, 122].map(|seen| admitted.place(seen));
        assert_eq!(places, [Ordering::Less, Ordering::Equal, Ordering::Equal, Ordering::Greater]);
    }

    #[test]
    fn no_more_is_admitted_than_was_asked() {
        let bucket = parse_bucket("20/s burst=40").unwrap();
        assert_eq!(admits(bucket, &asked(7, 4000, 4060)).to_string(), "7");
        assert_eq!(admits(bucket, &asked(0, 0, 0)).to_string(), "0");
    }

    #[test]
    fn one_a_minute_is_one_until_the_minute_is_over() {
        let bucket = parse_bucket("1 per 60s").unwrap();
        assert_eq!(admits(bucket, &asked(50, 59_990, 59_999)).to_string(), "1");
        assert_eq!(admits(bucket, &asked(50, 59_990, 60_000)).to_string(), "1..2");
    }

    #[test]
    fn limits_in_a_row_add_up_under_the_last() {
        let (one, other) = (Interval { low: 9, high: 10 }, Interval { low: 5, high: 5 });
        let both = one.plus(other);
        assert_eq!(both, Interval { low: 14, high: 15 });
        assert_eq!(both.under(Interval { low: 20, high: 21 }), both);
        assert_eq!(both.under(Interval { low: 3, high: 4 }).to_string(), "3..4");
    }
}

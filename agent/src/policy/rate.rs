//! Rates and buckets as a person writes them: `100/s`, `1 per 60s`, `burst=200`.
//!
//! The numbers stay as written (`10 per 60s` is not `1 per 6s`: its burst is 10), so that what is
//! shown is what was meant. How the kernel counts is none of this module's business.

use std::{cmp::Ordering, fmt, num::NonZeroU32, num::NonZeroU64};

use serde::{Serialize, Serializer};
use weir_common::gcra::Refill;

/// Most tokens in a rate.
pub const MAX_TOKENS: u32 = 1_000_000_000;
/// Most tokens in a bucket.
pub const MAX_BURST: u32 = 1_000_000_000;
/// Highest rate.
pub const MAX_PER_SECOND: u64 = 10_000_000;
/// Highest rate of one source: its bucket counts in steps of 64 ns, so a higher one would be
/// several per cent off.
pub const MAX_SOURCE_PER_SECOND: u64 = 1_000_000;
/// Longest period, and longest time to fill a bucket.
pub const MAX_WINDOW: Period = Period::hours(30 * 24);
/// The same for the bucket of one source.
pub const MAX_SOURCE_WINDOW: Period = Period::hours(24);

/// A length of time in whole milliseconds, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(NonZeroU64);

impl Period {
    /// One second.
    pub const SECOND: Self = match Self::from_millis(1000) {
        Some(period) => period,
        None => panic!("a second is not zero"),
    };

    /// A period of so many milliseconds, unless that is zero.
    pub const fn from_millis(millis: u64) -> Option<Self> {
        match NonZeroU64::new(millis) {
            Some(millis) => Some(Self(millis)),
            None => None,
        }
    }

    /// For bounds and defaults, none of which is zero.
    pub(super) const fn seconds(seconds: u64) -> Self {
        match Self::from_millis(seconds * 1000) {
            Some(period) => period,
            None => panic!("a bound or default of zero"),
        }
    }

    pub(super) const fn minutes(minutes: u64) -> Self {
        Self::seconds(minutes * 60)
    }

    pub(super) const fn hours(hours: u64) -> Self {
        Self::minutes(hours * 60)
    }

    /// In milliseconds.
    pub const fn millis(self) -> u64 {
        self.0.get()
    }

    /// In nanoseconds.
    pub const fn nanos(self) -> u64 {
        self.0.get().saturating_mul(1_000_000)
    }

    pub(super) const fn whole_hours(self) -> u64 {
        self.millis() / 3_600_000
    }
}

impl fmt::Display for Period {
    /// In the largest unit that needs no fraction: `90s`, `1m`, `24h`. A count of one is left out
    /// with `{:#}`: `s`, `m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
        let millis = self.millis();
        let (scale, unit) =
            UNITS.into_iter().find(|(scale, _)| millis.is_multiple_of(*scale)).unwrap_or((1, "ms"));
        let count = millis / scale;
        if f.alternate() && count == 1 { f.write_str(unit) } else { write!(f, "{count}{unit}") }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// So many tokens per period; never zero, at most [`MAX_PER_SECOND`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Rate {
    tokens: NonZeroU32,
    period: Period,
}

impl Rate {
    /// A rate, unless it is zero or above the bounds of this module.
    pub const fn new(tokens: u32, period: Period) -> Option<Self> {
        let Some(tokens) = NonZeroU32::new(tokens) else {
            return None;
        };
        let rate = Self { tokens, period };
        if tokens.get() > MAX_TOKENS || rate.exceeds(MAX_PER_SECOND) {
            return None;
        }
        if period.millis() > MAX_WINDOW.millis() { None } else { Some(rate) }
    }

    pub(super) const fn unchecked(tokens: NonZeroU32, period: Period) -> Self {
        Self { tokens, period }
    }

    pub(super) const fn exceeds(&self, per_second: u64) -> bool {
        self.tokens.get() as u64 * 1000 > per_second.saturating_mul(self.period.millis())
    }

    /// Tokens per period.
    pub const fn tokens(self) -> u32 {
        self.tokens.get()
    }

    /// The period.
    pub const fn period(self) -> Period {
        self.period
    }

    /// Tokens per second, for people and metrics.
    pub fn per_second(self) -> f64 {
        f64::from(self.tokens.get()) * 1000.0 / self.period.millis() as f64
    }

    /// How fast one rate is next to another; `10 per 60s` and `1 per 6s` are equal here.
    pub fn speed(self, other: Self) -> Ordering {
        let left = u128::from(self.tokens.get()) * u128::from(other.period.millis());
        let right = u128::from(other.tokens.get()) * u128::from(self.period.millis());
        left.cmp(&right)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:#}", self.tokens, self.period)
    }
}

/// A token bucket: a rate, how many tokens it holds, and how they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Bucket {
    rate: Rate,
    burst: NonZeroU32,
    refill: Refill,
}

impl Bucket {
    /// A bucket, unless its numbers are out of the bounds of this module.
    pub fn new(rate: Rate, burst: u32, refill: Refill) -> Option<Self> {
        let burst = NonZeroU32::new(burst).filter(|burst| burst.get() <= MAX_BURST)?;
        let bucket = Self { rate, burst, refill };
        (!bucket.slower_than(MAX_WINDOW) && !bucket.overflows()).then_some(bucket)
    }

    /// A bucket of one rate's tokens, refilled smoothly.
    pub const fn of(rate: Rate) -> Self {
        Self { rate, burst: rate.tokens, refill: Refill::Smooth }
    }

    /// The bucket as written, before its bounds are checked.
    pub(super) fn unchecked(rate: Rate, burst: Option<NonZeroU32>, refill: Refill) -> Self {
        Self { rate, burst: burst.unwrap_or(rate.tokens), refill }
    }

    /// Whether the period, or the time to fill the empty bucket, is longer than this.
    pub(super) fn slower_than(&self, longest: Period) -> bool {
        let fill = u128::from(self.rate.period.millis()) * u128::from(self.burst.get());
        self.rate.period > longest
            || fill > u128::from(longest.millis()) * u128::from(self.rate.tokens.get())
    }

    /// Whether a step brings more than the bucket holds: what does not fit would be lost, and the
    /// rate would not be the one written.
    pub(super) const fn overflows(&self) -> bool {
        matches!(self.refill, Refill::Step) && self.burst.get() < self.rate.tokens.get()
    }

    /// The rate.
    pub const fn rate(self) -> Rate {
        self.rate
    }

    /// Tokens that the full bucket holds.
    pub const fn burst(self) -> u32 {
        self.burst.get()
    }

    /// How tokens come back.
    pub const fn refill(self) -> Refill {
        self.refill
    }

    /// The bucket that is never looser than either: see [`stricter`].
    pub fn stricter(self, other: Self) -> Self {
        stricter(self, other)
    }
}

/// The bucket that admits, in any stretch of time, no more than either of two would.
///
/// Rate and burst are compared each for itself and the lower one taken. If both come from one
/// bucket, that bucket is the answer as it stands, with one exception: steps. A bucket that
/// refills in steps can admit its burst just before a step and the step's tokens just after it,
/// so it counts as lower only if that still fits: its burst and one step together are within the
/// other's burst, or the other steps with the same period. Otherwise the answer refills smoothly,
/// which admits less than steps and is within both.
fn stricter(a: Bucket, b: Bucket) -> Bucket {
    let lower = |x: &Bucket, y: &Bucket| {
        let numbers = x.rate.speed(y.rate).is_le() && x.burst <= y.burst;
        let same_steps = y.refill == Refill::Step && x.rate.period == y.rate.period;
        let steps_fit = x.refill == Refill::Smooth
            || same_steps
            || u64::from(x.burst.get()) + u64::from(x.rate.tokens.get())
                <= u64::from(y.burst.get());
        numbers && steps_fit
    };
    if lower(&a, &b) {
        a
    } else if lower(&b, &a) {
        b
    } else {
        let rate = if b.rate.speed(a.rate).is_lt() { b.rate } else { a.rate };
        Bucket { rate, burst: a.burst.min(b.burst), refill: Refill::Smooth }
    }
}

impl fmt::Display for Bucket {
    /// As it would be written; defaults are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rate)?;
        if self.burst != self.rate.tokens {
            write!(f, " burst={}", self.burst)?;
        }
        if self.refill == Refill::Step {
            f.write_str(" refill=step")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any valid bucket of at most an hour's period, so that windows of interest stay small.
    pub(crate) fn buckets() -> impl Strategy<Value = Bucket> {
        (1..2000_u32, 1..100_000_u64, 1..5000_u32, any::<bool>()).prop_filter_map(
            "out of bounds",
            |(tokens, millis, burst, step)| {
                let rate = Rate::new(tokens, Period::from_millis(millis)?)?;
                let refill = if step { Refill::Step } else { Refill::Smooth };
                Bucket::new(rate, burst, refill)
            },
        )
    }

    /// The most that a bucket can admit in a stretch of `window` ms, wherever it lies.
    fn most(bucket: Bucket, window: u64) -> u64 {
        let (tokens, period) = (u64::from(bucket.rate.tokens()), bucket.rate.period.millis());
        let refilled = match bucket.refill {
            Refill::Smooth => tokens * window / period,
            // As many steps as can fall into the stretch.
            Refill::Step => tokens * (window / period + 1),
        };
        u64::from(bucket.burst()) + refilled
    }

    proptest! {
        #[test]
        fn the_stricter_of_two_admits_no_more_than_either(
            a in buckets(), b in buckets(), window in 0..500_000_u64,
        ) {
            let strict = a.stricter(b);
            prop_assert!(most(strict, window) <= most(a, window));
            prop_assert!(most(strict, window) <= most(b, window));
            prop_assert!(!strict.overflows());
            prop_assert!(!strict.slower_than(MAX_WINDOW));
        }

        #[test]
        fn a_bucket_is_the_stricter_of_itself_and_itself(a in buckets()) {
            prop_assert_eq!(a.stricter(a), a);
        }

        #[test]
        fn the_order_of_two_matters_only_between_equals(a in buckets(), b in buckets()) {
            let (one, other) = (a.stricter(b), b.stricter(a));
            prop_assert!(one.rate.speed(other.rate).is_eq());
            prop_assert_eq!(one.burst, other.burst);
        }
    }

    #[test]
    fn periods_print_in_the_largest_whole_unit() {
        let print = |millis| Period::from_millis(millis).map(|period| period.to_string());
        assert_eq!(print(1).as_deref(), Some("1ms"));
        assert_eq!(print(1500).as_deref(), Some("1500ms"));
        assert_eq!(print(90_000).as_deref(), Some("90s"));
        assert_eq!(print(60_000).as_deref(), Some("1m"));
        assert_eq!(print(86_400_000).as_deref(), Some("24h"));
        assert_eq!(print(0), None);
    }

    #[test]
    fn rates_are_bounded() {
        assert!(Rate::new(0, Period::SECOND).is_none());
        assert!(Rate::new(10_000_000, Period::SECOND).is_some());
        assert!(Rate::new(10_000_001, Period::SECOND).is_none());
        let month = Period::from_millis(30 * 24 * 3_600_000).unwrap();
        let rate = Rate::new(1, month).unwrap();
        assert!(Bucket::new(rate, 1, Refill::Smooth).is_some());
        assert!(Bucket::new(rate, 2, Refill::Smooth).is_none());
    }

    #[test]
    fn equal_speeds_are_equal_whatever_their_period() {
        let rate =
            |tokens, millis| Rate::new(tokens, Period::from_millis(millis).unwrap()).unwrap();
        assert_eq!(rate(10, 60_000).speed(rate(1, 6000)), Ordering::Equal);
        assert_eq!(rate(11, 60_000).speed(rate(1, 6000)), Ordering::Greater);
    }
}

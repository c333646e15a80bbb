//! The reference: a token bucket as a textbook has it, in whole numbers that cannot overflow.
//!
//! It owns what a limit means. It keeps a level and the time of the last look, adds what came
//! back since, and caps it; tokens are the rational `level / cost`, so nothing is ever rounded.
//! It refuses to know of words, of wrapping and of compare-and-swap.
#![allow(dead_code, reason = "every suite uses its own part of the model")]

/// A bucket in some unit of time: 1/256 ns or ticks of 64 ns.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub(crate) cost: i128,
    pub(crate) burst: i128,
    pub(crate) step: i128,
    /// Steps are counted anew whenever the unit's clock comes round; 0 when it never does.
    clock_range: i128,
    level: i128,
    seen: i128,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn full(cost: u64, burst: u64, step: u64, clock_range: i128, now: i128) -> Self {
        let mut bucket = Self {
            cost: cost.into(),
            burst: burst.into(),
            step: step.into(),
            clock_range,
            level: burst.into(),
            seen: 0,
        };
        bucket.seen = bucket.visible(now);
        bucket
    }

    /// The last moment at which something came back.
    pub(crate) fn visible(&self, now: i128) -> i128 {
        if self.step == 0 {
            return now;
        }
        let in_range = if self.clock_range == 0 { now } else { now % self.clock_range };
        now - in_range % self.step
    }

    fn refill(&mut self, now: i128) {
        let visible = self.visible(now);
        self.level = self.burst.min(self.level + visible - self.seen);
        self.seen = visible;
    }

    /// Takes one token if it is there.
    pub(crate) fn take(&mut self, now: i128) -> bool {
        self.refill(now);
        let there = self.level >= self.cost;
        if there {
            self.level -= self.cost;
        }
        there
    }

    /// Puts one token back.
    pub(crate) fn refund(&mut self, now: i128) {
        self.refill(now);
        self.level = self.burst.min(self.level + self.cost);
    }

    /// Loses a part of a token.
    pub(crate) fn lose(&mut self, amount: i128) {
        self.level -= amount;
    }

    /// Whole tokens in the bucket.
    pub(crate) fn tokens(&mut self, now: i128) -> u64 {
        self.refill(now);
        u64::try_from(self.level.max(0) / self.cost).unwrap_or(u64::MAX)
    }

    /// The time that the bucket's content is worth.
    pub(crate) fn level(&mut self, now: i128) -> i128 {
        self.refill(now);
        self.level
    }

    /// When the bucket will be full if nobody takes.
    pub(crate) fn full_at(&self) -> i128 {
        self.seen + self.burst - self.level
    }

    /// How long a client has to wait for its token, at least.
    pub(crate) fn wait(&mut self, now: i128) -> i128 {
        self.refill(now);
        let missing = (self.cost - self.level).max(0);
        if missing == 0 {
            return 0;
        }
        if self.step == 0 {
            return missing;
        }
        // Small and slow on purpose: look at one refill after the other.
        let mut at = now;
        loop {
            let in_range = if self.clock_range == 0 { at } else { at % self.clock_range };
            let mut next = at + self.step - in_range % self.step;
            if self.clock_range != 0 {
                next = next.min(at - in_range + self.clock_range);
            }
            if next - self.seen >= missing {
                return next - now;
            }
            at = next;
        }
    }
}

/// Checks that no window of a run holds more admissions than its time allows.
///
/// `admitted` are the admissions in the order in which they happened, which need not be that of
/// their times: a clock may step back. A window's time is the span that its clocks showed.
pub(crate) fn never_more_than(burst: i128, cost: i128, step: i128, admitted: &[i128]) {
    for (first, &start) in admitted.iter().enumerate() {
        let (mut earliest, mut latest) = (start, start);
        for (count, &time) in (1..).zip(&admitted[first..]) {
            earliest = earliest.min(time);
            latest = latest.max(time);
            let allowed = latest - earliest + step + burst;
            assert!(
                count * cost <= allowed,
                "{count} tokens of {cost} in a window of {} with a burst of {burst}",
                latest - earliest,
            );
        }
    }
}

//! How many new connections there were in each of the last seconds, and the peaks of the last hour.
//!
//! Counters only ever say "so far". Whoever wants to know how fast it went has to have looked in
//! between, so the agent reads the counters that `weir status` reads once a second. What it keeps
//! is bounded: a minute of seconds and an hour of minutes for each [`Series`], 3 KiB at most.
//! It has never heard of limits or workloads: it is told counters and the time.

use std::collections::VecDeque;

/// Seconds that are kept one by one.
pub(super) const SECONDS: usize = 60;
/// Minutes of which the peaks are kept.
pub(super) const MINUTES: usize = 60;
/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;
/// Nanoseconds of a minute.
const MINUTE_NS: u64 = 60 * SECOND_NS;

/// New connections: how many went on, and how many were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    /// Went on, in shadow too.
    pub(super) passed: u64,
    /// Were refused.
    pub(super) refused: u64,
}

impl Flow {
    /// All that asked.
    pub(super) const fn asked(self) -> u64 {
        self.passed.saturating_add(self.refused)
    }

    fn per_second(self, elapsed_ns: u64) -> Second {
        // Rounded to the nearest: a timer that is a little late must not lose one of a hundred.
        let scaled = |count: u64| {
            let scaled = (u128::from(count) * u128::from(SECOND_NS) + u128::from(elapsed_ns / 2))
                / u128::from(elapsed_ns.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX)
        };
        Second { passed: scaled(self.passed), refused: scaled(self.refused) }
    }
}

/// A counter of the kernel's between two looks.
///
/// It may read too low for a moment: what a limit of another rate counted before is added a second
/// after the change, and a refund may be seen before its take. So only what exceeds the highest
/// reading is new, until a counter has stayed low for so long that it must have started anew.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter {
    highest: Option<Flow>,
    low: u8,
}

impl Counter {
    /// Looks in a row after which a low counter is a new one.
    const ANEW: u8 = 5;

    /// What came since the last look. Nothing is known at the first.
    pub(super) fn look(&mut self, now: Flow) -> Flow {
        let Some(before) = self.highest else {
            self.highest = Some(now);
            return Flow::default();
        };
        let is_low = now.passed < before.passed || now.refused < before.refused;
        self.low = if is_low { self.low + 1 } else { 0 };
        if self.low >= Self::ANEW {
            *self = Self { highest: Some(now), low: 0 };
            return Flow::default();
        }
        self.highest = Some(Flow {
            passed: now.passed.max(before.passed),
            refused: now.refused.max(before.refused),
        });
        Flow {
            passed: now.passed.saturating_sub(before.passed),
            refused: now.refused.saturating_sub(before.refused),
        }
    }
}

/// One second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Second {
    pub(super) passed: u32,
    pub(super) refused: u32,
}

/// The most that was seen in some stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peak {
    /// Asked in the busiest second.
    pub(super) second: u64,
    /// Asked in the busiest sixty seconds that follow each other.
    pub(super) minute: u64,
    /// Refused in all of the time.
    pub(super) refused: u64,
    /// Asked in all of the time.
    pub(super) asked: u64,
}

impl Peak {
    fn and(self, other: Self) -> Self {
        Self {
            second: self.second.max(other.second),
            minute: self.minute.max(other.minute),
            refused: self.refused.saturating_add(other.refused),
            asked: self.asked.saturating_add(other.asked),
        }
    }
}

/// What one counter did.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    seconds: VecDeque<Second>,
    minutes: VecDeque<Peak>,
    minute: Peak,
    minute_began_ns: u64,
    first_ns: u64,
    last_ns: Option<u64>,
}

impl Series {
    /// Takes in what came since the last look. The first look only starts the clock.
    pub(super) fn add(&mut self, flow: Flow, now_ns: u64) {
        let Some(last_ns) = self.last_ns.replace(now_ns) else {
            (self.first_ns, self.minute_began_ns) = (now_ns, now_ns);
            return;
        };
        let elapsed_ns = now_ns.saturating_sub(last_ns);
        if elapsed_ns == 0 {
            // Two looks at once: the second one's number is part of the next second.
            self.last_ns = Some(last_ns);
            return;
        }
        let second = flow.per_second(elapsed_ns);
        // A look that came late stands for every second that it missed, as their mean.
        let missed = ((elapsed_ns + SECOND_NS / 2) / SECOND_NS).clamp(1, SECONDS as u64);
        for _ in 0..missed {
            push(&mut self.seconds, second, SECONDS);
        }
        let asked = |second: &Second| u64::from(second.passed) + u64::from(second.refused);
        if now_ns.saturating_sub(self.minute_began_ns) > MINUTE_NS {
            push(&mut self.minutes, std::mem::take(&mut self.minute), MINUTES);
            self.minute_began_ns = now_ns;
        }
        self.minute = self.minute.and(Peak {
            second: asked(&second),
            minute: self.seconds.iter().map(asked).sum(),
            refused: flow.refused,
            asked: flow.asked(),
        });
    }

    /// The last seconds, the newest last; fewer than [`SECONDS`] when the series is younger.
    pub(super) fn seconds(&self) -> impl Iterator<Item = Second> + '_ {
        self.seconds.iter().copied()
    }

    /// The most of all that is kept.
    pub(super) fn peak(&self) -> Peak {
        let peak = self.minutes.iter().fold(self.minute, |peak, minute| peak.and(*minute));
        // Seconds are rounded, each for itself.
        Peak { minute: peak.minute.min(peak.asked), ..peak }
    }

    /// How much time [`Self::peak`] is about, in nanoseconds.
    pub(super) fn watched_ns(&self) -> u64 {
        let watched = self.last_ns.unwrap_or_default().saturating_sub(self.first_ns);
        watched.min((MINUTES as u64 + 1) * MINUTE_NS)
    }
}

fn push<T>(ring: &mut VecDeque<T>, value: T, longest: usize) {
    if ring.len() >= longest {
        ring.pop_front();
    }
    ring.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(passed: u64) -> Flow {
        Flow { passed, refused: 0 }
    }

    /// A series of these numbers, one each second.
    fn series(numbers: impl IntoIterator<Item = u64>) -> Series {
        let mut series = Series::default();
        series.add(Flow::default(), SECOND_NS);
        for (second, number) in (2..).zip(numbers) {
            series.add(passed(number), second * SECOND_NS);
        }
        series
    }

    #[test]
    fn the_first_look_counts_nothing() {
        let mut series = Series::default();
        series.add(passed(1_000_000), SECOND_NS);
        assert_eq!((series.seconds().count(), series.peak()), (0, Peak::default()));
        assert_eq!(series.watched_ns(), 0);
    }

    #[test]
    fn a_minute_is_any_sixty_seconds() {
        // Thirty busy seconds around the change of the minute.
        let numbers = (0..120).map(|second| if (45..75).contains(&second) { 10 } else { 1 });
        let peak = series(numbers).peak();
        assert_eq!((peak.second, peak.minute), (10, 330));
        assert_eq!(peak.asked, 390);
    }

    #[test]
    fn what_is_kept_is_bounded_and_an_old_peak_is_forgotten() {
        let mut numbers = vec![1; 3 * 3600];
        numbers[10] = 500;
        let series = series(numbers);
        assert_eq!((series.seconds.len(), series.minutes.len()), (SECONDS, MINUTES));
        assert_eq!(series.peak().second, 1);
        assert!(series.watched_ns() <= 61 * MINUTE_NS);
    }

    #[test]
    fn a_late_look_is_a_mean_and_not_a_peak() {
        let mut series = Series::default();
        series.add(Flow::default(), SECOND_NS);
        series.add(Flow { passed: 300, refused: 30 }, 4 * SECOND_NS);
        let second = Second { passed: 100, refused: 10 };
        assert_eq!(series.seconds().collect::<Vec<_>>(), [second; 3]);
        let peak = Peak { second: 110, minute: 330, refused: 30, asked: 330 };
        assert_eq!(series.peak(), peak);
        // A little late is a second all the same.
        series.add(passed(100), 5 * SECOND_NS + 4_000_000);
        assert_eq!(series.seconds().last(), Some(Second { passed: 100, refused: 0 }));
    }

    #[test]
    fn counters_that_start_anew_have_nothing_to_tell() {
        let mut counter = Counter::default();
        let mut look = |number| counter.look(passed(number)).passed;
        assert_eq!([100, 130, 130].map(&mut look), [0, 30, 0]);
        // A moment of less is no news, and neither is its end.
        assert_eq!([4, 6, 140].map(&mut look), [0, 0, 10]);
        assert_eq!([1, 2, 3, 4, 5, 7].map(&mut look), [0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn two_looks_at_one_time_are_one() {
        let mut series = series([1]);
        series.add(passed(7), 2 * SECOND_NS);
        assert_eq!(series.seconds().count(), 1);
    }
}

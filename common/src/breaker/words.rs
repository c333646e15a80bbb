//! A breaker's words: what their bits mean, and how their times compare.

use super::{Edge, Params, Verdict};

pub(super) const MS: u64 = 1_000_000;

/// How old a time may be that a CPU brings along: 4.3 s, because a virtual CPU may be stopped between
/// reading the clock and changing a word.
pub const SKEW_MS: u64 = 4295;

const EPOCH: u32 = 8;
const EJECTIONS: u32 = 8;
const TIME: u32 = 34;
const CONSECUTIVE: u32 = 12;
const PROBES: u32 = 6;
const NUMBER: u32 = 20;
pub(super) const COUNT: u32 = 18;

pub(super) const MAX_CONSECUTIVE: u64 = 1023;
/// Among the bits of consecutive failures.
const CALM: u64 = 1 << (CONSECUTIVE - 1);
const _: () = assert!(MAX_CONSECUTIVE < CALM);
/// Of an open breaker: it did not trip itself. Written and read outside the kernel only.
pub(super) const TOLD: u64 = 1;
pub(super) const MAX_PROBES: u64 = mask(PROBES);

const _: () = {
    assert!(2 + EPOCH + EJECTIONS + TIME + CONSECUTIVE == 64);
    assert!(NUMBER + 3 * PROBES <= TIME + CONSECUTIVE);
    assert!(EPOCH + NUMBER + 2 * COUNT == 64);
    // A count that was halved still is a volume.
    assert!(mask(COUNT) / 2 > 65_535);
};

#[inline(always)]
pub(super) const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[inline(always)]
pub(super) const fn at_most(number: u64, most: u64) -> u64 {
    if number < most { number } else { most }
}

/// Words of a line that a breaker uses; behind them whoever asks leaves its packed parameters.
pub const WORDS: usize = 4;

pub(super) const STATE: usize = 0;
pub(super) const ATTEMPTS: usize = 3;

/// A tick is 2^20 ns.
pub(super) const TICK_SHIFT: u32 = 20;
const SKEW_TICKS: u64 = (SKEW_MS * MS) >> TICK_SHIFT;

/// The tick of a time, and the first that is not before it.
#[inline(always)]
pub(super) const fn tick(ns: u64) -> u64 {
    (ns >> TICK_SHIFT) & mask(TIME)
}

#[inline(always)]
const fn tick_up(ns: u64) -> u64 {
    tick(ns.wrapping_add(mask(TICK_SHIFT)))
}

/// How many units a number of a word is behind; `None` when it is ahead, by no more than the clocks of
/// two CPUs may differ.
#[inline(always)]
pub(super) const fn behind(now: u64, number: u64, unit_ms: u64) -> Option<u64> {
    let ahead = number.wrapping_sub(now) & mask(NUMBER);
    if ahead == 1 || (ahead > 1 && ahead <= SKEW_MS && ahead * unit_ms <= SKEW_MS) {
        None
    } else {
        Some(now.wrapping_sub(number) & mask(NUMBER))
    }
}

/// A time, and what is counted by it.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) now_ns: u64,
    pub(super) timeout_ms: u64,
    pub(super) period: u64,
}

impl Clock {
    #[inline(always)]
    pub(super) fn new(params: &Params, now_ns: u64) -> Self {
        let timeout_ms = at_least_one(params.timeout_ms);
        Self { now_ns, timeout_ms, period: units(now_ns, timeout_ms) }
    }

    /// The period of an earlier time; all that is older than the previous one is the same.
    #[inline(always)]
    pub(super) const fn period_of(&self, ns: u64) -> u64 {
        let timeout_ns = self.timeout_ms * MS;
        let start = self.period * timeout_ns;
        if ns >= start {
            self.period
        } else if ns >= start.saturating_sub(timeout_ns) {
            self.period.wrapping_sub(1)
        } else {
            self.period.wrapping_sub(2)
        }
    }
}

/// A divisor.
#[inline(always)]
const fn at_least_one(ms: u32) -> u64 {
    if ms == 0 { 1 } else { ms as u64 }
}

/// `ns` in units of so many milliseconds, of which there is one at least. Checked, or compilers would
/// call for a panic.
#[inline(always)]
const fn units(ns: u64, ms: u64) -> u64 {
    match ns.checked_div(ms * MS) {
        Some(units) => units,
        None => 0,
    }
}

/// A word of `epoch:8 | number:20 | a:18 | b:18`.
#[inline(always)]
pub(super) const fn counts(epoch: u64, number: u64, a: u64, b: u64) -> u64 {
    epoch << (64 - EPOCH) | (number & mask(NUMBER)) << (2 * COUNT) | a << COUNT | b
}

#[inline(always)]
pub(super) const fn epoch_of(word: u64) -> u64 {
    word >> (64 - EPOCH)
}

#[inline(always)]
pub(super) const fn number_of(word: u64) -> u64 {
    word >> (2 * COUNT) & mask(NUMBER)
}

/// Attempts without a verdict.
#[derive(Clone, Copy)]
pub(super) struct Attempts {
    pub(super) period: u64,
    /// That began in the period before.
    pub(super) previous: u64,
    /// That began in it.
    pub(super) current: u64,
}

impl Attempts {
    const NONE: Self = Self { period: 0, previous: 0, current: 0 };

    #[inline(always)]
    pub(super) const fn read(word: u64, epoch: u64) -> Self {
        if epoch_of(word) != epoch {
            return Self::NONE;
        }
        Self {
            period: number_of(word),
            previous: word >> COUNT & mask(COUNT),
            current: word & mask(COUNT),
        }
    }

    #[inline(always)]
    pub(super) const fn write(self, epoch: u64) -> u64 {
        counts(epoch, self.period, self.previous, self.current)
    }

    #[inline(always)]
    pub(super) const fn all(self) -> u64 {
        self.previous + self.current
    }

    /// What is left of them now, and how many timed out.
    #[inline(always)]
    pub(super) const fn at(self, clock: Clock) -> (Self, u64) {
        let period = clock.period & mask(NUMBER);
        if self.all() == 0 {
            return (Self { period, ..Self::NONE }, 0);
        }
        match behind(period, self.period, clock.timeout_ms) {
            None | Some(0) => (self, 0),
            Some(1) => (Self { period, previous: self.current, current: 0 }, self.previous),
            Some(_) => (Self { period, ..Self::NONE }, self.all()),
        }
    }

    /// One less, that began in `period`; `None` when it timed out before, or was never counted.
    #[inline(always)]
    pub(super) const fn without(mut self, period: u64) -> Option<Self> {
        // Who admitted it may have had an older time than the word: then it stands in a later period.
        match self.period.wrapping_sub(period) & mask(NUMBER) {
            1 if self.previous > 0 => self.previous -= 1,
            0 | 1 if self.current > 0 => self.current -= 1,
            _ => return None,
        }
        Some(self)
    }
}

/// What came of the connections of a window.
#[derive(Clone, Copy)]
pub(super) struct Verdicts {
    pub(super) ok: u64,
    pub(super) failed: u64,
}

impl Verdicts {
    const NONE: Self = Self { ok: 0, failed: 0 };

    #[inline(always)]
    pub(super) const fn read(word: u64) -> Self {
        Self { ok: word >> COUNT & mask(COUNT), failed: word & mask(COUNT) }
    }

    #[inline(always)]
    pub(super) const fn is_empty(self) -> bool {
        self.ok == 0 && self.failed == 0
    }

    /// Both. A word that cannot hold more keeps the ratio by halving both counts.
    #[inline(always)]
    pub(super) const fn and(self, other: Self) -> Self {
        let (ok, failed) = (self.ok + other.ok, self.failed + other.failed);
        if ok <= mask(COUNT) && failed <= mask(COUNT) {
            return Self { ok, failed };
        }
        // Two periods of attempts may time out at once.
        Self { ok: at_most(ok / 2, mask(COUNT)), failed: at_most(failed / 2, mask(COUNT)) }
    }
}

/// Where a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Lets connections through.
    Closed = 0,
    /// Refuses them.
    Open = 1,
    /// Lets a few try.
    HalfOpen = 2,
}

/// Word 0.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) epoch: u64,
    /// Ejections in a row.
    pub(super) ejections: u64,
    /// Since when it is closed, or until when it is open, in ticks.
    pub(super) time: u64,
    /// Failures in a row while it is closed.
    pub(super) consecutive: u64,
    /// A success followed them. It ends the row for any other failure, but not for one of the same kind
    /// of connection that succeeded first: who answers and then resets fails in a row all the same. The
    /// next success, or one that is sure, makes the row end for good.
    pub(super) calm: bool,
    /// Attempts while it is half-open.
    pub(super) probes: Attempts,
    /// Successes while it is half-open.
    pub(super) succeeded: u64,
}

impl State {
    #[inline(always)]
    pub(super) const fn read(word: u64) -> Self {
        let mut state = Self {
            phase: Phase::Closed,
            epoch: word >> (64 - 2 - EPOCH) & mask(EPOCH),
            ejections: word >> (TIME + CONSECUTIVE) & mask(EJECTIONS),
            time: word >> CONSECUTIVE & mask(TIME),
            consecutive: 0,
            calm: false,
            probes: Attempts::NONE,
            succeeded: 0,
        };
        match word >> 62 {
            1 => state.phase = Phase::Open,
            2 => {
                state.phase = Phase::HalfOpen;
                state.time = 0;
                state.probes = Attempts {
                    period: word >> (3 * PROBES) & mask(NUMBER),
                    previous: word >> (2 * PROBES) & mask(PROBES),
                    current: word >> PROBES & mask(PROBES),
                };
                state.succeeded = word & mask(PROBES);
            }
            _ => {
                state.consecutive = word & MAX_CONSECUTIVE;
                state.calm = word & CALM != 0;
            }
        }
        state
    }

    #[inline(always)]
    pub(super) const fn write(self) -> u64 {
        let rest = match self.phase {
            Phase::Closed | Phase::Open => {
                let calm = if self.calm { CALM } else { 0 };
                self.time << CONSECUTIVE | calm | self.consecutive
            }
            Phase::HalfOpen => {
                self.probes.period << (3 * PROBES)
                    | self.probes.previous << (2 * PROBES)
                    | self.probes.current << PROBES
                    | self.succeeded
            }
        };
        (self.phase as u64) << 62
            | self.epoch << (64 - 2 - EPOCH)
            | self.ejections << (TIME + CONSECUTIVE)
            | rest
    }

    /// Another phase, which begins a new epoch.
    #[inline(always)]
    const fn enter(self, phase: Phase) -> Self {
        Self {
            phase,
            epoch: (self.epoch + 1) & mask(EPOCH),
            ejections: self.ejections,
            time: 0,
            consecutive: 0,
            calm: false,
            probes: Attempts::NONE,
            succeeded: 0,
        }
    }

    #[inline(always)]
    pub(super) const fn closed(self, now_ns: u64) -> Self {
        Self { time: tick_up(now_ns), ..self.enter(Phase::Closed) }
    }

    /// Open, after so many ejections in a row before this one.
    #[inline(always)]
    pub(super) const fn open(self, before: u64, params: &Params, now_ns: u64) -> Self {
        let ejections = if before < mask(EJECTIONS) { before + 1 } else { before };
        let until = now_ns.wrapping_add(params.ejection_ns(ejections));
        Self { ejections, time: tick_up(until), ..self.enter(Phase::Open) }
    }

    #[inline(always)]
    pub(super) const fn half_open(self, clock: Clock) -> Self {
        let probes = Attempts { period: clock.period & mask(NUMBER), ..Attempts::NONE };
        Self { probes, ..self.enter(Phase::HalfOpen) }
    }

    /// Ejections in a row that are not forgotten: one less for each whole interval since it closed.
    #[inline(always)]
    pub(super) const fn remembered(&self, params: &Params, now_ns: u64) -> u64 {
        if self.ejections == 0 {
            return 0;
        }
        let ticks = tick(now_ns).wrapping_sub(self.time) & mask(TIME);
        // A CPU may have an older time than whoever closed it.
        let ticks = if ticks > mask(TIME) / 2 { 0 } else { ticks };
        let forgotten = units(ticks << TICK_SHIFT, at_least_one(params.interval_ms));
        self.ejections.saturating_sub(forgotten)
    }

    /// Ticks for which it stays open.
    #[inline(always)]
    pub(super) const fn remaining(&self, params: &Params, now_ns: u64) -> u64 {
        let longest = (params.max_ejection_ms as u64 * MS) >> TICK_SHIFT;
        let ahead = self.time.wrapping_sub(tick(now_ns)) & mask(TIME);
        if ahead > longest + 2 + SKEW_TICKS { 0 } else { ahead }
    }

    /// What a half-open breaker becomes with a verdict on a probe; `None` when nothing changes.
    #[inline(always)]
    pub(super) const fn probed(
        self,
        verdict: Verdict,
        period: u64,
        params: &Params,
        clock: Clock,
    ) -> Option<(Self, Edge)> {
        let reopened = (self.open(self.ejections, params, clock.now_ns), Edge::Reopened);
        let (probes, timed_out) = self.probes.at(clock);
        if timed_out > 0 || matches!(verdict, Verdict::FailedAfterSuccess) {
            return Some(reopened);
        }
        if matches!(verdict, Verdict::SucceededAgain) {
            return None;
        }
        let Some(probes) = probes.without(period) else { return None };
        match verdict {
            Verdict::SucceededAgain => None,
            Verdict::Failed | Verdict::FailedAfterSuccess => Some(reopened),
            Verdict::Abandoned => Some((Self { probes, ..self }, Edge::None)),
            Verdict::Succeeded if self.succeeded + 1 >= params.permits() => {
                Some((self.closed(clock.now_ns), Edge::Closed))
            }
            Verdict::Succeeded => {
                Some((Self { probes, succeeded: self.succeeded + 1, ..self }, Edge::None))
            }
        }
    }
}

/// The words of the window that a number names, and of the one before.
#[inline(always)]
pub(super) const fn windows(number: u64) -> (usize, usize) {
    if number & 1 == 0 { (1, 2) } else { (2, 1) }
}

#[inline(always)]
pub(super) fn window(params: &Params, now_ns: u64) -> u64 {
    units(now_ns, at_least_one(params.interval_ms)) & mask(NUMBER)
}

/// The verdicts of a word that belong to a window or the one before it.
#[inline(always)]
pub(super) const fn recent(word: u64, epoch: u64, number: u64, params: &Params) -> Verdicts {
    match behind(number, number_of(word), params.interval_ms as u64) {
        None | Some(0 | 1) if epoch_of(word) == epoch => Verdicts::read(word),
        _ => Verdicts::NONE,
    }
}

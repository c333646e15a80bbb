//! A circuit breaker in four words: it stops connections to what does not answer.
//!
//! Closed, it lets connections through and learns from each: an answered handshake is a success; a
//! refused one, one without an answer for long, or a reset soon after is a failure. Enough failures
//! trip it. Open, it refuses for a while, longer each time in a row. Half-open, a few connections try:
//! it closes when enough succeeded, and opens again with the first failure.
//!
//! **Word 0 is the truth**: phase, epoch, and what belongs to the phase.
//!
//! | | `phase:2` | `epoch:8` | `ejections:8` | 46 bits |
//! |---|---|---|---|---|
//! | closed | 0 | | | `since:34`, `calm:2`, `consecutive:10` |
//! | open | 1 | | | `until:34`, 12 unused |
//! | half-open | 2 | | | 8 unused, `period:20`, `previous:6`, `current:6`, `succeeded:6` |
//!
//! Words 1 to 3 are `epoch:8 | number:20 | a:18 | b:18`, and mean nothing unless their epoch is word
//! 0's. Words 1 and 2 count successes and failures, in even and odd windows of `interval`. Word 3
//! counts the attempts that have no verdict, by the period of `timeout` they began in: `a` in the one
//! before, `b` in this one. An attempt that began two periods ago has failed. So a time-out is noticed
//! between one and two time-outs after the attempt by whoever comes next, and nobody walks anything.
//!
//! # What races can do
//!
//! Every change of phase is one compare-and-swap of word 0, which counts the epoch up. So there is one
//! winner, who gets the [`Edge`]; for all others their epoch is over, and what they bring changes
//! nothing. Tripping clears the other words in the same instant, since they carry the old epoch; the
//! next who counts takes them over. Nobody takes a word of a new epoch for one of an old: who counts
//! reads the word to be changed first and word 0 second. If word 0 still has the writer's epoch, what
//! was read before belongs to that epoch or an earlier one; if the word changed since, the
//! compare-and-swap fails.
//!
//! - A SYN whose last look at word 0 follows the tripping compare-and-swap is not admitted.
//! - Half-open, the attempts stand in word 0 too: permits, verdicts and time-outs are one word, exact
//!   in any order. A lost verdict is a time-out, so a permit is out for two time-outs at most.
//! - Closed, each attempt has one verdict: it leaves word 3 by one compare-and-swap, with its verdict
//!   or by time, and only whoever took it away counts it. A verdict that comes later changes nothing.
//! - Who loses [`TRIES`] rounds on word 0, 1 or 2 loses its count: a failure lost leaves the breaker
//!   closed for longer, a success lost trips it earlier. Who loses them on word 3 leaves the attempt to
//!   its time-out; a SYN is refused as contended.
//! - Between counting in a window and word 0 others may trip the breaker for another reason; the late
//!   one changes nothing. Of two that count at once the later sees both, so no trip is missed.
//!
//! # Times
//!
//! Word 0 counts ticks of 2^20 ns, which come round after 208 days. Open means that the end is ahead by
//! no more than the longest ejection (and [`SKEW_MS`]), so a breaker that nobody met for 208 days is
//! open for that long at most, and one whose longest ejection was lowered is not open for longer.
//! Periods and windows come round after 2^20: an idle word could be taken for a fresh one at that
//! very time, which counts some old verdicts once more or notices a time-out later.
//!
//! CPUs read the clock before they change a word. A word that is ahead by little was written by a CPU
//! with a newer time: it is taken as it is, and never brought back.

use crate::{
    way::Line,
    word::{TRIES, Word},
};

/// What trips a breaker, and how it comes back.
///
/// They do not change while a breaker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Without an answer for so long, an attempt has failed, ms; 1 to 2^20 - 1.
    pub timeout_ms: u32,
    /// How long it stays open the first time, ms; 1 to 2^28 - 1.
    pub ejection_ms: u32,
    /// How long it stays open at most, ms; 1 to 2^28 - 1.
    pub max_ejection_ms: u32,
    /// The window of the failure ratio, and how long no failure makes it forget one ejection, ms; 1 to
    /// 2^32 - 1.
    pub interval_ms: u32,
    /// Consecutive failures that trip it; 0 for never; 1023 at most.
    pub errors: u32,
    /// Failures in a hundred verdicts that trip it, at the next failure; 0 for never; 100 at most.
    pub error_ratio: u32,
    /// Verdicts in the window before the ratio counts; 1 to 65 535.
    pub min_volume: u32,
    /// Connections that may try it at once when it is half-open, and successes that close it; 63 at
    /// most. With 0 it closes when its time is over.
    pub probes: u32,
}

impl Params {
    /// As a rule carries them.
    pub const fn pack(self) -> [u64; 3] {
        [
            self.timeout_ms as u64 | (self.ejection_ms as u64) << 32,
            self.max_ejection_ms as u64 | (self.interval_ms as u64) << 32,
            self.errors as u64
                | (self.error_ratio as u64) << 16
                | (self.probes as u64) << 24
                | (self.min_volume as u64) << 32,
        ]
    }

    /// From a rule.
    #[inline(always)]
    pub const fn unpack(words: [u64; 3]) -> Self {
        Self {
            timeout_ms: words[0] as u32,
            ejection_ms: (words[0] >> 32) as u32,
            max_ejection_ms: words[1] as u32,
            interval_ms: (words[1] >> 32) as u32,
            errors: words[2] as u32 & 0xffff,
            error_ratio: (words[2] >> 16) as u32 & 0xff,
            probes: (words[2] >> 24) as u32 & 0xff,
            min_volume: (words[2] >> 32) as u32,
        }
    }

    /// How long it stays open the so-manieth time in a row.
    #[inline(always)]
    const fn ejection_ns(&self, ejections: u64) -> u64 {
        // 2^28 ms, 255 times: far below 2^64 ns.
        at_most(self.ejection_ms as u64 * ejections * MS, self.max_ejection_ms as u64 * MS)
    }

    /// Permits of a half-open breaker.
    #[inline(always)]
    const fn permits(&self) -> u64 {
        if self.probes == 0 { 1 } else { at_most(self.probes as u64, MAX_PROBES) }
    }

    /// Whether so many verdicts trip it.
    #[inline(always)]
    const fn ratio_trips(&self, verdicts: Verdicts) -> bool {
        let all = verdicts.ok + verdicts.failed;
        self.error_ratio > 0
            && all >= self.min_volume as u64
            && verdicts.failed * 100 >= self.error_ratio as u64 * all
    }
}

const MS: u64 = 1_000_000;

/// How old a time may be that a CPU brings along: 4.3 s, because a virtual CPU may be stopped between
/// reading the clock and changing a word.
pub const SKEW_MS: u64 = 4295;

const EPOCH: u32 = 8;
const EJECTIONS: u32 = 8;
const TIME: u32 = 34;
const CONSECUTIVE: u32 = 12;
const PROBES: u32 = 6;
const NUMBER: u32 = 20;
const COUNT: u32 = 18;

const MAX_CONSECUTIVE: u64 = 1023;
/// Among the bits of consecutive failures.
const CALM: u64 = 1 << (CONSECUTIVE - 1);
const _: () = assert!(MAX_CONSECUTIVE < CALM);
const MAX_PROBES: u64 = mask(PROBES);

const _: () = {
    assert!(2 + EPOCH + EJECTIONS + TIME + CONSECUTIVE == 64);
    assert!(NUMBER + 3 * PROBES <= TIME + CONSECUTIVE);
    assert!(EPOCH + NUMBER + 2 * COUNT == 64);
    // A count that was halved still is a volume.
    assert!(mask(COUNT) / 2 > 65_535);
};

#[inline(always)]
const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[inline(always)]
const fn at_most(number: u64, most: u64) -> u64 {
    if number < most { number } else { most }
}

/// Words of a line that a breaker uses; behind them whoever asks leaves its packed parameters.
pub const WORDS: usize = 4;

const STATE: usize = 0;
const ATTEMPTS: usize = 3;

/// A tick is 2^20 ns.
const TICK_SHIFT: u32 = 20;
const SKEW_TICKS: u64 = (SKEW_MS * MS) >> TICK_SHIFT;

/// The tick of a time, and the first that is not before it.
#[inline(always)]
const fn tick(ns: u64) -> u64 {
    (ns >> TICK_SHIFT) & mask(TIME)
}

#[inline(always)]
const fn tick_up(ns: u64) -> u64 {
    tick(ns.wrapping_add(mask(TICK_SHIFT)))
}

/// How many units a number of a word is behind; `None` when it is ahead, by no more than the clocks of
/// two CPUs may differ.
#[inline(always)]
const fn behind(now: u64, number: u64, unit_ms: u64) -> Option<u64> {
    let ahead = number.wrapping_sub(now) & mask(NUMBER);
    if ahead == 1 || (ahead > 1 && ahead <= SKEW_MS && ahead * unit_ms <= SKEW_MS) {
        None
    } else {
        Some(now.wrapping_sub(number) & mask(NUMBER))
    }
}

/// A time, and what is counted by it.
#[derive(Clone, Copy)]
struct Clock {
    now_ns: u64,
    timeout_ms: u64,
    period: u64,
}

impl Clock {
    #[inline(always)]
    fn new(params: &Params, now_ns: u64) -> Self {
        let timeout_ms = at_least_one(params.timeout_ms);
        Self { now_ns, timeout_ms, period: units(now_ns, timeout_ms) }
    }

    /// The period of an earlier time; all that is older than the previous one is the same.
    #[inline(always)]
    const fn period_of(&self, ns: u64) -> u64 {
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
const fn counts(epoch: u64, number: u64, a: u64, b: u64) -> u64 {
    epoch << (64 - EPOCH) | (number & mask(NUMBER)) << (2 * COUNT) | a << COUNT | b
}

#[inline(always)]
const fn epoch_of(word: u64) -> u64 {
    word >> (64 - EPOCH)
}

#[inline(always)]
const fn number_of(word: u64) -> u64 {
    word >> (2 * COUNT) & mask(NUMBER)
}

/// Attempts without a verdict.
#[derive(Clone, Copy)]
struct Attempts {
    period: u64,
    /// That began in the period before.
    previous: u64,
    /// That began in it.
    current: u64,
}

impl Attempts {
    const NONE: Self = Self { period: 0, previous: 0, current: 0 };

    #[inline(always)]
    const fn read(word: u64, epoch: u64) -> Self {
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
    const fn write(self, epoch: u64) -> u64 {
        counts(epoch, self.period, self.previous, self.current)
    }

    #[inline(always)]
    const fn all(self) -> u64 {
        self.previous + self.current
    }

    /// What is left of them now, and how many timed out.
    #[inline(always)]
    const fn at(self, clock: Clock) -> (Self, u64) {
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
    const fn without(mut self, period: u64) -> Option<Self> {
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
struct Verdicts {
    ok: u64,
    failed: u64,
}

impl Verdicts {
    const NONE: Self = Self { ok: 0, failed: 0 };

    #[inline(always)]
    const fn read(word: u64) -> Self {
        Self { ok: word >> COUNT & mask(COUNT), failed: word & mask(COUNT) }
    }

    #[inline(always)]
    const fn is_empty(self) -> bool {
        self.ok == 0 && self.failed == 0
    }

    /// Both. A word that cannot hold more keeps the ratio by halving both counts.
    #[inline(always)]
    const fn and(self, other: Self) -> Self {
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
struct State {
    phase: Phase,
    epoch: u64,
    /// Ejections in a row.
    ejections: u64,
    /// Since when it is closed, or until when it is open, in ticks.
    time: u64,
    /// Failures in a row while it is closed.
    consecutive: u64,
    /// A success followed them. It ends the row for any other failure, but not for one of the same kind
    /// of connection that succeeded first: who answers and then resets fails in a row all the same. The
    /// next success, or one that is sure, makes the row end for good.
    calm: bool,
    /// Attempts while it is half-open.
    probes: Attempts,
    /// Successes while it is half-open.
    succeeded: u64,
}

impl State {
    #[inline(always)]
    const fn read(word: u64) -> Self {
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
    const fn write(self) -> u64 {
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
    const fn closed(self, now_ns: u64) -> Self {
        Self { time: tick_up(now_ns), ..self.enter(Phase::Closed) }
    }

    /// Open, after so many ejections in a row before this one.
    #[inline(always)]
    const fn open(self, before: u64, params: &Params, now_ns: u64) -> Self {
        let ejections = if before < mask(EJECTIONS) { before + 1 } else { before };
        let until = now_ns.wrapping_add(params.ejection_ns(ejections));
        Self { ejections, time: tick_up(until), ..self.enter(Phase::Open) }
    }

    #[inline(always)]
    const fn half_open(self, clock: Clock) -> Self {
        let probes = Attempts { period: clock.period & mask(NUMBER), ..Attempts::NONE };
        Self { probes, ..self.enter(Phase::HalfOpen) }
    }

    /// Ejections in a row that are not forgotten: one less for each whole interval since it closed.
    #[inline(always)]
    const fn remembered(&self, params: &Params, now_ns: u64) -> u64 {
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
    const fn remaining(&self, params: &Params, now_ns: u64) -> u64 {
        let longest = (params.max_ejection_ms as u64 * MS) >> TICK_SHIFT;
        let ahead = self.time.wrapping_sub(tick(now_ns)) & mask(TIME);
        if ahead > longest + 2 + SKEW_TICKS { 0 } else { ahead }
    }

    /// What a half-open breaker becomes with a verdict on a probe; `None` when nothing changes.
    #[inline(always)]
    const fn probed(
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

/// What a breaker says of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It may pass, and a verdict on it is awaited.
    Admitted {
        /// What the verdict must name.
        epoch: u8,
    },
    /// The breaker is open.
    Open,
    /// It is half-open, and enough others are trying.
    Probing,
    /// Too many others changed the words at once; the SYN must not pass.
    Contended,
}

/// A change of phase. Exactly one caller gets each, who reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Edge {
    /// No change.
    None,
    /// From closed to open.
    Tripped,
    /// From half-open to open.
    Reopened,
    /// From open to half-open.
    HalfOpened,
    /// To closed.
    Closed,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It was answered.
    Succeeded = 1,
    /// It was refused.
    Failed = 2,
    /// It was answered, told so, and failed after all.
    FailedAfterSuccess = 3,
    /// It is taken back, which says nothing; a probe's permit returns.
    Abandoned = 4,
    /// It was answered, told so, and works: a response says so.
    SucceededAgain = 5,
}

/// A breaker's words and parameters, as steps of one compare-and-swap each.
///
/// Whoever asks or reports goes through a few of them, and tries one again that another was faster
/// than. In the kernel each is a function of its own, verified once.
pub trait Steps {
    /// Tries to admit a SYN.
    fn try_admit(&self, now_ns: u64) -> Asked;
    /// Tries to take a verdict.
    fn try_judge(&self, epoch: u8, verdict: Verdict, opened_ns: u64, now_ns: u64) -> Told;
    /// Tries to count verdicts of a closed breaker in the present window; whether the ratio trips it.
    fn try_count(&self, epoch: u8, ok: u64, failed: u64, now_ns: u64) -> Counted;
    /// Tries to count failures in a row of a closed breaker, which may trip it. After its own success
    /// a failure goes on with the row.
    fn try_fail(
        &self,
        epoch: u8,
        failures: u64,
        ratio_trips: bool,
        after_success: bool,
        now_ns: u64,
    ) -> Failed;
    /// Tries to end a row of failures, for good if that is sure; `false` to try again.
    fn try_calm(&self, epoch: u8, sure: bool) -> bool;
}

/// What came of [`Steps::try_admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// This, with an edge of this step.
    Done(Admission, Edge),
    /// A closed breaker counted it as an attempt; so many others timed out, which is to be counted.
    Admitted {
        /// What the verdict must name.
        epoch: u8,
        /// How many.
        timed_out: u64,
    },
    /// The breaker closed by this step: try again.
    Closed,
    /// Another was faster: try again.
    Again,
}

/// What came of [`Steps::try_judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing more to do.
    Done(Edge),
    /// A closed breaker took the attempt from those without a verdict.
    Taken {
        /// How many others timed out.
        timed_out: u64,
        /// Whether this one was still there.
        counts: bool,
    },
    /// Another was faster: try again.
    Again,
}

/// What came of [`Steps::try_count`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Counted, or the epoch is over: the ratio does not trip it.
    Calm,
    /// Counted: the ratio trips it.
    Trips,
    /// Another was faster: try again.
    Again,
}

/// What came of counting failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Counted.
    Counted,
    /// Counted, and the breaker is open.
    Tripped,
    /// The epoch is over.
    Stale,
    /// Another was faster: try again.
    Again,
}

/// Asks whether a SYN may pass, and counts it as an attempt if so.
///
/// What timed out before is counted first; if that trips the breaker, this SYN is refused.
#[inline(always)]
pub fn ask<S: Steps>(steps: &S, now_ns: u64) -> (Admission, Edge) {
    let mut edge = Edge::None;
    for _ in 0..TRIES {
        match steps.try_admit(now_ns) {
            Asked::Done(admission, Edge::None) => return (admission, edge),
            Asked::Done(admission, last) => return (admission, last),
            Asked::Admitted { epoch, timed_out: 0 } => {
                return (Admission::Admitted { epoch }, edge);
            }
            // The attempt that was counted is of an epoch that is over if this trips it.
            Asked::Admitted { epoch, timed_out } => {
                return match fail(steps, epoch, timed_out, false, now_ns) {
                    Failed::Counted => (Admission::Admitted { epoch }, edge),
                    Failed::Tripped => (Admission::Open, Edge::Tripped),
                    Failed::Stale => (Admission::Open, edge),
                    Failed::Again => (Admission::Contended, edge),
                };
            }
            Asked::Closed => edge = Edge::Closed,
            Asked::Again => {}
        }
    }
    (Admission::Contended, edge)
}

/// Reports what came of an attempt that was admitted in `epoch` at `opened_ns`.
#[inline(always)]
pub fn tell<S: Steps>(steps: &S, epoch: u8, verdict: Verdict, opened_ns: u64, now_ns: u64) -> Edge {
    let (mut timed_out, mut counts) = (0, false);
    for _ in 0..TRIES {
        match steps.try_judge(epoch, verdict, opened_ns, now_ns) {
            Told::Done(edge) => return edge,
            Told::Taken { timed_out: late, counts: was_there } => {
                (timed_out, counts) = (late, was_there);
                break;
            }
            Told::Again => {}
        }
    }
    let fails = matches!(verdict, Verdict::Failed | Verdict::FailedAfterSuccess);
    let failures = timed_out + u64::from(counts && fails);
    let after_success = matches!(verdict, Verdict::FailedAfterSuccess) && timed_out == 0;
    if failures > 0
        && matches!(fail(steps, epoch, failures, after_success, now_ns), Failed::Tripped)
    {
        return Edge::Tripped;
    }
    if counts && matches!(verdict, Verdict::Succeeded | Verdict::SucceededAgain) {
        for _ in 0..TRIES {
            if !matches!(steps.try_count(epoch, 1, 0, now_ns), Counted::Again) {
                break;
            }
        }
        for _ in 0..TRIES {
            if steps.try_calm(epoch, matches!(verdict, Verdict::SucceededAgain)) {
                break;
            }
        }
    }
    Edge::None
}

/// Counts failures of a closed breaker, which may trip it.
#[inline(always)]
fn fail<S: Steps>(steps: &S, epoch: u8, failures: u64, after_success: bool, now_ns: u64) -> Failed {
    let mut ratio_trips = false;
    for _ in 0..TRIES {
        match steps.try_count(epoch, 0, failures, now_ns) {
            Counted::Again => {}
            counted => {
                ratio_trips = matches!(counted, Counted::Trips);
                break;
            }
        }
    }
    for _ in 0..TRIES {
        match steps.try_fail(epoch, failures, ratio_trips, after_success, now_ns) {
            Failed::Again => {}
            failed => return failed,
        }
    }
    Failed::Again
}

/// The steps on a line itself.
#[derive(Clone, Copy)]
pub struct Direct<'a, L> {
    /// The breaker's words.
    pub line: &'a L,
    /// Its parameters.
    pub params: &'a Params,
}

impl<L: Line> Steps for Direct<'_, L> {
    #[inline(always)]
    fn try_admit(&self, now_ns: u64) -> Asked {
        let Self { line, params } = *self;
        let clock = Clock::new(params, now_ns);
        // In this order: see above.
        let attempts = line.word(ATTEMPTS).load();
        let word = line.word(STATE).load();
        let state = State::read(word);
        let set = |next: State| line.word(STATE).compare_exchange(word, next.write()).is_ok();
        match state.phase {
            Phase::Closed => {
                let (mut now, timed_out) = Attempts::read(attempts, state.epoch).at(clock);
                if now.current < mask(COUNT) {
                    now.current += 1;
                }
                let next = now.write(state.epoch);
                match line.word(ATTEMPTS).compare_exchange(attempts, next) {
                    Ok(_) => Asked::Admitted { epoch: state.epoch as u8, timed_out },
                    Err(_) => Asked::Again,
                }
            }
            Phase::Open if state.remaining(params, now_ns) > 0 => {
                Asked::Done(Admission::Open, Edge::None)
            }
            Phase::Open if params.probes == 0 => {
                if set(state.closed(now_ns)) {
                    Asked::Closed
                } else {
                    Asked::Again
                }
            }
            Phase::Open => {
                let mut next = state.half_open(clock);
                next.probes.current = 1;
                if set(next) {
                    let admission = Admission::Admitted { epoch: next.epoch as u8 };
                    Asked::Done(admission, Edge::HalfOpened)
                } else {
                    Asked::Again
                }
            }
            Phase::HalfOpen => {
                let (mut probes, timed_out) = state.probes.at(clock);
                if timed_out > 0 {
                    return if set(state.open(state.ejections, params, now_ns)) {
                        Asked::Done(Admission::Open, Edge::Reopened)
                    } else {
                        Asked::Again
                    };
                }
                if probes.all() >= params.permits() {
                    return Asked::Done(Admission::Probing, Edge::None);
                }
                probes.current += 1;
                if set(State { probes, ..state }) {
                    let admission = Admission::Admitted { epoch: state.epoch as u8 };
                    Asked::Done(admission, Edge::None)
                } else {
                    Asked::Again
                }
            }
        }
    }

    #[inline(always)]
    fn try_judge(&self, epoch: u8, verdict: Verdict, opened_ns: u64, now_ns: u64) -> Told {
        let Self { line, params } = *self;
        let clock = Clock::new(params, now_ns);
        let period = clock.period_of(opened_ns);
        let epoch = u64::from(epoch);
        // In this order: see above.
        let attempts = line.word(ATTEMPTS).load();
        let word = line.word(STATE).load();
        let state = State::read(word);
        if state.epoch != epoch {
            return Told::Done(Edge::None);
        }
        match state.phase {
            Phase::Open => Told::Done(Edge::None),
            Phase::HalfOpen => {
                let Some((next, edge)) = state.probed(verdict, period, params, clock) else {
                    return Told::Done(Edge::None);
                };
                match line.word(STATE).compare_exchange(word, next.write()) {
                    Ok(_) => Told::Done(edge),
                    Err(_) => Told::Again,
                }
            }
            Phase::Closed => {
                let (now, timed_out) = Attempts::read(attempts, epoch).at(clock);
                let left = match verdict {
                    Verdict::FailedAfterSuccess | Verdict::SucceededAgain => Some(now),
                    _ => now.without(period),
                };
                let counts = left.is_some();
                let next = match left {
                    Some(left) => left.write(epoch),
                    None => now.write(epoch),
                };
                match line.word(ATTEMPTS).compare_exchange(attempts, next) {
                    Ok(_) => Told::Taken { timed_out, counts },
                    Err(_) => Told::Again,
                }
            }
        }
    }

    #[inline(always)]
    fn try_count(&self, epoch: u8, ok: u64, failed: u64, now_ns: u64) -> Counted {
        let Self { line, params } = *self;
        let epoch = u64::from(epoch);
        let number = window(params, now_ns);
        let (this, other) = windows(number);
        // In this order: see above.
        let word = line.word(this).load();
        if State::read(line.word(STATE).load()).epoch != epoch {
            return Counted::Calm;
        }
        let before = recent(word, epoch, number, params);
        // One that is ahead stays what it is; one that holds nothing has no time.
        let of_now = epoch_of(word) != epoch
            || before.is_empty()
            || behind(number, number_of(word), params.interval_ms as u64).is_some();
        let at = if of_now { number } else { number_of(word) };
        let here = before.and(Verdicts { ok, failed });
        let next = counts(epoch, at, here.ok, here.failed);
        if line.word(this).compare_exchange(word, next).is_err() {
            return Counted::Again;
        }
        let there = recent(line.word(other).load(), epoch, number, params);
        // All verdicts of the last interval, and of as much of the one before as the present window
        // has yet to run.
        let all = Verdicts { ok: here.ok + there.ok, failed: here.failed + there.failed };
        if params.ratio_trips(all) { Counted::Trips } else { Counted::Calm }
    }

    #[inline(always)]
    fn try_fail(
        &self,
        epoch: u8,
        failures: u64,
        ratio_trips: bool,
        after_success: bool,
        now_ns: u64,
    ) -> Failed {
        let Self { line, params } = *self;
        let word = line.word(STATE).load();
        let state = State::read(word);
        if state.epoch != u64::from(epoch) || !matches!(state.phase, Phase::Closed) {
            return Failed::Stale;
        }
        let before = if state.calm && !after_success { 0 } else { state.consecutive };
        let consecutive = at_most(before + failures, MAX_CONSECUTIVE);
        let trips = ratio_trips || (params.errors > 0 && consecutive >= params.errors as u64);
        let next = if trips {
            state.open(state.remembered(params, now_ns), params, now_ns)
        } else {
            State { consecutive, calm: false, ..state }
        };
        match line.word(STATE).compare_exchange(word, next.write()) {
            Ok(_) if trips => Failed::Tripped,
            Ok(_) => Failed::Counted,
            Err(_) => Failed::Again,
        }
    }

    #[inline(always)]
    fn try_calm(&self, epoch: u8, sure: bool) -> bool {
        let line = self.line;
        let word = line.word(STATE).load();
        let state = State::read(word);
        let over = state.epoch != u64::from(epoch) || !matches!(state.phase, Phase::Closed);
        if over || state.consecutive == 0 {
            return true;
        }
        let next = if sure || state.calm {
            State { consecutive: 0, calm: false, ..state }
        } else {
            State { calm: true, ..state }
        };
        line.word(STATE).compare_exchange(word, next.write()).is_ok()
    }
}

/// [`ask`] of a line.
#[inline(always)]
pub fn admit<L: Line>(line: &L, params: &Params, now_ns: u64) -> (Admission, Edge) {
    ask(&Direct { line, params }, now_ns)
}

/// Whether [`admit`] would refuse, and change nothing. Writes nothing.
///
/// What would change something must be left to it: if nobody asked any more, no time-out would be
/// noticed.
#[inline(always)]
pub fn peek<L: Line>(line: &L, params: &Params, now_ns: u64) -> bool {
    let state = State::read(line.word(STATE).load());
    match state.phase {
        Phase::Closed => false,
        Phase::Open => state.remaining(params, now_ns) > 0,
        Phase::HalfOpen => {
            let (probes, timed_out) = state.probes.at(Clock::new(params, now_ns));
            timed_out == 0 && probes.all() >= params.permits()
        }
    }
}

/// An attempt that was admitted in `epoch` at `opened_ns` was answered.
#[inline(always)]
pub fn succeeded<L: Line>(
    line: &L,
    params: &Params,
    epoch: u8,
    opened_ns: u64,
    now_ns: u64,
) -> Edge {
    judge(line, params, epoch, Verdict::Succeeded, opened_ns, now_ns)
}

/// An attempt that was admitted in `epoch` at `opened_ns` was refused.
#[inline(always)]
pub fn failed<L: Line>(line: &L, params: &Params, epoch: u8, opened_ns: u64, now_ns: u64) -> Edge {
    judge(line, params, epoch, Verdict::Failed, opened_ns, now_ns)
}

/// An attempt that was admitted in `epoch` at `opened_ns` is taken back: a later rule refused its SYN,
/// or the client gave up. That says nothing; a probe's permit returns.
#[inline(always)]
pub fn abandoned<L: Line>(
    line: &L,
    params: &Params,
    epoch: u8,
    opened_ns: u64,
    now_ns: u64,
) -> Edge {
    judge(line, params, epoch, Verdict::Abandoned, opened_ns, now_ns)
}

/// A connection that was admitted in `epoch` and [succeeded] failed after all: it counts as a failure
/// too.
#[inline(always)]
pub fn failed_after_success<L: Line>(line: &L, params: &Params, epoch: u8, now_ns: u64) -> Edge {
    judge(line, params, epoch, Verdict::FailedAfterSuccess, now_ns, now_ns)
}

/// A connection that was admitted in `epoch` and [succeeded] works: ends a row of failures.
#[inline(always)]
pub fn succeeded_again<L: Line>(line: &L, params: &Params, epoch: u8, now_ns: u64) -> Edge {
    judge(line, params, epoch, Verdict::SucceededAgain, now_ns, now_ns)
}

#[inline(always)]
fn judge<L: Line>(
    line: &L,
    params: &Params,
    epoch: u8,
    verdict: Verdict,
    opened_ns: u64,
    now_ns: u64,
) -> Edge {
    tell(&Direct { line, params }, epoch, verdict, opened_ns, now_ns)
}

/// The words of the window that a number names, and of the one before.
#[inline(always)]
const fn windows(number: u64) -> (usize, usize) {
    if number & 1 == 0 { (1, 2) } else { (2, 1) }
}

#[inline(always)]
fn window(params: &Params, now_ns: u64) -> u64 {
    units(now_ns, at_least_one(params.interval_ms)) & mask(NUMBER)
}

/// The verdicts of a word that belong to a window or the one before it.
#[inline(always)]
const fn recent(word: u64, epoch: u64, number: u64, params: &Params) -> Verdicts {
    match behind(number, number_of(word), params.interval_ms as u64) {
        None | Some(0 | 1) if epoch_of(word) == epoch => Verdicts::read(word),
        _ => Verdicts::NONE,
    }
}

/// A breaker at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Where it is. Open with nothing remaining means that the next SYN will try.
    pub phase: Phase,
    /// How long it stays open, ns.
    pub remaining_ns: u64,
    /// Failures in a row, while it is closed.
    pub consecutive: u64,
    /// Ejections in a row that are not forgotten.
    pub ejections: u64,
    /// Probes without a verdict, while it is half-open.
    pub probes_out: u64,
    /// Probes that succeeded, while it is half-open.
    pub probes_succeeded: u64,
    /// Successes of this window and the one before, while it is closed.
    pub ok: u64,
    /// Failures of this window and the one before, while it is closed.
    pub failed: u64,
    /// Attempts without a verdict that did not time out, while it is closed.
    pub attempts: u64,
}

/// Reads a breaker. Others may change its words meanwhile: every count is true, all of them together
/// need not be.
#[inline(always)]
pub fn read<L: Line>(line: &L, params: &Params, now_ns: u64) -> View {
    let clock = Clock::new(params, now_ns);
    let number = window(params, now_ns);
    let state = State::read(line.word(STATE).load());
    let mut view = View {
        phase: state.phase,
        remaining_ns: 0,
        consecutive: if state.calm { 0 } else { state.consecutive },
        ejections: state.ejections,
        probes_out: state.probes.at(clock).0.all(),
        probes_succeeded: state.succeeded,
        ok: 0,
        failed: 0,
        attempts: 0,
    };
    match state.phase {
        Phase::HalfOpen => {}
        Phase::Open => {
            // Its end is the beginning of a tick.
            let ticks = state.remaining(params, now_ns);
            view.remaining_ns = (ticks << TICK_SHIFT).saturating_sub(now_ns & mask(TICK_SHIFT));
        }
        Phase::Closed => {
            view.ejections = state.remembered(params, now_ns);
            view.attempts =
                Attempts::read(line.word(ATTEMPTS).load(), state.epoch).at(clock).0.all();
            for index in [1, 2] {
                let verdicts = recent(line.word(index).load(), state.epoch, number, params);
                view.ok += verdicts.ok;
                view.failed += verdicts.failed;
            }
        }
    }
    view
}

/// Closes a breaker and forgets all that it learned: an operator knows better.
///
/// Not for the kernel: it tries until it wins.
pub fn forget<L: Line>(line: &L, now_ns: u64) -> Edge {
    let mut word = line.word(STATE).load();
    loop {
        let state = State::read(word);
        let next = State { ejections: 0, ..state.closed(now_ns) };
        match line.word(STATE).compare_exchange(word, next.write()) {
            Ok(_) if matches!(state.phase, Phase::Closed) => return Edge::None,
            Ok(_) => return Edge::Closed,
            Err(seen) => word = seen,
        }
    }
}

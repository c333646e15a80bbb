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
//! | closed | 0 | | | `since:34`, `consecutive:12` |
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
        Self { now_ns, timeout_ms, period: now_ns / (timeout_ms * MS) }
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
            _ => state.consecutive = word & mask(CONSECUTIVE),
        }
        state
    }

    #[inline(always)]
    const fn write(self) -> u64 {
        let rest = match self.phase {
            Phase::Closed | Phase::Open => self.time << CONSECUTIVE | self.consecutive,
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
        let forgotten = (ticks << TICK_SHIFT) / (at_least_one(params.interval_ms) * MS);
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
        let Some(probes) = probes.without(period) else { return None };
        match verdict {
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Succeeded,
    Failed,
    Abandoned,
    FailedAfterSuccess,
}

/// Asks whether a SYN may pass, and counts it as an attempt if so.
///
/// What timed out before is counted first; if that trips the breaker, this SYN is refused.
#[inline(always)]
pub fn admit<L: Line>(line: &L, params: &Params, now_ns: u64) -> (Admission, Edge) {
    let clock = Clock::new(params, now_ns);
    let mut edge = Edge::None;
    let mut counted = None;
    for _ in 0..TRIES {
        // In this order: see above.
        let attempts = line.word(ATTEMPTS).load();
        let word = line.word(STATE).load();
        let state = State::read(word);
        match state.phase {
            Phase::Closed => {
                let (mut now, timed_out) = Attempts::read(attempts, state.epoch).at(clock);
                if timed_out > 0 && !matches!(edge, Edge::None) {
                    // Two edges do not fit: the next will see.
                    break;
                }
                if now.current < mask(COUNT) {
                    now.current += 1;
                }
                let next = now.write(state.epoch);
                if line.word(ATTEMPTS).compare_exchange(attempts, next).is_ok() {
                    counted = Some((state.epoch, timed_out));
                    break;
                }
            }
            Phase::Open => {
                if state.remaining(params, now_ns) > 0 {
                    return (Admission::Open, edge);
                }
                if params.probes == 0 {
                    let next = state.closed(now_ns).write();
                    if line.word(STATE).compare_exchange(word, next).is_ok() {
                        edge = Edge::Closed;
                    }
                    continue;
                }
                let mut next = state.half_open(clock);
                next.probes.current = 1;
                if line.word(STATE).compare_exchange(word, next.write()).is_ok() {
                    return (Admission::Admitted { epoch: next.epoch as u8 }, Edge::HalfOpened);
                }
            }
            Phase::HalfOpen => {
                let (mut probes, timed_out) = state.probes.at(clock);
                let (next, admission, after) = if timed_out > 0 {
                    let next = state.open(state.ejections, params, now_ns);
                    (next, Admission::Open, Edge::Reopened)
                } else if probes.all() < params.permits() {
                    probes.current += 1;
                    let admission = Admission::Admitted { epoch: state.epoch as u8 };
                    (State { probes, ..state }, admission, edge)
                } else {
                    return (Admission::Probing, edge);
                };
                if line.word(STATE).compare_exchange(word, next.write()).is_ok() {
                    return (admission, after);
                }
            }
        }
    }
    match counted {
        None => (Admission::Contended, edge),
        Some((epoch, 0)) => (Admission::Admitted { epoch: epoch as u8 }, edge),
        Some((epoch, timed_out)) => match fail(line, params, epoch, timed_out, now_ns) {
            Failed::Counted => (Admission::Admitted { epoch: epoch as u8 }, edge),
            // The attempt that was counted is of an epoch that is over.
            Failed::Tripped => (Admission::Open, Edge::Tripped),
            Failed::Stale => (Admission::Open, edge),
            Failed::Contended => (Admission::Contended, edge),
        },
    }
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

/// Counts a verdict, and what timed out before it.
#[inline(always)]
fn judge<L: Line>(
    line: &L,
    params: &Params,
    epoch: u8,
    verdict: Verdict,
    opened_ns: u64,
    now_ns: u64,
) -> Edge {
    let clock = Clock::new(params, now_ns);
    let period = clock.period_of(opened_ns);
    let epoch = epoch as u64;
    let (mut timed_out, mut counts) = (0, false);
    for _ in 0..TRIES {
        // In this order: see above.
        let attempts = line.word(ATTEMPTS).load();
        let word = line.word(STATE).load();
        let state = State::read(word);
        if state.epoch != epoch {
            return Edge::None;
        }
        match state.phase {
            Phase::Open => return Edge::None,
            Phase::HalfOpen => {
                let Some((next, edge)) = state.probed(verdict, period, params, clock) else {
                    return Edge::None;
                };
                if line.word(STATE).compare_exchange(word, next.write()).is_ok() {
                    return edge;
                }
            }
            Phase::Closed => {
                let (now, late) = Attempts::read(attempts, epoch).at(clock);
                let left = match verdict {
                    Verdict::FailedAfterSuccess => Some(now),
                    _ => now.without(period),
                };
                let next = match left {
                    Some(left) => left.write(epoch),
                    None => now.write(epoch),
                };
                if line.word(ATTEMPTS).compare_exchange(attempts, next).is_ok() {
                    (timed_out, counts) = (late, left.is_some());
                    break;
                }
            }
        }
    }
    let fails = matches!(verdict, Verdict::Failed | Verdict::FailedAfterSuccess);
    let failures = timed_out + (counts && fails) as u64;
    if failures > 0 && matches!(fail(line, params, epoch, failures, now_ns), Failed::Tripped) {
        return Edge::Tripped;
    }
    if counts && matches!(verdict, Verdict::Succeeded) {
        succeed(line, params, epoch, now_ns);
    }
    Edge::None
}

/// What came of counting failures.
enum Failed {
    Counted,
    Tripped,
    /// The epoch is over.
    Stale,
    Contended,
}

/// Counts failures of a closed breaker, which may trip it.
#[inline(always)]
fn fail<L: Line>(line: &L, params: &Params, epoch: u64, failures: u64, now_ns: u64) -> Failed {
    let verdicts = count(line, params, epoch, Verdicts { ok: 0, failed: failures }, now_ns);
    let ratio_trips = params.ratio_trips(verdicts);
    for _ in 0..TRIES {
        let word = line.word(STATE).load();
        let state = State::read(word);
        if state.epoch != epoch || !matches!(state.phase, Phase::Closed) {
            return Failed::Stale;
        }
        let consecutive = at_most(state.consecutive + failures, MAX_CONSECUTIVE);
        let trips = ratio_trips || (params.errors > 0 && consecutive >= params.errors as u64);
        let next = if trips {
            state.open(state.remembered(params, now_ns), params, now_ns)
        } else {
            State { consecutive, ..state }
        };
        if line.word(STATE).compare_exchange(word, next.write()).is_ok() {
            return if trips { Failed::Tripped } else { Failed::Counted };
        }
    }
    Failed::Contended
}

/// Counts a success of a closed breaker.
#[inline(always)]
fn succeed<L: Line>(line: &L, params: &Params, epoch: u64, now_ns: u64) {
    let _ = count(line, params, epoch, Verdicts { ok: 1, failed: 0 }, now_ns);
    for _ in 0..TRIES {
        let word = line.word(STATE).load();
        let state = State::read(word);
        let over = state.epoch != epoch || !matches!(state.phase, Phase::Closed);
        if over || state.consecutive == 0 {
            return;
        }
        let next = State { consecutive: 0, ..state };
        if line.word(STATE).compare_exchange(word, next.write()).is_ok() {
            return;
        }
    }
}

/// The words of the window that a number names, and of the one before.
#[inline(always)]
const fn windows(number: u64) -> (usize, usize) {
    if number & 1 == 0 { (1, 2) } else { (2, 1) }
}

#[inline(always)]
fn window(params: &Params, now_ns: u64) -> u64 {
    (now_ns / (at_least_one(params.interval_ms) * MS)) & mask(NUMBER)
}

/// The verdicts of a word that belong to a window or the one before it.
#[inline(always)]
const fn recent(word: u64, epoch: u64, number: u64, params: &Params) -> Verdicts {
    match behind(number, number_of(word), params.interval_ms as u64) {
        None | Some(0 | 1) if epoch_of(word) == epoch => Verdicts::read(word),
        _ => Verdicts::NONE,
    }
}

/// Counts verdicts in the present window, and returns what it and the previous one hold: all verdicts
/// of the last interval, and of as much of the one before as the present window has yet to run.
#[inline(always)]
fn count<L: Line>(
    line: &L,
    params: &Params,
    epoch: u64,
    verdicts: Verdicts,
    now_ns: u64,
) -> Verdicts {
    let number = window(params, now_ns);
    let (this, other) = windows(number);
    let mut here = Verdicts::NONE;
    for _ in 0..TRIES {
        // In this order: see above.
        let word = line.word(this).load();
        if State::read(line.word(STATE).load()).epoch != epoch {
            return Verdicts::NONE;
        }
        let before = recent(word, epoch, number, params);
        // One that is ahead stays what it is.
        let of_now = epoch_of(word) != epoch
            || behind(number, number_of(word), params.interval_ms as u64).is_some();
        let at = if of_now { number } else { number_of(word) };
        here = before.and(verdicts);
        let next = counts(epoch, at, here.ok, here.failed);
        if line.word(this).compare_exchange(word, next).is_ok() {
            break;
        }
    }
    let there = recent(line.word(other).load(), epoch, number, params);
    Verdicts { ok: here.ok + there.ok, failed: here.failed + there.failed }
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
        consecutive: state.consecutive,
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

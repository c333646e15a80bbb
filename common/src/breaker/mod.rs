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
//! | open | 1 | | | `until:34`, 11 unused, `told:1` |
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

mod members;
mod steps;
mod words;

use self::words::{
    ATTEMPTS, Attempts, Clock, MAX_PROBES, MS, STATE, State, TICK_SHIFT, TOLD, Verdicts, at_most,
    mask, recent, window,
};
pub use self::{
    members::{ejected_for, is_before},
    steps::{Asked, Counted, Direct, Failed, Steps, Told},
    words::{Phase, SKEW_MS, WORDS},
};
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

/// [`ask`] of a line.
#[inline(always)]
pub fn admit<L: Line>(line: &L, params: &Params, now_ns: u64) -> (Admission, Edge) {
    ask(&Direct { line, params }, now_ns)
}

/// What [`admit`] would say if it would refuse, and change nothing. Writes nothing.
///
/// What would change something must be left to it: if nobody asked any more, no time-out would be
/// noticed.
#[inline(always)]
pub fn peek<L: Line>(line: &L, params: &Params, now_ns: u64) -> Option<Admission> {
    let state = State::read(line.word(STATE).load());
    match state.phase {
        Phase::Open if state.remaining(params, now_ns) > 0 => Some(Admission::Open),
        Phase::Closed | Phase::Open => None,
        Phase::HalfOpen => {
            let (probes, timed_out) = state.probes.at(Clock::new(params, now_ns));
            let none_left = timed_out == 0 && probes.all() >= params.permits();
            if none_left { Some(Admission::Probing) } else { None }
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

/// A breaker at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Where it is. Open with nothing remaining means that the next SYN will try.
    pub phase: Phase,
    /// How long it stays open, ns.
    pub remaining_ns: u64,
    /// It did not trip: [`open`] opened it.
    pub told: bool,
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
    let word = line.word(STATE).load();
    let state = State::read(word);
    let mut view = View {
        phase: state.phase,
        remaining_ns: 0,
        told: false,
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
            view.told = word & TOLD != 0;
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

/// Opens a closed breaker for its first ejection, because of what others learned; whether it did.
///
/// Not for the kernel: it tries until it wins. To the kernel such a breaker is open like any other.
pub fn open<L: Line>(line: &L, params: &Params, now_ns: u64) -> bool {
    let mut word = line.word(STATE).load();
    loop {
        let state = State::read(word);
        if !matches!(state.phase, Phase::Closed) {
            return false;
        }
        let next = state.open(0, params, now_ns).write() | TOLD;
        match line.word(STATE).compare_exchange(word, next) {
            Ok(_) => return true,
            Err(seen) => word = seen,
        }
    }
}

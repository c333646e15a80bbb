//! One compare-and-swap each: what an admission, a verdict or a time-out does to the words.

use super::{
    Admission, Edge, Params, Verdict,
    words::{
        ATTEMPTS, Attempts, COUNT, Clock, MAX_CONSECUTIVE, Phase, STATE, State, Verdicts, at_most,
        behind, counts, epoch_of, mask, number_of, recent, window, windows,
    },
};
use crate::{way::Line, word::Word};

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

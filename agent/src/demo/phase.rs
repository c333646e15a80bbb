//! The second act as data: what happens to a server, what its breaker and its limit predict, and
//! whether that was seen. Pure; it refuses to know sockets and agents.

use std::{cmp::Ordering, fmt, time::Duration};

use crate::{app::view::BreakerStatus, policy::Breaker};

/// A tick of a breaker's clock, and a little: its times are rounded up to 2^20 ns.
const TICK: Duration = Duration::from_millis(3);
/// Attempts at a server that works.
const SOME: u64 = 10;
/// Attempts at one that an open breaker protects.
const MORE: u64 = 20;
/// Clients at once.
pub(super) const CROWD: u64 = 64;

/// What became of attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Connected, and got what they asked for.
    pub ok: u64,
    /// Refused by a RST of the server's own kernel.
    pub by_server: u64,
    /// Refused by Weir.
    pub by_weir: u64,
    /// Without an end yet.
    pub held: u64,
}

impl Counts {
    fn all(&self) -> u64 {
        self.ok + self.by_server + self.by_weir + self.held
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |count: u64| if count == 0 { "-".to_owned() } else { count.to_string() };
        let [ok, rst] = [self.ok, self.by_server].map(cell);
        let [weir, held] = [self.by_weir, self.held].map(cell);
        write!(f, "{ok:>4}{rst:>5}{weir:>6}{held:>6}")
    }
}

/// Where the breaker is after a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    /// For so long since it opened.
    Open(Duration),
    HalfOpen,
}

impl State {
    /// Whether a breaker that opened no longer than `since` ago, if it is open, is there.
    pub(super) fn fits(self, seen: &BreakerStatus, since: Duration) -> bool {
        match self {
            Self::Closed => seen.state == "closed",
            Self::HalfOpen => seen.state == "half-open",
            Self::Open(ejection) => {
                let left = Duration::try_from_secs_f64(seen.open_seconds).unwrap_or_default();
                let least = ejection.saturating_sub(since);
                seen.state == "open" && left + TICK >= least && left <= ejection + TICK
            }
        }
    }
}

/// One line of the act.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    pub what: &'static str,
    pub predicted: Counts,
    pub after: State,
    /// How long the breaker refuses from the first attempt of this phase or an earlier one on, if
    /// the prediction needs that it still does.
    pub refuses_for: Option<Duration>,
}

impl Phase {
    pub(super) fn asked(&self) -> u64 {
        self.predicted.all()
    }

    /// Where what was seen lies: `Greater` if more was admitted than predicted.
    pub(super) fn place(&self, seen: &Counts, state_fits: bool) -> Ordering {
        let admitted = |counts: &Counts| self.asked().saturating_sub(counts.by_weir);
        match admitted(seen).cmp(&admitted(&self.predicted)) {
            Ordering::Equal if *seen != self.predicted || !state_fits => Ordering::Less,
            place => place,
        }
    }
}

/// All phases, in their order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phases {
    pub works: Phase,
    pub fails: Phase,
    pub stays_away: Phase,
    pub tried_too_early: Phase,
    pub hangs: Phase,
    pub answers: Phase,
    pub works_again: Phase,
    pub crowd: Phase,
    pub crowd_ends: Phase,
}

impl Phases {
    /// From the words of the policy: one breaker, and how many connections there may be at once.
    pub(super) fn new(breaker: &Breaker, at_once: u64) -> Self {
        let errors = breaker.errors.map_or(1, |errors| errors.get().into());
        let probes = breaker.probes.map_or(1, |probes| probes.get().into()).min(CROWD);
        let at_once = at_once.min(CROWD);
        let ejection = |times: u64| {
            let most = breaker.max_ejection.millis();
            Duration::from_millis((breaker.ejection.millis() * times).min(most))
        };
        let none = Counts::default();
        let phase = |what, predicted, after| Phase { what, predicted, after, refuses_for: None };
        Self {
            works: phase("works", Counts { ok: SOME, ..none }, State::Closed),
            fails: Phase {
                what: "stops listening",
                predicted: Counts { by_server: errors, ..none },
                after: State::Open(ejection(1)),
                refuses_for: Some(ejection(1)),
            },
            stays_away: Phase {
                what: "is away",
                predicted: Counts { by_weir: MORE, ..none },
                after: State::Open(ejection(1)),
                refuses_for: Some(ejection(1)),
            },
            // The first probe fails, and no second one is tried.
            tried_too_early: Phase {
                what: "is away when the ejection ends",
                predicted: Counts { by_server: 1, by_weir: MORE - 1, ..none },
                after: State::Open(ejection(2)),
                refuses_for: Some(ejection(2)),
            },
            hangs: phase(
                "hangs when the ejection ends",
                Counts { held: probes, by_weir: CROWD - probes, ..none },
                State::HalfOpen,
            ),
            answers: phase("then answers", Counts { ok: probes, ..none }, State::Closed),
            works_again: phase("works", Counts { ok: SOME, ..none }, State::Closed),
            crowd: phase(
                "serves 64 clients too slowly",
                Counts { held: at_once, by_weir: CROWD - at_once, ..none },
                State::Closed,
            ),
            crowd_ends: phase("gets on with it", Counts { ok: at_once, ..none }, State::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::script::Limits, *};

    fn phases() -> Phases {
        let limits = Limits::new().unwrap();
        Phases::new(&limits.api_breaker.says, limits.api_at_once.says)
    }

    #[test]
    fn the_breaker_predicts_what_it_says() {
        let phases = phases();
        assert_eq!(phases.fails.asked(), 5);
        assert_eq!(phases.fails.after, State::Open(Duration::from_secs(1)));
        assert_eq!(phases.tried_too_early.after, State::Open(Duration::from_secs(2)));
        assert_eq!((phases.hangs.predicted.held, phases.hangs.asked()), (3, 64));
        assert_eq!((phases.crowd.predicted.held, phases.crowd.asked()), (20, 64));
        assert_eq!(phases.hangs.predicted.to_string(), "   -    -    61     3");
    }

    #[test]
    fn more_admitted_is_worse_than_anything_else() {
        let phase = phases().tried_too_early;
        let seen = |by_server, by_weir| Counts { by_server, by_weir, ..Counts::default() };
        assert_eq!(phase.place(&seen(1, 19), true), Ordering::Equal);
        assert_eq!(phase.place(&seen(1, 19), false), Ordering::Less);
        assert_eq!(phase.place(&seen(0, 20), true), Ordering::Less);
        assert_eq!(phase.place(&seen(2, 18), true), Ordering::Greater);
        assert_eq!(phase.place(&seen(2, 18), false), Ordering::Greater);
        // A RST that nobody sent.
        assert_eq!(phase.place(&seen(0, 19), true), Ordering::Less);
    }

    #[test]
    fn open_is_for_as_long_as_written() {
        let state = State::Open(Duration::from_secs(2));
        let seen = |left| BreakerStatus {
            state: "open".to_owned(),
            open_seconds: left,
            ..BreakerStatus::default()
        };
        let since = Duration::from_millis(100);
        assert!(state.fits(&seen(2.0), since));
        assert!(state.fits(&seen(1.9), since));
        assert!(!state.fits(&seen(1.8), since));
        assert!(!state.fits(&seen(2.1), since));
        assert!(!state.fits(&BreakerStatus::default(), since));
        assert!(!State::Closed.fits(&seen(2.0), since));
    }
}

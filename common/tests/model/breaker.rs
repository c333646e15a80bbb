//! The reference: a circuit breaker as one would describe it, with a list of all connections.
//!
//! It owns what a breaker means. It keeps every attempt with its time and every verdict with its
//! window, and counts them anew whenever it is asked. It refuses to know of words and of wrapping.

use weir_common::breaker::{Admission, Edge, Params, Phase, View};

const MS: u64 = 1_000_000;
/// Ends and beginnings are rounded up to whole ticks.
const TICK: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    Abandoned,
}

/// A connection that was admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// Which phase of the breaker's life admitted it.
    pub(crate) era: u64,
    pub(crate) opened_ns: u64,
    /// Its verdict was reported, or nobody waits for it any more.
    over: bool,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    params: Params,
    pub(crate) phase: Phase,
    /// Counts the phases.
    pub(crate) era: u64,
    ejections: u64,
    since_ns: u64,
    until_ns: u64,
    told: bool,
    consecutive: u64,
    /// Whether a success followed these failures.
    calm: bool,
    succeeded: u64,
    /// Everything that was admitted, ever.
    pub(crate) attempts: Vec<Attempt>,
    /// Window and outcome of each verdict since it closed.
    verdicts: Vec<(u64, bool)>,
}

impl Breaker {
    pub(crate) fn new(params: Params) -> Self {
        Self {
            params,
            phase: Phase::Closed,
            era: 0,
            ejections: 0,
            since_ns: 0,
            until_ns: 0,
            told: false,
            consecutive: 0,
            calm: false,
            succeeded: 0,
            attempts: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.era += 1;
        self.consecutive = 0;
        self.calm = false;
        self.succeeded = 0;
        self.verdicts.clear();
    }

    fn close(&mut self, now_ns: u64) -> Edge {
        self.enter(Phase::Closed);
        self.since_ns = now_ns.next_multiple_of(TICK);
        Edge::Closed
    }

    fn open(&mut self, now_ns: u64) {
        self.ejections = (self.ejections + 1).min(255);
        let ejection = u64::from(self.params.ejection_ms) * self.ejections;
        let ejection = ejection.min(self.params.max_ejection_ms.into());
        self.until_ns = (now_ns + ejection * MS).next_multiple_of(TICK);
        self.told = false;
        self.enter(Phase::Open);
    }

    fn trip(&mut self, now_ns: u64) -> Edge {
        self.ejections = self.remembered(now_ns);
        self.open(now_ns);
        Edge::Tripped
    }

    fn reopen(&mut self, now_ns: u64) -> Edge {
        self.open(now_ns);
        Edge::Reopened
    }

    fn remembered(&self, now_ns: u64) -> u64 {
        let elapsed = (now_ns / TICK * TICK).saturating_sub(self.since_ns);
        self.ejections.saturating_sub(elapsed / (u64::from(self.params.interval_ms) * MS))
    }

    fn period(&self, ns: u64) -> u64 {
        ns / (u64::from(self.params.timeout_ms) * MS)
    }

    fn window(&self, ns: u64) -> u64 {
        ns / (u64::from(self.params.interval_ms) * MS)
    }

    /// Attempts that somebody waits for.
    fn awaited(&self) -> u64 {
        self.attempts.iter().filter(|attempt| attempt.era == self.era && !attempt.over).count()
            as u64
    }

    fn timed_out(&self, attempt: &Attempt, now_ns: u64) -> bool {
        self.period(attempt.opened_ns) + 2 <= self.period(now_ns)
    }

    /// Attempts that failed without anybody having noticed.
    fn unnoticed(&self, now_ns: u64) -> u64 {
        let late = |attempt: &&Attempt| {
            attempt.era == self.era && !attempt.over && self.timed_out(attempt, now_ns)
        };
        self.attempts.iter().filter(late).count() as u64
    }

    /// Successes and failures of this window and the one before.
    fn counts(&self, now_ns: u64) -> (u64, u64) {
        let window = self.window(now_ns);
        let recent = |ok: bool| {
            self.verdicts.iter().filter(|&&(at, is)| is == ok && at + 1 >= window).count() as u64
        };
        (recent(true), recent(false))
    }

    fn fail(&mut self, after_success: bool, now_ns: u64) -> Edge {
        match self.phase {
            Phase::Open => panic!("nobody fails while it is open"),
            Phase::HalfOpen => return self.reopen(now_ns),
            Phase::Closed => {}
        }
        self.verdicts.push((self.window(now_ns), false));
        if self.calm && !after_success {
            self.consecutive = 0;
        }
        self.calm = false;
        self.consecutive = (self.consecutive + 1).min(1023);
        let (ok, failed) = self.counts(now_ns);
        let consecutive = self.params.errors > 0 && self.consecutive >= self.params.errors.into();
        let ratio = self.params.error_ratio > 0
            && ok + failed >= self.params.min_volume.into()
            && failed * 100 >= u64::from(self.params.error_ratio) * (ok + failed);
        if consecutive || ratio { self.trip(now_ns) } else { Edge::None }
    }

    fn succeed(&mut self, now_ns: u64) -> Edge {
        match self.phase {
            Phase::Open => panic!("nobody succeeds while it is open"),
            Phase::HalfOpen => {
                self.succeeded += 1;
                if self.succeeded == self.params.probes.into() {
                    return self.close(now_ns);
                }
            }
            Phase::Closed => {
                if self.calm {
                    self.consecutive = 0;
                }
                self.calm = !self.calm && self.consecutive > 0;
                self.verdicts.push((self.window(now_ns), true));
            }
        }
        Edge::None
    }

    /// Fails what timed out, one after the other, until the breaker opens.
    fn notice(&mut self, now_ns: u64) -> Edge {
        for index in 0..self.attempts.len() {
            let attempt = self.attempts[index];
            if attempt.era != self.era || attempt.over || !self.timed_out(&attempt, now_ns) {
                continue;
            }
            self.attempts[index].over = true;
            let edge = self.fail(false, now_ns);
            if edge != Edge::None {
                return edge;
            }
        }
        Edge::None
    }

    pub(crate) fn admit(&mut self, now_ns: u64) -> (Admission, Edge) {
        let mut edge = self.notice(now_ns);
        if edge != Edge::None {
            return (Admission::Open, edge);
        }
        if self.phase == Phase::Open {
            if now_ns < self.until_ns {
                return (Admission::Open, Edge::None);
            }
            if self.params.probes == 0 {
                edge = self.close(now_ns);
            } else {
                self.enter(Phase::HalfOpen);
                edge = Edge::HalfOpened;
            }
        }
        if self.phase == Phase::HalfOpen && self.awaited() >= self.params.probes.into() {
            return (Admission::Probing, edge);
        }
        self.attempts.push(Attempt { era: self.era, opened_ns: now_ns, over: false });
        (Admission::Admitted { epoch: self.epoch() }, edge)
    }

    pub(crate) fn epoch(&self) -> u8 {
        epoch(self.era)
    }

    /// Whether the next SYN would be refused and nothing else happen.
    pub(crate) fn refuses(&self, now_ns: u64) -> bool {
        match self.phase {
            Phase::Closed => false,
            Phase::Open => now_ns < self.until_ns,
            Phase::HalfOpen => {
                self.unnoticed(now_ns) == 0 && self.awaited() >= self.params.probes.into()
            }
        }
    }

    pub(crate) fn judge(&mut self, index: usize, verdict: Verdict, now_ns: u64) -> Edge {
        if self.attempts[index].era != self.era {
            return Edge::None;
        }
        let edge = self.notice(now_ns);
        if edge != Edge::None || self.attempts[index].over {
            return edge;
        }
        self.attempts[index].over = true;
        match verdict {
            Verdict::Abandoned => Edge::None,
            Verdict::Succeeded => self.succeed(now_ns),
            Verdict::Failed => self.fail(false, now_ns),
        }
    }

    pub(crate) fn fail_after_success(&mut self, era: u64, now_ns: u64) -> Edge {
        if era != self.era {
            return Edge::None;
        }
        match self.notice(now_ns) {
            Edge::None => self.fail(true, now_ns),
            edge => edge,
        }
    }

    /// Opens because of what others learned.
    pub(crate) fn be_told(&mut self, now_ns: u64) -> bool {
        if self.phase != Phase::Closed {
            return false;
        }
        self.ejections = 0;
        self.open(now_ns);
        self.told = true;
        true
    }

    pub(crate) fn view(&self, now_ns: u64) -> View {
        let closed = self.phase == Phase::Closed;
        let (ok, failed) = self.counts(now_ns);
        let waiting = self.awaited() - self.unnoticed(now_ns);
        View {
            phase: self.phase,
            remaining_ns: match self.phase {
                Phase::Open => self.until_ns.saturating_sub(now_ns),
                Phase::Closed | Phase::HalfOpen => 0,
            },
            told: self.phase == Phase::Open && self.told,
            consecutive: if self.calm { 0 } else { self.consecutive },
            ejections: if closed { self.remembered(now_ns) } else { self.ejections },
            probes_out: if self.phase == Phase::HalfOpen { waiting } else { 0 },
            probes_succeeded: self.succeeded,
            ok,
            failed,
            attempts: if closed { waiting } else { 0 },
        }
    }
}

pub(crate) fn epoch(era: u64) -> u8 {
    (era % 256) as u8
}
